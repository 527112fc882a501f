# Sourced by the other scripts: `use_environment EXTRAS` makes a virtual environment of this checkout's own in .venv, installs
# the package into it with the named extras, and puts it first on PATH. Installs again only when pyproject.toml has changed.
#
# PyPI's torch for Linux brings several GB of CUDA libraries. Without a GPU, this is smaller and enough:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu sh scripts/try.sh
# Another Python than `python3`: PYTHON=python3.12 sh scripts/try.sh

use_environment() {
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is wanted, got: $("${PYTHON:-python3}" --version 2>&1). Name one: PYTHON=python3.12 sh $0" >&2
            exit 1
        }
        echo "Creating the virtual environment .venv ..." >&2
        "${PYTHON:-python3}" -m venv .venv || exit 1
    fi
    installed=".venv/installed-$1"
    if [ "$(cat "$installed" 2>/dev/null)" != "$(cksum pyproject.toml)" ]; then
        echo "Installing hf-vlm[$1] into .venv: a few minutes the first time ..." >&2
        .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable ".[$1]" || exit 1
        cksum pyproject.toml >"$installed"
    fi
    VIRTUAL_ENV="$PWD/.venv"
    PATH="$VIRTUAL_ENV/bin:$PATH"
    export VIRTUAL_ENV PATH
}
