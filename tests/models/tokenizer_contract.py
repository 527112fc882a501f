"""What every visual tokenizer owes its users beside `ModelContract`, and what its image processors owe.

class TestVAEModel(TokenizerContract, ModelContract):
    model_class = VAEModel

    def config(self): ...           # pictures of 16 x 16 pixels, four to a side of a latent
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, BertConfig, BertModel, PreTrainedModel

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.parts.vision_features import VisionDescription, describe_vision_model
from hf_vlm.training.trainers.gradient_checks import check_gradients

IMAGE_SIZE = 16
DOWNSAMPLING = 4
GRID = IMAGE_SIZE // DOWNSAMPLING


def pictures(number: int = 3, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> torch.Tensor:
    """Smooth ones, float (number, 3, height, width) in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bilinear")


def randomise(model: PreTrainedModel, std: float = 0.03) -> PreTrainedModel:
    """Biases too: a part that is left out, or a weight in the wrong place, must show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model.eval()


def tiny_text_model() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=32,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=32,
            max_position_embeddings=22,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


class TokenizerContract:
    """Sizes, sampling, precision, saving after a resize, and the place of a vision encoder in a reader."""

    model_class: Any

    def config(self) -> Any:
        raise NotImplementedError

    def batch(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        return {"pixel_values": pictures()}

    def tokenizer(self) -> Any:
        return randomise(self.model_class(self.config()))

    @torch.no_grad()
    def test_reconstruction_is_the_decoded_code_of_the_picture(self) -> None:
        model = self.tokenizer()
        codes = model.encode(pictures())
        outputs = model(pictures())
        of_forward = outputs.last_hidden_state if codes.is_floating_point() else outputs.code_ids
        assert torch.equal(codes, of_forward)
        reconstructed = model.reconstruct(pictures())
        assert torch.equal(reconstructed, model.decode(codes))
        assert reconstructed.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE) and reconstructed.dtype == torch.float32
        assert not torch.equal(reconstructed[0], reconstructed[1])

    @torch.no_grad()
    def test_every_size_that_is_a_multiple_of_the_downsampling_is_taken(self) -> None:
        model = self.tokenizer()
        for height, width in [(4, 4), (8, 24), (20, 16)]:
            outputs = model(pictures(2, height, width))
            rows, columns = height // DOWNSAMPLING, width // DOWNSAMPLING
            assert model.grid_size(height, width) == (rows, columns)
            assert outputs.last_hidden_state.shape == (2, model.config.hidden_size, rows, columns)
            assert outputs.reconstruction.shape == (2, 3, height, width) and outputs.loss.isfinite()
            assert model.reconstruct(pictures(2, height, width)).shape == (2, 3, height, width)

    @torch.no_grad()
    def test_latents_lie_where_their_pixels_are(self) -> None:
        model = self.tokenizer()
        before = pictures(1, 8, 256)
        after = before.clone()
        after[..., 200:] = 1 - after[..., 200:]
        changed = (model(before).last_hidden_state != model(after).last_hidden_state).any(dim=1)[0]  # (2, 64)
        assert changed[:, 54:].any() and not changed[:, :38].any()

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((16, 18), "multiples of 4 pixels are wanted, got 16 x 18. .* for example to 16 x 16"),
            ((2, 16), "got 2 x 16. .* for example to 4 x 16"),
        ],
    )
    def test_sizes_that_have_no_whole_number_of_latents_are_refused(self, size: tuple[int, int], message: str) -> None:
        model = self.tokenizer()
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(1, 3, *size))
        with pytest.raises(ValueError, match=message):
            model.encode(torch.zeros(1, 3, *size))
        with pytest.raises(ValueError, match=message):
            model.sample(1, image_size=size)
        with pytest.raises(ValueError, match=message):
            model.resize(image_size=size)
        assert model.config.image_size == IMAGE_SIZE

    def test_unsuitable_pictures_are_refused(self) -> None:
        model = self.tokenizer()
        broken = pictures()
        broken[1, 0, 0, 0] = torch.nan
        for pixel_values, message in [
            (pictures()[:, :1], r"must be \(batch, 3, height, width\), got \(3, 1, 16, 16\)"),
            (pictures()[0], r"got \(3, 16, 16\)"),
            (broken, "got NaN or infinity in picture 1"),
        ]:
            with pytest.raises(ValueError, match=message):
                model(pixel_values)
            with pytest.raises(ValueError, match=message):
                model.reconstruct(pixel_values)

    def test_sampled_pictures_have_the_configured_size_or_another(self) -> None:
        model = self.tokenizer()
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(model.sample(2))
        assert drawn[0].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE) and not drawn[0].requires_grad
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0][0], drawn[0][1])
        assert model.sample(image_size=(8, 24)).shape == (1, 3, 8, 24)
        for number in (0, -1):
            with pytest.raises(ValueError, match=f"`num_images` must be 1 or more, got {number}"):
                model.sample(number)

    @torch.no_grad()
    def test_evaluation_gives_the_same_twice_and_the_mean_of_single_pictures(self) -> None:
        model = self.tokenizer()
        torch.manual_seed(1)
        first = model(pictures())
        torch.manual_seed(2)
        second = model(pictures())
        assert torch.equal(first.loss, second.loss) and torch.equal(first.reconstruction, second.reconstruction)
        alone = [model(pictures()[row : row + 1]) for row in range(3)]
        torch.testing.assert_close(torch.cat([one.reconstruction for one in alone]), first.reconstruction)
        for name in ("loss", "reconstruction_nats", "kl_nats", "bits_per_dim"):
            mean = torch.stack([one[name] for one in alone]).mean()
            torch.testing.assert_close(mean, first[name], rtol=1e-4, atol=1e-4, msg=name)

    def test_evaluation_leaves_every_tensor_as_it_is(self) -> None:
        model = self.tokenizer()
        before = copy.deepcopy(model.state_dict())
        model(pictures())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_without_loss_there_are_latents_only_and_a_gradient_to_the_encoder(self) -> None:
        model = self.tokenizer()
        with torch.no_grad():
            expected = model(pictures())
        model.train()
        before = copy.deepcopy(model.state_dict())
        outputs = model(pictures(), return_loss=False)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # codebooks too
        assert not {"loss", "reconstruction", "reconstruction_nats", "bits_per_dim"} & set(outputs)
        torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state)
        if "code_ids" in expected:
            assert torch.equal(outputs.code_ids, expected.code_ids)
        (outputs.last_hidden_state * torch.randn_like(outputs.last_hidden_state)).sum().backward()
        reached = {name for name, tensor in model.named_parameters() if tensor.grad is not None and tensor.grad.any()}
        assert reached >= {name for name, _ in model.named_parameters() if name == "encoder.output_layer.weight"}
        assert [name for name in reached if name.startswith("encoder.") and "downsampling.weight" in name] or (
            "encoder.input_layer.weight" in reached
        )

    @torch.no_grad()
    def test_hidden_states_are_the_encoders_maps(self) -> None:
        model = self.tokenizer()
        hidden_states = model(pictures(2, 16, 24), output_hidden_states=True).hidden_states
        assert [tuple(states.shape) for states in hidden_states] == self.hidden_shapes()
        without = model(pictures(2, 16, 24), output_hidden_states=True, return_loss=False).hidden_states
        for states, same in zip(hidden_states, without, strict=True):
            torch.testing.assert_close(states, same)

    def hidden_shapes(self) -> list[tuple[int, ...]]:
        """Those of two pictures of 16 x 24 pixels."""
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_model_takes_pictures_of_any_precision(self, dtype: torch.dtype) -> None:
        model = self.tokenizer()
        expected = model(pictures())
        model.to(dtype)
        for pixel_values in (pictures(), pictures().to(dtype)):
            outputs = model(pixel_values)
            assert outputs.loss.dtype == torch.float32 and outputs.last_hidden_state.dtype == dtype
            torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.1, atol=0.1)
            assert model.reconstruct(pixel_values).isfinite().all()
        assert model.sample(2).isfinite().all()
        model.train()(pictures()).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    @torch.no_grad()
    def test_resized_model_is_saved_and_reloaded_as_such(self, tmp_path) -> None:
        model = self.tokenizer()
        model.save_pretrained(tmp_path / "first")
        model.resize(image_size=(8, 24))
        model.save_pretrained(tmp_path / "second")
        for reloaded in (
            self.model_class.from_pretrained(tmp_path / "second"),
            AutoModel.from_pretrained(tmp_path / "second"),
            self.model_class.from_pretrained(tmp_path / "first", image_size=(8, 24)),
            AutoModel.from_pretrained(tmp_path / "first", image_size=(8, 24)),
        ):
            assert type(reloaded) is self.model_class and tuple(reloaded.config.image_size) == (8, 24)
            assert reloaded.sample().shape == (1, 3, 8, 24)
            assert torch.equal(reloaded.reconstruct(pictures()), model.reconstruct(pictures()))
            assert describe_vision_model(reloaded.config).grid == (2, 6)

    def test_reader_is_made_of_it_trains_it_and_comes_back_from_disk(self, tmp_path) -> None:
        model = self.tokenizer()
        width = model.config.hidden_size
        assert describe_vision_model(model.config) == VisionDescription(width, (GRID, GRID), 0, (IMAGE_SIZE,) * 2)
        model.save_pretrained(tmp_path / "tokenizer")
        reader = TrOCREncoderDecoderForConditionalGeneration.from_pretrained_parts(
            vision=str(tmp_path / "tokenizer"), text=tiny_text_model()
        )
        labels = torch.tensor([[3, 4, 2], [5, 6, 2], [7, 2, -100]])
        with torch.no_grad():
            seen = reader.encoder(pictures()).last_hidden_state
            tokens = model(pictures()).last_hidden_state.flatten(2).transpose(1, 2)  # (batch, rows * columns, width)
            torch.testing.assert_close(seen, reader.encoder.projection(tokens))
        reader.train()(pixel_values=pictures(), labels=labels).loss.backward()
        check_gradients(reader)
        left_out = {name for name, parameter in reader.named_parameters() if parameter.grad is None}
        own = {f"encoder.vision_model.{name}" for name, _ in model.named_parameters()}
        encoder = {name for name in own if name.startswith("encoder.vision_model.encoder.")}
        assert left_out <= own - encoder  # a reader uses neither the tokenizer's decoder nor its likelihood
        reader.eval()
        written = reader.generate(pixel_values=pictures(), max_new_tokens=5)
        reader.save_pretrained(tmp_path / "reader")
        reloaded = type(reader).from_pretrained(tmp_path / "reader")
        assert torch.equal(reloaded.generate(pixel_values=pictures(), max_new_tokens=5), written)
        assert torch.equal(reloaded.encoder.vision_model.reconstruct(pictures()), model.reconstruct(pictures()))
        half = type(reader).from_pretrained(tmp_path / "reader", dtype=torch.bfloat16)
        assert half(pixel_values=pictures(), labels=labels).loss.isfinite()
        reloaded.resize(image_size=(8, 24))
        assert reloaded.encoder.vision_model.sample().shape == (1, 3, 8, 24)


class CodesContract:
    """What tokenizers owe whose latents are codes."""

    model_class: Any

    @torch.no_grad()
    def test_codes_are_whole_numbers_below_their_number(self) -> None:
        model = self.tokenizer()  # type: ignore[attr-defined]
        code_ids = model.encode(pictures(2, 16, 24))
        assert code_ids.shape == (2, 4, 6) and code_ids.dtype == torch.int64
        assert 0 <= code_ids.min() < code_ids.max() < model.config.num_codes

    @torch.no_grad()
    def test_sampled_codes_are_uniform(self, monkeypatch) -> None:
        model = self.tokenizer()  # type: ignore[attr-defined]
        drawn = []
        monkeypatch.setattr(model, "decode", lambda code_ids: drawn.append(code_ids))
        model.sample(1000)
        counts = drawn[0].flatten().bincount().double()
        assert len(counts) == model.config.num_codes and drawn[0].shape == (1000, GRID, GRID)
        expected = drawn[0].numel() / len(counts)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        degrees = len(counts) - 1
        assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5

    @torch.no_grad()
    def test_perplexity_and_use_are_those_of_the_batch(self) -> None:
        model = self.tokenizer()  # type: ignore[attr-defined]
        outputs = model(pictures())
        shares = outputs.code_ids.flatten().bincount(minlength=model.config.num_codes) / outputs.code_ids.numel()
        torch.testing.assert_close(outputs.perplexity, torch.distributions.Categorical(shares).entropy().exp())
        assert outputs.used_codes == len(outputs.code_ids.unique())

    def test_what_are_no_codes_is_refused(self) -> None:
        model = self.tokenizer()  # type: ignore[attr-defined]
        number = model.config.num_codes
        code_ids = torch.zeros(1, 2, 2, dtype=torch.int64)
        with pytest.raises(ValueError, match=rf"must be in \[0, {number}\), got 0 to {number}"):
            model.decode(code_ids + torch.tensor([0, number]))
        with pytest.raises(ValueError, match=rf"must be in \[0, {number}\), got -1 to -1"):
            model.decode(code_ids - 1)
        with pytest.raises(ValueError, match=r"must be \(batch, rows, columns\), got \(2, 2\)"):
            model.decode(code_ids[0])
        with pytest.raises(TypeError, match="must be a tensor of whole numbers, got torch.float32"):
            model.decode(code_ids.float())
        with pytest.raises(TypeError, match="must be a tensor of whole numbers, got list"):
            model.decode(code_ids.tolist())

    @torch.no_grad()
    def test_codes_of_any_whole_type_are_decoded(self) -> None:
        model = self.tokenizer()  # type: ignore[attr-defined]
        code_ids = model.encode(pictures())
        for dtype in (torch.int16, torch.int32):
            assert torch.equal(model.decode(code_ids.to(dtype)), model.decode(code_ids))


def drawing(mode: str = "RGB", size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Image.Image:
    """Noise: every level of every channel occurs somewhere."""
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


class TokenizerImagesContract:
    """Both image processors of a tokenizer."""

    model_class: Any
    config_class: Any
    processor_classes: tuple[Any, Any]  # on torchvision, on Pillow

    @pytest.fixture(params=[0, 1], ids=["torchvision", "pil"])
    def processor_class(self, request) -> Any:
        return self.processor_classes[request.param]

    def test_pixels_are_levels_over_255_and_come_back_as_the_same_picture(self, processor_class) -> None:
        size = {"height": 12, "width": 64}  # every level occurs
        processor = processor_class(size=size)
        for mode, settings in [("RGB", {}), ("L", {"do_convert_grayscale": True})]:
            picture = drawing(mode, (64, 12))
            pixel_values = processor(picture, return_tensors="pt", **settings).pixel_values
            levels = torch.from_numpy(np.array(picture)).reshape(12, 64, -1).movedim(-1, 0)
            torch.testing.assert_close(pixel_values[0], levels / 255, atol=1e-7, rtol=0)
            [back] = processor.post_process(pixel_values)
            assert back.mode == mode and np.array_equal(np.array(back), np.array(picture))

    def test_post_process_cuts_what_lies_beyond_the_range(self, processor_class) -> None:
        pixel_values = torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.5]).expand(2, 1, 1, 6)
        first, second = processor_class().post_process(pixel_values.requires_grad_())
        assert np.array(first).tolist() == np.array(second).tolist() == [[0, 0, 0, 1, 255, 255]]
        for wrong in (torch.zeros(3, 4, 4), torch.zeros(1, 2, 4, 4)):
            with pytest.raises(ValueError, match=r"must be \(batch, 1 or 3, height, width\), got"):
                processor_class().post_process(wrong)

    def test_both_backends_give_the_same_pixels_and_codes_where_nothing_is_resized(self) -> None:
        picture = drawing()
        pixels = [
            processor_class(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})(picture, return_tensors="pt").pixel_values
            for processor_class in self.processor_classes
        ]
        torch.testing.assert_close(*pixels, atol=1e-7, rtol=0)
        model = randomise(self.model_class(self.config_class(image_size=IMAGE_SIZE)))
        codes = [model.encode(pixel_values) for pixel_values in pixels]
        torch.testing.assert_close(*codes, atol=1e-5, rtol=0)

    def test_transparency_is_white_and_grey_is_luma(self, processor_class) -> None:
        processor = processor_class(size={"height": 4, "width": 4})
        through = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        assert (processor(through, return_tensors="pt").pixel_values == 1).all()
        red = Image.new("RGB", (4, 4), (255, 0, 0))
        grey = processor(red, do_convert_grayscale=True, return_tensors="pt").pixel_values
        assert grey.shape == (1, 1, 4, 4) and np.allclose(grey, 76 / 255, atol=1e-6)  # 0.299 * 255

    def test_processor_is_found_by_the_models_folder(self, tmp_path, processor_class) -> None:
        self.config_class().save_pretrained(tmp_path)
        processor_class(size={"height": 24, "width": 8}, do_convert_grayscale=True).save_pretrained(tmp_path)
        for backend, expected in zip(("torchvision", "pil"), self.processor_classes, strict=True):
            reloaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
            assert type(reloaded) is expected
            pixel_values = reloaded(drawing(size=(40, 30)), return_tensors="pt").pixel_values
            assert pixel_values.shape == (1, 1, 24, 8)
            assert pixel_values.min() >= 0 and pixel_values.max() <= 1
