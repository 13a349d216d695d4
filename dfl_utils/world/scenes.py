"""Scenes of the embedded world, and their captions: one to three coloured icons on a plain ground, 64 x 64 pixels.

A scene is a pure function of `(split, index)`: the same pair gives the same pixels on every machine
with the pinned Pillow and icon font. Objects stand on an 8-pixel grid, so that one cell of the scene is
one latent of the autoencoder (8x down) and one patch of the small vision transformers.
"""

import json
import random
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 64  # pixels a side
CELL = 8  # pixels; grid pitch
GRID = IMAGE_SIZE // CELL

# noun -> icon of the font. The first 32 are in-domain, the last 16 novel (as in NoCaps: unseen in COCO).
IN_DOMAIN = {
    "dog": "dog", "cat": "cat", "horse": "horse", "fish": "fish", "bird": "dove", "cow": "cow",
    "apple": "apple-whole", "pizza": "pizza-slice", "burger": "burger", "cup": "mug-saucer",
    "carrot": "carrot", "cookie": "cookie-bite", "car": "car-side", "bus": "bus", "train": "train",
    "plane": "plane", "bicycle": "bicycle", "boat": "sailboat", "chair": "chair", "bed": "bed",
    "book": "book", "clock": "clock", "umbrella": "umbrella", "scissors": "scissors", "tree": "tree",
    "star": "star", "moon": "moon", "cloud": "cloud", "house": "house", "guitar": "guitar",
    "camera": "camera", "shirt": "shirt",
}  # fmt: skip
NOVEL = {
    "frog": "frog", "spider": "spider", "hippo": "hippo", "cheese": "cheese", "lemon": "lemon",
    "rocket": "rocket", "tractor": "tractor", "helicopter": "helicopter", "key": "key", "bell": "bell",
    "hammer": "hammer", "leaf": "leaf", "snowflake": "snowflake", "crown": "crown", "anchor": "anchor",
    "ghost": "ghost",
}  # fmt: skip
ICONS = {**IN_DOMAIN, **NOVEL}
CATEGORIES = tuple(ICONS)

COLOURS = {
    "red": (215, 38, 38), "orange": (245, 130, 20), "yellow": (242, 200, 10), "green": (30, 150, 60),
    "blue": (30, 90, 215), "purple": (140, 55, 180), "brown": (120, 72, 35), "black": (25, 25, 25),
}  # fmt: skip
GROUNDS = {"white": (255, 255, 255), "gray": (200, 200, 200), "pink": (252, 208, 220), "cyan": (190, 236, 240)}
SIZES = {"small": 3, "large": 4}  # cells a side: 24 and 32 pixels


@dataclass(frozen=True)
class Thing:
    """One object: its names, and the top-left cell `(x, y)` of its square box."""

    category: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def cells(self) -> int:
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """One to three things on a ground. `relation` is `beside` (first left of second), `over`, or `None`."""

    things: tuple[Thing, ...]
    ground: str
    relation: str | None


def sample(seed: str, categories: tuple[tuple[str, ...], ...] = (CATEGORIES,)) -> Scene:
    """Draw one scene from the seed string.

    Args:
        seed: any string; the same string gives the same scene.
        categories: pools of nouns. Object k is drawn from pool `k % len(categories)`; with two pools (a
            near-domain scene) at least two objects are drawn, and their order is shuffled.
    """
    rng = random.Random(seed)
    # A scene of two pools must hold both, so its single-object share goes to two objects.
    count = rng.choices((1, 2, 3), (0.40, 0.48, 0.12) if len(categories) == 1 else (0, 0.8, 0.2))[0]
    nouns: list[str] = []
    for k in range(count):
        nouns.append(rng.choice([c for c in categories[k % len(categories)] if c not in nouns]))
    rng.shuffle(nouns)
    colours = [rng.choice(tuple(COLOURS)) for _ in nouns]
    ground = rng.choice(tuple(GROUNDS))
    if count == 1:
        size = rng.choice(tuple(SIZES))
        free = GRID - SIZES[size]
        return Scene((Thing(nouns[0], colours[0], size, rng.randint(0, free), rng.randint(0, free)),), ground, None)
    if count == 2:
        relation = rng.choice(("beside", "over"))
        across = rng.randint(0, GRID - 4)  # where the shared row (or column) starts
        things = []
        for k, (noun, colour) in enumerate(zip(nouns, colours, strict=True)):
            size = rng.choice(tuple(SIZES))
            slack = 4 - SIZES[size]
            along = 4 * k + rng.randint(0, slack)  # each thing keeps to its own half
            level = across + slack  # small things stand on the same line as large ones
            things.append(Thing(noun, colour, size, *((along, level) if relation == "beside" else (level, along))))
        return Scene(tuple(things), ground, relation)
    # Three small things in three quadrants: first a row of two (left, right), then one above or below it.
    relation = rng.choice(("over", "under"))
    row, lone = (0, 4) if relation == "over" else (4, 0)
    corners = [(0, row), (4, row), (rng.choice((0, 4)), lone)]
    things = tuple(
        Thing(noun, colour, "small", x + rng.randint(0, 1), y + rng.randint(0, 1))
        for noun, colour, (x, y) in zip(nouns, colours, corners, strict=True)
    )
    return Scene(things, ground, relation)


@cache
def read(path: Path) -> dict[int, Scene]:
    """The scenes of a file that `splits` wrote, by image id."""
    written = json.loads(path.read_text(encoding="utf-8"))
    return {
        int(k): Scene(**scene | {"things": tuple(Thing(**thing) for thing in scene["things"])})
        for k, scene in written.items()
    }


@cache
def _icon_font(points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        str(files("fontawesomefree") / "static/fontawesomefree/webfonts/fa-solid-900.ttf"), points
    )


@cache
def _codepoints() -> dict[str, str]:
    metadata = files("fontawesomefree") / "static/fontawesomefree/metadata/icons.json"
    icons = json.loads(metadata.read_text(encoding="utf-8"))
    return {name: chr(int(icons[name]["unicode"], 16)) for name in ICONS.values()}


@cache
def mask(category: str, cells: int) -> np.ndarray:
    """Coverage of an icon in its box, `(8 cells, 8 cells, 1)` float32 in [0, 1], one pixel of margin."""
    side, scale = cells * CELL, 4
    glyph, font = _codepoints()[ICONS[category]], _icon_font(side * scale)
    left, top, right, bottom = font.getbbox(glyph)
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), glyph, fill=255, font=font)
    inner = side - 2
    shrink = inner / max(canvas.size)
    icon = canvas.resize([max(1, round(s * shrink)) for s in canvas.size], Image.Resampling.BOX)
    box = Image.new("L", (side, side))
    box.paste(icon, ((side - icon.width) // 2, (side - icon.height) // 2))
    return (np.asarray(box, np.float32) / 255)[..., None]


def render(scene: Scene) -> np.ndarray:
    """Pixels of a scene: `(64, 64, 3)` uint8."""
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    image[:] = GROUNDS[scene.ground]
    for thing in scene.things:
        alpha = mask(thing.category, thing.cells)
        x, y, side = thing.x * CELL, thing.y * CELL, len(alpha)
        patch = image[y : y + side, x : x + side]
        patch += alpha * (np.asarray(COLOURS[thing.colour], np.float32) - patch)
    return (image + 0.5).astype(np.uint8)


# --- Captions: a small grammar with synonyms and varying detail, in two registers: `reference` (what a careful
# annotator writes, at least five words) and `web_caption` (uneven alt-text: short, reordered, now and then wrong). A
# caption is a pure function of scene and seed.

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


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def thirds(thing: Thing) -> tuple[str, str]:
    """In which thirds of the image its centre lies: left, right or "", and top, bottom or ""."""
    along = [("left", "", "right"), ("top", "", "bottom")]
    return tuple(names[min(2, int(3 * (corner + thing.cells / 2) / GRID))]
                 for names, corner in zip(along, (thing.x, thing.y), strict=True))  # fmt: skip


def _place(thing: Thing, rng: random.Random) -> str:
    """Where a lone thing stands."""
    x, y = thirds(thing)
    if not x and not y:
        return rng.choice(("in the middle", "in the center"))
    if x and y:
        return rng.choice((f"in the {y} {x} corner", f"at the {y} {x}"))
    return rng.choice((f"on the {x} side", f"at the {x}")) if x else f"at the {y}"


def _one(scene: Scene, rng: random.Random, detail: float) -> str:
    (thing,) = scene.things
    text = rng.choice(("{}", "{}", "there is {}", "this is {}", "we see {}")).format(
        with_article(_phrase(thing, rng, detail))
    )
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
    text = f"{with_article(_phrase(first, rng, detail))} {joint} {with_article(_phrase(second, rng, detail))}"
    return f"there is {text}" if rng.random() < 0.2 else text


def _three(scene: Scene, rng: random.Random, detail: float) -> str:
    left, right, lone = (with_article(_phrase(thing, rng, 0.7 * detail)) for thing in scene.things)
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


def web_caption(scene: Scene, seed: str) -> str:
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
