"""A conversation on the page: word by word, stopped, taken back, begun anew."""

import copy
import itertools

import pytest

from hf_vlm.demo.chatting import Conversation
from hf_vlm.demo.folders import look_at_folders
from hf_vlm.demo.loaded_models import LoadedModel, load_model
from tests.tiny_chat import chat_folder, coloured  # noqa: F401 (a fixture)

# ruff: noqa: F811 (a fixture's name is an argument's name)


@pytest.fixture(scope="module")
def loaded(chat_folder):
    return load_model(*look_at_folders([chat_folder]))


def all_of(pieces):
    return list(pieces)[-1]


def test_answer_grows_and_the_next_question_knows_what_was_said(loaded):
    talk = Conversation()
    growing = list(talk.ask(loaded, "colours?", [coloured("red"), coloured("blue")]))
    assert growing[-1] == "red blue" and len(growing) > 1
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))
    assert all_of(talk.ask(loaded, "colours?", [coloured("green")])) == "green"
    assert talk.num_exchanges == 2


def test_stopped_answer_is_kept_as_far_as_it_was_shown(loaded):
    talk = Conversation()
    seen = []
    for answer in talk.ask(loaded, "colours?", [coloured("red"), coloured("blue")]):
        seen.append(answer)
        talk.stop()
    assert len(seen) == 1 and "red blue".startswith(seen[0]) and seen[0] != "red blue"
    assert talk.num_exchanges == 1
    assert all_of(talk.ask(loaded, "colours?", [coloured("green")])) == "green"  # a stop is for one answer


def test_nothing_holds_the_model_between_answers(loaded):
    talk = Conversation()
    all_of(talk.ask(loaded, "colours?", [coloured("red")]))
    assert talk._session.model is None


def test_question_that_can_not_be_asked_leaves_what_was_said(loaded):
    talk = Conversation()
    all_of(talk.ask(loaded, "colours?", [coloured("red")]))
    with pytest.raises(ValueError, match="question is wanted"):
        talk.ask(loaded, " ", [])
    with pytest.raises(ValueError, match="must fit into the language model"):
        talk.ask(loaded, "colours?", [], max_new_tokens=1000)
    assert talk.num_exchanges == 1


def test_last_question_is_taken_back_and_all_is_begun_anew(loaded):
    talk = Conversation()
    for names in (["red"], ["blue"]):
        all_of(talk.ask(loaded, "colours?", [coloured(name) for name in names]))
        talk.shown.append([{"role": "user", "content": names[0]}])
    talk.undo()
    assert talk.num_exchanges == 1 and talk.messages == [{"role": "user", "content": "red"}]
    talk.reset()
    assert talk.num_exchanges == 0 and talk.messages == []
    with pytest.raises(ValueError, match="empty conversation"):
        talk.undo()


def test_other_model_and_other_visitor_know_nothing_of_it(loaded):
    talk = Conversation()
    all_of(talk.ask(loaded, "colours?", [coloured("red")]))
    assert copy.deepcopy(talk).num_exchanges == 0
    other = LoadedModel(copy.copy(loaded.folder), loaded.model, loaded.processor)
    object.__setattr__(other.folder, "source", "another")
    assert all_of(talk.ask(other, "colours?", [coloured("blue")])) == "blue"
    assert talk.num_exchanges == 1
