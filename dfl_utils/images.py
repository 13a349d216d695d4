"""Image files as people saw them: upright, in RGB, transparency on white, sixteen bits brought to eight."""

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

BROKEN_EXIF = (SyntaxError, ValueError, KeyError, TypeError, EOFError, OSError, struct.error)


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
    """The image in RGB, fully decoded; of an animation the first frame.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it is truncated or no image, too large, or of 32-bit samples.
    """
    encoded = io.BytesIO(read_bytes(path))
    try:
        with Image.open(encoded) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNG chunks.
        reason = "Pillow knows no such format" if isinstance(error, UnidentifiedImageError) else error
        raise OSError(f"{path} is truncated or not an image ({reason}); fetch it or run `dfl data` again.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of what a viewer shows.

    EXIF rotation is applied: COCO's own tools read the stored pixels, but browsers turned the photos for those who
    captioned them, and a captioner should see what they saw. A CMYK JPEG is taken for Adobe's inverted kind, marked or
    not, which is Pillow's rule. What is transparent becomes white. Sixteen bits are scaled, where Pillow clips.

    Raises:
        OSError: it is truncated.
        ValueError: samples of 32 bits, whose white nobody knows.
    """
    image.load()  # an image that is cut off fails here, not as a broken EXIF block
    with contextlib.suppress(*BROKEN_EXIF):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError("it has samples of 32 bits; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        # 65,535 = 255 x 257
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")
