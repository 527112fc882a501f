"""What the watch over a run costs: milliseconds of a step, and of what supervision adds to it.

    python scripts/benchmarks/supervision.py RECIPE [key=value ...] [--steps 60]

Trains the recipe for some steps, without checkpoints and evaluations, in a folder that is thrown away. The first ten steps
don't count. On a GPU the watch includes the wait for the device, once a step; transformers' own filter of losses, which is
off then, waits at every batch.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

from transformers import TrainerCallback

from hf_vlm.training.tasks import build_trainer, load_recipe

_WARM_UP = 10


class Steps(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes the time."""
        self.ends.append(time.perf_counter())


def timed(owner: Any, name: str, spent: list[float]) -> None:
    """Makes a method note how long it takes."""
    method = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        spent.append(time.perf_counter() - begun)
        return result

    setattr(owner, name, call)


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "max_steps": arguments.steps, "logging_steps": 1000}
        settings |= {"save_strategy": "'no'", "eval_strategy": "'no'", "load_best_model_at_end": "false"}
        fixed = [f"training.{name}={value}" for name, value in settings.items()]
        trainer: Any = build_trainer(load_recipe(arguments.recipe, [*arguments.overrides, *fixed]))
        steps, watched, counted = Steps(), list[float](), list[float]()
        trainer.add_callback(steps)
        timed(trainer, "_watch", watched)
        timed(trainer.speed, "count", counted)
        trainer.train()
    step = statistics.median(
        after - before for before, after in zip(steps.ends[_WARM_UP:-1], steps.ends[_WARM_UP + 1 :], strict=True)
    )
    batches = len(counted) / len(watched)
    of_watch, of_count = (statistics.median(spent[_WARM_UP:]) for spent in (watched, counted))
    print(f"{trainer.args.device}: a step takes {1e3 * step:.1f} ms, of it the watch {1e3 * of_watch:.3f} ms")
    print(f"and counting items and tokens {1e3 * of_count * batches:.3f} ms, in {batches:g} batches (medians)")


if __name__ == "__main__":
    main()
