"""Requests for captions depend on seed and row alone, and leave pictures and captions as they are."""

from collections import Counter

import pytest

from hf_vlm.data.conversations.caption_requests import CAPTION_REQUESTS, with_caption_request

PICTURE = {"type": "image"}
CAPTION = [
    {"role": "user", "content": [{"type": "text", "text": "Old request"}, PICTURE]},
    {"role": "assistant", "content": "A red bus."},
]


def request_of(messages):
    (words,) = [part["text"] for part in messages[-2]["content"] if part["type"] == "text"]
    return words


def test_request_replaces_the_question_after_its_pictures():
    asked = with_caption_request(CAPTION, seed=3, index=8)
    assert asked == [
        {"role": "user", "content": [PICTURE, {"type": "text", "text": request_of(asked)}]},
        {"role": "assistant", "content": "A red bus."},
    ]
    assert request_of(asked) in CAPTION_REQUESTS
    assert CAPTION[0]["content"][0]["text"] == "Old request", "the caller's messages stay"


def test_system_message_and_several_pictures_stay():
    system = {"role": "system", "content": "Be brief."}
    asked = with_caption_request([system, {"role": "user", "content": [PICTURE, PICTURE]}, CAPTION[1]], 0, 0)
    assert asked[0] == system and asked[2] == CAPTION[1]
    assert asked[1]["content"][:2] == [PICTURE, PICTURE]


def test_request_is_a_function_of_seed_and_index():
    requests = [[request_of(with_caption_request(CAPTION, seed, index)) for index in range(50)] for seed in (0, 0, 1)]
    assert requests[0] == requests[1] != requests[2]
    # of this very sequence: a run goes on with it in any later version
    assert [CAPTION_REQUESTS.index(request) for request in requests[0][:6]] == [10, 8, 7, 13, 10, 13]


def test_all_requests_are_drawn_about_equally_often():
    assert len(set(CAPTION_REQUESTS)) == len(CAPTION_REQUESTS) >= 12
    number = 200 * len(CAPTION_REQUESTS)
    counts = Counter(request_of(with_caption_request(CAPTION, 0, index)) for index in range(number))
    assert set(counts) == set(CAPTION_REQUESTS)
    assert all(130 < count < 270 for count in counts.values())  # 5 standard deviations of 13.6 around 200


def test_requests_hold_no_mark_of_a_picture():
    assert not any("<" in request or request != request.strip() for request in CAPTION_REQUESTS)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (CAPTION * 2, "one question and one answer, got 4 messages"),
        (CAPTION[:1], "got 1 messages"),
        ([{"role": "user", "content": "Q"}, CAPTION[1]], "must be of a picture"),
        ([{"role": "user", "content": [{"type": "text", "text": "Q"}]}, CAPTION[1]], "must be of a picture"),
    ],
)
def test_what_is_no_caption_of_a_picture_raises(messages, told):
    with pytest.raises(ValueError, match=told):
        with_caption_request(messages, 0, 0)
