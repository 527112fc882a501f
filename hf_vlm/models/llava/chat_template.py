"""A language model's own chat template, extended: pictures as parts of a message, and spans of what an assistant learns.

transformers reads the spans `{% generation %} ... {% endgeneration %}` of a template as the assistant's words. Templates of
the Hub mostly lack them. Here the template is rendered with marks around the assistant's words, and the spans are placed by
the marks, up to the end of the turn: they come out of the same rendering as the text, and can't drift from it.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

# Name -> Jinja.
TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted(Path(__file__).with_name("templates").glob("*.jinja"))
}

# Noncharacters of Unicode, which no text holds: "intended for process-internal uses" (The Unicode Standard, 23.7).
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

_EXTENSION = """\
{#- Pictures and spans of the assistant's words, around the language model's own template: see hf_vlm. -#}
{%- set given = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set written = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set written.text = message['content'] -%}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set written.text = written.text ~ 'IMAGE_TOKEN\\n' -%}
{%- elif part['type'] == 'text' -%}{%- set written.text = written.text ~ part['text'] -%}
{%- else -%}{{- raise_exception('A part is of type text or image, got ' ~ part['type'] ~ '. Leave it out.') -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{%- set written.text = 'OPEN_MARK' ~ (written.textTRIMMING) ~ 'CLOSE_MARK' -%}
{%- endif -%}
{%- set given.messages = given.messages + [dict(message, content=written.text)] -%}
{%- endfor -%}
{%- set messages = given.messages -%}
{%- set rendered %}
OWN_TEMPLATE{% endset -%}
{%- for piece in rendered.split('LEADOPEN_MARK') -%}
{%- if loop.first -%}{{- piece -}}
{%- else -%}
{%- set words = piece.split('CLOSE_MARK') -%}
{%- set rest = words[1].split('END_OF_TURN') -%}
{%- set end = 'END_OF_TURN' if rest | length > 1 else '' -%}
{%- generation -%}{{- 'LEAD' ~ words[0] ~ rest[0] ~ end -}}{%- endgeneration -%}
{{- rest[1:] | join('END_OF_TURN') -}}
{%- endif -%}
{%- endfor -%}
"""

# What templates do to the assistant's words: the marks would keep it from them, so it is done before they are set.
_TRIMMINGS = ("", ".strip()", ".lstrip()", ".rstrip()", ".strip('\\n')", ".lstrip('\\n')", ".rstrip('\\n')")

_PROBES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}],
    [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": " \nOn the mat.\n "},
        {"role": "user", "content": " And now? "},
        {"role": "assistant", "content": "\n On the\n\nsofa. \n"},
    ],
]


def template_text(name_or_text: str) -> str:
    """The Jinja text of a template: a name such as `llava_v1` stands for a file of this package.

    Raises:
        ValueError: if it is neither a known name nor Jinja.
    """
    if re.fullmatch(r"[\w.-]+", name_or_text):
        if name_or_text not in TEMPLATES:
            known = ", ".join(f"`{name}`" for name in TEMPLATES)
            raise ValueError(f"`chat_template` must be Jinja or one of {known}, got `{name_or_text}`. Choose one.")
        return TEMPLATES[name_or_text]
    return name_or_text


def extend_template(tokenizer: PreTrainedTokenizerBase, image_token: str) -> str:
    """The tokenizer's own chat template, with pictures and spans; as it is if it has both already.

    Raises:
        ValueError: if the tokenizer has none, or one whose assistant's turns don't come out as they went in or don't end with
            a token of their own.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise ValueError(
            "The tokenizer must have a chat template, got none. Name one: `chat_template='llava_v1'` suits any language model "
            "with an end token."
        )
    if has_spans(own) and "image" in own:
        return own
    if has_spans(own):  # spans of its own would stand inside the rendering, where transformers can't see them
        own = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", _without_tag, own)
    end_of_turn = _end_of_turn(own, tokenizer)
    for trimming, lead in itertools.product(_TRIMMINGS, dict.fromkeys((_lead(own, tokenizer), ""))):
        extended = _EXTENSION
        for placeholder, text in (
            ("IMAGE_TOKEN", _quoted(image_token)),
            ("OPEN_MARK", _OPEN),
            ("CLOSE_MARK", _CLOSE),
            ("TRIMMING", trimming),
            ("LEAD", _quoted(lead)),
            ("END_OF_TURN", _quoted(end_of_turn)),
            ("OWN_TEMPLATE", own.removesuffix("\n")),  # which Jinja leaves out at the end of a file
        ):
            extended = extended.replace(placeholder, text)
        if all(
            _speaks_alike(extended, own, messages, end_of_turn, tokenizer, add_generation_prompt)
            for messages in _PROBES
            for add_generation_prompt in (False, True)
        ):
            return extended
    wanted, _ = render(own, _PROBES[1], tokenizer)
    raise ValueError(
        "The tokenizer's chat template must give back the assistant's words as they are, ends trimmed at most, got one that "
        f"makes {wanted!r} of {[message['content'] for message in _PROBES[1]]}. Give a template with `{{% generation %}}` "
        "spans as `chat_template`."
    )


def _speaks_alike(
    extended: str,
    own: str,
    messages: list[dict[str, Any]],
    end_of_turn: str,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
) -> bool:
    """Whether an extended template renders as the own one, each span an answer up to its end token."""
    wanted, _ = render(own, messages, tokenizer, add_generation_prompt=add_generation_prompt)
    try:
        got, spans = render(extended, messages, tokenizer, add_generation_prompt=add_generation_prompt)
    except ValueError:  # the marks came out in another order than they went in
        return False
    said = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    return (
        got == wanted
        and len(spans) == len(said)
        and all(
            got[start:end].lstrip().startswith(words) and got[start:end].endswith(end_of_turn)
            for (start, end), words in zip(spans, said, strict=True)
        )
    )


def render(
    template: str,
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the spans of characters that the assistant wrote.

    Raises:
        ValueError: if the template refuses the conversation, or loses a part of the assistant's words.
    """
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=has_spans(template),
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens_map, **variables},
        )
    except jinja2.TemplateError as error:
        raise ValueError(
            f"The chat template must accept the conversation, got its refusal ({error}). Check roles and their order."
        ) from error
    if _OPEN in texts[0] or _CLOSE in texts[0]:
        raise ValueError(
            "The chat template must give back the assistant's words as they are, got one that leaves a part of them out, as "
            "some do with `<think>`. Take that part out of the conversation, or give another template."
        )
    return texts[0], list(spans[0]) if spans else []


def end_of_turn_token(template: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that ends the assistant's turns; None where the template ends them by text."""
    text, spans = render(template, _PROBES[0], tokenizer)
    if not spans:
        return None
    start, end = spans[-1]
    said = _PROBES[0][-1]["content"]
    return _first_special_token(text[start:end].partition(said)[2], tokenizer)


def has_spans(template: str) -> bool:
    """Whether a template marks what the assistant learns to say."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def _end_of_turn(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    text, _ = render(template, _PROBES[0], tokenizer)
    said = _PROBES[0][-1]["content"]
    token = _first_special_token(text.rpartition(said)[2], tokenizer) if said in text else None
    if token is None:
        raise ValueError(
            "The chat template must end the assistant's turn with a special token, got one that goes on with "
            f"{text.rpartition(said)[2]!r}: a model could not learn to stop. Name another: `chat_template='llava_v1'`."
        )
    return token


def _lead(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Blanks that a template writes between what it asks an answer with and the answer: the model has to say them first."""
    try:
        prompt, _ = render(template, _PROBES[0][:-1], tokenizer, add_generation_prompt=True)
    except ValueError:  # it wants whole exchanges
        return ""
    text, _ = render(template, _PROBES[0], tokenizer)
    lead = text.removeprefix(prompt).partition(_PROBES[0][-1]["content"])[0]
    return lead if text.startswith(prompt) and lead.isspace() else ""


def _first_special_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token at the start of a text, spaces aside, if it is a special one."""
    text = text.lstrip()
    known = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    fitting = [token for token in known if token and text.startswith(token)]
    return max(fitting, key=len) if fitting else None


def _without_tag(tag: re.Match[str]) -> str:
    """A comment in a tag's place, with its control of white space."""
    text = tag.group()
    return ("{#-" if text.startswith("{%-") else "{#") + " " + ("-#}" if text.endswith("-%}") else "#}")


def _quoted(text: str) -> str:
    """A text between single quotes of Jinja."""
    return text.replace("\\", "\\\\").replace("'", "\\'")
