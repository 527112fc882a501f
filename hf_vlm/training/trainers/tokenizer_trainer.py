"""`Trainer` for visual tokenizers: every term of the loss in the log, scores of reconstructions and codes, pictures."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalLoopOutput

from hf_vlm.blocks.codebook import Codebook
from hf_vlm.models.dvae.modeling_dvae import CodeLogits
from hf_vlm.parts.model_saving import is_split
from hf_vlm.training.scores.evaluation_shares import own_batches
from hf_vlm.training.scores.tokenizer_evaluation import TERMS, evaluate_batches
from hf_vlm.training.scores.tokenizer_pictures import CodeUsage, paired_grid, picture_grid
from hf_vlm.training.trainers.image_trainer import ImageTrainer
from hf_vlm.training.trainers.schedules import AnnealingCallback, Schedule
from hf_vlm.training.trainers.weight_average import WeightAverage

logger = logging.getLogger(__name__)

_NUM_SHOWN = 8  # pictures with their reconstructions
_NUM_SAMPLES = 32
_FEW_CODES = 0.5  # share in use, below which a codebook is told to have collapsed


class TokenizerTrainer(ImageTrainer):
    """`ImageTrainer` of a tokenizer.

    Args:
        annealing: what changes over the run, or None.
        of_learning_rate: its schedule, in the place of `lr_scheduler_type`; or None.
        weight_average: decay of a running mean of the weights, which is validated and saved; None for none.
    """

    def __init__(
        self,
        *args: Any,
        annealing: AnnealingCallback | None,
        of_learning_rate: Schedule | None,
        weight_average: float | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, layer_decay=1.0, is_classifier=False, **kwargs)
        self.annealing, self.of_learning_rate = annealing, of_learning_rate
        if annealing is not None:
            self.add_callback(annealing)
        self.weight_average: WeightAverage | None = None
        if weight_average is not None:
            self.weight_average = WeightAverage(self.model, weight_average)
            self.add_callback(self.weight_average)
        if self.is_fsdp_enabled:
            self.add_callback(_SplitTokenizer())
        self._terms: dict[str, torch.Tensor] = {}
        self._num_passes = 0

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As `Trainer.create_scheduler`; with a schedule of the learning rate, that."""
        schedule = self.of_learning_rate
        if schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler: Any = LambdaLR(optimizer, lambda step: schedule.value(step) / schedule.start)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; its terms are kept for the next log."""
        outputs = model(pixel_values=inputs["pixel_values"])
        if model.training:
            for name in (*TERMS[1:], "perplexity", "used_codes"):
                if (term := outputs.get(name)) is not None:
                    self._terms[name] = self._terms.get(name, 0) + term.detach()
            self._num_passes += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`, with the means of the terms since the last one, over all processes, and the annealed values."""
        if "loss" in logs and self._num_passes:
            means = self.accelerator.reduce(torch.stack(list(self._terms.values())) / self._num_passes, "mean")
            logs |= dict(zip(self._terms, means.tolist(), strict=True))
            self._terms, self._num_passes = {}, 0
            if self.annealing is not None:
                logs |= self.annealing.values(max(0, self.state.global_step - 1))
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, of the averaged weights where there are some, with pictures."""
        if self.weight_average is None:
            return super().evaluate(*args, **kwargs)
        with self.weight_average.applied():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The scores of `TokenizerScores` over all processes, each picture once, and pictures by the first process."""
        rows = dataloader.dataset
        with self.evaluating() as model:
            scores = evaluate_batches(model, own_batches(rows, self.eval_collator, self.args))
            for tensor in scores.tensors():
                tensor.copy_(self.accelerator.reduce(tensor, reduction="sum"))
            result = scores.result()
            sheets = {}
            # Weights that are split come together where all processes ask for them.
            if self.is_world_process_zero() or is_split(model):
                sheets = self._sheets(model, rows)
            if self.is_world_process_zero():
                self._write(sheets, scores.counts)
                _warn_of_collapse(result, int(scores.sums["places"].item()), model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(rows))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; the model has the averaged weights in the end, where there are some."""
        output = super().train(*args, **kwargs)
        if self.weight_average is not None:
            self.weight_average.apply()
        return output

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.weight_average is not None:  # before the file that tells a checkpoint complete
            self.weight_average.save(output_dir, writes=self.args.should_save)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weight_average is not None:
            self.weight_average.load(resume_from_checkpoint)

    @torch.no_grad()
    def _sheets(self, model: PreTrainedModel, rows: Any) -> dict[str, Image.Image]:
        """Pictures of an evaluation by name: of `rows` with their reconstructions, and samples, the same noise every time."""
        shown = [rows[index] for index in range(min(_NUM_SHOWN, len(rows)))]
        originals = self.eval_collator(shown)["pixel_values"].to(model.device)
        as_pictures = self.processing_class.post_process
        pairs = [as_pictures(originals), as_pictures(model.reconstruct(originals))]
        torch.manual_seed(self.args.seed)
        samples = picture_grid(as_pictures(model.sample(_NUM_SAMPLES)), columns=_NUM_SHOWN)
        return {"reconstructions": paired_grid(pairs, ("originals", "reconstructions")), "samples": samples}

    def _write(self, sheets: dict[str, Image.Image], counts: torch.Tensor | None) -> None:
        """Writes the pictures of an evaluation, and that of its codes, to `pictures/`, and to TensorBoard."""
        folder, step = Path(self.args.output_dir) / "pictures", self.state.global_step
        folder.mkdir(parents=True, exist_ok=True)
        if counts is not None:
            usage = CodeUsage(folder)
            usage.add(step, counts)
            sheets = {**sheets, "codes": usage.draw()}
        for name, sheet in sheets.items():
            sheet.save(folder / (f"{name}.png" if name == "codes" else f"{name}-{step}.png"))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                for name, sheet in sheets.items():
                    callback.tb_writer.add_image(name, np.asarray(sheet), step, dataformats="HWC")


class _SplitTokenizer(TrainerCallback):
    """Lets a tokenizer that FSDP2 has split be asked for pictures, and sees to it that what it writes in a pass is kept."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Has weights come together for `reconstruct` and `sample` as for a forward pass.

        Raises:
            ValueError: if a layer that writes its own weights is no unit of FSDP: what it writes would be lost.
        """
        if not is_split(model):
            return
        has_start = getattr(model.config, "start_logit_deviation", None) is not None
        for name, layer in model.named_modules():
            does_write = isinstance(layer, Codebook) or (isinstance(layer, CodeLogits) and has_start)
            has_shards = any(isinstance(weight, DTensor) for weight in layer.parameters(recurse=False))
            if does_write and has_shards and not isinstance(layer, FSDPModule):
                raise ValueError(
                    f"A group of its own is wanted for `{name}` under FSDP, whose weights are written as it learns, got one of "
                    "the whole model. Set `fsdp_config.auto_wrap_policy` to TRANSFORMER_BASED_WRAP, without a list of layers."
                )
        for name in ("reconstruct", "sample"):
            if name not in vars(model):  # not done yet
                register_fsdp_forward_method(model, name)


def _warn_of_collapse(scores: dict[str, float], num_places: int, model: PreTrainedModel) -> None:
    """Says so where latents tell next to nothing, of `num_places` that were looked at."""
    num_codes = getattr(model.config, "num_codes", None)
    if num_codes and scores["used_codes"] < _FEW_CODES * min(num_codes, num_places):
        advice = "take fewer levels or bits"
        if hasattr(model.config, "kl_weight"):
            advice = "lower the learning rate, or set `start_logit_deviation`"
        elif getattr(model.config, "discretisation", None) == "codebook":
            advice = "raise `revive_below`"
        logger.warning(
            "%d of %d codes are in use. If that stays so, %s, or take fewer codes.",
            scores["used_codes"],
            num_codes,
            advice,
        )
    if scores.get("active_channels") == 0:
        logger.warning(
            "No latent channel is active: the decoder ignores the latents (posterior collapse). Lower `beta`, or let it rise "
            "from 0 by `annealing.beta`."
        )
