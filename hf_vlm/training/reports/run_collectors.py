"""What the model of a run answers on the run's own data, and what it learnt from: one function a kind of recipe.

    rows of the recipe's validation sets, spread evenly   -> the trained model's answers -> `Sample`, with attention
    the first rows of its training sets                   -> as the model reads them     -> `LabelMask`

Nothing of a run is changed: pictures of these few rows are read and encoded anew, features on disk are left alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.conversations.encoded_conversations import EncodedConversations
from hf_vlm.data.labelled_images import ProcessedBatch, read_images
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.parts.checkpoint_files import read_tensors
from hf_vlm.training import trocr
from hf_vlm.training.image_models import measure_processor, model_names
from hf_vlm.training.image_recipe import CLASSIFICATION, ImageRecipe
from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.picture_text_recipe import PictureTextRecipe
from hf_vlm.training.recipe import Recipe, TrOCRRecipe
from hf_vlm.training.reports.label_masks import LabelMask, label_mask
from hf_vlm.training.reports.run_samples import (
    Findings,
    Sample,
    architecture_of,
    choose_rows,
    judge,
    part_sizes,
    picture_for_page,
    spread,
)
from hf_vlm.training.reports.word_attention import NoWordMapError, WordMap, answered_words, written_words
from hf_vlm.training.scores.conversation_evaluation import answer_conversations, load_visual_chat
from hf_vlm.training.scores.task_evaluation import load_answerer
from hf_vlm.training.task_sources import read_source
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe

_BATCH = 8
_NUM_WITH_MAPS = 4  # samples
_NUM_MASKS = 3
_ANSWERED_A_SHOWN = 4  # errors are counted on more rows than are shown


@dataclass
class WantedText:
    """A picture and what is to be written about it.

    Attributes:
        source: where the row stands.
        picture: of any mode.
        references: texts that are all right; the first is the one that is learnt.
        question: that the text goes on from; "" for none.
        kind: of the question, if the row says so.
        ignore_case: whether case is folded before scoring.
    """

    source: str
    picture: Image.Image
    references: list[str]
    question: str = ""
    kind: str | None = None
    ignore_case: bool = False


def collect_samples(weights: Path, recipe: Recipe, num_shown: int) -> Findings:
    """What the model of a run answers.

    Args:
        weights: folder of the trained model, or of its adapter.
        recipe: as it was run.
        num_shown: samples to show; four times as many are answered.

    Raises:
        ValueError: if model or data can't be read, or samples of such a recipe are not known.
        OSError: if a folder or file is missing.
        ImportError: if a package is missing that the data or a score needs.
    """
    for recipe_class, collect in COLLECTORS.items():
        if isinstance(recipe, recipe_class):
            return collect(weights, recipe, num_shown)
    known = ", ".join(dict.fromkeys(task for recipe_class in COLLECTORS for task in recipe_class.tasks))
    raise ValueError(
        f"Samples are known of the tasks {known}, got a {type(recipe).__name__} of `{recipe.task}`. Look at its curves."
    )


# Encoder and decoder: TrOCR, and whatever else writes about one picture


def _read_lines(weights: Path, recipe: TrOCRRecipe, num_shown: int) -> Findings:
    model = _on_device(TrOCREncoderDecoderForConditionalGeneration.from_pretrained(weights, dtype=torch.float32))
    processor = TrOCREncoderDecoderProcessor.from_pretrained(weights)
    findings = Findings(architecture_of(model), part_sizes(model), unit="characters")
    data, number = recipe.data, _ANSWERED_A_SHOWN * num_shown
    sets: dict[str, Any] = {_validation(name): trocr.read_set(recipe, lines) for name, lines in data.validation.items()}
    training: dict[str, Any] = {_training(source): trocr.read_set(recipe, source) for source in data.train}
    folds = {_validation(name): lines.ignore_case for name, lines in data.validation.items()}
    if sets or training:
        chosen, findings.asked_of = choose_rows(sets or training, number, _line, findings.problems)
        wanted = [
            _wanted_line((sets or training)[name][index], folds.get(name, False))
            for name, indices in chosen.items()
            for index in indices
        ]
    else:
        renderer = trocr.build_renderer(recipe, processor, int(recipe.training.get("seed", 42)))
        assert renderer is not None  # `DataSection` sees to it
        wanted = [_wanted_line(renderer[index] | {"source": f"rendered line {index}"}) for index in range(number)]
        findings.asked_of = f"{number} lines, rendered as in training"
    write(model, processor, wanted, "ocr", findings, num_shown)
    learnt = [_wanted_line(rows[index]) for rows in training.values() for index in range(min(_NUM_MASKS, len(rows)))]
    findings.masks = [written_mask(model, processor, row) for row in _few(learnt or wanted)]
    return findings


def _describe(weights: Path, recipe: PictureTextRecipe, num_shown: int) -> Findings:
    model, processor = load_answerer(str(weights), recipe.task)
    model = _on_device(model)
    findings = Findings(architecture_of(model), part_sizes(model, recipe.parts.train), unit="answers")
    asks = recipe.task == "vqa"  # captions are written without
    sets, _ = _task_sets(recipe)
    number = _ANSWERED_A_SHOWN * num_shown
    chosen, findings.asked_of = choose_rows(sets, number, _pictures_of, findings.problems)

    def wanted(rows: Any, index: int, references: list[str]) -> WantedText:
        (picture,) = rows.images(index)
        question = rows.question(index) if asks else ""
        return WantedText(rows.sources[index], picture, references, question, rows.kind(index))

    every = [(sets[name], index) for name, indices in chosen.items() for index in indices]
    texts = [wanted(rows, index, rows.references(index)) for rows, index in every]
    write(model, processor, texts, recipe.task, findings, num_shown)
    learnt = []
    for source in recipe.data.train:
        rows = read_source(recipe.data.folder, source, recipe.task, every_answer=True)
        for index in range(min(_NUM_MASKS, len(rows))):
            learnt.append(wanted(rows, index, [text_of(rows.messages(index)[-1])]))
    findings.masks = [written_mask(model, processor, row) for row in _few(learnt)]
    return findings


def _pictures_of(rows: Any, index: int) -> Any:
    return rows.images(index)


def _line(rows: Any, index: int) -> Any:
    return rows[index]


def _wanted_line(row: dict[str, Any], ignore_case: bool = False) -> WantedText:
    return WantedText(row["source"], row["image"], [row["text"]], ignore_case=ignore_case)


def write(
    model: Any, processor: Any, wanted: Sequence[WantedText], task: str, findings: Findings, num_shown: int
) -> None:
    """Fills in samples, those to be shown, and their maps, of a model whose decoder writes about one picture.

    Args:
        model: in evaluation mode; `generate` takes what the processor makes.
        processor: `processor(images=[...])`, with questions also `prompt=[...]`.
        task: what the answers are scored as.
    """
    written: list[torch.Tensor] = []  # int64 (tokens,) each
    size = 1 if any(row.question for row in wanted) else _BATCH  # prompts of a batch must be of one length
    for first in range(0, len(wanted), size):
        rows = wanted[first : first + size]
        inputs = processor(images=[row.picture for row in rows], **_prompt(rows), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            token_ids = model.generate(**inputs)
        written += list(token_ids)
        begun = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 0
        texts = processor.batch_decode(token_ids[:, begun:], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            turns = [("user", row.question)] if row.question else []
            sample = Sample(row.source, [picture_for_page(row.picture)], turns, row.references, text, kind=row.kind)
            findings.samples.append(judge(sample, task, row.ignore_case))
    findings.shown = spread(len(findings.samples), num_shown)

    def draw(index: int) -> list[WordMap]:
        if wanted[index].question:
            return []  # the words of the question come before those of the answer
        token_ids = written[index]
        ends = (token_ids[1:] == model.config.pad_token_id).nonzero()  # of shorter texts in the batch
        token_ids = token_ids[: int(ends[0]) + 1] if len(ends) else token_ids
        return written_words(model, processor, wanted[index].picture, token_ids[None])

    _add_maps(findings, draw)


def _prompt(rows: Sequence[WantedText]) -> dict[str, list[str]]:
    return {"prompt": [row.question for row in rows]} if any(row.question for row in rows) else {}


def written_mask(model: Any, processor: Any, row: WantedText) -> LabelMask:
    """What a decoder reads and learns of a row: start, question and text, of which the text and the end are learnt."""
    if row.question:
        encoded = processor.prompted([row.question], [row.references[0]], return_tensors=None)
        (read,), (labels,) = encoded["decoder_input_ids"], encoded["labels"]
        token_ids = [*read, labels[-1]]
        learnt = [False, *(label >= 0 for label in labels)]
    else:
        (labels,) = processor.labels([row.references[0]], return_tensors=None)
        start = model.config.decoder_start_token_id
        token_ids = labels if start is None else [start, *labels]
        learnt = [False] * (len(token_ids) - len(labels)) + [True] * len(labels)
    return label_mask(processor.tokenizer, token_ids, learnt, row.source)


# LLaVA


def _converse(weights: Path, recipe: LlavaRecipe, num_shown: int) -> Findings:
    model, processor = load_visual_chat(str(weights))
    model = _on_device(model)
    findings = Findings(architecture_of(model), part_sizes(model, recipe.parts.train), unit="answers")
    adapter = weights / "adapter_model.safetensors"
    if adapter.is_file():
        findings.architecture += " with a LoRA adapter"
        _count_adapter(findings, model.part_paths, adapter)
    data = recipe.data
    training = [
        read_source(data.folder, source, recipe.task, every_answer=True, max_exchanges=source.max_exchanges)
        for source in data.train
    ]
    sets, tasks = _task_sets(recipe)
    number = _ANSWERED_A_SHOWN * num_shown
    chosen, findings.asked_of = choose_rows(sets, number, _pictures_of, findings.problems)
    asked: list[tuple[Any, int]] = []
    for name, indices in chosen.items():
        rows = sets[name].select(indices)
        for index, said in enumerate(answer_conversations(model, processor, rows, batch_size=_BATCH)):
            asked.append((rows, index))
            findings.samples.append(_conversation_sample(rows, index, said, tasks[name]))
    findings.shown = spread(len(findings.samples), num_shown)

    def draw(index: int) -> list[WordMap]:
        rows, row = asked[index]
        if not rows.num_images(row):
            return []
        prompt = processor.apply_chat_template(rows.messages(row)[:-1], add_generation_prompt=True, tokenize=False)
        return answered_words(model, processor, prompt, rows.images(row), findings.samples[index].answer)

    _add_maps(findings, draw)
    for rows in training:
        items = EncodedConversations(
            rows.select(range(min(_NUM_MASKS, len(rows)))),  # the first, which are asked as in training
            processor,
            max_length=data.max_length,
            context=data.context,
            seed=int(recipe.training.get("seed", 42)),
            bad_pictures="skip" if data.bad_pictures == "skip" else "fail",
        )
        for item in (items[index] for index in range(len(items))):
            token_ids, learnt = item["input_ids"].tolist(), (item["labels"] >= 0).tolist()
            mask = label_mask(processor.tokenizer, token_ids, learnt, item["source"], processor.image_token_id)
            findings.masks.append(mask)
    findings.masks = _few(findings.masks)
    return findings


def _task_sets(recipe: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Rows by the names of a recipe's validation sets, or else of its training sets, and the task of each."""
    data = recipe.data
    sources = {_validation(name): source for name, source in data.validation.items()}
    sources = sources or {_training(source): source for source in data.train}
    sets = {name: read_source(data.folder, source, recipe.task) for name, source in sources.items()}
    return sets, {name: source.task or recipe.task for name, source in sources.items()}


def _conversation_sample(rows: Any, index: int, said: str, task: str) -> Sample:
    turns = [(message["role"], text_of(message)) for message in rows.messages(index)[:-1]]
    pictures = [picture_for_page(picture) for picture in rows.images(index)]
    return judge(
        Sample(rows.sources[index], pictures, turns, rows.references(index), said, kind=rows.kind(index)), task
    )


def _count_adapter(findings: Findings, paths: Any, adapter: Path) -> None:
    """Counts as trained what an adapter's file holds, and nothing else."""
    trained = dict.fromkeys(paths, 0)
    for name, tensor in read_tensors(adapter).items():
        name = name.removeprefix("base_model.model.")
        for role, path in paths.items():
            trained[role] += tensor.numel() if name.startswith(f"{path}.") else 0
    for part in findings.parts:
        part.num_trained = trained.get(part.name, 0)


# Pictures without words


def _classify(weights: Path, recipe: ImageRecipe, num_shown: int) -> Findings:
    if recipe.task != CLASSIFICATION:
        raise ValueError(f"Answers are shown of classifiers and readers, got `{recipe.task}`, which answers nothing.")
    model = _on_device(AutoModelForImageClassification.from_pretrained(weights, dtype=torch.float32))
    processor = AutoImageProcessor.from_pretrained(weights)
    findings = Findings(architecture_of(model), part_sizes(model), unit="classes")
    findings.maps_note = "A classifier writes no words; `hf-vlm explain` draws where its vision model looks."
    findings.masks_note = "A picture with a class has no tokens to learn."
    names = model_names(model.config)
    rows, indices = _pictures(recipe, num_shown, findings, with_labels=True)
    rows = rows.with_names(names)
    collate = ProcessedBatch(processor, measure_processor(processor, model.config)[1])
    for index in indices:
        example = rows[index]
        with torch.inference_mode():
            pixel_values = collate([example])["pixel_values"].to(model.device)
            chances = model(pixel_values=pixel_values).logits[0].float().softmax(dim=-1)
        wanted, best = names[int(example["label"])], int(chances.argmax())
        said = f"{names[best]} ({100 * float(chances[best]):.1f} %)"
        sample = Sample(rows.source_of(index), [picture_for_page(example["image"])], [], [wanted], said, kind=wanted)
        sample.is_right = names[best] == wanted
        sample.edits = [] if sample.is_right else [(wanted, names[best])]
        findings.samples.append(sample)
    findings.shown = spread(len(findings.samples), num_shown)
    return findings


def _reconstruct(weights: Path, recipe: TokenizerRecipe, num_shown: int) -> Findings:
    model = _on_device(AutoModel.from_pretrained(weights, dtype=torch.float32))
    processor = AutoImageProcessor.from_pretrained(weights)
    findings = Findings(architecture_of(model), part_sizes(model))
    findings.maps_note = "A tokenizer writes no words."
    findings.masks_note = "Pictures without texts have no tokens to learn."
    rows, indices = _pictures(recipe, num_shown, findings, with_labels=False)
    collate = ProcessedBatch(processor, measure_processor(processor, model.config)[1])
    for index in indices:
        with torch.inference_mode():
            original = collate([rows[index]])["pixel_values"].to(model.device)
            made = model.reconstruct(original)
        pictures = [picture_for_page(picture) for both in (original, made) for picture in processor.post_process(both)]
        error = float((made - original).square().mean())
        told = f"left the original, right its reconstruction; mean squared error {error:.4g}"
        findings.samples.append(Sample(rows.source_of(index), pictures, [], [], told))
    findings.shown = spread(len(findings.samples), num_shown)
    return findings


def _pictures(recipe: Any, num_shown: int, findings: Findings, with_labels: bool) -> tuple[Any, list[int]]:
    """The pictures of a recipe's validation set, or else its training set, and which of them were chosen."""
    split, name = recipe.data.validation, "validation set"
    if split is None:
        split, name = recipe.data.train, "training set"
    rows = read_images(recipe.data.folder, split, with_labels=with_labels)
    number = _ANSWERED_A_SHOWN * num_shown if with_labels else num_shown
    chosen, findings.asked_of = choose_rows({name: rows}, number, _line, findings.problems)
    return rows, chosen[name]


def _validation(name: str) -> str:
    return f"validation set {name}"


def _training(source: Any) -> str:
    return f"training set {source.path}" + (f" ({source.split})" if source.split else "")


def _few(items: Sequence[Any]) -> list[Any]:
    """Some of many, of every set where there are several."""
    return list(items)[:: max(1, len(items) // _NUM_MASKS)][:_NUM_MASKS]


def _on_device(model: Any) -> Any:
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _add_maps(findings: Findings, draw: Callable[[int], list[WordMap]]) -> None:
    """Maps for the first shown samples, by their index among all."""
    try:
        for index in findings.shown[:_NUM_WITH_MAPS]:
            findings.samples[index].maps = draw(index)
    except NoWordMapError as error:
        findings.maps_note = str(error)


# A kind of recipe -> what collects its samples. A new architecture is one function more.
COLLECTORS: dict[type[Recipe], Callable[[Path, Any, int], Findings]] = {
    TrOCRRecipe: _read_lines,
    PictureTextRecipe: _describe,
    LlavaRecipe: _converse,
    ImageRecipe: _classify,
    TokenizerRecipe: _reconstruct,
}
