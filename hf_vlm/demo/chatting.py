"""A conversation on the page: one a visitor and model, whose answers come word by word and can be stopped."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from hf_vlm.demo.loaded_models import LoadedModel
from hf_vlm.pipelines.chat import ChatPicture, ChatSession


class Conversation:
    """What one visitor said to one model. It holds no model between answers, so that one can be let go of.

    Attributes:
        shown: a list an exchange: the messages that the page shows of it.
    """

    def __init__(self) -> None:
        self.shown: list[list[dict[str, Any]]] = []
        self._session: ChatSession | None = None
        self._source: str | None = None
        self._stopped = threading.Event()

    def __deepcopy__(self, memo: Any) -> "Conversation":
        """A new one: the page copies it once for every visitor, before anything is said."""
        return Conversation()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All that is shown, as `gradio.Chatbot` takes it."""
        return [message for exchange in self.shown for message in exchange]

    def ask(self, loaded: LoadedModel, text: str, pictures: Sequence[Image.Image], **generation: Any) -> Iterator[str]:
        """The answer so far, again and again as it grows. Asked of another model than before, a new conversation begins.

        Args:
            pictures: upright, in mode RGB, shown before the question.
            generation: settings such as `max_new_tokens`.

        Raises:
            ValueError: if the question is empty, holds the image token, or is too long for the model; what was said before
                stays.
        """
        if self._source != loaded.folder.source:
            self.reset()
            self._source = loaded.folder.source
        session = self._session
        if session is None:
            session = self._session = ChatSession(loaded.model, loaded.processor)
        session.model, session.processor = loaded.model, loaded.processor
        self._stopped.clear()
        pieces: Any = session.ask(text, [ChatPicture(picture) for picture in pictures], **generation)
        return self._grown(session, pieces)

    def _grown(self, session: ChatSession, pieces: Any) -> Iterator[str]:
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                yield answer
                if self._stopped.is_set():
                    break
        finally:
            pieces.close()
            session.model = None

    @property
    def num_exchanges(self) -> int:
        """Questions with an answer so far."""
        return 0 if self._session is None else self._session.num_exchanges

    def stop(self) -> None:
        """End the answer that is coming, at its next word."""
        self._stopped.set()

    def undo(self) -> None:
        """Take back the last question and its answer.

        Raises:
            ValueError: if nothing was said.
        """
        if self._session is None:
            raise ValueError("An exchange to take back is wanted, got an empty conversation. Ask first.")
        self._session.undo()
        self.shown.pop()

    def reset(self) -> None:
        """Begin anew."""
        self.shown, self._session, self._source = [], None, None
