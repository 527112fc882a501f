#!/bin/sh
# Run the tests: `sh scripts/test.sh` the quick ones, `sh scripts/test.sh --all` also the slow ones and transformers' own.
# Further arguments go to pytest: `sh scripts/test.sh tests/blocks -k position`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_environment dev

# Two workers that each keep to one core; no test may ask the Hub.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1

if [ "${1:-}" = "--all" ]; then
    shift
    python -m pytest -n 2 --dist worksteal "$@"
    python scripts/fetch_transformers_tests.py
    exec python -m pytest -n 2 --dist worksteal tests/hub_mixins
fi
exec python -m pytest -n 2 --dist worksteal -m "not slow" "$@"
