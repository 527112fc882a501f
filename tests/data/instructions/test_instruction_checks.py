"""Which replies become training data, which do not, and why not."""

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vlm.data.instructions.contexts import Context, Instance, Region
from hf_vlm.data.instructions.instruction_checks import InstructionLimits, Rejection, dedupe_key, read_reply
from hf_vlm.data.instructions.instruction_text import format_exchanges
from hf_vlm.data.instructions.teacher_prompts import TeacherPrompts
from hf_vlm.data.instructions.teachers import KINDS

PROMPTS = TeacherPrompts.load()
BOX = (0.1, 0.1, 0.5, 0.5)


def scene(*captions, **counts):
    """A context with captions and so many boxes of each category; `_` in a name is a space."""
    instances = [Instance(name.replace("_", " "), BOX) for name, number in counts.items() for _ in range(number)]
    return Context("7", "7.jpg", captions, tuple(instances))


PARK = scene(
    "Two dogs play with a frisbee in a park.",
    "A brown dog and a white dog run over the grass.",
    "A man in a blue jacket watches dogs in a park.",
    dog=2,
    frisbee=1,
    person=1,
    bench=2,
)


def read(text, kind="conversation", context=PARK, finish_reason="stop", limits=None):
    return read_reply(kind, text, finish_reason=finish_reason, context=context, prompts=PROMPTS, limits=limits)


def reason(text, *settings, **named):
    with pytest.raises(Rejection) as rejection:
        read(text, *settings, **named)
    assert str(rejection.value).startswith(rejection.value.reason)
    assert len(rejection.value.detail) <= 120
    return rejection.value.reason


def talk(*exchanges):
    return format_exchanges(exchanges)


GOOD = talk(
    ("What are the dogs doing?", "They play with a frisbee."), ("What color is the man's jacket?", "It is blue.")
)


def test_conversation_is_read():
    assert read(GOOD) == [
        ("What are the dogs doing?", "They play with a frisbee."),
        ("What color is the man's jacket?", "It is blue."),
    ]


DETAIL = (
    "The picture shows a park with green grass. Two dogs, a brown one and a white one, run after a frisbee. On "
    "the left, "
    "a man in a blue jacket stands and watches them, and two benches are empty."
)


def test_description_gets_a_question_of_ours():
    ((question, answer),) = read(f"Sure! Here is the description:\n\n{DETAIL}", "detail_description")
    assert question == PROMPTS.question(0, "7") and answer == DETAIL
    ((other, _),) = read_reply("detail_description", DETAIL, context=PARK, prompts=PROMPTS, seed=5)
    assert other == PROMPTS.question(5, "7") != question


WHY = (
    "Why might the man stay close to the dogs?",
    "The dogs run freely in a park where others may walk. If the man stays near, he can call them back before "
    "they run onto a road.",
)


def test_reasoning_is_one_exchange_the_first():
    assert read(
        talk(WHY, ("What else is there to think?", "Much more than can be said in such a short time by me.")),
        "complex_reasoning",
    ) == [WHY]


# One exchange, the context PARK, a conversation: why it is not taken.
BAD = {
    ("What is next to the dogs?", "\ufffdA man."): "broken text",
    ("What is in <image>?", "Two dogs."): "image token",
    ("What is it here?", "<|image|> A dog."): "image token",
    ("Who is there?", "A man.<|im_end|>"): "role marker",
    ("Who is there?", "A man. USER: And who else?"): "role marker",
    ("Who is there?", "A man. ### Instruction"): "role marker",
    ("Who is there?", "A man [/INST]"): "role marker",
    ("Who is there?", "The man runs. The man runs. The man runs."): "looping",
    ("Who is there?", "a man a man a man a man a man a man a man a man a man"): "looping",
    ("Who is there?", "A man, very very very very very old."): "looping",
    ("Who is there?", "A man!!!!!!!!!!!!!!!!!!!!!"): "looping",
    ("The dogs play.", "They do so in a park."): "not a question",
    ("123?!", "A man."): "not a question",
    ("Who?", "A man."): "too short",
    ("?? ?? ??", "A man."): "not a question",
    ("Who is there?", "Is it a man?"): "answers with a question",
    ("Who is there?", "As an AI, I am blind to it."): "speaks as a model",
    ("Who is there?", "I cannot see the picture."): "speaks as a model",
    ("Who is there?", "I'm sorry, but there is no one."): "speaks as a model",
    ("Who is there?", "Please provide the image."): "speaks as a model",
    ("Who is there?", "The caption names a man."): "mentions captions",
    ("What do the captions say?", "Two dogs."): "mentions captions",
    ("Who is there?", "A man, according to the description."): "mentions captions",
    ("Who is there?", "Based on the provided text, a man."): "mentions captions",
    ("Who is there?", "A man is mentioned in the third one."): "mentions captions",
    ("Is there a cat?", "No, a cat is not mentioned."): "mentions captions",
    ("Where is the man?", "He is at [0.1, 0.2, 0.3, 0.4]."): "mentions boxes",
    ("Where is the man?", "His bounding box is on the left."): "mentions boxes",
    ("Where is the man?", "He is at the coordinates on the left."): "mentions boxes",
    ("Where is the man?", "At 0.125 of the width."): "mentions boxes",
    ("How old is the man?", "It cannot be determined."): "unsure",
    ("What is the man's name?", "The name is unknown."): "unsure",
    ("Where is the man?", "He is possibly on the left."): "unsure",
    ("What might the man do next?", "He throws the frisbee."): "unsure",
    ("Is the man old?", "It is not clear whether he is old."): "unsure",
    ("Where?", "On the grass."): "too short",
    ("Where is the man?", "..."): "too short",
    ("Where is the man?", "He is " + " ".join(f"w{n * 7919 % 10007}" for n in range(130)) + "."): "too long",
    ("Where is the man who " + " ".join(f"has{n}" for n in range(70)) + "?", "On the left."): "too long",
    ("Where is the man?", "The man is standing on the green grass to the left of the two dogs and"): "cut",
    ("What is next to the dogs?", "What is next to the dogs"): "repeats the question",
    ("Where is the man in the park?", "The man is in the park."): "repeats the question",
    ("What is the man doing?", "Yes, he is."): "no answer",
    ("Is the man next to the dogs?", "No, the man is next to the dogs."): "no answer",
    ("What is by the man?", "The man is next to the man."): "no answer",
    ("What is sold at the stall?", "Carrots and tomatoes are sold there, in crates."): "copied example",
    ("Where is the man?", "Der Mann steht auf dem Gras und sieht den Hunden zu."): "not the language",
    ("Where is the man?", "Он стоит на траве."): "not the language",
    ("Where is the man?", "男の人は草の上に立っています。"): "not the language",
    ("Où est le monsieur ?", "Il est dans le parc avec les chiens."): "not the language",
    ("¿Dónde está el hombre?", "El hombre está en el parque con los perros."): "not the language",
    ("How many dogs are there?", "There are three dogs."): "contradicts the boxes",
    ("How many dogs are in the picture?", "Three."): "contradicts the boxes",
    ("What is on the grass?", "Three brown dogs."): "contradicts the boxes",
    ("Is there a bench in the picture?", "No, there is none."): "contradicts the boxes",
    ("Which animal is behind the dogs?", "A cat is there."): "not in the context",
    ("What color is the cat?", "It is white."): "not in the context",
    ("Is there a horse?", "Yes."): "not in the context",
    ("Who is the man?", "He is called Peter, his mother Anna."): "not in the context",
    ("Where is the park?", "It is in Berlin."): "not in the context",
}  # fmt: skip


@pytest.mark.parametrize(("exchange", "wanted"), BAD.items(), ids=[answer[:40] for _, answer in BAD])
def test_exchange_is_rejected_for_its_reason(exchange, wanted):
    assert reason(talk(exchange)) == wanted
    assert read(talk(exchange) + GOOD) == read(GOOD), "what is good behind it stays"


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("", "conversation", "empty"),
        (" \n\u200b", "detail_description", "empty"),
        ("# Description", "detail_description", "empty"),
        ("A park with dogs.", "conversation", "no blocks"),
        ("Question:\nWhat is it?\n===", "complex_reasoning", "no blocks"),
        ("The dog runs. " * 30, "conversation", "looping"),
        ("The dog runs. " * 30, "detail_description", "looping"),
        ("A park with two dogs.", "detail_description", "too short"),
        (talk(("Why is it green?", "Because it is grass.")), "complex_reasoning", "too short"),
        ("- a dog\n- a dog\n- a frisbee\n- a man", "detail_description", "a list"),
        ("1. Two dogs\n2. One man\n3. A frisbee", "detail_description", "a list"),
        (DETAIL + " The boxes give the coordinates.", "detail_description", "mentions boxes"),
        (DETAIL + " A cat sleeps on a bench.", "detail_description", "not in the context"),
        (DETAIL + " There are five dogs.", "detail_description", "contradicts the boxes"),
        (DETAIL + " The name of the park is unknown.", "detail_description", "unsure"),
        (DETAIL + " Behind them is a", "detail_description", "cut"),
        (" ".join(PARK.captions), "detail_description", "copied captions"),
        (DETAIL + " " + DETAIL, "detail_description", "looping"),
        (
            talk((WHY[0], WHY[1] + " A cat sits on the bench and watches them.")),
            "complex_reasoning",
            "not in the context",
        ),
    ],
)
def test_reply_is_rejected_for_its_reason(text, kind, wanted):
    assert reason(text, kind) == wanted


def test_copied_descriptions_and_reasonings_are_rejected():
    for kind in ("detail_description", "complex_reasoning"):
        for example in PROMPTS.examples(kind):
            assert reason(example, kind, limits=InstructionLimits(is_grounded=False)) == "copied example"


def test_cut_reply_keeps_what_is_whole():
    assert read(GOOD + "Question:\nWhat is the man wat", finish_reason="length") == read(GOOD)
    assert reason("Question:\nWhat is the man wat", finish_reason="length") == "cut"
    assert reason(DETAIL, "detail_description", finish_reason="length") == "cut"
    assert (
        reason(
            "Question:\nWhy does he watch?\n===\nAnswer:\nThe man watches", "complex_reasoning", finish_reason="length"
        )
        == "cut"
    )


def test_repeated_question_and_long_answer_are_left_out():
    exchanges = [
        ("What do the dogs do?", "They run over the grass in a park."),
        ("what do the DOGS do", "They play."),
        ("Where do the dogs run?", "They run over the grass in a park!"),
        ("Who is watching?", "A man."),
        ("Who wears a jacket?", "A man."),
    ]
    assert read(talk(*exchanges)) == [exchanges[0], exchanges[3], exchanges[4]]


def test_what_leans_on_an_exchange_that_is_left_out_goes_with_it():
    bad = ("Which animal sleeps on the bench?", "A cat.")
    leaning = ("What color is it?", "White.")
    new = ("Which color has the man's jacket?", "Blue.")
    assert read(talk(bad, leaning, new, leaning)) == [new, leaning]


def test_limits_are_kept():
    assert reason(GOOD, limits=InstructionLimits(min_exchanges=3)) == "too short"
    assert len(read(GOOD, limits=InstructionLimits(max_exchanges=1))) == 1
    assert reason(DETAIL, "detail_description", limits=InstructionLimits(min_detail_words=80)) == "too short"
    assert (
        reason(DETAIL, "detail_description", limits=InstructionLimits(min_detail_words=1, max_detail_words=30))
        == "too long"
    )
    assert reason(talk(WHY), "complex_reasoning", limits=InstructionLimits(max_reasoning_words=15)) == "too long"
    unheld = InstructionLimits(is_grounded=False)
    assert read(talk(("What sleeps on the bench?", "A cat sleeps there.")), limits=unheld)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"language": "xx"}, "`language` must be one of en, de, fr, es, or None for any, got 'xx'"),
        ({"min_detail_words": 500}, "at most `max_detail_words`, got 500 and 400"),
        ({"min_exchanges": 0}, "1 or more"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        InstructionLimits(**settings)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`kind` must be one of conversation"):
        read(GOOD, "talk")


@pytest.mark.parametrize(
    ("language", "exchange"),
    [
        (
            "de",
            (
                "Was macht der Mann im Park?",
                "Er steht auf dem Gras und sieht den Hunden zu, die mit einer Scheibe spielen.",
            ),
        ),
        (
            "fr",
            (
                "Que fait l'homme dans le parc ?",
                "Il est debout sur l'herbe et regarde les chiens qui jouent avec un disque.",
            ),
        ),
        (
            "es",
            (
                "¿Qué hace el hombre en el parque?",
                "Está de pie en la hierba y mira a los perros que juegan con un disco.",
            ),
        ),
        (None, ("公園には何がいますか？", "二匹の犬と男の人がいます。")),
        (None, ("Что делает мужчина?", "Он смотрит на собак.")),
    ],
)
def test_other_languages_are_taken_where_they_are_wanted(language, exchange):
    assert read(talk(exchange), limits=InstructionLimits(language=language)) == [exchange]
    for other in {"en", "de", "fr", "es"} - {language}:
        assert reason(talk(exchange), limits=InstructionLimits(language=other)) in ("not the language", "too short")


def test_regions_may_be_asked_for_by_their_boxes():
    context = Context("7", "7.jpg", regions=(Region("a red kite", (0.1, 0.2, 0.3, 0.4)),))
    exchanges = [
        ("[0.10, 0.20, 0.30, 0.40]\nProvide a short description for this region.", "a red kite"),
        (
            "a red kite\nProvide the bounding box coordinate of the region this sentence describes.",
            "[0.10, 0.20, 0.30, 0.40]",
        ),
    ]
    found = read(talk(*exchanges), context=context)
    assert found == exchanges
    wrong = (exchanges[1][0], "[0.10, 0.20, 0.30, 0.90]")
    assert reason(talk(wrong), context=context) == "contradicts the boxes"
    assert reason(talk((exchanges[0][0], "a blue kite")), context=context) == "contradicts the boxes"
    assert reason(talk((exchanges[1][0], "on the left")), context=context) == "contradicts the boxes"


# ---- answers that a careful person would give must pass

HUMAN = [
    (
        scene("A man rides a wave on a surfboard.", "A surfer in a black wetsuit on a big wave.", person=1, surfboard=1),
        [
            ("What is the man doing?", "He is riding a wave on his surfboard."),
            ("What does he wear?", "A black wetsuit."),
            ("Is the wave small?", "No, it is a big wave, higher than the surfer."),
        ],
    ),
    (
        scene("Three pizzas in their boxes.", "Three open pizza boxes on a table.", pizza=3),
        [
            ("How many pizzas are there?", "There are three pizzas."),
            ("What are the pizzas in?", "Each of them is in a box."),
            ("Are the boxes open or closed?", "The boxes are open."),
        ],
    ),
    (
        scene("A street with a stop sign and a lone Volkswagen.", "An old VW Bug waits at a stop sign.", car=7, stop_sign=1),
        [
            ("What does the sign say?", 'It says "STOP" in white letters.'),
            ("Which car is closest to the sign?", "An old Volkswagen is parked next to it."),
            ("Are there any people?", "No, there are no people to be seen, and no dogs either."),
        ],
    ),
    (
        scene("Four giraffes stand in the dry brush.", "A group of giraffes in a grassy field.", giraffe=4),
        [
            ("Which animals are in the field?", "Giraffes."),
            ("How many are there?", "Four."),
            ("What does the ground look like?", "It is covered by grass and dry brush."),
            ("Are the giraffes alone?", "No, they stand together as a group."),
        ],
    ),
    (
        scene(
            "A couple of kids on a baseball field.",
            "A little boy in a uniform stands by a little girl.",
            person=2,
            baseball_glove=1,
            bench=1,
        ),
        [
            ("Who is in the picture?", "There are two children, a boy and a girl."),
            ("What does the boy wear?", "He is wearing a baseball uniform."),
            ("Which of the two is a player, the boy or the girl?", "The boy is the player."),
            ("Where are they?", "They are standing on a baseball field."),
        ],
    ),
    (
        scene("A cat stares at a laptop.", "A kitten sits on a wooden desk by an open black laptop.", cat=1, laptop=1, book=9),
        [
            ("What is the cat looking at?", "It is looking at a laptop."),
            ("Is the laptop open?", "Yes, it is open."),
            ("What is the desk made of?", "It is made of wood."),
            ("What else is near the laptop?", "There are several books."),
        ],
    ),
    (
        scene("Two women and a man with umbrellas.", "People under umbrellas wait for a bus.", person=5, umbrella=3),
        [
            ("What are the people holding?", "They are holding umbrellas."),
            ("What are they waiting for?", "For a bus."),
            ("Who is under the umbrellas?", "Two women and a man."),
            ("Does it look like a dry day?", "No, the umbrellas are open against the rain."),
        ],
    ),
    (
        scene("A red tie on a white shirt, laid on a bed.", "Suit laid out with black shoes.", tie=1, bed=1),
        [
            ("What color is the tie?", "The tie is red."),
            ("What lies on the bed?", "A suit, a white shirt, a red tie and black shoes."),
            ("Can you describe the shirt?", "The shirt is white, and the tie lies on top of it."),
        ],
    ),
    (
        scene("A man and child next to a horse.", "A man lets his baby pet a brown horse.", person=2, horse=1),
        [
            ("What is the baby doing?", "The baby is petting a horse."),
            ("Who holds the child?", "A man holds the child."),
            ("Describe the horse.", "It is brown and stands still."),
            ("What touches the baby's hand?", "The nose of the horse."),
        ],
    ),
    (
        scene("A sandwich and chips sit on a white plate.", "A sandwich next to a bowl of soup and a glass of "
        "tea.", sandwich=1, cup=1, bowl=1),
        [
            ("What is on the plate?", "A sandwich and chips."),
            ("What is there to drink?", "There is a glass of tea beside the plate."),
            ("How many bowls are there?", "One."),
            ("What color is the plate?", "White."),
            ("Is there a person in the picture?", "No, only the meal is shown."),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("context", "exchanges"), HUMAN)
def test_good_conversation_passes_whole(context, exchanges):
    assert read(talk(*exchanges), context=context) == exchanges


def test_good_descriptions_and_reasoning_pass():
    reasoning = (
        "What should the man keep in mind while the dogs play?",
        "The dogs run after a frisbee in an open park, so they may not look where they go. Other people, "
        "children or even cars at the edge of "
        "the park could get in their way. It might be wise to keep them near, and the man seems to do just "
        "that, as he watches them closely.",
    )
    assert read(talk(reasoning), "complex_reasoning") == [reasoning]
    detail = DETAIL + "\n\nThe sky is clear. It appears to be a warm day, and the scene looks peaceful."
    assert read(detail, "detail_description")[0][1] == detail


def test_key_is_the_same_for_the_same_words():
    key = dedupe_key([("Who is there?", "A man.")])
    assert key == dedupe_key([("who is  there", "a MAN!")]) and len(key) == 16
    assert key != dedupe_key([("Who is there?", "A man."), ("Who is there?", "A man.")])
    assert key != dedupe_key([("Who is there? A", "man.")])
    assert key != dedupe_key([("Who is there?", "A woman.")])


def test_english_is_far_from_the_bound_of_what_has_no_entropy():
    text = " ".join(answer for _, exchanges in HUMAN for exchange in exchanges for answer in exchange)
    assert len(zlib.compress(text.encode())) > 0.3 * len(text)


PIECES = st.sampled_from(
    ["Question:", "Answer:", "===", "\n", "Q:", "A:", "**", "Two dogs run.", "Where is the man?", '{"question": '
    '"', '"}', "[0.1, 0.2]", "Yes, there are 3 dogs"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.one_of(st.text(), st.lists(PIECES, max_size=40).map(" ".join)),
    st.sampled_from(["stop", "length", "content_filter"]),
    st.sampled_from([None, "en", "de"]),
    st.sampled_from([PARK, Context("8", None)]),
)
def test_any_reply_gives_exchanges_or_a_rejection(kind, text, finish_reason, language, context):
    try:
        exchanges = read(text, kind, context, finish_reason, InstructionLimits(language=language))
    except Rejection as rejection:
        assert rejection.reason
    else:
        assert exchanges and all(question.strip() and answer.strip() for question, answer in exchanges)
        assert kind == "conversation" or len(exchanges) == 1
