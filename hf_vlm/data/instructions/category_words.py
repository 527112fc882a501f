"""By which words people speak of the 80 things of COCO, so that what is said can be held against what is boxed.

A category is spoken of by words of four sorts, and it depends on the question which of them count:
    its own name            dog
    same     synonyms       bicycle: bike
    kinds    hyponyms       person: woman; dog: puppy
    maybe    words that may mean it, wider or ambiguous ones: dog: animal, pet; wine glass: glass
Whether a text *may* speak of a category (`mentions`: all four, so a no is safe) is another question than which categories it
*surely* speaks of (`categories_in`: all but `maybe`). Longest words first: `hot dog` is no dog, `teddy bear` no bear.

Source: the category names of COCO 2017, Lin et al. 2014, https://arxiv.org/abs/1405.0312; the words are our own list.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class CategoryWords:
    """Words of a category, singular and in lower case; plurals are understood.

    Attributes:
        same: mean just it.
        kinds: mean a kind of it, or someone in a role.
        maybe: may mean it and may mean something else.
        is_name_sure: whether its own name means nothing else; `orange` is a colour too.
    """

    same: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()
    is_name_sure: bool = True


class CategoryMention(NamedTuple):
    """A `word`, in lower case, that means one of `categories`, at [start, end) of the text in lower case."""

    categories: frozenset[str]
    word: str
    start: int
    end: int


def _words(same: str = "", kinds: str = "", maybe: str = "", is_name_sure: bool = True) -> CategoryWords:
    def split(told: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in told.split(",") if word.strip())

    return CategoryWords(split(same), split(kinds), split(maybe), is_name_sure)


COCO_WORDS: Mapping[str, CategoryWords] = {
    "person": _words(
        "human, human being, individual, somebody, someone",
        "man, woman, boy, girl, child, kid, baby, toddler, infant, teenager, teen, adult, guy, lady, gentleman, "
        "pedestrian, passenger, driver, rider, skier, snowboarder, surfer, skater, skateboarder, "
        "cyclist, bicyclist, biker, motorcyclist, swimmer, runner, jogger, dancer, chef, waiter, waitress, baker, "
        "farmer, fisherman, policeman, police officer, officer, fireman, firefighter, soldier, worker, cowboy, "
        "tourist, traveler, traveller, student, teacher, doctor, nurse, businessman, businesswoman, bride, groom, "
        "spectator, onlooker, bystander, shopper, customer, vendor, batter, catcher, umpire, referee, baseball "
        "player, tennis player, soccer player, football player, player, athlete, performer, musician, guitarist, "
        "singer, photographer, barber, dentist, skydiver, jockey, equestrian, bartender, mother, father, mom, dad, "
        "son, daughter, brother, sister, grandmother, grandfather, husband, wife, couple of people, crowd of "
        "people",
        "male, female, pitcher, couple, crowd, group, team, family, friend, audience, they, he, she, him, her, his, their, them, "
        "everyone, everybody, anyone, hand, arm, leg, foot, face, finger, head, hair, fan, captain, clerk, model, "
        "pair, member, figure, silhouette, operator, owner, speaker, judge, coach, host, guest, folk, youth, body, "
        "torso, selfie, parent, crew, class, staff, midsection, stomach, shoulder, lap, beard, mustache, moustache",
    ),
    "bicycle": _words("bike, pushbike", "mountain bike, tricycle, tandem", "cycle, two-wheeler, vehicle, biking"),
    "car": _words(
        "",
        "automobile, sedan, taxi, taxicab, suv, convertible, hatchback, station wagon, limousine, limo, jeep, minivan, sports "
        "car, police car, race car, coupe",
        "van, vehicle, traffic, cab, vw, volkswagen, bmw, mercedes, ford, auto, wagon, parking lot, cruiser",
    ),
    "motorcycle": _words(
        "motorbike", "moped, dirt bike, motor scooter, vespa", "bike, scooter, chopper, harley, vehicle, motor"
    ),
    "airplane": _words(
        "aeroplane, plane, airliner, aircraft, air plane",
        "jet, jetliner, seaplane, biplane, fighter jet, glider",
        "jumbo, boeing, flight, vehicle, propeller",
    ),
    "bus": _words(
        "autobus, omnibus",
        "double decker, double-decker, school bus, tour bus, minibus, shuttle bus, trolley bus",
        "coach, vehicle, shuttle, trolley, public transport, transit, automobile",
    ),
    "train": _words(
        "railway train, railroad train",
        "locomotive, steam engine, subway train, freight train, passenger train, bullet train, tram, streetcar, railcar",
        "engine, subway, trolley, metro, railway car, train car, vehicle, monorail, carriage, rail, public transport",
    ),
    "truck": _words(
        "lorry",
        "pickup, pickup truck, pick-up, fire truck, firetruck, fire engine, dump truck, tow truck, semi-truck, "
        "tractor trailer, tractor-trailer, garbage truck, food truck",
        "semi, van, trailer, vehicle, tractor, rv, rig, u-haul, wagon, suv, jeep, automobile",
    ),
    "boat": _words(
        "watercraft",
        "sailboat, canoe, kayak, rowboat, motorboat, speedboat, ferry, yacht, gondola, dinghy, catamaran, "
        "houseboat, barge, fishing boat, tugboat",
        "ship, raft, vessel, tug, craft, sail, liner, marina, harbor, harbour",
    ),
    "traffic light": _words(
        "traffic signal, stoplight, stop light, street signal", "", "light, signal, traffic, crosswalk signal"
    ),
    "fire hydrant": _words("hydrant, fireplug, fire plug", "", "plug"),
    "stop sign": _words("", "", "sign, traffic sign, street sign, road sign, sign post, signpost"),
    "parking meter": _words("", "", "meter"),
    "bench": _words("", "park bench, pew", "seat, seating, picnic table, bleacher"),
    "bird": _words(
        "",
        "seagull, gull, pigeon, duck, goose, swan, parrot, owl, eagle, hawk, sparrow, crow, flamingo, pelican, "
        "ostrich, peacock, hen, rooster, dove, heron, penguin, parakeet, hummingbird, vulture, stork, cockatoo, "
        "woodpecker, robin, duckling",
        "chicken, turkey, crane, fowl, flock, animal, feather, pet, wildlife, raven, cardinal, poultry",
    ),
    "cat": _words("feline", "kitten, kitty, tabby", "animal, pet, siamese, calico"),
    "dog": _words(
        "canine",
        "puppy, hound, poodle, terrier, bulldog, labrador, retriever, dachshund, chihuahua, dalmatian, husky, pug, "
        "beagle, greyhound, sheepdog, german shepherd, golden retriever, corgi, collie",
        "animal, pet, shepherd, boxer, lab, pup, mutt",
    ),
    "horse": _words(
        "", "pony, stallion, mare, foal, colt", "animal, carriage, horseback, equestrian, jockey, polo, steed"
    ),
    "sheep": _words("", "lamb, ewe, ram", "animal, flock, herd, livestock, wool, farm animal"),
    "cow": _words(
        "",
        "bull, calf, steer, ox, heifer, bovine",
        "cattle, animal, herd, livestock, buffalo, bison, yak, longhorn, wildebeest, farm animal, moose, bulls",
    ),
    "elephant": _words("", "", "animal, herd, wildlife"),
    "bear": _words(
        "", "polar bear, grizzly bear, brown bear, black bear, panda, grizzly", "animal, cub, wildlife", False
    ),
    "zebra": _words("", "", "animal, herd, wildlife"),
    "giraffe": _words("", "", "animal, herd, wildlife"),
    "backpack": _words("rucksack, knapsack, back pack", "", "bag, pack, luggage, baggage, satchel, bookbag"),
    "umbrella": _words("", "parasol", "sunshade, shade, canopy"),
    "handbag": _words("purse", "", "bag, pocketbook, tote, luggage, baggage, satchel, clutch, shoulder bag"),
    "tie": _words("necktie, neck tie", "bow tie, bowtie", "suit, uniform, attire", False),
    "suitcase": _words("", "", "luggage, baggage, bag, case, briefcase, trunk, carry-on"),
    "frisbee": _words("flying disc, flying disk", "", "disc, disk"),
    "skis": _words("ski", "", "skier, skiing, snow gear, snowboard"),
    "snowboard": _words("", "", "board, snowboarder, snowboarding, skier, ski"),
    "sports ball": _words(
        "",
        "baseball, tennis ball, soccer ball, basketball, football, volleyball, beach ball, softball, rugby ball",
        "ball, tennis, soccer, game, pitch",
        True,
    ),
    "kite": _words("", "", "parasail, wind sail, paraglider, parachute, hang glider"),
    "baseball bat": _words("", "", "bat, batter, baseball player, swing"),
    "baseball glove": _words(
        "catcher's mitt, baseball mitt", "", "glove, mitt, catcher, pitcher, baseball player, outfielder"
    ),
    "skateboard": _words("skate board", "longboard", "board, skateboarder, skateboarding, skater, skating"),
    "surfboard": _words("surf board", "boogie board, bodyboard", "board, surfer, surfing, paddleboard, windsurfer"),
    "tennis racket": _words(
        "tennis racquet, tennis racket", "", "racket, racquet, tennis, tennis player, badminton, paddle"
    ),
    "bottle": _words(
        "", "wine bottle, beer bottle, water bottle", "beer, wine, water, drink, beverage, container, shampoo, liquor"
    ),
    "wine glass": _words(
        "wineglass, wine goblet", "champagne flute", "glass, goblet, glassware, flute, drink, wine, beverage, champagne"
    ),
    "cup": _words(
        "",
        "mug, teacup, coffee cup, paper cup",
        "glass, tumbler, drink, coffee, tea, beverage, goblet, glassware, soda, juice",
    ),
    "fork": _words("", "", "utensil, silverware, cutlery, flatware", True),
    "knife": _words(
        "", "butter knife, steak knife, pocket knife", "blade, utensil, silverware, cutlery, flatware, cleaver"
    ),
    "spoon": _words("", "teaspoon, tablespoon, wooden spoon", "utensil, silverware, cutlery, flatware, ladle, spatula"),
    "bowl": _words("", "soup bowl", "dish, basin, container, soup, cereal, salad, plate"),
    "banana": _words("", "plantain", "fruit, food, bunch"),
    "apple": _words("", "", "fruit, food"),
    "sandwich": _words(
        "", "burger, hamburger, cheeseburger, panini, hoagie", "sub, food, wrap, toast, meal, bun, bread, bagel, blt"
    ),
    "orange": _words("", "tangerine, mandarin, clementine", "fruit, food, citrus, grapefruit", False),
    "broccoli": _words("", "", "vegetable, veggie, food, greens, salad"),
    "carrot": _words("", "baby carrot", "vegetable, veggie, food, salad"),
    "hot dog": _words("hotdog, frankfurter", "corn dog", "sausage, wiener, bun, food, chili dog, bratwurst, sandwich"),
    "pizza": _words("", "pepperoni pizza, pizza slice", "pie, slice, food, pan, calzone, flatbread"),
    "donut": _words("doughnut", "", "pastry, dessert, food, bagel, sweet, treat"),
    "cake": _words(
        "", "cupcake, cheesecake, birthday cake, wedding cake", "dessert, pastry, food, pie, sweet, treat, muffin"
    ),
    "chair": _words(
        "",
        "armchair, recliner, rocking chair, folding chair, office chair, wheelchair",
        "seat, stool, seating, throne, furniture, lounger, lawn chair, couch",
    ),
    "couch": _words("sofa, settee", "loveseat, love seat", "seat, futon, seating, furniture, chair, sectional"),
    "potted plant": _words(
        "houseplant, house plant, pot plant",
        "",
        "plant, flower, pot, vase, planter, cactus, fern, bush, tree, greenery",
    ),
    "bed": _words(
        "", "bunk bed, bunk, crib, mattress", "cot, bedding, furniture, bedspread, futon, bedroom, bunkbed, comforter"
    ),
    "dining table": _words(
        "dinner table, kitchen table",
        "picnic table",
        "table, desk, counter, tabletop, table top, furniture, countertop, bar, tablecloth, buffet",
    ),
    "toilet": _words(
        "toilet bowl, lavatory, commode", "urinal", "bathroom, restroom, potty, latrine, washroom, outhouse, stall"
    ),
    "tv": _words(
        "television, tv set, television set, tvs",
        "flat screen tv",
        "screen, monitor, display, flat screen, set, computer, flatscreen",
    ),
    "laptop": _words("laptop computer, notebook computer", "macbook", "computer, notebook, pc, screen, electronics"),
    "mouse": _words("computer mouse, mouses", "", "computer"),
    "remote": _words(
        "remote control, remote controller",
        "wii remote, wiimote",
        "controller, clicker, wii, game controller, electronics, nintendo",
        False,
    ),
    "keyboard": _words("computer keyboard", "", "computer, piano, keys, electronics"),
    "cell phone": _words(
        "cellphone, mobile phone, smartphone, smart phone, cellular phone, iphone",
        "flip phone",
        "phone, telephone, mobile, device, cellular, electronics",
    ),
    "microwave": _words("microwave oven", "", "oven, appliance"),
    "oven": _words("", "", "stove, range, stovetop, appliance, microwave, cooker, kitchen"),
    "toaster": _words("", "toaster oven", "appliance, oven"),
    "sink": _words("washbasin, wash basin", "", "basin, faucet, tap, bathroom, kitchen, vanity, counter"),
    "refrigerator": _words("fridge", "freezer", "appliance, icebox, kitchen, cooler"),
    "book": _words(
        "",
        "textbook, notebook, paperback, novel, cookbook",
        "magazine, bookshelf, bookcase, reading, library, literature, binder, encyclopedia",
    ),
    "clock": _words("", "alarm clock, wall clock, clock tower, clocktower", "watch, time, timepiece"),
    "vase": _words("", "", "pot, jar, pottery, urn, pitcher, flower, jug, container"),
    "scissors": _words("pair of scissors, shears", "", "cutter, clipper, scissor"),
    "teddy bear": _words("teddy, stuffed bear", "", "stuffed animal, toy, bear, plush, doll, stuffed toy, plushie"),
    "hair drier": _words("hair dryer, hairdryer, blow dryer, blow drier, hairdrier", "", "dryer, drier"),
    "toothbrush": _words("tooth brush", "electric toothbrush", "brush"),
}

COCO_CATEGORIES = tuple(COCO_WORDS)

# Of several words, one of which would be taken for a category: they mean something else.
_OTHER_THINGS = (
    "train station, train track, train platform, train set, train yard, bus stop, bus station, bus lane, car park, "
    "car seat, car wash, truck stop, boat house, boat ramp, dog house, dog food, dog bowl, bird house, birdhouse, "
    "bird cage, bird feeder, cat food, horse shoe, bear in mind, bear the, toilet paper, toilet tissue, toilet brush, "
    "toilet seat, bed sheet, bed spread, flower bed, river bed, book shelf, book case, book bag, bottle cap, cup "
    "holder, cup cake, egg cup, world cup, apple tree, orange tree, banana tree, apple juice, orange juice, apple "
    "pie, apple sauce, banana bread, carrot cake, pizza box, pizza oven, pizza cutter, pizza place, pizza parlor, "
    "donut shop, cake stand, sandwich shop, chair lift, ski lift, ski slope, ski resort, ski pole, ski area, ski "
    "lodge, ski boot, ski goggle, ski jacket, ski gear, ski run, ski trail, ski hill, ski suit, ski pant, ski mask, "
    "ski jump, ski course, ski equipment, baseball field, baseball game, baseball uniform, baseball cap, baseball "
    "team, baseball diamond, baseball stadium, baseball match, baseball park, baseball jersey, baseball hat, "
    "baseball, basketball court, basketball hoop, basketball game, football field, football game, volleyball net, "
    "volleyball court, volleyball game, soft ball game, man made, man-made, manhole, male model, female model, fork "
    "in the road, road fork, knife block, clock face, kite string, bird's eye, bird's-eye, plane tree, jet ski, jet "
    "black, jet of, jet lag, duck tape, bull's eye, kid friendly, child seat, baby carriage, baby stroller, baby "
    "shower, human made, oven mitt, oven glove, microwave meal, mouse pad, mousepad, keyboard tray, keyboard "
    "shortcut, tv stand, tv show, tv screen, tv tray, television show, television stand, television screen, toy car, "
    "toy truck, toy train, toy boat, toy plane, umbrella hat, umbrella stand, bench mark, vase like, crane, player "
    "piano, record player, dvd player, cd player, music player, media player, screw driver, boat shoe, horse power, "
    "cowboy hat, cowboy boot, clock work, sink in, book a, bull dozer, individual piece, individual serving, "
    "individual portion, individual slice, bed of, baby animal, baby goat, baby deer"
).split(", ")

_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe".split()
_IRREGULAR = dict(
    pair.split(":")
    for pair in (
        "person:people, man:men, woman:women, child:children, mouse:mice, goose:geese, foot:feet, tooth:teeth, ox:oxen, "
        "knife:knives, wife:wives, life:lives, calf:calves, half:halves, leaf:leaves, loaf:loaves, shelf:shelves, "
        "bookshelf:bookshelves, wolf:wolves, scarf:scarves, thief:thieves, potato:potatoes, tomato:tomatoes, hero:heroes, "
        "mango:mangoes, buffalo:buffaloes, volcano:volcanoes, cactus:cacti, tv:tvs, suv:suvs, human:humans, "
        "german:germans, talisman:talismans, bus:buses"
    ).split(", ")
)
_SAME_IN_PLURAL = frozenset(
    "sheep deer fish moose bison aircraft watercraft skis scissors shears glasses sunglasses goggles jeans pants trousers shorts "
    "broccoli luggage baggage furniture cattle silverware cutlery glassware wildlife clothing bedding people police livestock "
    "headphones binoculars tongs pliers species series salmon trout".split()
)
_WORD = re.compile(r"\w+")
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBER_WORDS: Mapping[str, int] = {word: number for number, word in enumerate(_NUMBERS)}


def plural(word: str) -> str:
    """The plural of a noun, or of words whose last is one: `dining tables`; of `piece of cake` the first: `pieces of cake`.

    Words without a plural of their own stay as they are: sheep, skis, scissors, broccoli. Case is kept but for irregular ones.
    """
    head, of, rest = word.partition(" of ")
    if of and head:
        return f"{plural(head)}{of}{rest}"
    last = word.rpartition(" ")[2]
    lead, low = word[: len(word) - len(last)], last.lower()
    if low in _SAME_IN_PLURAL:
        return word
    if low in _IRREGULAR:
        return lead + _IRREGULAR[low]
    if low.endswith("man"):
        return lead + last[:-2] + "en"
    if low.endswith("child"):
        return lead + last + "ren"
    if re.search(r"[^aeiou]y$", low):
        return lead + last[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", low):
        return word + "es"
    return word + "s"


def mentions(text: str, category: str) -> bool:
    """Whether a text may speak of a category: by its name, a synonym, a kind of it or a word that may mean it; False is safe.

    Args:
        text: any, such as captions.
        category: one of `COCO_CATEGORIES`, or any other name, which then only its own words and their plurals mention.
    """
    return _wide_pattern(category.strip().lower()).search(text.lower()) is not None


def categories_in(text: str) -> set[str]:
    """The categories of COCO that a text speaks of by words that mean nothing else; see the module's top."""
    return {name for mention in category_words_in(text) for name in mention.categories}


def category_words_in(text: str) -> list[CategoryMention]:
    """As `categories_in`, one mention after another as the text has them."""
    names = _sure_names()
    found = ((re.sub(r"\s+", " ", match.group()), match) for match in _sure_matches(text.lower()))
    return [CategoryMention(names[word], word, *match.span()) for word, match in found if word in names]


@functools.lru_cache(maxsize=1)
def own_words() -> Mapping[str, str]:
    """Names and synonyms of the categories, singular and plural, in lower case -> the category."""
    return {
        form: name
        for name, words in COCO_WORDS.items()
        for form in _forms((name, *words.same) if words.is_name_sure else words.same)
    }


def _forms(words: Iterable[str]) -> set[str]:
    forms = {form for word in words for form in (word, plural(word))}
    return forms | {"persons"} if "person" in forms else forms


@functools.lru_cache(maxsize=4096)
def _wide_pattern(category: str) -> re.Pattern[str]:
    words = COCO_WORDS.get(category, CategoryWords())
    forms = _forms((category, *words.same, *words.kinds, *words.maybe))
    last = category.rpartition(" ")[2]
    if category not in COCO_WORDS:
        forms |= _forms((last,))  # `swivel chair` is a chair
    return re.compile(rf"(?<!\w)(?:{_alternatives(forms)})(?!\w)")


@functools.lru_cache(maxsize=1)
def _sure_names() -> Mapping[str, frozenset[str]]:
    names: dict[str, set[str]] = {}
    for name, words in COCO_WORDS.items():
        sure = _forms((*words.same, *words.kinds, *([name] if words.is_name_sure else [])))
        if name in _ANIMALS:
            sure |= _forms(f"baby {word}" for word in (name, *words.kinds))  # no person
        if name == "orange":
            sure |= {"oranges"}  # not a colour
        if name == "bear":
            sure |= {"bears", "a bear", "the bear"}  # not the verb
        if name == "tie":
            sure |= {"a tie", "his tie", "red tie", "neckties"}
        for form in sure - {"baseball", "football", "basketball", "ram", "steer"}:  # sports and verbs, in the singular
            names.setdefault(form, set()).add(name)
    return {form: frozenset(found) for form, found in names.items()}


def _sure_matches(text: str) -> Iterator[re.Match[str]]:
    """What a pattern of all words would find, one after another; but tried only where a word begins as one of them does."""
    patterns, end = _sure_patterns(), 0
    for word in _WORD.finditer(text):
        if (
            word.start() >= end
            and (pattern := patterns.get(word.group()))
            and (match := pattern.match(text, word.start()))
        ):
            end = match.end()
            yield match


@functools.lru_cache(maxsize=1)
def _sure_patterns() -> Mapping[str, re.Pattern[str]]:
    """The first word of a form -> a pattern of all forms that begin with it."""
    of_first: dict[str, set[str]] = {}
    for form in set(_sure_names()) | _forms(_OTHER_THINGS):
        first = _WORD.match(form)
        assert first is not None
        of_first.setdefault(first.group(), set()).add(form)
    return {first: re.compile(rf"(?:{_alternatives(forms)})(?!\w)") for first, forms in of_first.items()}


def _alternatives(forms: Iterable[str]) -> str:
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in longest_first)
