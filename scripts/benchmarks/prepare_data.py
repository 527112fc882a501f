"""Speed of what is done to data before training or instead of it, by several numbers of processes.

    python scripts/benchmarks/prepare_data.py OUT [--rows 4000] [--processes 1 2] [--tokenizer FOLDER] [--only encode ...]

OUT gets a data set drawn by chance: conversations of three exchanges about one photograph-like JPEG of 640 x 480 pixels, and
lines of text, pictures of 384 x 48 pixels. Then it prints rows/s, and the time that all processes together had a processor, of

    encode         conversations -> tokens, as before a LLaVA's training (`data.num_proc`), 576 tokens a picture
    audit          `hf-vlm audit` of the conversations, pictures opened and tokens counted (`--num-proc`)
    audit-lines    `hf-vlm audit` of the lines (`--num-proc`)
    labels         texts of the lines -> tokens, as before a reader's training: one call of the tokenizer, which has threads
    convert        `hf-vlm convert` of the conversations to parquet, in one process

By default the tokenizer is a byte-level BPE of 8,000 tokens, learnt here from the same words.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, PreTrainedTokenizerFast

from hf_vlm.data.conversations.conversation_audit import audit_conversations
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.data.conversations.encoded_conversations import EncodedConversations
from hf_vlm.data.lines.audit import audit_lines
from hf_vlm.data.lines.image_text import read_lines
from hf_vlm.data.tasks.convert import convert
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.pictures import to_grayscale
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.training.trocr import check_labels

NUM_PICTURES = 200  # files; rows take them in turn
ANSWER_WORDS = (10, 90)


def cpu_seconds() -> float:
    """That this process and those that it started have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def words(draw: random.Random, vocabulary: list[str], number: int) -> str:
    """So many words, the first of the list most often."""
    return " ".join(vocabulary[min(int(draw.expovariate(1 / 300)), len(vocabulary) - 1)] for _ in range(number))


def write_data(folder: Path, num_rows: int) -> list[str]:
    """Conversations in `train.jsonl`, lines in `lines/train`; the vocabulary."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    vocabulary = ["".join(draw.choice(letters[:20]) for _ in range(draw.randint(2, 10))) for _ in range(3000)]
    (folder / "lines" / "train").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        coarse = Image.fromarray(noise.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        grey = Image.fromarray(noise.integers(0, 255, (12, 96), dtype=np.uint8))
        grey.resize((384, 48), Image.Resampling.BICUBIC).save(folder / "lines" / "train" / f"{number}.png")
    with (folder / "train.jsonl").open("w") as file, (folder / "lines/train/metadata.jsonl").open("w") as lines:
        for number in range(num_rows):
            turns = []
            for exchange in range(3):
                asked = words(draw, vocabulary, draw.randint(5, 15))
                turns.append({"from": "human", "value": f"<image>\n{asked}" if exchange == 0 else asked})
                turns.append({"from": "gpt", "value": words(draw, vocabulary, draw.randint(*ANSWER_WORDS))})
            picture = number % NUM_PICTURES
            file.write(json.dumps({"id": str(number), "image": f"{picture}.jpg", "conversations": turns}) + "\n")
            text = words(draw, vocabulary, draw.randint(4, 9))[:80]
            lines.write(json.dumps({"file_name": f"{picture}.png", "text": text}) + "\n")
    return vocabulary


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these words."""
    draw = random.Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((words(draw, vocabulary, 200) for _ in range(500)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaVisionLanguageProcessor:
    """LLaVA-1.5's: 336 pixels, patches of 14, its template."""
    config = CLIPVisionConfig(image_size=336, patch_size=14, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    size = {"height": 336, "width": 336}
    pictures = CLIPImageProcessor(size=size, crop_size=size)
    return LlavaVisionLanguageProcessor.from_pretrained_parts(
        pictures, tokenizer, vision_config=config, chat_template="llava_v1"
    )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of a tokenizer, in place of the one learnt here")
    kinds = ["encode", "audit", "audit-lines", "labels", "convert"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    datasets.config.HF_DATASETS_CACHE = options.out / "cache"
    vocabulary = write_data(options.out, options.rows)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else build_tokenizer(vocabulary)
    processor = build_processor(tokenizer)
    reader = TrOCREncoderDecoderProcessor.from_pretrained(default_ocr_model())
    rows, lines = read_conversations(options.out), read_lines(options.out / "lines", "train")

    def encode(number: int) -> None:
        encoded = EncodedConversations(rows, processor, max_length=2048, num_proc=number)
        assert len(encoded) == options.rows
        shutil.rmtree(options.out / "cache", ignore_errors=True)

    def audit(number: int) -> None:
        found = audit_conversations(options.out, ["train"], processor=processor, max_length=2048, num_proc=number)
        assert found.is_usable, found

    def of_lines(number: int) -> None:
        audit_lines(options.out / "lines", ["train"], tokenizer=reader.tokenizer, prepare=to_grayscale, num_proc=number)

    def to_parquet(number: int) -> None:
        convert(options.out / "train.jsonl", options.out / "converted", task="chat")
        shutil.rmtree(options.out / "converted")

    works: dict[str, Callable[[int], None]] = {
        "encode": encode,
        "audit": audit,
        "audit-lines": of_lines,
        "labels": lambda number: check_labels(lines, reader),
        "convert": to_parquet,
    }
    print(f"{options.rows} rows, {len(os.sched_getaffinity(0))} CPU cores")
    print(f"{'':12}{'processes':>10}{'seconds':>10}{'rows/s':>10}{'CPU seconds':>13}")
    for name in options.only:
        for number in options.processes if name in ("encode", "audit", "audit-lines") else [1]:
            start, before = time.perf_counter(), cpu_seconds()
            works[name](number)
            seconds = time.perf_counter() - start
            used = cpu_seconds() - before
            print(f"{name:12}{number:10}{seconds:10.1f}{options.rows / seconds:10.0f}{used:13.1f}", flush=True)


if __name__ == "__main__":
    main()
