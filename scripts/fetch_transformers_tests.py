"""Fetch transformers' own test mixins for `tests/hub_mixins`, once.

transformers' wheel has no tests; its source distribution has the `test_*_common.py` files that hold the mixins. This
downloads the pinned distribution through pip, which refuses it unless its hash is the one written here, and lays the
files out as the package `transformers_tests` under `.cache/` of the checkout, with a stand-in for each module that they
import but the distribution lacks.

    python scripts/fetch_transformers_tests.py
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "5.24.0"
SHA256 = "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3"
FOLDER = Path(__file__).resolve().parents[1] / ".cache" / f"transformers-{VERSION}-tests"

# Tests that would download a photograph get a drawing of the same size.
LOCAL_PICTURE = """
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = Path(__file__).with_name("picture.png")


def url_to_local_path(url, *args, **kwargs):
    if not PICTURE.exists():
        y, x = np.mgrid[0:480, 0:640]
        waves = [np.sin(x / 37) * np.cos(y / 23), np.sin((x + y) / 51), np.cos(np.hypot(x - 320, y - 240) / 19)]
        Image.fromarray((127.5 + 127.5 * np.stack(waves, axis=-1)).astype("uint8")).save(PICTURE)
    return str(PICTURE)
"""

# What the files import and the source distribution lacks: just enough to be imported. A test that would need the real
# thing (generation's mixin, exporters, several processes) does not run here.
STAND_INS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/distributed_testing_utils.py": (
        "def run_distributed(*args, **kwargs):\n    raise RuntimeError('not in the source distribution')\n"
    ),
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "problem_type": "regression"}\n'
    ),
    "fetch_hub_objects_for_ci.py": LOCAL_PICTURE,
}


def download(folder: Path) -> Path:
    """The source distribution's archive, downloaded into `folder` and checked against `SHA256` by pip."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"transformers=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--require-hashes", "--requirement", str(requirements)]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def lay_out(archive: Path, folder: Path) -> None:
    """Write the archive's `tests/*.py` and the stand-ins into `folder`."""
    for name, source in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            path = Path(member.name)  # transformers-5.24.0/tests/test_modeling_common.py
            if path.match(f"transformers-{VERSION}/tests/*.py"):
                (folder / "transformers_tests" / path.name).write_bytes(files.extractfile(member).read())


def main() -> None:
    """Make `FOLDER`, unless it is there already."""
    if FOLDER.exists():
        return
    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        laid_out = Path(scratch) / "laid_out"
        laid_out.mkdir()
        lay_out(download(Path(scratch)), laid_out)
        shutil.move(laid_out, FOLDER)  # whole or not at all: an interrupted run leaves nothing half done
    print(f"transformers {VERSION}'s test mixins: {FOLDER}")


if __name__ == "__main__":
    main()
