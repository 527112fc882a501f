"""Sheets of attention: what is drawn is where it belongs, and which files are written for which models and pictures."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from hf_vlm import (
    CnnLstmForConditionalGeneration,
    CnnLstmProcessor,
    VisionTransformerConfig,
    VisionTransformerImageProcessor,
    VisionTransformerModel,
)
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.parts.attention_pictures import seen_picture
from hf_vlm.pipelines.attention_maps import AttentionMaps
from hf_vlm.pipelines.attention_sheets import (
    PictureExplainer,
    attention_sheet,
    bias_sheet,
    caption_sheet,
    explain_files,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**TINY, "image_size": 32, "patch_size": 8, "initializer_range": 0.5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def saved(tmp_path):
    """Saves a model beside its image processor and tells where."""

    def save(model, image_processor=None):
        folder = tmp_path / "models" / "a-model"
        model.save_pretrained(folder)
        (image_processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def picture_file(tmp_path):
    file = tmp_path / "cat.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def box(is_inside: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is True; all within is, too."""
    rows, columns = is_inside.any(axis=1).nonzero()[0], is_inside.any(axis=0).nonzero()[0]
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert is_inside[top:bottom, left:right].all()
    return left, top, right, bottom


def test_bright_patch_is_drawn_where_it_is_and_padding_is_cut_off():
    heads, real = torch.zeros(1, 1, 1, 2, 4), torch.ones(1, 2, 4, dtype=torch.bool)
    heads[..., 0, 2] = 0.25
    real[..., 3] = False
    maps = AttentionMaps(heads, torch.full((1, 2, 4), 0.1), real, is_from_cls=True)
    picture = Image.new("RGB", (64, 32), "blue")
    picture.paste("white", (0, 0, 48, 32))
    sheet = np.asarray(attention_sheet(picture, maps).draw("")).astype(int)
    is_red = sheet[..., 0] - sheet[..., 1] > 100
    starts = np.diff(is_red.any(axis=1).astype(int), prepend=0)
    first, second = (starts == 1).nonzero()[0]  # the head, and the layer's mean over heads; rollout is even
    for top, until in ((first, second), (second, len(sheet))):
        band = np.zeros_like(is_red)
        band[top:until] = is_red[top:until]
        # 48 x 32 px are real, drawn 288 x 192: patches of 96
        assert box(band) == (10 + 2 * 96, top, 10 + 3 * 96, top + 96)
    is_white = (sheet[first : first + 192] == 255).all(axis=-1)
    assert box(is_white[:, : 10 + 192]) == (10, 0, 10 + 192, 192)
    assert not is_white[:, 10 + 288 :].any() and not (sheet == (0, 0, 255)).all(axis=-1).any()


@pytest.mark.parametrize(
    ("size", "grid", "panel"),
    [((224, 224), (14, 14), (192, 192)), ((1024, 32), (1, 128), (1536, 48)), ((96, 32), (1, 12), (288, 96))],
    ids=["square", "long line", "short line"],
)
def test_panels_are_legible_and_the_sheet_no_wider_than_a_screen(size, grid, panel):
    maps = AttentionMaps(
        torch.rand(1, 12, 12, *grid), torch.rand(1, *grid), torch.ones(1, *grid, dtype=torch.bool), is_from_cls=False
    )
    sheet = attention_sheet(Image.new("RGB", size, "#00ff00"), maps).draw("a" * 40)
    assert sheet.width <= 1600 and sheet.height < 3000
    left, top, right, bottom = box((np.asarray(sheet) == (0, 255, 0)).all(axis=-1))
    assert (right - left, bottom - top) == panel


def test_bias_panels_middle_is_blue_and_what_is_right_of_it_red():
    bias = torch.zeros(1, 3, 3)
    bias[0, 1, 1], bias[0, 1, 2] = -1, 1
    sheet = np.asarray(bias_sheet({"layer": bias}).draw("")).astype(int)
    blue, red = box(sheet[..., 2] - sheet[..., 0] > 100), box(sheet[..., 0] - sheet[..., 2] > 100)
    assert blue[2] - blue[0] == blue[3] - blue[1] == 32
    assert red == (blue[2], blue[1], blue[2] + 32, blue[3])
    white = (sheet == 255).all(axis=-1)
    assert box(white[:, : blue[0]]) == (blue[0] - 32, blue[1] - 32, blue[0], blue[3] + 32)  # 0 is white, not pale


def test_heads_of_a_layer_share_one_scale_and_layers_do_not():
    biases = {"a": torch.tensor([1.0, 0.5]).view(2, 1, 1), "b": torch.tensor([0.5]).view(1, 1, 1)}
    colours = {tuple(colour) for colour in np.asarray(bias_sheet(biases).draw("")).reshape(-1, 3).tolist()}
    assert (178, 24, 43) in colours and any(red > 190 and 100 < green < 160 for red, green, _ in colours)
    alone = {tuple(c) for c in np.asarray(bias_sheet({"b": biases["b"]}).draw("")).reshape(-1, 3).tolist()}
    assert (178, 24, 43) in alone


@pytest.mark.parametrize("image_processor", [ViTImageProcessor, CLIPImageProcessor])
def test_picture_is_shown_as_it_was_before_it_was_normalised(saved, picture_file, image_processor):
    size = {"do_center_crop": False} if image_processor is CLIPImageProcessor else {}
    folder = saved(ViTModel(ViTConfig(**VIT)), image_processor(size={"height": 32, "width": 32}, **size))
    explainer = PictureExplainer(folder)
    picture = Image.open(picture_file)
    shown = explainer.seen_picture(explainer.prepare(picture)["pixel_values"])
    assert np.array_equal(np.asarray(shown), np.asarray(picture))


def test_bad_picture_is_told_and_like_names_are_kept_apart(saved, picture_file, damaged_picture, tmp_path):
    (tmp_path / "other").mkdir()
    same_name = tmp_path / "other" / "cat.png"
    Image.new("RGB", (40, 20), "red").save(same_name)
    out = tmp_path / "new" / "out"
    given = [picture_file, damaged_picture, same_name, "none.png"]
    found = list(explain_files(given, model=saved(ViTModel(ViTConfig(**VIT))), out=out))
    assert [result.file for result in found] == list(map(str, given))
    assert [result.files for result in found] == [
        [str(out / "cat-attention.png")],
        [],
        [str(out / "cat-2-attention.png")],
        [],
    ]
    assert damaged_picture in found[1].error and "none.png" in found[3].error
    assert sorted(path.name for path in out.iterdir()) == ["cat-2-attention.png", "cat-attention.png"]
    assert (found[0].rows, found[0].columns) == (4, 4) and np.shape(found[0].rollout) == (4, 4)
    (out / "cat-attention.png").write_bytes(b"")
    list(explain_files(given[:1], model=tmp_path / "models" / "a-model", out=out))
    assert Image.open(out / "cat-attention.png").width > 400  # written over what was there


def test_readers_encoder_is_explained_at_each_pictures_width(reader_folder, line_files, line_pictures, tmp_path):
    for result, picture in zip(
        explain_files(line_files, model=reader_folder, out=tmp_path), line_pictures, strict=True
    ):
        width = min(128, round(picture.width * 16 / picture.height))
        assert (result.rows, result.columns) == (1, -(-width // 8))
        assert sum(result.rollout[0]) == pytest.approx(1)


def test_model_of_the_package_is_the_default_and_its_padding_left_out(tmp_path):
    file = "scripts/example_lines/validation/printed-0.jpg"  # 549 x 34 px: 517 wide at 32 px, padded to 544
    (result,) = explain_files([file], out=tmp_path)
    assert (result.rows, result.columns) == np.shape(result.rollout) == (1, 65)
    assert min(result.rollout[0]) > 0


def test_encoder_of_the_hubs_trocr_is_explained(stock_trocr, line_files, tmp_path):
    (result,) = explain_files(line_files[:1], model=stock_trocr[0], out=tmp_path)
    assert result.error is None and (result.rows, result.columns) == (4, 4)


def test_vision_tower_of_a_whole_model_is_explained(saved, picture_file, tmp_path):
    text = {**TINY, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = CLIPModel(CLIPConfig(vision_config=VIT, text_config=text))
    (result,) = explain_files([picture_file], model=saved(model), out=tmp_path)
    assert (result.rows, result.columns, result.classes) == (4, 4, [])


def test_classifier_tells_its_likeliest_classes(saved, picture_file, tmp_path):
    names = dict(enumerate("abcdefg"))
    folder = saved(ViTForImageClassification(ViTConfig(**VIT, num_labels=7, id2label=names)))
    (result,) = explain_files([picture_file], model=folder, out=tmp_path)
    pixels = ViTImageProcessor(size={"height": 32, "width": 32})(Image.open(picture_file), return_tensors="pt")
    scores = ViTForImageClassification.from_pretrained(folder)(**pixels).logits[0].detach().exp()
    wanted = sorted(((float(score / scores.sum()), names[index]) for index, score in enumerate(scores)), reverse=True)
    assert [row["label"] for row in result.classes] == [name for _, name in wanted[:5]]
    assert [row["probability"] for row in result.classes] == pytest.approx([chance for chance, _ in wanted[:5]])
    assert str(result).splitlines()[1] == f"{picture_file}\t{wanted[0][1]}\t{100 * wanted[0][0]:.2f} %"


def test_classifier_without_its_head_is_refused(saved):
    folder = saved(ViTModel(ViTConfig(**VIT), add_pooling_layer=False))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"ViTModel"', '"ViTForImageClassification"'))
    with pytest.raises(ValueError, match=r"got none for \['classifier.bias', 'classifier.weight'\]"):
        PictureExplainer(folder)


def test_model_of_windows_has_its_biases_drawn_only(saved, picture_file, damaged_picture, tmp_path, caplog):
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    folder = saved(SwinForImageClassification(config))
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        found = list(explain_files([picture_file, damaged_picture, picture_file], model=folder, out=out))
    assert [result.file for result in found] == ["a-model", str(picture_file), damaged_picture, str(picture_file)]
    assert [path.name for path in out.iterdir()] == ["a-model-relative-position-bias.png"]
    assert found[0].files == [str(out / "a-model-relative-position-bias.png")]
    assert found[2].error and len(found[1].classes) == len(found[3].classes) == 2
    assert sum("a-model does not attend over whole pictures" in message for message in caplog.messages) == 1


def test_model_with_biases_and_attention_has_both_drawn(saved, picture_file, tmp_path):
    config = VisionTransformerConfig(image_size=32, relative_position_bias="per_layer", position_embedding="none")
    image_processor = VisionTransformerImageProcessor()
    found = list(
        explain_files([picture_file], model=saved(VisionTransformerModel(config), image_processor), out=tmp_path)
    )
    assert [Path(file).name for result in found for file in result.files] == [
        "a-model-relative-position-bias.png",
        "cat-attention.png",
    ]


def test_model_without_anything_to_draw_is_refused(saved, picture_file, tmp_path):
    folder = saved(ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])))
    with pytest.raises(ValueError, match="Use a vision transformer such as ViT"):
        list(explain_files([picture_file], model=folder, out=tmp_path))


def test_folder_that_can_not_be_made_is_told(saved, picture_file):
    with pytest.raises(OSError, match="A folder to write to is wanted, got .*cat.png"):
        list(explain_files([picture_file], model=saved(ViTModel(ViTConfig(**VIT))), out=picture_file))


def test_model_without_an_image_processor_is_refused(saved):
    folder = saved(ViTModel(ViTConfig(**VIT)))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="must hold an image processor"):
        PictureExplainer(folder)


@pytest.fixture
def captioner(tmp_path):
    """Writes three words about any picture, and looks for each of them at another place of a 2 x 2 map."""
    tokenizer = build_word_tokenizer(["one two three", "three two one"], min_count=1)
    vision = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    model = CnnLstmForConditionalGeneration.from_pretrained_parts(
        vision=vision,
        text=tokenizer,
        attention="additive",
        hidden_size=16,
        embedding_size=8,
        num_beams=1,
        max_new_tokens=6,
    )
    processor = CnnLstmProcessor.from_pretrained_parts(ViTImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    model.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


def test_captioner_draws_where_it_looked_for_each_word(captioner, picture_file, tmp_path):
    (result,) = explain_files([picture_file], model=captioner, out=tmp_path / "out")
    assert result.error is None
    model = CnnLstmForConditionalGeneration.from_pretrained(captioner).eval()
    processor = CnnLstmProcessor.from_pretrained(captioner)
    inputs = processor(images=[Image.open(picture_file)])
    token_ids = model.generate(**inputs)[:, 1:]
    assert result.caption == processor.tokenizer.decode(token_ids[0], skip_special_tokens=True)
    words = result.caption.split()
    is_word = torch.tensor([token not in processor.tokenizer.all_special_ids for token in token_ids[0].tolist()])
    maps = model.attention_over_words(inputs["pixel_values"], token_ids)[0, is_word]
    assert (result.rows, result.columns) == tuple(maps.shape[1:])
    torch.testing.assert_close(torch.tensor(result.rollout), maps.mean(dim=0))
    assert str(result).endswith(result.caption) and result.to_dict()["caption"] == result.caption
    seen = seen_picture(processor.image_processor, inputs["pixel_values"][0])
    drawn = caption_sheet(seen, words, maps).draw("cat.png, described by captioner")
    assert np.array_equal(np.asarray(Image.open(result.files[0])), np.asarray(drawn))


def test_caption_sheet_lays_each_map_over_its_own_panel():
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    sheet = np.asarray(caption_sheet(Image.new("RGB", (32, 32), "white"), ["one", "two"], maps).draw("t")).astype(int)
    is_dark_red = (sheet[..., 0] > 130) & (sheet[..., 1] < 110) & (sheet[..., 2] < 140)
    columns = is_dark_red.any(axis=0).nonzero()[0]
    (gap,) = (np.diff(columns) > 1).nonzero()[0]
    middle = columns[gap] + 1
    left, top, right, bottom = box(is_dark_red[:, :middle])
    second_left, second_top, second_right, second_bottom = box(is_dark_red[:, middle:])
    assert right - left == bottom - top == second_right - second_left == second_bottom - second_top == 96
    assert second_top == bottom  # the upper left quarter of one panel, the lower right of the next
