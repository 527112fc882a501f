#!/bin/sh
# Read real scanned lines with the model that comes with hf-vlm, then teach it with a few more: `sh scripts/try.sh`.
# The first run sets up .venv; neither a GPU nor the Hub is needed. What it makes lies in runs/try.
# With another reader than the shipped one: `sh scripts/try.sh FOLDER`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_environment try

model=${1:-model_cards/trocr-mini-lines}
data=scripts/example_lines
out=runs/try
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
rm -rf "$out"
mkdir -p "$out"

step() { printf '\n== %s\n' "$1"; }
run() { printf '$ %s\n' "$*" >&2 && "$@"; }

step "Read lines of old books, typescripts and soldiers' wills"
run hf-vlm read --model "$model" --json "$data/validation" >"$out/read.jsonl"
python scripts/try_reading.py show "$out/read.jsonl" "$out/read.png"

step "Errors before, on the lines it is about to be taught, and on lines it will not see"
run hf-vlm evaluate "$model" "$data" --split train
run hf-vlm evaluate "$model" "$data" --split validation

step "Fine-tune on the lines of $data/train, for about a minute"
run hf-vlm train trocr-finetune-lines model.pretrained="$model" data.folder="$data" training.output_dir="$out/reader"

step "Errors after, on the same (40 lines teach it those; other hands take some hundreds)"
run hf-vlm evaluate "$out/reader" "$data" --split train
run hf-vlm evaluate "$out/reader" "$data" --split validation

step "Reload what was saved"
run python scripts/try_reading.py reload "$out/reader" "$data"
