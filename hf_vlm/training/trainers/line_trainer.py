"""`Seq2SeqTrainer` for text lines: CER and WER against the true texts, for one validation set or several by name."""

import copy
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import EvalPrediction, Seq2SeqTrainer

from hf_vlm.data.lines.image_text import TextLines
from hf_vlm.parts.base_weights import base_of
from hf_vlm.training.scores.metrics import character_error_rate, word_error_rate
from hf_vlm.training.trainers.gradient_checks import GradientCheck
from hf_vlm.training.trainers.validation_loss import TokenLossTrainer


class ReferenceLines(Dataset):
    """Lines with known texts, ordered by the length of their texts, so that batches need little padding.

    Args:
        rows: the lines.
        max_lines: how many of them are read, spread evenly over the set; None means all.
        ignore_case: whether case is folded before scoring.

    Attributes:
        texts: the true texts, in the order of the items; scoring takes them from here and decodes no picture twice.
    """

    def __init__(self, rows: TextLines, *, max_lines: int | None = None, ignore_case: bool = False) -> None:
        number = len(rows) if max_lines is None else min(max_lines, len(rows))
        chosen = np.linspace(0, len(rows) - 1, number).round().astype(int).tolist()
        self._indices = sorted(chosen, key=lambda index: len(rows.texts[index]))
        self.rows = rows
        self.texts = [rows.texts[index] for index in self._indices]
        self.ignore_case = ignore_case

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[self._indices[index]]


class LineTrainer(TokenLossTrainer, Seq2SeqTrainer):
    """`Seq2SeqTrainer` that scores what `generate` reads against the rows' own texts.

    Scoring against decoded labels would hide every character that the tokenizer does not know. Evaluation sets are
    `ReferenceLines`; with several by name, `eval_cer` and `eval_wer` are the means over the sets, so that
    `metric_for_best_model="cer"` works for one and for many.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=self._score, **kwargs)
        self.add_callback(GradientCheck(self.check_gradients))

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `Seq2SeqTrainer.prediction_step`, whose changes to the model's generation settings are undone."""
        model = base_of(self.model)  # adapters generate by its settings
        settings = model.generation_config
        model.generation_config = copy.deepcopy(settings)
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            model.generation_config = settings

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """The metrics of `Seq2SeqTrainer.evaluate`; for several sets also the mean CER and WER over the sets."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(sets, dict):
            means = {
                f"{metric_key_prefix}_{name}": float(
                    np.mean([metrics[f"{metric_key_prefix}_{of_set}_{name}"] for of_set in sets])
                )
                for name in ("cer", "wer")
            }
            self.log(means)
            metrics.update(means)
        return metrics

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        lines: ReferenceLines = self.evaluated
        assert self.processing_class is not None
        token_ids = np.asarray(prediction.predictions)  # (lines, tokens), filled up with -100 or the pad token
        token_ids = np.where(token_ids < 0, self.model.config.pad_token_id, token_ids)
        read = self.processing_class.batch_decode(token_ids, skip_special_tokens=True)
        read = read[: len(lines)]  # several processes fill up the last batch with repeated lines
        return {
            "cer": character_error_rate(lines.texts, read, case_sensitive=not lines.ignore_case),
            "wer": word_error_rate(lines.texts, read, case_sensitive=not lines.ignore_case),
        }
