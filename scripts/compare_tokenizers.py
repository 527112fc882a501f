"""Visual tokenizers at equal budget: beta-VAEs, VQ-VAEs, rounding, a discrete VAE, and vector-quantize-pytorch's codebook.

    python scripts/compare_tokenizers.py DATA OUT [--epochs 5] [--runs vae-1 vq-ema ...] [--emoji EMOJI] [overrides]
    torchrun --nproc-per-node 2 scripts/compare_tokenizers.py DATA OUT ...    # as many processes as the machine has cores

DATA: a folder as `hf-vlm train vqvae-tokenizer` takes it, such as CIFAR-10's pictures. All see the same pictures in the same
order, with the optimizer of their recipe, one seed.

    vae-BETA      the recipe vae-tokenizer with that weight of the KL; vae-0 is a plain autoencoder
    vq-ema        vqvae-tokenizer: 512 codewords that are running means
    vq-loss       the same, codewords learnt by gradients
    peer-vq       the same, with the VectorQuantize of vector-quantize-pytorch in the place of our codebook: running means of
                  the same decay, k-means start, dead codes replaced, as its README advises, all else as it comes
    levels        rounding to 8 x 8 x 8 levels: 512 codes as well
    binary        9 bits: 512 codes as well
    dvae          dvae-tokenizer: 512 visual words; its schedules shortened with the run

Overrides are `key=value` for all recipes, such as `training.bf16=true`. Figures go to OUT/results.json; a run that stands there
is not run again, one of ours that was interrupted goes on. Pictures go to OUT/figures: samples of VAEs beside those of vae-0, and
with --emoji, the folder of a data set of emoji with splits google and twitter, reconstructions of these by every tokenizer.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel
from vector_quantize_pytorch import VectorQuantize

from hf_vlm.blocks.codebook import DiscreteLatents
from hf_vlm.data.labelled_images import read_images
from hf_vlm.parts.pictures import to_rgb
from hf_vlm.training.image_tokenization import build_trainer, train
from hf_vlm.training.scores.tokenizer_pictures import paired_grid
from hf_vlm.training.tasks import load_recipe
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe

BETAS = ("0", "0.01", "0.1", "0.5", "1", "4")
RUNS = (*(f"vae-{beta}" for beta in BETAS), "vq-ema", "vq-loss", "peer-vq", "levels", "binary", "dvae")
VARIANTS = {
    "vq-loss": ["model.settings.codebook_update=loss"],
    "levels": [
        "model.config.discretisation=levels", "model.config.levels=[8,8,8]", "model.config.num_codes=null",
        "model.config.code_dim=null",
    ],
    "binary": ["model.config.discretisation=binary", "model.config.num_codes=null", "model.config.code_dim=9"],
}  # fmt: skip
ANNEALED_SHARE = 0.8  # of a discrete VAE's run, until its temperature is at its end
SHOWN = 12  # pictures of a row


class PeerCodebook(nn.Module):
    """vector-quantize-pytorch's codebook behind the interface of ours."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.commitment_weight = config.commitment_weight
        self.quantizer = VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.num_codes,
            decay=config.ema_decay,
            commitment_weight=self.commitment_weight,
            kmeans_init=True,
            threshold_ema_dead_code=2,
        )

    def forward(self, latents: torch.Tensor, is_learning: bool | None = None) -> DiscreteLatents:
        quantized, code_ids, loss = self.quantizer(latents.float().flatten(1, 2))
        return DiscreteLatents(
            quantized=quantized.view(latents.shape),
            code_ids=code_ids.view(latents.shape[:-1]),
            codebook_loss=torch.zeros((), device=latents.device),
            commitment_loss=loss.sum() / self.commitment_weight,
        )

    def lookup(self, code_ids: torch.Tensor) -> torch.Tensor:
        return self.quantizer.get_codes_from_indices(code_ids.flatten(1)).view(*code_ids.shape, -1)


def recipe_of(run: str, arguments: argparse.Namespace) -> TokenizerRecipe:
    """The recipe of a run, its budget that of the command line."""
    family, _, beta = run.partition("-")
    name = {"vae": "vae-tokenizer", "dvae": "dvae-tokenizer"}.get(family, "vqvae-tokenizer")
    overrides = [
        f"data.folder={arguments.data}", f"training.output_dir={arguments.out / run}", "training.report_to=none",
        f"training.num_train_epochs={arguments.epochs}", "training.eval_steps=0.25", "training.save_steps=0.25",
        "training.save_total_limit=1", "training.disable_tqdm=true", *VARIANTS.get(run, []), *arguments.overrides,
    ]  # fmt: skip
    if family == "vae":
        overrides.append(f"model.config.beta={beta}")
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, TokenizerRecipe)
    if run == "dvae":
        steps = num_steps(recipe)
        recipe.annealing["temperature"].num_steps = round(ANNEALED_SHARE * steps)
        recipe.annealing["kl_weight"].num_steps = round(ANNEALED_SHARE * steps / 10)
    return recipe


def num_steps(recipe: TokenizerRecipe) -> int:
    """Optimizer steps of a recipe."""
    return build_trainer(recipe).args.max_steps


def run_one(run: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one tokenizer to the end of its budget: its scores, size and time."""
    recipe = recipe_of(run, arguments)
    start = time.perf_counter()
    if run == "peer-vq":
        trainer = build_trainer(recipe)
        torch.manual_seed(trainer.args.seed)
        trainer.model.codebook = PeerCodebook(trainer.model.config)
        trainer.train()
        trainer.save_model()
    else:
        trainer = train(recipe)
    seconds = time.perf_counter() - start
    args = trainer.args
    pictures = trainer.state.global_step * args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    scores = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "pictures": pictures,
        "seconds": round(seconds, 1),
        **{name: value for name, value in scores.items() if isinstance(value, int | float)},
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| run | MSE | PSNR, dB | sharpness | bits/dim | nats a picture: reconstruction, KL | codes or channels in use "
        "| perplexity | parameters | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, found in results.items():
        used = found.get("used_codes", found.get("active_channels"))
        perplexity = f"{found['perplexity']:.0f}" if "perplexity" in found else "-"
        lines.append(
            f"| {run} | {found['mse']:.5f} | {found['psnr']:.2f} | {found['sharpness']:.2f} | {found['bits_per_dim']:.3f} | "
            f"{found['reconstruction_nats']:.1f}, {found['kl_nats']:.1f} | {used:.0f} | {perplexity} | "
            f"{found['parameters'] / 1e6:.2f}M | {found['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def draw(arguments: argparse.Namespace) -> None:
    """The figures of the tokenizers that are there."""
    folder = arguments.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    found = {run: arguments.out / run for run in RUNS if (arguments.out / run / "config.json").is_file()}
    found.pop("peer-vq", None)  # no folder that `from_pretrained` would understand
    models = {run: AutoModel.from_pretrained(path).eval() for run, path in found.items()}
    processors = {run: AutoImageProcessor.from_pretrained(path) for run, path in found.items()}
    rows, names = [], []
    for beta in BETAS:
        if (run := f"vae-{beta}") in models:
            torch.manual_seed(0)
            rows.append(processors[run].post_process(models[run].sample(SHOWN)))
            names.append(f"samples of a VAE, beta {beta}" if beta != "0" else "samples of a plain autoencoder")
    if rows:
        paired_grid(rows, names).save(folder / "samples.png")
    if arguments.emoji is None:
        return
    for vendor in ("google", "twitter"):
        emoji = read_images(arguments.emoji, vendor, with_labels=False)
        originals = [emoji[index * len(emoji) // SHOWN]["image"] for index in range(SHOWN)]
        names, rows = ["originals"], [[to_rgb(image).resize((32, 32)) for image in originals]]
        for run, model in models.items():
            pixel_values = processors[run](images=originals, return_tensors="pt")["pixel_values"]
            names.append(run)
            rows.append(processors[run].post_process(model.reconstruct(pixel_values)))
        paired_grid(rows, names).save(folder / f"emoji-{vendor}.png")


def main() -> None:
    """Parse, run what is missing, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--emoji", type=Path, help="folder of a data set of emoji, for figures")
    arguments, rest = parser.parse_known_args()
    arguments.overrides += rest

    file = arguments.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    is_first = os.environ.get("RANK", "0") == "0"  # set by torchrun
    for run in arguments.runs:
        if run in results:
            continue
        results[run] = run_one(run, arguments)
        if is_first:
            arguments.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            print(f"{run}: {results[run]}", flush=True)
    if is_first:
        print(table(results))
        draw(arguments)


if __name__ == "__main__":
    main()
