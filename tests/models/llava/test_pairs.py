"""Every family of vision models and of language models, joined: what `scripts/try_pairs.py` tries, as tests.

The quick ones join each vision model with Llama and each language model with CLIP; all steps of all pairs are slow.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.parts.language_model import check_language_model, check_reading, check_static_cache, reads_padding

SCRIPTS = Path(__file__).parents[3] / "scripts"
sys.path.append(str(SCRIPTS))  # as for a script that is run: its siblings are found

import tiny_parts  # noqa: E402
import try_pairs  # noqa: E402
from tiny_parts import LANGUAGE_FAMILIES, REFUSED_FAMILIES, VISION_FAMILIES, tiny_language_model  # noqa: E402
from try_pairs import Folders, try_pair  # noqa: E402

VISION_STEPS = ("assemble", "picture", "generate", "reload")
LANGUAGE_STEPS = ("assemble", "text", "batch", "generate", "reload")
WITHOUT_STATIC_CACHE = {"gpt_neo", "falcon-alibi"}
READ_PADDING = {"recurrent_gemma"}
BESIDE_TORCH = {"timm-resnet": "timm", "timm-vit": "timm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("parts"))


def assert_good(folders: Folders, vision: str, language: str, steps=try_pairs.STEPS) -> set[str]:
    """Takes the pair through the steps; what was refused by name."""
    if vision in BESIDE_TORCH:
        pytest.importorskip(BESIDE_TORCH[vision])
    result = try_pair(folders, vision, language, steps)
    assert result.is_good, result.line()
    return {note for note in result.notes if "refused" in note}


def refusals(language: str, steps=try_pairs.STEPS) -> set[str]:
    notes = set()
    if language in READ_PADDING:
        notes.add("padding in front refused")
    if language in WITHOUT_STATIC_CACHE and "static" in steps:
        notes.add("static cache refused")
    return notes


@pytest.mark.parametrize("vision", VISION_FAMILIES)
def test_every_vision_model_is_read_by_llama(vision, folders):
    assert assert_good(folders, vision, "llama", VISION_STEPS) == set()


@pytest.mark.parametrize("language", [name for name in LANGUAGE_FAMILIES if name != "llama"])
def test_every_language_model_reads_clip(language, folders):
    assert assert_good(folders, "clip", language, LANGUAGE_STEPS) == refusals(language, LANGUAGE_STEPS)


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("swin", "mamba")])
def test_pair_trains_decodes_and_takes_adapters(vision, language, folders):
    assert assert_good(folders, vision, language) == refusals(language)


@pytest.mark.parametrize("language", sorted(WITHOUT_STATIC_CACHE))
def test_static_cache_is_refused_where_it_would_give_other_answers(language, folders):
    assert assert_good(folders, "clip", language, ("assemble", "generate", "static")) == {"static cache refused"}


@pytest.mark.slow
@pytest.mark.parametrize(("vision", "language"), try_pairs.chosen_pairs(None, None, full=True))
def test_every_pair_trains_decodes_and_takes_adapters(vision, language, folders):
    assert assert_good(folders, vision, language) == refusals(language)


# Refusals


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(refuse))


@pytest.mark.parametrize("family", [name for name, refused in REFUSED_FAMILIES.items() if refused.before_weights])
def test_language_model_that_can_not_be_joined_is_refused_before_weights_load(family, folders, tmp_path, no_weights):
    config, word, _ = REFUSED_FAMILIES[family]
    config().save_pretrained(tmp_path)
    vision = folders.vision("clip")
    with pytest.raises(ValueError, match=word) as error:
        LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(vision, tmp_path)
    assert f"`{config().model_type}`" in str(error.value)


@pytest.mark.parametrize("family", [name for name, refused in REFUSED_FAMILIES.items() if not refused.before_weights])
def test_language_model_that_reads_otherwise_is_refused(family, folders, tmp_path):
    config, word, _ = REFUSED_FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config())
    tiny_parts.randomise(model)
    model.save_pretrained(tmp_path)
    tiny_parts.tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=word) as error:
        LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(folders.vision("clip"), tmp_path)
    assert f"`{config().model_type}`" in str(error.value)


# What is tried of a language model


def of_each_kind(families) -> list:
    """All of them, those beyond one of each kind as slow."""
    kinds = {"llama", "gpt2", "gpt_neo", "falcon-alibi", "gemma2", "mamba", "recurrent_gemma", "lfm2"}
    return [name if name in kinds else pytest.param(name, marks=pytest.mark.slow) for name in families]


@pytest.mark.parametrize("family", of_each_kind(LANGUAGE_FAMILIES))
def test_trial_of_a_language_model_tells_what_it_can(family):
    model = tiny_language_model(family)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    model.train()
    check_language_model(model.config)
    check_reading(model)
    assert reads_padding(model) is (family in READ_PADDING)
    if family in WITHOUT_STATIC_CACHE:
        with pytest.raises(ValueError, match="static cache is wanted"):
            check_static_cache(model, 40)
    else:
        check_static_cache(model, 40)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("family", ["llama", "mamba", "gpt2"])
def test_trial_works_in_half_precision(family):
    model = tiny_language_model(family).to(torch.bfloat16)
    check_reading(model)
    assert not reads_padding(model)
    check_static_cache(model, 40)


# The script


def test_script_tells_the_step_that_failed_and_exits_with_it(monkeypatch, capsys, tmp_path):
    def shifted(self):
        raise try_pairs.Failed("logits of a text without pictures: off by 1, of at most 2")

    monkeypatch.setattr(try_pairs.Pair, "text", shifted)
    report = tmp_path / "report.json"
    status = try_pairs.main(["--vision", "clip", "--language", "llama", "--json", str(report)])
    assert status == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == "clip + llama: FAILED at text: logits of a text without pictures: off by 1, of at most 2"
    assert last.startswith("0 of 1 pairs ok")
    assert '"step": "text"' in report.read_text(encoding="utf-8")


def test_script_chooses_each_family_once():
    pairs = try_pairs.chosen_pairs(None, None, full=False)
    assert len(pairs) == len(set(pairs)) == len(VISION_FAMILIES) + len(LANGUAGE_FAMILIES) - 1
    assert try_pairs.chosen_pairs(["swin"], None, full=False) == [("swin", "llama")]
    assert len(try_pairs.chosen_pairs(["swin", "vit"], ["gpt2", "opt"], full=False)) == 4
