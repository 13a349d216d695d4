"""Readers of COCO (Karpathy's splits) and NoCaps in their published layouts, for both profiles.

Expected under a profile's `data_root` (the first that exists of each line):

    coco/dataset_coco.json, coco/karpathy/..., coco/annotations/...     Karpathy's splits
    coco/<filepath>/<filename>, coco/images/<filepath>/<filename>       COCO 2014 images
    nocaps/nocaps_val_4500_captions.json, nocaps/annotations/...        captions, as a rule with domains
    nocaps/nocaps_val_image_info.json, nocaps/annotations/...           domains, if the captions lack them
    nocaps/images/val/, nocaps/images/, nocaps/val/, nocaps/validation/ images
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}  # NoCaps' word -> ours
SPLITS = {"coco": ("train", "val", "test"), "nocaps": (*DOMAINS.values(), "overall")}
# Karpathy moved most of COCO's validation images to training and calls them restval; the paper trains on both.
KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class DataProfile(Protocol):
    """What the readers ask of a `dfl_utils.profile.Profile`."""

    data_root: Path
    data_writer: str | None
    data_command: str


@dataclass(frozen=True)
class Example:
    """An image on disk with people's captions of it; `domain` is in, near or out for NoCaps, else None."""

    image_id: int
    path: Path
    references: tuple[str, ...]
    domain: str | None = None


def ensure(profile: DataProfile) -> None:
    """Write the profile's data if it is one that can be written; it is left alone when it is there and whole.

    Raises:
        FileNotFoundError: the data must be brought by the reader and is not there.
    """
    if profile.data_writer:
        resolve_name(profile.data_writer)(profile.data_root)
    elif not Path(profile.data_root).is_dir():
        raise FileNotFoundError(f"{profile.data_root} is missing; to get the data: {profile.data_command}.")


def load(profile: DataProfile, dataset: str, split: str) -> list[Example]:
    """All examples of a split, in the order of the image ids.

    Args:
        profile: says where the data lie.
        dataset: `coco` or `nocaps`.
        split: `train`, `val` or `test` of Karpathy's COCO; `in`, `near`, `out` or `overall` of NoCaps validation.

    Raises:
        ValueError: an unknown dataset or split, a broken file, an image without references or domain.
        FileNotFoundError: an annotation file, an image folder or an image is not there.
    """
    if split not in SPLITS.get(dataset, ()):
        known = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in SPLITS.items())
        raise ValueError(f"There is no split {split!r} of dataset {dataset!r}: choose from {known}.")
    root = Path(profile.data_root) / dataset
    mend = f"to get the data: {profile.data_command}"
    found = _coco(root, split, mend) if dataset == "coco" else _nocaps(root, split, mend)
    if not found:
        raise ValueError(f"{root} has no images of split {split!r}; {mend}.")
    lost = [example.path for example in found if not example.path.exists()]
    if lost:
        raise FileNotFoundError(f"{lost[0]} is missing ({len(lost)} of {len(found)} images are); {mend}.")
    return sorted(found, key=lambda example: example.image_id)


def _coco(root: Path, split: str, mend: str) -> list[Example]:
    places = ("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json")
    path = _first(root, places, mend)
    examples = []
    images = None
    for image in _field(read_json(path), "images", path):
        if _field(image, "split", path) not in KARPATHY[split]:
            continue
        image_id, filepath = int(_field(image, "cocoid", path)), _field(image, "filepath", path)
        images = images or _first(root, (filepath, f"images/{filepath}"), mend).parent
        references = [_field(sentence, "raw", path) for sentence in _field(image, "sentences", path)]
        location = images / filepath / _field(image, "filename", path)
        examples.append(Example(image_id, location, _clean(references, image_id, path)))
    return examples


def _nocaps(root: Path, split: str, mend: str) -> list[Example]:
    name = "nocaps_val_4500_captions.json"
    path = _first(root, (name, f"annotations/{name}"), mend)
    images = _first(root, ("images/val", "images", "val", "validation"), mend)
    content = read_json(path)
    references = defaultdict(list)
    for annotation in _field(content, "annotations", path):
        references[_field(annotation, "image_id", path)].append(_field(annotation, "caption", path))
    records = _field(content, "images", path)
    domains = _domains(root, path, records)
    examples = []
    for image in records:
        image_id = _field(image, "id", path)
        if split not in ("overall", domains[image_id]):
            continue
        file_name = image.get("file_name") or f"{_field(image, 'open_images_id', path)}.jpg"
        captions = _clean(references[image_id], image_id, path)
        examples.append(Example(int(image_id), images / file_name, captions, domains[image_id]))
    return examples


def _domains(root: Path, path: Path, records: list[dict]) -> dict[int, str]:
    """Image id -> in, near or out; from the captions file or, where that lacks it, from the image info beside it."""
    wanted = {_field(image, "id", path) for image in records}
    if not all("domain" in image for image in records):
        name = "nocaps_val_image_info.json"
        infos = [root / name, root / "annotations" / name]
        path = next((info for info in infos if info.exists()), path)
        records = records if path not in infos else _field(read_json(path), "images", path)
    domains = {_field(image, "id", path): _field(image, "domain", path) for image in records}
    if lost := wanted - domains.keys():
        raise ValueError(f"{path} has no domain for image {min(lost)}; fetch the file again.")
    unknown = set(domains.values()) - DOMAINS.keys()
    if unknown:
        raise ValueError(f"{path} has an unknown domain {sorted(map(str, unknown))[0]!r}; it should be one of "
                         f"{', '.join(DOMAINS)}.")  # fmt: skip
    return {image_id: DOMAINS[domain] for image_id, domain in domains.items()}


def _clean(references: Iterable[str], image_id: int, path: Path) -> tuple[str, ...]:
    kept = tuple(text.strip() for text in references if text.strip())
    if not kept:
        raise ValueError(f"{path} has no reference caption for image {image_id}; fetch or write the file again.")
    return kept


def _first(root: Path, names: Sequence[str], mend: str) -> Path:
    found = next((root / name for name in names if (root / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{root / names[0]} is missing; {mend}.")
    return found


def _field(record: Any, name: str, path: Path) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise ValueError(
            f"{path} lacks the field {name!r} in {json.dumps(record)[:80]}; fetch or write the file again."
        )
    return record[name]


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: it is not valid JSON (cut off, say).
        FileNotFoundError: it is not there.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); fetch or write the file again.") from error


def read_bytes(path: Path) -> bytes:
    """The raw bytes of an image file.

    Raises:
        FileNotFoundError: it is not there.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; fetch or write the data again (`dfl data`).") from None


def read_image(path: Path) -> Image.Image:
    """The image in RGB, fully decoded.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it is truncated or no image.
    """
    encoded = io.BytesIO(read_bytes(path))
    try:
        with Image.open(encoded) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for some broken PNG chunks
        reason = "Pillow knows no such format" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"{path} is truncated or not an image ({reason}); fetch it or run `dfl data` again.") from error


def subset(examples: Sequence[Example], num_images: int, seed: int) -> list[Example]:
    """Draw examples without looking at them: seeded, in proportion to the domains, each draw a prefix of a larger one.

    The order depends on the seed and the image ids alone, not on the order of `examples`.

    Args:
        examples: what to draw from.
        num_images: how many, 1 to `len(examples)`.
        seed: another seed, another draw.

    Raises:
        ValueError: `num_images` is out of range.
    """
    if not 1 <= num_images <= len(examples):
        raise ValueError(f"num_images is {num_images}: choose 1 to {len(examples)}, the images that there are.")
    shuffled = sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.image_id}".encode()).digest())
    sizes, drawn, place = Counter(e.domain for e in examples), Counter(), {}
    for example in shuffled:  # the k-th of a domain's n stands at (k + 1/2) / n of the whole order
        place[example] = (drawn[example.domain] + 0.5) / sizes[example.domain]
        drawn[example.domain] += 1
    return sorted(shuffled, key=place.__getitem__)[:num_images]
