"""`hf-vlm audit` on conversations: told apart from lines by the data, its options, and its exit code."""

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from hf_vlm.cli import main
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor, add_image_token
from tests.tiny_lines import write_splits

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{% generation %}{{ message.content ~ ' </s>' }}{% endgeneration %}
{%- elif message.content is string -%}{{ message.content ~ ' ' }}
{%- else -%}{%- for part in message.content -%}{{ ('<image>' if part.type == 'image' else part.text) ~ ' ' }}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    """A saved processor of LLaVA: words as tokens, four tokens a picture."""
    words = {word: number for number, word in enumerate(("</s>", "<unk>", "What", "is", "it", "A", "bus"))}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    add_image_token(tokenizer, "<image>")
    image_processor = ViTImageProcessor(size={"height": 8, "width": 8})
    processor = LlavaVisionLanguageProcessor(image_processor, tokenizer, chat_template=TEMPLATE, num_image_tokens=4)
    folder = tmp_path_factory.mktemp("llava")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def conversations(tmp_path):
    """A LLaVA file in a folder of its own, its picture in another."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it"}, {"from": "gpt", "value": "A bus"}]
    file = tmp_path / "texts" / "llava.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"image": "a.png", "conversations": turns}]), encoding="utf-8")
    return file


def options_of(conversations, *others):
    return ["audit", str(conversations), "--image-folder", str(conversations.parents[1] / "pictures"), *others]


def test_audit_of_conversations_counts_what_the_model_learns(conversations, llava_folder, capsys):
    assert main(options_of(conversations, "--model", str(llava_folder), "--max-length", "10")) == 0
    # 4 of the picture, 3 of the question, 2 and the end token of the answer
    assert capsys.readouterr().out.splitlines() == [
        str(conversations),
        "all: 1 conversations",
        "pictures in a conversation: 1: 1; text only: 0.0 %",
        "tokens: median 10, 95 % 10, longest 10",
        "trained tokens: 3, 50.0 % of text, 30.0 % of all",
        "usable",
    ]
    assert main(options_of(conversations, "--model", str(llava_folder), "--max-length", "9")) == 1
    assert "row 0: wanted at most 9 tokens, got 10" in capsys.readouterr().out


def test_audit_without_model_counts_no_tokens_and_finds_missing_pictures(conversations, capsys):
    assert main(options_of(conversations, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"] == str(conversations) and told["is_usable"] and told["num_tokens"] == {}
    assert main(["audit", str(conversations), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["is_usable"]
    assert told["faults"]["missing pictures"][0].startswith(f"{conversations}, row 0: ")


def test_audit_tells_lines_and_conversations_apart(conversations, tmp_path, capsys):
    lines = write_splits(tmp_path / "lines")
    main(options_of(conversations, str(lines), "--json"))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "num_conversations" in told[0] and told[0]["is_usable"]
    assert "num_lines" in told[1] and "num_conversations" not in told[1]


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (["--max-length", "9"], "`--max-length` wants `--model FOLDER`"),
        (["--model", "READER"], "`--model` must be of a LLaVA for conversations, got"),
        (["--image-folder", "gone"], "`image_folder` must be a folder, got gone"),
    ],
)
def test_audit_of_conversations_refuses_options_that_do_not_fit(conversations, tmp_path, others, told, capsys):
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "reader")
    assert (
        main(options_of(conversations, *[str(tmp_path / "reader") if other == "READER" else other for other in others]))
        == 1
    )
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--max-length", "9"], ["--image-folder", "."]])
def test_audit_of_lines_refuses_options_of_conversations(tmp_path, option, capsys):
    lines = write_splits(tmp_path / "lines")
    assert main(["audit", str(lines), *option]) == 1
    told = capsys.readouterr().err
    assert "`--image-folder` and `--max-length` are for conversations" in told and str(lines) in told
    assert main(["audit", str(tmp_path / "gone"), *option]) == 1
    assert "does not exist" in capsys.readouterr().err
