"""Pictures to pixels, conversations to tokens and what is learnt of them. Oracles: literal tokens, numpy, the own template."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    ConvNextImageProcessor,
    LevitImageProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from hf_vlm.models.llava.chat_template import end_of_turn_token, extend_template, has_spans, render
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor, check_conversation, pad_to_square
from tests.models.llava.tiny_llava import NUM_TOKENS, tiny_image_processor, tiny_tokenizer

IMAGE = NUM_TOKENS  # id of the image token, the last
TOWER = CLIPVisionConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
)
PICTURE = {"type": "image"}
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


def make(tokenizer: Any = None, image_processor: Any = None, **settings: Any) -> LlavaVisionLanguageProcessor:
    return LlavaVisionLanguageProcessor.from_pretrained_parts(
        image_processor or tiny_image_processor(), tokenizer or tiny_tokenizer(), vision_config=TOWER, **settings
    )


@pytest.fixture(scope="module")
def processor() -> LlavaVisionLanguageProcessor:
    """ChatML, one token a character, four tokens a picture."""
    return make()


def message(role: str, *parts: Any) -> dict[str, Any]:
    """A message; a text alone as such, otherwise as parts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": role, "content": parts[0]}
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def tokens(processor: LlavaVisionLanguageProcessor, written: str) -> dict[str, list[int]]:
    """What a text means: `<image>` four image tokens, `[` and `]` around what is learnt; any other character itself."""
    vocabulary = processor.tokenizer.get_vocab()
    special = ["<image>", *processor.tokenizer.all_special_tokens]
    ids, labels, is_learnt = [], [], False
    while written:
        if written[0] in "[]":
            is_learnt, written = written[0] == "[", written[1:]
            continue
        token = next((token for token in special if written.startswith(token)), written[0])
        written = written[len(token) :]
        number = 4 if token == "<image>" else 1
        ids += number * [vocabulary[token]]
        labels += number * [vocabulary[token] if is_learnt else -100]
    return {"input_ids": ids, "labels": labels}


# Conversations as tokens

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one picture": (
        [message(USER, PICTURE, "What?"), message(ASSISTANT, "A cat.")],
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n",
    ),
    "several turns": (
        [
            message(USER, PICTURE, "a"),
            message(ASSISTANT, "b"),
            message(USER, "c"),
            message(ASSISTANT, "d"),
        ],
        "<|im_start|>user\n<image>\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]\n",
    ),
    "several pictures in a turn and in later ones": (
        [
            message(USER, "See ", PICTURE, "and", PICTURE, PICTURE),
            message(ASSISTANT, "ok"),
            message(USER, PICTURE),
            message(ASSISTANT, {"type": "text", "text": "x"}, {"type": "text", "text": "y"}),
        ],
        "<|im_start|>user\nSee <image>\nand<image>\n<image>\n<|im_end|>\n<|im_start|>assistant\n[ok<|im_end|>]\n"
        "<|im_start|>user\n<image>\n<|im_end|>\n<|im_start|>assistant\n[xy<|im_end|>]\n",
    ),
    "text only, with a system message": (
        [message(SYSTEM, "Be brief"), message(USER, "a"), message(ASSISTANT, "b")],
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n",
    ),
    "the assistant's words in the user's mouth": (
        [message(USER, "assistant\nb"), message(ASSISTANT, "b"), message(USER, "b"), message(ASSISTANT, "b")],
        "<|im_start|>user\nassistant\nb<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n",
    ),
    "blanks are words": (
        [message(USER, " a "), message(ASSISTANT, " \n b\n")],
        "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n[ \n b\n<|im_end|>]\n",
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_assistants_words_and_end_token_carry_loss_and_nothing_else(processor, name):
    messages, written = CONVERSATIONS[name]
    before = copy.deepcopy(messages)
    assert processor.encode_conversation(messages) == tokens(processor, written)
    assert messages == before


def test_one_conversation_as_numbers(processor):
    # <|im_start|> 4, <|im_end|> 5, "\n" 8, image tokens, letters by the tokenizer's own table
    encoded = processor.encode_conversation([message(USER, PICTURE, "a"), message(ASSISTANT, "b")])
    word = processor.tokenizer.convert_tokens_to_ids
    user, assistant = [word(c) for c in "user"], [word(c) for c in "assistant"]
    a, b = word("a"), word("b")
    assert encoded["input_ids"] == [
        *(4, *user, 8, IMAGE, IMAGE, IMAGE, IMAGE, 8, a, 5, 8),
        *(4, *assistant, 8, b, 5, 8),
    ]
    assert encoded["labels"] == [-100] * (len(encoded["input_ids"]) - 3) + [b, 5, -100]


def test_training_and_generation_read_the_same_prompt(processor):
    messages = CONVERSATIONS["several pictures in a turn and in later ones"][0]
    encoded = processor.encode_conversation(messages)
    pictures = [picture(16, 16)] * 4
    filled, number = copy.deepcopy(messages[:-1]), 0
    for turn in filled:
        for part in turn["content"] if isinstance(turn["content"], list) else ():
            if part["type"] == "image":
                part["image"] = pictures[number]
                number += 1
    prompt = processor.apply_chat_template(
        filled, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    start = max(i for i, label in enumerate(encoded["labels"]) if label != -100 and encoded["labels"][i - 1] == -100)
    assert prompt["input_ids"][0].tolist() == encoded["input_ids"][:start]
    assert torch.equal(prompt["pixel_values"], processor.prepare_images(pictures))


def test_tokenizer_that_joins_words_learns_the_token_that_begins_an_answer():
    # A word with the blank before it is one token, half of it the template's: it has to be said.
    vocabulary = {
        w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "Q:", "A:", "ĠA:", "what", "Ġwhat", "Ġcat", "cat"])
    }
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.post_processor = processors.ByteLevel(trim_offsets=False)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} {% else %}A: {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    pre = make(tokenizer)
    encoded = pre.encode_conversation([message(USER, "what"), message(ASSISTANT, "cat")])
    words = [pre.tokenizer.convert_ids_to_tokens(t) for t in encoded["input_ids"]]
    assert words[-2:] == ["Ġcat", "</s>"]
    assert encoded["labels"][-3:] == [-100, vocabulary["Ġcat"], vocabulary["</s>"]]


# Truncation


def long_conversation() -> list[dict[str, Any]]:
    return [
        message(USER, PICTURE, "a"),
        message(ASSISTANT, "bbb"),
        message(USER, "c"),
        message(ASSISTANT, "ddd"),
        message(USER, PICTURE, "e"),
        message(ASSISTANT, "fff"),
    ]


def test_conversation_that_is_too_long_loses_whole_exchanges_at_its_end(processor):
    messages = long_conversation()
    lengths = [len(processor.encode_conversation(messages[:n])["input_ids"]) for n in (2, 4, 6)]
    assert processor.encode_conversation(messages, max_length=lengths[2]) == processor.encode_conversation(messages)
    for limit, kept in ((lengths[2] - 1, 4), (lengths[1], 4), (lengths[1] - 1, 2), (lengths[0], 2)):
        expected = processor.encode_conversation(messages[:kept])
        assert processor.encode_conversation(messages, max_length=limit) == expected
    with_system = [message(SYSTEM, "s"), *messages]
    first = processor.encode_conversation(with_system[:3])
    assert processor.encode_conversation(with_system, max_length=len(first["input_ids"])) == first


def test_first_exchange_loses_the_end_of_its_answer(processor):
    messages = long_conversation()[:2]
    whole = processor.encode_conversation(messages)
    for cut in (1, 2, 3, 4):  # of "bbb<|im_end|>\n" two words or more are left
        got = processor.encode_conversation(messages, max_length=len(whole["input_ids"]) - cut)
        assert got == {name: value[: len(value) - cut] for name, value in whole.items()}
    with pytest.raises(ValueError, match="words of the assistant to learn, got none in the first"):
        processor.encode_conversation(messages, max_length=len(whole["input_ids"]) - 5)


def test_picture_is_never_cut(processor):
    messages = [message(USER, "look ", PICTURE), message(ASSISTANT, "b")]
    whole = processor.encode_conversation(messages)["input_ids"]
    first = whole.index(IMAGE)
    for limit in range(first + 4):
        with pytest.raises(ValueError, match=f"fit into `max_length`={limit} tokens, got {len(whole)} tokens"):
            processor.encode_conversation(messages, max_length=limit)
    with pytest.raises(ValueError, match="to learn, got none in the first"):  # the picture fits, no answer does
        processor.encode_conversation(messages, max_length=first + 4)
    for limit in range(len(whole) - 2, len(whole)):
        assert processor.encode_conversation(messages, max_length=limit)["input_ids"].count(IMAGE) == 4


def test_call_does_not_cut_a_picture(processor):
    with pytest.raises(ValueError):
        processor(images=picture(16, 16), text="look <image>", truncation=True, max_length=7)
    kept = processor(images=picture(16, 16), text="<image>look", truncation=True, max_length=6)["input_ids"]
    assert kept[0].tolist().count(IMAGE) == 4


# Conversations that are refused


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must have messages, got none"),
        ([message("human", "a"), message(ASSISTANT, "b")], "one of system, user, assistant, got 'human' in message 0"),
        ([{"content": "a"}, message(ASSISTANT, "b")], "got None in message 0"),
        ([message(ASSISTANT, "b")], "take turns, the user first, got 'assistant' as message 0"),
        ([message(USER, "a"), message(USER, "b")], "got 'user' as message 1, where 'assistant' is wanted"),
        (
            [message(USER, "a"), message(ASSISTANT, "b"), message(ASSISTANT, "c")],
            "got 'assistant' as message 2, where 'user' is wanted",
        ),
        ([message(USER, "a"), message(SYSTEM, "s"), message(ASSISTANT, "b")], "got 'system' as message 1"),
        ([message(USER, "a")], "must end with the assistant, got 'user' last"),
        ([message(SYSTEM, "s")], "must end with the assistant, got 'system' last"),
        ([message(USER, "an <image> here"), message(ASSISTANT, "b")], "must not hold '<image>'.* got one in message 0"),
        ([message(USER, PICTURE, "and <image>"), message(ASSISTANT, "b")], "must not hold '<image>'.*in message 0"),
        ([message(USER, "a"), message(ASSISTANT, "<image>")], "must not hold '<image>'.* got one in message 1"),
        ([message(SYSTEM, "<image>"), message(USER, "a"), message(ASSISTANT, "b")], "must not hold '<image>'"),
        ([message(USER, "<ima", "ge>"), message(ASSISTANT, "b")], "must not hold '<image>'"),
        ([message(USER, "a"), message(ASSISTANT, " \n")], "An answer must have words, got none in message 1"),
        ([message(USER, "a"), message(ASSISTANT, PICTURE, "b")], "in the user's messages, got one in message 1"),
        ([message(USER, {"type": "video"}), message(ASSISTANT, "b")], "of type `text` or `image`, got 'video'"),
        ([{"role": USER, "content": None}, message(ASSISTANT, "b")], "a text or parts .* got None in message 0"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_conversation_that_can_not_be_learnt_from_is_refused(processor, messages, said):
    with pytest.raises(ValueError, match=said):
        check_conversation(messages, "<image>")
    with pytest.raises(ValueError, match=said):
        processor.encode_conversation(messages)


def test_template_without_spans_is_refused_for_training(processor):
    bare = copy.copy(processor)
    bare.chat_template = tiny_tokenizer().chat_template
    with pytest.raises(ValueError, match="spans is wanted.*`llava_v1`"):
        bare.encode_conversation([message(USER, "a"), message(ASSISTANT, "b")])
    encoded = bare.encode_conversation([message(USER, "a"), message(ASSISTANT, "b")], chat_template="llava_v1")
    assert any(label != -100 for label in encoded["labels"])


def test_template_that_is_not_there_is_refused_with_those_there_are(processor):
    with pytest.raises(ValueError, match="one of .*`llava_v1`.*got `llava_v9`"):
        make(chat_template="llava_v9")


# Templates of language models, extended

TEMPLATES: dict[str, tuple[str, str]] = {
    "chatml": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "chatml over lines": (
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
        "{%- endif %}\n"
        "{%- for message in messages %}\n"
        "    {%- if message['role'] != 'system' %}\n"
        "        {{- '<|im_start|>' + message['role'] + '\\n' }}\n"
        "        {%- if message['content'] is string %}\n"
        "            {{- message['content'].lstrip('\\n') if message['role'] == 'assistant' else message['content'] }}\n"
        "        {%- endif %}\n"
        "        {{- '<|im_end|>\\n' }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n"
        "{%- endif %}\n",
        "<|im_end|>",
    ),
    "a file with blank space at its ends": (
        "    {% for message in messages %}\n"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}\n{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}\n",
        "<|im_end|>",
    ),
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|im_start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|end|>\n\n' }}{% endif %}",
        "<|eot|>",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}",
        "<end_of_turn>",
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "zephyr": (
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        "</s>",
    ),
}

TEXTS = [
    [message(USER, "What?"), message(ASSISTANT, "A cat.")],
    [message(USER, " What?\n"), message(ASSISTANT, "\n A cat.\n "), message(USER, "a"), message(ASSISTANT, "b  c ")],
    [message(USER, "A cat."), message(ASSISTANT, "A cat."), message(USER, "A cat."), message(ASSISTANT, "cat")],
    [message(USER, "it's {{ a }} \\ {% b %}"), message(ASSISTANT, "'\"{# c #}\\n")],
    [message(USER, "a"), message(ASSISTANT, "b"), message(USER, "c")],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_extended_template_renders_as_the_own_one(name):
    own, end = TEMPLATES[name]
    tokenizer = tiny_tokenizer(own)
    extended = extend_template(tokenizer, "<image>")
    systems = [] if name in ("gemma", "mistral") else [[message(SYSTEM, " Be brief. "), *texts] for texts in TEXTS]
    for messages in TEXTS + systems:
        for add_generation_prompt in (False, True):
            wanted = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            got, spans = render(extended, messages, tokenizer, add_generation_prompt=add_generation_prompt)
            assert got == wanted
            places = [place for place, turn in enumerate(messages) if turn["role"] == ASSISTANT]
            assert len(spans) == len(places)
            for (start, stop), place in zip(spans, places, strict=True):
                # what follows the prompt that asks for the answer, up to and with its end
                prompt = tokenizer.apply_chat_template(messages[:place], tokenize=False, add_generation_prompt=True)
                assert wanted[:start] == prompt
                learnt = wanted[start:stop]
                assert learnt.endswith(end) and learnt.count(end) == 1
                assert learnt.removesuffix(end).strip() == messages[place]["content"].strip()
    assert end_of_turn_token(extended, tokenizer) == end


@pytest.mark.parametrize("name", TEMPLATES)
def test_extended_template_takes_pictures_in_their_places(name):
    own, _ = TEMPLATES[name]
    tokenizer = tiny_tokenizer(own)
    extended = extend_template(tokenizer, "<image>")
    messages = [message(USER, PICTURE, "a", PICTURE, "b"), message(ASSISTANT, "c")]
    as_text = [message(USER, "<image>\na<image>\nb"), message(ASSISTANT, "c")]
    wanted = tokenizer.apply_chat_template(as_text, tokenize=False)
    assert render(extended, messages, tokenizer)[0] == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_extended_template_gives_the_tokens_that_are_learnt(name):
    own, end = TEMPLATES[name]
    pre = make(tiny_tokenizer(own))
    assert pre.end_token == end
    assert pre.end_token_ids == list(dict.fromkeys([pre.tokenizer.convert_tokens_to_ids(end), 2]))
    messages = [message(USER, PICTURE, "a"), message(ASSISTANT, "bc"), message(USER, "d"), message(ASSISTANT, "ef")]
    encoded = pre.encode_conversation(messages)
    learnt = pre.tokenizer.decode([label for label in encoded["labels"] if label != -100])
    assert learnt.replace(" ", "") == f"bc{end}ef{end}"
    assert encoded["input_ids"].count(IMAGE) == 4


def test_system_message_that_the_language_model_refuses_is_told():
    pre = make(tiny_tokenizer(TEMPLATES["gemma"][0]))
    with pytest.raises(ValueError, match="its refusal .*System role not supported.*Check roles"):
        pre.encode_conversation([message(SYSTEM, "s"), message(USER, "a"), message(ASSISTANT, "b")])


def test_template_that_knows_pictures_and_spans_stays_as_it_is():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% else %}{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    assert extend_template(tokenizer, "<image>") == tokenizer.chat_template


def test_template_with_spans_alone_gets_pictures_and_spans_up_to_the_end_token():
    own = (
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' -%}"
        "{%- generation -%}{{ m.content }}{%- endgeneration -%}{%- else -%}{{ m.content }}{%- endif -%}"
        "{{ '<|im_end|>\n' }}{%- endfor -%}"
    )
    pre = make(tiny_tokenizer(own))
    encoded = pre.encode_conversation([message(USER, PICTURE, "a"), message(ASSISTANT, "b")])
    expected = "<|im_start|>user\n<image>\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n"
    assert encoded == tokens(pre, expected)


def test_several_named_templates_have_a_default():
    own = TEMPLATES["zephyr"][0]
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = {"default": own, "tool_use": "{{ 'no' }}"}
    assert has_spans(extend_template(tokenizer, "<image>"))


REFUSED: dict[str, tuple[str, str]] = {
    "changes words": (
        "{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}",
        "goes on with|as they are",
    ),
    "ends by text": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "must end the assistant's turn",
    ),
    "leaves earlier answers out": (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "as they are",
    ),
    "ends the last turn alone": (
        "{% for m in messages %}{{ m.content }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
        "as they are",
    ),
    "is no Jinja": ("{% for m in messages %}{{ m.content }}", "endfor|refusal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_template_that_can_not_be_extended_is_refused(name):
    own, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        make(tiny_tokenizer(own))


def test_template_that_cuts_a_part_of_an_answer_is_refused_for_that_conversation():
    own = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if '</think>' in m.content and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
    )
    pre = make(tiny_tokenizer(own))
    turns = [message(USER, "a"), message(ASSISTANT, "<think>x</think>b"), message(USER, "c"), message(ASSISTANT, "d")]
    with pytest.raises(ValueError, match="leaves a part of them out"):
        pre.encode_conversation(turns)
    assert pre.encode_conversation(turns[:2])["labels"].count(-100) > 0


# Tokenizers


def test_tokenizer_without_end_or_template_is_refused():
    with pytest.raises(ValueError, match=r"end token \(`eos_token`\), got none"):
        make(tiny_tokenizer(eos_token=None))
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        make(tiny_tokenizer(None))
    assert make(tiny_tokenizer(None), chat_template="plain").end_token is None


def test_tokenizer_without_padding_token_pads_with_its_end_token(tmp_path):
    pre = make(tiny_tokenizer(pad_token=None))
    assert pre.tokenizer.pad_token_id == 2
    pre.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.pad_token_id == 2


def test_handed_parts_stay_as_they_are():
    tokenizer, image_processor = tiny_tokenizer(), CLIPImageProcessor()
    template, size = tokenizer.chat_template, len(tokenizer)
    pre = make(tokenizer, image_processor, image_size=32)
    assert (len(tokenizer), tokenizer.chat_template, tokenizer.padding_side) == (size, template, "right")
    assert image_processor.crop_size["height"] == 224
    assert pre.image_size == (32, 32) and pre.num_image_tokens == 16


def test_image_token_of_another_name_is_taken():
    pre = make(image_token="<picture>")
    assert pre.image_token_id == pre.tokenizer.convert_tokens_to_ids("<picture>") == IMAGE
    encoded = pre.encode_conversation([message(USER, PICTURE, "<image>"), message(ASSISTANT, "b")])
    assert encoded["input_ids"].count(IMAGE) == 4
    assert pre(images=picture(9, 9), text="<picture>a")["input_ids"].tolist()[0][:4] == [IMAGE] * 4


def test_tokenizer_that_does_not_know_the_image_token_is_refused():
    with pytest.raises(ValueError, match="must know the image token '<image>'.*`from_pretrained_parts`"):
        LlavaVisionLanguageProcessor(tiny_image_processor(), tiny_tokenizer())


def test_number_of_text_tokens_leaves_out_an_image_token_at_the_end(processor):
    assert processor.num_text_tokens == NUM_TOKENS
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_tokens(["one", "two"])
    assert make(tokenizer).num_text_tokens == NUM_TOKENS + 3


# Pictures


def padded_by_numpy(pixels: np.ndarray, mean: tuple[float, ...]) -> np.ndarray:
    """LLaVA's rule: in the middle, an odd rest behind; colours cut to whole numbers."""
    height, width, _ = pixels.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(255 * share) for share in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


@pytest.mark.parametrize("size", [(7, 4), (4, 7), (5, 5), (1, 8), (8, 1), (10, 9), (9, 10), (6, 3)], ids=str)
@pytest.mark.parametrize("mean", [(0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5), (0.999, 0.0, 1.0)], ids=str)
def test_picture_is_padded_to_a_square_as_llava_pads_it(size, mean):
    own = picture(*size)
    assert np.array_equal(np.asarray(pad_to_square(own, mean)), padded_by_numpy(np.asarray(own), mean))


def test_colour_of_padding_where_the_image_processor_has_another_kind_of_mean():
    own = picture(4, 2)
    assert np.asarray(pad_to_square(own, None))[0, 0].tolist() == [0, 0, 0]
    assert np.asarray(pad_to_square(own, 0.5))[0, 0].tolist() == [127] * 3
    assert np.asarray(pad_to_square(own, [0.2]))[0, 0].tolist() == [51] * 3


IMAGE_PROCESSORS: dict[str, Any] = {
    "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "clip pil": lambda: CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "siglip": lambda: SiglipImageProcessor(size={"height": 16, "width": 16}),
    "vit": lambda: ViTImageProcessor(size={"height": 16, "width": 16}),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.875),
}


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_pictures_are_what_the_image_processor_makes_of_squares(name, ratio):
    own = IMAGE_PROCESSORS[name]()
    pre = make(image_processor=own, image_aspect_ratio=ratio)
    pictures = [picture(20, 11), picture(9, 14)]
    got = pre(images=pictures, text=["<image>", "<image>"])["pixel_values"]
    assert got.shape == (2, 3, 16, 16) and torch.equal(got, pre.prepare_images(pictures))
    assert pre.image_size == (16, 16)
    shown = pictures
    if ratio == "pad":
        shown = [Image.fromarray(padded_by_numpy(np.asarray(p), tuple(own.image_mean))) for p in pictures]
    expected = pre.image_processor(shown, return_tensors="pt")["pixel_values"]
    assert torch.equal(got, expected)
    if name != "convnext":  # which cuts a margin off
        assert torch.equal(expected, own(shown, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("name", ["clip", "convnext", "levit", "siglip"])
def test_padded_picture_comes_out_whole(name):
    # A margin cut off, as some image processors do unasked, would lose what LLaVA's padding is there to keep.
    levit = LevitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pre = make(image_processor=levit if name == "levit" else IMAGE_PROCESSORS[name]())
    own = Image.new("RGB", (64, 64), "black")
    own.paste("white", (0, 0, 4, 64))
    pixels = pre.prepare_images([own])
    assert pixels[0, 0, 8, 0] > pixels[0, 0, 8, 8] + 1


def test_padding_of_other_ratio_is_refused():
    with pytest.raises(ValueError, match="`pad` or `square`, got 'anyres'"):
        make(image_aspect_ratio="anyres")


def test_ratio_is_saved_with_the_processor(tmp_path):
    for ratio in ("pad", "square"):
        pre = make(image_aspect_ratio=ratio)
        pre.save_pretrained(tmp_path / ratio)
        reloaded = AutoProcessor.from_pretrained(tmp_path / ratio)
        assert reloaded.image_aspect_ratio == ratio
        assert torch.equal(reloaded.prepare_images([picture(20, 11)]), pre.prepare_images([picture(20, 11)]))
    pixels = [make(image_aspect_ratio=ratio).prepare_images([picture(20, 11)]) for ratio in ("pad", "square")]
    assert not torch.equal(*pixels)


@pytest.mark.parametrize(("size", "number"), [(32, 16), ((16, 40), 10), ((24, 24), 9), (None, 4)], ids=str)
def test_wanted_size_gives_its_number_of_tokens(size, number):
    pre = make(image_size=size)
    height, width = (16, 16) if size is None else (size, size) if isinstance(size, int) else size
    assert pre.image_size == (height, width)
    assert pre.num_image_tokens == number == (height // 8) * (width // 8)
    batch = pre(images=picture(50, 30), text="<image>")
    assert batch["pixel_values"].shape == (1, 3, height, width)
    assert batch["input_ids"].tolist() == [[IMAGE] * number]


def test_prefix_tokens_are_counted_where_they_are_shown():
    assert make(vision_feature_select_strategy="full").num_image_tokens == 5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_pictures_of_any_mode_are_taken(mode, ratio):
    pre = make(image_aspect_ratio=ratio)
    own = (
        Image.fromarray(np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30))
        if mode == "I;16"
        else picture(30, 20, mode)
    )
    assert pre.prepare_images([own]).shape == (1, 3, 16, 16)


def test_arrays_and_tensors_are_pictures_too():
    array = np.array(picture(30, 20))
    for ratio in ("pad", "square"):
        pre = make(image_aspect_ratio=ratio)
        expected = pre(images=Image.fromarray(array), text="<image>")["pixel_values"]
        for own in (array, torch.from_numpy(array).permute(2, 0, 1)):
            torch.testing.assert_close(pre(images=own, text="<image>")["pixel_values"], expected, atol=0.02, rtol=0)


def test_path_is_a_picture_too(processor, tmp_path):
    picture(30, 20).save(tmp_path / "a.png")
    messages = [{"role": USER, "content": [{"type": "image", "path": str(tmp_path / "a.png")}]}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], processor.prepare_images([picture(30, 20)]))


# Calls


def test_batch_is_padded_at_the_left_and_pictures_stand_in_reading_order(processor):
    pictures = [picture(20, 11), picture(9, 14), picture(16, 16)]
    batch = processor(images=[[pictures[0], pictures[1]], [], [pictures[2]]], text=["<image>a<image>", "bc", "<image>"])
    a, b, c = (processor.tokenizer.convert_tokens_to_ids(letter) for letter in "abc")
    assert batch["input_ids"].tolist() == [
        [IMAGE] * 4 + [a] + [IMAGE] * 4,
        [0] * 7 + [b, c],
        [0] * 5 + [IMAGE] * 4,
    ]
    assert batch["attention_mask"].tolist() == [[1] * 9, [0] * 7 + [1] * 2, [0] * 5 + [1] * 4]
    assert torch.equal(batch["pixel_values"], processor.prepare_images(pictures))
    flat = processor(images=pictures, text=["<image>a<image>", "bc", "<image>"])
    assert torch.equal(flat["pixel_values"], batch["pixel_values"])
    assert set(batch) <= set(processor.model_input_names)


def test_text_alone_and_pictures_alone(processor):
    assert set(processor(text="ab")) == {"input_ids", "attention_mask"}
    assert processor(images=picture(9, 9))["pixel_values"].shape == (1, 3, 16, 16)
    assert processor(text=["ab", "c"], return_tensors=None)["input_ids"] == [
        [processor.tokenizer.convert_tokens_to_ids(letter) for letter in word] for word in ("ab", "c")
    ]


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (1, "a"),
        (1, "<image><image>"),
        (2, "<image>"),
        (0, "<image>"),
        (1, ["<image>", "<image>"]),
    ],
    ids=str,
)
def test_pictures_and_places_of_another_number_are_refused(processor, images, text):
    with pytest.raises(ValueError, match="(?i)image"):
        processor(images=[picture(9, 9)] * images or None, text=text)


def test_saved_processor_comes_back_through_auto_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is LlavaVisionLanguageProcessor
    for name in (
        "num_image_tokens",
        "image_token",
        "image_token_id",
        "end_token",
        "end_token_ids",
        "image_size",
        "chat_template",
    ):
        assert getattr(reloaded, name) == getattr(processor, name), name
    assert reloaded.tokenizer.padding_side == "left"
    messages, written = CONVERSATIONS["several pictures in a turn and in later ones"]
    assert reloaded.encode_conversation(messages) == tokens(processor, written)
    batches = [p(images=picture(20, 11), text=["<image>a", "b"]) for p in (processor, reloaded)]
    for name, value in batches[0].items():
        assert torch.equal(batches[1][name], value), name


def test_folder_without_a_part_is_named(tmp_path, processor):
    with pytest.raises(ValueError, match="empty must hold a processor"):
        (tmp_path / "empty").mkdir()
        LlavaVisionLanguageProcessor.from_pretrained(tmp_path / "empty")
    processor.tokenizer.save_pretrained(tmp_path / "words")
    TOWER.save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match="tower must hold an image processor"):
        LlavaVisionLanguageProcessor.from_pretrained_parts(tmp_path / "tower", tmp_path / "words")
    with pytest.raises(ValueError, match="`vision_config` is wanted with an image processor"):
        LlavaVisionLanguageProcessor.from_pretrained_parts(tiny_image_processor(), tiny_tokenizer())


# What is learnt, shown


def test_labels_are_shown(processor):
    messages = CONVERSATIONS["several pictures in a turn and in later ones"][0]
    plain = processor.show_labels({"messages": messages}, in_colour=False)
    assert plain == (
        "<|im_start|>user\nSee <image> x 4\nand<image> x 4\n<image> x 4\n<|im_end|>\n<|im_start|>assistant\n[[ok<|im_end|>]]\n"
        "<|im_start|>user\n<image> x 4\n<|im_end|>\n<|im_start|>assistant\n[[xy<|im_end|>]]\n"
    )
    encoded = {name: torch.tensor(value) for name, value in processor.encode_conversation(messages).items()}
    assert processor.show_labels(encoded, in_colour=False) == plain
    coloured = processor.show_labels(encoded)
    assert "\x1b[32mok<|im_end|>\x1b[0m" in coloured and "\x1b[32mxy<|im_end|>\x1b[0m" in coloured
    assert coloured.count("\x1b[32m") == 2 and coloured.startswith("\x1b[2m<|im_start|>user")
    without = coloured
    for code in ("\x1b[32m", "\x1b[2m", "\x1b[0m"):
        without = without.replace(code, "")
    assert without == plain.replace("[[", "").replace("]]", "")
