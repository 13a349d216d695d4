"""Annotation files in their published schemas, Karpathy's splits, COCO captions and NoCaps, and what they get wrong."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}  # NoCaps' word -> ours
# Karpathy moved most of COCO's validation images to training and calls them restval; the paper trains on both.
KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
IMAGE_INFO = "nocaps_val_image_info.json"
AGAIN = "fetch or write the file again"


@dataclass(frozen=True)
class Example:
    """An image on disk with people's captions of it; `domain` is in, near or out for NoCaps, else None."""

    image_id: int
    path: Path
    references: tuple[str, ...]
    domain: str | None = None


def karpathy(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a split of `dataset_coco.json`; see `dfl_utils.world.data` for the places.

    An image's id is its `cocoid`; where one lacks that, as in Karpathy's Flickr files, all take the number at the end
    of their file names, or else `imgid`: so no two sorts of numbers mix in one file.

    Raises:
        ValueError, FileNotFoundError: as `dfl_utils.world.data.load`.
    """
    places = ("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json")
    path = first(root, places, mend)
    state = path.stat()
    examples, folders = [], {}
    for image_id, own, image in _karpathy_images(path, state.st_size, state.st_mtime_ns):
        if own != split:
            continue
        filepath = image.get("filepath", "")
        if filepath not in folders:
            folders[filepath] = first(root, (filepath, f"images/{filepath}") if filepath else ("images", "."), mend)
        location = folders[filepath] / field(image, "filename", path)
        examples.append(Example(image_id, location, clean(_sentences(image, path), image_id, path)))
    return joined(examples, path)


@lru_cache(maxsize=1)  # a chapter asks for two or three splits of one file
def _karpathy_images(path: Path, size: int, changed: int) -> list[tuple[int, str, dict]]:
    """Id, split and record of every image, without the tokens; read once while the file is as large and as old."""
    images = field(read_json(path), "images", path)
    found, split_of = [], {}
    for image_id, image in zip(_karpathy_ids(images, path), images, strict=True):
        own = field(image, "split", path)
        own = next((name for name, parts in KARPATHY.items() if own in parts), own)
        if split_of.setdefault(image_id, own) != own:
            raise ValueError(f"{path} has image {image_id} in {split_of[image_id]} and in {own}; {AGAIN}.")
        sentences = image.get("sentences")
        if isinstance(sentences, list) and all(isinstance(one, dict) and "raw" in one for one in sentences):
            image = image | {"sentences": [{"raw": one["raw"]} for one in sentences]}
        found.append((image_id, own, image))
    return found


def nocaps(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a domain of NoCaps validation, or of all; see `dfl_utils.world.data` for the places.

    Raises:
        ValueError, FileNotFoundError: as `dfl_utils.world.data.load`.
    """
    name = "nocaps_val_4500_captions.json"
    path = first(root, (name, f"annotations/{name}"), mend)
    images = first(root, ("images/val", "images", "val", "validation"), mend)
    content = read_json(path)
    references = captions_of(content, path)
    records = field(content, "images", path)
    domains = _domains(root, path, records, split)
    examples = []
    for image in records:
        image_id = number(image, "id", path)
        if split not in ("overall", domains.get(image_id)):
            continue
        captions = clean(references[image_id], image_id, path)
        examples.append(Example(image_id, images / _nocaps_name(image, path), captions, domains.get(image_id)))
    return joined(examples, path)


def captions_of(content: Any, path: Path) -> dict[int, list[str]]:
    """Image id -> captions of a file in COCO's caption format; an annotation that comes twice counts once."""
    found, seen = defaultdict(list), set()
    for annotation in field(content, "annotations", path):
        image_id, caption = number(annotation, "image_id", path), field(annotation, "caption", path)
        mark = (annotation.get("id"), image_id, caption)
        if mark[0] is None or mark not in seen:
            found[image_id].append(caption)
        seen.add(mark)
    return found


def named_captions(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption, one pair a caption, of a JSON file in COCO's caption format or Karpathy's.

    Raises:
        ValueError: neither of the two, a caption of an image that the file does not list.
    """
    content = read_json(path)
    records = field(content, "images", path)
    if "annotations" not in content:
        for image in records:
            name = PurePosixPath(image.get("filepath", ""), field(image, "filename", path)).as_posix()
            yield from ((name, text) for text in _sentences(image, path))
        return
    names = {number(image, "id", path): field(image, "file_name", path) for image in records}
    for image_id, texts in captions_of(content, path).items():
        if image_id not in names:
            raise ValueError(f"{path} has a caption of image {image_id}, which its images do not list; {AGAIN}.")
        yield from ((names[image_id], text) for text in texts)


def joined(examples: Iterable[Example], path: Path) -> list[Example]:
    """One example an image: a record that comes twice adds only the captions that the first did not have.

    Raises:
        ValueError: two files of one id.
    """
    found: dict[int, Example] = {}
    for example in examples:
        before = found.setdefault(example.image_id, example)
        if (before.path, before.domain) != (example.path, example.domain):
            raise ValueError(
                f"{path} gives the id {example.image_id} to {before.path.name} and to {example.path.name}; {AGAIN}."
            )
        new = tuple(text for text in example.references if text not in before.references)
        if before is not example and new:
            found[example.image_id] = replace(before, references=before.references + new)
    return list(found.values())


def clean(references: Iterable[str], image_id: int, path: Path) -> tuple[str, ...]:
    """Captions with single spaces between words and none around them; blank ones are left out.

    Raises:
        ValueError: one that is no text, or none left.
    """
    texts = list(references)
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{path} has {strange[0]!r} for a caption of image {image_id}; give text.")
    kept = tuple(filter(None, (" ".join(text.split()) for text in texts)))
    if not kept:
        raise ValueError(f"{path} has no reference caption for image {image_id}; {AGAIN}.")
    return kept


def _sentences(image: dict, path: Path) -> list[str]:
    return [field(sentence, "raw", path) for sentence in field(image, "sentences", path)]


def _karpathy_ids(images: Sequence[dict], path: Path) -> list[int]:
    stems = [PurePosixPath(str(field(image, "filename", path))).stem for image in images]
    numbers = [re.search(r"(?:^|[_-])(\d+)$", stem) for stem in stems]
    for values in (
        [image.get("cocoid") for image in images],
        [found and found[1] for found in numbers],
        [image.get("imgid") for image in images],
    ):
        if None not in values:
            return [_whole(value, "an image id", path) for value in values]
    raise ValueError(f"{path} has images without cocoid, a number at the end of the file name and imgid; {AGAIN}.")


def _nocaps_name(image: dict, path: Path) -> str:
    """File name of a NoCaps image: given, or made from its Open Images id, or the last part of its address."""
    if image.get("file_name"):
        return image["file_name"]
    if not image.get("open_images_id") and image.get("coco_url"):
        return PurePosixPath(urlparse(image["coco_url"]).path).name
    return f"{field(image, 'open_images_id', path)}.jpg"


def _domains(root: Path, path: Path, records: list[dict], split: str) -> dict[int, str]:
    """Image id -> in, near or out; from the captions file or, where that lacks it, from the image info beside it.

    Empty where neither has any domain and `split` is overall.
    """
    wanted = {number(image, "id", path) for image in records}
    if not all("domain" in image for image in records):
        infos = [root / IMAGE_INFO, root / "annotations" / IMAGE_INFO]
        info = next((info for info in infos if info.exists()), None)
        if info:
            path, records = info, field(read_json(info), "images", info)
        if not any("domain" in image for image in records):
            if split == "overall":
                return {}
            raise ValueError(
                f"{path} says of no image which domain it is of: put {IMAGE_INFO} beside it, or take the split overall."
            )
    domains = {number(image, "id", path): field(image, "domain", path) for image in records}
    if lost := wanted - domains.keys():
        raise ValueError(f"{path} has no domain for image {min(lost)}; fetch the file again.")
    unknown = set(domains.values()) - DOMAINS.keys()
    if unknown:
        raise ValueError(f"{path} has an unknown domain {sorted(map(str, unknown))[0]!r}; it should be one of "
                         f"{', '.join(DOMAINS)}.")  # fmt: skip
    return {image_id: DOMAINS[domain] for image_id, domain in domains.items()}


def first(root: Path, names: Sequence[str], mend: str) -> Path:
    """The first of `names` that lies in `root`; FileNotFoundError with the mend where none does."""
    found = next((root / name for name in names if (root / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{root / names[0]} is missing; {mend}.")
    return found


def field(record: Any, name: str, path: Path) -> Any:
    """A field of a record; ValueError names it and the file where it is not there."""
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"{path} lacks the field {name!r} in {json.dumps(record)[:80]}; {AGAIN}.")
    return record[name]


def number(record: Any, name: str, path: Path) -> int:
    """A field that holds a whole number, also one that is written as a string."""
    return _whole(field(record, name, path), name, path)


def _whole(value: Any, name: str, path: Path) -> int:
    if isinstance(value, int | str) and str(value).strip().isdecimal():
        return int(value)
    raise ValueError(f"{path} has {value!r} for {name}, which should be a whole number; {AGAIN}.")


def read_json(path: Path) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not valid JSON (cut off, say).
        FileNotFoundError: it is not there.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); {AGAIN}.") from error
