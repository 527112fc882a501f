"""The loss of a validation set of texts: the mean over all its tokens, the same on any number of processes.

Transformers averages the losses of batches, however many tokens each holds, and where processes share a set the rows are
divided into other batches, the last of which are filled up with rows that were there before.
"""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_vlm.training.trainers.adapter_training import AdapterTrainer


def num_real_items(trainer: Trainer, num_items: int) -> int:
    """How many of this process's items at hand are the set's own; those behind them only fill up the last batch.

    Args:
        trainer: in its evaluation, on its way through the set.
        num_items: that a batch of one process has.
    """
    state = trainer.accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return num_items
    return min(max(state.remainder - trainer.args.process_index * num_items, 0), num_items)


class TokenLossTrainer(AdapterTrainer):
    """`Trainer` whose `eval_loss` is the mean over the tokens that carry loss, each row counted once.

    Attributes:
        evaluated: the set that is looked at, or was last.
    """

    evaluated: Any = None
    _loss_sum, _num_tokens, _is_predicting = 0.0, 0, False

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.prediction_step`; notes the loss of the tokens that carry it, for their mean over the set."""
        inputs["labels"] = self.real_labels(inputs)
        learnt = inputs["labels"][:, 1:] if self._loss_shifts_labels else inputs["labels"]
        number = int((learnt >= 0).sum())
        self._is_predicting = True
        try:
            predicted = super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            self._is_predicting = False
        if number:
            self._loss_sum += float(predicted[0]) * number
            self._num_tokens += number
        return predicted

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        # In an evaluation Trainer would divide by the mean of all processes' tokens: here each takes the mean of its own.
        return None if self._is_predicting else super()._get_num_items_in_batch(*args, **kwargs)

    def real_labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Labels of an evaluation's batch, int64 (rows, tokens), -100 in rows that fill up the last batch."""
        labels: torch.Tensor = inputs["labels"].clone()
        labels[num_real_items(self, len(labels)) :] = -100
        return labels

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As `Trainer.evaluation_loop`, whose mean over batches gives way to the mean over tokens with loss."""
        self._loss_sum, self._num_tokens = 0.0, 0
        self.evaluated = dataloader.dataset
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = torch.tensor([[self._loss_sum, self._num_tokens]], dtype=torch.float32, device=self.args.device)
        total, number = self.accelerator.gather(sums).double().sum(dim=0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(number, 1)
        return output
