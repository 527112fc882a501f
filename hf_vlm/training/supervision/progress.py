"""How fast a run goes and how long it has to go: measured over all processes, shown by the first of them.

A bar on a terminal; elsewhere, as in a batch system's log, a line every half a minute. Evaluations and checkpoints count in
the time left, not in the speed.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS_BETWEEN_LINES = 30.0

_WARM_UP_STEPS = 2  # which compile, choose kernels, fill the loader's queue: no part of a session's speed
_SECONDS_BETWEEN_SPEEDS = 2.0  # on a bar: reading them waits for the device
_NAMES = ("items_per_second", "tokens_per_second", "learnt_tokens_per_second")


class Speed:
    """Items and tokens a second of this process's share, without the time of evaluations and checkpoints.

    Tokens are a language model's inputs, padding left out, or where there are none the labels; `learnt_tokens` those labels
    that carry loss. They are summed up on the device, which nobody waits for until they are read.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts a session."""
        self._items, self._num_steps = 0, 0
        self._tokens: torch.Tensor | None = None
        self._learnt: torch.Tensor | None = None
        self._active = 0.0
        self._since: float | None = time.perf_counter()  # None while the time stands still
        self._log_mark = self._totals()
        self._session_mark: tuple[float, torch.Tensor] | None = None

    def count(self, inputs: Mapping[str, Any], num_items: int) -> None:
        """Adds a batch.

        Args:
            inputs: of the model.
            num_items: 0 for the length of the first input.
        """
        tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
        self._items += num_items or (len(tensors[0]) if tensors else 0)
        labels, token_ids = inputs.get("labels"), inputs.get("input_ids")
        if not isinstance(labels, torch.Tensor) or labels.dim() != 2 or labels.is_floating_point():
            return  # of pictures
        learnt = (labels >= 0).sum()
        if token_ids is None:
            tokens = learnt
        elif (mask := inputs.get("attention_mask")) is not None:
            tokens = mask.sum()
        else:
            tokens = torch.full_like(learnt, token_ids.numel())
        self._learnt = learnt if self._learnt is None else self._learnt + learnt
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def pause(self) -> None:
        """Stops the time, before what is no step."""
        if self._since is not None:
            self._active, self._since = self._active + time.perf_counter() - self._since, None

    def go_on(self) -> None:
        """Lets the time run again, if it stands still."""
        if self._since is None:
            self._since = time.perf_counter()

    def end_step(self) -> None:
        """Notes that a step is done."""
        self._num_steps += 1
        if self._num_steps == _WARM_UP_STEPS:
            self._session_mark = self._totals()

    def now(self, num_processes: int) -> dict[str, float]:
        """As `since_log`, of this process's share times the number of processes; nothing is noted."""
        return self._rates(self._log_mark, lambda totals: totals * num_processes)

    def since_log(self, summed: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """`items_per_second`, with tokens also `tokens_per_second` and `learnt_tokens_per_second`, since the last call.

        Args:
            summed: adds up a tensor over all processes.
        """
        rates = self._rates(self._log_mark, summed)
        self._log_mark = self._totals()
        return rates

    def of_session(self, summed: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float | None]:
        """The same of the session without its first two steps; each None of a session that has no others, or no tokens."""
        rates: dict[str, float] = {}
        if self._session_mark is not None and self._num_steps > _WARM_UP_STEPS:
            rates = self._rates(self._session_mark, summed)
        return {name: rates.get(name) for name in _NAMES}

    def _totals(self) -> tuple[float, torch.Tensor]:
        """Seconds, and int64 (3,): items, tokens, tokens learnt; not yet read from the device."""
        active = self._active + (0.0 if self._since is None else time.perf_counter() - self._since)
        none = torch.tensor(0)
        tokens, learnt = (none if count is None else count for count in (self._tokens, self._learnt))
        return active, torch.stack([torch.full_like(tokens, self._items), tokens, learnt])

    def _rates(
        self, mark: tuple[float, torch.Tensor], summed: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, float]:
        (before, counted), (now, totals) = mark, self._totals()
        if now <= before:
            return {}
        per_second = summed(totals - counted.to(totals)) / (now - before)
        rates = dict(zip(_NAMES, per_second.tolist(), strict=True))
        return rates if self._tokens is not None else {_NAMES[0]: rates[_NAMES[0]]}


class Progress(TrainerCallback):
    """Shows where a run is, on stderr: steps, loss, speed, learning rate, time left; and every evaluation's scores.

    Args:
        speed: of this process.
        last_loss: gives the loss of the last step.
    """

    def __init__(self, speed: Speed, last_loss: Callable[[], float | None]) -> None:
        self.speed, self.last_loss = speed, last_loss
        self._bar: Any = None
        self._is_shown = False
        self._begun = self._told = self._measured = 0.0
        self._first_step = 0
        self._sum_of_losses, self._num_losses = 0.0, 0
        self._rates: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar; this is where the time begins."""
        self.speed.begin()
        self._begun = self._told = self._measured = time.monotonic()
        self._first_step = state.global_step
        self._sum_of_losses, self._num_losses, self._rates = 0.0, 0, {}
        self._is_shown = state.is_world_process_zero
        if self._is_shown and sys.stderr.isatty() and not args.disable_tqdm:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Moves the bar, or writes a line where one is due."""
        self.speed.end_step()
        if not self._is_shown:
            return
        if (loss := self.last_loss()) is not None:
            self._sum_of_losses, self._num_losses = self._sum_of_losses + loss, self._num_losses + 1
        if self._bar is None and not self._is_due():
            return
        now = time.monotonic()
        if self._bar is None or now - self._measured > _SECONDS_BETWEEN_SPEEDS:
            self._rates, self._measured = self.speed.now(args.world_size), now
        told = ", ".join(self._numbers(optimizer))
        if self._bar is None:
            done = state.global_step - self._first_step
            left = (now - self._begun) / done * (state.max_steps - state.global_step)
            self._write(f"step {state.global_step} of {state.max_steps}, {told}, {_duration(left)} left")
        else:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes what an evaluation found; the loss shown is from here on that of the steps after."""
        scores = {name: value for name, value in (logs or {}).items() if name.startswith("eval_")}
        if self._is_shown and scores:
            numbers = (f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, int | float))
            self._write(f"step {state.global_step}: {', '.join(numbers)}")
        if "loss" in (logs or {}):
            self._sum_of_losses, self._num_losses = 0.0, 0

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Says now and then that an evaluation goes on."""
        if self._is_shown and self._is_due():
            self._write(f"step {state.global_step}: validating")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar and says how long it took."""
        if not self._is_shown:
            return
        self.close()
        steps = state.global_step - self._first_step
        self._write(f"{steps} steps in {_duration(time.monotonic() - self._begun)}")
        self._is_shown = False

    def close(self) -> None:
        """Takes the bar away, also from a run that failed."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _numbers(self, optimizer: Any) -> list[str]:
        numbers = []
        if self._num_losses:
            numbers.append(f"loss {self._sum_of_losses / self._num_losses:.4g}")
        units = zip(_NAMES, ("items/s", "tokens/s", "learnt/s"), strict=True)
        numbers += [f"{_rounded(self._rates[name])} {unit}" for name, unit in units if name in self._rates]
        if optimizer is not None:
            numbers.append(f"learning rate {max(group['lr'] for group in optimizer.param_groups):.3g}")
        return numbers

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES:
            return False
        self._told = now
        return True

    def _write(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
