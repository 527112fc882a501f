"""How well LLaVAs answer questions about pictures, beside what needs no language model or no eyes: one table.

    python scripts/compare_llava.py DATA --runs "phase 1=runs/llava-projector" "phase 2=runs/llava-chat" --train emoji-chat \
        --sets emoji-chat:validation emoji-chat:openmoji_seen [--blind "phase 2"] [--questions 400] [--json FILE]

DATA is made by `scripts/make_picture_conversations.py`; runs are folders of `hf-vlm train`, models or adapters. Two baselines
are measured on the same questions: `most common answer` is the commonest training answer to questions of the same words (what
stands in quotation marks aside), the nearest in words where there are none; `nearest neighbour` looks up the training pictures
nearest to the question's (cosine of the mean of the frozen vision encoder's features of the first run), and takes the answer to
the question nearest in words among those asked about them. `--blind NAME` asks a run without the pictures.

Scores: exact match in % and chrF (sacrebleu), by kind of question in the JSON.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk

from hf_vlm.data.conversations.conversations import Conversations, read_conversations
from hf_vlm.training.scores.conversation_evaluation import load_visual_chat
from hf_vlm.training.scores.metrics import chrf, exact_match
from hf_vlm.training.scores.task_evaluation import evaluate_rows

NEIGHBOURS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="folder of sets of conversations")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--blind", nargs="*", default=[], metavar="NAME", help="runs asked without pictures too")
    parser.add_argument("--train", required=True, help="the set that was learnt from; its split `train`")
    parser.add_argument("--sets", nargs="+", required=True, metavar="SET:SPLIT")
    parser.add_argument("--questions", type=int, default=400, help="of each set, spread evenly; default 400")
    parser.add_argument(
        "--max-train-rows", type=int, help="training rows that the baselines know, as `max_rows` of the run"
    )
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", help="file for every score and answer")
    options = parser.parse_args()

    for entry in options.runs:
        if "=" not in entry:
            parser.error(f"`--runs` wants NAME=FOLDER, got {entry!r}. Give the run a name.")
    runs = dict(entry.split("=", 1) for entry in options.runs)
    if unknown := sorted(set(options.blind) - set(runs)):
        parser.error(f"`--blind` wants names among {', '.join(runs)}, got {unknown[0]!r}. Correct it.")
    data = Path(options.data)
    train = spread(read_conversations(data / options.train, "train"), options.max_train_rows)
    sets = {}
    for name in options.sets:
        folder, _, split = name.partition(":")
        rows = read_conversations(data / folder, split)
        sets[name] = (rows, load_from_disk(str(data / folder))[split]["kind"], indices_of(len(rows), options.questions))

    model, processor = load_visual_chat(next(iter(runs.values())))
    known = Known(train, model, processor)
    results: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, (rows, kinds, indices) in sets.items():
        asked = rows.select(indices)
        of_kinds = [kinds[index] for index in indices]
        for baseline in (known.most_common, known.nearest):
            title = {"most_common": "most common answer", "nearest": "nearest neighbour"}[baseline.__name__]
            results[title][name] = scores([reference(asked, at) for at in range(len(asked))], baseline(asked), of_kinds)
    for run, folder in runs.items():
        model, processor = load_visual_chat(folder)
        for name, (rows, _, indices) in sets.items():
            for blind in (False, True) if run in options.blind else (False,):
                measured = evaluate_rows(
                    model,
                    processor,
                    rows.select(indices),
                    task="chat",
                    pictures="none" if blind else "own",
                    batch_size=options.batch_size,
                    max_new_tokens=options.max_new_tokens,
                )
                results[f"{run}, without pictures" if blind else run][name] = measured.to_dict()
                print(f"{run}{' without pictures' if blind else ''}, {name}: {measured}", flush=True)
    print("\n" + table(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Known:
    """What the training set says: its questions, answers and pictures.

    Args:
        rows: the training set.
        model, processor: for the features of pictures.
    """

    def __init__(self, rows: Conversations, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.exchanges: list[list[tuple[str, str]]] = []  # of each row: (question, answer)
        for index in range(len(rows)):
            messages = [message for message in rows.messages(index) if message["role"] != "system"]
            pairs = zip(messages[::2], messages[1::2], strict=True)
            self.exchanges.append([(question_words(text(asked)), text(said)) for asked, said in pairs])
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        for exchanges in self.exchanges:
            for question, answer in exchanges:
                self.answers[question][answer] += 1
        self.features = self.features_of(rows)

    def features_of(self, rows: Conversations) -> np.ndarray:
        """Mean of the patches of each row's pictures, float (rows, width), of length 1; zeros for a row without pictures."""
        vectors: dict[int, np.ndarray] = {}
        for first in range(0, len(rows), 32):
            indices = [index for index in range(first, min(first + 32, len(rows))) if rows.num_images(index)]
            if not indices:
                continue
            pictures = [rows.images(index) for index in indices]
            pixels = self.processor.prepare_images([picture for of_row in pictures for picture in of_row])
            with torch.inference_mode():
                seen = self.model.vision_features(pixels).mean(dim=1)
            parts = seen.split([len(of_row) for of_row in pictures])
            vectors |= {index: part.mean(dim=0).numpy() for index, part in zip(indices, parts, strict=True)}
        known = self.features.shape[1] if hasattr(self, "features") else 1
        width = next((len(vector) for vector in vectors.values()), known)
        matrix = np.stack([vectors.get(index, np.zeros(width, np.float32)) for index in range(len(rows))])
        return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)

    def most_common(self, rows: Conversations) -> list[str]:
        """To each row's question the commonest answer to questions of the same words."""
        return [self.commonest(asked_words(rows, index)) for index in range(len(rows))]

    def commonest(self, question: str) -> str:
        nearest = (
            question if question in self.answers else max(self.answers, key=lambda known: overlap(known, question))
        )
        return self.answers[nearest].most_common(1)[0][0]

    def nearest(self, rows: Conversations) -> list[str]:
        """To each row's question the answer to the nearest question about the nearest pictures."""
        closeness = self.features_of(rows) @ self.features.T  # (asked, known)
        said = []
        for index, row in enumerate(closeness):
            question = asked_words(rows, index)
            near = np.argsort(-row)[:NEIGHBOURS]
            candidates = [
                (overlap(known, question), -rank, answer)
                for rank, at in enumerate(near)
                for known, answer in self.exchanges[at]
            ]
            said.append(max(candidates)[2])
        return said


def scores(references: list[str], answers: list[str], kinds: list[str]) -> dict[str, Any]:
    by_kind = {}
    for kind in sorted(set(kinds)):
        at = [index for index, of_row in enumerate(kinds) if of_row == kind]
        wanted, said = [references[index] for index in at], [answers[index] for index in at]
        by_kind[kind] = {"exact_match": exact_match(wanted, said), "chrf": chrf(wanted, said), "num_questions": len(at)}
    return {"exact_match": exact_match(references, answers), "chrf": chrf(references, answers), "by_kind": by_kind}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each who answered, a column for each set."""
    sets = list(next(iter(results.values())))
    return _markdown(
        "exact match, % / chrF", sets, {name: [of_sets[of_set] for of_set in sets] for name, of_sets in results.items()}
    )


def table_by_kind(results: dict[str, dict[str, Any]], of_set: str) -> str:
    """Markdown: a row for each kind of question of a set, a column for each who answered."""
    kinds = next(iter(results.values()))[of_set]["by_kind"]
    rows = {kind: [of_sets[of_set]["by_kind"][kind] for of_sets in results.values()] for kind in kinds}
    return _markdown("question", list(results), rows)


def _markdown(title: str, columns: list[str], rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, of_row in rows.items():
        cells = [f"{100 * scores['exact_match']:.1f} / {scores['chrf']:.1f}" for scores in of_row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(rows: Conversations, number: int | None) -> Conversations:
    return rows if number is None else rows.select(indices_of(len(rows), number))


def indices_of(length: int, number: int) -> list[int]:
    """As many indices as asked for, spread evenly."""
    return np.unique(np.linspace(0, length - 1, min(number, length)).round().astype(int)).tolist()


def reference(rows: Conversations, index: int) -> str:
    return text(rows.messages(index)[-1])


def asked_words(rows: Conversations, index: int) -> str:
    return question_words(text(rows.messages(index)[-2]))


def question_words(question: str) -> str:
    """A question without what it quotes."""
    return re.sub(r'"[^"]*"', '""', question).strip()


def overlap(one: str, other: str) -> float:
    """Share of words in common (Jaccard)."""
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / max(len(words | others), 1)


def text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


if __name__ == "__main__":
    main()
