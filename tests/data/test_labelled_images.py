"""Pictures with labels: every layout reads alike, items are functions of (seed, i), batches mix as the papers say."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_vlm.data.labelled_images import (
    ImageAugmentation,
    ProcessedBatch,
    TrainingBatch,
    TrainingImages,
    read_images,
)

NAMES = ["cat", "dog", "test"]  # a class may be called as a split is
LEVELS = {"cat": 50, "dog": 100, "test": 150}


def picture(level, size=(10, 8)):
    return Image.new("RGB", size, (level, level, level))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_class_folders(folder, names=NAMES, number=2):
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            picture(LEVELS.get(name, 200) + index).save(folder / name / f"{index}.png")
    return folder


def write_rows(names=NAMES, number=2, label=None):
    """As a `datasets.Dataset`, labels by number with their names."""
    label = label or datasets.ClassLabel(names=names)
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = [
        {"image": {"bytes": png(picture(LEVELS[name] + i)), "path": None}, "label": name}
        for name in names
        for i in range(number)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def content(rows):
    """(class name, gray level) of every row, sorted."""
    return sorted((rows.names[row["label"]], np.asarray(row["image"])[0, 0, 0].item()) for row in rows)


WANTED = sorted((name, level + index) for name, level in LEVELS.items() for index in range(2))


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for split in ("train", "validation"):
        write_class_folders(folder / split)
    return folder


def write_layout(folder, layout):
    if layout == "class folders":
        write_class_folders(folder / "train")
    elif layout == "parquet":
        write_rows().to_parquet(folder / "train-00000-of-00001.parquet")
    elif layout == "parquet in data/":
        (folder / "data").mkdir()
        write_rows(label=datasets.Value("string")).to_parquet(folder / "data" / "train.parquet")
    elif layout == "save_to_disk":
        datasets.DatasetDict({"train": write_rows(), "validation": write_rows()}).save_to_disk(str(folder / "saved"))
        return folder / "saved"
    else:
        (folder / "train").mkdir()
        beside_all = "beside all" in layout
        table = []
        for name, level in LEVELS.items():
            for index in range(2):
                picture(level + index).save(folder / "train" / f"{name}-{index}.png")
                table.append({"file_name": f"{'train/' * beside_all}{name}-{index}.png", "label": name})
        if beside_all:
            (folder / "validation").mkdir()
            picture(1).save(folder / "validation" / "other.png")
            table.append({"file_name": "validation/other.png", "label": "dog"})
        if layout.endswith("split"):
            table = [{**row, "split": row["file_name"].split("/")[0]} for row in table]
        if layout == "metadata.csv":
            lines = ["file_name,label", *(",".join(row.values()) for row in table)]
            (folder / "train" / "metadata.csv").write_text("\n".join(lines))
        else:
            place = folder if beside_all else folder / "train"
            (place / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in table))
    return folder


@pytest.mark.parametrize(
    "layout",
    [
        "class folders",
        "parquet",
        "parquet in data/",
        "save_to_disk",
        "metadata.csv",
        "metadata.jsonl",
        "metadata beside all",
        "metadata beside all, column split",
    ],
)
def test_every_layout_gives_the_same_pictures_classes_and_names(tmp_path, layout):
    rows = read_images(write_layout(tmp_path, layout), "train")
    assert rows.names == NAMES
    assert content(rows) == WANTED


def test_folder_of_one_split_needs_no_split(tmp_path):
    assert content(read_images(write_class_folders(tmp_path / "all"))) == WANTED


def test_several_splits_want_one_to_be_named(class_folders):
    with pytest.raises(ValueError, match="a split is wanted, one of `train`, `validation`"):
        read_images(class_folders)


def test_pictures_without_labels_are_read_where_none_are_wanted(tmp_path):
    (tmp_path / "train").mkdir()
    picture(7).save(tmp_path / "train" / "a.png")
    rows = read_images(tmp_path, "train", with_labels=False)
    assert rows.labels is None and set(rows[0]) == {"image"}
    with pytest.raises(ValueError, match="a column `label` is wanted, got image"):
        read_images(tmp_path, "train")


def test_labels_are_numbered_by_name(class_folders, tmp_path):
    write_class_folders(tmp_path / "validation", ["dog"])  # a split may lack classes
    rows = read_images(tmp_path, "validation")
    assert rows.names == ["dog"] and rows.labels == [0, 0]
    assert rows.with_names(["test", "dog", "cat"]).labels == [1, 1]
    assert content(rows.with_names(["test", "dog", "cat"])) == [("dog", 100), ("dog", 101)]


def test_unknown_class_is_refused_with_its_row(tmp_path):
    write_class_folders(tmp_path / "validation", ["cat", "cow"])
    with pytest.raises(ValueError, match="split validation, row 2: a class of the training .* got `cow`, .*`dog`"):
        read_images(tmp_path, "validation").with_names(NAMES)


@pytest.mark.parametrize("harm", ["cut", "empty", "text", "none", "missing"])
def test_unreadable_picture_names_file_and_row(tmp_path, harm):
    write_class_folders(tmp_path / "train")
    file = tmp_path / "train" / "dog" / "1.png"
    if harm == "none":
        rows = write_rows()
        features = rows.features
        listed = rows.cast_column("image", datasets.Image(decode=False)).to_list()
        listed[3]["image"] = None
        datasets.Dataset.from_list(listed, features=features).to_parquet(tmp_path / "train.parquet")
        for split in (tmp_path / "train").iterdir():
            [image.unlink() for image in split.iterdir()]
            split.rmdir()
        (tmp_path / "train").rmdir()
    elif harm != "missing":
        file.write_bytes({"cut": file.read_bytes()[:40], "empty": b"", "text": b"no picture"}[harm])
    rows = read_images(tmp_path, "train")
    if harm == "missing":
        file.unlink()
    place = "row 3" if harm == "none" else f"row 3, {file}"
    with pytest.raises((ValueError, FileNotFoundError), match=f"split train, {place}: wanted a"):
        rows[3]
    assert rows[2]["label"] == 1


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file_name,label\na.png,cat\nb.png,", "row 1: wanted a label, got none"),
        ("file_name,label\na.png,cat\nb.png,  ", "row 1: wanted a label, got none"),
        ("file_name,label\na.png,0.5\nb.png,1.5", "must be names or whole numbers, got 0.5"),
        ("file_name,kind\na.png,cat\nb.png,dog", "a column `label` is wanted, got image, kind"),
    ],
)
def test_bad_labels_are_told(tmp_path, table, told):
    (tmp_path / "train").mkdir()
    for name in "ab":
        picture(1).save(tmp_path / "train" / f"{name}.png")
    (tmp_path / "train" / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=told):
        read_images(tmp_path, "train")


def test_label_without_a_name_is_refused(tmp_path):
    import pyarrow.parquet

    write_rows().to_parquet(tmp_path / "train.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    labels = pyarrow.array([0, 0, 1, 1, 2, 7], pyarrow.int64())
    pyarrow.parquet.write_table(table.set_column(1, "label", labels), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"row 5: a label in \[0, 3\) is wanted, as there are 3 names, got 7"):
        read_images(tmp_path, "train")


def test_missing_folder_split_and_rows_are_told(class_folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="A folder of pictures is wanted, got .*nowhere"):
        read_images(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match="pictures of a split `testing` are wanted"):
        read_images(class_folders, "testing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: pictures of a split `train` are wanted"):
        read_images(tmp_path / "empty", "train")
    (tmp_path / "rows").mkdir()
    write_rows().select([]).to_parquet(tmp_path / "rows" / "train.parquet")
    with pytest.raises(ValueError, match="rows: pictures of a split `train` are wanted"):
        read_images(tmp_path / "rows", "train")
    (tmp_path / "rows" / "train.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="rows: pictures of a split `train` are wanted, got an error"):
        read_images(tmp_path / "rows", "train")


# The training view

STRONG = ImageAugmentation(crop="padded", randaugment_ops=1, random_erasing=0.5, mixup=0.8, cutmix=1.0)


def training_images(folder, augmentation=STRONG, seed=3, length=40):
    rows = read_images(folder, "train")
    return TrainingImages(rows, augmentation.transform((8, 8), (127,) * 3), seed=seed, length=length)


def batches(images, num_workers, augmentation=STRONG):
    collate = TrainingBatch([1 / 255] * 3, [0.0] * 3, augmentation, num_classes=3, seed=3)
    return list(DataLoader(images, batch_size=5, num_workers=num_workers, collate_fn=collate))


def test_items_and_batches_are_functions_of_seed_and_index_whatever_loads_them(class_folders):
    images = training_images(class_folders)
    alone, by_workers = batches(images, 0), batches(images, 2)
    for one, other in zip(alone, by_workers, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])
    again = training_images(class_folders)
    torch.manual_seed(99)
    for index in (39, 7, 20):
        assert torch.equal(again[index]["pixel_values"], images[index]["pixel_values"])
    other_seed = training_images(class_folders, seed=4)
    assert any(not torch.equal(other_seed[i]["pixel_values"], images[i]["pixel_values"]) for i in range(5))


def test_the_global_generator_is_left_as_it_was(class_folders):
    images = training_images(class_folders)
    state = torch.get_rng_state()
    batches(images, 0)[0]
    images[0]
    # `DataLoader` draws its own seed: only the second matters
    torch.set_rng_state(state)
    TrainingBatch([1.0] * 3, [0.0] * 3, STRONG, num_classes=3)([images[index] for index in range(4)])
    assert torch.equal(torch.get_rng_state(), state)


def test_each_epoch_shows_every_row_once_in_an_order_of_its_own(class_folders):
    plain = ImageAugmentation(crop="none", horizontal_flip=0)
    images = training_images(class_folders, plain, length=18)
    epochs = [[images[6 * epoch + i]["pixel_values"][0, 0, 0].item() for i in range(6)] for epoch in range(3)]
    assert all(sorted(epoch) == [50, 51, 100, 101, 150, 151] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    with pytest.raises(IndexError):
        images[18]


def test_a_row_is_changed_otherwise_in_every_epoch(tmp_path):
    (tmp_path / "train").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "only.png")
    rows = read_images(tmp_path, "train", with_labels=False)
    images = TrainingImages(rows, ImageAugmentation().transform((8, 8), (0,) * 3), seed=0, length=4)
    seen = [images[epoch]["pixel_values"] for epoch in range(4)]
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


def test_crops_flips_and_erasing_do_what_they_say():
    torch.manual_seed(0)
    ramp = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    whole = torch.from_numpy(np.array(ramp)).movedim(-1, 0)
    flipped = ImageAugmentation(crop="none", horizontal_flip=1).transform((8, 8), (0,) * 3)(ramp)
    assert torch.equal(flipped, whole.flip(-1)) and flipped.dtype == torch.uint8
    padded = torch.nn.functional.pad(whole, (2, 2, 2, 2))
    cut = ImageAugmentation(crop="padded", crop_padding=2, horizontal_flip=0).transform((8, 8), (0,) * 3)(ramp)
    places = [padded[:, top : top + 8, left : left + 8] for top in range(5) for left in range(5)]
    assert any(torch.equal(cut, place) for place in places)
    erased = ImageAugmentation(crop="none", horizontal_flip=0, random_erasing=1).transform((8, 8), (200, 201, 202))(
        ramp
    )
    changed = (erased != whole).all(0)
    assert changed.any() and not changed.all()
    assert set(map(tuple, erased[:, changed].T.tolist())) == {(200, 201, 202)}


@pytest.mark.parametrize(
    "settings",
    [
        {"horizontal_flip": 1.5},
        {"random_erasing": -0.1},
        {"mix_probability": 2},
        {"mixup": -1},
        {"randaugment_magnitude": 31},
        {"crop_scale": [0.5, 0.2]},
        {"crop_scale": [0.5]},
    ],
)
def test_impossible_augmentation_is_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        ImageAugmentation(**settings)


# Batches


def items(number=6):
    """Pictures of one level each, level 10 * i, of classes 0, 1, 2, 0, 1, 2."""
    return [
        {"pixel_values": torch.full((3, 8, 8), 10 * i, dtype=torch.uint8), "labels": i % 3, "index": 100 + i}
        for i in range(number)
    ]


def test_batch_tells_its_first_index_and_where_its_pictures_stand(class_folders):
    images = training_images(class_folders)
    batch = TrainingBatch([1.0] * 3, [0.0] * 3, ImageAugmentation(), num_classes=3)([images[7], images[8]])
    assert batch["index"] == 7
    rows = read_images(class_folders, "train")
    order = np.random.default_rng([3, 0, 7 // len(rows)]).permutation(len(rows))
    assert batch["sources"][0] == f"{class_folders}, split train, row {order[7 % len(rows)]}"


def test_plain_batch_is_normalised_with_whole_labels():
    batch = TrainingBatch([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], ImageAugmentation(), num_classes=3)(items())
    assert batch["labels"].tolist() == [0, 1, 2, 0, 1, 2] and batch["labels"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"][2, :, 0, 0].tolist() == pytest.approx([3.0, 6.0, 9.0])


def test_mixup_labels_are_the_shares_of_the_pictures():
    """Each picture is share * itself + (1 - share) * its neighbour, the first's being the last."""
    batch = TrainingBatch([1.0] * 3, [0.0] * 3, ImageAugmentation(mixup=0.8), num_classes=3, seed=5)(items())
    levels, labels = batch["pixel_values"][:, 0, 0, 0].tolist(), batch["labels"]
    share = (levels[1] - 0) / 10  # picture 1, of level 10, with picture 0, of level 0
    assert 0 < share < 1
    for i in range(6):
        neighbour = (i - 1) % 6
        assert levels[i] == pytest.approx(share * 10 * i + (1 - share) * 10 * neighbour, abs=1e-4)
        wanted = [0.0, 0.0, 0.0]
        wanted[i % 3] += share
        wanted[neighbour % 3] += 1 - share
        assert labels[i].tolist() == pytest.approx(wanted, abs=1e-6)


def test_cutmix_labels_are_the_shares_of_the_area():
    batch = TrainingBatch([1.0] * 3, [0.0] * 3, ImageAugmentation(cutmix=1.0), num_classes=3, seed=1)(items())
    for i in range(6):
        levels = batch["pixel_values"][i, 0]
        own = (levels == 10 * i).float().mean().item()
        assert ((levels == 10 * i) | (levels == 10 * ((i - 1) % 6))).all()
        assert 0 < own < 1
        assert batch["labels"][i, i % 3].item() == pytest.approx(own, abs=1e-6)
        assert batch["labels"][i].sum().item() == pytest.approx(1)


def test_mixing_follows_seed_first_index_and_probability():
    def labels(first, seed=0, **settings):
        augmentation = ImageAugmentation(**{"mixup": 0.8, "cutmix": 1.0, **settings})
        batch = [{**item, "index": item["index"] + first} for item in items()]
        return TrainingBatch([1.0] * 3, [0.0] * 3, augmentation, num_classes=3, seed=seed)(batch)["labels"]

    assert torch.equal(labels(0), labels(0))
    assert not torch.equal(labels(0), labels(6)) and not torch.equal(labels(0), labels(0, seed=1))
    mixed = [bool((labels(first, mix_probability=0.3) % 1).any()) for first in range(200)]
    assert 0.2 < np.mean(mixed) < 0.4
    assert labels(0, mix_probability=0.0).tolist() == [0, 1, 2, 0, 1, 2]
    unmixed = labels(mixed.index(False), mix_probability=0.3)
    assert unmixed.dtype == torch.float32 and unmixed.argmax(1).tolist() == [0, 1, 2, 0, 1, 2]


def test_mixup_and_cutmix_are_taken_in_turns():
    collate = TrainingBatch([1.0] * 3, [0.0] * 3, ImageAugmentation(mixup=0.8, cutmix=1.0), num_classes=3)
    cut = []
    for first in range(200):
        batch = [{**item, "index": first} for item in items()]
        levels = collate(batch)["pixel_values"]
        cut.append(bool((levels % 10 == 0).all()))
    assert 0.4 < np.mean(cut) < 0.6


def test_processed_batch_is_the_processors():
    def processor(images, return_tensors):
        return {"pixel_values": torch.stack([v2.functional.pil_to_tensor(image) for image in images])}

    rows = [{"image": picture(3), "label": 1}, {"image": picture(4).convert("L"), "label": 0}]
    batch = ProcessedBatch(processor, lambda image: image.convert("RGB"))(rows)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [3, 4] and batch["labels"].tolist() == [1, 0]
    del rows[0]["label"], rows[1]["label"]
    assert set(ProcessedBatch(processor, lambda image: image.convert("RGB"))(rows)) == {"pixel_values"}


def test_folders_of_classes_without_splits_are_no_validation_set(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert len(read_images(tmp_path)) == 2
    with pytest.raises(ValueError, match="a folder `validation` is wanted, got folders of classes without splits"):
        read_images(tmp_path, "validation")


def test_zoomed_crop_shows_a_part_of_a_square_at_a_random_scale():
    # columns tell their place: a part of width 32 of a square of 100 that is scaled to 36..48 shows 67 to 89 of its columns
    columns = np.arange(120, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(columns, (100, 120)).copy())
    transform = ImageAugmentation(crop="zoomed", horizontal_flip=0).transform((32, 32), [0])
    spans = []
    for seed in range(40):
        torch.manual_seed(seed)
        part = transform(image)
        assert part.shape == (1, 32, 32)
        spans.append(int(part[0, 0, -1]) - int(part[0, 0, 0]))
    assert min(spans) >= 100 * 31 / 48 - 2 and max(spans) <= 100 * 31 / 36 + 2
    assert max(spans) - min(spans) > 10


def test_zoom_below_one_is_refused():
    with pytest.raises(ValueError, match=r"`crop_zoom` must be two multiples, 1 <= low <= high, got \[0.5, 1\]"):
        ImageAugmentation(crop="zoomed", crop_zoom=[0.5, 1])
