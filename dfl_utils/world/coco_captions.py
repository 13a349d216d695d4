"""All captions of COCO 2014, as they lie in the wheel pycocoevalcap: no image, no download (Lin et al., 2014)."""

import json
import zipfile
from importlib.resources import files
from typing import NamedTuple

JAR = "spice/spice-1.0.jar"


class Caption(NamedTuple):
    """A sentence that somebody wrote of an image, as typed: case, full stops and stray spaces included."""

    image_id: int
    text: str


def load(split: str = "train2014") -> list[Caption]:
    """Every caption of a split in the file's order, which goes by subject: a sample needs drawing.

    Args:
        split: `train2014` (414,113 captions of 82,783 images) or `val2014` (202,654 of 40,504).

    Raises:
        OSError: the package's archive is missing or broken.
    """
    path = files("pycocoevalcap") / JAR
    try:
        with zipfile.ZipFile(path) as archive:
            annotations = json.loads(archive.read(f"coco/annotations/captions_{split}.json"))["annotations"]
    except (OSError, zipfile.BadZipFile) as error:
        raise OSError(f"{path} does not hold COCO's captions ({error}): install pycocoevalcap 1.2 again.") from error
    return [Caption(int(row["image_id"]), row["caption"]) for row in annotations]
