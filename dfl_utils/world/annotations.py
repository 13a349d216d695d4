"""Annotation files in their published schemas: Karpathy's splits, COCO captions (also those of a wheel) and NoCaps."""

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out"}  # NoCaps' word -> ours
NOCAPS = {"in": 648, "near": 2938, "out": 914}  # images of validation by domain (https://nocaps.org)
# Karpathy moved most of COCO's validation images to training and calls them restval; the paper trains on both.
KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
AGAIN = "fetch or write the file again"


@dataclass(frozen=True)
class Example:
    """An image on disk with people's captions of it; `domain` is in, near or out for NoCaps, else None."""

    image_id: int
    path: Path
    references: tuple[str, ...]
    domain: str | None = None


class Caption(NamedTuple):
    """A sentence that somebody wrote of an image, as typed: case, full stops and stray spaces included."""

    image_id: int
    text: str


def coco_captions(split: str = "train2014") -> list[Caption]:
    """Every caption of COCO 2014 (Lin et al., 2014), as they lie in the wheel pycocoevalcap: no image, no download.

    They go by subject, so a sample needs drawing: 414,113 of the 82,783 images of `train2014`, 202,654 of the 40,504
    of `val2014`.
    """
    with zipfile.ZipFile(files("pycocoevalcap") / "spice/spice-1.0.jar") as jar:
        annotations = json.loads(jar.read(f"coco/annotations/captions_{split}.json"))["annotations"]
    return [Caption(int(row["image_id"]), row["caption"]) for row in annotations]


def karpathy(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a split of `dataset_coco.json`; places and errors as in `dfl_utils.world.data`."""
    path = first(root, ("dataset_coco.json", "karpathy/dataset_coco.json", "annotations/dataset_coco.json"), mend)
    content = read_json(path)
    with _published_form(path):
        images = [image for image in content["images"] if image["split"] in KARPATHY[split]]
        folders = {name: first(root, (name, f"images/{name}"), mend) for name in {i["filepath"] for i in images}}
        return [
            Example(int(image["cocoid"]), folders[image["filepath"]] / image["filename"],
                    _clean(sentence["raw"] for sentence in image["sentences"]))
            for image in images
        ]  # fmt: skip


def nocaps(root: Path, split: str, mend: str) -> list[Example]:
    """The images of a domain of NoCaps validation, or of all; places and errors as in `dfl_utils.world.data`."""
    name = "nocaps_val_4500_captions.json"
    path = first(root, (name, f"annotations/{name}"), mend)
    folder = first(root, ("images/val", "images", "val", "validation"), mend)
    content, references, examples = read_json(path), defaultdict(list), []
    with _published_form(path):
        for annotation in content["annotations"]:
            references[annotation["image_id"]].append(annotation["caption"])
        for image in content["images"]:
            domain = DOMAINS.get(image.get("domain"))
            if split in ("overall", domain):
                file = folder / (image.get("file_name") or f"{image['open_images_id']}.jpg")
                examples.append(Example(int(image["id"]), file, _clean(references[image["id"]]), domain))
    return examples


def named_captions(path: Path) -> list[tuple[str, str]]:
    """File name and caption, one pair a caption, of a JSON file in COCO's caption format, Karpathy's or BLIP's.

    Annotations without a caption, as of boxes, are passed over where others have one; a caption may be a list of them.
    """
    content = read_json(path)
    with _published_form(path, NAMED_FORMS):
        if isinstance(content, list):
            return [(one["image"], text) for one in content for text in _listed(one["caption"])]
        images = content["images"]
        if "annotations" in content:
            names = {image["id"]: image["file_name"] for image in images}
            if len(names) < len(images):
                raise ValueError("an image id comes twice")
            written = [one for one in content["annotations"] if "caption" in one] or content["annotations"]
            return [(names[one["image_id"]], text) for one in written for text in _listed(one["caption"])]
        paths = [PurePosixPath(image.get("filepath") or "", image["filename"]).as_posix() for image in images]
        return [(p, text["raw"]) for p, image in zip(paths, images, strict=True) for text in image["sentences"]]


def _listed(caption: str | list[str]) -> list[str]:
    return caption if isinstance(caption, list) else [caption]


NAMED_FORMS = (
    "known are COCO's captions (images, annotations), Karpathy's splits (images with their sentences) and BLIP's list "
    "of image and caption"
)


@contextmanager
def _published_form(path: Path, mend: str = AGAIN) -> Iterator[None]:
    """ValueError with the file's name where a field is missing or of another kind."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not of its published form ({said}); {mend}.") from error


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with single spaces between words and none around them; blank ones are left out."""
    return tuple(filter(None, (" ".join(text.split()) for text in captions)))


def first(root: Path, names: Sequence[str], mend: str) -> Path:
    """The first of `names` that lies in `root`; FileNotFoundError with the mend where none does."""
    found = next((root / name for name in names if (root / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{root / names[0]} is missing; {mend}.")
    return found


def read_json(path: Path) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark; ValueError names it where it is broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # broken JSON, bytes that are not UTF-8, or lists without an end
        raise ValueError(f"{path} is not valid JSON ({error}); {AGAIN}.") from error
