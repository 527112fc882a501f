"""What every architecture owes its users, as tests that each architecture inherits.

    class TestVAEModel(ModelContract):
        model_class = VAEModel

        def config(self): ...           # small: the model has fewer than a million parameters
        def batch(self, model): ...     # three examples that `forward` takes, with what a loss needs

Models that generate inherit `GenerationContract` beside it.
"""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

Batch = dict[str, torch.Tensor]
TOLERANCE = 1e-5


def main_output(outputs: Any) -> torch.Tensor:
    """The tensor by which two runs are compared."""
    return outputs.logits if getattr(outputs, "logits", None) is not None else outputs.last_hidden_state


def row_of(batch: Batch, row: int) -> Batch:
    """One example of a batch, as a batch of one."""
    return {name: value[row : row + 1] for name, value in batch.items()}


class ModelContract:
    """Saving, batching, initialisation and learning."""

    model_class: type[PreTrainedModel]
    learning_rate = 1e-2
    steps = 30

    def config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def batch(self, model: PreTrainedModel) -> Batch:
        raise NotImplementedError

    def single(self, batch: Batch, row: int) -> tuple[Batch, torch.Tensor | slice]:
        """One example as its user would give it alone, padding cut off, and which of the batch's outputs are its own."""
        return row_of(batch, row), slice(None)

    def model(self) -> PreTrainedModel:
        return self.model_class(self.config()).eval()

    def test_parameters_stay_below_one_million(self) -> None:
        assert sum(parameter.numel() for parameter in self.model().parameters()) < 1_000_000

    @torch.no_grad()
    def test_saved_and_reloaded_model_gives_equal_outputs(self, tmp_path) -> None:
        model = self.model()
        batch = self.batch(model)
        model.save_pretrained(tmp_path)
        expected = main_output(model(**batch))
        by_class, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(main_output(by_class(**batch)), expected)
        assert type(by_class) is self.model_class
        auto_config = AutoConfig.from_pretrained(tmp_path)
        written = {name: value for name, value in auto_config.to_dict().items() if name != "_name_or_path"}
        # A tuple is a list in JSON, and a config that was never saved doesn't name its class yet.
        came_back = type(auto_config).from_dict(model.config.to_dict()).to_dict()
        assert written == {name: value for name, value in came_back.items() if name != "_name_or_path"}

    @torch.no_grad()
    def test_reloads_through_auto_model(self, tmp_path) -> None:
        model = self.model()
        model.save_pretrained(tmp_path)
        reloaded = AutoModel.from_pretrained(tmp_path)
        assert isinstance(reloaded, PreTrainedModel)
        if type(reloaded) is self.model_class:
            batch = self.batch(model)
            assert torch.equal(main_output(reloaded(**batch)), main_output(model(**batch)))

    def test_names_in_the_file_are_names_in_memory(self, tmp_path) -> None:
        from safetensors import safe_open

        model = self.model()
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            in_file = set(file.keys())
        assert in_file == set(model.state_dict()) - set(model.all_tied_weights_keys)

    @torch.no_grad()
    def test_batch_equals_singles(self) -> None:
        model = self.model()
        batch = self.batch(model)
        together = main_output(model(**batch))
        for row in range(len(together)):
            single, own = self.single(batch, row)
            alone = main_output(model(**single))[0]
            torch.testing.assert_close(together[row][own], alone, atol=TOLERANCE, rtol=0)

    def test_every_weight_and_buffer_is_initialised_when_a_checkpoint_lacks_it(self) -> None:
        # Built on the meta device, every tensor is uninitialised memory until `_init_weights` fills it.
        constructed = self.model()
        loaded = self.model_class.from_pretrained(None, config=self.config(), state_dict={})
        found = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
        for name, wanted in (dict(constructed.named_parameters()) | dict(constructed.named_buffers())).items():
            got = found[name]
            assert got.device == wanted.device and got.dtype == wanted.dtype and got.shape == wanted.shape, name
            if not wanted.is_floating_point() or wanted.numel() < 2 or wanted.std() == 0:
                assert torch.equal(got, wanted), name  # constants and counters
            elif not torch.equal(got, wanted):  # random: of the same distribution
                assert got.isfinite().all(), name
                spread = wanted.std().item()
                error_of_mean = spread / wanted.numel() ** 0.5
                assert abs(got.mean() - wanted.mean()) < 6 * error_of_mean, name
                assert 0.5 * spread < got.std().item() < 2 * spread or wanted.numel() < 16, name

    def test_loss_falls_on_one_batch(self) -> None:
        model = self.model().train()
        batch = self.batch(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        losses = []
        for _ in range(self.steps):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], losses

    def test_gradient_reaches_every_trained_parameter(self) -> None:
        model = self.model().train()
        model(**self.batch(model)).loss.backward()
        left_out = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert left_out == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]

    def test_gradient_checkpointing_changes_no_gradient(self) -> None:
        if not self.model_class.supports_gradient_checkpointing:
            pytest.skip("the model does not offer gradient checkpointing")
        model = self.model().train()
        batch = self.batch(model)
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                assert model.is_gradient_checkpointing
            model.zero_grad()
            torch.manual_seed(1)
            model(**batch).loss.backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=TOLERANCE, rtol=1e-4, msg=name)

    @torch.no_grad()
    def test_attention_implementations_agree(self) -> None:
        if not self.model_class._supports_sdpa:
            pytest.skip("the model has no attention")
        model = self.model()
        batch = self.batch(model)
        model.set_attn_implementation("sdpa")
        expected = main_output(model(**batch))
        model.set_attn_implementation("eager")
        torch.testing.assert_close(main_output(model(**batch)), expected, atol=TOLERANCE, rtol=0)


class GenerationContract:
    """Decoding, token for token: batch = singles, cached = uncached, static = dynamic cache, greedy and beam.

    `prompt` gives what `generate` takes; the model's end token must come at different places, or not at all.
    """

    max_new_tokens = 8
    beams = 3

    def prompt(self, model: PreTrainedModel) -> Batch:
        """What `generate` takes for three examples; by default the batch without its labels."""
        return {name: value for name, value in self.batch(model).items() if name != "labels"}  # type: ignore[attr-defined]

    def generate(self, model: PreTrainedModel, prompt: Batch, **settings: Any) -> torch.Tensor:
        return model.generate(**prompt, max_new_tokens=self.max_new_tokens, **settings)

    @pytest.mark.parametrize("num_beams", [1, 3])
    @pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
    def test_decoding_does_not_depend_on_the_cache(self, settings, num_beams) -> None:
        model = self.model()  # type: ignore[attr-defined]
        prompt = self.prompt(model)
        dynamic = self.generate(model, prompt, num_beams=num_beams)
        assert len(dynamic.unique()) > 2, "a decoder that repeats one token would pass any comparison"
        assert torch.equal(self.generate(model, prompt, num_beams=num_beams, **settings), dynamic)

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_decoded_batch_equals_decoded_singles(self, num_beams) -> None:
        model = self.model()  # type: ignore[attr-defined]
        prompt = self.prompt(model)
        together = self.generate(model, prompt, num_beams=num_beams)
        for row in range(len(together)):
            single, _ = self.single(prompt, row)  # type: ignore[attr-defined]
            alone = self.generate(model, single, num_beams=num_beams)[0]
            assert torch.equal(together[row, : len(alone)], alone)
            assert (together[row, len(alone) :] == model.generation_config.pad_token_id).all()

    def test_sampling_follows_the_seed(self) -> None:
        model = self.model()  # type: ignore[attr-defined]
        prompt = self.prompt(model)
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            runs.append(self.generate(model, prompt, do_sample=True, top_k=0))
        assert torch.equal(runs[0], runs[1])
        assert runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2])

    def test_generation_settings_are_saved(self, tmp_path) -> None:
        model = self.model()  # type: ignore[attr-defined]
        model.generation_config.num_beams = 2
        model.generation_config.max_new_tokens = 5
        model.save_pretrained(tmp_path)
        reloaded = type(model).from_pretrained(tmp_path)
        prompt = self.prompt(model)
        assert reloaded.generation_config.num_beams == 2
        assert torch.equal(reloaded.generate(**prompt), model.generate(**prompt, num_beams=2, max_new_tokens=5))
