"""A folder of a model or an adapter goes to the Hub, as one commit, after all has been checked that can be checked here.

    folder -> which of its files belong to the model: no checkpoints, optimizer states, recipes, logs, data
           -> does it load, are the weights those of its report, is there a card with a licence, is no token among the texts
           -> repository of the name, made if it isn't there; is it as private as wanted, and not of another kind
           -> one commit, done whole or not at all

Of a run's folder that is the model that lies in it, the best or the last of the run.
"""

import logging
import os
import re
import shlex
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig

from hf_vlm.parts.adapter_loading import base_of_adapter, find_base, load_with_adapter
from hf_vlm.parts.base_weights import BASE_FILE
from hf_vlm.parts.checkpoint_files import WEIGHT_FILES, is_weight_file, read_json, read_tensors
from hf_vlm.parts.hub_upload import naming_repository, push_files
from hf_vlm.parts.model_class import model_class
from hf_vlm.parts.model_origin import is_way
from hf_vlm.parts.model_saving import ADAPTER_CONFIG
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.parts.weight_report import REPORT_FILE, card_metadata, stated_license
from hf_vlm.sharing.cards.weights import changed_parts
from hf_vlm.sharing.whole_models import files_of_model, load_processor, own_model_type
from hf_vlm.training.projector_files import PROJECTOR_FILE

logger = logging.getLogger(__name__)

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_OF_ADAPTERS = (ADAPTER_CONFIG, _ADAPTER_WEIGHTS, BASE_FILE)
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg")
_TEXTS = (".json", ".md", ".txt", ".jinja", ".py", ".yaml")
_SECRETS = re.compile(
    rb"(?<![\w-])(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{32,}|sk-proj-[\w-]{40,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,}"
    rb"|AKIA[0-9A-Z]{16})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@dataclass
class Pushed:
    """What went to the Hub.

    Attributes:
        url: of the repository, at its branch where that is not the main one.
        commit: 40 hex digits; of the one before where nothing had changed.
        files: names of the files of the commit.
        num_bytes: of all of them.
        is_private: whether the repository is.
        left_out: what the folder has besides, which stayed here; folders end in `/`.
    """

    url: str
    commit: str
    files: list[str]
    num_bytes: int
    is_private: bool
    left_out: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    def __str__(self) -> str:
        seen = "private" if self.is_private else "public"
        told = [f"{len(self.files)} files, {self.num_bytes / 1e6:.1f} MB, {seen}: {self.url}", f"commit {self.commit}"]
        if self.left_out:
            told.append(f"not pushed: {', '.join(self.left_out)}")
        return "\n".join(told)


def push(
    folder: str | os.PathLike,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: bool | str | None = None,
) -> Pushed:
    """Push the model or adapter in a folder, with processor, card and licence, to the Hub as one commit.

    The folder's card takes the place of the repository's. Weights of an earlier push that this model doesn't have go.

    Args:
        folder: of a model of ours, an adapter, or a run that has ended.
        name: `user/name`, or `name` of one's own; made if it isn't there.
        private: whether the repository is to be; None means as it is, or the account's default.
        revision: branch; made if it isn't there. None means the main one.
        message: of the commit.
        token: of the Hub; None means the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        FileNotFoundError: if there is no such folder, or the model lacks its weights.
        ValueError: before anything is sent, if the folder holds no model of ours that loads, its weights are not those that
            its report or its adapter's base tells of, it has no card with a licence, a token stands in a file, `name` is none,
            or the repository is more or less private than wanted, or holds a model of another kind.
        OSError: if the Hub refuses or the connection ends; what was there is then as it was before.
    """
    place, message = Path(folder), message or f"Upload {Path(folder).resolve().name}"
    _check_name(name)
    is_adapter = _is_adapter(place)
    files = _files_to_push(place, is_adapter)
    if is_adapter:
        base = _check_adapter(place)
    else:
        base = None
        _check_model(place)
    _check_card(place)
    _check_no_secrets(files, token)

    api = HfApi()
    with naming_repository(name):
        if base is not None:
            _tell_of_base(api, place, base)
        repository = api.create_repo(name, private=private, token=token, exist_ok=True).repo_id
        info = api.model_info(repository, token=token)
        is_private = bool(info.private)
        if private is not None and private != is_private:
            has, wanted = ("private", "public") if is_private else ("public", "private")
            raise ValueError(
                f"A {wanted} repository is wanted, got `{repository}`, which is {has}. Nothing was pushed. Change that in its "
                f"settings, {constants.ENDPOINT}/{repository}/settings, or name another one."
            )
        there = {sibling.rfilename for sibling in info.siblings or ()}
    if is_adapter and "config.json" in there:
        raise ValueError(
            f"A repository without a whole model is wanted for an adapter, got `{repository}` with `config.json`. Nothing was "
            "pushed. Name another one."
        )
    commit = push_files(
        files,
        repository,
        commit_message=message,
        private=private,
        token=token,
        revision=revision,
        own_card=True,
    )
    url = f"{constants.ENDPOINT}/{repository}" + (f"/tree/{revision}" if revision else "")
    num_bytes = sum(path.stat().st_size for path in files.values())
    return Pushed(url, commit.oid, sorted(files), num_bytes, is_private, _left_out(place, files))


# What is checked here


def _check_name(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"`name` must be `user/name`, or `name` of one's own, got {name!r}, which the Hub could not have ({error}). "
            "Correct it."
        ) from error


def _is_adapter(place: Path) -> bool:
    """Whether a folder holds an adapter, not a whole model.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds neither, or both.
    """
    if not place.is_dir():
        raise FileNotFoundError(f"`folder` must be a folder with a model, got {place}, which is none. Correct it.")
    is_model, is_adapter = (place / "config.json").is_file(), (place / ADAPTER_CONFIG).is_file()
    if is_model and is_adapter:
        raise ValueError(
            f"A whole model or an adapter is wanted, got {place} with `config.json` and `{ADAPTER_CONFIG}`. Take the files of "
            "one of them away."
        )
    if not is_model and not is_adapter:
        checkpoints = sorted(place.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
        advice = "Name the folder of a model, an adapter, or a run that has ended."
        if checkpoints:
            advice = f"Its run has not ended: go on with it, or push {checkpoints[-1]} (its card and licence first)."
        raise ValueError(f"`folder` must have `config.json` or `{ADAPTER_CONFIG}`, got {place} without. {advice}")
    return is_adapter


def _files_to_push(place: Path, is_adapter: bool) -> dict[str, Path]:
    """Name in the repository -> the file, of all that belongs to the model and nothing that its run left beside it."""
    also = list(_OF_ADAPTERS if is_adapter else (PROJECTOR_FILE,))
    if not is_adapter and read_json(place / "config.json").get("auto_map"):
        also.append("*.py")
    card = place / "README.md"
    shown = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    files = {}
    for path in files_of_model(place, also):
        if path.suffix.lower() in _PICTURES and path.name not in shown:  # such as the pictures of a dry run
            continue
        if path.suffix == ".bin" or path.name.endswith(".bin.index.json") or (is_adapter and is_weight_file(path.name)):
            continue
        files[path.as_posix()] = place / path
    weights = [name for name in files if is_weight_file(name) or name == _ADAPTER_WEIGHTS]
    if not weights:
        wanted = _ADAPTER_WEIGHTS if is_adapter else f"{WEIGHT_FILES[0]}` or `{WEIGHT_FILES[1]}"
        raise FileNotFoundError(
            f"`{wanted}` wanted in {place}, got none. Copy the weights there; of PyTorch's `.bin` files load the model and save "
            "it with `save_pretrained`."
        )
    return files


def _left_out(place: Path, files: dict[str, Path]) -> list[str]:
    """What lies in a folder and is not pushed, files and folders of the first level."""
    taken = {name.split("/")[0] for name in files}
    return sorted(path.name + "/" * path.is_dir() for path in place.iterdir() if path.name not in taken)


def _check_model(place: Path) -> None:
    """Raises ValueError if a whole model or its processor does not load, or its weights are others than its report says."""
    own_model_type(place, f"Push it with `hf upload NAME {shlex.quote(str(place))}`.")
    config: Any = AutoConfig.from_pretrained(place)
    if getattr(config, "quantization_config", None) is None:  # whose loading wants the device that it is for
        loader: Any = model_class(config)
        loader.from_pretrained(place, device_map="meta")  # names and shapes; contents are those that were hashed
    if load_processor(place) is None:
        logger.warning(
            "%s has no processor: whoever loads the model can't prepare pictures for it. Save it there with the processor's "
            "`save_pretrained`.",
            place,
        )
    if (place / REPORT_FILE).is_file() and (changed := changed_parts(place)):
        raise ValueError(
            f"The weights in {place} must be those that its `{REPORT_FILE}` tells of, got others by their SHA-256 in "
            f"{', '.join(f'`{part}`' for part in changed)}. Copy the folder again; if the weights are right, load the model and "
            "save it with `save_pretrained`, which writes the report anew."
        )


def _check_adapter(place: Path) -> str:
    """What an adapter calls its base.

    Raises:
        ValueError: if it does not fit its base, as far as that is here.
    """
    named = str(read_json(place / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    read_tensors(place / _ADAPTER_WEIGHTS)
    try:
        base = base_of_adapter(place)
    except FileNotFoundError:
        logger.warning("The base of the adapter, %s, is not here: that it fits was not checked.", named or "not named")
        return named
    assert base is not None  # it has no config of its own
    of_adapter = (read_json(place / ADAPTER_CONFIG).get("auto_mapping") or {}).get("base_model_class")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The adapter .* wants ")  # said where the base has other weights
        try:
            load_with_adapter(model_class(AutoConfig.from_pretrained(base), of_adapter), place)
        except UserWarning as error:
            raise ValueError(f"{error} Nothing was pushed.") from error
    return named


def _check_card(place: Path) -> None:
    """Raises ValueError if a folder has no card with a licence: without one, others may not use the model."""
    if stated_license(card_metadata(place)):
        return
    came = "one without a licence" if (place / "README.md").is_file() else "none"
    raise ValueError(
        f"A card, `README.md`, with a licence is wanted in {place}, got {came}. Write it by `hf-vlm card "
        f"{shlex.quote(str(place))}`, which asks for `--license` where it does not follow from the parts."
    )


def _check_no_secrets(files: dict[str, Path], token: bool | str | None) -> None:
    """Raises ValueError if a token or a private key stands in one of the texts that would go out; it is not told which."""
    own = token if isinstance(token, str) else get_token()
    for path in files.values():
        if path.suffix.lower() not in _TEXTS and path.suffix:
            continue
        text = path.read_bytes()
        found = _SECRETS.search(text)
        at = found.start() if found else text.find(own.encode()) if own else -1
        if at >= 0:
            line = text.count(b"\n", 0, at) + 1
            raise ValueError(
                f"No token or private key may go to the Hub, got one in {path}, line {line}. Take it out; if it was ever "
                "public, revoke it."
            )


# What the Hub is asked


def _tell_of_base(api: HfApi, place: Path, base: str) -> None:
    """Warn where others would not find an adapter's base."""
    if os.path.realpath(find_base(place, base)) == os.path.realpath(default_ocr_model()):
        return  # it comes with the package
    mend = f"Push the base first, and name its repository as `base_model_name_or_path` in {place / ADAPTER_CONFIG}."
    if not base or is_way(base) or os.path.isdir(base):
        logger.warning("The adapter's base, %s, is a folder of this machine: others can't load it. %s", base, mend)
        return
    try:
        is_open = not api.model_info(base, token=False).gated
    except GatedRepoError:
        is_open = False
    except (RepositoryNotFoundError, HFValidationError):
        logger.warning("The adapter's base, %s, is not on the Hub, or private: others can't load it. %s", base, mend)
        return
    if not is_open:
        logger.warning("The adapter's base, %s, is gated: others have to ask for access to it first.", base)
