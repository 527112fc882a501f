"""The card beside a model: whoever wrote it, the page runs nothing of it and fetches nothing for it."""

import re

import pytest
from PIL import Image

from hf_vlm.demo.folders import Ability, DemoFolder
from hf_vlm.demo.model_cards import card_html


def shown(text, folder, **settings):
    (folder / "README.md").write_text(text, encoding="utf-8")
    return card_html(DemoFolder("m", str(folder), Ability.READ, True, card=folder / "README.md", **settings))


def test_card_is_shown_as_text_and_table_without_its_front_matter(tmp_path):
    told = shown("---\ntags:\n- secret\n---\n# Title\n\nSome **words**.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", tmp_path)
    assert "<h3>Title</h3>" in told and "<strong>words</strong>" in told and "<td>2</td>" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '<img src="https://example.com/x.png">',
        "inline <b onclick=alert(1)>html</b>",
        '<iframe src="https://example.com"></iframe>',
        "[a](javascript:alert(1))",
        "[a](data:text/html;base64,AAAA)",
        "![a](https://example.com/x.png)",
        '![a" onerror="alert(1)](https://example.com/x.png)',
        "![a](data:image/svg+xml;base64,AAAA)",
        "![a](//example.com/x.png)",
    ],
)
def test_nothing_of_a_card_runs_or_is_fetched(text, tmp_path):
    told = shown(text, tmp_path)
    tags = set(re.findall(r"<([a-z0-9]+)", told))
    assert tags <= {"div", "p", "a", "h3"}
    assert not re.search(r"""<[^>]*\son\w+=["'a-z]""", told)
    assert not re.search(r'href="(javascript|data):', told) and "<img" not in told


def test_picture_beside_the_card_is_part_of_the_page_and_one_elsewhere_is_not(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    (folder / "broken.png").write_bytes(b"no picture")
    assert re.findall('<img alt="([^"]*)" src="data:image/png;base64', shown("![inside](a%20b.png)", folder)) == [
        "inside"
    ]
    assert "<img" not in shown("![outside](../other.png)", folder)
    assert "<img" not in shown(f"![outside]({tmp_path}/other.png)", folder)
    assert "<img" not in shown("![broken](broken.png)", folder) and "broken" in shown("![broken](broken.png)", folder)


def test_links_open_elsewhere_and_do_not_tell_where_they_were_followed(tmp_path):
    told = shown("[paper](https://arxiv.org/abs/1)", tmp_path)
    assert 'href="https://arxiv.org/abs/1" target="_blank" rel="noopener noreferrer"' in told


def test_adapter_names_its_base_and_a_missing_card_how_to_write_one(tmp_path):
    assert "adapter of some/base" in shown("x", tmp_path, adapter_of="some/base")
    assert "hf-vlm card" in card_html(DemoFolder("m", "m", Ability.READ, True))
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00bad")
    assert "can't be read" in card_html(DemoFolder("m", "m", Ability.READ, True, card=tmp_path / "README.md"))
