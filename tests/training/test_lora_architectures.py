"""LoRA on every architecture and every class of it: which layers, reloading in four ways, several adapters on one base."""

import copy
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_vlm
from hf_vlm import (
    CnnLstmForConditionalGeneration,
    TrOCREncoderDecoderForConditionalGeneration,
    VisionTransformerForImageClassification,
    VisionTransformerImageProcessor,
    VQVAEModel,
)
from hf_vlm.parts.adapter_loading import base_of_adapter
from hf_vlm.parts.base_weights import BASE_FILE, check_base, role_paths
from hf_vlm.parts.pretrained_model import HubModel
from hf_vlm.training.lora import (
    add_lora,
    check_adapter_gradients,
    loading_arguments,
    lora_config,
    merge_adapter,
    save_adapter,
)
from hf_vlm.training.lora_layers import LoraSection, target_layers
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner
from tests.models.llava.tiny_llava import prompt_of
from tests.models.trocr.tiny_models import tiny_reader
from tests.training.tiny_adapters import ADAPTABLE, Adaptable, said

FIRST = ("llava", "trocr", "cnn_lstm", "vae", "vqvae", "dvae", "vit_classifier", "swin_classifier")
every_class = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in ADAPTABLE]
)


def section(**settings) -> LoraSection:
    return LoraSection(**{"rank": 2, "alpha": 4, "dropout": 0.0, **settings})


def shake(adapted: nn.Module, seed: int) -> None:
    """As after training: every value that learns is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=generator)


@dataclass
class Trained:
    """A folder with `base` and the adapters `a` and `b`, and what models with them say.

    Attributes:
        said: by the name of the adapter; `base` without any.
    """

    case: Adaptable
    folder: Path
    said: dict[str, torch.Tensor]

    @property
    def model_class(self) -> type[HubModel]:
        return getattr(hf_vlm, json.loads((self.folder / "base" / "config.json").read_text())["architectures"][0])

    def load(self) -> HubModel:
        return self.model_class.from_pretrained(self.folder / "base")

    def check(self, model: nn.Module, name: str, atol: float = 1e-5) -> None:
        got, wanted = said(model, self.case.batch()), self.said[name]
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol * max(1.0, float(wanted.abs().max())))
        other = "base" if name != "base" else "a"
        assert (got - self.said[other]).abs().max() > 100 * atol, "the adapter changes nothing"


_MADE: dict[str, Trained] = {}


@pytest.fixture
def trained(name, tmp_path_factory, monkeypatch) -> Trained:
    """In a working directory from which the base's path in the adapters goes."""
    if name not in _MADE:
        case, folder = ADAPTABLE[name], tmp_path_factory.mktemp(name)
        monkeypatch.chdir(folder)
        case.make().save_pretrained("base")
        _MADE[name] = Trained(case, folder, {})
        _MADE[name].said["base"] = said(_MADE[name].load(), case.batch())
        for seed, adapter in enumerate("ab"):
            adapted = add_lora(_MADE[name].load(), section())
            shake(adapted, seed)
            _MADE[name].said[adapter] = said(adapted, case.batch())
            save_adapter(adapted, adapter)
    monkeypatch.chdir(_MADE[name].folder)
    return _MADE[name]


@pytest.fixture
def native_adapters(monkeypatch) -> None:
    """transformers' own adapter methods, all but `load_adapter`, want a peft that may not be out yet."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)


# Roles and layers


@pytest.mark.parametrize("name", ADAPTABLE)
def test_every_weight_belongs_to_a_role(name):
    model = ADAPTABLE[name].make()
    prefixes = [f"{path}." if path else "" for path in role_paths(model).values()]
    assert [weight for weight in model.state_dict() if not weight.startswith(tuple(prefixes))] == []


@pytest.mark.parametrize("name", ADAPTABLE)
def test_section_without_roles_means_the_part_that_writes_or_sees(name):
    case = ADAPTABLE[name]
    settled = LoraSection().settled(case.make())
    assert (settled.roles, settled.train) == (case.roles, case.train)


@every_class
def test_new_adapter_changes_nothing_and_learns(name, trained):
    for roles in (None, *([role] for role in trained.case.others)):
        config = section(roles=roles)
        adapted = add_lora(trained.load(), config)
        assert torch.equal(said(adapted, trained.case.batch()), trained.said["base"])
        outputs = adapted.train()(**trained.case.batch())
        maps = outputs.get("feature_maps") or [outputs.get("last_hidden_state")]
        loss = outputs.get("loss")
        (loss if loss is not None else sum(item.square().sum() for item in maps)).backward()
        check_adapter_gradients(adapted, config)
        settled = config.settled(adapted)
        paths = [role_paths(adapted)[role] for role in settled.roles + settled.train]
        learning = [
            key.removeprefix("base_model.model.") for key, value in adapted.named_parameters() if value.requires_grad
        ]
        assert all(key.startswith(tuple(paths)) for key in learning)
        assert len([key for key in learning if ".lora_" in key]) == 2 * len(target_layers(trained.load(), config))


@pytest.mark.parametrize(
    ("name", "roles", "told"),
    [
        ("vae", ["encoder", "decoder"], ["downsampling", "spatial", "pointwise", "output_layer", "input_layer"]),
        ("dvae", ["decoder"], ["shortcut", "0", "1", "2", "3", "output_layer"]),
        ("swin", ["encoder"], ["qkv_proj", "o_proj", "fc1", "fc2", "reduction"]),
        ("vit", ["encoder"], ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]),
        ("cnn_lstm", ["decoder"], ["embedding", "output"]),
        (
            "cnn_lstm_attention",
            ["decoder"],
            ["embedding", "query", "score", "gate", "from_hidden", "from_picture", "output"],
        ),
        ("cnn_lstm", ["vision"], ["convolution"]),
        ("trocr", ["projector"], ["projection"]),
    ],
)
def test_layers_of_a_part(name, roles, told):
    layers = target_layers(ADAPTABLE[name].make(), section(roles=roles))
    assert {layer.rpartition(".")[2] for layer in layers} == set(told)


def test_patch_embedding_takes_an_adapter_by_name_alone():
    model = ADAPTABLE["vit"].make()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and not set(convolutions) & set(target_layers(model, section()))
    short = convolutions[0].rpartition(".")[2]
    assert target_layers(model, section(target_modules=[short])) == convolutions


@pytest.mark.parametrize(
    ("name", "role", "target", "told"),
    [
        (
            "vae",
            "decoder",
            "upsampling",
            "`decoder.stages.0.upsampling` is a `ConvTranspose2d`, which peft has no adapter",
        ),
        ("dvae", "decoder", "input_layer", "`decoder.input_layer` is read as a table without being called"),
        ("cnn_lstm", "decoder", "lstm", "`decoder.lstm` is a `LSTM`, which peft has no adapter for"),
        ("vit", "encoder", "query", "got `query`. Correct it"),
        ("llava", "language", "lm_head", "got `lm_head`. Correct it"),
    ],
)
def test_layers_that_take_no_adapter_are_told_by_name(name, role, target, told):
    with pytest.raises(ValueError, match=told):
        target_layers(ADAPTABLE[name].make(), section(roles=[role], target_modules=[target]))


def test_part_without_weights_that_multiply_is_an_error():
    with pytest.raises(ValueError, match="got `codebook`, which has none. Name another"):
        target_layers(ADAPTABLE["vqvae"].make(), section(roles=["codebook"]))


def test_roles_of_another_architecture_are_an_error_that_names_the_models():
    with pytest.raises(
        ValueError, match="`lora.roles` must name parts of the model, `encoder`, `codebook`, `decoder`, got"
    ):
        target_layers(ADAPTABLE["vqvae"].make(), section(roles=["language"]))


def test_list_of_modules_can_not_train_in_full():
    with pytest.raises(ValueError, match="`lora.train` is for modules that are called, got `feature_norms`"):
        lora_config(ADAPTABLE["swin_backbone"].make(), section(train=["feature_norms"]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"groups": 2}, "has 2 groups"),
        ({"dilation": 2, "padding": 2}, "has dilation"),
        ({"padding_mode": "reflect"}, "a padding other than zeros"),
    ],
)
def test_convolution_that_an_adapter_does_not_merge_into_is_left_out(tmp_path, settings, told):
    model = ADAPTABLE["vae"].make()
    odd = nn.Conv2d(8, 8, 3, **{"padding": 1, **settings})
    model.encoder.stages[0].blocks[0].spatial = odd
    assert not any("stages.0.blocks.0.spatial" in layer for layer in target_layers(model, section()))
    with pytest.raises(ValueError, match=told):
        target_layers(model, section(target_modules=["spatial"]))


@pytest.mark.parametrize("settings", [{"groups": 2}, {"dilation": 2, "padding": 2}, {"padding_mode": "reflect"}])
def test_pefts_adapter_of_such_a_convolution_does_not_merge(settings):
    """Why they are left out: the day that this fails, they can be taken in."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, **{"padding": 1, **settings}))
    inputs = torch.randn(2, 4, 6, 6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
            unmerged = adapted(inputs)
            merged = adapted.merge_and_unload()(inputs)
    except (NotImplementedError, RuntimeError):
        return
    assert (merged - unmerged).abs().max() > 1e-3


# Reloading


@every_class
def test_folder_is_read_by_the_auto_class_and_by_the_models_own(name, trained, monkeypatch):
    for loader in (trained.case.auto, trained.model_class):
        model = loader.from_pretrained("a")
        assert type(model) is trained.model_class and not model.training
        trained.check(model, "a")
    monkeypatch.chdir("/")  # where the base's way leads nowhere
    trained.check(trained.model_class.from_pretrained(trained.folder / "a"), "a")


@every_class
def test_several_adapters_of_one_base_are_switched_and_taken_off(name, trained, native_adapters):
    model = trained.load()
    for adapter in "ab":
        model.load_adapter(adapter, adapter_name=adapter)
    for adapter in "aba":
        model.set_adapter(adapter)
        trained.check(model, adapter)
    model.disable_adapters()
    trained.check(model, "base")
    model.enable_adapters()
    trained.check(model, "a")
    model.delete_adapter("a")
    trained.check(model, "b")


@every_class
def test_folders_are_read_by_peft_alone_switched_merged_and_taken_off(name, trained):
    model = PeftModel.from_pretrained(trained.load(), "a", adapter_name="a")
    model.load_adapter("b", adapter_name="b")
    for adapter in "ba":
        model.set_adapter(adapter)
        trained.check(model, adapter)
    with model.disable_adapter():
        trained.check(model, "base")
    model.delete_adapter("a")
    model.set_adapter("b")
    trained.check(model.merge_and_unload(), "b", atol=1e-4)


@every_class
def test_weighted_sum_of_adapters_adds_what_each_adds(name, trained):
    plain = section(train=[])
    model = None
    for seed, adapter in enumerate("ab"):
        adapted = add_lora(trained.load(), plain)
        shake(adapted, seed)
        save_adapter(adapted, f"plain_{adapter}")
        if model is None:
            model = PeftModel.from_pretrained(trained.load(), "plain_a", adapter_name="a")
        else:
            model.load_adapter("plain_b", adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    base = trained.load()
    layer = target_layers(base, plain)[-1]
    deltas = {
        name: model.get_submodule(f"base_model.model.{layer}").get_delta_weight(name) for name in ("a", "b", "sum")
    }
    torch.testing.assert_close(deltas["sum"], 0.5 * deltas["a"] + 2 * deltas["b"])
    summed = said(model, trained.case.batch())
    save_adapter(model, "summed", adapter_name="sum")
    reloaded = PeftModel.from_pretrained(trained.load(), "summed/sum")
    torch.testing.assert_close(said(reloaded, trained.case.batch()), summed, rtol=0, atol=1e-5)
    assert check_base(trained.load(), "summed/sum")


@every_class
def test_merged_folder_says_what_the_adapter_says(name, trained, tmp_path):
    merged = merge_adapter("b", tmp_path / "merged")
    assert type(merged) is trained.model_class
    trained.check(merged, "b", atol=1e-4)
    reloaded = trained.model_class.from_pretrained(tmp_path / "merged")
    trained.check(reloaded, "b", atol=1e-4)
    stored = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert stored["architectures"] == [trained.model_class.__name__]
    assert set(reloaded.state_dict()) == set(trained.load().state_dict())


@pytest.mark.parametrize("name", ["llava", "trocr", "cnn_lstm_attention"])
def test_generated_text_is_that_of_the_merged_model(name, trained, tmp_path):
    config = section(roles=["vision", *trained.case.roles], train=trained.case.train)
    adapted = add_lora(trained.load(), config)
    shake(adapted, 2)
    save_adapter(adapted, "whole")
    batch = {key: value for key, value in trained.case.batch().items() if key != "labels"}
    if name == "llava":
        batch = prompt_of(trained.case.batch())
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
    wanted = merge_adapter("whole", tmp_path / "merged").generate(**batch, **settings)
    for model in (adapted.eval(), trained.model_class.from_pretrained("whole")):
        assert torch.equal(model.generate(**batch, **settings), wanted)


@pytest.mark.parametrize("name", ["vae", "vqvae", "dvae"])
def test_codes_and_pictures_are_those_of_the_merged_model(name, trained, tmp_path):
    adapted = add_lora(trained.load(), section(roles=["encoder", "decoder"]))
    shake(adapted, 2)
    save_adapter(adapted, "whole")
    merged = merge_adapter("whole", tmp_path / "merged")
    pixels = trained.case.batch()["pixel_values"]
    model = adapted.eval().get_base_model()
    codes = model.encode(pixels)
    torch.testing.assert_close(codes, merged.encode(pixels), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(codes), merged.decode(codes), rtol=0, atol=1e-4)
    assert (model.decode(codes) - trained.load().decode(codes)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vit_classifier"])
def test_merged_folder_has_the_image_processor_of_the_base(trained, tmp_path):
    processor = VisionTransformerImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained("base")
    try:
        merge_adapter("a", tmp_path / "merged")
    finally:
        os.remove("base/preprocessor_config.json")
    reloaded = AutoImageProcessor.from_pretrained(tmp_path / "merged")
    assert type(reloaded) is VisionTransformerImageProcessor and list(reloaded.image_mean) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("name", ["vit_classifier"])
def test_merging_leaves_nothing_where_it_fails(trained, tmp_path, monkeypatch):
    def fail(self, folder, **settings):
        Path(folder, "half").write_text("")
        raise OSError("the disk is full")

    monkeypatch.setattr(trained.model_class, "save_pretrained", fail)
    with pytest.raises(OSError, match="the disk is full"):
        merge_adapter("a", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["trocr"])
def test_generation_settings_lie_beside_the_adapter(trained, tmp_path):
    adapted = add_lora(trained.load(), section())
    adapted.generation_config.max_new_tokens, adapted.generation_config.num_beams = 7, 3
    save_adapter(adapted, "settings")
    for model in (
        trained.case.auto.from_pretrained("settings"),
        trained.model_class.from_pretrained("settings"),
        merge_adapter("settings", tmp_path / "merged"),
        trained.model_class.from_pretrained(tmp_path / "merged"),
    ):
        assert (model.generation_config.max_new_tokens, model.generation_config.num_beams) == (7, 3)
    assert trained.load().generation_config.num_beams != 3


# What adapters stand on


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_codebook_stays_as_it_is_below_adapters(tmp_path, monkeypatch, update):
    monkeypatch.chdir(tmp_path)
    model = ADAPTABLE["vqvae"].make()
    config = copy.deepcopy(model.config)
    config.codebook_update = update
    model = VQVAEModel(config)
    model.save_pretrained("base")
    base = VQVAEModel.from_pretrained("base")
    batch = ADAPTABLE["vqvae"].batch()
    before = {name: value.clone() for name, value in base.codebook.state_dict().items()}
    adapted = add_lora(base, section()).train()
    optimizer = torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(**batch).loss.backward()
        optimizer.step()
        adapted.train()
    for name, value in base.codebook.state_dict().items():
        assert torch.equal(value, before[name]), name
    save_adapter(adapted, "adapter")  # warns if a part is another than at the start
    assert "codebook" in json.loads(Path("adapter", BASE_FILE).read_text())["sha256"]


def test_codebook_that_trains_in_full_is_saved_with_the_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ADAPTABLE["vqvae"].make().save_pretrained("base")
    adapted = add_lora(VQVAEModel.from_pretrained("base"), section(train=["codebook"])).train()
    batch = ADAPTABLE["vqvae"].batch()
    codebook = adapted.get_base_model().codebook
    before = codebook.original_module.codewords.clone()
    for _ in range(3):
        adapted(**batch)
    assert not torch.equal(codebook.modules_to_save["default"].codewords, before)
    assert torch.equal(codebook.original_module.codewords, before)
    save_adapter(adapted, "adapter")
    wanted = said(adapted, batch)
    reloaded = VQVAEModel.from_pretrained("adapter")
    for name, value in codebook.modules_to_save["default"].state_dict().items():
        assert torch.equal(reloaded.codebook.modules_to_save["default"].state_dict()[name], value), name
    torch.testing.assert_close(said(reloaded, batch), wanted, rtol=0, atol=1e-6)
    merged = merge_adapter("adapter", "merged")
    assert torch.equal(merged.codebook.codewords, codebook.modules_to_save["default"].codewords)


def test_codebook_of_a_model_without_adapters_follows_its_batches():
    model = ADAPTABLE["vqvae"].make().train()
    before = model.codebook.codewords.clone()
    model(**ADAPTABLE["vqvae"].batch())
    assert not torch.equal(model.codebook.codewords, before)


@pytest.mark.parametrize("native", [False, True])
def test_batch_normalisation_below_adapters_keeps_its_averages(tmp_path, monkeypatch, native_adapters, native):
    monkeypatch.chdir(tmp_path)
    tiny_captioner(train_batch_norm=True).save_pretrained("base")
    base = CnnLstmForConditionalGeneration.from_pretrained("base")
    case = ADAPTABLE["cnn_lstm"]
    before = {name: value.clone() for name, value in base.state_dict().items() if "running" in name}
    assert before
    if native:
        base.add_adapter(lora_config(base, section(roles=["vision"])))
        adapted = base
    else:
        adapted = add_lora(base, section(roles=["vision"]))
    adapted.train()(**case.batch()).loss.backward()
    after = {name.replace("base_layer.", ""): value for name, value in base.state_dict().items() if "running" in name}
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    if not native:
        save_adapter(adapted, "adapter")


def test_batch_normalisation_without_adapters_follows_its_batches():
    model = tiny_captioner(train_batch_norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running_mean" in name}
    model(**ADAPTABLE["cnn_lstm"].batch())
    after = model.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_depthwise_convolutions_of_a_vision_part_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("timm")
    vision = {"model_type": "timm_wrapper", "architecture": "test_efficientnet", "num_classes": 0}
    model = tiny_captioner(vision=vision)
    grouped = {name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
    layers = target_layers(model, section(roles=["vision"]))
    assert grouped and layers and not grouped & set(layers)
    model.save_pretrained("base")
    base = CnnLstmForConditionalGeneration.from_pretrained("base")
    adapted = add_lora(base, section(roles=["vision"]))
    shake(adapted, 0)
    batch = ADAPTABLE["cnn_lstm"].batch()
    wanted = said(adapted, batch)
    save_adapter(adapted, "adapter")
    torch.testing.assert_close(said(merge_adapter("adapter", "merged"), batch), wanted, rtol=1e-4, atol=1e-4)


# Another base


@every_class
def test_another_base_is_warned_of_by_name_and_hash(name, trained, tmp_path):
    other = trained.load()
    role = next(iter(set(role_paths(other)) - set(trained.case.train)))
    wanted = json.loads(Path("a", BASE_FILE).read_text())["sha256"]
    assert set(wanted) == set(role_paths(other)) - set(trained.case.train)
    part = other.get_submodule(role_paths(other)[role])
    with torch.no_grad():
        next(iter(part.state_dict().values())).flatten()[0].add_(0.5)
    other.save_pretrained("other")
    for load in (lambda model: model.load_adapter("a"), lambda model: check_base(model, "a")):
        with pytest.warns(
            UserWarning, match=rf"adapter ./a wants ./base, on which it was trained, got ./other, .*{role} "
        ) as told:
            load(trained.model_class.from_pretrained("other"))
        message = str(told[-1].message)
        assert wanted[role] in message and len(message.split(wanted[role])[1].split("got ")[1].split(";")[0]) >= 64


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_size": 24}, "its tensors have other sizes"),
        ({"num_hidden_layers": 3}, "none for"),
        ({"num_hidden_layers": 1}, "too many"),
    ],
)
def test_base_of_other_sizes_is_an_error_that_names_both(tmp_path, monkeypatch, settings, told):
    from hf_vlm import VisionTransformerConfig
    from tests.training.tiny_adapters import VIT

    monkeypatch.chdir(tmp_path)
    for folder, changed in (("base", {}), ("other", settings)):
        config = VisionTransformerConfig(**{**VIT, "num_labels": 3, **changed})
        VisionTransformerForImageClassification(config).save_pretrained(folder)
    load = VisionTransformerForImageClassification.from_pretrained
    save_adapter(add_lora(load("base"), section()), "adapter")
    other = load("other")
    with pytest.raises(
        ValueError, match=rf"The adapter ./adapter must fit its base, got ./other, which it doesn't: .*{told}"
    ):
        other.load_adapter("adapter")
    with pytest.raises(ValueError, match="must fit its base, got other"), pytest.warns(UserWarning, match="SHA-256"):
        merge_adapter("adapter", "merged", base="other")


def test_adapter_of_one_part_does_not_see_another_adapters_whole_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ADAPTABLE["llava"].make().save_pretrained("base")
    load = hf_vlm.LlavaVisionLanguageForConditionalGeneration.from_pretrained
    save_adapter(add_lora(load("base"), section()), "with_projector")
    save_adapter(add_lora(load("base"), section(train=[])), "without")
    model = load("base")
    model.load_adapter("with_projector", adapter_name="one")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*SHA-256")
        model.load_adapter("without", adapter_name="two")


# Names of the base


@pytest.mark.parametrize("way", ["peft", "native", "card"])
def test_no_way_of_saving_tells_an_absolute_path(tmp_path, monkeypatch, native_adapters, way):
    monkeypatch.chdir(tmp_path)
    ADAPTABLE["vit_classifier"].make().save_pretrained("base")
    base = VisionTransformerForImageClassification.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    if way == "native":
        base.add_adapter(config)
        base.save_pretrained("adapter")
        assert check_base(VisionTransformerForImageClassification.from_pretrained("base"), "adapter")
        assert set(json.loads(Path("adapter", BASE_FILE).read_text())["sha256"]) == {"encoder"}
    else:
        adapted = get_peft_model(base, config)
        adapted.save_pretrained("adapter")
        if way == "card":
            adapted.create_or_update_model_card("adapter")
    stored = json.loads(Path("adapter", "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "./base"
    for path in Path("adapter").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_native_adapter_tells_the_hashes_of_its_base(tmp_path, monkeypatch, native_adapters):
    monkeypatch.chdir(tmp_path)
    ADAPTABLE["vit_classifier"].make().save_pretrained("base")
    base = AutoModelForImageClassification.from_pretrained("base")
    base.add_adapter(lora_config(base, section()))
    shake(base, 0)
    wanted = said(base, ADAPTABLE["vit_classifier"].batch())
    base.save_pretrained("adapter")
    reloaded = VisionTransformerForImageClassification.from_pretrained("adapter")
    torch.testing.assert_close(said(reloaded, ADAPTABLE["vit_classifier"].batch()), wanted, rtol=0, atol=1e-6)
    other = VisionTransformerForImageClassification.from_pretrained("base")
    with torch.no_grad():
        other.vision_model.final_norm.weight += 1
    with pytest.warns(UserWarning, match="SHA-256: encoder"):
        other.load_adapter("adapter")


@pytest.mark.parametrize("move", ["nothing", "around", "inside", "beside"])
def test_base_is_found_from_any_working_directory(tmp_path, monkeypatch, move):
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    monkeypatch.chdir(work)
    ADAPTABLE["trocr"].make().save_pretrained("runs/base")
    base = TrOCREncoderDecoderForConditionalGeneration.from_pretrained("runs/base")
    save_adapter(add_lora(base, section()), "runs/adapter")
    adapter = work / "runs" / "adapter"
    if move == "around":
        work.rename(tmp_path / "moved")
        adapter = tmp_path / "moved" / "runs" / "adapter"
    elif move in ("inside", "beside"):
        adapter.rename(tmp_path / "adapter")
        adapter = tmp_path / "adapter"
        (work / "runs" / "base").rename(adapter / "base" if move == "inside" else tmp_path / "base")
    monkeypatch.chdir("/")
    assert Path(base_of_adapter(adapter)).is_dir()
    TrOCREncoderDecoderForConditionalGeneration.from_pretrained(adapter)
    merge_adapter(adapter, tmp_path / "merged")


def test_base_that_is_nowhere_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ADAPTABLE["trocr"].make().save_pretrained("base")
    base = TrOCREncoderDecoderForConditionalGeneration.from_pretrained("base")
    save_adapter(add_lora(base, section()), "adapter")
    Path("base").rename("gone")
    with pytest.raises(
        FileNotFoundError, match=r"base model `./base` of the adapter adapter .*--base.*PeftModel.from_pretrained"
    ):
        TrOCREncoderDecoderForConditionalGeneration.from_pretrained("adapter")


def test_adapter_of_the_reader_that_comes_with_the_package_finds_it(tmp_path, monkeypatch):
    shipped, work, elsewhere = (
        tmp_path / "package" / "trocr-mini-lines",
        tmp_path / "in" / "a" / "work",
        tmp_path / "else",
    )
    tiny_reader().save_pretrained(shipped)
    monkeypatch.setattr("hf_vlm.parts.adapter_loading.default_ocr_model", lambda: shipped)
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    save_adapter(add_lora(TrOCREncoderDecoderForConditionalGeneration.from_pretrained(shipped), section()), "adapter")
    elsewhere.mkdir()
    Path("adapter").rename(elsewhere / "adapter")
    monkeypatch.chdir(elsewhere)
    assert base_of_adapter("adapter") == str(shipped)


# Four bits


@pytest.mark.parametrize("name", ["vae", "vit_classifier", "swin", "cnn_lstm"])
def test_nf4_is_refused_where_no_language_model_is(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="`lora.quantization: nf4` is for models with a language model"):
        loading_arguments(section(quantization="nf4"), "base")


@pytest.mark.parametrize("name", ["trocr"])
def test_nf4_of_a_reader_keeps_its_decoder_in_four_bits(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: object())
    asked = loading_arguments(section(quantization="nf4"), "base")["quantization_config"]
    output = [name for name in asked.llm_int8_skip_modules if name.startswith("decoder.")]
    assert {"encoder.vision_model", "encoder.projection", *output} == set(asked.llm_int8_skip_modules)
    model = trained.load()
    assert [model.get_submodule(name) for name in output] == [model.get_output_embeddings()]
