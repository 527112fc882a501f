"""Scores of tasks against published implementations, brute force and values worked out by hand."""

import builtins
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_vlm.training.scores.caption_metrics import cider, rouge_l
from hf_vlm.training.scores.metrics import character_error_rate, chrf, exact_match, word_error_rate
from hf_vlm.training.scores.task_metrics import (
    TASK_METRICS,
    bleu,
    nlvr_scores,
    option_letter_accuracy,
    read_option_letter,
    read_yes_no,
    score_task,
    vqa_accuracy,
    yes_no_scores,
)

CAPTIONS = [
    [
        "A man's dog runs on the beach.",
        "The dog is running along a sandy beach",
        "A brown dog, wet, on the sand!",
    ],
    ["Two boys play football in the park.", "Some children don't stop playing in a park"],
    ["A red kite over the sea."],
]
ANSWERS = ["A dog is running on a beach.", "Two children play in a park", "A kite flies over the blue sea, a red kite."]


# --- questions on pictures


@given(st.lists(st.sampled_from(["red", "The Red.", "blue", "two"]), min_size=4, max_size=12))
def test_vqa_accuracy_leaves_each_annotator_out_in_turn(annotators):
    spelled = [{"The Red.": "red", "two": "2"}.get(text, text) for text in annotators]
    shares = []
    for left_out in range(len(spelled)):
        others = [text for index, text in enumerate(spelled) if index != left_out]
        shares.append(min(1, others.count("red") / 3))
    assert vqa_accuracy([annotators], ["a red"]) == pytest.approx(sum(shares) / len(shares))


def test_vqa_accuracy_of_ten_annotators_grows_with_those_who_agree():
    expected = [0, 0.3, 0.6, 0.9, 1]
    rows = [["yes"] * matches + ["no"] * (10 - matches) for matches in range(5)]
    assert [vqa_accuracy([row], ["yes"]) for row in rows] == pytest.approx(expected)
    assert vqa_accuracy(rows, ["Yes."] * 5) == pytest.approx(sum(expected) / 5)


def test_vqa_accuracy_takes_any_of_fewer_than_four_references():
    assert vqa_accuracy([["red", "blue", "green"], ["two"], "cat"], ["Blue", "2", "dog"]) == pytest.approx(2 / 3)
    assert vqa_accuracy([["red", "blue", "green", "grey"]], ["blue"]) == pytest.approx(1 / 4)


# --- yes or no


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", True),
        ("No.", False),
        ("Yes, there is no doubt.", True),
        ("No, there is not. Yes.", False),
        ("There is no dog in the picture.", False),
        ("The dog is not there, yes.", False),
        ("There isn\u2019t one", False),
        ("True", True),
        ("That is false.", False),
        ("The answer is: yes", True),
        ("\n... yes", True),
        ("A dog. Yes.", None),
        ("a dog\nyes", None),
        ("maybe", None),
        ("nothing", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_read_yes_no_takes_the_first_such_word_of_the_first_sentence(answer, said):
    assert read_yes_no(answer) is said


def test_yes_no_scores_are_those_of_the_counts():
    references = ["yes"] * 4 + ["no"] * 6
    answers = ["yes", "yes", "no", "a dog", "yes", "no", "no", "no", "no", "what?"]
    # 2 of 3 said are right, 2 of 4 wanted are said
    expected = {
        "accuracy": 6 / 10,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "f1": 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
        "yes_share": 3 / 10,
        "unanswered_share": 2 / 10,
    }
    assert yes_no_scores(references, answers) == pytest.approx(expected)


def test_yes_no_scores_are_zero_where_nothing_is_to_divide_by():
    scores = yes_no_scores(["no", "no"], ["no", "no"])
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (1, 0, 0, 0)
    scores = yes_no_scores(["yes"], ["no"])
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (0, 0, 0, 0)


def test_yes_no_scores_take_what_most_references_say():
    assert yes_no_scores([["no", "yes", "yes", "maybe"]], ["yes"])["accuracy"] == 1
    assert yes_no_scores([["no", "yes"]], ["no"])["accuracy"] == 1
    with pytest.raises(ValueError, match=r"got \['maybe'\] for answer 1"):
        yes_no_scores(["yes", "maybe"], ["yes", "yes"])


# --- options


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B.\n", "B"),
        ("(b)", "B"),
        ("B)", "B"),
        ("**B**", "B"),
        ("The answer is B.", "B"),
        ("the answer is (b)", "B"),
        ("the answer is b.", "B"),
        ("Answer: B", "B"),
        ("Option C is right.", "C"),
        ("It is (D), as one can see.", "D"),
        ("B. the text", "B"),
        ("(b) the text (a long one)", "B"),
        ("A: a cat", "A"),
        ("The answer is A, not option B.", None),
        ("the answer is a dog", None),
        ("the answer is a", "A"),
        ("These are the options", None),
        ("A dog", None),
        ("a dog", None),
        ("U.S.", None),
        ("dog(s)", None),
        ("Bank", None),
        ("The answer is Bank.", None),
        ("My choice: I'd rather not", None),
        ("the text", None),
        ("", None),
    ],
)
def test_read_option_letter_reads_the_usual_forms(answer, letter):
    assert read_option_letter(answer) == letter


def test_option_letter_accuracy_counts_answers_without_a_letter_as_wrong():
    references = ["B", "(a)", ["C", "D"], "A"]
    assert option_letter_accuracy(references, ["B. yes", "A", "d", "the text"]) == 3 / 4
    assert option_letter_accuracy(references, ["C", "B", "A", ""]) == 0
    with pytest.raises(ValueError, match=r"got \['the text'\] for answer 1"):
        option_letter_accuracy(["A", "the text"], ["A", "B"])


# --- statements


def test_nlvr_scores_count_a_group_only_when_all_its_answers_are_right():
    references = ["True", "False", "true", "false", "True", "False"]
    answers = ["yes", "no", "True.", "True", "no idea", "False"]
    scores = nlvr_scores(references, answers, ["one", "two", "one", "two", "three", "four"])
    # right: 1, 2, 3 and 6; groups one and four
    assert scores == pytest.approx({"accuracy": 4 / 6, "consistency": 2 / 4, "true_share": 3 / 6})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_nlvr_consistency_is_accuracy_when_each_statement_has_one_picture(pairs):
    references, answers = ([str(side) for side in sides] for sides in zip(*pairs, strict=True))
    scores = nlvr_scores(references, answers, [str(index) for index in range(len(pairs))])
    assert scores["consistency"] == scores["accuracy"] == sum(one == other for one, other in pairs) / len(pairs)
    assert nlvr_scores(references, answers, ["all"] * len(pairs))["consistency"] == (scores["accuracy"] == 1)


def test_nlvr_scores_name_a_missing_group():
    for groups, message in (
        (None, "2 answers is wanted, got none"),
        (["a"], "got 1"),
        (["a", None], "None for answer 1"),
    ):
        with pytest.raises(ValueError, match=message):
            nlvr_scores(["True", "False"], ["True", "False"], groups)


# --- translations, and text scores with several references


def test_bleu_is_the_corpus_score_of_sacrebleu_when_texts_have_different_numbers_of_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [list(stream) for stream in itertools.zip_longest(*CAPTIONS)]
    expected = sacrebleu.corpus_bleu(ANSWERS, streams).score
    assert bleu(CAPTIONS, ANSWERS) == pytest.approx(expected)
    assert 5 < expected < 95
    # the order of references, and one given twice, do not count; leaving one out does
    assert bleu([[*row[::-1], row[0]] for row in CAPTIONS], ANSWERS) == pytest.approx(expected)
    assert bleu([row[:1] for row in CAPTIONS], ANSWERS) < expected - 1
    firsts = [row[0] for row in CAPTIONS]
    assert bleu(firsts, ANSWERS) == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, [firsts]).score)


def test_bleu_agrees_with_n_grams_counted_by_hand():
    pytest.importorskip("sacrebleu")
    # matched of said: 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; 5 words for 6 wanted, the nearest length
    precisions = math.prod([4 / 5, 3 / 4, 2 / 3, 1 / 2])
    expected = 100 * precisions**0.25 * math.exp(1 - 6 / 5)
    assert bleu([["a b c d e f", "x y"]], ["a b c d z"]) == pytest.approx(expected)
    assert bleu(["a b c d"], ["A B C D"]) < 50  # case counts


def test_chrf_takes_the_nearest_of_several_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [list(stream) for stream in itertools.zip_longest(*CAPTIONS)]
    assert chrf(CAPTIONS, ANSWERS) == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, streams).score)
    assert chrf([["xyz", "abcd"], ["efgh"]], ["abcd", "efgh"]) == pytest.approx(100)
    assert chrf([["xyz"], ["efgh"]], ["abcd", "efgh"]) < 90


def test_exact_match_takes_any_of_several_references():
    assert exact_match([["red", "Dark red."], ["2"], "no"], ["dark red", "3", "No."]) == pytest.approx(2 / 3)


# --- all of a task


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "caption",
            lambda: [
                cider(CAPTIONS, ANSWERS),
                bleu(CAPTIONS, ANSWERS),
                rouge_l(CAPTIONS, ANSWERS),
                chrf(CAPTIONS, ANSWERS),
            ],
        ),
        ("translate", lambda: [bleu(CAPTIONS, ANSWERS), chrf(CAPTIONS, ANSWERS), 0]),
        ("chat", lambda: [0, chrf(CAPTIONS, ANSWERS)]),
    ],
)
def test_score_task_gives_the_scores_of_texts_main_one_first(task, expected):
    pytest.importorskip("sacrebleu")
    scores = score_task(task, CAPTIONS, ANSWERS)
    assert tuple(scores) == TASK_METRICS[task]
    assert list(scores.values()) == pytest.approx(expected())


def test_score_task_gives_the_scores_of_short_answers_main_one_first():
    scores = score_task("vqa", [["two"], ["the dog"]], ["2", "the dog"])
    assert list(scores.items()) == [("vqa_accuracy", 1), ("exact_match", 0.5)]
    assert score_task("option", [["B"], ["A"]], ["(b)", "the text"]) == {"option_letter_accuracy": 0.5}
    scores = score_task("yes-no", [["yes"], ["no"]], ["Yes.", "perhaps"])
    assert tuple(scores) == TASK_METRICS["yes-no"]
    assert (scores["accuracy"], scores["f1"], scores["unanswered_share"]) == (0.5, 1, 0.5)
    scores = score_task("nlvr", [["True"], ["False"]], ["True", "True"], ["one", "one"])
    assert list(scores.items()) == [("accuracy", 0.5), ("consistency", 0), ("true_share", 1)]


def test_score_task_gives_error_rates_of_one_reference_each():
    references, answers = ["one line", "two"], ["one lime", "two"]
    scores = score_task("ocr", [[text] for text in references], answers)
    assert list(scores) == ["cer", "wer"]
    assert scores["cer"] == character_error_rate(references, answers) == pytest.approx(1 / 11)
    assert scores["wer"] == word_error_rate(references, answers) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="got 2 for answer 1"):
        score_task("ocr", [["a"], ["b", "c"]], ["a", "b"])


def test_score_task_scores_captions_of_one_picture():
    pytest.importorskip("sacrebleu")
    scores = score_task("caption", [["a dog on the beach"]], ["a dog on the beach"])
    assert scores == pytest.approx({"cider": 0, "bleu": 100, "rouge_l": 1, "chrf": 100})


def test_score_task_lists_the_tasks_when_it_has_none_of_that_name():
    with pytest.raises(
        ValueError, match="caption, vqa, yes-no, option, nlvr, translate, chat, ocr is wanted, got `VQA`"
    ):
        score_task("VQA", [["a"]], ["a"])


@pytest.mark.parametrize("task", TASK_METRICS)
def test_score_task_names_the_answer_without_references(task):
    for missing in ([], None, [None]):
        with pytest.raises(ValueError, match="for answer 1"):
            score_task(task, [["no"], missing], ["no", "no"], ["a", "b"])
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        score_task(task, [["no"], ["no"]], ["no"], ["a"])
    with pytest.raises(ValueError, match="got 0 without a character"):
        score_task(task, [], [], [])
    with pytest.raises(ValueError, match="got 2 without a character"):
        score_task(task, [[""], [" "]], ["no", "no"], ["a", "b"])


def test_missing_sacrebleu_names_the_extra_for_bleu(monkeypatch):
    real_import = builtins.__import__

    def without_sacrebleu(name, *args, **kwargs):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sacrebleu)
    with pytest.raises(ImportError, match=r"BLEU and chrF.*hf-vlm\[metrics\]"):
        bleu(["a"], ["a"])
