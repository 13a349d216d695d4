"""The embedded world on disk: COCO-like and NoCaps-like splits in the real formats.

Every scene of every split is different (things and ground): a draw that repeats an earlier one is passed over and
the next index taken, in the fixed order of `SPLITS`. So no test scene is ever a training scene of these splits.

    python -m dfl_utils.world.splits > data/mini/fingerprints.json
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dfl_utils.store.processes import claim
from dfl_utils.world import scenes
from dfl_utils.world.profile import MINI
from dfl_utils.world.scenes import IMAGE_SIZE, IN_DOMAIN, NOVEL, Scene, Thing

FINGERPRINTS = MINI / "fingerprints.json"  # committed: what the test sets must be, pixel for pixel
MARKER = "split.json"
VERSION = 2  # of what the files hold beside the test sets, which the fingerprints tell
KNOWN, NEW = tuple(IN_DOMAIN), tuple(NOVEL)
LICENSES = [{"id": 1, "name": "drawn from Font Awesome Free icons (CC BY 4.0)", "url": "data/LICENSES.md"}]


@dataclass(frozen=True)
class Split:
    """`count` scenes with `references` captions each; `pools` as in `scenes.sample`; ids start at `first_id`."""

    part: str
    name: str
    count: int
    references: int
    pools: tuple[tuple[str, ...], ...]
    first_id: int
    test: bool


@dataclass(frozen=True)
class Item:
    """One image to be drawn. `seed` names the draw, `captions` are its references."""

    image_id: int
    seed: str
    split: Split
    scene: Scene
    captions: tuple[str, ...]

    @property
    def folder(self) -> str:
        """As COCO 2014 (val and test both lie in val2014) and NoCaps name it."""
        if self.split.part == "nocaps":
            return "images"
        return "train2014" if self.split.name == "train" else "val2014"

    @property
    def open_images_id(self) -> str:
        """Sixteen hexadecimal digits, as Open Images names its files."""
        return hashlib.sha256(self.seed.encode()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        name = self.open_images_id if self.split.part == "nocaps" else f"COCO_{self.folder}_{self.image_id:012d}"
        return f"{name}.png"

    @property
    def sentences(self) -> Iterator[tuple[int, str]]:
        """Id and text of each caption."""
        return enumerate(self.captions, self.image_id * len(self.captions))


SPLITS = (
    Split("coco", "train", 6000, 5, (KNOWN,), 1, test=False),
    Split("coco", "val", 500, 5, (KNOWN,), 6001, test=False),
    Split("coco", "test", 1000, 5, (KNOWN,), 6501, test=True),
    Split("nocaps", "in", 500, 10, (KNOWN,), 0, test=True),
    Split("nocaps", "near", 500, 10, (KNOWN, NEW), 500, test=True),
    Split("nocaps", "out", 500, 10, (NEW,), 1000, test=True),
)
# Scenes on which choices are made, so that the test scenes only judge; they are drawn where they are asked for.
DEVELOPMENT = tuple(
    replace(split, name=f"development-{split.name}", count=1000, first_id=2000 + split.first_id)
    for split in SPLITS
    if split.part == "nocaps"
)
# Scenes of new things to practise on without captions; drawn last, so that no other split changes.
PRACTICE = (Split("nocaps", "practice-out", 600, 10, (NEW,), 6000, test=False),)
PARTS = ("coco", "nocaps")
# Parts that are written where they are asked for: their splits, how many scenes of each, what is drawn before them.
EXTRA = {
    "development": (DEVELOPMENT, 100, SPLITS),
    "practice": (PRACTICE, PRACTICE[0].count, SPLITS + DEVELOPMENT),
}


@cache
def _draws(splits: Sequence[Split]) -> dict[Split, list[tuple[str, Scene]]]:
    """For each split its `(seed, scene)` pairs, without a repetition within or across splits."""
    seen: set[tuple[tuple[Thing, ...], str]] = set()
    draws: dict[Split, list[tuple[str, Scene]]] = {split: [] for split in splits}
    for split, drawn in draws.items():
        seeds = (f"{split.part}-{split.name}/{index}" for index in count())
        while len(drawn) < split.count:
            seed = next(seeds)
            scene = scenes.sample(seed, split.pools)
            if (scene.things, scene.ground) not in seen:
                seen.add((scene.things, scene.ground))
                drawn.append((seed, scene))
    return draws


def items(part: str, name: str) -> Iterator[Item]:
    """The items of one split in the order of their image ids, e.g. `items("nocaps", "near")`."""
    split = {(split.part, split.name): split for split in SPLITS + DEVELOPMENT + PRACTICE}[part, name]
    with_those_before = next((before + extra for extra, _, before in EXTRA.values() if split in extra), SPLITS)
    for k, (seed, scene) in enumerate(_draws(with_those_before)[split]):
        texts = scenes.references(scene, seed, split.references)
        yield Item(split.first_id + k, seed, split, scene, tuple(texts))


def held_out() -> frozenset[tuple[tuple[Thing, ...], str]]:
    """`(things, ground)` of every val and test scene, for training data that wants to keep clear of them."""
    draws = (drawn for split, drawn in _draws(SPLITS).items() if split.name != "train")
    return frozenset((scene.things, scene.ground) for drawn in draws for _, scene in drawn)


def fingerprint(part: str) -> str:
    """SHA-256 over raw pixels (not the PNG's bytes, which depend on zlib) and captions of a part's test sets."""
    digests = {}
    for split in (s for s in SPLITS if s.part == part and s.test):
        digest = hashlib.sha256()
        for item in items(part, split.name):
            pixels = scenes.render(item.scene).tobytes()
            digest.update(f"{item.image_id}\n".encode() + pixels + "\n".join(item.captions).encode())
        digests[split.name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def write(root: Path, parts: Sequence[str] = PARTS) -> None:
    """Write parts of the world, each in its folder of `root`, unless it is there, whole and made by this code.

    A part is written to a sibling folder and renamed at the end, so that a killed run leaves nothing that could be
    taken for whole. Processes that write the same part wait for each other. OSError where it cannot be written.

    Args:
        parts: of `PARTS` and `EXTRA`; those of `EXTRA` have NoCaps' form.
    """
    for folder in (Path(root) / part for part in parts):
        if _is_complete(folder):
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claim(folder.with_suffix(".claim")):
            if not _is_complete(folder):
                _replace_part(folder)


def _published() -> dict[str, str]:
    return json.loads(FINGERPRINTS.read_text(encoding="utf-8")) if FINGERPRINTS.exists() else {}


def _state(folder: Path) -> dict:
    """What made `folder` and what is in it beside the marker; a lost or truncated file shows in it."""
    extra, count, before = EXTRA.get(folder.stem, (None, None, None))
    drawn = (before, extra, count) if extra else SPLITS
    made_by = [VERSION, _published(), repr(drawn), version("pillow"), version("fontawesomefree")]
    recipe = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {"recipe": recipe, "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _is_complete(folder: Path) -> bool:
    try:
        return _state(folder).items() <= json.loads((folder / MARKER).read_text(encoding="utf-8")).items()
    except (OSError, ValueError, AttributeError):  # no marker, or one that we did not write
        return False


def _replace_part(folder: Path) -> None:
    partial, part = folder.with_suffix(".partial"), folder.name
    shutil.rmtree(partial, ignore_errors=True)
    _write_part(partial, part)
    _dump(partial / MARKER, _state(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if part in PARTS and fingerprint(part) != _published().get(part):
        warnings.warn(
            f"The {part}-like test set drawn here is not the published one of data/mini/fingerprints.json: "
            "install the versions of constraints.txt before comparing numbers with ours.",
            stacklevel=2,
        )


def _write_part(folder: Path, part: str) -> None:
    """Draw and describe one part into an empty `folder`."""
    if part in PARTS:
        chosen = [item for split in SPLITS if split.part == part for item in items(part, split.name)]
    else:
        extra, count, _ = EXTRA[part]
        chosen = [item for split in extra for item in islice(items(split.part, split.name), count)]
    for item in tqdm(chosen, desc=f"{part}-like world", disable=None):
        (folder / item.folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes.render(item.scene)).save(folder / item.folder / item.file_name)
    if part == "coco":
        _dump(folder / "dataset_coco.json", karpathy(chosen))
    else:
        _dump(folder / "nocaps_val_4500_captions.json", nocaps(chosen))
    # The planted truth: what is in each picture.
    _dump(folder / "scenes.json", {item.image_id: asdict(item.scene) for item in chosen})


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def nocaps(items: Sequence[Item]) -> dict:
    """NoCaps' JSON: COCO's of captions, whose images also carry `domain` and `open_images_id`."""
    images = [
        {"id": item.image_id, "file_name": item.file_name, "width": IMAGE_SIZE, "height": IMAGE_SIZE, "license": 1,
         "domain": f"{item.split.name.rpartition('-')[2]}-domain", "open_images_id": item.open_images_id}
        for item in items
    ]  # fmt: skip
    sentences = [(item.image_id, *sentence) for item in items for sentence in item.sentences]
    annotations = [{"id": k, "image_id": image_id, "caption": text} for image_id, k, text in sentences]
    info = {"description": "the embedded world", "version": "1.0", "url": "data/mini/README.md"}
    return {"info": info, "licenses": LICENSES, "images": images, "annotations": annotations}


def karpathy(items: Sequence[Item]) -> dict:
    """Karpathy's `dataset_coco.json`: one record an image, with its split, folder and tokenized sentences."""
    images = []
    for imgid, item in enumerate(items):
        sentences = [
            {"raw": text, "tokens": re.findall(r"[a-z-]+", text), "imgid": imgid, "sentid": k}
            for k, text in item.sentences
        ]
        images.append({
            "filepath": item.folder, "filename": item.file_name, "cocoid": item.image_id, "imgid": imgid,
            "split": item.split.name, "sentids": [s["sentid"] for s in sentences], "sentences": sentences,
        })  # fmt: skip
    return {"images": images, "dataset": "coco"}


if __name__ == "__main__":
    print(json.dumps({part: fingerprint(part) for part in PARTS}, indent=2))
