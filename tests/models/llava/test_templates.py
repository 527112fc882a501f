"""The templates of LLaVA: which tokens a conversation becomes and which of them are learnt, as lists written by hand.

The lists follow LLaVA's own `conversation.py`; they are compared through transformers alone. The tokenizer is a small one of
LLaMA's kind: "▁" for a blank, one before every stretch of text between special tokens, bytes for what it lacks.
"""

from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

import hf_vlm.models.llava

TEMPLATES = Path(hf_vlm.models.llava.__file__).parent / "templates"

PIECES = """▁ . , : ' ? s ▁A ▁chat ▁between ▁a ▁curious ▁human ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant
▁The ▁gives ▁helpful ▁detailed ▁polite ▁answers ▁to ▁the ▁questions ▁USER ▁ASSISTANT ▁What What ▁city ▁is ▁this
▁Paris Paris ▁Where Where ▁In In ▁France ▁Hello Hello ▁there ▁No No ### Human Assistant ▁Be Be ▁brief
You ▁You ▁are ▁language ▁vision ▁able ▁understand ▁visual ▁content ▁that ▁provides ▁assist ▁with ▁variety ▁of ▁tasks ▁using
▁natural ▁[ INST ] ▁[/ ▁<< SYS >> <</""".split()

HUMAN_SYSTEM = """▁A ▁chat ▁between ▁a ▁curious ▁human ▁and ▁an ▁artificial ▁intelligence ▁assistant .
▁The ▁assistant ▁gives ▁helpful , ▁detailed , ▁and ▁polite ▁answers ▁to ▁the ▁human ' s ▁questions ."""
USER_SYSTEM = """▁A ▁chat ▁between ▁a ▁curious ▁user ▁and ▁an ▁artificial ▁intelligence ▁assistant .
▁The ▁assistant ▁gives ▁helpful , ▁detailed , ▁and ▁polite ▁answers ▁to ▁the ▁user ' s ▁questions ."""
LLAMA_2_SYSTEM = """▁<< SYS >> <0x0A> You ▁are ▁a ▁helpful ▁language ▁and ▁vision ▁assistant .
▁You ▁are ▁able ▁to ▁understand ▁the ▁visual ▁content ▁that ▁the ▁user ▁provides , ▁and ▁assist ▁the ▁user ▁with ▁a
▁variety ▁of ▁tasks ▁using ▁natural ▁language . <0x0A> <</ SYS >> <0x0A> <0x0A>"""

PICTURE = {"type": "image"}
Messages = list[dict[str, Any]]


def user(*parts: dict[str, str] | str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


CONVERSATIONS: dict[str, Messages] = {
    "one turn": [user(PICTURE, "What city is this?"), {"role": "assistant", "content": "Paris"}],
    "two turns": [
        user(PICTURE, "What city is this?"),
        {"role": "assistant", "content": [{"type": "text", "text": "Paris"}]},
        {"role": "user", "content": "Where is this?"},
        {"role": "assistant", "content": "In France"},
    ],
    "text only": [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello"}],
    "text only, two turns": [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Hello"},
        user("What?"),
        {"role": "assistant", "content": "No"},
    ],
}

# Between parentheses: the tokens with loss.
EXPECTED: dict[str, dict[str, str]] = {
    "llava_v1": {
        "one turn": f"<s> {HUMAN_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT : ( ▁Paris </s> )",
        "two turns": f"""<s> {HUMAN_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT : ( ▁Paris </s> )
            ▁USER : ▁Where ▁is ▁this ? ▁ASSISTANT : ( ▁In ▁France </s> )""",
        "text only": f"<s> {HUMAN_SYSTEM} ▁USER : ▁Hello ▁there ▁ASSISTANT : ( ▁Hello </s> )",
        "text only, two turns": f"""<s> {HUMAN_SYSTEM} ▁USER : ▁Hello ▁there ▁ASSISTANT : ( ▁Hello </s> )
            ▁USER : ▁What ? ▁ASSISTANT : ( ▁No </s> )""",
    },
    "vicuna_v1": {
        "one turn": f"<s> {USER_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT : ( ▁Paris </s> )",
        "two turns": f"""<s> {USER_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT : ( ▁Paris </s> )
            ▁USER : ▁Where ▁is ▁this ? ▁ASSISTANT : ( ▁In ▁France </s> )""",
        "text only": f"<s> {USER_SYSTEM} ▁USER : ▁Hello ▁there ▁ASSISTANT : ( ▁Hello </s> )",
        "text only, two turns": f"""<s> {USER_SYSTEM} ▁USER : ▁Hello ▁there ▁ASSISTANT : ( ▁Hello </s> )
            ▁USER : ▁What ? ▁ASSISTANT : ( ▁No </s> )""",
    },
    "llava_v0": {
        "one turn": f"""<s> {HUMAN_SYSTEM}
            ### Human : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ### Assistant : ( ▁Paris ### )""",
        "two turns": f"""<s> {HUMAN_SYSTEM}
            ### Human : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ### Assistant : ( ▁Paris ### )
            Human : ▁Where ▁is ▁this ? ### Assistant : ( ▁In ▁France ### )""",
        "text only": f"<s> {HUMAN_SYSTEM} ### Human : ▁Hello ▁there ### Assistant : ( ▁Hello ### )",
        "text only, two turns": f"""<s> {HUMAN_SYSTEM} ### Human : ▁Hello ▁there ### Assistant : ( ▁Hello ### )
            Human : ▁What ? ### Assistant : ( ▁No ### )""",
    },
    "plain": {
        "one turn": "<s> <image> ( ▁Paris <0x0A> )",
        "two turns": "<s> <image> ( ▁Paris <0x0A> In ▁France <0x0A> )",
        "text only": "<s> ( ▁Hello <0x0A> )",
        "text only, two turns": "<s> ( ▁Hello <0x0A> No <0x0A> )",
    },
    "llava_llama_2": {
        "one turn": f"""<s> ▁[ INST ] {LLAMA_2_SYSTEM}
            <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁[/ INST ] ( ▁Paris ▁ </s> )""",
        "two turns": f"""<s> ▁[ INST ] {LLAMA_2_SYSTEM}
            <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁[/ INST ] ( ▁Paris ▁ </s> )
            <s> ▁[ INST ] ▁Where ▁is ▁this ? ▁[/ INST ] ( ▁In ▁France ▁ </s> )""",
        "text only": f"<s> ▁[ INST ] {LLAMA_2_SYSTEM} Hello ▁there ▁[/ INST ] ( ▁Hello ▁ </s> )",
        "text only, two turns": f"""<s> ▁[ INST ] {LLAMA_2_SYSTEM} Hello ▁there ▁[/ INST ] ( ▁Hello ▁ </s> )
            <s> ▁[ INST ] ▁What ? ▁[/ INST ] ( ▁No ▁ </s> )""",
    },
}

# What an answer is asked for with, after one question about a picture.
PROMPTS = {
    "llava_v1": f"<s> {HUMAN_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT :",
    "vicuna_v1": f"<s> {USER_SYSTEM} ▁USER : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁ASSISTANT :",
    "llava_v0": f"<s> {HUMAN_SYSTEM} ### Human : ▁ <image> ▁ <0x0A> What ▁city ▁is ▁this ? ### Assistant :",
    "plain": "<s> <image>",
    "llava_llama_2": f"<s> ▁[ INST ] {LLAMA_2_SYSTEM} <image> ▁ <0x0A> What ▁city ▁is ▁this ? ▁[/ INST ]",
}

# The same question with a system message, or with an empty one, which leaves the system text out.
SYSTEMS = {
    "llava_v1": ("<s> ▁Be ▁brief ▁USER : ▁What ? ▁ASSISTANT :", "<s> ▁USER : ▁What ? ▁ASSISTANT :"),
    "vicuna_v1": ("<s> ▁Be ▁brief ▁USER : ▁What ? ▁ASSISTANT :", "<s> ▁USER : ▁What ? ▁ASSISTANT :"),
    "llava_v0": ("<s> ▁Be ▁brief ### Human : ▁What ? ### Assistant :", "<s> ▁ Human : ▁What ? ### Assistant :"),
    "plain": ("<s>", "<s>"),
    "llava_llama_2": (
        "<s> ▁[ INST ] ▁<< SYS >> <0x0A> Be ▁brief <0x0A> <</ SYS >> <0x0A> <0x0A> What ? ▁[/ INST ]",
        "<s> ▁[ INST ] ▁What ? ▁[/ INST ]",
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Of LLaMA's kind; equal scores let the fewest pieces win."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = [(token, 0.0) for token in [*special, *(f"<0x{byte:02X}>" for byte in range(256))]]
    model = models.Unigram([*vocabulary, *((piece, -1.0) for piece in PIECES)], unk_id=0, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def tokens_and_loss(text: str) -> tuple[list[str], list[str]]:
    """The tokens of a list written as above, and those of them between parentheses."""
    tokens, learnt, is_learnt = [], [], False
    for token in text.split():
        if token in ("(", ")"):
            is_learnt = token == "("
        else:
            tokens.append(token)
            learnt += [token] if is_learnt else []
    return tokens, learnt


def apply(template: str, messages: Messages, **settings: Any) -> tuple[list[str], list[str]]:
    """What transformers makes of a conversation: its tokens, and those that the assistant is to learn."""
    tokenizer = make_tokenizer()
    encoded = tokenizer.apply_chat_template(
        messages,
        chat_template=(TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8"),
        return_dict=True,
        return_assistant_tokens_mask=True,
        **settings,
    )
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    return tokens, [token for token, learnt in zip(tokens, encoded["assistant_masks"], strict=True) if learnt]


def render(template: str, messages: Messages, **variables: Any) -> str:
    """A conversation as text, for a tokenizer that has a begin and an end token."""
    chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return make_tokenizer().apply_chat_template(messages, chat_template=chat_template, tokenize=False, **variables)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", EXPECTED)
def test_conversation_becomes_the_tokens_of_the_original_with_loss_on_the_answers(template, conversation):
    tokens, learnt = apply(template, CONVERSATIONS[conversation])
    expected_tokens, expected_learnt = tokens_and_loss(EXPECTED[template][conversation])
    assert tokens == expected_tokens
    assert learnt == expected_learnt


def test_every_template_is_tested():
    assert {path.stem for path in TEMPLATES.iterdir()} == set(EXPECTED) == set(PROMPTS) == set(SYSTEMS)


@pytest.mark.parametrize("template", PROMPTS)
def test_prompt_is_what_stands_before_the_answer(template):
    question = CONVERSATIONS["one turn"][:1]
    tokens, learnt = apply(template, question, add_generation_prompt=True)
    assert (tokens, learnt) == (PROMPTS[template].split(), [])
    whole, _ = apply(template, CONVERSATIONS["one turn"])
    assert whole[: len(tokens)] == tokens


@pytest.mark.parametrize("template", SYSTEMS)
def test_system_message_stands_in_the_system_texts_place(template):
    question = {"role": "user", "content": "What?"}
    for content, expected in zip(("Be brief", ""), SYSTEMS[template], strict=True):
        messages = [{"role": "system", "content": content}, question]
        assert apply(template, messages, add_generation_prompt=True)[0] == expected.split()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((PICTURE, "What?"), "<image>\nWhat?"),
        ((PICTURE,), "<image>"),
        ((PICTURE, ""), "<image>"),
        (("What?", PICTURE), "<image>\nWhat?"),
        (("What ", PICTURE, "city? "), "<image>\nWhat city?"),
        ((PICTURE, "\nWhat?\n", PICTURE), "<image>\n<image>\nWhat?"),
        ((" What? ",), " What? "),
    ],
)
def test_pictures_stand_before_a_turns_text_a_line_each(parts, expected):
    text = render("llava_v1", [user(*parts)])
    assert text.partition("USER: ")[2] == f"{expected} "
    assert render("llava_llama_2", [user(*parts)]).endswith(f"<</SYS>>\n\n{expected} [/INST]")
    assert render("llava_v0", [user(*parts)]).endswith(f"###Human: {expected}###")


def test_plain_keeps_all_pictures_of_a_turn_and_no_word():
    messages = [user("Look: ", PICTURE, PICTURE, "What?"), {"role": "assistant", "content": " Paris "}]
    assert render("plain", messages) == "<s><image><image> Paris \n"


@pytest.mark.parametrize("template", EXPECTED)
def test_tokens_of_another_tokenizer_stand_in_the_originals_place(template):
    text = render(template, CONVERSATIONS["two turns"], bos_token=None, eos_token="<end>", image_token="<picture>")
    assert text.count("<picture>") == 1
    assert text.count("<end>") == (0 if template in ("plain", "llava_v0") else 2)
    assert not [token for token in ("<s>", "</s>", "<image>", "None") if token in text]


@pytest.mark.parametrize("template", EXPECTED)
def test_picture_of_the_assistant_is_refused(template):
    messages = [user("What?"), {"role": "assistant", "content": [PICTURE]}]
    with pytest.raises(jinja2.TemplateError, match="in the user's turns only.*got `image`"):
        render(template, messages)


@pytest.mark.parametrize("template", EXPECTED)
def test_unknown_or_late_role_is_refused(template):
    for role in ("tool", "system"):
        with pytest.raises(jinja2.TemplateError, match=f"got one of `{role}`"):
            render(template, [*CONVERSATIONS["one turn"], {"role": role, "content": "Be brief"}])
