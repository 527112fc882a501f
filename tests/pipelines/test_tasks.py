"""Which names `transformers.pipeline` knows, before and after `restore_removed_tasks`.

The call changes transformers for a whole process, so what it does is found out in one of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

import hf_vlm
from tests.tiny_chat import tiny_chat_model

FINDINGS = """
import json, sys
import transformers
from transformers import pipeline  # before hf_vlm: what is imported already must see the change too
from transformers.pipelines import PIPELINE_REGISTRY

reader, stock, parts, llava, chat, picture, out = sys.argv[1:]
before = transformers.pipelines._resolve_deprecated_task
tasks_before = set(PIPELINE_REGISTRY.supported_tasks)
found = {}

def kind(pipe):
    return [type(pipe).__name__, pipe.task]

def answer(pipe):
    return pipe(text="<image> w1", images=picture, max_new_tokens=4)[0]["generated_text"]

def error_of(task):
    try:
        pipeline(task, model=chat)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def error_with_llava(task):
    try:
        pipeline(task, model=llava)
    except ValueError as error:
        return str(error)

import hf_vlm
found["import changes a function"] = transformers.pipelines._resolve_deprecated_task is not before
found["import adds tasks"] = sorted(set(PIPELINE_REGISTRY.supported_tasks) - tasks_before)
found["stock before"] = kind(pipeline("image-to-text", model=stock))
llava_before = pipeline("image-to-text", model=llava)
found["llava before"] = kind(llava_before)
found["llava answers before"] = answer(llava_before)
found["summarization before"] = error_of("summarization")
found["vqa before"] = [error_of("visual-question-answering"), error_of("vqa")]

hf_vlm.restore_removed_tasks()
once = transformers.pipelines._resolve_deprecated_task
hf_vlm.restore_removed_tasks()
found["second call changes something"] = transformers.pipelines._resolve_deprecated_task is not once

for name, folder in {"reader": reader, "stock": stock, "parts": parts}.items():
    pipe = pipeline("image-to-text", model=folder, max_new_tokens=8)
    found[name] = kind(pipe)
    found[f"{name} model"] = type(pipe.model).__name__
    found[f"{name} reads"] = pipe([picture, picture], batch_size=2)
    pipe.save_pretrained(f"{out}/{name}")
    found[f"{name} reads saved"] = pipeline("image-to-text", model=f"{out}/{name}", max_new_tokens=8)([picture] * 2)
model, processor = pipe.model, transformers.AutoProcessor.from_pretrained(stock)
found["loaded"] = pipeline("image-to-text", model=model, processor=processor)([picture] * 2, max_new_tokens=8)

llava_after = pipeline("image-to-text", model=llava)
found["llava"] = kind(llava_after)
found["llava answers"] = answer(llava_after)
found["llava has its own parts"] = llava_after.tokenizer is llava_after.processor.tokenizer
found["summarization"] = error_of("summarization")
found["text-recognition"] = kind(pipeline("text-recognition", model=reader))
question = {"image": picture, "question": "what is it?"}
for task in ("picture-question-answering", "visual-question-answering", "vqa"):
    pipe = pipeline(task, model=chat, max_new_tokens=4)
    found[task] = kind(pipe)
    found[f"{task} answers"] = pipe(picture, "what is it?", top_k=2)
    pipe.save_pretrained(f"{out}/{task}")
    found[f"{task} answers saved"] = pipeline(task, model=f"{out}/{task}", max_new_tokens=4)(question, top_k=2)
found["vqa without a template"] = error_with_llava("vqa")
found["image-text-to-text"] = kind(pipeline("image-text-to-text", model=llava))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    """A tiny random model that needs text beside the picture."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(f"w{number}" for number in range(20))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **special
    )
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **shape),
        text_config=LlamaConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.5, **shape),
        image_token_index=words.index("<image>"),
    )
    folder = tmp_path_factory.mktemp("llava")
    LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    size = {"height": 16, "width": 16}
    LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def untaught_chat_folder(tmp_path_factory):
    """A tiny random LLaVA of ours, with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    for part in tiny_chat_model():
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(
    reader_folder,
    stock_trocr,
    folder_without_processor,
    llava_folder,
    untaught_chat_folder,
    line_files,
    tmp_path_factory,
):
    """What a process of its own found out before and after restoring."""
    out = tmp_path_factory.mktemp("saved")
    folders = [reader_folder, stock_trocr[0], folder_without_processor, llava_folder, untaught_chat_folder]
    arguments = [*folders, line_files[2], str(out)]
    result = subprocess.run(
        [sys.executable, "-c", FINDINGS, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(hf_vlm.__file__).parents[1],
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_importing_adds_four_tasks_and_changes_nothing_else(found):
    tasks = ["image-captioning", "image-tokenization", "picture-question-answering", "text-recognition"]
    assert found["import adds tasks"] == tasks
    assert not found["import changes a function"]
    assert found["stock before"] == ["ImageTextToTextPipeline", "image-text-to-text"]


def test_nothing_is_restored_in_this_process():
    assert not {"image-to-text", "visual-question-answering"} & set(PIPELINE_REGISTRY.supported_tasks)
    assert "vqa" not in PIPELINE_REGISTRY.task_aliases
    assert transformers.pipelines._resolve_deprecated_task.__module__ == "transformers.pipelines"


def test_restoring_twice_is_restoring_once(found):
    assert not found["second call changes something"]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("reader", "TrOCREncoderDecoderForConditionalGeneration"),
        ("stock", "VisionEncoderDecoderModel"),
        ("parts", "VisionEncoderDecoderModel"),
    ],
)
def test_restored_task_serves_models_that_need_only_a_picture(
    found, name, model, reader_folder, stock_trocr, line_pictures
):
    folder = reader_folder if name == "reader" else stock_trocr[0]
    by_class = pipeline("image-to-text", model=folder, pipeline_class=hf_vlm.ImageToTextPipeline, max_new_tokens=8)
    assert found[name] == ["ImageToTextPipeline", "image-to-text"]
    assert found[f"{name} model"] == model
    assert found[f"{name} reads"] == [by_class(line_pictures[2])] * 2
    assert found[f"{name} reads saved"] == found[f"{name} reads"]


def test_restored_task_takes_a_loaded_model(found):
    assert found["loaded"] == found["stock reads"]


def test_models_that_need_text_are_served_as_before(found):
    assert found["llava"] == found["llava before"] == ["ImageTextToTextPipeline", "image-text-to-text"]
    assert found["llava answers"] == found["llava answers before"]
    assert found["llava has its own parts"]


@pytest.mark.parametrize("task", ["visual-question-answering", "vqa"])
def test_removed_question_answering_is_that_of_ours(found, task):
    assert all("has been removed" in error for error in found["vqa before"])
    assert found["picture-question-answering"] == ["PictureQuestionAnsweringPipeline", "picture-question-answering"]
    assert found[task] == ["PictureQuestionAnsweringPipeline", task]
    assert found[f"{task} answers"] == found["picture-question-answering answers"]
    assert found[f"{task} answers saved"] == found[f"{task} answers"]
    assert [set(entry) for entry in found[f"{task} answers"]] == [{"answer", "score"}] * 2


def test_restored_question_answering_says_when_a_model_does_not_chat(found):
    assert "A processor with a chat template is wanted" in found["vqa without a template"]


def test_other_tasks_are_as_before(found):
    assert found["summarization"] == found["summarization before"]
    assert "has been removed" in found["summarization"]
    assert found["text-recognition"] == ["TextRecognitionPipeline", "text-recognition"]
    assert found["image-text-to-text"] == ["ImageTextToTextPipeline", "image-text-to-text"]
