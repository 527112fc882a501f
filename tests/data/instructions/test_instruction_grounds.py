"""What is said of a picture against its captions and boxes."""

import pytest

from hf_vlm.data.instructions.contexts import Context, Instance, Region
from hf_vlm.data.instructions.instruction_grounds import contradiction, is_region, unknown_name, unknown_thing


def scene(*captions, crowds=(), regions=(), **counts):
    instances = [
        Instance(name.replace("_", " "), (0.1, 0.1, 0.5, 0.5), name in crowds)
        for name, number in counts.items()
        for _ in range(number)
    ]
    return Context("7", None, captions, tuple(instances), tuple(Region(one, (0, 0, 1, 1)) for one in regions))


DOGS = scene("A dog barks at a woman.", dog=2, traffic_light=1)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is there?", "A puppy and a lady wait at the traffic light."),
        ("What is there?", "There are no cats, and not a single car."),
        ("Is there a cat?", "No."),
        ("Is there a cat?", "No, there is only a dog."),
        ("Is there a cat on the street?", "No, nothing like it."),
        ("What is it like?", "It looks like a bear."),
        ("What is there?", "An animal, a glass and a table."),
        ("What is there?", "She holds it by the hand."),
    ],
)
def test_thing_that_is_known_or_not_claimed_passes(question, answer):
    assert unknown_thing((question, answer), "conversation", DOGS) is None


@pytest.mark.parametrize(
    ("question", "answer", "word"),
    [
        ("What is there?", "A dog and a cat.", "cat"),
        ("What does the cat do?", "It sleeps.", "cat"),
        ("Is there a cat?", "Yes.", "cat"),
        ("Do you see a cat?", "Yes, there it is.", "cat"),
        ("What is there?", "It is no bird. Two kittens sleep.", "kittens"),
        ("What is there?", "A teddy bear.", "teddy bear"),
    ],
)
def test_thing_that_is_not_known_is_told(question, answer, word):
    assert unknown_thing((question, answer), "conversation", DOGS).startswith(f"{word}: ")


def test_reasoning_may_suppose_things():
    question = "What could happen?"
    assert unknown_thing((question, "A boat could come. People like that."), "complex_reasoning", DOGS) is None
    assert unknown_thing((question, "A boat comes."), "complex_reasoning", DOGS) == "boat: A boat comes."
    assert unknown_thing((question, "A boat could come."), "conversation", DOGS) == "boat: A boat could come."


def test_regions_are_known_too():
    assert unknown_thing(("What is there?", "A cat."), "conversation", scene(regions=["a gray kitten"])) is None


@pytest.mark.parametrize(
    ("answer", "is_known"),
    [
        ("He rides a Vespa in Rome.", True),
        ("He rides to Paris.", False),
        ("It is Christmas. The TV is on.", True),
        ("Rain falls. Snow falls.", True),
        ("He, Marco, is old.", False),
    ],
)
def test_names_must_be_known(answer, is_known):
    told = unknown_name(("What?", answer), scene("A vespa in the streets of Rome."))
    assert (told is None) == is_known


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        ("Two dogs bark.", False),
        ("3 dogs bark.", True),
        ("Three big brown dogs bark.", True),
        ("Two of the dogs bark.", False),
        ("Two of the three dogs bark.", True),
        ("One dog barks.", False),
        ("There are two dogs.", False),
        ("There are ten puppies.", True),
        ("Three cats and dogs.", False),
        ("At least three dogs bark.", False),
        ("He is three. Dogs bark.", False),
        ("Two dogs and three traffic lights.", True),
        ("Two dogs, three legs.", False),
        ("It costs 3.5 dogs.", False),
        ("Twelve people see it.", False),
    ],
)
def test_number_above_the_boxes_is_wrong(answer, is_wrong):
    assert (contradiction(("What is there?", answer), DOGS) is not None) == is_wrong


FOUR = scene("People stand around.", person=4, dog=12, bus=2, crowds=["bus"])


@pytest.mark.parametrize(
    ("question", "answer", "is_wrong"),
    [
        ("How many people are there?", "Three.", True),
        ("How many people are there?", "There are four people.", False),
        ("How many people are in the picture?", "4", False),
        ("How many persons can you see in this image?", "Two people", True),
        ("How many people are there?", "About three.", False),
        ("How many people are there?", "Several.", False),
        ("How many people are sitting on the bench?", "Three.", False),
        ("How many men are there?", "Three.", False),
        ("How many dogs are there?", "Three.", False),
        ("How many buses are there?", "Three.", False),
        ("Who is there?", "There are two people.", True),
        ("Who is there?", "Two people sit.", False),
        ("Who is there?", "There are two men.", False),
        ("Are there any people?", "No.", True),
        ("Is there a person in the picture?", "No, nobody.", True),
        ("Is there a person on the roof?", "No.", False),
        ("Are there people?", "Yes.", False),
    ],
)
def test_whole_number_must_be_that_of_the_boxes(question, answer, is_wrong):
    assert (contradiction((question, answer), FOUR) is not None) == is_wrong


def test_caption_knows_better_than_boxes():
    said = ("How many dogs are there?", "There are three dogs.")
    assert contradiction(said, scene("A dog.", dog=2)) is not None
    assert contradiction(said, scene("Three brown dogs.", dog=2)) is None
    assert contradiction(said, scene("Three puppies.", dog=2)) is None
    assert contradiction(said, scene("Three cats.", dog=2)) is not None


def test_other_categories_than_cocos_are_counted():
    context = scene(swivel_chair=1, lamp=2)
    assert contradiction(("What is there?", "There are three swivel chairs."), context) is not None
    assert contradiction(("How many lamps are there?", "Two."), context) is None
    assert contradiction(("How many lamps are there?", "One."), context) is not None


def test_region_has_its_phrase_and_box():
    context = Context("7", None, regions=(Region("A red kite.", (0.104, 0.2, 0.3, 0.4)),))
    assert is_region(("[0.10, 0.20, 0.30, 0.40] What?", "a red kite"), context)
    assert not is_region(("[0.10, 0.20, 0.30, 0.50] What?", "a red kite"), context)
    assert not is_region(("[0.10, 0.20, 0.30] What?", "a red kite"), context)
    assert not is_region(("[0.10, 0.20, 0.30, 0.40] What?", "a kite"), context)
