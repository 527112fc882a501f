"""`pipeline("picture-question-answering")`: a LLaVA that names colours, transformers' own, and a TrOCR that reads the question.

Scores are compared with those of a forward pass over ids put together by hand.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MambaConfig,
    MambaForCausalLM,
    ViTConfig,
    ViTModel,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from hf_vlm import (
    LlavaVisionLanguageForConditionalGeneration,
    LlavaVisionLanguageProcessor,
    PictureQuestionAnsweringPipeline,
    TrOCREncoderDecoderForConditionalGeneration,
    TrOCREncoderDecoderProcessor,
)
from hf_vlm.models.llava.chat_template import template_text
from hf_vlm.models.llava.processing_llava import add_image_token
from hf_vlm.pipelines import picture_question_answering
from scripts.tiny_parts import CHATML, END, PAD, START, randomise, tiny_image_processor, tiny_tokenizer
from tests.tiny_chat import chat_folder, colour_files, coloured, tiny_chat_model  # noqa: F401 (fixtures)

# ruff: noqa: F811 (a fixture's name is an argument's name)

RED, BLUE, GREEN = map(coloured, ("red", "blue", "green"))
END_OF_TURN = 5
ROWS = [
    {"image": RED, "question": "colours?"},
    {"image": [BLUE, GREEN], "question": "colours?"},
    {"image": GREEN, "question": "which colours do you see here?"},
    {"image": coloured("blue", (50, 20)), "question": "hello"},
]
CANDIDATES = ["red", "blue green", "green", "hi", "red red"]


@pytest.fixture(scope="module")
def pipe(chat_folder):
    return pipeline("picture-question-answering", model=chat_folder, device="cpu")


def prompt_ids(pipe, question, num_pictures, tokens_of_picture=4):
    """ChatML with the pictures in front of the question, as ids."""
    tokenizer, image_token = pipe.processor.tokenizer, pipe.processor.image_token_id
    newline = "" if type(pipe.processor) is LlavaProcessor else "\n"
    ids = tokenizer.encode("<|im_start|>user\n", add_special_tokens=False)
    for _ in range(num_pictures):
        ids += [image_token] * tokens_of_picture + tokenizer.encode(newline, add_special_tokens=False)
    return ids + tokenizer.encode(f"{question}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)


def log_prob(pipe, pictures, question, answer, end=(END_OF_TURN,)):
    """Of an answer and its end, token by token out of one forward pass over the whole."""
    ours = getattr(pipe.processor, "prepare_images", None)  # which also makes them square
    pixels = (
        ours(pictures) if ours else pipe.processor.image_processor(images=pictures, return_tensors="pt").pixel_values
    )
    before = prompt_ids(pipe, question, len(pictures))
    said = [*pipe.processor.tokenizer.encode(answer, add_special_tokens=False), *end]
    with torch.no_grad():
        logits = pipe.model(input_ids=torch.tensor([before + said]), pixel_values=pixels).logits[0]
    return sum(logits[len(before) + n - 1].log_softmax(-1)[token].item() for n, token in enumerate(said))


def pictures_of(row):
    return row["image"] if isinstance(row["image"], list) else [row["image"]]


def close(results, wanted):
    """Whether answers are the same, and their scores up to rounding."""
    assert [[entry["answer"] for entry in result] for result in results] == [
        [entry["answer"] for entry in result] for result in wanted
    ]
    for result, other in zip(results, wanted, strict=True):
        assert [entry["score"] for entry in result] == pytest.approx([entry["score"] for entry in other], rel=1e-4)
    return True


def answers(results):
    return [result[0]["answer"] for result in results]


# What it answers, and how sure it is


def test_task_serves_our_llava(pipe):
    assert type(pipe) is PictureQuestionAnsweringPipeline
    assert pipe.task == "picture-question-answering"
    assert type(pipe.model) is LlavaVisionLanguageForConditionalGeneration


def test_pictures_are_answered_about_in_their_order(pipe):
    assert answers([pipe(RED, question="colours?"), pipe(GREEN, "colours?")]) == ["red", "green"]
    assert answers([pipe([RED, BLUE], "colours?"), pipe([BLUE, RED], "colours?")]) == ["red blue", "blue red"]


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("row", ROWS[:3])
def test_score_is_the_probability_of_the_answer_with_its_end(pipe, row, top_k):
    result = pipe(row, top_k=top_k)
    assert len(result) == top_k
    for entry in result:
        assert set(entry) == {"answer", "score"} and isinstance(entry["score"], float)
        wanted = math.exp(log_prob(pipe, pictures_of(row), row["question"], entry["answer"]))
        assert entry["score"] == pytest.approx(wanted, rel=1e-4)


def test_score_of_an_answer_cut_off_leaves_the_end_out(pipe):
    (result,) = pipe([RED, BLUE], "colours?", max_new_tokens=3)
    assert result["answer"] == "red"
    assert result["score"] == pytest.approx(math.exp(log_prob(pipe, [RED, BLUE], "colours?", "red", end=())), rel=1e-4)
    assert result["score"] > 50 * math.exp(log_prob(pipe, [RED, BLUE], "colours?", "red"))


def test_score_is_the_models_own_when_generation_changes_the_odds(pipe):
    (result,) = pipe([RED, RED], "colours?", repetition_penalty=3.0, max_new_tokens=5)
    assert result["answer"] != pipe([RED, RED], "colours?")[0]["answer"]
    ends = () if len(result["answer"]) >= 5 else (END_OF_TURN,)
    wanted = math.exp(log_prob(pipe, [RED, RED], "colours?", result["answer"], end=ends))
    assert result["score"] == pytest.approx(wanted, rel=1e-4)


def test_several_answers_come_best_first_and_differ(pipe):
    result = pipe([RED, GREEN], "colours?", top_k=5)
    scores = [entry["score"] for entry in result]
    assert scores == sorted(scores, reverse=True)
    assert len({entry["answer"] for entry in result}) == len(result)
    assert 0 < sum(scores) < 1
    assert result[0] == pytest.approx(pipe([RED, GREEN], "colours?", num_beams=5)[0])


def test_texts_found_twice_come_once():
    found = [{"answer": "a", "score": 0.1}, {"answer": "b", "score": 0.2}, {"answer": "a", "score": 0.3}]
    assert picture_question_answering._best(found) == [found[2], found[1]]


@pytest.mark.parametrize("penalty", [None, 5.0])
def test_beam_search_ranks_by_the_score_unless_told_otherwise(pipe, penalty):
    """With a length penalty of 0 its measure is the sum of log-probabilities, which the score is."""
    pixels = pipe.processor.prepare_images([RED])
    ids = torch.tensor([prompt_ids(pipe, "what", 1)])
    told = {} if penalty is None else {"length_penalty": penalty}
    search = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": penalty or 0.0, "max_new_tokens": 8}
    found = pipe.model.generate(ids, pixel_values=pixels, **search)[:, ids.shape[1] :]
    wanted = {text.strip() for text in pipe.processor.batch_decode(found, skip_special_tokens=True)}
    result = pipe(RED, "what", top_k=3, num_beams=4, max_new_tokens=8, **told)
    assert {entry["answer"] for entry in result} == wanted


def test_decoding_is_greedy_unless_the_caller_draws(pipe):
    before = pipe.model.generation_config.to_dict()
    pipe.model.generation_config.update(do_sample=True, temperature=50.0)
    try:
        drawn = {pipe(RED, "colours?", do_sample=True, max_new_tokens=4)[0]["answer"] for _ in range(5)}
        assert len(drawn) > 3
        assert {pipe(RED, "colours?")[0]["answer"] for _ in range(3)} == {"red"}
    finally:
        pipe.model.generation_config.update(do_sample=before["do_sample"], temperature=before["temperature"])


def test_whole_generation_config_is_followed(pipe):
    config = GenerationConfig(max_new_tokens=2, num_beams=2, eos_token_id=[5, 2], pad_token_id=PAD)
    assert close(
        [pipe(RED, "colours?", generation_config=config)], [pipe(RED, "colours?", max_new_tokens=2, num_beams=2)]
    )
    assert len(pipe(RED, "colours?", generation_config=config, top_k=2)) == 2
    assert config.num_return_sequences in (None, 1)


# Batches


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"candidates": CANDIDATES}, {"stop_strings": "ed"}])
def test_batch_is_answered_as_each_question_alone(pipe, settings):
    alone = [pipe(row, **settings) for row in ROWS]
    for batch_size in (2, 4):
        assert close(pipe(ROWS, batch_size=batch_size, **settings), alone)
    if not settings:
        assert answers(alone)[:2] == ["red", "blue green"]


# Candidates


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("at_once", [2, 64])
def test_candidates_are_ranked_by_their_share_of_probability(pipe, row, at_once, monkeypatch):
    monkeypatch.setattr(picture_question_answering, "_CANDIDATES_AT_ONCE", at_once)
    logs = torch.tensor([log_prob(pipe, pictures_of(row), row["question"], text) for text in CANDIDATES])
    wanted = dict(zip(CANDIDATES, logs.softmax(0).tolist(), strict=True))
    result = pipe(row, candidates=CANDIDATES)
    assert [entry["answer"] for entry in result] == sorted(wanted, key=wanted.get, reverse=True)
    for entry in result:
        assert entry["score"] == pytest.approx(wanted[entry["answer"]], rel=1e-3)
    assert sum(entry["score"] for entry in result) == pytest.approx(1)
    assert pipe(row, candidates=CANDIDATES, top_k=2) == result[:2]


def test_candidate_that_goes_on_from_another_is_told_from_it(pipe):
    for pictures, wanted in (([RED], "red"), ([RED, RED], "red red")):
        assert pipe(pictures, "colours?", candidates=["red", "red red"])[0]["answer"] == wanted


@pytest.mark.parametrize("single", ["a", "5"])
def test_candidates_of_one_token_are_ranked(pipe, single):
    logs = torch.tensor([log_prob(pipe, [RED], "colours?", text) for text in (single, "r")])
    result = {entry["answer"]: entry["score"] for entry in pipe(RED, "colours?", candidates=[single, "r"])}
    assert [result[single], result["r"]] == pytest.approx(logs.softmax(0).tolist(), rel=1e-3)


@pytest.mark.parametrize("template", [None, "llava_v1", "vicuna_v1", "llava_llama_2"])
def test_candidates_have_the_tokens_that_training_learns(template):
    model, processor = tiny_chat_model()
    if template:
        processor.chat_template = template_text(template)
    asker = PictureQuestionAnsweringPipeline(model, processor=processor, device="cpu")
    for text, ids in zip(["a b", "no"], asker._candidate_ids([RED], "what", ["a b", "no"]), strict=True):
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}
        lesson = processor.encode_conversation([question, {"role": "assistant", "content": text}])
        assert ids == [label for label in lesson["labels"] if label != -100]


def test_candidates_are_ranked_by_a_model_that_keeps_no_keys():
    torch.manual_seed(0)
    seen = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
    vision = ViTModel(ViTConfig(**seen, num_hidden_layers=1), add_pooling_layer=False)
    ids = {"vocab_size": 102, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    text = MambaForCausalLM(MambaConfig(**ids, hidden_size=16, num_hidden_layers=2, state_size=4, expand=2))
    randomise(text)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(32, 32), tiny_tokenizer(), vision_config=vision.config
    )
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(vision, text, processor=processor)
    asker = PictureQuestionAnsweringPipeline(model, processor=processor, device="cpu")
    logs = torch.tensor([log_prob(asker, [RED, BLUE], "what", answer) for answer in CANDIDATES])
    result = {entry["answer"]: entry["score"] for entry in asker([RED, BLUE], "what", candidates=CANDIDATES)}
    assert [result[answer] for answer in CANDIDATES] == pytest.approx(logs.softmax(0).tolist(), rel=1e-3)


# Forms of a call


def test_prompt_stands_on_a_line_behind_the_question(pipe):
    asked = pipe(RED, "what", prompt="Answer shortly.", candidates=CANDIDATES)
    assert close([asked], [pipe(RED, "what\nAnswer shortly.", candidates=CANDIDATES)])
    assert asked != pipe(RED, "what", candidates=CANDIDATES)
    assert asked == pipe(RED, " what\n", prompt="Answer shortly.", candidates=CANDIDATES)
    assert pipe(RED, "what", prompt="", candidates=CANDIDATES) == pipe(RED, "what", candidates=CANDIDATES)


def test_picture_may_be_a_path_bytes_or_picture(pipe, colour_files):
    wanted = pipe(RED, "colours?")
    for given in (colour_files["red"], Path(colour_files["red"]), Path(colour_files["red"]).read_bytes()):
        assert close([pipe(given, "colours?")], [wanted])
    two = [colour_files["blue"], Path(colour_files["red"])]
    assert answers([pipe(two, "colours?")]) == ["blue red"]


def test_examples_come_alone_or_in_lists(pipe):
    wanted = [pipe(RED, "colours?"), pipe([BLUE, GREEN], "colours?")]
    rows = [{**ROWS[0], "label": 3}, {"images": [BLUE, GREEN], "question": "colours?"}]
    assert [pipe(row) for row in rows] == pipe(rows) == pipe(tuple(rows)) == wanted
    assert pipe([{"image": RED}, rows[1]], question="colours?") == wanted
    assert pipe({"image": RED}, question="colours?") == wanted[0]
    assert pipe([]) == []


def test_question_of_an_example_wins(pipe):
    assert close([pipe({"image": RED, "question": "colours?"}, question="what")], [pipe(RED, "colours?")])


def test_several_questions_are_asked_of_one_picture(pipe):
    questions = ["colours?", "which colours do you see here?"]
    wanted = [pipe(RED, question) for question in questions]
    assert close(pipe(RED, question=questions), wanted)
    assert close(pipe({"image": RED}, question=questions, batch_size=2), wanted)
    two = pipe([RED, BLUE], question=questions[:1])
    assert close(two, [pipe([RED, BLUE], "colours?")])


class Rows(torch.utils.data.Dataset):
    """A data set of rows, which doesn't say where it ends but by its length."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


def test_generators_and_data_sets_are_read_as_they_are_asked(pipe):
    wanted = pipe(ROWS)
    taken = []

    def rows():
        for row in ROWS:
            taken.append(row)
            yield row

    results = pipe(rows())
    assert next(iter(results)) == wanted[0]
    assert len(taken) < len(ROWS)
    assert list(pipe(iter(ROWS))) == list(pipe(Rows(ROWS))) == wanted
    assert close(list(pipe(Rows(ROWS), batch_size=3)), wanted)


def test_pictures_of_a_stream_are_asked_the_same_question(pipe):
    rows = [{"photo": RED}, {"photo": GREEN}, {"photo": BLUE}]
    for stream in (KeyDataset(Rows(rows), "photo"), (row["photo"] for row in rows)):
        assert answers(pipe(stream, question="colours?")) == ["red", "green", "blue"]


def test_settings_at_construction_hold_until_a_call_says_otherwise(chat_folder, pipe):
    asker = pipeline(
        "picture-question-answering", model=chat_folder, device="cpu", top_k=2, prompt="p", max_new_tokens=3
    )
    assert close([asker(RED, "colours?")], [pipe(RED, "colours?\np", top_k=2, max_new_tokens=3)])
    assert close([asker(RED, "colours?", prompt=None, top_k=1, max_new_tokens=9)], [pipe(RED, "colours?")])
    beams = pipeline("picture-question-answering", model=chat_folder, device="cpu", num_beams=3)
    assert close([beams(RED, "what", top_k=3)], [pipe(RED, "what", top_k=3)])


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"image": RED}, ValueError, "question is wanted, got None"),
        ({"image": RED, "question": " "}, ValueError, "question is wanted, got ' '"),
        ({"image": [{"image": RED}]}, ValueError, "question is wanted, got None"),
        ({"image": RED, "question": 3}, TypeError, "`question` must be a text, got int"),
        ({"image": RED, "question": "<image> what?"}, ValueError, "must not hold `<image>`"),
        ({"image": RED, "question": "what?", "prompt": "<image>"}, ValueError, "must not hold `<image>`"),
        ({"question": "what?"}, ValueError, "picture is wanted"),
        ({"image": [], "question": "what?"}, ValueError, "picture is wanted"),
        ({"image": {"question": "what?"}}, ValueError, "picture is wanted"),
        ({"image": [RED, {"image": RED, "question": "what?"}]}, TypeError, "example must be"),
        ({"image": torch.zeros(3, 8, 8), "question": "what?"}, TypeError, "got Tensor"),
        ({"image": RED, "question": "what?", "candidates": []}, ValueError, "`candidates` must hold texts"),
        ({"image": RED, "question": "what?", "candidates": ["a", " "]}, ValueError, "`candidates` must hold texts"),
        ({"image": RED, "question": "what?", "candidates": ["a", "b", "a"]}, ValueError, "`candidates` must differ"),
        ({"image": RED, "question": "what?", "candidates": "yes"}, TypeError, "`candidates` must be a list"),
        ({"image": RED, "question": "what?", "candidates": ["a <image>"]}, ValueError, "candidate must not hold"),
        ({"image": RED, "question": "what?", "top_k": 0}, ValueError, "`top_k` must be 1 or more answers, got 0"),
        ({"image": RED, "question": "what?", "top_k": 1.5}, TypeError, "`top_k` must be a whole number"),
        ({"image": RED, "question": "what?", "top_k": 3, "num_beams": 2}, ValueError, "got 2 for 3 answers"),
        ({"image": RED, "question": "what?", "num_return_sequences": 2}, ValueError, "Give `top_k`"),
        ({"image": RED, "question": "what?", "prompt": 5}, TypeError, "`prompt` must be a text"),
        ({"image": RED, "question": "what?", "candidate": ["a"]}, TypeError, "Did you mean `candidates`"),
        ({"image": RED, "question": "what?" * 60}, ValueError, "256 positions, got 3"),
        ({"image": RED, "question": "what?", "candidates": ["a" * 250]}, ValueError, "256 positions, got"),
    ],
)
def test_bad_input_is_refused(pipe, arguments, error, told):
    with pytest.raises(error, match=told):
        pipe(**arguments)


def test_bad_pictures_are_named(pipe, damaged_picture, tmp_path):
    for image in (damaged_picture, [RED, damaged_picture]):
        with pytest.raises(ValueError, match="damaged.png"):
            pipe(image, "colours?")
    with pytest.raises(FileNotFoundError, match="missing.png"):
        pipe(tmp_path / "missing.png", "colours?")


def test_answer_stops_where_the_models_positions_end(pipe):
    question = "what is it?" * 20
    used = len(prompt_ids(pipe, question, 1))
    assert 256 - 20 < used < 256  # less room than the 20 tokens that the model is told to say at most
    (result,) = pipe(
        RED, question, suppress_tokens=[END_OF_TURN, END, pipe.processor.image_token_id], max_new_tokens=99
    )
    said = pipe.processor.tokenizer(result["answer"], add_special_tokens=False)["input_ids"]
    assert 0 < len(said) <= 256 - used


def test_processor_without_chat_template_is_refused(stock_trocr, chat_folder, folder_without_processor):
    with pytest.raises(ValueError, match="processor with a chat template is wanted"):
        pipeline("picture-question-answering", model=stock_trocr[0])
    with pytest.raises(ValueError, match="got only its parts"):
        pipeline("picture-question-answering", model=folder_without_processor)
    processor = LlavaVisionLanguageProcessor.from_pretrained(chat_folder)
    processor.chat_template = None
    with pytest.raises(ValueError, match="`LlavaVisionLanguageProcessor` without one"):
        pipeline("picture-question-answering", model=chat_folder, processor=processor)


def test_refusal_of_a_template_is_told(chat_folder):
    processor = LlavaVisionLanguageProcessor.from_pretrained(chat_folder)
    processor.chat_template = "{{ raise_exception('no pictures here') }}"
    with pytest.raises(ValueError, match="no pictures here"):
        pipeline("picture-question-answering", model=chat_folder, processor=processor)(RED, "what")


def test_saved_folder_is_an_ordinary_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))
    again = pipeline("picture-question-answering", model=str(tmp_path), device="cpu")
    assert again(ROWS, top_k=2) == pipe(ROWS, top_k=2)


# Other models


@pytest.fixture(scope="module")
def stock():
    """transformers' own LLaVA, random, behind the same ChatML, with a tokenizer that pads at the right."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    add_image_token(tokenizer)
    tokenizer.padding_side = "right"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": START, "eos_token_id": END_OF_TURN, "pad_token_id": PAD, "vocab_size": len(tokenizer)}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, initializer_range=0.5, **shape),
        text_config=LlamaConfig(max_position_embeddings=200, initializer_range=0.5, **ids, **shape),
        image_token_index=len(tokenizer) - 1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    size = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace(
            "{{ part['text'] }}", "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
        ),
    )
    return PictureQuestionAnsweringPipeline(
        model, processor=processor, task="picture-question-answering", device="cpu", max_new_tokens=4
    )


@pytest.mark.parametrize("row", ROWS[:2])
def test_other_chat_model_answers_with_its_probability(stock, row):
    result = stock(row, top_k=3)
    assert len(result) == 3
    for entry in result:
        ends = () if len(entry["answer"]) == 4 else (END_OF_TURN,)
        wanted = math.exp(log_prob(stock, pictures_of(row), row["question"], entry["answer"], end=ends))
        assert entry["score"] == pytest.approx(wanted, rel=1e-3)
    logs = torch.tensor([log_prob(stock, pictures_of(row), row["question"], text) for text in CANDIDATES])
    ranked = {entry["answer"]: entry["score"] for entry in stock(row, candidates=CANDIDATES)}
    assert [ranked[text] for text in CANDIDATES] == pytest.approx(logs.softmax(0).tolist(), rel=1e-3)


def test_batch_of_another_model_is_answered_as_each_alone(stock):
    assert stock.processor.tokenizer.padding_side == "right"
    for settings in ({}, {"top_k": 2}, {"candidates": CANDIDATES}):
        assert close(stock(ROWS, batch_size=4, **settings), [stock(row, **settings) for row in ROWS])


def test_other_model_is_served_from_its_folder(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    again = pipeline("picture-question-answering", model=str(tmp_path), device="cpu", max_new_tokens=4)
    assert type(again.model) is LlavaForConditionalGeneration
    assert close(again(ROWS, batch_size=2), stock(ROWS))


@pytest.fixture(scope="module")
def prompted(reader_folder):
    """A random TrOCR, its processor of a model that begins with a question; a text has at most 20 tokens."""
    return pipeline("picture-question-answering", model=reader_folder, device="cpu")


def lines_and_questions(line_pictures):
    questions = ["ab", "b éa", "éé", "ab a b", "a"]
    return [
        {"image": picture, "question": question} for picture, question in zip(line_pictures, questions, strict=False)
    ]


def prefix_ids(pipe, question):
    """Start token, question, end token."""
    tokenizer = pipe.processor.tokenizer
    return [tokenizer.bos_token_id, *tokenizer(question, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def log_prob_behind(pipe, picture, question, said):
    """Of tokens behind start token, question and end token, out of one forward pass."""
    before = prefix_ids(pipe, question)
    pixels = pipe.processor.image_processor([picture.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        logits = pipe.model(**pixels, decoder_input_ids=torch.tensor([before + said[:-1]])).logits[0]
    return sum(logits[len(before) + n - 1].log_softmax(-1)[token].item() for n, token in enumerate(said))


@pytest.mark.parametrize("top_k", [1, 3])
def test_decoder_that_reads_the_question_answers_with_its_probability(prompted, line_pictures, top_k):
    assert type(prompted.model) is TrOCREncoderDecoderForConditionalGeneration
    tokenizer = prompted.processor.tokenizer
    ends = set()
    sooner = {"sequence_bias": [[[tokenizer.eos_token_id], 2.0]], "max_new_tokens": 4}  # so that some answers end
    for row in lines_and_questions(line_pictures):
        before = torch.tensor([prefix_ids(prompted, row["question"])])
        pixels = prompted.processor.image_processor([row["image"].convert("RGB")], return_tensors="pt")
        search = {"num_beams": top_k, "num_return_sequences": top_k, "length_penalty": 0.0, **sooner}
        found = prompted.model.generate(**pixels, decoder_input_ids=before, **search)[:, before.shape[1] :]
        wanted = {}
        for ids in found.tolist():
            said = ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids
            score = math.exp(log_prob_behind(prompted, row["image"], row["question"], said))
            text = tokenizer.decode(said, skip_special_tokens=True).strip()
            wanted[text] = max(score, wanted.get(text, 0.0))
            ends.add(said[-1] == tokenizer.eos_token_id)
        result = prompted(row, top_k=top_k, **sooner)
        assert {entry["answer"]: entry["score"] for entry in result} == pytest.approx(wanted, rel=1e-3)
    assert ends == {True, False}


def test_decoder_that_reads_the_question_ranks_candidates(prompted, line_pictures):
    texts = ["a", "b é", "aaa a"]
    for row in lines_and_questions(line_pictures):
        said = prompted.processor.labels(texts, return_tensors=None)
        logs = torch.tensor([log_prob_behind(prompted, row["image"], row["question"], ids) for ids in said])
        ranked = {entry["answer"]: entry["score"] for entry in prompted(row, candidates=texts)}
        assert [ranked[text] for text in texts] == pytest.approx(logs.softmax(0).tolist(), rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"candidates": ["a", "b é"]}])
def test_batch_of_questions_that_a_decoder_reads_is_answered_as_each_alone(prompted, line_pictures, settings):
    rows = lines_and_questions(line_pictures)
    assert len({len(row["question"]) for row in rows}) == 4  # two of one length
    assert close(prompted(rows, batch_size=5, **settings), [prompted(row, **settings) for row in rows])


def test_decoder_that_reads_the_question_refuses_what_it_cannot(prompted, line_pictures):
    with pytest.raises(ValueError, match="sees one picture a question, got 2"):
        prompted(line_pictures[:2], "a")
    with pytest.raises(ValueError, match="20"):
        prompted(line_pictures[0], "ab" * 10)
    processor = TrOCREncoderDecoderProcessor(prompted.processor.image_processor, prompted.processor.tokenizer)
    with pytest.raises(ValueError, match="20 positions"):
        PictureQuestionAnsweringPipeline(prompted.model, processor=processor, device="cpu")(line_pictures[0], "ab" * 10)


def test_start_token_that_differs_from_training_is_refused(prompted):
    model = TrOCREncoderDecoderForConditionalGeneration(prompted.model.config)
    model.generation_config.decoder_start_token_id = 2
    with pytest.raises(ValueError, match="begin a text with the same token, got 2 and 1"):
        PictureQuestionAnsweringPipeline(model, processor=prompted.processor, device="cpu")
