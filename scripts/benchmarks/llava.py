"""Answers and training of our LLaVA beside transformers' `LlavaForConditionalGeneration`, in turns in one run.

    python scripts/benchmarks/llava.py [--shape small] [--batches 1 16] [--json FILE]
    python scripts/benchmarks/llava.py --device cuda --dtype bfloat16 --shape llava-1.5-7b --batches 1 16 --skip-training
    python scripts/benchmarks/llava.py --device cuda --dtype bfloat16 --shape llama-1.1b --batches --conversations 16

Both hold the same random weights and read the same pictures and tokens. `first token` is the time to the first word of an answer
to a picture and a question; `decode` are the words after it, at a fixed number, none of which ends the answer. `training` is the
second phase: forward, backward and AdamW on projector and language model over the same conversations, whose lengths are spread
as in instruction data (log-normal, mean 196 tokens of text, at most 1,024): the peer pads them to a batch, ours packs them into a
row without padding and makes logits 1,024 tokens at a time; rates count tokens that are no padding. `ours padded` is ours on the
peer's batch. On a CPU peak memory is that of the tensors that the step keeps for its backward pass, of each alone.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generate import CLOCKS, environment, in_turns, report
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hf_vlm import LlavaVisionLanguageConfig, LlavaVisionLanguageForConditionalGeneration
from hf_vlm.data.collators import ConversationCollator
from hf_vlm.models.llava.weights_llava import config_from_llava, weights_from_llava

_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {
            "image_size": 112,
            "patch_size": 14,
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 768,
        },
        {
            "vocab_size": 16384,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
        },
    ),
    # TinyLlama's: https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "llama-1.1b": (
        {**_CLIP_L, "image_size": 336},
        {
            "vocab_size": 32064,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
    ),
    "llava-1.5-7b": ({**_CLIP_L, "image_size": 336}, {"vocab_size": 32064}),
}
IMAGE_TOKEN = 5


def build_models(shape: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Ours and the peer, of equal random weights."""
    vision, text = SHAPES[shape]
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text, max_position_embeddings=4096, pad_token_id=0),
        image_token_index=IMAGE_TOKEN,
    )
    torch.set_default_dtype(dtype)
    with torch.device(device):
        peer = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    own = LlavaVisionLanguageConfig(**config_from_llava(config.to_dict()))
    state = weights_from_llava({name: tensor for name, tensor in peer.state_dict().items()}, own)
    ours = LlavaVisionLanguageForConditionalGeneration.from_pretrained(None, config=own, state_dict=state, dtype=dtype)
    for model in (ours, peer):
        model.to(device=device, dtype=dtype).eval()
        model.generation_config.eos_token_id = model.generation_config.max_length = None
        model.generation_config.pad_token_id = 0
    return ours, peer


def question(peer: Any, ours: Any, batch: int) -> dict[str, torch.Tensor]:
    """A picture and 32 tokens of text each, as both take them."""
    size = peer.config.vision_config.image_size
    tokens = torch.randint(10, peer.config.text_config.vocab_size, (batch, 32), device=peer.device)
    places = torch.full((batch, ours.config.num_image_tokens), IMAGE_TOKEN, device=peer.device)
    input_ids = torch.cat([tokens[:, :16], places, tokens[:, 16:]], dim=1)
    pixels = torch.randn(batch, 3, size, size, device=peer.device, dtype=peer.dtype)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}


def conversations(ours: Any, peer: Any, number: int) -> list[dict[str, Any]]:
    """Encoded conversations, each with a picture, of lengths as instruction data has."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(196) - 0.32, 0.8, number)), 16, 1024).astype(int)
    lengths = np.maximum(16, (lengths * 196 * number / lengths.sum()).astype(int))
    size = peer.config.vision_config.image_size
    rows = []
    for length in lengths:
        words = torch.from_numpy(generator.integers(10, peer.config.text_config.vocab_size, length))
        ids = torch.cat([torch.full((ours.config.num_image_tokens,), IMAGE_TOKEN), words])
        labels = ids.clone()
        labels[: ours.config.num_image_tokens + length // 3] = -100  # the question
        pixels = torch.randn(1, 3, size, size)
        rows.append({"input_ids": ids, "labels": labels, "pixel_values": pixels, "source": ""})
    return rows


def training_step(model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """A function that trains one step; the vision encoder is frozen."""
    model.train()
    vision = model.vision_model if hasattr(model, "vision_model") else model.model.vision_tower
    vision.requires_grad_(False)
    on_gpu = batch["labels"].is_cuda
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5, fused=on_gpu
    )

    def step() -> None:
        with torch.autocast(batch["labels"].device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kept_bytes(model: Any, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> int:
    """Bytes that a step keeps for its backward pass, weights aside; on a GPU the peak of what is allocated."""
    if batch["labels"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        training_step(model, batch, dtype)()
        return torch.cuda.max_memory_allocated()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(**batch).loss.backward()
    model.zero_grad()
    return sum(kept.values())


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, default=32, help="words of an answer, default 32")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16], help="questions at a time")
    parser.add_argument("--conversations", type=int, default=8, help="of a training step, default 8")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, default 7")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    dtype = getattr(torch, arguments.dtype)

    figures = {"environment": environment(arguments), "cases": []}
    ours, peer = build_models(arguments.shape, arguments.device, dtype)
    for batch in arguments.batches:
        inputs = question(peer, ours, batch)

        def call(model: Any, number: int, inputs: dict[str, torch.Tensor] = inputs, **how: Any) -> Callable[[], Any]:
            return lambda: model.generate(
                **inputs, min_new_tokens=number, max_new_tokens=number, do_sample=False, **how
            )

        firsts = {"transformers default": call(peer, 1), "hf-vlm default": call(ours, 1)}
        case = f"first token, batch {batch}"
        figures["cases"].append(report(case, in_turns(firsts, arguments.rounds, arguments.clock), batch, "answers/s"))
        answers = {"transformers default": call(peer, arguments.tokens), "hf-vlm default": call(ours, arguments.tokens)}
        static = {"cache_implementation": "static"}
        answers["transformers static"] = call(peer, arguments.tokens, **static)
        answers["hf-vlm static"] = call(ours, arguments.tokens, **static)
        case = f"decode, batch {batch}, {arguments.tokens} tokens, the first included"
        number = batch * arguments.tokens
        figures["cases"].append(report(case, in_turns(answers, arguments.rounds, arguments.clock), number, "tokens/s"))
        if dtype == torch.float32:
            print(f"  same tokens: {torch.equal(answers['hf-vlm default'](), answers['transformers default']())}")

    if not arguments.skip_training:
        rows = conversations(ours, peer, arguments.conversations)
        padded = ConversationCollator(0, is_packed=False)(rows)
        packed = ConversationCollator(0, is_packed=True)(rows)
        ours, peer = (model.float() for model in (ours, peer))
        batches = [{name: value.to(peer.device) for name, value in batch.items()} for batch in (padded, packed)]
        real = int(padded["attention_mask"].sum())
        share = 1 - real / padded["attention_mask"].numel()
        print(f"\n{real} tokens, padding {100 * share:.0f} % of the padded batch")
        ours.train(), peer.train()
        memory = {"transformers": kept_bytes(peer, batches[0], dtype)}
        runs = {"transformers default": training_step(peer, batches[0], dtype)}
        ours.loss_chunk_size = 1024
        memory["hf-vlm packed"] = kept_bytes(ours, batches[1], dtype)
        runs["hf-vlm packed"] = training_step(ours, batches[1], dtype)
        runs["hf-vlm padded"] = training_step(ours, batches[0], dtype)
        case = f"training, {arguments.conversations} conversations"
        results = in_turns(runs, arguments.rounds, arguments.clock)
        figures["cases"].append(report(case, results, real, "tokens/s"))
        figures["memory_bytes"] = memory
        kind = "peak memory" if on_gpu else "kept for the backward pass"
        print("  " + ", ".join(f"{name} {amount / 2**20:.0f} MiB" for name, amount in memory.items()) + f" ({kind})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
