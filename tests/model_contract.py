"""What every architecture owes its users, as tests that each architecture inherits.

    class TestVAEModel(ModelContract):
        model_class = VAEModel

        def config(self): ...           # small: the model has fewer than a million parameters
        def batch(self, model): ...     # three examples that `forward` takes, with what a loss needs

Models that generate inherit `GenerationContract` beside it.
"""

import copy
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

Batch = dict[str, torch.Tensor]
TOLERANCE = 1e-5


def main_output(outputs: Any) -> torch.Tensor:
    """The tensor by which two runs are compared."""
    return outputs.logits if getattr(outputs, "logits", None) is not None else outputs.last_hidden_state


def row_of(batch: Batch, row: int) -> Batch:
    """One example of a batch, as a batch of one."""
    return {name: value[row : row + 1] for name, value in batch.items()}


def train(model: PreTrainedModel, batch: Batch, steps: int, learning_rate: float) -> list[float]:
    """Train on one batch; the loss of every step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class ModelContract:
    """Saving, batching, initialisation and learning."""

    model_class: type[PreTrainedModel]
    auto_class: Any = AutoModel
    learning_rate = 1e-2
    steps = 30  # of training, until the loss on one batch has at least halved
    reload_tolerance = 0.0  # products with few rows round as tensors lie in memory, and loaded ones lie elsewhere

    def config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def batch(self, model: PreTrainedModel) -> Batch:
        raise NotImplementedError

    def single(self, batch: Batch, row: int) -> tuple[Batch, torch.Tensor | slice]:
        """One example as its user would give it alone, and which of its outputs in the batch are its own."""
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
        torch.testing.assert_close(main_output(by_class(**batch)), expected, atol=self.reload_tolerance, rtol=0)
        assert type(by_class) is self.model_class
        auto_config = AutoConfig.from_pretrained(tmp_path)
        written = {name: value for name, value in auto_config.to_dict().items() if name != "_name_or_path"}
        # A tuple is a list in JSON, and a config that was never saved doesn't name its class yet.
        came_back = type(auto_config).from_dict(model.config.to_dict()).to_dict()
        assert written == {name: value for name, value in came_back.items() if name != "_name_or_path"}

    @torch.no_grad()
    def test_reloads_through_its_auto_class(self, tmp_path) -> None:
        model = self.model()
        model.save_pretrained(tmp_path)
        reloaded = self.auto_class.from_pretrained(tmp_path)
        assert type(reloaded) is self.model_class
        batch = self.batch(model)
        expected = main_output(model(**batch))
        torch.testing.assert_close(main_output(reloaded(**batch)), expected, atol=self.reload_tolerance, rtol=0)

    def test_names_in_the_file_are_names_in_memory(self, tmp_path) -> None:
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
        model = self.model()
        losses = train(model, self.batch(model), self.steps, self.learning_rate)
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
                model.activation_checkpointing_enable()
                assert model.is_activation_checkpointing
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

    The model first learns its batch, so that what it writes hangs on the picture and ends at different places: a model
    with fresh weights repeats one token whatever it sees, and would pass any comparison.
    """

    max_new_tokens = 8
    learning_steps = 60

    @pytest.fixture(scope="class")
    @classmethod
    def learnt(cls) -> tuple[PreTrainedModel, Batch]:
        """A model that knows its batch by heart, and the batch."""
        torch.manual_seed(0)
        contract: Any = cls()
        model = contract.model()
        batch = contract.batch(model)
        train(model, batch, contract.learning_steps, contract.learning_rate)
        return model.eval(), batch

    def prompt(self, batch: Batch) -> Batch:
        """What `generate` takes of a batch."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def generate(self, model: PreTrainedModel, batch: Batch, **settings: Any) -> torch.Tensor:
        return model.generate(**self.prompt(batch), max_new_tokens=self.max_new_tokens, **settings)

    def learnt_ids(self, model: PreTrainedModel, labels: list[int]) -> list[int]:
        """What `generate` gives for an example that is known by heart; here of an encoder-decoder."""
        return [model.generation_config.decoder_start_token_id, *labels]

    def test_generated_text_is_the_learnt_text(self, learnt) -> None:
        # Labels shifted twice, or not at all, would be learnt as well, but never written.
        model, batch = learnt
        written = self.generate(model, batch)
        for row, labels in zip(written.tolist(), batch["labels"].tolist(), strict=True):
            expected = self.learnt_ids(model, [label for label in labels if label != -100])
            assert row[: len(expected)] == expected

    @pytest.mark.parametrize("num_beams", [1, 3])
    @pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
    def test_decoding_does_not_depend_on_the_cache(self, learnt, settings, num_beams) -> None:
        model, batch = learnt
        dynamic = self.generate(model, batch, num_beams=num_beams)
        assert torch.equal(self.generate(model, batch, num_beams=num_beams, **settings), dynamic)

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_decoded_batch_equals_decoded_singles(self, learnt, num_beams) -> None:
        model, batch = learnt
        together = self.generate(model, batch, num_beams=num_beams)
        for row in range(len(together)):
            single, _ = self.single(batch, row)  # type: ignore[attr-defined]
            alone = self.generate(model, single, num_beams=num_beams)[0]
            assert torch.equal(together[row, : len(alone)], alone)
            # Behind the end transformers' beam search repeats the end token where the padding token is 0.
            filling = {model.generation_config.pad_token_id, model.generation_config.eos_token_id}
            assert set(together[row, len(alone) :].tolist()) <= filling

    def test_sampling_follows_the_seed(self, learnt) -> None:
        model, batch = learnt
        runs = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            runs.append(self.generate(model, batch, do_sample=True, top_k=0, temperature=4.0))
        assert torch.equal(runs[0], runs[1])
        assert runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2])

    def test_generation_settings_are_saved(self, learnt, tmp_path) -> None:
        model, batch = learnt
        model = copy.deepcopy(model)
        model.generation_config.num_beams = 2
        model.generation_config.max_new_tokens = 5
        model.save_pretrained(tmp_path)
        reloaded = type(model).from_pretrained(tmp_path)
        assert reloaded.generation_config.num_beams == 2
        expected = model.generate(**self.prompt(batch), num_beams=2, max_new_tokens=5)
        assert torch.equal(reloaded.generate(**self.prompt(batch)), expected)
