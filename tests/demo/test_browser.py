"""The page in a real browser without a window: uploads, clicks and what is then to be seen, at both widths.

What the models say is compared with what they say when they are asked from Python.
"""

import re
import shutil

import pytest
from PIL import Image

from hf_vlm import default_ocr_model
from hf_vlm.demo.coding import code_picture
from hf_vlm.demo.folders import look_at_folders
from hf_vlm.demo.loaded_models import load_model
from hf_vlm.demo.looking import classify
from hf_vlm.demo.page import build_page, start
from hf_vlm.demo.uploads import uploaded_picture
from hf_vlm.demo.writing import answer_question, write_captions
from tests.demo.tiny_folders import drawn_line, model_folders  # noqa: F401 (a fixture)
from tests.tiny_chat import chat_folder, coloured  # noqa: F401 (a fixture)
from tests.tiny_pages import drawn_page

# ruff: noqa: F811 (a fixture's name is an argument's name)

pytest.importorskip("gradio", reason="the extra `demo` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `sh scripts/install_browser.sh` installs one"),
]

DESKTOP, PHONE = (1280, 900), (390, 844)  # px
PATIENCE = 60_000  # ms, for a model that loads on a busy machine
CONTROLS = {"button", "textbox", "slider", "radio", "combobox", "spinbutton", "checkbox", "tab", "link", "listbox"}


@pytest.fixture(scope="module")
def url(model_folders, chat_folder):
    page = build_page([*model_folders.values(), chat_folder])
    yield start(page)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """One browser's view of the page; at the end nothing may have gone elsewhere, and no script have failed."""

    def __init__(self, browser, url, size=DESKTOP):
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.elsewhere, self.faults = [], []
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(url)
        self.page.get_by_role("tab").first.wait_for()

    def _note(self, requested, url):
        if not requested.startswith((f"{url}/", "data:", "blob:")):
            self.elsewhere.append(requested)

    @property
    def tab(self):
        return self.page.locator("div[role=tabpanel]:visible")

    @property
    def tab_names(self):
        """Of all tabs; those that have no room are in a menu."""
        names = self.page.get_by_role("tab").all_inner_texts()
        more = self.page.get_by_role("button", name="More tabs")
        if more.is_visible():
            more.click()
            names += self.page.locator(".overflow-dropdown button").all_inner_texts()
            more.click()
        return names

    def open(self, name):
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.is_visible():
            tab.click()
        else:
            self.page.get_by_role("button", name="More tabs").click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()
        return self

    def upload(self, file, place=0):
        with self.page.expect_response(lambda response: "/upload" in response.url):
            self.tab.locator("input[type=file]").nth(place).set_input_files(str(file))
        self.tab.get_by_alt_text("The uploaded picture").nth(place).wait_for(state="attached")
        return self

    def press(self, name):
        self.tab.get_by_role("button", name=name, exact=True).click()
        return self

    def rows(self):
        """Cells of the table of results."""
        self.tab.locator("table.results").wait_for()
        return [row.locator("td").all_inner_texts() for row in self.tab.locator("table.results tbody tr").all()]

    def captions(self):
        self.tab.locator("figcaption").first.wait_for()
        return self.tab.locator("figcaption").all_inner_texts()

    def told(self):
        """What the page says went wrong."""
        return self.page.get_by_test_id("toast-body").last.inner_text()

    def nameless(self):
        """Roles of controls that a screen reader has no name for."""
        nodes = self.page.context.new_cdp_session(self.page).send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(shown) > 5
        return [node["role"]["value"] for node in shown if not node["name"]["value"]]

    def leave(self):
        self.page.close()
        assert self.elsewhere == [] and self.faults == []


@pytest.fixture
def visitor(browser, url):
    visitor = Visitor(browser, url)
    yield visitor
    visitor.leave()


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((40, 40)).convert("RGB").save(file)
    return file


def use_of(folder):
    """Asked before the page is: models are loaded in one thread at a time."""
    return load_model(*look_at_folders([folder])).use


def test_line_is_read_with_its_confidence(visitor, tmp_path):
    drawn_line("a short line of text").save(tmp_path / "line.png")
    visitor.open("Read").upload(tmp_path / "line.png").press("Read")
    ((number, text, score),) = visitor.rows()
    assert (number, re.sub(r" [\d.]+ %", "", text)) == ("1", "a short line of text") and score.endswith(" %")
    assert visitor.tab.get_by_label("The text").input_value() == "a short line of text"


def test_page_is_read_and_shows_its_lines(visitor, tmp_path):
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    drawn_page(["a cat and a dog", "we saw a ship"], size=(400, 140)).resize((1200, 420)).save(tmp_path / "page.png")
    visitor.open("Read").upload(tmp_path / "page.png").press("Read")
    assert [row[0] for row in visitor.rows()] == ["1", "2"]
    assert visitor.tab.get_by_label("The text").input_value().splitlines()[0] == "a cat and a dog"
    shown = visitor.tab.get_by_alt_text("The picture with a numbered box around every line")
    assert shown.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 1200


def test_picture_is_described(visitor, picture, model_folders):
    visitor.open("Caption").upload(picture)
    visitor.tab.get_by_label("number input for How many captions").fill("2")
    expected = write_captions(use_of(model_folders["caption"]), uploaded_picture(str(picture)), 2)
    visitor.press("Describe")
    playwright.expect(visitor.tab.get_by_label("Captions", exact=True)).to_have_value("\n".join(expected))


def test_question_is_answered_with_probabilities(visitor, picture, model_folders):
    visitor.open("Ask").upload(picture)
    visitor.tab.get_by_label("Question").fill("what is it?")
    expected = answer_question(use_of(model_folders["ask"]), uploaded_picture(str(picture)), "what is it?", 3)
    visitor.press("Ask")
    assert [row[:2] for row in visitor.rows()] == [[text or "(nothing)", f"{100 * p:.1f} %"] for text, p in expected]


def test_codes_and_the_picture_made_of_them_are_shown(visitor, picture, model_folders):
    coded = code_picture(use_of(model_folders["tokens"]), uploaded_picture(str(picture)))
    visitor.open("Tokens").upload(picture).press("Tokenize")
    assert visitor.captions() == [caption for caption, _ in coded.panels]
    rows = visitor.tab.get_by_label("The codes, row by row").input_value().splitlines()
    assert [[int(code) for code in row.split()] for row in rows] == coded.code_ids.tolist()
    assert coded.summary in visitor.tab.inner_text()


def test_way_between_two_pictures_is_shown(visitor, picture, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    visitor.open("Latents").upload(picture).upload(tmp_path / "red.png", place=1).press("Make again")
    assert len(visitor.captions()) == 9 and visitor.captions()[-2] == "100 % of the way"


def test_classes_are_ranked(visitor, picture, model_folders):
    expected = classify(use_of(model_folders["classify"]), uploaded_picture(str(picture)))
    visitor.open("Classify").upload(picture).press("Classify")
    assert [row[:2] for row in visitor.rows()] == [[label, f"{100 * share:.1f} %"] for label, share in expected]


def test_attention_is_shown_of_the_chosen_model(visitor, picture):
    visitor.open("Attention")
    visitor.tab.get_by_label("Model").click()
    visitor.page.get_by_role("option", name="classifier").click()
    visitor.upload(picture).press("Show where it looks")
    assert [caption.split(":")[0] for caption in visitor.captions()] == [
        "the picture as the model sees it",
        "rollout, all layers",
        *("head 1", "head 2", "layer 1", "layer 2"),
    ]


def test_card_is_that_of_the_chosen_model(visitor):
    visitor.open("Attention")
    assert "A small line reader" in visitor.tab.locator(".card").inner_text()
    visitor.tab.get_by_label("Model").click()
    visitor.page.get_by_role("option", name="classifier").click()
    playwright.expect(visitor.tab.locator(".card")).to_contain_text("There is no card")


def ask(visitor, text, *files):
    if files:
        visitor.tab.locator("input[type=file]").first.set_input_files(list(map(str, files)))
        playwright.expect(visitor.tab.locator(".thumbnail-image")).to_have_count(len(files))
    visitor.tab.get_by_placeholder("Ask something").fill(text)
    visitor.tab.get_by_role("button", name="Submit").click()


def said(visitor):
    return visitor.tab.get_by_test_id("bot")


def test_chat_answers_word_by_word_and_knows_what_was_said(visitor, tmp_path):
    for name in ("red", "blue", "green"):
        coloured(name).save(tmp_path / f"{name}.png")
    visitor.open("Chat")
    visitor.page.evaluate("""() => {
        window.seen = new Set();
        const note = () => document.querySelectorAll('[data-testid=bot]').forEach(m => window.seen.add(m.innerText.trim()));
        new MutationObserver(note).observe(document.body, {childList: true, subtree: true, characterData: true});
    }""")
    ask(visitor, "colours?", tmp_path / "red.png", tmp_path / "blue.png")
    playwright.expect(said(visitor)).to_have_text(["red blue"])
    assert {"red", "red blue"} <= set(visitor.page.evaluate("[...window.seen]"))
    assert visitor.tab.get_by_test_id("user").get_by_role("img").count() >= 2
    ask(visitor, "colours?", tmp_path / "green.png")
    playwright.expect(said(visitor)).to_have_text(["red blue", "green"])
    visitor.press("Take back")
    playwright.expect(said(visitor)).to_have_text(["red blue"])
    visitor.press("Begin anew")
    playwright.expect(said(visitor)).to_have_count(0)
    ask(visitor, "   ")
    assert "A question is wanted" in visitor.told()


def test_visitors_do_not_hear_each_other(visitor, browser, url, tmp_path):
    coloured("red").save(tmp_path / "red.png")
    visitor.open("Chat")
    ask(visitor, "colours?", tmp_path / "red.png")
    playwright.expect(said(visitor)).to_have_text(["red"])
    other = Visitor(browser, url).open("Chat")
    assert said(other).count() == 0
    other.press("Take back")
    assert "empty conversation" in other.told()
    other.leave()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("notes.png", "notes.png: wanted a picture in a format that Pillow reads"),
        ("huge.png", "huge.png: wanted at most"),
        (None, "A picture is wanted, got none. Upload one first."),
    ],
)
def test_bad_upload_is_told_in_words_and_the_page_goes_on(visitor, name, told, tmp_path):
    (tmp_path / "notes.png").write_bytes(b"not a picture at all")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "huge.png")
    visitor.open("Read")
    if name is not None:
        visitor.upload(tmp_path / name)
    visitor.press("Read")
    assert told in visitor.told() and "Traceback" not in visitor.page.content()
    if name is not None:
        visitor.press("Remove Image")
    drawn_line("it is late now").save(tmp_path / "line.png")
    visitor.upload(tmp_path / "line.png").press("Read")
    playwright.expect(visitor.tab.get_by_label("The text")).to_have_value("it is late now")


def test_picture_that_lies_on_its_side_and_one_for_the_press_are_read(visitor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right by 90 degrees
    line = drawn_line("it is late now")
    line.rotate(90, expand=True).save(tmp_path / "lying.jpg", exif=exif, quality=95)
    line.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    visitor.open("Read")
    for file in ("lying.jpg", "cmyk.jpg"):
        visitor.upload(tmp_path / file).press("Read")
        playwright.expect(visitor.tab.get_by_label("The text")).to_have_value("it is late now")
        visitor.press("Remove Image")
        playwright.expect(visitor.tab.get_by_label("The text")).to_have_value(
            ""
        )  # no result stays beside another picture


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_every_tab_fits_the_screen_and_every_control_has_a_name(browser, url, size):
    visitor = Visitor(browser, url, size)
    names = visitor.tab_names
    assert sorted(names) == sorted(["Read", "Caption", "Ask", "Chat", "Tokens", "Latents", "Classify", "Attention"])
    for name in names:
        visitor.open(name)
        visitor.tab.locator(".card").wait_for()
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= size[0], name
        assert visitor.nameless() == [], name
        text = visitor.tab.locator(".card").bounding_box()
        assert text["x"] >= 0 and text["x"] + text["width"] <= size[0]
    visitor.leave()


def test_card_with_pictures_from_elsewhere_asks_for_none(browser, tmp_path):
    folder = shutil.copytree(default_ocr_model(), tmp_path / "m")
    (folder / "README.md").write_text(
        "# m\n![there](https://example.com/x.png)\n<img src='https://example.com/y.png'>\n"
    )
    page = build_page([folder])
    try:
        visitor = Visitor(browser, start(page))
        assert "there" in visitor.tab.locator(".card").inner_text()
        visitor.leave()
    finally:
        page.close(verbose=False)
