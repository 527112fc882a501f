"""Push a model to the Hub, in one commit that leaves no weights of an earlier push beside the new ones."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HFValidationError
from transformers.utils.hub import create_and_tag_model_card

from .checkpoint_files import is_weight_file
from .hub_errors import hub_fault
from .model_saving import ADAPTER_CONFIG
from .weight_report import REPORT_FILE

PUSH_SETTINGS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
_OF_SOME_MODELS = (
    REPORT_FILE,
    "generation_config.json",
)  # those of an earlier push would be read for one that has none


def push_model(
    model: Any,
    repo_id: str,
    *,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    **settings: Any,
) -> str:
    """Save a model in a temporary folder and push what is in it; the address of the commit.

    Args:
        model: with `save_pretrained`.
        repo_id: `user/name`, or `name` of one's own; made if it isn't there.
        max_shard_size: as for `save_pretrained`.
        tags: of the card, where the repository has none yet.
        settings: as for `push_files`.

    Raises:
        OSError, ValueError: as `push_files`; also if the temporary folder has no room.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
        return push_files(files, repo_id, tags=tags, **settings)


def push_files(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    own_card: bool = False,
) -> CommitInfo:
    """Push the files of a model or of an adapter, with the repository's card or a new one; the commit, by its address.

    `PushToHubMixin.push_to_hub` leaves what an earlier push brought: where weights were one file and are shards now, the old
    file stays beside them and is the one that loads. Here it goes in the commit that brings the shards, and so do the report
    of weights and the generation config that this model doesn't have.

    Args:
        files: name in the repository -> the file.
        repo_id: `user/name`, or `name` of one's own; made if it isn't there.
        commit_message, commit_description, private, token, revision, create_pr, tags: as for
            `PreTrainedModel.push_to_hub`.
        own_card: whether `README.md` of the files takes the place of the repository's card.

    Raises:
        OSError: if the Hub refuses, or the connection ends; what was in the repository is then as it was before.
        ValueError: if the Hub could not have a repository of that name, or a whole model would lie beside an adapter there.
    """
    api = HfApi()
    with naming_repository(repo_id):
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if own_card:
            card = files["README.md"].read_bytes()
        else:
            card = str(create_and_tag_model_card(repo_id, tags, token=token)).encode()
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        is_model = any(map(is_weight_file, files))
        there = set(api.list_repo_files(repo_id, revision=revision, token=token)) if is_model else set()
        if ADAPTER_CONFIG in there - set(files):
            raise ValueError(
                f"A repository without an adapter is wanted for a whole model, got `{repo_id}` with `{ADAPTER_CONFIG}`, which "
                "would be applied to it on loading. Nothing was pushed. Name another one, or delete the adapter's files there."
            )
        old = sorted(name for name in there - set(files) if is_weight_file(name) or name in _OF_SOME_MODELS)
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in sorted(files.items()) if name != "README.md"),
                CommitOperationAdd("README.md", card),
                *map(CommitOperationDelete, old),
            ],
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )


@contextlib.contextmanager
def naming_repository(repo_id: str) -> Iterator[None]:
    """Around what asks the Hub to change a repository: where it refuses, or can't be asked, say so in plain words.

    Raises:
        OSError: then.
    """
    try:
        yield
    except Exception as error:  # of four libraries, no class in common
        fault = None if isinstance(error, HFValidationError) else hub_fault(error)
        if fault is None:
            raise
        raise OSError(
            f"`{repo_id}` wanted on {constants.ENDPOINT}, got {fault.what}. {fault.advice} A push is one commit, "
            "done whole or not at all."
        ) from error
