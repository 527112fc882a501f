"""Put transformers' own test files on the path, and apply the list of skipped tests."""

import fnmatch
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_transformers_tests.py"
FOLDER = runpy.run_path(str(SCRIPT))["FOLDER"]

if not FOLDER.exists():
    raise pytest.UsageError(
        f"transformers' own test files are wanted in {FOLDER}, got no such folder. Run `python {SCRIPT}` first."
    )
sys.path.insert(0, str(FOLDER))

from tests.hub_mixins.skips import SKIPS  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the list names; where everything was collected, refuse entries that name nothing any more."""
    used = set()
    for item in items:
        name = item.nodeid.split("hub_mixins/")[-1]  # test_vit_mixins.py::ClassName::test_name
        for pattern, reason in SKIPS.items():
            if fnmatch.fnmatch(name, pattern):
                used.add(pattern)
                item.add_marker(pytest.mark.skip(reason=reason))
    modules = {item.nodeid.split("::")[0] for item in items}
    if len(modules) == len(list(Path(__file__).parent.glob("test_*.py"))) and not config.option.keyword:
        unused = [pattern for pattern in SKIPS if pattern not in used]
        if unused:
            raise pytest.UsageError(f"Every skip must name a test, got {unused}. Take them out of skips.py.")
