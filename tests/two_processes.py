"""Two ranks of gloo for a test, whatever the process that asks for them has done before."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(rank, *arguments)`, a module's own, in two processes, and raises what either raises.

    They are forked from a fresh process that has imported our code and done nothing: a fork of this one breaks where autograd
    has begun threads, and processes from nothing would each import torch anew.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["hf_vlm.training.llava"])
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")
