"""The page of a run's report: what is in it, that nothing of the data can become markup, and that a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlm.training.reports.answer_errors import Confusion, KindScore, LengthScore
from hf_vlm.training.reports.label_masks import LabelMask, MaskedToken
from hf_vlm.training.reports.report_curves import ticks, value_range
from hf_vlm.training.reports.report_page import picture_url, report_html, write_report
from hf_vlm.training.reports.report_style import STYLE
from hf_vlm.training.reports.run_history import Chart, Line
from hf_vlm.training.reports.run_report import RunReport
from hf_vlm.training.reports.run_samples import Findings, PartSize, Sample
from hf_vlm.training.reports.word_attention import WordMap, overlay

EVIL = "<script>alert('x')</script>\"&<b>"
VOID = {"meta", "img", "br", "line", "circle", "polyline"}


def sample(answer: str = "a cat", **fields) -> Sample:
    settings = {
        "source": "rows.json, row 1",
        "pictures": [Image.new("RGB", (30, 20), (200, 30, 30))],
        "turns": [("user", "What is it?")],
        "references": ["a cat"],
        "is_right": answer == "a cat",
        "error_rate": 0.0,
        "num_characters": 5,
        "kind": "name",
    }
    return Sample(answer=answer, **(settings | fields))


def tiny_report(**fields) -> RunReport:
    first, second = sample(), sample("a dog", edits=[("c", "d"), ("a", "o"), ("t", "g")], error_rate=0.6)
    first.maps = [WordMap("cat", overlay(first.pictures[0], torch.tensor([[0.1, 0.4]])), 1, 0.4)]
    tokens = [MaskedToken("<s>", False), MaskedToken("<image> x 64", False), MaskedToken("\n", False)]
    mask = LabelMask("rows.json, row 2", [*tokens, MaskedToken("ca", True), MaskedToken("t", True)], 68, 2)
    findings = Findings(
        "Reader",
        [PartSize("vision", 1200, 0), PartSize("decoder", 34, 34)],
        asked_of="validation set lines: 2 of 2 rows",
        samples=[first, second],
        shown=[0, 1],
        unit="characters",
        masks=[mask],
    )
    settings = {
        "name": "run",
        "task": "ocr",
        "facts": {"Task": "ocr", "Steps": "10 of 10"},
        "recipe": "task: ocr\n",
        "charts": [
            Chart(
                "loss", [Line("training", [1, 5, 10], [4.0, 2.123456789, 1.0]), Line("validation", [5, 10], [3.5, 3.0])]
            ),
            Chart("learning rate", [Line("training", [1, 5, 10], [1e-3, 5e-4, 0.0])]),
        ],
        "findings": findings,
        "by_kind": [KindScore("name", 2, 2, 1, 0.3)],
        "confusions": [Confusion("c", "d", 2), Confusion("", " ", 1)],
        "by_length": [LengthScore(0, 8, 2, 0.3)],
        "worst": [second],
    }
    return RunReport(**(settings | fields))


class Page(HTMLParser):
    """A page's elements, and the text in it; complains of markup that is not well nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_nothing_of_the_data_becomes_markup():
    plain = Page(report_html(tiny_report()))
    rows = [sample(EVIL, source=EVIL, turns=[(EVIL, EVIL)], references=[EVIL], kind=EVIL)]
    rows[0].maps = [WordMap(EVIL, Image.new("RGB", (8, 8)), 1, 0.5)]
    mask = LabelMask(EVIL, [MaskedToken(EVIL, True)], 1, 1)
    findings = Findings(
        EVIL, [PartSize(EVIL, 1, 1)], EVIL, rows, [0], "characters", [mask], maps_note=EVIL, problems=[EVIL]
    )
    page = report_html(
        tiny_report(
            name=EVIL,
            facts={EVIL: EVIL},
            recipe=EVIL,
            charts=[Chart(EVIL, [Line(EVIL, [1, 2], [1.0, 2.0]), Line(EVIL + "2", num_left_out=1)])],
            findings=findings,
            by_kind=[KindScore(EVIL, 1, 1, 0, 1.0)],
            confusions=[Confusion("<", ">", 1), Confusion("&", '"', 1)],
            worst=rows,
        )
    )
    read = Page(page)
    assert {tag for tag, _ in read.elements} <= {tag for tag, _ in plain.elements} | {"li"}
    assert read.text.count("<script>alert('x')</script>\"&<b>") >= 20
    assert "<script" not in page.lower() and not any(name.startswith("on") for _, a in read.elements for name in a)
    for findings in (None, Findings("", [])):
        assert "<script" not in report_html(tiny_report(findings=findings, problem=EVIL)).lower()


def test_page_needs_nothing_else_and_forbids_it():
    page = Page(report_html(tiny_report()))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    assert "http" not in report_html(tiny_report()).replace("http-equiv", "") and "url(" not in STYLE
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {attributes["href"][1:] for attributes in page.all("a")} == ids


def test_page_can_be_read_without_seeing_it():
    page = Page(report_html(tiny_report()))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert page.all("th") and all(attributes["scope"] in ("row", "col") for attributes in page.all("th"))
    charts = [attributes for attributes in page.all("svg") if attributes["class"] == "plot"]
    assert [chart["role"] for chart in charts] == ["img", "img"]
    assert charts[0]["aria-label"] == (
        "loss by step: training from 4 at step 1 to 1 at step 10; validation from 3.5 at step 5 to 3 at step 10."
    )


def luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_stand_out_as_wcag_wants(mode):
    """Source: WCAG 2.2, success criteria 1.4.3 (4.5 for text) and 1.4.11 (3 for graphics)."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.S)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[mode]))
    pairs = [(ink, back, 4.5) for ink in ("ink", "soft", "c0") for back in ("page", "card")]
    pairs += [(ink, "card", 4.5) for ink in ("right", "wrong", "other", "learnt")] + [("learnt", "learnt-back", 4.5)]
    pairs += [(f"c{number}", "card", 3) for number in range(6)]
    for ink, back, wanted in pairs:
        low, high = sorted((luminance(colours[ink]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= wanted, (ink, back)


def test_curves_are_drawn_where_their_axes_say():
    page = report_html(tiny_report())
    plot = re.search(r'<svg class="plot".*?</svg>', page)[0]
    steps, values = [], []
    for x, y, anchor, text in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.,e-]+)</text>', plot
    ):
        number = float(text.replace(",", ""))
        (values if anchor == "end" else steps).append((float(y) - 4 if anchor == "end" else float(x), number))
    of_step, of_value = (np.polyfit(*zip(*sorted(axis), strict=True), 1) for axis in (steps, values))
    assert of_step[0] > 0 > of_value[0]  # later is right, and more is up
    drawn = re.findall(r'<polyline class="line c(\d)"[^>]* points="([^"]*)"', plot)
    assert [kind for kind, _ in drawn] == ["0", "1"]
    wanted = [[(1, 4.0), (5, 2.123456789), (10, 1.0)], [(5, 3.5), (10, 3.0)]]
    for (_, points), line in zip(drawn, wanted, strict=True):
        places = [tuple(map(float, point.split(","))) for point in points.split()]
        told = [(np.polyval(of_step, x), np.polyval(of_value, y)) for x, y in places]
        np.testing.assert_allclose(told, line, atol=0.03)


def test_every_value_is_told_as_it_was_logged():
    page = report_html(tiny_report())
    told = re.findall(r"<title>(\w+), step (\d+): ([^<]*)</title>", page)
    assert ("training", "5", "2.123456789") in told and ("training", "5", "0.0005") in told and len(told) == 8
    table = re.search(r"<caption>loss</caption>.*?</table>", page)[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows == [
        ["step", "training", "validation"],
        ["1", "4.0", ""],
        ["5", "2.123456789", "3.5"],
        ["10", "1.0", "3.0"],
    ]


def test_nothing_is_made_up_where_nothing_was_logged():
    without = tiny_report(charts=[Chart("loss", [Line("training", [1], [2.0])])])
    assert "No evaluation was logged." in report_html(without)
    empty = report_html(tiny_report(charts=[]))
    assert "Nothing was logged." in empty and "<polyline" not in empty
    left_out = report_html(tiny_report(charts=[Chart("loss", [Line("training", num_left_out=3)])]))
    assert "training: 3 values that are no numbers are left out." in left_out and "<polyline" not in left_out
    problem = report_html(
        tiny_report(findings=None, problem="no such folder", by_kind=[], worst=[], confusions=[], by_length=[])
    )
    assert "There are no answers: no such folder" in problem and "<polyline" in problem and 'id="masks"' not in problem


def test_many_values_are_thinned_out_and_that_is_told():
    steps = list(range(1, 5001))
    page = report_html(tiny_report(charts=[Chart("loss", [Line("training", steps, [1 / step for step in steps])])]))
    assert "numbers (300 of 5000 steps)" in page
    points = re.search(r'<polyline class="line c0"[^>]* points="([^"]*)"', page)[1].split()
    assert len(points) == 2000
    assert "step 1: 1.0<" in page and "step 5000: 0.0002<" in page


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (10, 1015, [200, 400, 600, 800, 1000]), (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4])],
)
def test_ticks_are_round(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_range_of_an_axis_is_never_empty():
    assert value_range([3.0, 3.0]) == pytest.approx((2.7, 3.3)) and value_range([0.0]) == (-1.0, 1.0)
    assert value_range([1.0, 4.0]) == (0.0, 4.0) and value_range([3.0, 4.0]) == (3.0, 4.0)
    assert value_range([-1.0, 4.0]) == (-1.0, 4.0)


def test_answers_and_errors_are_told_in_words():
    text = re.sub(r"\s+", " ", Page(report_html(tiny_report())).text)
    assert "✓ right" in text and "✗ wrong" in text and "3 of 5 characters edited" in text
    assert "1 of 2 that can be told right or wrong are right. CER 30.0 % on these rows." in text
    assert "What is it?" in text and "a dog" in text and "rows.json, row 1" in text
    page = report_html(tiny_report())
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    plain = [[re.sub("<[^>]*>", "", cell).strip() for cell in row] for row in cells]
    assert ["name", "2", "1 of 2", "50.0 %", "30.0 %"] in plain
    assert ["c", "d", "taken for another", "2"] in plain and ["nothing", "space", "inserted", "1"] in plain
    assert ["0 to 8", "2", "30.0 %"] in plain
    assert ["vision", "1,200", "0", "1,200"] in plain and ["decoder", "34", "34", "0"] in plain


def test_answer_in_other_words_is_not_called_wrong():
    page = report_html(tiny_report(findings=Findings("", [], "", [sample("a", is_right=None)], [0]), worst=[]))
    assert "≈ in other words" in page and "✗ wrong" not in page


def test_learnt_tokens_are_told_by_colour_line_and_word():
    page = report_html(tiny_report())
    mask = re.search(r'<div class="mask.*?</article>', page, flags=re.S)[0]
    assert mask.startswith(
        '<div class="mask scroll" tabindex="0"><span><span class="token">&lt;s&gt;</span><span class="token">&lt;image&gt; x 64'
        '</span><span class="token"><span aria-hidden="true">⏎</span>\n</span></span><span class="said">[learnt: </span>'
        '<span class="learnt"><span class="token">ca</span><span class="token">t</span></span><span class="said">] </span></div>'
    )
    assert "2 of 68 tokens are learnt" in mask
    assert re.search(r"\.learnt \{[^}]*text-decoration: underline", STYLE)


def test_picture_is_kept_in_its_smaller_form():
    assert picture_url(Image.new("RGB", (90, 90), "red")).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    assert picture_url(Image.fromarray(noise)).startswith("data:image/jpeg;base64,")
    assert picture_url(Image.new("RGBA", (9, 9))).startswith("data:image/")


def test_page_is_written_whole_and_not_over_a_folder(tmp_path):
    write_report(tiny_report(), tmp_path / "new" / "page.html")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
    with pytest.raises(IsADirectoryError, match="A file for the report is wanted"):
        write_report(tiny_report(), tmp_path)


# In a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZE = (1000, 2600)  # px
LOOK = """
<script>
const line = document.querySelector("svg.plot polyline.line.c0");
const at = line.getPointAtLength(line.getTotalLength() / 3).matrixTransform(line.getScreenCTM());
const told = {
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  images: document.images.length, x: at.x, y: at.y, width: document.documentElement.scrollWidth,
  learnt: getComputedStyle(document.querySelector(".mask .learnt")).textDecorationLine,
};
document.documentElement.setAttribute("data-told", JSON.stringify(told));
</script>
"""


def run_browser(page, folder, *options, size=SIZE) -> subprocess.CompletedProcess:
    usual = (
        "--no-sandbox --headless=new --disable-gpu --disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr"
    )
    told = [f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}", *options, f"file://{page}"]
    return subprocess.run([BROWSER, *usual.split(), *told], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser tells of the page: its log, a screenshot (light and dark), and measures taken within it."""
    if BROWSER is None:
        pytest.skip("a browser is wanted, got no chromium, chromium-browser or google-chrome on the path")
    folder = tmp_path_factory.mktemp("browser")
    page, looked_into = folder / "page.html", folder / "with_script.html"
    write_report(tiny_report(), page)
    text = page.read_text(encoding="utf-8")
    forbidding = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)[0]
    looked_into.write_text(text.replace(forbidding, "").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    shot = run_browser(page, folder, f"--screenshot={folder / 'light.png'}")
    run_browser(page, folder, f"--screenshot={folder / 'dark.png'}", "--blink-settings=preferredColorScheme=0")
    told = {}
    for name, size in (("wide", SIZE), ("narrow", (500, 900))):
        dom = run_browser(looked_into, folder, "--dump-dom", size=size).stdout
        told[name] = json.loads(re.search(r'data-told="([^"]*)"', dom)[1].replace("&quot;", '"'))
    pictures = {name: np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in ("light", "dark")}
    return {"log": shot.stderr, "folder": folder, **told, **pictures}


def test_browser_has_nothing_to_complain_of(seen):
    assert "CONSOLE" not in seen["log"]
    for told in (seen["wide"], seen["narrow"]):
        assert told["broken"] == 0 and told["images"] == 4
        assert told["learnt"] == "underline"
    assert seen["wide"]["width"] <= SIZE[0] and seen["narrow"]["width"] <= 500  # nothing to scroll sideways


def test_browser_would_complain_of_a_script_and_a_picture_from_elsewhere(seen):
    """The check above can fail."""
    page = seen["folder"] / "bad.html"
    text = report_html(tiny_report()).replace("</body>", "<script>alert(1)</script><img src='http://a.b/c.png'></body>")
    page.write_text(text, encoding="utf-8")
    assert run_browser(page, seen["folder"], "--dump-dom").stderr.count("CONSOLE") >= 2


@pytest.mark.parametrize(("mode", "colour"), [("light", "#0b5fd6"), ("dark", "#74aaff")])
def test_curve_is_seen_in_its_colour_where_it_is_drawn(seen, mode, colour):
    picture = seen[mode]
    assert picture.shape[:2] == (SIZE[1], SIZE[0]) and picture.std() > 5  # not blank
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
    x, y = round(seen["wide"]["x"]), round(seen["wide"]["y"])
    near = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).astype(int)
    assert np.abs(near - wanted).sum(axis=1).min() < 30
    away = picture[y - 30 : y - 20, x - 5 : x + 5].reshape(-1, 3).astype(int)
    assert np.abs(away - wanted).sum(axis=1).min() > 90


def test_page_is_dark_where_that_is_wanted(seen):
    assert seen["light"].mean() > 200 and seen["dark"].mean() < 70
