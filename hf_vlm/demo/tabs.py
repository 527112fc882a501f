"""The tabs of the page: what is asked for, what is done with it, and where the result stands."""

import functools
import html
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_vlm.demo.chatting import Conversation
from hf_vlm.demo.coding import code_picture, reconstruct
from hf_vlm.demo.folders import Ability, DemoFolder
from hf_vlm.demo.loaded_models import LoadedModel, LoadedModels
from hf_vlm.demo.looking import classify, look
from hf_vlm.demo.markup import figures, lines_table, notes, ranked, sections
from hf_vlm.demo.model_cards import card_html
from hf_vlm.demo.reading import read_picture
from hf_vlm.demo.uploads import uploaded_picture
from hf_vlm.demo.writing import answer_question, write_captions
from hf_vlm.training.supervision.step_errors import is_out_of_memory

logger = logging.getLogger(__name__)

ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
"""Settings of every event that uses a model: they share memory and threads, and none is made for two callers at once."""

_SHOWN_SIDE = 640  # px, of a question's pictures


def picture_upload(label: str) -> gr.Image:
    """Where a picture is put; what comes of it is the path of the file, None if there is none.

    The file is opened by our own reader, as gradio's leaves a picture lying on its side.
    """
    upload = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=260,
        buttons=[],
        alt_text="The uploaded picture",
    )
    upload.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return upload


class Tab:
    """What every tab shares: its models, the choice among them, and their cards.

    Args:
        ability: of all its models.
        folders: that have it.
        models: where they are loaded.
    """

    def __init__(self, ability: Ability, folders: Sequence[DemoFolder], models: LoadedModels) -> None:
        self.folders = {folder.name: folder for folder in folders}
        self.ability, self.models = ability, models

    def get(self, name: str) -> LoadedModel:
        """The model that was chosen."""
        return self.models.get(self.folders[name])

    def build(self) -> None:
        """Put the tab on the page that is being made: what it does on the left, the card beside it."""
        names = list(self.folders)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.chosen = gr.Dropdown(
                    names, value=names[0], label="Model", filterable=False, visible=len(names) > 1, interactive=True
                )
                _BUILDERS[self.ability](self)
            with gr.Column(scale=2, min_width=320):
                gr.HTML("<h2>The model's card</h2>", padding=False)
                card = gr.HTML(card_html(self.folders[names[0]]), padding=False)
        if len(names) > 1:
            self.chosen.input(
                lambda name: card_html(self.folders[name]), self.chosen, card, queue=False, api_visibility="private"
            )

    def run(
        self,
        button: gr.Button,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        pictures: Sequence[gr.Image],
    ) -> None:
        """Let a button do something; what was made of another picture, one of `pictures`, or by another model goes."""
        button.click(told(function), list(inputs), list(outputs), **ONE_AT_A_TIME)
        gr.on(
            [event for picture in pictures for event in (picture.upload, picture.clear)] + [self.chosen.input],
            None,
            None,
            list(outputs),
            js=f"() => [{', '.join(['null'] * len(outputs))}]",  # at once: an answer of the server might come after the result
            api_visibility="private",
        )


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with whatever goes wrong in it told on the page in words; what is not the visitor's doing is also logged."""

    @functools.wraps(function)
    def telling(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise page_error(error) from error

    return telling


def page_error(error: Exception) -> gr.Error:
    """What the page says of an error."""
    if isinstance(error, gr.Error):
        return error
    if is_out_of_memory(error):
        said = "There is not enough memory for this model and picture. Try a smaller picture, or fewer models at once."
        logger.error("%s (%s)", said, error)
    elif isinstance(error, ValueError | OSError | TypeError | ImportError):
        said = str(error)
    else:
        said = f"This went wrong: {type(error).__name__}: {error}. The terminal tells more."
        logger.exception(said)
    return gr.Error(html.escape(said, quote=False), duration=None, print_exception=False)  # until it is closed


# What each tab asks for and shows


def _build_read(tab: Tab) -> None:
    picture = picture_upload("Picture of a line or a page")
    kind = gr.Radio(["By its shape", "One line", "A page"], value="By its shape", label="What is in the picture")
    button = gr.Button("Read", variant="primary")
    shown = gr.Image(
        label="Where the lines are",
        alt_text="The picture with a numbered box around every line",
        interactive=False,
        buttons=["download", "fullscreen"],
        format="png",
    )
    table = gr.HTML(elem_classes=["result"], padding=False)
    text = gr.Textbox(label="The text", lines=2, max_lines=12, interactive=False, buttons=[])

    def read(name: str, path: str | None, kind: Any) -> tuple[Any, str, str]:
        opened = uploaded_picture(path)
        found = read_picture(tab.get(name).use, opened, kind)
        told = notes([note.replace("the page: ", "") for note in found.notes])
        return found.shown, told + lines_table(found.page.lines), found.page.text

    tab.run(button, read, [tab.chosen, picture, kind], [shown, table, text], pictures=[picture])


def _build_caption(tab: Tab) -> None:
    picture = picture_upload("Picture")
    number = gr.Slider(1, 5, value=1, step=1, label="How many captions")
    button = gr.Button("Describe", variant="primary")
    text = gr.Textbox(label="Captions", lines=2, max_lines=12, interactive=False, buttons=[])

    def describe(name: str, path: str | None, number: float) -> str:
        opened = uploaded_picture(path)
        captions = write_captions(tab.get(name).use, opened, int(number))
        return "\n".join(captions)

    tab.run(button, describe, [tab.chosen, picture, number], [text], pictures=[picture])


def _build_ask(tab: Tab) -> None:
    picture = picture_upload("Picture")
    question = gr.Textbox(label="Question", placeholder="What is this?", max_lines=3)
    number = gr.Slider(1, 5, value=3, step=1, label="How many answers")
    button = gr.Button("Ask", variant="primary")
    table = gr.HTML(elem_classes=["result"], padding=False)

    def ask(name: str, path: str | None, question: str, number: float) -> str:
        opened = uploaded_picture(path)
        return ranked("Answer", answer_question(tab.get(name).use, opened, question, int(number)))

    tab.run(button, ask, [tab.chosen, picture, question, number], [table], pictures=[picture])


def _build_chat(tab: Tab) -> None:
    talk = gr.State(Conversation())
    chat = gr.Chatbot(
        label="Conversation",
        height=420,
        render_markdown=False,
        buttons=["copy"],
        feedback_options=None,
        placeholder=" ",
    )
    asked = gr.MultimodalTextbox(
        label="Question, with pictures if you like",
        placeholder="Ask something",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_lines=6,
    )
    with gr.Row():
        stop = gr.Button("Stop", size="sm", min_width=90)
        undo = gr.Button("Take back", size="sm", min_width=90)
        new = gr.Button("Begin anew", size="sm", min_width=90)
    longest = gr.Slider(8, 1024, value=128, step=8, label="Longest answer, tokens")

    def answer(name: str, talk: Conversation, asked: Any, longest: float) -> Iterator[Any]:
        try:
            yield from _answer(tab, name, talk, asked, int(longest))
        except Exception as error:
            raise page_error(error) from error

    def take_back(talk: Conversation) -> Any:
        talk.undo()
        return talk.messages

    def begin(talk: Conversation) -> Any:
        talk.reset()
        return []

    asked.submit(answer, [tab.chosen, talk, asked, longest], [chat, asked, talk], **ONE_AT_A_TIME)
    stop.click(lambda talk: talk.stop(), talk, None, queue=False, api_visibility="private")
    for button, function in ((undo, take_back), (new, begin)):
        button.click(told(function), talk, chat, **ONE_AT_A_TIME)
    gr.on([tab.chosen.input, chat.clear], begin, talk, chat, **ONE_AT_A_TIME)


def _answer(tab: Tab, name: str, talk: Conversation, asked: Any, longest: int) -> Iterator[Any]:
    """Conversation as shown, emptied question and state, again and again as the answer grows."""
    files = list(asked.get("files") or ())
    pictures = [uploaded_picture(file) for file in files]
    growing = talk.ask(tab.get(name), asked.get("text") or "", pictures, max_new_tokens=longest)
    before = talk.num_exchanges
    exchange: list[dict[str, Any]] = [
        *(
            {"role": "user", "content": _shown(picture, Path(file))}
            for picture, file in zip(pictures, files, strict=True)
        ),
        {"role": "user", "content": asked["text"]},
        {"role": "assistant", "content": "..."},
    ]
    talk.shown.append(exchange)
    yield talk.messages, None, talk
    try:
        for answer in growing:
            exchange[-1]["content"] = answer
            yield talk.messages, gr.skip(), gr.skip()
    finally:
        if talk.num_exchanges == before:  # stopped or ended before a word
            talk.shown.remove(exchange)
    if talk.num_exchanges == before:
        gr.Info("There was no answer, so the question is taken back.")
        yield talk.messages, asked, talk


def _shown(picture: Image.Image, file: Path) -> gr.Image:
    """A picture of a question, as the model has it: the browser may not know the format of the file."""
    small = picture.copy()
    small.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    # Beside the upload, which has a folder of its own. Given as a picture, gradio would write it anew at every word, and
    # sometimes while the browser reads it.
    target = file.with_name("shown.png")
    small.save(file.with_name("shown.partial"), "png")
    file.with_name("shown.partial").replace(target)
    return gr.Image(str(target), alt_text=file.name, show_label=False, buttons=["fullscreen"], render=False)


def _build_tokens(tab: Tab) -> None:
    picture = picture_upload("Picture")
    button = gr.Button("Tokenize", variant="primary")
    shown = gr.HTML(elem_classes=["result"], padding=False)
    codes = gr.Textbox(label="The codes, row by row", lines=3, max_lines=12, interactive=False, buttons=[])

    def tokenize(name: str, path: str | None) -> tuple[str, str]:
        coded = code_picture(tab.get(name).use, uploaded_picture(path))
        rows = "\n".join(" ".join(map(str, row)) for row in coded.code_ids.tolist())
        return notes([coded.summary]) + figures(coded.panels), rows

    tab.run(button, tokenize, [tab.chosen, picture], [shown, codes], pictures=[picture])


def _build_latents(tab: Tab) -> None:
    with gr.Row():
        first = picture_upload("Picture")
        second = picture_upload("Another, to go to (optional)")
    steps = gr.Slider(3, 15, value=7, step=1, label="Pictures on the way")
    button = gr.Button("Make again", variant="primary")
    shown = gr.HTML(elem_classes=["result"], padding=False)

    def make(name: str, path: str | None, other: str | None, steps: float) -> str:
        start, end = uploaded_picture(path), uploaded_picture(other) if other else None
        loaded = tab.get(name)
        return figures(reconstruct(loaded.model, loaded.image_processor, start, end, int(steps)))

    tab.run(button, make, [tab.chosen, first, second, steps], [shown], pictures=[first, second])


def _build_classify(tab: Tab) -> None:
    picture = picture_upload("Picture")
    button = gr.Button("Classify", variant="primary")
    table = gr.HTML(elem_classes=["result"], padding=False)

    def find_class(name: str, path: str | None) -> str:
        opened = uploaded_picture(path)
        return ranked("Class", classify(tab.get(name).use, opened))

    tab.run(button, find_class, [tab.chosen, picture], [table], pictures=[picture])


def _build_attention(tab: Tab) -> None:
    picture = picture_upload("Picture")
    button = gr.Button("Show where it looks", variant="primary")
    shown = gr.HTML(elem_classes=["result"], padding=False)

    def show(name: str, path: str | None) -> str:
        opened = uploaded_picture(path)
        sheet = look(tab.get(name), opened)
        return sections(sheet.lines, sheet.sections)

    tab.run(button, show, [tab.chosen, picture], [shown], pictures=[picture])


_BUILDERS: dict[Ability, Callable[[Tab], None]] = {
    Ability.READ: _build_read,
    Ability.CAPTION: _build_caption,
    Ability.ASK: _build_ask,
    Ability.CHAT: _build_chat,
    Ability.TOKENS: _build_tokens,
    Ability.LATENTS: _build_latents,
    Ability.CLASSIFY: _build_classify,
    Ability.ATTENTION: _build_attention,
}
