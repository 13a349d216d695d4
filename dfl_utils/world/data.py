"""The examples of a run: COCO (Karpathy's splits) and NoCaps in their published layouts, or any folder of images.

Expected under a profile's root of the data set (the first that exists of each line):

    coco    dataset_coco.json, karpathy/..., annotations/...      Karpathy's splits
            <filepath>/<filename>, images/<filepath>/<filename>   COCO 2014 images
    nocaps  nocaps_val_4500_captions.json, annotations/...        captions and domains
            images/val/, images/, val/, validation/               images

Images and captions of one's own are read by `folder`.
"""

import contextlib
import hashlib
import io
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dfl_utils.world import annotations
from dfl_utils.world.annotations import DOMAINS, Example
from dfl_utils.world.annotations import folder as folder  # it belongs to the interface
from dfl_utils.world.profile import PROFILES, Profile
from dfl_utils.world.scenes import Scene
from dfl_utils.world.scenes import read as scenes_of

SPLITS = {"coco": ("train", "val", "test"), "nocaps": (*DOMAINS.values(), "overall")}
SCENES = "scenes.json"  # beside the annotations of the drawn world: image id -> what is in the picture


def ensure(profile: Profile) -> None:
    """Write the profile's data unless it is there and whole; FileNotFoundError where the reader must bring it."""
    if profile.data_writer:
        resolve_name(profile.data_writer)(profile.data_root)
    elif not any(Path(profile.dataset_root(dataset)).is_dir() for dataset in SPLITS):
        raise FileNotFoundError(f"{profile.data_root} is missing; to get the data: {profile.data_command}.")


def load(profile: Profile, dataset: str, split: str) -> list[Example]:
    """All examples of a split of `SPLITS` (Karpathy's of COCO, domains of NoCaps validation), by their image ids.

    Raises:
        ValueError: an unknown dataset or split, a broken file, an image without references or that comes twice.
        FileNotFoundError: an annotation file, an image folder or an image is not there.
    """
    if split not in SPLITS.get(dataset, ()):
        known = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in SPLITS.items())
        raise ValueError(f"There is no split {split!r} of dataset {dataset!r}: choose from {known}.")
    root = Path(profile.dataset_root(dataset))
    mend = f"to get the data: {profile.data_command}"
    read = annotations.karpathy if dataset == "coco" else annotations.nocaps
    examples = sorted(read(root, split, mend), key=lambda example: example.image_id)
    if not examples:
        raise ValueError(f"{root} has no images of split {split!r}; {mend}.")
    ids = [example.image_id for example in examples if example.references]
    if len(set(ids)) < len(examples):
        raise ValueError(f"{root} has an image of split {split!r} without references, or twice; {annotations.AGAIN}.")
    lost = [example.path for example in examples if not example.path.exists()]
    if lost:
        raise FileNotFoundError(f"{lost[0]} is missing ({len(lost)} of {len(examples)} images are); {mend}.")
    return examples


def development(profile: Profile) -> list[Example]:
    """Images on which choices are made, so that test images only judge, by their image ids; errors as of `load`.

    Of the drawn world they are NoCaps-like scenes of their own; elsewhere COCO's validation split.
    """
    return _extra(profile, "development", "val")


def practice(profile: Profile) -> list[Example]:
    """Images to learn from without their captions (they have some, to look afterwards), by their image ids.

    Of the drawn world they are scenes of things that COCO-like captions never name; elsewhere COCO's test split, which
    is of things that they do name. Errors as of `load`.
    """
    return _extra(profile, "practice", "test")


def _extra(profile: Profile, part: str, elsewhere: str) -> list[Example]:
    """A part of the drawn world, written where it is first asked for; a split of COCO where the data are not drawn."""
    if not profile.data_writer:
        return load(profile, "coco", elsewhere)
    from dfl_utils.world import splits  # it draws, and most runs ask for nothing drawn

    splits.write(profile.data_root, [part])
    root, mend = Path(profile.dataset_root(part)), f"to get the data: {profile.data_command}"
    return sorted(annotations.nocaps(root, "overall", mend), key=lambda example: example.image_id)


def subset(examples: Sequence[Example], num_images: int, seed: int) -> list[Example]:
    """Draw examples by seed and image ids alone, in proportion to the domains, each draw a prefix of a larger one.

    ValueError where `num_images` is not in 1 to `len(examples)`.
    """
    if not 1 <= num_images <= len(examples):
        raise ValueError(f"num_images is {num_images}: choose 1 to {len(examples)}, the images that there are.")
    shuffled = sorted(examples, key=lambda e: hashlib.sha256(f"{seed}/{e.image_id}".encode()).digest())
    sizes, drawn, place = Counter(e.domain for e in examples), Counter(), {}
    for example in shuffled:  # the k-th of a domain's n stands at (k + 1/2) / n of the whole order
        place[example] = (drawn[example.domain] + 0.5) / sizes[example.domain]
        drawn[example.domain] += 1
    return sorted(shuffled, key=place.__getitem__)[:num_images]


def has_scenes(profile: Profile) -> bool:
    """Whether it is known what is in the pictures, as it is of the drawn world."""
    return all((Path(profile.dataset_root(dataset)) / SCENES).is_file() for dataset in SPLITS)


def scenes(profile: Profile, examples: Sequence[Example]) -> list[Scene]:
    """What is in each image of the drawn world; ValueError for one that is of no such data set."""
    roots = [Path(profile.dataset_root(dataset)) for dataset in (*SPLITS, "development", "practice")]
    known = {root: scenes_of(root / SCENES) for root in roots if (root / SCENES).is_file()}
    drawn = [
        next((known[root].get(e.image_id) for root in known if e.path.is_relative_to(root)), None) for e in examples
    ]
    if None in drawn:
        raise ValueError(f"What is in image {examples[drawn.index(None)].image_id} is not known: truth is a score of "
                         "the drawn world (profile mini) alone; leave it out.")  # fmt: skip
    return drawn


def by_domain(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Which images are of each domain of NoCaps that they hold, and of `overall`: `(images,)` bool."""
    domains = np.array([example.domain or "" for example in examples])
    parts = {name: domains == name for name in DOMAINS.values() if name in domains}
    return parts | {"overall": np.full(len(domains), True)}


def nocaps_weights(examples: Sequence[Example]) -> np.ndarray:
    """How much each image of NoCaps counts where its domains are to have the shares of the whole set, `(images,)`.

    648, 2,938 and 914 of 4,500 are in, near and out of the domain; a subset of equal parts has other shares. The mean
    of the weights is 1. ValueError where a domain is missing.
    """
    counts = Counter(example.domain for example in examples)
    if set(counts) != set(annotations.NOCAPS):
        raise ValueError(f"NoCaps' weights need images of {', '.join(annotations.NOCAPS)}: give all three domains.")
    whole = sum(annotations.NOCAPS.values()) / len(examples)
    return np.array([annotations.NOCAPS[e.domain] / counts[e.domain] / whole for e in examples])


# --- Image files as people saw them: upright, in RGB, transparency on white, sixteen bits brought to eight.

BROKEN_EXIF = (SyntaxError, ValueError, KeyError, TypeError, EOFError, OSError, struct.error)


def read_image(path: Path) -> Image.Image:
    """The image in RGB, fully decoded; of an animation the first frame.

    OSError where it is not there, truncated or no image, too large, or of 32-bit samples.
    """
    encoded = io.BytesIO(read_bytes(path))
    try:
        with Image.open(encoded) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNG chunks.
        reason = "Pillow knows no such format" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"{path} is truncated or not an image ({reason}): {_mend(path)}.") from error


def in_memory(image: Image.Image) -> Image.Image:
    """A Pillow image in RGB; ValueError where it was opened of a file that is cut off, or has samples of 32 bits."""
    try:
        return to_rgb(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"A Pillow image of {image.size} pixels cannot be read ({error}): give another.") from error


def read_bytes(path: Path) -> bytes:
    """The raw bytes of an image file; FileNotFoundError says how to get it."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {_mend(path)}.") from None
    except OSError as error:  # a folder, or a file of somebody else
        raise OSError(f"{path} cannot be read ({error.strerror}): {_mend(path)}.") from error


def _mend(path: Path) -> str:
    """What brings an image file back: a command, where it is of a profile's data; one's own only its owner can."""
    for profile in PROFILES.values():
        if Path(path).absolute().is_relative_to(profile.data_root):
            return f"delete its folder, then `{profile.data_command}`"
    return "put a whole copy in its place, or leave it out"


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of what a viewer shows.

    EXIF rotation is applied: COCO's own tools read the stored pixels, but browsers turned the photos for those who
    captioned them. A CMYK JPEG is taken for Adobe's inverted kind, as Pillow does. What is transparent becomes white.
    Sixteen bits are scaled, where Pillow clips; of 32 nobody knows the white (ValueError).
    """
    image.load()  # an image that is cut off fails here, not as a broken EXIF block
    with contextlib.suppress(*BROKEN_EXIF):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("it has samples of 32 bits; save it with 8 or 16")
    if image.mode.startswith("I;16"):  # 65,535 = 255 x 257
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")
