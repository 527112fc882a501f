"""What a card says that a model can't do, as far as its files tell."""

from typing import Any

from huggingface_hub import ModelCardData

from hf_vlm.sharing.cards import run as course
from hf_vlm.sharing.cards.facts import Facts, read_settings
from hf_vlm.training.recipe_files import listed

_WRITERS = ("hf_vlm_llava", "hf_vlm_trocr", "hf_vlm_cnn_lstm")


def write_limits(facts: Facts, header: ModelCardData, is_measured: bool) -> str:
    """The section of limits.

    Args:
        header: which tells the languages.
        is_measured: whether the card has figures.
    """
    told = []
    if size := _picture_size(facts):
        told.append(f"A picture is brought to {size} pixels; what is too small to be seen there is lost.")
    told += _language_limits(facts)
    if facts.class_name.endswith("ForImageClassification") and facts.config:
        names = list((facts.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}).values())
        shown = ", ".join(map(str, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        told.append(f"It knows {len(names)} classes and calls every picture one of them: {shown}.")
    if facts.model_type in ("hf_vlm_vqvae", "hf_vlm_dvae") and facts.config.get("num_codes"):
        told.append(f"It has {facts.config['num_codes']:,} codes; what they can't say is lost.")
    learnt = {str(source.get("task") or facts.task) for *_, source in course.data_sets(facts.sections)}
    others = [task for task in facts.architecture.recipes if task not in {facts.task, *learnt}]
    if facts.sections and others:
        told.append(f"It was not trained here on the tasks {listed(others)}, which its architecture can learn.")
    if header.get("language"):
        told.append(f"Languages, by the cards of its data or its author: {', '.join(_as_list(header['language']))}.")
    elif facts.model_type in _WRITERS:
        told.append("Which languages it was trained on is not recorded.")
    if not is_measured:
        told.append("No evaluation is recorded.")
    return "## Limits\n\n" + "\n".join(f"- {one}" for one in told)


def _as_list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _picture_size(facts: Facts) -> str:
    """`height x width`, "" where no file says."""
    processor = facts.processor
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    size = size or processor.get("size") or {}
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        if processor.get("keep_aspect_ratio"):
            return f"a height of {size['height']} and a width of at most {size['width']}"
        return f"{size['height']} x {size['width']}"
    own: Any = facts.config.get("image_size") or (facts.config.get("vision_config") or {}).get("image_size")
    if isinstance(own, int):
        return f"{own} x {own}"
    return f"{own[0]} x {own[1]}" if isinstance(own, list) and len(own) == 2 else ""


def _language_limits(facts: Facts) -> list[str]:
    told = []
    tokenizer = read_settings(facts.folder / "tokenizer.json")
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    special = {token.get("content") for token in tokenizer.get("added_tokens") or ()}
    if facts.model_type == "hf_vlm_trocr" and isinstance(vocabulary, dict):
        entries = [entry for entry in vocabulary if entry not in special]
        if entries and all(len(entry) == 1 for entry in entries):
            shown = "".join(sorted(entries)).replace("`", "").strip()
            told.append(f"It writes {len(entries)} characters, the space among them, and no other: `` {shown} ``")
    elif facts.model_type == "hf_vlm_cnn_lstm" and vocabulary:
        told.append(
            f"It writes {len(vocabulary) - len(special & set(vocabulary)):,} words or pieces of words, and no other."
        )
    if longest := facts.processor.get("max_label_length"):
        told.append(f"A text has at most {longest} tokens, its end among them.")
    if number := facts.processor.get("num_image_tokens"):
        told.append(f"A picture takes {number} tokens of the language model's context.")
    longest = (facts.sections.get("data") or {}).get("max_length")
    if longest and facts.model_type == "hf_vlm_llava":
        told.append(f"It was trained on conversations of at most {longest} tokens, those of pictures among them.")
    return told
