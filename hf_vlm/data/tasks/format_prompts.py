"""Format prompts: what tells a model in which form to answer, one preset a kind of data set, added behind the question.

A model that learns from several sets at once needs to be told which form is wanted; the same words must be used in training and
in evaluation, so they are here, by name, and nowhere else.

Source: Liu et al. 2023b (LLaVA-1.5), https://arxiv.org/abs/2310.03744, table 8, and docs/Evaluation.md of its code, which
    give the words of LLaVA-1.5's prompts. `true-false` and `translate-*` are ours.
"""

import difflib

FORMAT_PROMPTS = {
    "none": "",  # LLaVA-Bench, MM-Vet
    "short-answer": "Answer the question using a single word or phrase.",  # VQAv2, GQA, TextVQA, MME, POPE, OK-VQA
    "unanswerable": "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase.",  # VizWiz
    "option-letter": "Answer with the option's letter from the given choices directly.",  # ScienceQA, MMBench, SEED
    "caption": "Provide a one-sentence caption for the provided image.",  # TextCaps
    "region-description": "Provide a short description for this region.",
    "region-box": "Provide the bounding box coordinate of the region this sentence describes.",
    "true-false": "Is this true or false of the pictures?",  # NLVR2
    "translate-de": "Translate this into German.",
    "translate-fr": "Translate this into French.",
}


def format_prompt(name_or_text: str | None) -> str:
    """The words of a preset, or the text itself where it is more than a word; none for None.

    Raises:
        ValueError: if it is a single word that no preset is called by.
    """
    if name_or_text is None:
        return ""
    if name_or_text in FORMAT_PROMPTS:
        return FORMAT_PROMPTS[name_or_text]
    if not name_or_text.strip() or " " in name_or_text.strip():
        return name_or_text.strip()
    near = difflib.get_close_matches(name_or_text, FORMAT_PROMPTS, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(f'`{name}`' for name in FORMAT_PROMPTS)}."
    raise ValueError(f"A format prompt must be a preset's name or a sentence, got {name_or_text!r}. {hint}")


def with_format_prompt(question: str, name_or_text: str | None) -> str:
    """A question, and behind it, on a line of its own, in which form to answer; either may be empty."""
    return "\n".join(part for part in (question.strip(), format_prompt(name_or_text)) if part)
