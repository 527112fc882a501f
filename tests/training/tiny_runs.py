"""Runs of seconds of every family, and callbacks that do something to them after a step."""

import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_vlm.training.tasks import load_recipe
from tests.tiny_lines import tiny_recipe, write_splits
from tests.training.tiny_conversations import tiny_llava_recipe, write_conversations, write_parts
from tests.training.tiny_pictures import tiny_picture_recipe, write_picture_splits
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

# Family -> a weight that trains, and what its rows are called
FAMILIES = {
    "classifier": ("vision_model.layers.1.mlp.fc1.weight", "split train, row"),
    "masked": ("vision_model.layers.1.mlp.fc1.weight", "split train, row"),
    "tokenizer": ("decoder.", "split train, row"),
    "lines": ("decoder.", "metadata.jsonl"),
    "captions": ("decoder.", "metadata.jsonl"),
    "conversations": ("language_model.model.layers.1.mlp.up_proj.weight", "chat"),
}
QUIET = ["training.report_to=none", "training.dataloader_num_workers=0"]


def recipe_for(family, folder, output_dir, *overrides):
    """Six steps, a checkpoint every second, nothing validated."""
    folder.mkdir(exist_ok=True)
    data = folder / "data"
    steps = ["training.max_steps=6", "training.save_steps=2", "training.logging_steps=1"]
    if family == "captions":
        if not data.exists():
            write_decoder_parts(write_task_sets(data))
        parts = [f"model.vision={data}/efficientnet-lite0", f"data.folder={data}", "data.validation={}"]
        parts += ["model.settings={hidden_size: 8, embedding_size: 8}", f"training.output_dir={output_dir}"]
        parts += ["training.eval_strategy='no'", "training.load_best_model_at_end=false"]
        parts += ["training.per_device_train_batch_size=4"]
        return load_recipe("caption-cnn-lstm", [*parts, *steps, *QUIET, *overrides])
    if family == "lines":
        sections = tiny_recipe(data if data.exists() else write_splits(data), output_dir)
        sections["data"]["validation"] = {}
        sections |= {"task": "ocr", "architecture": "trocr"}
    elif family == "conversations":
        torch.manual_seed(0)
        parts = data if data.exists() else write_parts(data)
        chat = folder / "chat" if (folder / "chat").exists() else write_conversations(folder / "chat")
        rows = {"train": [{"path": "chat", "split": "train"}], "max_tokens": None}
        sections = tiny_llava_recipe(parts, chat, output_dir, data=rows, parts={"train": ["projector", "language"]})
    else:
        tasks = {"classifier": "image-classification", "masked": "masked-image-modeling"}
        task = tasks.get(family, "image-tokenization")
        sections = tiny_picture_recipe(data if data.exists() else write_picture_splits(data), output_dir, task)
        if family == "tokenizer":
            sections["model"]["config"] = {"model_type": "hf_vlm_vae", "image_size": 16, "hidden_channels": [8, 8]}
        sections["data"]["validation"] = None
    sections["training"].pop("eval_steps", None)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_recipe(file, [*steps, *QUIET, *overrides])


class After(TrainerCallback):
    """Does something after a step and its checkpoint."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.act(model)


class AtEnd(After):
    """Does something after a step, before its checkpoint."""

    def on_step_begin(self, *args, **kwargs):
        pass

    def on_step_end(self, args, state, control, model=None, **kwargs):
        super().on_step_begin(args, state, control, model)


def weight_of(model, begin):
    return next((name, weight) for name, weight in model.named_parameters() if name.startswith(begin))


def weights_in(folder):
    return load_file(folder / "model.safetensors")
