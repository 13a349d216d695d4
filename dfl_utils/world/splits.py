"""The embedded world on disk: COCO-like and NoCaps-like splits in the real formats.

Every scene of every split is different (things and ground): a draw that repeats an earlier one is passed over and
the next index taken, in the fixed order of `SPLITS`. So no test scene is ever a training scene of these splits.

    python -m dfl_utils.world.splits
"""

import argparse
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from dfl_utils.store.claims import claim
from dfl_utils.world import captions, scenes
from dfl_utils.world.profile import MINI
from dfl_utils.world.scenes import IMAGE_SIZE, IN_DOMAIN, NOVEL, Scene, Thing

WORLD = MINI / "world"
FINGERPRINTS = MINI / "fingerprints.json"  # committed: what the test sets must be, pixel for pixel
MARKER = "split.json"
VERSION = 1  # of what the files hold beside the test sets, which the fingerprints tell
KNOWN, NEW = tuple(IN_DOMAIN), tuple(NOVEL)


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

    def __str__(self) -> str:
        return f"{self.part}-{self.name}"


@dataclass(frozen=True)
class Item:
    """One image to be drawn. `seed` names the draw, `captions` are its references."""

    image_id: int
    seed: str
    split: Split
    scene: Scene
    captions: tuple[str, ...]


SPLITS = (
    Split("coco", "train", 6000, 5, (KNOWN,), 1, test=False),
    Split("coco", "val", 500, 5, (KNOWN,), 6001, test=False),
    Split("coco", "test", 1000, 5, (KNOWN,), 6501, test=True),
    Split("nocaps", "in", 500, 10, (KNOWN,), 0, test=True),
    Split("nocaps", "near", 500, 10, (KNOWN, NEW), 500, test=True),
    Split("nocaps", "out", 500, 10, (NEW,), 1000, test=True),
)
PARTS = ("coco", "nocaps")


@cache
def _draws(splits: Sequence[Split]) -> dict[Split, list[tuple[str, Scene]]]:
    """For each split its `(seed, scene)` pairs, without a repetition within or across splits."""
    seen: set[tuple[tuple[Thing, ...], str]] = set()
    draws: dict[Split, list[tuple[str, Scene]]] = {split: [] for split in splits}
    for split, drawn in draws.items():
        index = 0
        while len(drawn) < split.count:
            seed = f"{split}/{index}"
            scene = scenes.sample(seed, split.pools)
            index += 1
            if (scene.things, scene.ground) not in seen:
                seen.add((scene.things, scene.ground))
                drawn.append((seed, scene))
    return draws


def items(part: str, name: str) -> Iterator[Item]:
    """The items of one split in the order of their image ids, e.g. `items("nocaps", "near")`.

    Raises:
        ValueError: there is no such split.
    """
    split = next((s for s in SPLITS if (s.part, s.name) == (part, name)), None)
    if split is None:
        raise ValueError(f"There is no split {part}-{name}: choose from {', '.join(map(str, SPLITS))}.")
    for k, (seed, scene) in enumerate(_draws(SPLITS)[split]):
        texts = captions.references(scene, seed, split.references)
        yield Item(split.first_id + k, seed, split, scene, tuple(texts))


def held_out() -> frozenset[tuple[tuple[Thing, ...], str]]:
    """`(things, ground)` of every val and test scene, for training data that wants to keep clear of them."""
    draws = _draws(SPLITS)
    return frozenset(
        (scene.things, scene.ground) for split in draws if split.name != "train" for _, scene in draws[split]
    )


def _feed(digest, item: Item, pixels) -> None:
    digest.update(f"{item.image_id}\n".encode() + pixels.tobytes() + "\n".join(item.captions).encode())


def _combine(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def fingerprint(part: str) -> str:
    """SHA-256 over raw pixels and captions of a part's test sets, drawn in memory (about a second).

    PNG bytes are left out: they depend on the zlib that wrote them, the pixels do not.
    """
    digests = {}
    for split in (s for s in SPLITS if s.part == part and s.test):
        digest = hashlib.sha256()
        for item in items(part, split.name):
            _feed(digest, item, scenes.render(item.scene))
        digests[split.name] = digest.hexdigest()
    return _combine(digests)


def _recipe() -> str:
    """What the world is made by: what its test sets must be, its splits and files, drawing library and icon font."""
    made_by = [VERSION, _published(), repr(SPLITS), version("pillow"), version("fontawesomefree")]
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()


def _state(folder: Path) -> dict:
    """What is in `folder` beside the marker; a lost or truncated file shows in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {"recipe": _recipe(), "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _is_complete(folder: Path, train: bool) -> bool:
    """Whether `folder` holds a whole world of this recipe, with the training split if that is asked for."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return (marker["train"] or not train) and _state(folder).items() <= marker.items()
    except (OSError, ValueError, TypeError, KeyError):  # no marker, or one that we did not write
        return False


def _write_part(folder: Path, part: str, train: bool, progress: bool) -> dict:
    """Draw and describe one part into an empty `folder`; returns its marker."""
    splits = [s for s in SPLITS if s.part == part and (train or s.name != "train")]
    digests, chosen = {}, []
    for directory in {"coco": ("train2014", "val2014"), "nocaps": ("images",)}[part]:
        (folder / directory).mkdir(parents=True)
    with tqdm(total=sum(s.count for s in splits), desc=f"{part}-like world", disable=not progress) as bar:
        for split in splits:
            digest = hashlib.sha256()
            for item in items(part, split.name):
                pixels = scenes.render(item.scene)
                Image.fromarray(pixels).save(folder.joinpath(*location(item)))
                _feed(digest, item, pixels)
                chosen.append(item)
                bar.update()
            digests[split.name] = digest.hexdigest()
    if part == "coco":
        dump(folder / "dataset_coco.json", karpathy(chosen))
        for year in ("train2014", "val2014")[not train :]:
            of_year = [item for item in chosen if location(item)[0] == year]
            dump(folder / f"annotations/captions_{year}.json", coco_captions(of_year))
    else:
        dump(folder / "nocaps_val_4500_captions.json", coco_captions(chosen))
    dump(folder / "scenes.json", scene_records(chosen))
    return {
        "part": part, "train": train, "images": len(chosen), "sha256": digests,
        "fingerprint": _combine({s.name: digests[s.name] for s in splits if s.test}), **_state(folder),
    }  # fmt: skip


def _published() -> dict[str, str]:
    return json.loads(FINGERPRINTS.read_text(encoding="utf-8")) if FINGERPRINTS.exists() else {}


def _warn_if_other(part: str, marker: dict) -> None:
    if _published().get(part) != marker["fingerprint"]:
        warnings.warn(
            f"The {part}-like test set drawn here is not the published one of data/mini/fingerprints.json: "
            "install the versions of constraints.txt before comparing numbers with ours.",
            stacklevel=2,
        )


def write(root: Path = WORLD, progress: bool = True, parts: Sequence[str] = PARTS, train: bool = True) -> Path:
    """Write the world under `root`, one folder a part, unless it is there, whole and made by this code.

    A part is written to a sibling folder and renamed at the end, so that a killed run leaves nothing that could be
    taken for whole. Processes that write to the same root wait for each other.

    Args:
        root: folder that will hold `coco/` and `nocaps/`.
        progress: show a bar.
        parts: which of `coco`, `nocaps`.
        train: with the COCO-like training split (two thirds of the work); evaluation does not need it.

    Raises:
        ValueError: an unknown part.
        OSError: `root` cannot be written.
    """
    root = Path(root)
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"There is no part {', '.join(sorted(unknown))} of the embedded world: choose from {PARTS}.")
    if all(_is_complete(root / part, train and part == "coco") for part in parts):
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        with claim(root / "world.claim"):
            for part in parts:
                _replace_part(root, part, train and part == "coco", progress)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"The embedded world cannot be written to {root} ({reason}): name a writable folder.") from error
    return root


def _replace_part(root: Path, part: str, train: bool, progress: bool) -> None:
    if _is_complete(root / part, train):
        return
    partial = root / f"{part}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    marker = _write_part(partial, part, train, progress)
    dump(partial / MARKER, marker)
    shutil.rmtree(root / part, ignore_errors=True)
    partial.rename(root / part)
    _warn_if_other(part, marker)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded world to disk.")
    parser.add_argument("--root", type=Path, default=WORLD)
    parser.add_argument("--no-train", action="store_true", help="leave out the COCO-like training split")
    parser.add_argument("--fingerprint", action="store_true", help="only print the test sets' fingerprints")
    arguments = parser.parse_args()
    if arguments.fingerprint:
        print(json.dumps({part: fingerprint(part) for part in PARTS}, indent=2))
    else:
        print(write(arguments.root, train=not arguments.no_train))


if __name__ == "__main__":
    main()


# --- The JSON formats of COCO captions, Karpathy's splits and NoCaps, filled from the embedded world's items.
#
# Beside them lies `scenes.json`, the planted truth: what is in each picture. The readers never look at it.

if TYPE_CHECKING:  # splits imports this module
    pass


LICENSES = [{"id": 1, "name": "drawn from Font Awesome Free icons (CC BY 4.0)", "url": "data/LICENSES.md"}]


def location(item: "Item") -> tuple[str, str]:
    """Folder and file name, as COCO 2014 (val and test both lie in val2014) and NoCaps name them."""
    if item.split.part == "coco":
        year = "train2014" if item.split.name == "train" else "val2014"
        return year, f"COCO_{year}_{item.image_id:012d}.png"
    return "images", f"{open_images_id(item)}.png"


def open_images_id(item: "Item") -> str:
    """Sixteen hexadecimal digits, as Open Images names its files."""
    return hashlib.sha256(item.seed.encode()).hexdigest()[:16]


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _sentence_ids(item: "Item") -> range:
    first = item.image_id * len(item.captions)
    return range(first, first + len(item.captions))


def coco_captions(items: list["Item"]) -> dict:
    """The captions JSON that COCO and NoCaps share; NoCaps images also carry `domain` and `open_images_id`."""
    images, annotations = [], []
    for item in items:
        image = {"id": item.image_id, "file_name": location(item)[1], "width": IMAGE_SIZE, "height": IMAGE_SIZE}
        if item.split.part == "nocaps":
            image |= {"domain": f"{item.split.name}-domain", "open_images_id": open_images_id(item)}
        images.append(image | {"license": 1})
        annotations += [
            {"id": sentence_id, "image_id": item.image_id, "caption": text}
            for sentence_id, text in zip(_sentence_ids(item), item.captions, strict=True)
        ]
    info = {"description": "the embedded world", "version": "1.0", "url": "data/mini/README.md"}
    return {"info": info, "licenses": LICENSES, "images": images, "annotations": annotations}


def karpathy(items: list["Item"]) -> dict:
    """Karpathy's `dataset_coco.json`: one record an image, with its split, folder and tokenized sentences."""
    images = []
    for imgid, item in enumerate(items):
        sentences = [
            {"raw": text, "tokens": re.findall(r"[a-z-]+", text), "imgid": imgid, "sentid": sentence_id}
            for sentence_id, text in zip(_sentence_ids(item), item.captions, strict=True)
        ]
        filepath, filename = location(item)
        images.append({
            "filepath": filepath, "filename": filename, "cocoid": item.image_id, "imgid": imgid,
            "split": item.split.name, "sentids": [s["sentid"] for s in sentences], "sentences": sentences,
        })  # fmt: skip
    return {"images": images, "dataset": "coco"}


def scene_records(items: list["Item"]) -> dict[int, dict]:
    """Image id -> scene, as `scenes.json` holds it."""
    return {item.image_id: asdict(item.scene) for item in items}


def read_scenes(root: Path, part: str) -> dict[int, Scene]:
    """The planted truth of a written part: image id -> scene. For the referee and the sanity checks only."""
    path = Path(root) / part / "scenes.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: write the embedded world with `python -m dfl_utils.world.splits`.")
    return {
        int(image_id): Scene(tuple(Thing(**thing) for thing in scene["things"]), scene["ground"], scene["relation"])
        for image_id, scene in json.loads(path.read_text(encoding="utf-8")).items()
    }
