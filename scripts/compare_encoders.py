"""Our ViT and Swin from scratch beside timm's classes at equal budget; what masked pre-training is worth where labels are few.

    python scripts/compare_encoders.py DATA OUT [--epochs 8] [--masked-epochs 16] [--runs vit timm-vit ...] [overrides]
    torchrun --nproc-per-node 2 scripts/compare_encoders.py DATA OUT ...    # as many processes as the machine has cores

DATA: a folder as `hf-vlm train vit-image-classification` takes it, such as CIFAR-10's pictures. All classifiers see the same
pictures, changed in the same way and order, with the same optimizer; sizes are those of the recipes.

    vit, swin             ours, by the recipes vit-image-classification and swin-image-classification
    timm-vit, timm-swin   VisionTransformer and SwinTransformer of timm, of the same shape, in the same trainer
    cnn-vit               our ViT on a feature map of --cnn, the folder of a pretrained CNN, such as EfficientNet-Lite0
    masked                our ViT taught without labels by vit-masked-pretraining; then linear probes on 1, 5 and 10 labelled
                          pictures a class and 20 nearest neighbours, by the mean of its patches, before and after; beside them
                          the same on pixels and, where `vit` was run, on the encoder that learnt from all labels

Overrides are `key=value` for all recipes, such as `training.bf16=true`. Figures go to OUT/results.json; a run that stands there
is not run again, one of ours that was interrupted goes on.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from hf_vlm import VisionTransformerForMaskedImageModeling, VisionTransformerModel
from hf_vlm.blocks.classification import classification_loss
from hf_vlm.data.labelled_images import LabelledImages, ProcessedBatch, read_images
from hf_vlm.training.image_classification import build_trainer, train
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.tasks import load_recipe
from hf_vlm.training.trainers.image_trainer import ImageTrainer

RECIPES = {"vit": "vit-image-classification", "swin": "swin-image-classification", "masked": "vit-masked-pretraining"}
RUNS = ("vit", "timm-vit", "swin", "timm-swin", "cnn-vit", "masked")
SHOTS, DRAWS, NEIGHBOURS = (1, 5, 10), 10, 20


class TimmClassifier(nn.Module):
    """A model of timm behind the interface that the trainer calls: same loss, same names."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        smoothing = self.config.label_smoothing if self.training else 0.0
        return {"loss": classification_loss(logits, labels, label_smoothing=smoothing), "logits": logits}


def timm_twin(config: Any) -> nn.Module:
    """The class of timm in the shape of one of our configs."""
    shared = {"img_size": config.image_size, "patch_size": config.patch_size, "num_classes": config.num_labels}
    shared["drop_path_rate"] = config.drop_path_rate
    if config.model_type == "hf_vlm_vit":
        return timm.models.VisionTransformer(
            **shared, embed_dim=config.hidden_size, depth=config.num_hidden_layers, num_heads=config.num_attention_heads
        )
    return timm.models.SwinTransformer(
        **shared, embed_dim=config.embed_dim, depths=config.depths, num_heads=config.num_attention_heads,
        window_size=config.window_size,
    )  # fmt: skip


def recipe_of(run: str, arguments: argparse.Namespace) -> ImageRecipe:
    """The recipe of a run, its budget that of the command line."""
    family = {"timm-vit": "vit", "timm-swin": "swin", "cnn-vit": "vit"}.get(run, run)
    epochs = arguments.masked_epochs if run == "masked" else arguments.epochs
    overrides = [
        f"data.folder={arguments.data}", f"training.output_dir={arguments.out / run}",
        f"training.num_train_epochs={epochs}", "training.report_to=none", "training.eval_steps=0.25",
        "training.save_steps=0.25", "training.save_total_limit=1", "training.load_best_model_at_end=false",
    ]  # fmt: skip
    if run == "cnn-vit":
        settings = {
            "image_size": 64, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "backbone_layer": -3,
            "label_smoothing": 0.1, "drop_path_rate": 0.1,
        }  # fmt: skip
        overrides += ["model.config=null", f"model.backbone={arguments.cnn}", f"model.settings={json.dumps(settings)}"]
    recipe = load_recipe(RECIPES[family], [*overrides, *arguments.overrides])
    assert isinstance(recipe, ImageRecipe)
    return recipe


def run_classifier(run: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one classifier to the end of its budget: its accuracy, size and time."""
    recipe = recipe_of(run, arguments)
    start = time.perf_counter()
    if run.startswith("timm-"):
        trainer = build_trainer(recipe)
        torch.manual_seed(trainer.args.seed)
        trainer.model = trainer.model_wrapped = TimmClassifier(timm_twin(trainer.model.config), trainer.model.config)
        trainer.train()
    else:
        trainer = train(recipe)
    seconds = time.perf_counter() - start
    return {**measured(trainer, seconds), "accuracy": trainer.evaluate()["eval_accuracy"]}


def measured(trainer: ImageTrainer, seconds: float) -> dict[str, Any]:
    """What a training run was."""
    args = trainer.args
    pictures = trainer.state.global_step * args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "pictures": pictures,
        "seconds": round(seconds, 1),
        "pictures_per_second": round(pictures / seconds, 1),
    }


@torch.inference_mode()
def features_of(model: nn.Module | None, rows: LabelledImages, collate: ProcessedBatch) -> torch.Tensor:
    """Float (pictures, width): the mean of the patches' vectors, or without a model the pixels."""
    found = []
    for first in range(0, len(rows), 250):
        pixels = collate([rows[index] for index in range(first, min(first + 250, len(rows)))])["pixel_values"]
        if model is None:
            found.append(pixels.flatten(1))
        else:
            found.append(model(pixels).last_hidden_state[:, model.num_prefix_tokens :].mean(dim=1))
    return torch.cat(found)


def nearest_neighbours(
    train_set: torch.Tensor, train_labels: torch.Tensor, test_set: torch.Tensor, test_labels: torch.Tensor
) -> float:
    """Accuracy of the vote of the 20 most similar training pictures, by cosine."""
    similar = F.normalize(test_set, dim=1) @ F.normalize(train_set, dim=1).T
    votes = F.one_hot(train_labels[similar.topk(NEIGHBOURS, dim=1).indices]).sum(dim=1)
    return (votes.argmax(dim=1) == test_labels).float().mean().item()


def linear_probe(
    train_set: torch.Tensor, train_labels: torch.Tensor, test_set: torch.Tensor, test_labels: torch.Tensor, shots: int
) -> tuple[float, float]:
    """Accuracy of logistic regression on `shots` pictures a class, the mean and deviation over 10 draws of them."""
    accuracies = []
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        shuffled = torch.randperm(len(train_labels), generator=generator)
        chosen = torch.cat([shuffled[train_labels[shuffled] == label][:shots] for label in train_labels.unique()])
        mean, deviation = train_set[chosen].mean(dim=0), train_set[chosen].std(dim=0) + 1e-6
        known, unknown = (train_set[chosen] - mean) / deviation, (test_set - mean) / deviation
        layer = nn.Linear(known.shape[1], int(train_labels.max()) + 1)
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def loss(layer: nn.Linear = layer, known: torch.Tensor = known, chosen: torch.Tensor = chosen) -> torch.Tensor:
            layer.zero_grad()
            value = F.cross_entropy(layer(known), train_labels[chosen]) + 0.01 * layer.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        accuracies.append((layer(unknown).argmax(dim=1) == test_labels).float().mean())
    return torch.stack(accuracies).mean().item(), torch.stack(accuracies).std().item()


def run_masked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pre-train without labels, then probe encoders before and after."""
    recipe = recipe_of("masked", arguments)
    start = time.perf_counter()
    trainer = train(recipe)
    result = {**measured(trainer, time.perf_counter() - start), "probes": {}}
    if not trainer.is_world_process_zero():
        return result
    torch.manual_seed(trainer.args.seed)
    fresh = VisionTransformerForMaskedImageModeling(trainer.model.config).vision_model
    encoders: dict[str, nn.Module | None] = {"pixels": None, "before": fresh, "after": trainer.model.vision_model}
    if (arguments.out / "vit" / "config.json").is_file():
        encoders["all labels"] = VisionTransformerModel.from_pretrained(arguments.out / "vit")
    collate = ProcessedBatch(trainer.processing_class)
    sets = [read_images(recipe.data.folder, split) for split in (recipe.data.train, recipe.data.validation)]
    labels = [torch.tensor(rows.labels) for rows in sets]
    for name, encoder in encoders.items():
        if encoder is not None:
            encoder.float().eval()
        found = [features_of(encoder, rows, collate) for rows in sets]
        both = (found[0], labels[0], found[1], labels[1])
        probes = {f"{shots}-shot": linear_probe(*both, shots) for shots in SHOTS}
        result["probes"][name] = {**probes, "neighbours": nearest_neighbours(*both)}
    return result


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| run | accuracy, % | parameters | pictures seen | pictures/s | minutes |", "|---|---|---|---|---|---|"]
    for run, found in results.items():
        accuracy = f"{100 * found['accuracy']:.1f}" if "accuracy" in found else "-"
        lines.append(
            f"| {run} | {accuracy} | {found['parameters'] / 1e6:.2f}M | {found['pictures']:,} | "
            f"{found['pictures_per_second']:.0f} | {found['seconds'] / 60:.1f} |"
        )
    if probes := results.get("masked", {}).get("probes"):
        lines += ["", "| features | 1-shot, % | 5-shot, % | 10-shot, % | 20 neighbours, % |", "|---|---|---|---|---|"]
        for name, found in probes.items():
            cells = [
                f"{100 * found[f'{shots}-shot'][0]:.1f} ± {100 * found[f'{shots}-shot'][1]:.1f}" for shots in SHOTS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {100 * found['neighbours']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[run for run in RUNS if run != "cnn-vit"])
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--masked-epochs", type=float, default=16)
    parser.add_argument("--cnn", type=Path, help="folder of a pretrained CNN, for cnn-vit")
    arguments, rest = parser.parse_known_args()
    arguments.overrides += rest
    if "cnn-vit" in arguments.runs and arguments.cnn is None:
        parser.error("cnn-vit wants --cnn FOLDER, got none: scripts/make_real_parts.py makes one")

    file = arguments.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for run in arguments.runs:
        if run in results:
            continue
        results[run] = run_masked(arguments) if run == "masked" else run_classifier(run, arguments)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            arguments.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            print(f"{run}: {results[run]}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
