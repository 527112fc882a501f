"""Greedy decoding gives transformers' tokens, by our loops where they know the setting and by transformers' where not."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.models.trocr import greedy
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from tests.model_contract import train
from tests.models.trocr.tiny_models import END, VOCAB_SIZE, line_batch, tiny_config

WIDTHS = (48, 24, 37, 16, 40)
KINDS = {
    "post-norm": {},
    "pre-norm": {"norm_position": "pre", "embedding_norm": False},
    "sinusoidal": {"position_embedding": "sinusoidal", "first_position": 1, "scale_embedding": True},
}


def theirs(model, input_ids, **inputs):
    """transformers' own loop."""
    return GenerationMixin._sample(model, input_ids, **inputs)


@pytest.fixture(scope="module")
def pictures():
    batch = line_batch(widths=WIDTHS)
    return {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}


@pytest.fixture(scope="module", params=KINDS)
def reader(request):
    """A reader that knows five lines by heart, whose texts end at three different places."""
    torch.manual_seed(0)
    model = TrOCREncoderDecoderForConditionalGeneration(tiny_config(text=KINDS[request.param]))
    train(model, line_batch(widths=WIDTHS), 60, 1e-2)
    return model.eval()


@pytest.fixture
def only_ours(monkeypatch):
    """transformers' loop refuses, so what is read was read by ours."""

    def refuse(*args, **kwargs):
        raise AssertionError("transformers' loop decoded")

    monkeypatch.setattr(GenerationMixin, "_sample", refuse)


@pytest.fixture
def recorded(monkeypatch):
    """As if on CUDA, with each step run where a recording would be played back."""
    monkeypatch.setattr(greedy, "can_be_recorded", lambda decoder, tokens: True)


COVERED = [
    {},
    {"max_new_tokens": 3},
    {"max_new_tokens": 1},
    {"min_new_tokens": 9, "max_new_tokens": 12},
    {"min_length": 9},
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 1, "max_new_tokens": 15},
    {"bad_words_ids": [[5], [9, 11]], "max_new_tokens": 15},
    {"suppress_tokens": list(range(3, 30))},
    {"begin_suppress_tokens": list(range(3, 39))},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": END, "max_new_tokens": 4},
    {"eos_token_id": [END, 17, 23]},
    {"eos_token_id": []},
    {"pad_token_id": END},
]


@pytest.mark.parametrize("settings", COVERED, ids=str)
def test_our_loop_writes_what_transformers_loop_writes(reader, pictures, settings, monkeypatch):
    settings = dict(settings)
    if settings.get("eos_token_id") == []:  # no end at all
        reader = copy.deepcopy(reader)
        reader.generation_config.eos_token_id = reader.config.eos_token_id = None
        settings = {"max_new_tokens": 10}
    wanted = reader.generate(**pictures, **settings, custom_generate=theirs)
    monkeypatch.setattr(GenerationMixin, "_sample", None)
    assert torch.equal(reader.generate(**pictures, **settings), wanted)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_pictures_without_padding_are_read_the_same(reader, implementation, only_ours, monkeypatch):
    reader = copy.deepcopy(reader)
    reader.set_attn_implementation(implementation)
    pixels = line_batch(widths=WIDTHS)["pixel_values"]
    found = reader.generate(pixel_values=pixels, max_new_tokens=15)
    monkeypatch.undo()
    assert torch.equal(found, reader.generate(pixel_values=pixels, max_new_tokens=15, custom_generate=theirs))


def test_texts_that_have_ended_leave_the_batch(reader, pictures, monkeypatch):
    rows = []
    next_logits = TrOCREncoderDecoderForCausalLM.next_logits

    def counting(decoder, token_ids, *args, **kwargs):
        rows.append(len(token_ids))
        return next_logits(decoder, token_ids, *args, **kwargs)

    monkeypatch.setattr(TrOCREncoderDecoderForCausalLM, "next_logits", counting)
    sequences = reader.generate(**pictures)
    lengths = (sequences[:, 1:] == END).int().argmax(dim=1) + 1  # 7, 6, 5, 7, 6 tokens
    assert lengths.tolist() == [7, 6, 5, 7, 6]
    # The one that ends first is not worth a copy of the caches; with the next two ended, two stay.
    assert rows == [5, 5, 5, 5, 5, 5, 2]


class Bias(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores + torch.arange(VOCAB_SIZE) / 100


class Silent(BaseStreamer):
    def put(self, value):
        pass

    def end(self):
        pass


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


NOT_COVERED = {
    "sampling": lambda: {"do_sample": True},
    "static cache": lambda: {"cache_implementation": "static"},
    "no cache": lambda: {"use_cache": False},
    "a cache of the user's": lambda: {"cache": EncoderDecoderCache(DynamicCache(), DynamicCache())},
    "a dict": lambda: {"return_dict_in_generate": True, "output_scores": True},
    "a streamer": lambda: {"streamer": Silent(), "max_new_tokens": 3},
    "another processor": lambda: {"logits_processor": LogitsProcessorList([Bias()])},
    "another rule": lambda: {"stopping_criteria": [Never()]},
    "a time limit": lambda: {"max_time": 100.0},
    "a prompt": lambda: {"decoder_input_ids": torch.full((len(WIDTHS), 2), 5)},
    "a mask of the text": lambda: {"decoder_attention_mask": torch.ones(len(WIDTHS), 1, dtype=torch.long)},
    "beams": lambda: {"num_beams": 2},
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_other_settings_are_left_to_transformers(reader, pictures, name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("our loop decoded")

    monkeypatch.setattr("hf_vlm.models.trocr.modeling_trocr.decode_greedily", refuse)
    reader.generate(**pictures, **NOT_COVERED[name]())


def test_what_hangs_on_the_model_is_not_passed_by(reader, pictures):
    """Hooks see every call; FSDP and quantisers live by them."""
    reader = copy.deepcopy(reader)
    seen = []
    for module in (reader, reader.decoder, reader.decoder.model):
        before = len(seen)
        with_hook = module.register_forward_hook(lambda *args: seen.append(1))
        reader.generate(**pictures, max_new_tokens=3)
        with_hook.remove()
        assert len(seen) == before + 3
        module.forward = lambda *args, call=module.forward, **kwargs: seen.append(1) or call(*args, **kwargs)
        reader.generate(**pictures, max_new_tokens=3)
        del module.forward
        assert len(seen) == before + 6


def test_training_mode_and_subclasses_are_left_to_transformers(reader, pictures, monkeypatch):
    class Favours7(TrOCREncoderDecoderForConditionalGeneration):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits[..., 7] += 1000
            return outputs

    other = Favours7(copy.deepcopy(reader.config)).eval()
    assert (other.generate(**pictures, max_new_tokens=3)[:, 1:] == 7).all()
    other = copy.deepcopy(reader)
    other.decoder.__class__ = type("Derived", (TrOCREncoderDecoderForCausalLM,), {})

    def refuse(*args, **kwargs):
        raise AssertionError("our loop decoded")

    monkeypatch.setattr("hf_vlm.models.trocr.modeling_trocr.decode_greedily", refuse)
    other.generate(**pictures, max_new_tokens=3)
    copy.deepcopy(reader).train().generate(**pictures, max_new_tokens=3)  # has dropout


def test_encoder_output_of_any_kind_is_read(reader, pictures, only_ours):
    pixels = pictures["pixel_values"]
    tokens = reader.encoder(pixels).last_hidden_state
    found = reader.generate(encoder_outputs=BaseModelOutput(last_hidden_state=tokens))
    assert torch.equal(found, reader.generate(pixel_values=pixels))


@pytest.mark.parametrize("how", ["grown caches", "recorded steps"])
@pytest.mark.parametrize("settings", [{}, {"max_new_tokens": 3}, {"repetition_penalty": 3.0}], ids=str)
def test_confidences_need_no_second_pass(reader, pictures, settings, how, monkeypatch):
    tokenizer = build_character_tokenizer(alphabet="".join(map(chr, range(97, 97 + VOCAB_SIZE - 4))))
    with monkeypatch.context() as patch:
        patch.setattr("hf_vlm.models.trocr.modeling_trocr.covers", lambda *args, **kwargs: False)
        wanted = reader.recognize(**pictures, tokenizer=tokenizer, **settings)
    if how == "recorded steps":
        monkeypatch.setattr(greedy, "can_be_recorded", lambda decoder, tokens: True)
    monkeypatch.setattr(reader.decoder.model, "forward", None, raising=False)  # would be the second pass
    monkeypatch.setattr(greedy, "is_intercepted", lambda module: False)
    found = reader.recognize(**pictures, tokenizer=tokenizer, **settings)
    for one, other in zip(found, wanted, strict=True):
        assert one.text == other.text and one.text
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert [word["confidence"] for word in one.words] == pytest.approx(
            [word["confidence"] for word in other.words], abs=1e-5
        )


# Recorded steps, run one by one where a GPU would play them back


@pytest.mark.parametrize(
    "settings", [{}, {"max_new_tokens": 1}, {"max_new_tokens": 15}, {"pad_token_id": END}], ids=str
)
@pytest.mark.parametrize("padded", [True, False])
def test_recorded_steps_write_the_same(reader, pictures, settings, padded, recorded, only_ours, monkeypatch):
    given = pictures if padded else {"pixel_values": pictures["pixel_values"]}
    found = reader.generate(**given, **settings)
    monkeypatch.undo()
    assert torch.equal(found, reader.generate(**given, **settings, custom_generate=theirs))


def test_recorded_steps_serve_later_batches_and_changed_weights(reader, pictures, recorded):
    reader = copy.deepcopy(reader)

    def check(**given):
        assert torch.equal(reader.generate(**given), reader.generate(**given, custom_generate=theirs))
        return greedy._recorded[reader.decoder]

    with torch.inference_mode():
        first = check(**pictures)
    turned = {name: value.flip(0) for name, value in pictures.items()}
    assert check(**turned) is first
    narrow = {name: value[..., :32] for name, value in turned.items()}  # fewer picture tokens
    assert check(**narrow) is first
    assert check(**pictures) is first
    with torch.no_grad():
        reader.decoder.lm_head.weight.mul_(-1)
    assert check(**pictures) is first
    assert check(**pictures, eos_token_id=17) is not first
    fewer = check(**{name: value[:2] for name, value in pictures.items()})
    reader.decoder.model.final_norm = torch.nn.LayerNorm(reader.decoder.config.hidden_size)
    reader.decoder.lm_head.weight = torch.nn.Parameter(reader.decoder.lm_head.weight.clone())
    assert check(**{name: value[:2] for name, value in pictures.items()}) is not fewer


def test_batch_with_a_broken_picture_spoils_no_later_one(reader, pictures, recorded):
    wanted = reader.generate(**pictures)
    steps = greedy._recorded[reader.decoder]
    broken = {name: value.clone() for name, value in pictures.items()}
    broken["pixel_values"][0] = torch.finfo(torch.float32).max  # finite, and NaN from the first product on
    reader.generate(**broken)
    narrow = {name: value[..., :32] for name, value in pictures.items()}  # leaves places of the pictures unused
    assert torch.equal(reader.generate(**narrow), reader.generate(**narrow, custom_generate=theirs))
    assert torch.equal(reader.generate(**pictures), wanted)
    assert greedy._recorded[reader.decoder] is steps


def test_recorded_step_can_be_recorded(reader, pictures, recorded, monkeypatch):
    """Played back, a step reads and writes at the places of its recording, and the CPU learns nothing of it."""
    reader.generate(**pictures)
    steps = greedy._recorded[reader.decoder]
    assert steps.position.item() == greedy.STEPS_BETWEEN_LOOKS  # texts of at most 7 tokens: one look
    tensors = {name: value for name, value in vars(steps).items() if isinstance(value, torch.Tensor)}
    layers = [*steps.cache.self_attention_cache.layers, *steps.cache.cross_attention_cache.layers]
    held = [*tensors.values(), *(tensor for layer in layers for tensor in (layer.keys, layer.values))]
    places = [tensor.data_ptr() for tensor in held]

    class NoLooks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"), name
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), NoLooks():
        steps.step(reader.decoder)
    assert all(value is tensors[name] for name, value in vars(steps).items() if name in tensors)
    assert [tensor.data_ptr() for tensor in held] == places


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("padded", [True, False])
def test_recording_is_played_back_on_a_gpu(reader, pictures, padded):
    reader = copy.deepcopy(reader).cuda()
    for given in (pictures, {name: value.flip(0) for name, value in pictures.items()}):
        given = {name: value.cuda() for name, value in given.items() if padded or name == "pixel_values"}
        for settings in ({}, {"max_new_tokens": 1}, {"max_new_tokens": 15}):
            found = reader.generate(**given, **settings)
            assert greedy._recorded[reader.decoder].graph is not None
            assert torch.equal(found, reader.generate(**given, **settings, custom_generate=theirs))
            eager = reader.generate(**given, **settings, disable_compile=True)
            assert torch.equal(found, eager)
