"""LoRA: which tensors get adapters and which learn; the folder, read by peft alone, by transformers, and merged.

The assistant has CLIP and a Llama, whose attention layers have the same names.
"""

import contextlib
import importlib.util
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import hf_vlm
from hf_vlm import LlavaVisionLanguageForConditionalGeneration, TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.parts.base_weights import BASE_FILE, check_base, role_paths
from hf_vlm.training import lora
from hf_vlm.training.lora import (
    add_lora,
    check_adapter_gradients,
    loading_arguments,
    lora_config,
    merge_adapter,
    save_adapter,
)
from hf_vlm.training.lora_layers import LoraSection, exact_pattern, target_layers
from hf_vlm.training.trainers.gradient_checks import check_gradients
from tests.models.llava.tiny_llava import (
    CLIP_VISION,
    END,
    LLAMA,
    PAD,
    START,
    VOCAB_SIZE,
    picture_batch,
    prompt_of,
    tiny_llava,
)
from tests.models.trocr.tiny_models import line_batch, tiny_reader

ADAPTER_FILES = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "generation_config.json",
    BASE_FILE,
]
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCAB_SIZE,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}


def section(**settings) -> LoraSection:
    return LoraSection(**{"rank": 2, "alpha": 6, "dropout": 0.0, **settings})


def saved_base(folder: Path, **parts) -> LlavaVisionLanguageForConditionalGeneration:
    """A base as it is loaded: of a folder, by its absolute path."""
    tiny_llava(**{"vision": CLIP_VISION, "vision_feature_layer": -2, **parts}).save_pretrained(folder)
    return LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder)


def shake(adapted: nn.Module) -> None:
    """As after training: every value that learns is another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value += 0.3 * torch.randn(value.shape, generator=generator)


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, to which the base's path in an adapter is relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base(folder) -> LlavaVisionLanguageForConditionalGeneration:
    return saved_base(folder / "base")


@pytest.fixture
def batch(base) -> dict[str, torch.Tensor]:
    return picture_batch(base.config.num_image_tokens)


@pytest.fixture
def adapted(base) -> PeftModel:
    adapted = add_lora(base, section())
    shake(adapted)
    return adapted.eval()


# The section


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "`lora.rank` must be 1 or more, got 0"),
        ({"alpha": 0}, "`lora.alpha` must be above 0, got 0"),
        ({"dropout": 1.0}, r"`lora.dropout` must be in \[0, 1\), got 1.0"),
        ({"roles": []}, "`lora.roles` wants a part"),
        ({"target_modules": []}, "`lora.target_modules` wants names"),
        ({"roles": ["vision"], "train": ["projector", "vision"]}, "got `vision` in `lora.roles` and among"),
    ],
)
def test_section_refuses_settings_that_mean_nothing(settings, told):
    with pytest.raises(ValueError, match=told):
        LoraSection(**settings)


def test_section_defaults_are_those_of_llava_1_5():
    config = LoraSection()
    assert (config.rank, config.alpha, config.dropout) == (128, 256, 0.05)
    settled = config.settled(tiny_llava())
    assert (settled.roles, settled.train, settled.target_modules) == (["language"], ["projector"], None)


# Which layers


def test_roles_name_the_parts_that_hold_weights(base):
    assert role_paths(base) == {"vision": "vision_model", "projector": "projector", "language": "language_model"}
    assert role_paths(tiny_reader()) == {"vision": "encoder.vision_model", "decoder": "decoder"}  # projects nothing
    wide = tiny_reader(text={"cross_attention_size": 24}, ctc_loss_weight=0.5)
    assert role_paths(wide) == {
        "vision": "encoder.vision_model",
        "projector": "encoder.projection",
        "decoder": "decoder",
        "ctc_head": "ctc_head",
    }


def test_roles_of_another_class_are_an_error():
    with pytest.raises(ValueError, match="A model of hf-vlm is wanted, .* got a `Linear`"):
        role_paths(nn.Linear(2, 2))


def test_adapters_are_in_every_linear_layer_of_the_language_part_and_nowhere_else(adapted):
    learning = {name for name, value in adapted.named_parameters() if value.requires_grad}
    wanted = {
        f"base_model.model.language_model.model.layers.{layer}.{linear}_proj.lora_{matrix}.default.weight"
        for layer in range(2)
        for linear in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
        for matrix in "AB"
    }
    in_full = {name for name in learning if name.startswith("base_model.model.projector.modules_to_save.default.")}
    assert learning - in_full == wanted
    assert {name.removeprefix("base_model.model.projector.modules_to_save.default.") for name in in_full} == {
        f"linears.{layer}.{kind}" for layer in range(2) for kind in ("weight", "bias")
    }


def test_named_targets_keep_to_their_role(base):
    layers = target_layers(base, section(roles=["vision"], target_modules=["q_proj", "mlp.fc1"]))
    assert len(layers) == 6 and all(name.startswith("vision_model.") for name in layers)
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "fc1"}


def test_output_layer_gets_no_adapter_where_it_is_linear_and_not_tied(base):
    assert isinstance(base.get_output_embeddings(), nn.Linear)
    assert not any("lm_head" in name for name in target_layers(base, section()))


def test_weights_that_torchs_own_attention_reads_get_no_adapter(base):
    base.language_model.model.resampler = nn.MultiheadAttention(8, 2)
    assert not any("resampler" in name for name in target_layers(base, section()))


def test_pattern_matches_these_layers_alone(base):
    names = [name for name, _ in base.named_modules()]
    for layers in (
        target_layers(base, section()),
        target_layers(base, section(roles=["language", "vision"], target_modules=["v_proj"])),
        ["language_model.model.layers.1.mlp.up_proj"],  # not its like in layer 0
    ):
        pattern = exact_pattern(base, layers)
        assert [name for name in names if re.fullmatch(pattern, name)] == sorted(layers, key=names.index)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"roles": ["decoder"]},
            "`lora.roles` must name parts of the model, `vision`, `projector`, `language`, got `deco",
        ),
        (
            {"train": ["head"]},
            "`lora.train` must name parts of the model, `vision`, `projector`, `language`, got `head`",
        ),
        ({"target_modules": ["q_proj", "query"]}, "linear layers of `language`: `down_proj`.*`v_proj`; got `query`"),
        ({"target_modules": ["fc1"]}, "got `fc1`"),  # of the vision encoder
        ({"train": ["vision"]}, "got `vision`, a whole model"),
    ],
)
def test_unknown_parts_and_layers_are_errors_that_name_the_known(base, settings, told):
    with pytest.raises(ValueError, match=told):
        lora_config(base, section(**settings))


def test_part_without_linear_layers_is_an_error(base):
    base.projector = nn.Conv1d(2, 2, 1)
    with pytest.raises(ValueError, match="got `projector`, which has none"):
        lora_config(base, section(roles=["projector"], train=[]))


def test_second_module_of_the_projectors_name_is_an_error(base):
    base.language_model.visual_projector = nn.Linear(2, 2)  # PEFT goes by the end of a name
    with pytest.raises(ValueError, match="got a `language_model.visual_projector` too"):
        lora_config(base, section())


def test_adapted_layer_adds_alpha_by_rank_of_b_a_x(base, adapted):
    layer = base.language_model.model.layers[1].mlp.up_proj
    inputs = torch.randn(5, 24)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = inputs @ layer.base_layer.weight.T + 6 / 2 * inputs @ a.T @ b.T
    torch.testing.assert_close(layer(inputs), wanted)


def test_dropout_is_of_the_adapters_alone(base):
    adapted = add_lora(base, section(dropout=0.3))
    drops = {name: module.p for name, module in adapted.named_modules() if isinstance(module, nn.Dropout)}
    assert len(drops) == 14 and all(name.endswith("lora_dropout.default") for name in drops)
    assert set(drops.values()) == {0.3}


# The base


def test_model_made_in_memory_is_an_error():
    with pytest.raises(ValueError, match="got a model that was made in memory"):
        add_lora(tiny_llava(), section())


def test_base_of_another_layout_is_an_error(folder, base):
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="must be a `hf_vlm_llava` folder, got `llava` in ./other"):
        add_lora(base, section(), base=folder / "other")


def test_other_settings_than_the_saved_base_has_are_an_error(base):
    base.config.vision_feature_layer = -1
    with pytest.raises(ValueError, match="got another `vision_feature_layer` in ./base"):
        add_lora(base, section())


def test_label_smoothing_may_differ_from_the_saved_base(base):
    base.config.label_smoothing = 0.1
    add_lora(base, section())


def test_what_learns_is_in_float32_over_a_base_in_bfloat16(folder, base, batch):
    half = type(base).from_pretrained(folder / "base", dtype=torch.bfloat16)
    adapted = add_lora(half, section()).train()
    assert {value.dtype for value in adapted.parameters() if value.requires_grad} == {torch.float32}
    assert half.language_model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    adapted(**batch).loss.backward()
    check_adapter_gradients(adapted, section())


# Training


def test_new_adapter_changes_nothing(base, batch):
    before = logits_of(base, batch)
    assert torch.equal(logits_of(add_lora(base, section()), batch), before)


def test_trainer_step_changes_adapter_and_projector_alone(folder, base):
    adapted = add_lora(base, section())
    batch = picture_batch(base.config.num_image_tokens, pictures=(1,), answers=(4,))
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=1,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
    )
    Trainer(adapted, arguments, train_dataset=[batch], data_collator=lambda rows: rows[0]).train()
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    # A stays in the first step: its gradient goes through B, which is zero
    assert changed == {name for name in before if "lora_B" in name or ".modules_to_save." in name}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_are_the_same_with_checkpointing(base, batch, use_reentrant):
    config = section(roles=["language", "vision"])
    adapted = add_lora(base, config)
    shake(adapted)
    adapted.train()

    def gradients():
        adapted.zero_grad()
        adapted(**batch).loss.backward()
        return {name: value.grad for name, value in adapted.named_parameters() if value.requires_grad}

    plain = gradients()
    adapted.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    again = gradients()
    reached = {name for name, gradient in plain.items() if gradient is not None}
    assert any("vision_model" in name for name in reached) and any("language_model" in name for name in reached)
    for name in reached:
        assert torch.allclose(plain[name], again[name], atol=1e-6), name


def test_adapters_learn_under_reentrant_checkpointing_where_nothing_before_them_does(folder):
    tiny_reader().save_pretrained(folder / "reader")
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder / "reader")
    config = section(roles=["decoder"], train=[])
    adapted = add_lora(reader, config).train()
    adapted.activation_checkpointing_enable({"use_reentrant": True})
    adapted(**line_batch()).loss.backward()
    check_adapter_gradients(adapted, config)


def test_gradient_check_passes_after_a_first_step(base, batch):
    adapted = add_lora(base, section()).train()
    adapted(**batch).loss.backward()
    check_adapter_gradients(adapted, section())
    check_gradients(adapted)


@pytest.mark.parametrize("check", [check_gradients, lambda model: check_adapter_gradients(model, ALL_ROLES)])
def test_part_that_the_forward_pass_leaves_out_is_an_error(base, batch, check):
    adapted = add_lora(base, ALL_ROLES).train()
    pictures = batch.pop("pixel_values")
    with torch.no_grad():
        batch["image_features"] = base.vision_features(pictures)
    adapted(**batch).loss.backward()
    with pytest.raises(ValueError, match="got none in `vision(_model.*)?`. "):
        check(adapted)


ALL_ROLES = section(roles=["language", "vision"])


def test_frozen_part_that_is_asked_to_train_is_an_error(base, batch):
    adapted = add_lora(base, section()).train()
    base.projector.requires_grad_(False)
    adapted(**batch).loss.backward()
    with pytest.raises(ValueError, match="got none in `projector`, which is frozen"):
        check_adapter_gradients(adapted, section())


# The folder


def test_folder_is_a_plain_peft_folder_with_the_projector_whole(folder, base, adapted):
    save_adapter(adapted, folder / "adapter")
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == sorted(ADAPTER_FILES)
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    projector = base.projector.modules_to_save["default"].state_dict()
    in_full = {name: value for name, value in stored.items() if "lora_" not in name}
    assert set(in_full) == {f"base_model.model.projector.{name}" for name in projector}
    for name, value in projector.items():
        assert torch.equal(in_full[f"base_model.model.projector.{name}"], value)
    assert all(name.startswith("base_model.model.language_model.model.layers.") for name in set(stored) - set(in_full))


def test_folder_tells_no_absolute_path(folder, adapted):
    save_adapter(adapted, folder / "adapter")
    adapted.save_pretrained(folder / "checkpoint")  # as the Trainer does
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./base"
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert str(folder) not in str(file.metadata())
    for path in [*(folder / "adapter").iterdir(), *(folder / "checkpoint").iterdir()]:
        assert str(folder).encode() not in path.read_bytes(), path.name


def test_folder_is_written_of_gathered_weights_where_the_model_holds_shards(folder, base, adapted):
    save_adapter(adapted, "whole")
    gathered = {name: value.clone() for name, value in adapted.state_dict().items()}
    with torch.no_grad():
        for value in adapted.parameters():
            value.zero_()  # as a process that holds other rows
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A base must stay")
        save_adapter(adapted, "of_shards", state_dict=gathered)
    for name in ("adapter_model.safetensors", BASE_FILE):
        assert (folder / "of_shards" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_card_names_a_base_of_the_hub_only(folder, base, adapted):
    save_adapter(adapted, folder / "adapter")
    assert "base_model" not in (folder / "adapter" / "README.md").read_text()
    save_adapter(adapted, folder / "adapter", base_folder="someone/llava-base")
    card = (folder / "adapter" / "README.md").read_text()
    assert "base_model: someone/llava-base" in card and "base_model:adapter:someone/llava-base" in card
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/llava-base"


def test_peft_alone_reloads_the_folder(folder, adapted, batch):
    save_adapter(adapted, folder / "adapter")
    base = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder / "base")
    plain = logits_of(base, batch)
    reloaded = PeftModel.from_pretrained(base, folder / "adapter")
    wanted = logits_of(adapted, batch)
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(logits_of(reloaded, batch), wanted, rtol=0, atol=1e-6)


def test_auto_class_reloads_the_folder_alone(folder, adapted, batch):
    save_adapter(adapted, folder / "adapter")
    reloaded = AutoModelForImageTextToText.from_pretrained("adapter")
    assert type(reloaded) is LlavaVisionLanguageForConditionalGeneration
    torch.testing.assert_close(logits_of(reloaded, batch), logits_of(adapted, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", [LLAMA, LLAMA | {"tie_word_embeddings": True}, GPT2], ids=["llama", "tied", "gpt2"])
def test_merged_model_says_what_the_unmerged_says(folder, text):
    base = saved_base(folder / "base", text=text)
    embeddings = base.get_input_embeddings().weight.clone()
    batch = picture_batch(base.config.num_image_tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out")
        adapted = add_lora(base, section())
    shake(adapted)
    wanted = logits_of(adapted, batch)
    save_adapter(adapted, "adapter")
    merged = merge_adapter("adapter", "merged")
    torch.testing.assert_close(logits_of(merged, batch), wanted, rtol=0, atol=1e-4)
    reloaded = AutoModelForImageTextToText.from_pretrained("merged")
    torch.testing.assert_close(logits_of(reloaded, batch), wanted, rtol=0, atol=1e-4)
    for model in (base, merged, reloaded):
        assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert not any("lora" in name for name in reloaded.state_dict())


def test_adapter_generates_as_the_merged_model(folder, base, adapted, batch):
    prompt = prompt_of(batch)
    settings = {"max_new_tokens": 6, "do_sample": False}
    said = adapted.generate(**prompt, **settings)
    with adapted.disable_adapter():
        assert not torch.equal(adapted.generate(**prompt, **settings), said)
    save_adapter(adapted, "adapter")
    assert torch.equal(AutoModelForImageTextToText.from_pretrained("adapter").generate(**prompt, **settings), said)
    assert torch.equal(merge_adapter("adapter", "merged").generate(**prompt, **settings), said)


def test_decoder_of_a_reader_takes_adapters_beside_its_ctc_head(folder):
    tiny_reader(ctc_loss_weight=0.5).save_pretrained(folder / "reader")
    reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder / "reader")
    config = section(roles=["decoder"], train=["ctc_head"])
    adapted = add_lora(reader, config)
    names = [
        name.removeprefix("base_model.model.") for name, value in adapted.named_parameters() if value.requires_grad
    ]
    assert all(name.startswith(("decoder.model.layers.", "ctc_head.modules_to_save.")) for name in names)
    assert any("cross_attention" in name for name in names)
    adapted.train()(**line_batch()).loss.backward()
    check_adapter_gradients(adapted, config)
    shake(adapted)
    wanted = logits_of(adapted, line_batch())
    save_adapter(adapted, "adapter")
    reloaded = AutoModelForImageTextToText.from_pretrained("adapter")
    torch.testing.assert_close(logits_of(reloaded, line_batch()), wanted, rtol=0, atol=1e-6)
    merged = merge_adapter("adapter", "merged")
    torch.testing.assert_close(logits_of(merged, line_batch()), wanted, rtol=0, atol=1e-4)


# The base's weights


def test_other_base_weights_are_warned_of_with_both_hashes(folder, adapted):
    save_adapter(adapted, "adapter")
    wanted = json.loads((folder / "adapter" / BASE_FILE).read_text())["sha256"]
    assert set(wanted) == {"vision", "language"}
    other = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder / "base")
    with torch.no_grad():
        other.language_model.model.layers[1].mlp.up_proj.weight[3, 2] += 0.1
    with pytest.warns(UserWarning, match="by their SHA-256: language") as told:
        assert not check_base(other, "adapter")
    hashes = re.findall(r"language ([0-9a-f]{64}), got ([0-9a-f]{64})", str(told[0].message))
    assert hashes[0][0] == wanted["language"] != hashes[0][1]
    assert "vision" not in str(told[0].message)
    with pytest.warns(UserWarning, match="by their SHA-256: language"):
        check_base(PeftModel.from_pretrained(other, "adapter"), "adapter")
    other = LlavaVisionLanguageForConditionalGeneration.from_pretrained(folder / "base")
    with torch.no_grad():
        other.language_model.model.layers[1].mlp.up_proj.weight[3, 2] += 0.1
    other.save_pretrained("other")
    AutoModelForImageTextToText.from_pretrained("adapter")  # on its own base: a warning would be an error
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "other"
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="by their SHA-256: language"):
        AutoModelForImageTextToText.from_pretrained("adapter")


def test_base_without_a_part_of_the_adapters_is_warned_of(base, adapted):
    save_adapter(adapted, "adapter")
    content = json.loads(Path("adapter", BASE_FILE).read_text())
    content["sha256"]["ctc_head"] = "0" * 64
    Path("adapter", BASE_FILE).write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="ctc_head 0+, got None"):
        assert not check_base(base, "adapter")


def test_own_base_is_not_warned_of_whatever_wraps_it_and_in_whatever_dtype(folder, adapted):
    save_adapter(adapted, "adapter")
    load = LlavaVisionLanguageForConditionalGeneration.from_pretrained
    new_projector = load("base")
    new_projector.projector.linears[0].weight.data += 1  # the adapter brings its own
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*SHA-256")
        for model in (
            adapted,
            load("base"),
            load("base", dtype=torch.bfloat16),
            new_projector,
            PeftModel.from_pretrained(load("base"), "adapter"),
            AutoModelForImageTextToText.from_pretrained("adapter"),
        ):
            assert check_base(model, "adapter")


def test_adapter_without_hashes_is_not_warned_of(base, adapted):
    adapted.save_pretrained("plain")
    assert check_base(base, "plain")


def test_base_that_changed_in_training_is_warned_of(base, adapted):
    base.vision_model.post_layernorm.weight.data += 0.5  # as a running average would
    with pytest.warns(UserWarning, match="got other weights in `vision` than at the start"):
        save_adapter(adapted, "adapter")
    assert check_base(
        LlavaVisionLanguageForConditionalGeneration.from_pretrained("base"), "adapter"
    )  # as it was before


@pytest.mark.parametrize("way", ["checkpoint", "quantized"])
def test_hashes_taken_at_the_start_are_those_of_every_checkpoint(base, adapted, monkeypatch, way):
    def refused(*args):
        raise AssertionError("hashed again")

    save_adapter(adapted, "whole")
    monkeypatch.setattr(lora, "hash_parts", refused)
    if way == "quantized":
        base.is_quantized = True
    save_adapter(adapted, "adapter", rehash=way != "checkpoint")
    assert Path("adapter", BASE_FILE).read_text() == Path("whole", BASE_FILE).read_text()


def test_merging_warns_of_another_base(folder, adapted):
    save_adapter(adapted, "adapter")
    torch.manual_seed(7)
    saved_base(folder / "other")
    with pytest.warns(UserWarning, match="SHA-256"):
        merge_adapter("adapter", "merged", base="other")


# Merging what doesn't fit


def test_merging_refuses_a_folder_with_a_model(folder, adapted):
    save_adapter(adapted, "adapter")
    with pytest.raises(ValueError, match="`out` must be a folder without a model, got base"):
        merge_adapter("adapter", "base")


def test_merging_refuses_the_folder_of_an_adapter(folder, adapted):
    save_adapter(adapted, "adapter")
    with pytest.raises(ValueError, match="`out` must be a folder without an adapter, got adapter"):
        merge_adapter("adapter", "adapter")
    assert not Path("adapter", "config.json").exists()


def test_merging_refuses_what_is_no_adapter(base):
    with pytest.raises(ValueError, match="A PEFT folder is wanted, .* got base"):
        merge_adapter("base", "merged")


def test_merging_asks_for_a_base_that_is_gone(folder, adapted):
    save_adapter(adapted, "adapter")
    (folder / "base").rename(folder / "moved")
    with pytest.raises(ValueError, match="The base of adapter is wanted in ./base, got none there.*`--base`"):
        merge_adapter("adapter", "merged")
    merge_adapter("adapter", "merged", base="moved")


def test_merging_refuses_a_base_of_other_sizes(folder, adapted):
    save_adapter(adapted, "adapter")
    saved_base(folder / "wider", text={"intermediate_size": 40})
    saved_base(folder / "longer", text={"num_hidden_layers": 3})
    for name in ("wider", "longer"):
        with pytest.raises(ValueError, match="of the adapter adapter must fit its base"), expected_warning():
            merge_adapter("adapter", "merged", base=name)
    assert not (folder / "merged").exists()


def expected_warning() -> contextlib.AbstractContextManager:
    return pytest.warns(UserWarning, match="SHA-256")


# Quantised bases: what is asked for; that it trains is not tried here, it wants a GPU


def test_base_is_loaded_as_ever_without_quantization(base):
    assert loading_arguments(section(), "base") == {}
    assert loading_arguments(None, "base") == {}


def test_nf4_is_refused_without_a_gpu_and_without_bitsandbytes(base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="`lora.quantization: nf4` is for NVIDIA GPUs, got none"):
        loading_arguments(section(quantization="nf4"), "base")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None)
    with pytest.raises(ImportError, match="`pip install bitsandbytes`"):
        loading_arguments(section(quantization="nf4"), "base")


def test_nf4_quantises_the_language_model_but_its_output_layer(base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: object())
    monkeypatch.setattr(lora, "AutoConfig", hf_vlm.LlavaVisionLanguageConfig)
    asked = loading_arguments(section(quantization="nf4"), "base")["quantization_config"]
    assert asked.load_in_4bit and asked.bnb_4bit_quant_type == "nf4" and asked.bnb_4bit_use_double_quant
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16
    assert set(asked.llm_int8_skip_modules) == {"vision_model", "projector", "language_model.lm_head"}
