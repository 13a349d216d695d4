"""The JSON formats of COCO captions, Karpathy's splits and NoCaps, filled from the embedded world's items.

Beside them lies `scenes.json`, the planted truth: what is in each picture. The readers never look at it.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dfl_utils.mini.scenes import IMAGE_SIZE, Scene, Thing

if TYPE_CHECKING:  # splits imports this module
    from dfl_utils.mini.splits import Item

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
        raise FileNotFoundError(f"{path} is missing: write the embedded world with `python -m dfl_utils.mini.splits`.")
    return {
        int(image_id): Scene(tuple(Thing(**thing) for thing in scene["things"]), scene["ground"], scene["relation"])
        for image_id, scene in json.loads(path.read_text(encoding="utf-8")).items()
    }
