"""What torch says of memory, disks and dead workers, in words that say what to do."""

import errno
import signal
from typing import Any

import torch
from safetensors import SafetensorError

from hf_vlm.training.estimates.memory import memory_advice

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "DefaultCPUAllocator", "ALLOC_FAILED")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_DISK_WRITES = ("PytorchStreamWriter", "file write failed", "inline_container", "unexpected pos")


def in_words(trainer: Any, error: Exception) -> Exception | None:
    """What to raise in the place of an error of a run; None for one that says by itself what to do.

    Args:
        trainer: whose run it is.
        error: that `train` raised.

    Returns: a MemoryError where a step found no room, an OSError where a worker of the data loader died or found none.
    """
    text = str(error)
    workers = trainer.args.dataloader_num_workers
    of_workers = (
        f"Lower `training.dataloader_num_workers`, now {workers}, or `training.dataloader_prefetch_factor`. Checkpoints are "
        "whole: `--resume` goes on from the last."
    )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        reason = text.partition("\n")[0].strip().rstrip(".")
        if received := trainer.stop_signals.received:
            return OSError(
                f"Workers of the data loader are wanted alive until the step is saved, got {signal.Signals(received).name}: "
                f"{reason}. Checkpoints are whole: `--resume` goes on from the last."
            )
        return OSError(
            f"Workers of the data loader are wanted alive, got: {reason}. The system kills one, without a word, where memory "
            f"(or /dev/shm) is used up. {of_workers}"
        )
    if text.startswith("Caught MemoryError"):
        return OSError(f"Room for a batch is wanted in the workers of the data loader, got none. {of_workers}")
    if is_out_of_memory(error):
        return MemoryError(memory_advice(trainer, error))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def is_failed_write(error: BaseException) -> bool:
    """Whether the disk took no more: told by Python, safetensors or torch, each of which says so in its own way."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    if isinstance(error, SafetensorError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _DISK_WRITES)
