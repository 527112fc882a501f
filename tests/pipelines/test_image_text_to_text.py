"""`pipeline("image-text-to-text")`, which is transformers' own, on an assembled model that names colours."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from tests.tiny_chat import chat_folder, colour_files, coloured, user  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)


@pytest.fixture(scope="module")
def pipe(chat_folder):
    return pipeline("image-text-to-text", model=chat_folder, device="cpu")


@pytest.fixture(scope="module")
def generated(chat_folder):
    """What the model itself generates for ids put together by hand: `generated(text, *pictures, **settings)`."""
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained(chat_folder)
    processor = LlavaVisionLanguageProcessor.from_pretrained(chat_folder)

    def generate(text, *pictures, **settings):
        tokenizer, image_token = processor.tokenizer, processor.image_token_id
        ids = []
        for number, piece in enumerate(text.split("<image>")):
            ids += [image_token] * (4 if number else 0) + tokenizer.encode(piece, add_special_tokens=False)
        pixels = torch.cat([processor.prepare_images([picture]) for picture in pictures]) if pictures else None
        tokens = model.generate(torch.tensor([ids]), pixel_values=pixels, **settings)[:, len(ids) :]
        return [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]

    return generate


def said(text):
    return {"role": "assistant", "content": text}


def chatml(*turns):
    """A prompt as the language model's own template writes it."""
    roles = ("user", "assistant")
    said = "".join(f"<|im_start|>{roles[index % 2]}\n{turn}<|im_end|>\n" for index, turn in enumerate(turns))
    return f"{said}<|im_start|>assistant\n"


def last_answers(results):
    return [result[0]["generated_text"][-1]["content"] for result in results]


def test_folder_is_served_by_our_model_and_processor(pipe):
    assert type(pipe.model) is LlavaVisionLanguageForConditionalGeneration
    assert type(pipe.processor) is LlavaVisionLanguageProcessor


@pytest.mark.parametrize("names", [["red"], ["blue", "green"], ["green", "blue"]])
def test_pictures_by_path_url_key_or_pil_are_named_in_their_order(pipe, colour_files, names):
    given = [
        [{"type": "image", "image": coloured(name)} for name in names],
        [{"type": "image", "image": colour_files[name]} for name in names],
        [{"type": "image", "path": colour_files[name]} for name in names],
        [{"type": "image", "url": colour_files[name]} for name in names],
    ]
    for parts in given:
        messages = [user("colours?", *parts)]
        (result,) = pipe(text=messages)
        assert result["generated_text"] == [*messages, said(" ".join(names))]
        assert result["input_text"] == messages
    assert pipe(text=[user("colours?", *given[0])], return_full_text=False)[0]["generated_text"] == " ".join(names)


@pytest.mark.parametrize("question", ["colours?", "first?", "what"])
def test_answer_is_what_the_model_generates_for_ids_made_by_hand(pipe, generated, question):
    red, green = coloured("red", (50, 20)), coloured("green", (10, 30))
    (result,) = pipe(text=[user(question, red, green)], max_new_tokens=12)
    wanted = generated(chatml(f"<image>\n<image>\n{question}"), red, green, max_new_tokens=12)
    assert [result["generated_text"][-1]["content"]] == wanted


def test_swapped_pictures_change_the_answer(pipe):
    answers = [
        pipe(text=[user("colours?", *map(coloured, names))], return_full_text=False)[0]["generated_text"]
        for names in (("red", "green"), ("green", "red"))
    ]
    assert answers == ["red green", "green red"]


def test_pictures_over_a_conversation_stay_in_their_turns(pipe, generated):
    def ask(first, second):
        messages = [user("colours?", coloured(first)), said(first), user("colours?", coloured(second)), said(second)]
        return pipe(text=[*messages, user("first?")], return_full_text=False)[0]["generated_text"]

    assert ask("red", "blue") == "red"
    assert ask("blue", "red") == "blue"
    prompt = chatml("<image>\ncolours?", "green", "<image>\ncolours?", "red", "first?")
    assert [ask("green", "red")] == generated(prompt, coloured("green"), coloured("red"))


def test_text_only_messages_are_answered(pipe, generated):
    for content in ("hello", [{"type": "text", "text": "hello"}]):
        (result,) = pipe(text=[{"role": "user", "content": content}], return_full_text=False)
        assert result["generated_text"] == "hi" == generated(chatml("hello"))[0]


def test_system_text_stands_before_the_conversation(pipe, generated):
    messages = [{"role": "system", "content": "Be short."}, user("colours?", coloured("red"))]
    (result,) = pipe(text=messages, return_full_text=False, max_new_tokens=6)
    prompt = "<|im_start|>system\nBe short.<|im_end|>\n" + chatml("<image>\ncolours?")
    assert [result["generated_text"]] == generated(prompt, coloured("red"), max_new_tokens=6)


def test_message_of_the_assistant_is_gone_on_with(pipe, generated):
    messages = [user("colours?", coloured("blue"), coloured("green")), said([{"type": "text", "text": "blue g"}])]
    (result,) = pipe(text=messages, return_full_text=False)
    prompt = chatml("<image>\n<image>\ncolours?") + "blue g"
    assert [result["generated_text"]] == generated(prompt, coloured("blue"), coloured("green")) == ["reen"]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batch_of_conversations_is_answered_as_each_alone(pipe, batch_size):
    conversations = [
        [user("colours?", coloured("red"))],
        [user("colours?", coloured("blue"), coloured("green"))],
        [user("colours?", coloured("green")), said("green"), user("first?")],
        [user("colours?", coloured("blue")), said("blue"), user("colours?", coloured("red"))],
    ]
    alone = last_answers([pipe(text=conversation) for conversation in conversations])
    assert alone == ["red", "blue green", "green", "red"]
    assert last_answers(pipe(text=conversations, batch_size=batch_size)) == alone


def test_batch_of_texts_alone_is_answered_as_each_alone(pipe):
    conversations = [[user("hello")], [user("hello there, and more")]]
    alone = last_answers([pipe(text=conversation, max_new_tokens=6) for conversation in conversations])
    assert last_answers(pipe(text=conversations, batch_size=2, max_new_tokens=6)) == alone


def test_images_beside_a_text_with_places_are_read(pipe, colour_files, generated):
    prompt = chatml("<image>\n<image>\ncolours?")
    for images in ([coloured("blue"), coloured("red")], [colour_files["blue"], colour_files["red"]]):
        (result,) = pipe(images=images, text=prompt, return_full_text=False)
        assert [result["generated_text"]] == generated(prompt, coloured("blue"), coloured("red")) == ["blue red"]
    (result,) = pipe(images=coloured("green"), text=chatml("<image>\ncolours?"), return_full_text=False)
    assert result["generated_text"] == "green"


@pytest.mark.parametrize("num_pictures", [1, 3])
def test_pictures_that_differ_in_number_from_their_places_are_refused(pipe, num_pictures):
    with pytest.raises(ValueError, match=r"<image>|image"):
        pipe(images=[coloured("red")] * num_pictures, text=chatml("<image>\n<image>\ncolours?"))


def test_generation_settings_are_followed(pipe, generated):
    messages, prompt, red = [user("what", coloured("red"))], chatml("<image>\nwhat"), coloured("red")

    def ask(**settings):
        return [result["generated_text"] for result in pipe(text=messages, return_full_text=False, **settings)]

    assert ask(max_new_tokens=2) == generated(prompt, red, max_new_tokens=2)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    assert ask(generate_kwargs=beams) == generated(prompt, red, **beams)
    assert len(set(ask(generate_kwargs=beams))) == 2
    draws = {"do_sample": True, "temperature": 50.0, "max_new_tokens": 8}
    torch.manual_seed(3)
    drawn = ask(generate_kwargs=draws)
    torch.manual_seed(3)
    assert drawn == generated(prompt, red, **draws) != ask(max_new_tokens=8)
    (stopped,) = pipe(text=[user("colours?", coloured("green"))], return_full_text=False, stop_sequence="re")
    assert stopped["generated_text"] == "gre"


def test_model_says_no_picture(pipe):
    """Of all tokens the image token is never said, however likely."""
    row = pipe.model.config.image_token_id
    head = pipe.model.get_output_embeddings()
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight[row] = 100 * head.weight.abs().max()
        head.weight[row] *= torch.sign(head.weight[5])
    try:
        tokens = pipe(text=[user("what", coloured("red"))], max_new_tokens=8, return_tensors=True)[0]
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    generated_ids = tokens["generated_token_ids"].tolist()
    assert generated_ids.count(row) == 4  # those of the prompt's picture


def test_answer_streams(pipe):
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    messages = [user("colours?", coloured("green"), coloured("blue"))]
    (result,) = pipe(text=messages, return_full_text=False, generate_kwargs={"streamer": streamer})
    pieces = list(streamer)
    assert "".join(pieces) == result["generated_text"] == "green blue"
    assert sum(map(bool, pieces)) > 2


def test_saved_pipeline_answers_as_before(pipe, chat_folder, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    assert type(again.model) is type(pipe.model) and type(again.processor) is type(pipe.processor)
    for messages in ([user("colours?", coloured("blue"), coloured("red"))], [user("hello")]):
        assert again(text=messages) == pipe(text=messages)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template == pipe.processor.chat_template
    weights = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in pipe.model.state_dict().items())


def test_loaded_model_and_processor_are_taken_too(pipe):
    again = pipeline("image-text-to-text", model=pipe.model, processor=pipe.processor)
    assert again(text=[user("colours?", coloured("red"))])[0]["generated_text"][-1] == said("red")
