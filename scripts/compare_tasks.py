"""How well models caption, answer and translate, beside what needs no learning: a table of the records of `hf-vlm evaluate`.

    python scripts/compare_tasks.py RECORD.json ... --vision RUN [--json FILE]

Records are what `hf-vlm evaluate MODEL DATA --task TASK --record RECORD.json` wrote. Three baselines are measured on their rows:

    commonest    the commonest training answer to questions of the same words, the nearest in words where there are none
    neighbour    the answer to the question nearest in words among those about the nearest training pictures, by the cosine of
                 the mean of the features of RUN's frozen vision encoder; a caption is that of the nearest picture
    copied       of translations: the English words themselves

Of larger sets the baselines know 1,000 rows; all questions about a picture are one. RUN is a LLaVA. Minutes are those that the
trainer counted (`trainer_state.json` beside the model).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from compare_llava import Known

from hf_vlm.data.tasks.task_rows import read_task
from hf_vlm.training.scores.conversation_evaluation import load_visual_chat
from hf_vlm.training.scores.task_evaluation import spread_rows
from hf_vlm.training.scores.task_metrics import TASK_METRICS, score_task


def main() -> None:
    """Read the records, measure the baselines, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--vision", required=True, help="folder of a LLaVA, whose vision encoder looks for neighbours")
    parser.add_argument(
        "--train-rows", type=int, default=1000, help="that the baselines know, spread evenly; default 1000"
    )
    parser.add_argument("--json", type=Path, help="file for every score")
    options = parser.parse_args()
    model, processor = load_visual_chat(options.vision)
    known: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    lines = []
    for file in options.records:
        record = json.loads(file.read_text(encoding="utf-8"))
        key = tuple(str(record[name]) for name in ("task", "data", "split", "prompt", "max_rows"))
        if key not in known:
            known[key] = baselines(record, model, processor, options.train_rows)
        lines.append({"record": file.stem, "minutes": minutes_of(record["model"]), **record, "baselines": known[key]})
        print(line_of(lines[-1]), flush=True)
    print("\n| record | task | pictures | model, M | minutes | rows | scores | commonest | neighbour | copied |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        print(line_of(line))
    if options.json:
        kept = [{name: value for name, value in line.items() if name != "examples"} for line in lines]
        options.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def baselines(record: dict[str, Any], model: Any, processor: Any, max_train_rows: int) -> dict[str, dict[str, float]]:
    """The scores of what needs no learning, on a record's rows."""
    settings = {name: record.get(name) for name in ("task", "prompt", "columns", "image_folder")}
    rows = spread_rows(read_task(record["data"], record["split"], **settings), record["max_rows"], record["task"])
    train = read_task(record["data"], "train", **settings, max_exchanges=1000).spread(max_train_rows)
    references: list[Any] = [rows.references(index) for index in range(len(rows))]
    groups = [rows.group(index) or rows.question(index) for index in range(len(rows))]
    of_train = Known(train, model, processor)
    answers = {"commonest": of_train.most_common(rows), "neighbour": of_train.nearest(rows)}
    if record["task"] == "translate":
        answers["copied"] = [rows.question(index).split("\n")[0] for index in range(len(rows))]
    metrics = record.get("metrics", record["task"])
    return {name: score_task(metrics, references, said, groups) for name, said in answers.items()}


def minutes_of(model: str) -> float | None:
    """How long a model was trained, by its trainer; None if that is not told."""
    state = Path(model) / "trainer_state.json"
    if not state.is_file():
        return None
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    return seconds[-1] / 60 if seconds else None


def line_of(line: dict[str, Any]) -> str:
    """A row of the table."""
    parameters = f"{line['parameters'] / 1e6:.1f}" if "parameters" in line else "-"
    minutes = f"{line['minutes']:.0f}" if line["minutes"] is not None else "-"
    names = TASK_METRICS[line.get("metrics", line["task"])]
    told = [spelled({name: line[name] for name in names if name in line})]
    told += [spelled(line["baselines"].get(name, {})) for name in ("commonest", "neighbour", "copied")]
    cells = [line["record"], line["task"], line["pictures"], parameters, minutes, str(line["num_questions"]), *told]
    return f"| {' | '.join(cells)} |"


def spelled(scores: dict[str, float]) -> str:
    """Scores, shares in per cent."""
    told = [
        f"{name} {value:.3f}" if name == "cider" else f"{name} {value if name in ('bleu', 'chrf') else 100 * value:.1f}"
        for name, value in scores.items()
    ]
    return ", ".join(told) or "-"


if __name__ == "__main__":
    main()
