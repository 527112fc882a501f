"""Our models by tools that nobody here wrote, as they are: accelerate, trl, lmms-eval. See `scripts/try_clients.py`."""

import copy
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedModel

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, SwinTransformerForImageClassification
from hf_vlm.blocks.weight_placement import computing_device, with_weights
from hf_vlm.sharing.benchmark_model import BenchmarkModel, as_messages, cut_at
from tests.sharing.pretended_devices import PretendedDevices, spread
from tests.tiny_chat import chat_folder, coloured, user  # noqa: F401  a fixture

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # as for a script that is run: its siblings are found

import try_clients  # noqa: E402

SLOW_CALLS = ("beams", "uncached", "static cache")
MODELS = {name: (model, calls) for name, model, calls in try_clients.tiny_models()}
accelerate = pytest.importorskip("accelerate")


def tiny(name: str) -> tuple[PreTrainedModel, try_clients.Calls]:
    model, calls = MODELS[name]
    return copy.deepcopy(model), calls


# accelerate


@pytest.mark.parametrize("name", MODELS)
def test_model_computes_the_same_with_its_weights_kept_elsewhere(name: str) -> None:
    model, calls = tiny(name)
    calls = {call: calls[call] for call in calls if call not in SLOW_CALLS}
    try_clients.try_placements(name, model, calls, only=["offloaded with buffers", "half on disk"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_computes_the_same_wherever_its_weights_are_kept(name: str) -> None:
    try_clients.try_placements(name, *tiny(name))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_no_part_that_a_device_map_may_move_away_is_missed(name: str) -> None:
    model, calls = tiny(name)
    calls = {call: calls[call] for call in calls if call not in SLOW_CALLS}
    wanted = {call: function(model) for call, function in calls.items()}
    parts = spread(model)
    assert len(parts) > 2
    with PretendedDevices():
        for call, function in calls.items():
            torch.testing.assert_close(function(model), wanted[call], rtol=0, atol=0)


@torch.no_grad()
def test_pretended_devices_tell_a_residual_that_is_split() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self._no_split_modules = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return x + self.second(x)

    block = Block()
    spread(block)
    with PretendedDevices(), pytest.raises(RuntimeError, match="`add` of tensors on pretended devices"):
        block(torch.ones(1, 2))


def test_every_class_of_a_layer_with_a_residual_is_named_as_one_that_is_not_split() -> None:
    named = {name: set(model._no_split_modules) for name, (model, _) in MODELS.items()}
    assert "DVAEBlock" in named["dvae"] and "ResidualConvBlock" in named["vae"] & named["vqvae, levels"]
    assert "PreNormLayer" in named["swin"] & named["vit, learned positions"] & named["trocr, learned positions"]
    assert {"TrOCREncoderDecoderTextLayer", "VisionTransformerEmbeddings"} <= named["trocr, learned positions"]
    assert {"LlamaDecoderLayer", "ViTLayer"} <= named["llava"]


def test_model_tells_the_device_that_offloaded_weights_are_brought_to() -> None:
    model, _ = tiny("swin")
    assert model.device == torch.device("cpu")
    accelerate.cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).is_meta and model.device == torch.device("cpu")
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert empty.device == torch.device("meta") == computing_device(empty)


def test_weights_are_at_hand_outside_a_call_and_gone_afterwards() -> None:
    layer = nn.Linear(3, 2)
    x = torch.ones(1, 3)
    wanted = x @ layer.weight.detach().T
    assert torch.equal(with_weights(layer, lambda given: given @ layer.weight.detach().T, x), wanted)
    accelerate.cpu_offload(layer, execution_device="cpu")
    assert torch.equal(with_weights(layer, lambda given: given @ layer.weight.detach().T, x), wanted)
    assert layer.weight.is_meta


def test_offloaded_model_is_not_resized_on_loading(tmp_path: Path) -> None:
    model, _ = tiny("swin")
    model.save_pretrained(tmp_path)
    elsewhere = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "disk"}
    with pytest.raises(ValueError, match="`image_size` wants all weights in memory, .* Load without it"):
        SwinTransformerForImageClassification.from_pretrained(tmp_path, image_size=64, **elsewhere)


def test_offloaded_model_is_saved_whole_with_its_report(tmp_path: Path) -> None:
    model, _ = try_clients.tiny_llava()
    model.save_pretrained(tmp_path / "first")
    parts = {"vision_model": "cpu", "projector": "disk", "language_model": "disk"}
    placed = LlavaVisionLanguageForConditionalGeneration.from_pretrained(
        tmp_path / "first", device_map=parts, offload_folder=tmp_path / "disk"
    )
    placed.save_pretrained(tmp_path / "second")
    reports = [(tmp_path / name / "weight_report.json").read_text() for name in ("first", "second")]
    assert json.loads(reports[0]) == json.loads(reports[1])
    again = LlavaVisionLanguageForConditionalGeneration.from_pretrained(tmp_path / "second").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


# trl

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")


def test_model_below_its_output_layer_gives_what_makes_its_logits() -> None:
    model, processor = try_clients.tiny_llava()
    batch = try_clients.ask(processor, ("red", None))
    with torch.no_grad():
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state
        wanted = model(**batch).logits
    torch.testing.assert_close(model.get_output_embeddings()(hidden), wanted)
    assert model.base_model.config is model.config and model.base_model.get_image_features
    assert type(copy.deepcopy(model.base_model)) is type(model.base_model)
    model.base_model.set_by_a_trainer = True
    assert model.set_by_a_trainer


def test_language_model_without_an_output_layer_apart_is_refused_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = try_clients.tiny_llava()
    monkeypatch.setattr(type(model.language_model), "base_model_prefix", "")
    with pytest.raises(ValueError, match="output layer apart is wanted, .* got `llama`. Call the model itself"):
        model.base_model(**try_clients.ask(processor, (None,)))


def test_assistant_masks_come_as_lists_with_all_else_unless_tensors_are_asked_for() -> None:
    _, processor = try_clients.tiny_llava()
    messages = [*try_clients.question("red"), {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]
    settings = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    as_lists = processor.apply_chat_template(messages, **settings)
    as_tensors = processor.apply_chat_template(messages, **settings, return_tensors="pt")
    assert isinstance(as_lists["input_ids"], list) and isinstance(as_lists["assistant_masks"], list)
    assert as_tensors["input_ids"].tolist() == as_lists["input_ids"]
    encoded = processor.encode_conversation(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colours?"}]}, messages[1]]
    )
    learnt = [int(label >= 0) for label in encoded["labels"]]
    assert torch.as_tensor(as_tensors["assistant_masks"]).tolist() == as_lists["assistant_masks"] == [learnt]


@needs_trl
def test_trl_finds_the_end_of_turn_among_what_is_learnt() -> None:
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    assert is_chat_template_stop_token_trained(try_clients.tiny_llava()[1])


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_trl_fine_tunes_on_the_loss_of_our_own_collator(with_adapter: bool) -> None:
    try_clients.try_sft(with_adapter)


@needs_trl
@pytest.mark.slow
def test_trl_learns_preferences() -> None:
    try_clients.try_dpo()


# Benchmarks


def test_pictures_stand_where_a_text_has_places_for_all_or_in_front() -> None:
    red, blue = coloured("red"), coloured("blue")

    def kinds(text: str, *pictures: Image.Image) -> list:
        (message,) = as_messages(text, pictures)
        return [part.get("text") or part["image"] for part in message["content"]]

    assert kinds("Which?", red, blue) == [red, blue, "Which?"]
    assert kinds("<image>\nis red, <image> is", red, blue) == [red, "is red,", blue, "is"]
    assert kinds("<image> Which?", red, blue) == [red, blue, "Which?"]
    assert kinds("<image> Which?") == ["Which?"]


def test_answer_ends_before_the_first_of_the_stops() -> None:
    assert cut_at("yes. no; maybe", [";", ". "]) == "yes"
    assert cut_at("yes", ["x"]) == cut_at("yes", []) == "yes"


@pytest.fixture(scope="module")
def asked(chat_folder: str) -> BenchmarkModel:  # noqa: F811
    return BenchmarkModel(chat_folder, device="cpu")


def test_batched_answers_are_those_of_the_model_alone(asked: BenchmarkModel, chat_folder: str) -> None:  # noqa: F811
    questions = [
        [user("colours?", coloured("red"), coloured("blue"))], [user("hello")], [user("colours?", coloured("green"))],
    ]  # fmt: skip
    assert asked.answer(questions, {"max_new_tokens": 12}) == ["red blue", "hi", "green"]
    assert asked.answer(questions[:1], {"max_new_tokens": 12, "until": [" "]}) == ["red"]
    assert asked.answer(questions[:1], {"max_new_tokens": 2}) == ["re"]


def test_unknown_settings_of_a_task_are_left_out_with_a_word(asked: BenchmarkModel) -> None:
    settings = {"max_new_tokens": 3, "temperature": 0, "top_p": None, "image_aspect_ratio": "pad"}
    with pytest.warns(UserWarning, match="no setting `image_aspect_ratio`"):
        assert asked.answer([[user("colours?", coloured("red"))]], settings) == ["red"]


def test_loss_is_the_mean_over_the_answer_and_tells_what_would_be_said(
    asked: BenchmarkModel,
    chat_folder: str,  # noqa: F811
) -> None:
    def row(said: str, *names: str) -> list[dict]:
        answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
        return [user("colours?", *map(coloured, names)), answer]

    rows = [row("red", "red"), row("blue", "red"), row("red blue", "red", "blue")]
    found = asked.losses(rows)
    assert [is_said for _, is_said in found] == [True, False, True]
    model = AutoModelForImageTextToText.from_pretrained(chat_folder).eval()
    for (loss, _), messages in zip(found, rows, strict=True):  # each alone, by log-probabilities
        parts = [part if part["type"] == "text" else {"type": "image"} for part in messages[0]["content"]]
        encoded = asked.processor.encode_conversation([{"role": "user", "content": parts}, messages[1]])
        pictures = asked.processor.prepare_images([part["image"] for part in messages[0]["content"] if "image" in part])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded["input_ids"]]), pixel_values=pictures).logits
        wanted = [
            -F.log_softmax(logits[0, place - 1], dim=-1)[label].item()
            for place, label in enumerate(encoded["labels"])
            if label >= 0
        ]
        assert loss == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


def test_model_that_writes_about_pictures_is_asked_for_captions_alone(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    from hf_vlm import CnnLstmProcessor

    model, _ = tiny("cnn_lstm, attention none")
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    processor = CnnLstmProcessor.from_pretrained_parts(images, try_clients.tiny_tokenizer())
    model.config.vocab_size = 102
    model = type(model)(model.config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = BenchmarkModel(str(tmp_path), device="cpu")
    pictures = [coloured("red"), coloured("blue")]
    said = asked.answer([as_messages("Describe it.", [picture]) for picture in pictures], {"max_new_tokens": 4})
    token_ids = model.generate(processor(images=pictures)["pixel_values"], max_new_tokens=4)
    assert said == [text.strip() for text in processor.batch_decode(token_ids, skip_special_tokens=True)]
    with pytest.raises(ValueError, match="writes about one picture, got 2"):
        asked.answer([as_messages("Which?", pictures)])
    with pytest.raises(ValueError, match="weighed by a chat model"):
        asked.losses([as_messages("Which?", pictures)])


def test_other_models_and_precisions_are_refused(tmp_path: Path) -> None:
    tiny("swin")[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="A model that writes is wanted"):
        BenchmarkModel(str(tmp_path))
    with pytest.raises(ValueError, match="`dtype` must be"):
        BenchmarkModel(str(tmp_path), dtype="int8")


def test_lmms_evals_requests_are_answered_in_their_order(
    asked: BenchmarkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_vlm.sharing import lmms_eval as adapter

    rows = [{"picture": name} for name in ("red", "blue", "green")]
    for adapter_class in (adapter.HfVlmChat, adapter.HfVlmSimple):
        model = adapter_class.__new__(adapter_class)
        model.asked, model.batch_size, model.system_prompt = asked, 3, None
        model.task_dict = {"task": {"test": rows}}
        monkeypatch.setattr(adapter_class, "rank", 1, raising=False)
        settings = [{"max_new_tokens": 12}, {"max_new_tokens": 12, "until": "e"}, {"max_new_tokens": 12}]

        def messages(row: dict) -> list[dict]:
            picture = {"type": "image", "url": coloured(row["picture"])}
            return [{"role": "user", "content": [picture, {"type": "text", "text": "colours?"}]}]

        def visual(row: dict) -> list[Image.Image]:
            return [coloured(row["picture"])]

        chat = [("", messages, settings[index], index, "task", "test") for index in range(3)]
        simple = [("colours?", settings[index], visual, index, "task", "test") for index in range(3)]
        requests = [types.SimpleNamespace(args=args) for args in (simple if model.is_simple else chat)]
        assert model.generate_until(requests) == ["red", "blu", "green"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
@pytest.mark.parametrize("is_simple", [False, True], ids=["chat", "simple"])
def test_lmms_eval_scores_as_our_own_evaluation(is_simple: bool) -> None:
    try_clients.try_lmms_eval(is_simple)
