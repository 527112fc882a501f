"""Requests for a picture's caption, in many words, so that a model does not learn to answer one sentence only.

Sets of captions have a picture and its caption. LLaVA makes conversations of them by asking for the caption in one of several
sentences drawn by chance; here the chance is a function of (seed, index), so that a run goes on exactly where it stopped.

Source: Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 4.1 and appendix; the sentences are our own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CAPTION_REQUESTS = (
    "Caption this picture.",
    "What does the picture show? One sentence is enough.",
    "Say in a sentence what can be seen here.",
    "Which words would you put under this picture?",
    "Tell me in a few words what is in the picture.",
    "In short, what is going on here?",
    "Put what you see into one short sentence.",
    "I can't see the picture. What is in it, briefly?",
    "Write one line for this picture, as for an album.",
    "How would you caption this?",
    "Find a fitting caption for what you see.",
    "Name what is to be seen, in a single line.",
    "Give the picture a caption of one sentence.",
    "What is this a picture of? Keep it short.",
)


def with_caption_request(messages: Sequence[Mapping[str, Any]], seed: int, index: int) -> list[dict[str, Any]]:
    """A conversation of one picture's caption, its question replaced by a request that (seed, index) alone choose.

    Args:
        messages: of `Conversations`: one question, with pictures, and one answer, which is the caption; a system message may
            come first and stays.
        seed: 0 or more.
        index: of the row, 0 or more.

    Returns: new messages; the question's pictures are first, then the request.

    Raises:
        ValueError: if there is more than one exchange, or no picture.
    """
    spoken = [message for message in messages if message["role"] != "system"]
    if [message["role"] for message in spoken] != ["user", "assistant"]:
        raise ValueError(
            f"A caption must be one question and one answer, got {len(spoken)} messages. Ask for captions only on data that "
            "holds captions."
        )
    content = spoken[0]["content"]
    pictures = [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]
    if not pictures:
        raise ValueError("A caption must be of a picture, got a question without one. Leave the row out.")
    request = {"type": "text", "text": _chosen(seed, index)}
    asked = {"role": "user", "content": [*({"type": "image"} for _ in pictures), request]}
    return [asked if message["role"] == "user" else dict(message) for message in messages]


def _chosen(seed: int, index: int) -> str:
    number = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])
    return CAPTION_REQUESTS[number % len(CAPTION_REQUESTS)]
