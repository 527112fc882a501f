"""Questions, captions and sentences are read from the files that their makers publish."""

import json

import pytest
from PIL import Image

from hf_vlm.data.conversations.conversations import text_of
from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS
from hf_vlm.data.tasks.task_rows import read_task


def write_pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number * 40, 0, 0)).save(folder / name)


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_lines(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(rows):
    """Question and answer of every exchange of every row."""
    return [[text_of(message) for message in rows.messages(index)] for index in range(len(rows))]


# ScienceQA


@pytest.fixture
def science(tmp_path):
    """Two problems, of which one has a picture and a hint."""
    write_pictures(tmp_path / "train" / "1", "image.png")
    plain = {"question": "Which tense?", "choices": ["past", "present", "future"], "answer": 2, "hint": "", "image": None,
             "subject": "language science", "lecture": "Tenses tell time.\nThere are three.", "solution": "It has will.",
             "split": "train"}  # fmt: skip
    seen = {"question": "Which is farther north?", "choices": ["Maine", "Ohio"], "answer": 0, "hint": "A map.",
            "image": "image.png", "subject": "social science", "lecture": "", "solution": "", "split": "train"}  # fmt: skip
    write_json(tmp_path / "problems.json", {"1": seen, "2": plain, "3": plain | {"split": "test"}})
    write_json(tmp_path / "pid_splits.json", {"train": ["1", "2"], "test": ["3"], "minitrain": ["1"]})
    return tmp_path


def test_scienceqa_asks_for_letters_with_hint_and_options_on_lines(science):
    rows = read_task(science, "train", task="vqa", prompt="option-letter")
    suffix = FORMAT_PROMPTS["option-letter"]
    assert said(rows) == [
        [f"Context: A map.\nWhich is farther north?\nA. Maine\nB. Ohio\n{suffix}", "A"],
        [f"Which tense?\nA. past\nB. present\nC. future\n{suffix}", "C"],
    ]
    assert [rows.num_images(index) for index in range(2)] == [1, 0]
    assert rows.messages(0)[0]["content"][0] == {"type": "image"}
    assert (rows.references(1), rows.name(1), rows.kind(0)) == (["C"], "2", "social science")
    assert len(read_task(science, "test", task="vqa")) == 1
    assert read_task(science, "minitrain", task="vqa").num_images(0) == 1  # its pictures are those of `train`


def test_scienceqa_explains_its_answers_when_asked(science):
    rows = read_task(science, "train", task="vqa", columns={"answer": "explained_answer"})
    assert [texts[1] for texts in said(rows)] == [
        "The answer is A.",
        "Tenses tell time. There are three. It has will. The answer is C.",
    ]


def test_scienceqa_names_bad_problems_and_splits(science):
    with pytest.raises(
        ValueError, match="`split` must be one of `train`, `test`, `minitrain` of .*, got None. Name one."
    ):
        read_task(science, task="vqa")
    write_json(science / "pid_splits.json", {"train": ["2", "9"]})
    with pytest.raises(ValueError, match=r"problems.json, problem 9: wanted the problem that pid_splits.json names"):
        read_task(science, "train", task="vqa")
    problems = json.loads((science / "problems.json").read_text())
    write_json(science / "problems.json", problems | {"9": problems["2"] | {"answer": 3}})
    with pytest.raises(ValueError, match=r"problem 9: wanted the number of the right choice in \[0, 3\), got 3"):
        read_task(science, "train", task="vqa")


def test_scienceqa_without_lists_of_splits_is_read_by_each_problems_own(science):
    (science / "pid_splits.json").unlink()
    assert [len(read_task(science, split, task="vqa")) for split in ("train", "test")] == [2, 1]


# A-OKVQA, OK-VQA, VizWiz, TextVQA


def test_aokvqa_gives_letters_or_direct_answers(tmp_path):
    write_pictures(tmp_path, "000000299207.jpg")
    row = {"split": "train", "image_id": 299207, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What is the man by?",
           "choices": ["mad", "ice", "bags", "snow"], "correct_choice_idx": 2, "direct_answers": ["ramp", "bags", "bags"],
           "rationales": ["Bags."]}  # fmt: skip
    write_json(tmp_path / "aokvqa_v1p0_train.json", [row])
    rows = read_task(tmp_path / "aokvqa_v1p0_train.json", task="vqa")
    assert said(rows) == [["What is the man by?\nA. mad\nB. ice\nC. bags\nD. snow", "C"]]
    assert rows.name(0) == "22MexNkBPpdZGX6sxbxVBH" and rows.num_images(0) == 1
    named = read_task(tmp_path / "aokvqa_v1p0_train.json", task="vqa", columns={"answer": "correct_choice_idx"})
    assert said(named) == said(rows)
    direct = read_task(tmp_path / "aokvqa_v1p0_train.json", task="vqa", columns={"answer": "direct_answers"})
    assert said(direct) == [["What is the man by?", "bags"]] and direct.references(0) == ["ramp", "bags", "bags"]


def test_choices_with_answers_in_words_stay_as_they_are(tmp_path):
    write_lines(tmp_path / "rows.jsonl", {"question": "Which?", "choices": ["cat", "dog"], "answer": "dog"})
    assert said(read_task(tmp_path / "rows.jsonl", task="vqa")) == [["Which?", "dog"]]


def test_okvqa_is_read_as_vqav2(tmp_path):
    write_pictures(tmp_path, "COCO_val2014_000000297147.jpg")
    question = {"image_id": 297147, "question": "What sport?", "question_id": 2971475}
    answer = {"raw_answer": "racing", "answer_confidence": "yes", "answer": "race", "answer_id": 1}
    annotation = {"image_id": 297147, "answer_type": "other", "question_type": "four", "question_id": 2971475,
                  "answers": [answer] * 10, "confidence": 3}  # fmt: skip
    settings = {"data_subtype": "val2014", "data_type": "mscoco"}
    write_json(tmp_path / "OpenEnded_mscoco_val2014_questions.json", settings | {"questions": [question]})
    with pytest.raises(ValueError, match="questions.json must have its answers beside it, a file .*annotations.json"):
        read_task(tmp_path, "val2014", task="vqa")
    write_json(tmp_path / "mscoco_val2014_annotations.json", settings | {"annotations": [annotation]})
    assert said(read_task(tmp_path, "val2014", task="vqa")) == [["What sport?", "race"]]
    assert said(read_task(tmp_path / "OpenEnded_mscoco_val2014_questions.json", task="vqa")) == [
        ["What sport?", "race"]
    ]
    write_json(tmp_path / "OpenEnded_mscoco_val2014_questions.json", {"questions": [{"question_id": 1, "image_id": 2}]})
    with pytest.raises(
        ValueError, match=r"must hold VQAv2's `questions` and `annotations`, got some without \('question'\)"
    ):
        read_task(tmp_path, "val2014", task="vqa")


def test_vizwiz_is_read_with_its_kinds(tmp_path):
    write_pictures(tmp_path, "VizWiz_val_00000000.jpg")
    answers = [{"answer_confidence": "yes", "answer": word} for word in ["unanswerable"] * 6 + ["salt"] * 4]
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What is this?", "answers": answers, "answer_type": "unanswerable",
           "answerable": 0}  # fmt: skip
    write_json(tmp_path / "val.json", [row])
    rows = read_task(tmp_path, "val", task="vqa", prompt="unanswerable")
    assert said(rows) == [[f"What is this?\n{FORMAT_PROMPTS['unanswerable']}", "unanswerable"]]
    assert len(rows.references(0)) == 10 and rows.kind(0) == "unanswerable"
    write_json(tmp_path / "test.json", [{"image": "VizWiz_val_00000000.jpg", "question": "What is this?"}])
    with pytest.raises(ValueError, match="test.json, row 0: wanted `answers` or `answer`.* got `image`, `question`"):
        read_task(tmp_path, "test", task="vqa")


def test_textvqa_shows_ocr_tokens_only_when_asked(tmp_path):
    write_pictures(tmp_path, "n1.jpg")
    row = {"question": "Which brand?", "answers": ["nokia"] * 10, "image_id": "n1", "question_id": 3}
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row | {"ocr_tokens": ["NOKIA", "7"]}]})
    suffix = FORMAT_PROMPTS["short-answer"]
    assert said(read_task(tmp_path, "val", task="vqa", prompt="short-answer"))[0][0] == f"Which brand?\n{suffix}"
    columns = {"question": "question_with_ocr_tokens"}
    rows = read_task(tmp_path, "val", task="vqa", prompt="short-answer", columns=columns)
    assert said(rows) == [[f"Which brand?\nReference OCR token: NOKIA, 7\n{suffix}", "nokia"]]
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    with pytest.raises(ValueError, match="row 0 of `data`: wanted `question_with_ocr_tokens` as the question"):
        read_task(tmp_path, "val", task="vqa", columns=columns)


# OCR-VQA, GQA, Visual Genome


def test_ocrvqa_is_read_by_split_with_pictures_of_any_suffix(tmp_path):
    write_pictures(tmp_path / "images", "0761183272.png", "1.jpg")
    book = {"imageURL": "http://x/51.jpg", "questions": ["Who wrote this?", "Is it a novel?"], "answers": ["Ann", "No"],
            "title": "T", "authorName": "Ann", "genre": "Calendars", "split": 1}  # fmt: skip
    write_json(tmp_path / "dataset.json", {"0761183272": book, "1": book | {"split": 2, "answers": ["Bo"]}})
    rows = read_task(tmp_path, "train", task="vqa", max_exchanges=8)
    assert said(rows) == [["Who wrote this?", "Ann", "Is it a novel?", "No"]] and rows.name(0) == "0761183272"
    assert rows.images(0)[0].size == (4, 4)
    with pytest.raises(ValueError, match="dataset.json, book 1: wanted an answer a question, got 1 answers for 2"):
        read_task(tmp_path, "val", task="vqa")
    with pytest.raises(ValueError, match="`split` must be `train`, `val` or `test` of .*, got 'dev2'"):
        read_task(tmp_path, "dev2", task="vqa")


def test_gqa_is_found_in_its_folder(tmp_path):
    write_pictures(tmp_path / "images", "n1.jpg")
    for split, answer in (("testdev", "yes"), ("val", "no")):
        row = {"question": "Red?", "answer": answer, "imageId": "n1", "isBalanced": True, "fullAnswer": "Yes."}
        write_json(tmp_path / f"{split}_balanced_questions.json", {"201307251": row})
    rows = read_task(tmp_path, "testdev", task="vqa", image_folder=tmp_path / "images")
    assert said(rows) == [["Red?", "yes"]] and rows.name(0) == "201307251"
    with pytest.raises(ValueError, match="must hold one set of questions, got testdev_.*, val_.* Name the split"):
        read_task(tmp_path, task="vqa", image_folder=tmp_path / "images")


def test_visual_genome_questions_find_pictures_in_either_part(tmp_path):
    write_pictures(tmp_path / "VG_100K", "1.jpg")
    write_pictures(tmp_path / "VG_100K_2", "x.jpg", "2.jpg")
    pairs = [
        {"a_objects": [], "question": "What colour?", "image_id": 1, "qa_id": 9, "answer": "Green.", "q_objects": []}
    ]
    write_json(
        tmp_path / "question_answers.json", [{"id": 1, "qas": pairs}, {"id": 2, "qas": pairs}, {"id": 3, "qas": []}]
    )
    rows = read_task(tmp_path, task="vqa")
    assert said(rows) == [["What colour?", "Green."]] * 2
    assert [rows.images(index)[0].getpixel((0, 0))[0] > 20 for index in range(2)] == [False, True]
    write_json(tmp_path / "question_answers.json", [{"id": 1, "qas": [{"qa_id": 1, "question": "Who?"}]}])
    with pytest.raises(ValueError, match=r"row 0: wanted Visual Genome's `id` and `qas`.* without \('answer'\)"):
        read_task(tmp_path, task="vqa")


# Files of questions


@pytest.fixture
def questions(tmp_path):
    write_pictures(tmp_path, "001.jpg")
    write_lines(
        tmp_path / "questions.jsonl",
        {"question_id": 0, "image": "001.jpg", "text": "Where is it?", "category": "conv"},
        {"question_id": 1, "image": "001.jpg", "text": "Describe it.", "category": "detail"},
    )
    return tmp_path


def test_question_files_are_read_with_the_answers_beside(questions):
    with pytest.raises(ValueError, match="questions.jsonl must have its answers beside it, a file answers.*jsonl"):
        read_task(questions, task="vqa")
    write_lines(
        questions / "answers_gpt4.jsonl",
        {"question_id": 1, "text": "A beach.", "answer_id": "b", "model_id": "m", "metadata": {}},
        {"question_id": 0, "text": "Hawaii.", "answer_id": "a", "model_id": "m", "metadata": {}},
    )
    for path in (questions, questions / "questions.jsonl"):
        rows = read_task(path, task="vqa")
        assert said(rows) == [["Where is it?", "Hawaii."], ["Describe it.", "A beach."]]
        assert [rows.kind(index) for index in range(2)] == ["conv", "detail"] and rows.name(1) == "1"
    write_lines(questions / "answers_gpt4.jsonl", {"question_id": 1, "text": "A beach."})
    with pytest.raises(ValueError, match="questions.jsonl, line 1: wanted an answer to question 0, got none beside"):
        read_task(questions, task="vqa")
    write_lines(questions / "answers_two.jsonl", {"question_id": 1, "text": "A beach."})
    with pytest.raises(ValueError, match="one file of answers to questions.jsonl, got answers_gpt4.jsonl, answers_two"):
        read_task(questions, task="vqa")


def test_question_files_that_have_the_format_prompt_get_it_once(questions):
    suffix = FORMAT_PROMPTS["short-answer"]
    write_lines(questions / "questions.jsonl", {"question_id": 0, "image": "001.jpg", "text": f"Is it?\n{suffix}"})
    write_lines(questions / "answers.jsonl", {"question_id": 0, "text": "yes"})
    assert said(read_task(questions, task="vqa", prompt="short-answer")) == [[f"Is it?\n{suffix}", "yes"]]


def test_pope_holds_its_labels(tmp_path):
    write_pictures(tmp_path, "COCO_val2014_000000310196.jpg")
    row = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard?", "label": "yes"}
    write_lines(
        tmp_path / "coco_pope_random.json", row, row | {"question_id": 2, "text": "Is there a car?", "label": "no"}
    )
    rows = read_task(tmp_path / "coco_pope_random.json", task="vqa")
    assert said(rows) == [["Is there a snowboard?", "yes"], ["Is there a car?", "no"]]


# Captions


def test_coco_captions_lie_in_their_usual_folders(tmp_path):
    write_pictures(tmp_path / "val2017", "000000397133.jpg")
    image = {"id": 397133, "file_name": "000000397133.jpg", "width": 640, "height": 427}
    content = {"images": [image], "annotations": [{"image_id": 397133, "id": 1, "caption": "A man."}]}
    write_json(tmp_path / "annotations" / "captions_val2017.json", content)
    rows = read_task(tmp_path, "val2017", task="caption")
    assert rows.references(0) == ["A man."] and rows.images(0)[0].size == (4, 4)
    content["annotations"].append({"image_id": 5, "id": 2, "caption": "A dog."})
    write_json(tmp_path / "annotations" / "captions_val2017.json", content)
    with pytest.raises(ValueError, match="image 5: wanted the picture 5 of annotations among `images`, got none"):
        read_task(tmp_path, "val2017", task="caption")
    write_json(tmp_path / "annotations" / "captions_val2017.json", content | {"annotations": [{"category_id": 5}]})
    with pytest.raises(
        ValueError, match="captions_val2017.json: wanted annotations with a `caption` and an `image_id`"
    ):
        read_task(tmp_path, "val2017", task="caption")
    write_json(tmp_path / "annotations" / "captions_val2017.json", content | {"images": [{"id": 5}]})
    with pytest.raises(ValueError, match=r"`images\[0\]`: wanted an `id` and a `file_name`"):
        read_task(tmp_path, "val2017", task="caption")


def test_captions_of_a_split_are_not_those_of_one_whose_name_ends_alike(tmp_path):
    write_pictures(tmp_path, "a.jpg", "n1.jpg")
    for name in ("minival2014", "val2014"):
        content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": f"{name}."}]}
        write_json(tmp_path / "coco" / f"captions_{name}.json", content)
        row = {"image_id": "n1", "caption_str": f"{name}."}
        write_json(tmp_path / "text" / f"TextCaps_0.1_{name}.json", {"data": [row]})
    for folder in ("coco", "text"):
        for split, told in (("val", "val2014."), ("val2014", "val2014."), ("minival", "minival2014.")):
            rows = read_task(tmp_path / folder, split, task="caption", image_folder=tmp_path)
            assert rows.references(0) == [told]


def test_karpathys_splits_are_read(tmp_path):
    write_pictures(tmp_path / "val2014", "a.jpg", "b.jpg", "c.jpg")
    images = [
        {"filepath": "val2014", "filename": f"{name}.jpg", "imgid": at, "split": split, "cocoid": 90 + at,
         "sentences": [{"tokens": ["x"], "raw": f"{name} one."}, {"tokens": ["x"], "raw": f"{name} two."}]}
        for at, (name, split) in enumerate([("a", "train"), ("b", "restval"), ("c", "test")])
    ]  # fmt: skip
    write_json(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    train = read_task(tmp_path, "train", task="caption")
    assert [train.references(at) for at in range(2)] == [["a one.", "a two."], ["b one.", "b two."]]
    assert len(train) == 2 and train.name(1) == "91"
    assert [text for _, text in said(read_task(tmp_path, "test", task="caption", every_answer=True))] == [
        "c one.",
        "c two.",
    ]
    with pytest.raises(ValueError, match="`split` must be one of train, restval, test of .*, got `val`"):
        read_task(tmp_path, "val", task="caption")


def test_textcaps_is_one_row_a_picture(tmp_path):
    write_pictures(tmp_path, "n1.jpg", "n2.jpg")
    rows = [{"image_id": name, "caption_str": text, "reference_strs": ["r"], "caption_id": 1, "image_name": "n1"}
            for name, text in [("n1", "A sign."), ("n2", "A can."), ("n1", "A board.")]]  # fmt: skip
    write_json(tmp_path / "TextCaps_0.1_val.json", {"dataset_type": "val", "data": rows})
    read = read_task(tmp_path, "val", task="caption")
    assert [read.references(at) for at in range(2)] == [["A sign.", "A board."], ["A can."]]


# NLVR2, Multi30k


def test_nlvr2_leaves_out_pairs_with_a_dead_picture_and_takes_other_suffixes(tmp_path):
    write_pictures(tmp_path, "dev-1-0-img0.png", "dev-1-0-img1.jpg", "dev-2-0-img0.png")
    rows = [{"sentence": "Two.", "label": "True", "identifier": f"dev-{pair}-0-0"} for pair in (1, 2)]
    file = tmp_path / "dev.json"
    file.write_text("\n".join([json.dumps(rows[0]), "{broken", json.dumps(rows[1])]))
    told = []
    read = read_task(tmp_path, "dev", task="nlvr", on_bad_row=lambda error: told.append(str(error)))
    assert len(read) == 1 and read.num_images(0) == 2
    assert "line 2: wanted a row of NLVR2, got '{broken'" in told[0]
    assert "line 3: wanted the picture dev-2-0-img1.png, got no such file" in told[1] and len(told) == 2


def test_multi30ks_tokenised_files_and_rare_line_marks_are_read(tmp_path):
    write_pictures(tmp_path / "images", "1.png", "2.png")
    for folder, kind in (("raw", ""), ("tok", ".lc.norm.tok")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"train{kind}.en").write_text(f"a {folder}\u2028dog\nb\n", encoding="utf-8")
        (tmp_path / folder / f"train{kind}.de").write_text("ein Hund\nb\n")
    (tmp_path / "image_splits").mkdir()
    (tmp_path / "image_splits" / "train.txt").write_text("1.png\n2.png\n")
    settings = {"task": "translate", "columns": {"question": "en", "answer": "de"}, "image_folder": tmp_path / "images"}
    for path, word in ((tmp_path / "tok", "tok"), (tmp_path / "raw", "raw"), (tmp_path, "raw")):
        rows = read_task(path, "train", **settings)
        assert said(rows)[0] == [f"a {word}\u2028dog", "ein Hund"] and rows.num_images(1) == 1 and len(rows) == 2
    (tmp_path / "tok" / "train.lc.norm.tok.en").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="train.lc.norm.tok.en must be whole UTF-8 text"):
        read_task(tmp_path / "tok", "train", **settings)
