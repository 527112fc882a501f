"""What every test runs under: CPU, no Hub, one seed."""

import os

# Read by transformers, huggingface_hub and torch when they are imported, so before any of them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # on a machine with a GPU too: bit-for-bit tests are about the CPU

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random weights and data are the same in every run and in any order of tests."""
    transformers.set_seed(0)


@pytest.fixture(autouse=True, scope="session")
def quiet_progress() -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
