"""Where results and complaints go: results to stdout, as text or as one JSON object a line, all else to stderr."""

import argparse
import json
import sys
from typing import Any


def write_result(options: argparse.Namespace, as_json: dict[str, Any], as_text: object) -> None:
    """Writes a result: as JSON if `--json` was given, else as text. An empty text is not written."""
    if options.json:
        print(json.dumps(as_json, ensure_ascii=False, default=str), file=options.stdout, flush=True)
    elif str(as_text):
        print(as_text, file=options.stdout, flush=True)


def complain(message: object) -> None:
    """Writes one line to stderr, under the program's name."""
    print(f"hf-vlm: {message}", file=sys.stderr, flush=True)
