"""What the ONNX runtime writes is what `generate` writes, token for token, whatever the batch, widths and padding."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.sharing.onnx import export as onnx_export
from hf_vlm.sharing.onnx import runtime as onnx_runtime
from hf_vlm.sharing.onnx.export import export_onnx
from hf_vlm.sharing.onnx.runtime import load_onnx
from scripts import tiny_parts
from tests.models.cnn_lstm.tiny_captioners import caption_batch, tiny_captioner
from tests.models.llava.tiny_llava import picture_batch, prompt_of, tiny_llava
from tests.models.trocr.tiny_models import END, START, line_batch, tiny_config
from tests.sharing.onnx.tiny_onnx import parting_ends, random_weights, saved_reader

WIDTHS = (40, 24, 37, 8)  # pixels, padded to 40


def lines(widths=WIDTHS):
    """Pictures, as the processor would pad them."""
    batch = line_batch(size=(16, 40), widths=widths)
    return {name: batch[name] for name in ("pixel_values", "pixel_mask")}


def arrays(inputs):
    return {name: value.numpy() for name, value in inputs.items()}


def end_tokens(model, inputs, start=1):
    """Tokens that end the model's texts at different places."""
    with torch.no_grad():
        return parting_ends(model.generate(**inputs, do_sample=False, eos_token_id=None, pad_token_id=0), start)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader that ends its texts at different places, and its runtime."""
    folder = tmp_path_factory.mktemp("reader")
    model = saved_reader(folder / "model", generation={"max_new_tokens": 12})
    model.generation_config.eos_token_id = end_tokens(model, lines())
    model.save_pretrained(folder / "model")
    export = export_onnx(folder / "model", folder / "onnx")
    return model, load_onnx(folder / "onnx"), export


def test_reader_writes_what_generate_writes_for_lines_of_any_width(reader):
    model, runtime, export = reader
    assert export.same_tokens == 1
    lengths = set()
    for widths in (WIDTHS, (40,), (40, 40, 33)):
        inputs = lines(widths)
        wanted = model.generate(**inputs, do_sample=False)
        np.testing.assert_array_equal(runtime.generate(**arrays(inputs)), wanted)
        lengths |= set((wanted != 0).sum(dim=1).tolist())
    assert len(lengths) > 1  # rows end at different places
    inputs = line_batch(widths=(48, 20))  # the whole width that the encoder has positions for
    whole = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
    np.testing.assert_array_equal(runtime.generate(**arrays(whole)), model.generate(**whole, do_sample=False))


def test_reader_reads_a_padded_line_as_it_reads_it_alone(reader):
    _, runtime, _ = reader
    inputs = arrays(lines((40, 24)))
    padded = runtime.generate(**inputs)[1]
    alone = runtime.generate(inputs["pixel_values"][1:, :, :, :24])[0]
    np.testing.assert_array_equal(padded[: len(alone)], alone)


def test_reader_searches_by_beams_and_obeys_rules_as_generate_does(reader):
    model, runtime, _ = reader
    inputs = lines()
    for settings in (
        {"num_beams": 3},
        {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True},
        {"suppress_tokens": [5, 6, 7, 8, 9, 10, 11, 12], "min_new_tokens": 6},
        {"forced_eos_token_id": END, "max_new_tokens": 4},
        {"no_repeat_ngram_size": 1, "forced_bos_token_id": 3},
    ):
        wanted = model.generate(**inputs, do_sample=False, **settings)
        np.testing.assert_array_equal(runtime.generate(**arrays(inputs), **settings), wanted, err_msg=str(settings))


def test_reader_goes_on_from_a_prompt_as_generate_does(reader):
    model, runtime, _ = reader
    inputs = lines()
    prompt = torch.tensor([[START, 9, 5], [START, 7, 7], [START, 30, 6], [START, 3, 4]])
    wanted = model.generate(**inputs, decoder_input_ids=prompt, do_sample=False, max_new_tokens=20)
    got = runtime.generate(**arrays(inputs), prompt_ids=prompt.numpy(), max_new_tokens=20)
    np.testing.assert_array_equal(got, wanted)
    assert got.shape[1] <= 21  # as many as the decoder has positions for, and the last token


def test_reader_reads_pictures_through_its_processor(reader):
    model, runtime, _ = reader
    pictures = [
        Image.fromarray(np.random.default_rng(row).integers(0, 255, (20, 30 + 9 * row), np.uint8)) for row in (0, 1)
    ]
    prepared = runtime.processor(images=pictures)
    wanted = runtime.processor.batch_decode(model.generate(**prepared, do_sample=False), skip_special_tokens=True)
    assert runtime.read(pictures) == [text.strip() for text in wanted]
    prepared = runtime.processor(images=pictures[:1])
    wanted = runtime.processor.batch_decode(model.generate(**prepared, do_sample=False), skip_special_tokens=True)
    assert runtime.read(pictures[0]) == [text.strip() for text in wanted]


_BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "hf_vlm"):
            raise RuntimeError(f"{name} was imported")

sys.meta_path.insert(0, Block())
folder, inputs, out = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
from runtime import load_onnx
np.save(out, load_onnx(folder).generate(**np.load(inputs)))
"""


def test_exported_folder_reads_arrays_where_neither_torch_nor_the_package_is(reader, tmp_path):
    model, runtime, _ = reader
    np.savez(tmp_path / "inputs.npz", **arrays(lines()))
    paths = [str(path) for path in (runtime.folder, tmp_path / "inputs.npz", tmp_path / "ids.npy")]
    done = subprocess.run([sys.executable, "-c", _BLOCKED, *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), model.generate(**lines(), do_sample=False))
    for name in ("runtime.py", "decoding.py"):
        first = (runtime.folder / name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# Copied from hf-vlm ") and "Apache-2.0" in first


def test_comparison_reaches_behind_the_first_token_of_a_reader_that_ends_at_once(reader, tmp_path, monkeypatch):
    model, runtime, _ = reader
    inputs = onnx_export._random_inputs(model, runtime.settings, "text_reader")
    with torch.no_grad():
        free = model.generate(**inputs, do_sample=False, eos_token_id=None, pad_token_id=0)
    ends = free[:, 1].unique().tolist()
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    assert model.generate(**inputs, do_sample=False).shape[1] == 2
    shutil.copytree(runtime.folder, tmp_path / "onnx")
    path = tmp_path / "onnx" / onnx_runtime.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["settings"]["generation"]["eos_token_ids"] = ends
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert onnx_export._same_tokens(model, tmp_path / "onnx", "text_reader") == (1.0, 0.0)
    run = onnx_runtime._CachedWriter.run

    def forget(self, **tensors):
        """A cache whose keys are lost."""
        self.past = {name: np.zeros_like(value) for name, value in self.past.items()}
        return run(self, **tensors)

    monkeypatch.setattr(onnx_runtime._CachedWriter, "run", forget)
    same, margin = onnx_export._same_tokens(model, tmp_path / "onnx", "text_reader")
    assert same < 1 and margin > onnx_export._NEAR_TIE


def test_prompts_with_fractions_are_refused(reader):
    _, runtime, _ = reader
    with pytest.raises(ValueError, match=r"`prompt_ids` must be whole numbers, got 5.5"):
        runtime.generate(**arrays(lines((40,))), prompt_ids=[[START, 5.5]])
    assert runtime.generate(**arrays(lines((40,))), prompt_ids=[[1.0, 5.0]]).dtype == np.int64


@pytest.mark.parametrize("size", [(16, 44), (16, 56), (8, 40)])
def test_lines_of_a_size_that_the_model_cannot_read_are_refused(reader, size):
    _, runtime, _ = reader
    with pytest.raises(ValueError, match=f"16 x 48 pixels, or narrower by multiples of 8, got {size[0]} x {size[1]}"):
        runtime.generate(np.zeros((1, 1, *size), dtype=np.float32))


# Other readers


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.3, 0.8])
def test_reader_with_a_ctc_head_lets_it_speak_as_generate_does(tmp_path, weight):
    line = {"patch_size": (16, 4)}  # one row of places
    model = saved_reader(
        tmp_path / "model", line, ctc_loss_weight=1.0, ctc_decoding_weight=weight, generation={"max_new_tokens": 9}
    )
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    runtime = load_onnx(tmp_path / "onnx")
    joint, alone = 0, 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        inputs = lines()
        inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape, generator=generator) * (1 + seed)
        wanted = model.generate(**inputs, do_sample=False)
        np.testing.assert_array_equal(runtime.generate(**arrays(inputs)), wanted)
        settings = {"suppress_tokens": [39]}  # with a rule the decoder is asked alone
        by_decoder = model.generate(**inputs, do_sample=False, **settings)
        np.testing.assert_array_equal(runtime.generate(**arrays(inputs), **settings), by_decoder)
        joint, alone = joint + 1, alone + (wanted.tolist() != by_decoder.tolist())
    assert alone > 0  # the head changed a reading


TEXT = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODERS = {
    "sinusoidal-pre": {"norm_position": "pre", "position_embedding": "sinusoidal", "scale_embedding": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "n_positions": 32,
        "add_cross_attention": True,
        **TEXT,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 3,
        "decoder_ffn_dim": 32,
        "is_decoder": True,
        "max_position_embeddings": 32,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
        **TEXT,
    },
    "bert": {
        "model_type": "bert",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 32,
        "is_decoder": True,
        "add_cross_attention": True,
        "max_position_embeddings": 32,
        **TEXT,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_readers_with_other_decoders_write_what_generate_writes(name, tmp_path):
    model = saved_reader(tmp_path / "model", text=DECODERS[name], generation={"max_new_tokens": 10})
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    inputs = lines()
    wanted = model.generate(**inputs, do_sample=False)
    np.testing.assert_array_equal(load_onnx(tmp_path / "onnx").generate(**arrays(inputs)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2", "resnet", "timm-resnet", "timm-vit", "hf_vlm_swin", "swin", "beit"])
def test_readers_with_other_encoders_write_what_generate_writes(name, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    vision = tiny_parts.VISION_FAMILIES[name]().to_dict()
    if name == "resnet":
        vision["image_size"] = 64
    config = tiny_config(vision=vision, text={"cross_attention_size": None, "norm_position": "pre"})
    model = random_weights(TrOCREncoderDecoderForConditionalGeneration(config))
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    export = export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert any("no processor" in note for note in export.notes)
    runtime = load_onnx(tmp_path / "onnx")
    pixels = torch.randn(2, 3, *runtime.settings["image_size"])
    np.testing.assert_array_equal(runtime.generate(pixels.numpy()), model.generate(pixels, do_sample=False))


# Captioners and assistants


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"attention": "additive"}, {"num_hidden_layers": 2, "attention": "additive"}])
def test_captioner_writes_what_generate_writes(settings, tmp_path):
    model = tiny_captioner(**settings, vision={**_RESNET, "image_size": (48, 32)})
    pixels = caption_batch(4)["pixel_values"]
    model.generation_config.eos_token_id = end_tokens(model, {"pixel_values": pixels})
    model.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    runtime = load_onnx(tmp_path / "onnx")
    for search in ({}, {"num_beams": 3}, {"max_new_tokens": 4, "suppress_tokens": [4, 5]}):
        wanted = model.generate(pixels, do_sample=False, **search)
        np.testing.assert_array_equal(runtime.generate(pixels.numpy(), **search), wanted, err_msg=str(search))


_RESNET = {
    "model_type": "resnet",
    "embedding_size": 6,
    "hidden_sizes": (6, 8, 10),
    "depths": (1, 1, 1),
    "layer_type": "basic",
}


def assistant(name, tmp_path):
    """An assistant on a language model of a family, its runtime, and prompts with two, one and no pictures."""
    text = tiny_parts.LANGUAGE_FAMILIES[name]().to_dict() | {"vocab_size": 40}
    model = tiny_llava(text=text)
    model.generation_config.max_new_tokens = 10
    inputs = prompt_of(picture_batch(model.config.num_image_tokens))
    ends = end_tokens(model, inputs, inputs["input_ids"].shape[1])
    model.generation_config.update(eos_token_id=ends, pad_token_id=0)
    model.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "onnx")
    return model, load_onnx(tmp_path / "onnx"), inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "gpt2", "opt", "gemma3_text", "mistral", "bloom", "smollm3"]
)
def test_assistant_writes_what_generate_writes(name, tmp_path):
    model, runtime, inputs = assistant(name, tmp_path)
    for search in ({}, {"num_beams": 2}):
        wanted = model.generate(**inputs, do_sample=False, **search)
        np.testing.assert_array_equal(runtime.generate(**arrays(inputs), **search), wanted, err_msg=str(search))
    words = {"input_ids": torch.tensor([[1, 5, 9]])}
    np.testing.assert_array_equal(runtime.generate(**arrays(words)), model.generate(**words, do_sample=False))
    with pytest.raises(ValueError, match="image tokens a picture, got 12 for 0 pictures"):
        runtime.generate(np.full((1, 12), model.config.image_token_id))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), [("mixtral", "grouped_mm"), ("mamba", "`mamba`, whose cache has")])
def test_a_language_model_that_cannot_be_written_is_refused_by_name(name, fault, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){fault}.*optimum"):
        assistant(name, tmp_path)
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_a_saved_setting_that_the_runtime_does_not_know_is_refused_by_name(tmp_path):
    saved_reader(tmp_path / "model", generation={"bad_words_ids": [[5]]})
    with pytest.raises(ValueError, match="`bad_words_ids`"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
