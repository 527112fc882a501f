"""The card of a trained model or adapter, from what its run left behind: nothing is invented.

config, weights, `weight_report.json`  -> what it is, what it is made of, its licence
recipe.yaml, trainer_state.json        -> data, settings, course, a plot of the loss
run_environment.json                   -> devices, versions, time, rows
records of `hf-vlm evaluate`           -> figures, for readers and for the Hub (`model-index`)

What the author writes between the sections, and what they add to the header, stays when the card is written anew.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993; the Hub's fields,
https://huggingface.co/docs/hub/model-cards
"""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, snapshot_download

from hf_vlm.sharing.cards import records as figures
from hf_vlm.sharing.cards.architectures import task_among
from hf_vlm.sharing.cards.body import write_figures, write_sections
from hf_vlm.sharing.cards.facts import gather_facts
from hf_vlm.sharing.cards.header import settle_header
from hf_vlm.sharing.cards.pictures import take_picture
from hf_vlm.sharing.cards.sections import author_text, find_sections, is_handwritten, join_sections
from hf_vlm.sharing.cards.weights import measured_hash, weights_hash

_ORDER = ("summary", "use", "parts", "data", "training", "figures", "limits", "adapting", "license")


def write_card(
    folder: str | os.PathLike,
    *,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    records: Sequence[str | os.PathLike] = (),
    picture: str | os.PathLike | None = None,
    limits: str | None = None,
    name: str | None = None,
    out: str | os.PathLike | None = None,
) -> Path:
    """Write the card of a trained model or adapter.

    A card that is there is brought up to date: its sections are written anew, all else stays. Its figures stay too if none are
    given and the weights are those that were measured.

    Args:
        folder: of a model or adapter of ours, best of its run; or a Hub name, with `out`.
        license: a licence id of the Hub; None means that of the card that is there, or what follows from the parts'
            licences. It may not allow more than these, nor than a card that lies beside the weights.
        license_name, license_link: for the licence `other`.
        records: files of `hf-vlm evaluate`, `--record` or `--json`; none means those in the folder.
        picture: file to show; a large one is made smaller.
        limits: what the model can't do or must not be used for; stays as its author's text.
        name: of the model, such as the Hub name that it will have; by default the folder's, or that of the card that is there.
        out: file of the card, by default `README.md` in the folder. Its pictures are put beside it.

    Returns: the card's path.

    Raises:
        FileNotFoundError: if a file, or what a Hub name stands for, is not there.
        ValueError: if the folder is none of ours, the licence can't be derived or allows too much, a record is of other
            weights, `out` is a folder, or the card that is there was written by hand.
    """
    hub_name = None
    if not os.path.isdir(folder):
        if out is None:
            raise ValueError(
                f"The folder of a model is wanted, got {os.fspath(folder)}. For a model of the Hub give `out` (`--out FILE`) too."
            )
        hub_name, folder = os.fspath(folder), _download(os.fspath(folder))
    place = Path(folder)
    file = Path(out) if out is not None else place / "README.md"
    if file.is_dir():
        raise ValueError(
            f"`out` (`--out`) must be the file of the card, got the folder {file}. Name a file in it, such as "
            f"{file / 'README.md'}."
        )
    old = _read_old(file)
    known_name = old.data.get("model_name") if old is not None else None
    facts = gather_facts(place, name or hub_name or known_name or place.resolve().name)
    if facts.brings_code and not facts.task and old is not None:  # its run stayed behind
        facts.task = task_among(old.data.get("tags") or ())
    facts.records = figures.read_records(records or figures.records_in(place))
    weights = weights_hash(place)
    if any(record.weights_sha256 for record in facts.records):
        measured = measured_hash(facts)
        if measured is None:
            warnings.warn(
                f"Whether the records are of the weights in {place} could not be checked: they don't load (an adapter "
                "without its base?). Run it where they do, or check their hashes yourself.",
                stacklevel=2,
            )
        else:
            figures.check_weights(facts.records, measured)
    header, licenses = settle_header(facts, old, license, license_name, license_link)

    text = old.text if old is not None and find_sections(old.text, file.name) else None
    file.parent.mkdir(parents=True, exist_ok=True)
    told_figures = write_figures(facts, weights, text, header, old)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-") as folder_beside:
        written = Path(folder_beside)
        shown = take_picture(Path(picture), file.parent, written) if picture is not None else None
        sections = write_sections(facts, header, licenses, file, shown, written, text, told_figures)
        body = join_sections({key: sections[key] for key in _ORDER if sections.get(key)}, text, file.name)
        if limits is not None and f"\n\n{limits.strip()}\n\n" not in f"\n\n{author_text(body)}\n\n":
            mark = "<!-- hf-vlm: end limits -->"
            body = body.replace(mark, f"{mark}\n\n{limits.strip()}", 1)
        card = ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}")
        pictures = list(written.iterdir())
        unfinished = written / "card"
        unfinished.write_text(card.content.rstrip("\n") + "\n", encoding="utf-8")
        for finished in pictures:
            os.replace(finished, file.parent / finished.name)
        os.replace(unfinished, file)
    return file


def _read_old(file: Path) -> ModelCard | None:
    """The card that is there, if it is ours or peft's unfilled form.

    Raises:
        ValueError: if it was written by hand, or its header is damaged.
    """
    if not file.is_file():
        return None
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except ValueError as error:
        raise ValueError(
            f"{file.name} must begin with a header of YAML, got one that does not read ({error}). Correct it."
        ) from error
    if is_handwritten(card.text):
        raise ValueError(
            f"{file} must be a card of `hf-vlm card`, got one written by hand, which stays as it is. Write elsewhere with `out` "
            "(`--out FILE`), or move it away and put its text into the new one."
        )
    return card


def _download(name: str) -> str:
    try:
        return snapshot_download(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The folder of a model or its Hub name is wanted, got {name!r}, which is neither here, nor on the "
            f"Hub or in its cache "
            f"({str(error).splitlines()[0]}). Check the spelling."
        ) from error
