"""Pictures with one class label each: read, augmented, collated.

    a folder -> `LabelledImages`   {"image": PIL, "label": int}, opened when asked for
             -> `TrainingImages`   {"pixel_values": uint8 (channels, height, width), "labels", "index"}: item i is a function
                                   of (seed, i)
             -> `TrainingBatch`    a batch normalised at once, mixed by MixUp or CutMix
             -> `ProcessedBatch`   the same for pictures as the image processor prepares them, for validation

Layouts, as `datasets.load_dataset` knows them: parquet files SPLIT*.parquet, also in `data/`, with columns `image` and
`label`; SPLIT/CLASS/*.png; metadata.csv or metadata.jsonl with `file_name` and `label`, in SPLIT/ or beside all; a folder
written by `save_to_disk`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from hf_vlm.data.lines.image_text import load_saved
from hf_vlm.data.pictures import open_picture

_METADATA = ("metadata.csv", "metadata.jsonl")


class LabelledImages(Sequence[dict[str, Any]]):
    """Pictures and their classes: `images[i]` is `{"image": PIL, "label": int}`; without labels only the picture.

    Args:
        rows: a data set with a column `image` of undecoded pictures (`{"bytes", "path"}`).
        labels: the class of each, int in [0, len(names)), or None for pictures without.
        names: of the classes, in the order of their numbers.
        source: what the set is called in errors.
    """

    def __init__(self, rows: datasets.Dataset, labels: Sequence[int] | None, names: Sequence[str], source: str) -> None:
        self._rows, self._source = rows.select_columns(["image"]), source
        self.labels, self.names = labels, list(names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Item `index`.

        Raises:
            FileNotFoundError: if the picture's file is missing.
            ValueError: if there is no picture that can be read; every message names file and row.
        """
        picture = self._rows[index]["image"]
        name = self.source_of(index)
        if isinstance(picture, Mapping):
            if file := picture.get("path"):
                name += f", {file}"
            picture = picture["bytes"] if picture.get("bytes") is not None else picture.get("path")
        if picture is None:
            raise ValueError(f"{name}: wanted a picture, got none. Fill or remove the row.")
        image = open_picture(picture, name=name)
        return {"image": image} if self.labels is None else {"image": image, "label": self.labels[index]}

    def source_of(self, index: int) -> str:
        """Where a row stands, for messages."""
        return f"{self._source}, row {index}"

    def with_names(self, names: Sequence[str]) -> "LabelledImages":
        """The same pictures, their classes numbered as in `names`.

        Raises:
            ValueError: if a picture is of a class that is not among them; names the first such row.
        """
        assert self.labels is not None
        number = {name: index for index, name in enumerate(names)}
        labels = []
        for index, label in enumerate(self.labels):
            name = self.names[label]
            if name not in number:
                raise ValueError(
                    f"{self.source_of(index)}: a class of the training pictures is wanted, got `{name}`, which is none of "
                    f"{_listed(names)}. Rename it, or leave the row out."
                )
            labels.append(number[name])
        return LabelledImages(self._rows, labels, names, self._source)


def read_images(folder: str | Path, split: str | None = None, *, with_labels: bool = True) -> LabelledImages:
    """The pictures of a data set on disk, in one of the layouts above.

    Args:
        folder: of the data set.
        split: such as `train`; None if there is one only.
        with_labels: whether labels are wanted; without, a column of them is not looked at.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no such split, nothing in it, no column of pictures or labels, or a row without a label.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"A folder of pictures is wanted, got {folder}, which is none. Check the path.")
    rows = _load(folder, split)
    source = str(folder) if split is None else f"{folder}, split {split}"
    if not len(rows):
        raise ValueError(f"{source}: pictures are wanted, got no rows. Check folder and split.")
    for column in ("image", "label")[: 1 + with_labels]:
        if column not in rows.column_names:
            raise ValueError(
                f"{source}: a column `{column}` is wanted, got {', '.join(rows.column_names)}. Rename one, or put "
                "pictures into folders of their classes."
            )
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    if not with_labels:
        return LabelledImages(rows, None, [], source)
    feature = rows.features["label"]
    labels = list(rows["label"])
    for index, value in enumerate(labels):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"{source}, row {index}: wanted a label, got none. Fill or remove the row.")
    if isinstance(feature, datasets.ClassLabel):
        names, known = feature.names, set[Any](range(feature.num_classes))
    else:
        values = sorted(set(labels))
        known = set(values)
        names = [str(value) for value in values]
        if not all(isinstance(value, str | int) for value in values):
            raise ValueError(f"{source}: labels must be names or whole numbers, got {values[0]!r}. Correct the column.")
    for index, value in enumerate(labels):
        if value not in known:
            raise ValueError(
                f"{source}, row {index}: a label in [0, {len(names)}) is wanted, as there are {len(names)} names, got "
                f"{value}. Correct the row or the column's names."
            )
    if not isinstance(feature, datasets.ClassLabel):
        numbers = {value: number for number, value in enumerate(values)}
        labels = [numbers[value] for value in labels]
    return LabelledImages(rows, labels, names, source)


def _load(folder: Path, split: str | None) -> datasets.Dataset:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return load_saved(folder, split)
    beside_all = any((folder / name).is_file() for name in _METADATA)
    place = folder / split if split is not None and (folder / split).is_dir() else folder
    settings: dict[str, Any] = {"path": str(folder), "split": split}
    if beside_all:  # of all splits, as one
        settings |= {"data_files": {"train": "**"}, "split": "train"}
    elif place != folder:  # only this folder: its classes are its own, and one called `test` is no split
        settings["data_files"] = {split: f"{split}/**"}
    if not any((at / name).is_file() for at in (place, folder) for name in _METADATA) and _has_class_folders(place):
        if place == folder and split not in (None, "train"):
            raise ValueError(
                f"{folder}: a folder `{split}` is wanted, got folders of classes without splits. Move pictures into "
                "`train/CLASS` and `validation/CLASS`, or set `data.validation=null`."
            )
        settings.setdefault("data_files", {split or "train": "**"})
        settings |= {"path": "imagefolder", "data_dir": str(folder), "drop_labels": False}
    try:
        rows = datasets.load_dataset(**settings)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        wanted = "pictures" if split is None else f"pictures of a split `{split}`"
        raise ValueError(
            f"{folder}: {wanted} are wanted, got an error ({error.__cause__ or error}). Check folder and split."
        ) from error
    if isinstance(rows, datasets.Dataset):
        return _of_split(rows, folder, split) if beside_all and split is not None else rows
    if len(rows) > 1:
        raise ValueError(f"{folder}: a split is wanted, one of {_listed(rows)}, got none. Name one of them.")
    return next(iter(rows.values()))


def _of_split(rows: datasets.Dataset, folder: Path, split: str) -> datasets.Dataset:
    """The rows of a metadata file beside all pictures that are of a split: by its column `split`, or by their folder."""
    if "split" in rows.column_names:
        splits = rows["split"]
    else:
        files = rows.cast_column("image", datasets.Image(decode=False))["image"]
        splits = [Path(os.path.relpath(file["path"], folder.resolve())).parts[0] for file in files]
    return rows.select([index for index, name in enumerate(splits) if name == split])


def _has_class_folders(folder: Path) -> bool:
    """Whether a folder holds folders that hold pictures, and none by itself."""
    suffixes = Image.registered_extensions()
    return any(file.suffix.lower() in suffixes for file in folder.glob("*/*")) and not any(
        file.suffix.lower() in suffixes or file.suffix == ".parquet" for file in folder.iterdir()
    )


@dataclasses.dataclass(kw_only=True)
class ImageAugmentation:
    """How training pictures are changed, in this order; the defaults are ResNet's and leave the rest out.

    Attributes:
        crop: `resized`: a random part, scaled to the model's picture size (ImageNet's); `padded`: the whole picture with
            `crop_padding` pixels around it, cut at random (CIFAR's, for small pictures); `zoomed`: a random square as large
            as the shorter side, scaled to a random multiple of the picture size, cut at random (DALL-E's tokenizer);
            `none`: only scaled.
        crop_scale: for `resized`: smallest and largest share of the picture's area.
        crop_padding: for `padded`: pixels on each side.
        crop_zoom: for `zoomed`: smallest and largest multiple of the picture size.
        horizontal_flip: probability in [0, 1].
        randaugment_ops: how many of RandAugment's operations a picture goes through; 0 for none.
        randaugment_magnitude: their strength, in [0, 30]; timm's `m9`, of 10, is 27.
        random_erasing: probability in [0, 1] that a rectangle is replaced by the mean colour.
        mixup: alpha of MixUp's Beta(alpha, alpha); 0 for none.
        cutmix: alpha of CutMix's; with both, each batch takes one of them, with equal chances.
        mix_probability: probability in [0, 1] that a batch is mixed at all.

    Source: Cubuk et al. 2020 (RandAugment), https://arxiv.org/abs/1909.13719; Zhong et al. 2020 (random erasing),
        https://arxiv.org/abs/1708.04896; Zhang et al. 2018 (MixUp), https://arxiv.org/abs/1710.09412; Yun et al. 2019
        (CutMix), https://arxiv.org/abs/1905.04899. A batch is mixed with itself rolled by one (timm reverses it).
    """

    crop: Literal["resized", "padded", "zoomed", "none"] = "resized"
    crop_scale: list[float] = dataclasses.field(default_factory=lambda: [0.08, 1.0])
    crop_padding: int = 4
    crop_zoom: list[float] = dataclasses.field(default_factory=lambda: [1.125, 1.5])
    horizontal_flip: float = 0.5
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "random_erasing", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}. Correct it.")
        for name in ("crop_padding", "randaugment_ops", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}. Correct it.")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(f"`randaugment_magnitude` must be in [0, 30], got {self.randaugment_magnitude}. Lower it.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"`crop_scale` must be two shares, 0 < low <= high <= 1, got {self.crop_scale}. Correct it."
            )

        if len(self.crop_zoom) != 2 or not 1 <= self.crop_zoom[0] <= self.crop_zoom[1]:
            raise ValueError(f"`crop_zoom` must be two multiples, 1 <= low <= high, got {self.crop_zoom}. Correct it.")

    @property
    def is_mixing(self) -> bool:
        """Whether labels become class probabilities."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0

    def transform(self, size: tuple[int, int], mean_level: Sequence[int]) -> v2.Transform:
        """8-bit PIL picture -> uint8 (channels, *size), all but the mixing.

        On PIL pictures RandAugment is thirty times as quick as on tensors, at 32 x 32 pixels.

        Args:
            size: (height, width) in pixels.
            mean_level: of each channel, in [0, 255], for what turning and erasing uncover.
        """
        fill = list(mean_level)
        steps: list[v2.Transform] = []
        if self.crop == "resized":
            scale = (self.crop_scale[0], self.crop_scale[1])
            steps.append(v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC))
        elif self.crop == "zoomed":
            steps.append(ZoomedCrop(size, (self.crop_zoom[0], self.crop_zoom[1])))
        else:
            steps.append(v2.Resize(size, interpolation=InterpolationMode.BICUBIC))
        if self.crop == "padded":
            steps.append(v2.RandomCrop(size, padding=self.crop_padding))
        if self.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip(self.horizontal_flip))
        if self.randaugment_ops:
            steps.append(v2.RandAugment(self.randaugment_ops, self.randaugment_magnitude, fill=fill))
        steps.append(v2.PILToTensor())
        if self.random_erasing:
            steps.append(v2.RandomErasing(self.random_erasing, value=[float(level) for level in fill]))
        return v2.Compose(steps)


class ZoomedCrop(v2.Transform):
    """A random square as large as the shorter side of a PIL picture, scaled by area averages, and a random part of that.

    Args:
        size: (height, width) in pixels of the part.
        zoom: smallest and largest side of the scaled square, as a multiple of the longer of the two.

    Source: Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, listing 1
    """

    def __init__(self, size: tuple[int, int], zoom: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.zoom = size, zoom

    def forward(self, image: Image.Image) -> Image.Image:
        """The part, a picture of `size`."""
        square = min(image.size)
        left, top = _random_whole(image.width - square), _random_whole(image.height - square)
        low, high = (round(max(self.size) * zoom) for zoom in self.zoom)
        side = low + _random_whole(high - low)
        box = (left, top, left + square, top + square)
        scaled = image.resize((side, side), Image.Resampling.BOX, box=box)
        height, width = self.size
        left, top = _random_whole(side - width), _random_whole(side - height)
        return scaled.crop((left, top, left + width, top + height))


def _random_whole(largest: int) -> int:
    """A whole number in [0, largest], of torch's global generator."""
    return int(torch.randint(largest + 1, ()))


class TrainingImages(Sequence[dict[str, Any]]):
    """A training set of `length` items for a *sequential* sampler; each pass over the rows is in an order of its own.

    Item i is `{"pixel_values": uint8 (channels, height, width), "index": i, "source": file and row}` with the class as
    `labels` where there is one. It is a function of (seed, i) alone, so that a run goes on exactly where it stopped,
    whoever loads it.

    Args:
        rows: the pictures.
        transform: PIL picture -> uint8 tensor, drawing from torch's global generator.
        seed: with the index, decides everything about an item.
        length: number of items, such as steps times batch size.
        prepare: makes a picture of any mode an 8-bit one of the model's channels.
    """

    def __init__(
        self,
        rows: LabelledImages,
        transform: Callable[[Image.Image], torch.Tensor],
        *,
        seed: int,
        length: int,
        prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
    ) -> None:
        self.rows, self.transform, self.prepare = rows, transform, prepare
        self.seed, self._length = seed, length
        self._epoch, self._order = -1, np.empty(0, int)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Item `index`.

        Raises:
            IndexError: past the end, which also ends a `for` loop.
            ValueError: for a picture that can't be read.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"`index` must be in [0, {self._length}), got {index}. Make the set longer.")
        epoch, place = divmod(index, len(self.rows))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.rows))
            self._epoch = epoch
        number = int(self._order[place])
        row = self.rows[number]
        image = self.prepare(row["image"])
        with _seeded(self.seed, 1, index):
            item = {"pixel_values": self.transform(image), "index": index, "source": self.rows.source_of(number)}
        return item | {"labels": row["label"]} if "label" in row else item


class TrainingBatch:
    """Collates items of `TrainingImages`: `pixel_values`, float (batch, channels, height, width), and `labels`.

    Labels are int64 (batch,), or with MixUp or CutMix float (batch, num_classes): the probability of each class. A batch
    is mixed by (seed, index of its first item). That is its `index`; its `sources` are the items'.

    Args:
        scale, offset: of each channel: `pixel_values` are levels in [0, 255] * scale + offset.
        augmentation: whose `mixup`, `cutmix` and `mix_probability` are used.
        num_classes: of the labels; 0 for pictures without.
        seed: with the first index, decides how a batch is mixed.
    """

    def __init__(
        self,
        scale: Sequence[float],
        offset: Sequence[float],
        augmentation: ImageAugmentation,
        *,
        num_classes: int = 0,
        seed: int = 0,
    ) -> None:
        self.scale, self.offset = (torch.tensor(values)[:, None, None] for values in (scale, offset))
        self.num_classes, self.seed, self.mix_probability = num_classes, seed, augmentation.mix_probability
        self._mixers: list[v2.Transform] = []
        if augmentation.mixup:
            self._mixers.append(v2.MixUp(alpha=augmentation.mixup, num_classes=num_classes))
        if augmentation.cutmix:
            self._mixers.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=num_classes))

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of these items."""
        levels = torch.stack([item["pixel_values"] for item in items])  # uint8 (batch, channels, height, width)
        pixel_values = levels * self.scale + self.offset
        place = {"index": items[0]["index"], "sources": [item.get("source", "") for item in items]}
        if "labels" not in items[0]:
            return {"pixel_values": pixel_values, **place}
        labels = torch.tensor([item["labels"] for item in items])
        if self._mixers and self.mix_probability:
            with _seeded(self.seed, 2, items[0]["index"]):
                chance, choice = torch.rand(2).tolist()
                if chance < self.mix_probability:
                    mix = self._mixers[int(choice * len(self._mixers))]
                    pixel_values, labels = mix(pixel_values, labels)
                else:
                    labels = F.one_hot(labels, self.num_classes).float()
        return {"pixel_values": pixel_values, "labels": labels, **place}


class ProcessedBatch:
    """Collates items of `LabelledImages` as the image processor prepares them; `labels` int64 (batch,) if they have any.

    Args:
        processor: called as `processor(images=[...], return_tensors="pt")`; gives `pixel_values`.
        prepare: makes a picture of any mode an 8-bit one of the model's channels.
    """

    def __init__(
        self,
        processor: Callable[..., Mapping[str, Any]],
        prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
    ) -> None:
        self.processor, self.prepare = processor, prepare

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of these items."""
        images = [self.prepare(item["image"]) for item in items]
        batch = {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}
        if "label" in items[0]:
            batch["labels"] = torch.tensor([item["label"] for item in items])
        return batch


@contextlib.contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Around code that draws from torch's global generator for CPUs: seeded by the numbers, left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        yield


def _listed(names: Any) -> str:
    names = [f"`{name}`" for name in names]
    return ", ".join(names[:12]) + (" and more" if len(names) > 12 else "")
