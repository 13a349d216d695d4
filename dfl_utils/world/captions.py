"""Captions of the embedded world: a small grammar with synonyms and varying detail.

Two registers: `reference` (what a careful annotator writes, at least five words) and `web` (uneven alt-text:
short, reordered, now and then wrong). A caption is a pure function of scene and seed.
"""

import random
from dataclasses import replace

from dfl_utils.world.scenes import CATEGORIES, COLOURS, GRID, Scene, Thing

SYNONYMS = {
    "dog": "puppy", "cat": "kitten", "bird": "dove", "burger": "hamburger", "cup": "mug", "car": "automobile",
    "train": "locomotive", "plane": "airplane", "bicycle": "bike", "boat": "sailboat", "book": "notebook",
    "house": "home", "shirt": "t-shirt", "rocket": "spaceship", "horse": "pony", "hippo": "hippopotamus",
}  # fmt: skip
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
BESIDE = {
    True: ("to the left of", "left of", "on the left of"),
    False: ("to the right of", "right of", "on the right of"),
}
OVER = {True: ("above", "over", "on top of"), False: ("below", "under", "beneath")}
VAGUE = ("next to", "near", "beside", "and")
WEB_ERROR_RATE = 0.08  # share of web captions with one wrong word


def _noun(thing: Thing, rng: random.Random) -> str:
    synonym = SYNONYMS.get(thing.category)
    return synonym if synonym and rng.random() < 0.2 else thing.category


def _phrase(thing: Thing, rng: random.Random, detail: float) -> str:
    """The noun phrase without its article: [size] [colour] noun; more detail, more adjectives."""
    words = [_noun(thing, rng)]
    if rng.random() < 0.55 + 0.45 * detail:
        words.insert(0, thing.colour)
    if rng.random() < 0.1 + 0.6 * detail:
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    return " ".join(words)


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _place(thing: Thing, rng: random.Random) -> str:
    """Where a lone thing stands, by the thirds of the image its centre lies in."""
    along = [("left", "", "right"), ("top", "", "bottom")]
    x, y = (names[min(2, int(3 * (corner + thing.cells / 2) / GRID))]
            for names, corner in zip(along, (thing.x, thing.y), strict=True))  # fmt: skip
    if not x and not y:
        return rng.choice(("in the middle", "in the center"))
    if x and y:
        return rng.choice((f"in the {y} {x} corner", f"at the {y} {x}"))
    return rng.choice((f"on the {x} side", f"at the {x}")) if x else f"at the {y}"


def _one(scene: Scene, rng: random.Random, detail: float) -> str:
    (thing,) = scene.things
    text = rng.choice(("{}", "{}", "there is {}", "this is {}", "we see {}")).format(_a(_phrase(thing, rng, detail)))
    if rng.random() < 0.25 + 0.6 * detail:
        text += " " + _place(thing, rng)
    return text


def _two(scene: Scene, rng: random.Random, detail: float) -> str:
    first, second = scene.things
    forward = rng.random() < 0.6
    if not forward:
        first, second = second, first
    exact = BESIDE if scene.relation == "beside" else OVER
    joint = rng.choice(exact[forward]) if rng.random() < 0.5 + 0.45 * detail else rng.choice(VAGUE)
    text = f"{_a(_phrase(first, rng, detail))} {joint} {_a(_phrase(second, rng, detail))}"
    return f"there is {text}" if rng.random() < 0.2 else text


def _three(scene: Scene, rng: random.Random, detail: float) -> str:
    left, right, lone = (_a(_phrase(thing, rng, 0.7 * detail)) for thing in scene.things)
    if rng.random() > 0.4 + 0.5 * detail:
        return f"{left}, {right} and {lone}"
    pair = f"{left} and {right}"
    if rng.random() < 0.6:
        return f"{pair} {rng.choice(OVER[scene.relation == 'over'])} {lone}"
    return f"{lone} {rng.choice(OVER[scene.relation != 'over'])} {pair}"


def reference(scene: Scene, seed: str) -> str:
    """One annotator's caption of a scene, 5 to 30 words, lower case, no full stop."""
    rng = random.Random(seed)
    detail = rng.random()
    text = (_one, _two, _three)[len(scene.things) - 1](scene, rng, detail)
    ground = rng.choice(("on a {} background", "on a {} ground", "with a {} background"))
    if rng.random() < 0.2 + 0.5 * detail:
        text += " " + ground.format(scene.ground)
    elif len(text.split()) < 5:
        text += " " + ground.format("plain")
    return text


def references(scene: Scene, seed: str, count: int) -> list[str]:
    """`count` annotators' captions, each from its own seed."""
    return [reference(scene, f"{seed}/{k}") for k in range(count)]


def web(scene: Scene, seed: str) -> str:
    """Alt-text of uneven quality: half as an annotator writes, half terse; a few say something wrong."""
    rng = random.Random(seed)
    if rng.random() < WEB_ERROR_RATE:
        k = rng.randrange(len(scene.things))
        wrong = rng.choice(({"category": rng.choice(CATEGORIES)}, {"colour": rng.choice(tuple(COLOURS))}))
        things = list(scene.things)
        things[k] = replace(things[k], **wrong)
        scene = replace(scene, things=tuple(things))
    if rng.random() < 0.6:
        return reference(scene, f"{seed}/reference")
    detail = rng.random()
    phrases = [_phrase(thing, rng, detail) for thing in scene.things]
    rng.shuffle(phrases)
    text = rng.choice((", ", " and ", " ")).join(phrases)
    if rng.random() < 0.3:
        text += rng.choice((" icon", " clipart", " picture", " symbol"))
    if rng.random() < 0.4:
        text += f", {scene.ground} background"
    return text
