"""Push a model to the Hub, in one commit that leaves no weights of an earlier push beside the new ones."""

import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HFValidationError
from transformers.utils.hub import create_and_tag_model_card

from .hub_errors import hub_fault

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def push_model(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> str:
    """Save a model in a temporary folder and push what is in it; the address of the commit.

    `PushToHubMixin.push_to_hub` leaves what an earlier push brought: where weights were one file and are shards now, the old
    file stays beside them and is the one that loads. Here it goes in the commit that brings the shards.

    Args:
        model: with `save_pretrained`.
        repo_id: `user/name`, or `name` of one's own; made if it isn't there.
        commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: as for
            `PreTrainedModel.push_to_hub`.

    Raises:
        OSError: if the Hub refuses, or the connection ends; what was in the repository is then as it was before.
        ValueError: if the Hub could not have a repository of that name.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        card = create_and_tag_model_card(repo_id, tags, token=token)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            card.save(Path(folder) / "README.md")
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
            files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
            there = api.list_repo_files(repo_id, revision=revision, token=token) if any(map(_is_weights, files)) else []
            return api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, path) for name, path in sorted(files.items())),
                    *(CommitOperationDelete(name) for name in there if _is_weights(name) and name not in files),
                ],
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )
    except Exception as error:  # of four libraries, no class in common
        fault = None if isinstance(error, HFValidationError) else hub_fault(error)
        if fault is None:
            raise
        raise OSError(
            f"`{repo_id}` wanted on {constants.ENDPOINT}, got {fault.what}. {fault.advice} A push is one commit, "
            "done whole or not at all."
        ) from error


def _is_weights(name: str) -> bool:
    return _WEIGHTS.fullmatch(name) is not None
