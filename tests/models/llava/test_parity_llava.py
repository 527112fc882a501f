"""Folders of transformers' `LlavaForConditionalGeneration`, and of LLaVA's own code: the oracle is the former, to 1e-4."""

import json
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from tests.models.llava.stock_folders import (
    IMAGE_TOKEN,
    PAD,
    original_config,
    original_weights,
    stock_model,
    vision_model,
    write_original,
)

STOCK = {
    "clip + llama": {},
    "clip + mistral": {"text": "mistral"},
    "mistral that sees five tokens back": {"text": "mistral", "sliding_window": 5},
    "siglip + llama": {"vision": "siglip"},
    "siglip + mistral": {"vision": "siglip", "text": "mistral"},
    "clip's last layer": {"vision_feature_layer": -1},
    "siglip's last layer": {"vision": "siglip", "vision_feature_layer": -1},
    "siglip's layer from the front": {"vision": "siglip", "vision_feature_layer": 1},
    "clip with its class token": {"vision_feature_select_strategy": "full"},
    "siglip without its first patch": {"vision": "siglip", "vision_feature_select_strategy": "default"},
    "relu": {"projector_hidden_act": "relu"},
    "tied words": {"tie_word_embeddings": True},
}
LAYOUTS = {"usual names": {}, "names in memory": {"save_original_format": False}}
FOLDERS = [(name, "usual names") for name in STOCK]
FOLDERS += [(name, "names in memory") for name in ("clip + llama", "siglip + mistral", "tied words")]
Model = LlavaVisionLanguageForConditionalGeneration


def prompts(stock: LlavaForConditionalGeneration, pictures_per_row: tuple[int, ...] = (1, 2, 0)) -> dict[str, Any]:
    """Rows with so many pictures, of unequal lengths, padded on the left."""
    generator = torch.Generator().manual_seed(7)
    num_tokens = len(stock.get_image_features(torch.zeros(1, 3, 16, 16)).pooler_output[0])
    rows = []
    for row, num_pictures in enumerate(pictures_per_row):
        ids = [1, 5 + row]
        for picture in range(num_pictures):
            ids += [IMAGE_TOKEN] * num_tokens + [10 + picture, 20 + row]
        rows.append([*ids, 30])
    longest = max(len(ids) for ids in rows)
    num_pictures = sum(pictures_per_row)
    inputs = {
        "input_ids": torch.tensor([[PAD] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    if num_pictures:
        inputs["pixel_values"] = torch.randn(num_pictures, 3, 16, 16, generator=generator)
    return inputs


@torch.no_grad()
def assert_same_assistant(ours: Model, stock: LlavaForConditionalGeneration) -> None:
    """Equal logits and equal greedy answers, with pictures that matter."""
    for pictures_per_row in ((1,), (1, 2, 0), (0,)):
        inputs = prompts(stock, pictures_per_row)
        is_real = inputs["attention_mask"].bool()
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)  # stock counts padding without them
        expected = stock(**inputs, position_ids=positions).logits[is_real]
        torch.testing.assert_close(ours(**inputs).logits[is_real], expected, atol=1e-4, rtol=0)
        if "pixel_values" in inputs:
            others = inputs | {"pixel_values": inputs["pixel_values"] + 1.0, "position_ids": positions}
            assert (expected - stock(**others).logits[is_real]).abs().max() > 1e-3, "the pictures play no part"
        # Random models like to repeat one token, which would be equal too easily; ours never says the image token.
        settings = {"max_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 2}
        answers = stock.generate(**inputs, **settings, suppress_tokens=[IMAGE_TOKEN])
        assert torch.equal(ours.generate(**inputs, **settings), answers)


@pytest.mark.parametrize(("name", "layout"), FOLDERS)
def test_stock_folder_answers_equally_loaded_saved_and_reloaded(name, layout, tmp_path):
    stock = stock_model(**STOCK[name])
    stock.save_pretrained(tmp_path / "stock", **LAYOUTS[layout])
    loaded = Model.from_pretrained(tmp_path / "stock")
    assert_same_assistant(loaded, stock)

    loaded.save_pretrained(tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors")
    assert not [
        name for name in names if name.startswith(("vision_tower", "multi_modal_projector", "model.", "lm_head"))
    ]
    for auto_class in (Model, AutoModelForImageTextToText) if name == "clip + llama" else (Model,):
        reloaded = auto_class.from_pretrained(tmp_path / "ours")
        assert type(reloaded) is Model
        assert_same_assistant(reloaded, stock)


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_stock_folder_of_the_hubs_old_names_answers_equally(vision, tmp_path):
    """Files of transformers before 5 have `vision_model.` inside the vision encoder, and shards."""
    stock = stock_model(vision)
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in weights.items()}
    assert set(old) != set(weights)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_assistant(Model.from_pretrained(tmp_path), stock)


def test_sharded_stock_folder_answers_equally(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_assistant(Model.from_pretrained(tmp_path), stock)


def test_generation_settings_of_a_stock_folder_are_kept(tmp_path):
    stock = stock_model()
    stock.generation_config.update(max_new_tokens=4, no_repeat_ngram_size=1)
    stock.save_pretrained(tmp_path)
    inputs = prompts(stock)
    expected = stock.generate(**inputs, suppress_tokens=[IMAGE_TOKEN])
    assert expected.shape[1] <= inputs["input_ids"].shape[1] + 4
    assert torch.equal(Model.from_pretrained(tmp_path).generate(**inputs), expected)


@pytest.mark.parametrize("part", ["vision_tower.encoder.layers.0", "multi_modal_projector.linear_2", "language_model"])
def test_stock_folder_that_lacks_a_weight_is_refused(part, tmp_path):
    stock_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in sorted(weights) if name.startswith(part))]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must hold every weight"):
        Model.from_pretrained(tmp_path)


def test_stock_folder_with_a_weight_too_many_is_refused(tmp_path):
    stock_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layers.7"):
        Model.from_pretrained(tmp_path)


def test_vision_beside_a_stock_folder_is_refused(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`vision` is for the original layout"):
        Model.from_pretrained(tmp_path, vision=vision_model(stock))


# The original layout


def with_mean_row(stock: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The stock model with the mean of the words as the image token's row, as our reading of the original layout has it."""
    with torch.no_grad():
        for layer in (stock.get_input_embeddings(), stock.lm_head):
            layer.weight[IMAGE_TOKEN] = layer.weight[:IMAGE_TOKEN].mean(dim=0)
    return stock


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_original_folder_answers_as_the_stock_one_of_the_same_weights(text, kind, as_folder, tmp_path):
    stock = with_mean_row(stock_model(text=text))
    folder = write_original(tmp_path / "llava", original_weights(stock), original_config(text), kind)
    vision: Any = vision_model(stock)
    if as_folder:
        vision.save_pretrained(tmp_path / "clip")
        vision = str(tmp_path / "clip")
    loaded = Model.from_pretrained(folder, vision=vision)
    assert_same_assistant(loaded, stock)

    loaded.save_pretrained(tmp_path / "ours")
    assert_same_assistant(Model.from_pretrained(tmp_path / "ours"), stock)


@torch.no_grad()
def test_original_folder_with_a_linear_projector_answers_as_the_sum_of_its_parts(tmp_path):
    """transformers' LLaVA has no linear projector: its language model is fed by hand."""
    stock = stock_model()
    config = original_config(mm_projector_type="linear")
    folder = write_original(tmp_path / "llava", original_weights(stock, "linear"), config)
    loaded = Model.from_pretrained(folder, vision=vision_model(stock))
    inputs = prompts(stock, (1,))
    seen = stock.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    words = stock.get_input_embeddings()(inputs["input_ids"])
    words[inputs["input_ids"] == IMAGE_TOKEN] = stock.model.multi_modal_projector.linear_1(seen)[0]
    expected = stock.lm_head(stock.model.language_model(inputs_embeds=words).last_hidden_state)
    logits = loaded(**inputs).logits
    torch.testing.assert_close(logits[..., :IMAGE_TOKEN], expected[..., :IMAGE_TOKEN], atol=1e-4, rtol=0)


def test_original_folder_with_its_own_vision_encoder_reads_by_that(tmp_path):
    stock, other = with_mean_row(stock_model()), stock_model()
    weights = original_weights(stock)
    for name, tensor in vision_model(stock).state_dict().items():
        weights[f"model.vision_tower.vision_tower.vision_model.{name}"] = tensor.clone()
    with torch.no_grad():
        for parameter in vision_model(other).parameters():
            parameter.mul_(2)
    folder = write_original(tmp_path / "llava", weights, original_config(unfreeze_mm_vision_tower=True))
    assert_same_assistant(Model.from_pretrained(folder, vision=vision_model(other)), stock)


def test_original_folder_without_a_vision_encoder_asks_for_the_one_it_names(tmp_path):
    folder = write_original(tmp_path / "llava", original_weights(stock_model()), original_config())
    with pytest.raises(ValueError, match=r"`vision` is wanted, got none\. Pass `vision='openai/clip-vit-tiny'`"):
        Model.from_pretrained(folder)


def test_original_folder_of_differences_is_refused(tmp_path):
    stock = stock_model()
    delta = {name: 0.001 * tensor for name, tensor in original_weights(stock).items()}
    folder = write_original(tmp_path / "llava", delta, original_config())
    with pytest.raises(ValueError, match="`delta` folder"):
        Model.from_pretrained(folder, vision=vision_model(stock))


def test_original_folder_that_lacks_a_weight_or_a_shard_is_refused(tmp_path):
    stock = stock_model()
    weights = original_weights(stock)
    del weights["model.layers.1.mlp.down_proj.weight"]
    folder = write_original(tmp_path / "llava", weights, original_config())
    with pytest.raises(ValueError, match=r"none named `model\.layers\.1\.mlp\.down_proj\.weight`"):
        Model.from_pretrained(folder, vision=vision_model(stock))
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(OSError, match="pytorch_model-00002-of-00002.bin"):
        Model.from_pretrained(folder, vision=vision_model(stock))


class Poison:
    """Writes a file when unpickled, as any code could be run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("layout", ["original", "stock"])
def test_poisoned_pickle_is_refused_and_never_executed(layout, tmp_path):
    stock = stock_model()
    trace = tmp_path / "executed"
    weights: dict[str, Any] = dict(original_weights(stock))
    if layout == "original":
        folder = write_original(tmp_path / "llava", weights, original_config())
        shard, vision = folder / "pytorch_model-00001-of-00002.bin", vision_model(stock)
    else:
        folder = tmp_path / "llava"
        stock.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        shard, vision = folder / "pytorch_model.bin", None
    torch.save({"lm_head.weight": torch.zeros(2), "model.norm.weight": Poison(str(trace))}, shard)
    with pytest.raises(ValueError, match="pickles other objects, which are never executed"):
        Model.from_pretrained(folder, vision=vision)
    shard.write_bytes(pickle.dumps({"model.norm.weight": Poison(str(trace))}, protocol=2))
    with pytest.raises(ValueError, match="pickles other objects, which are never executed"):
        Model.from_pretrained(folder, vision=vision)
    assert not trace.exists()
    with trace.open("w"):  # the poison does work
        pickle.loads(shard.read_bytes())["model.norm.weight"].close()


def test_config_json_of_neither_layout_says_which_it_is(tmp_path):
    stock_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "llava_next"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="got `llava_next`"):
        Model.from_pretrained(tmp_path)
