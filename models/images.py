"""From an image to the flattened patches that the vision tower reads (arXiv 2409.12191, section 2.1).

    PIL image -> smart_resize -> bicubic -> normalise -> (patches, 1176) in merge-block order

An image keeps its aspect ratio ("naive dynamic resolution"). EXIF orientation is not applied: the frames of a driving
camera have none, and other callers rotate their images first.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PATCH, MERGE, FRAMES = 14, 2, 2                     # pixels per patch side, patches per merged side, frames per patch
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)    # of CLIP's training images: red, green, blue
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 3136, 401_408              # 4 and 512 feature vectors


def smart_resize(height: int, width: int, min_pixels: int = MIN_PIXELS,
                 max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The size to which an image is resized: both sides are multiples of 28 and the area is in the pixel budget.

    Sides are rounded to the nearest multiple (halves to even). If the area is then outside the budget, both sides are
    scaled by sqrt(budget / (height * width)) and rounded towards the inside of the budget. No side is below 28, so a
    very long picture may exceed the budget.
    Raises: ValueError if a side is 0 or more than 200 times the other.
    Source: the rule of the released image processor (transformers, Qwen2VLImageProcessor).
    """
    if min(height, width) < 1:
        raise ValueError(f"picture of {width} x {height} pixels: it is empty; its file may be broken")
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"picture of {width} x {height} pixels: one side is over 200 times the other; crop it")
    unit = PATCH * MERGE
    new_height, new_width = round(height / unit) * unit, round(width / unit) * unit
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(unit, math.floor(height / scale / unit) * unit)
        new_width = max(unit, math.floor(width / scale / unit) * unit)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height, new_width = math.ceil(height * scale / unit) * unit, math.ceil(width * scale / unit) * unit
    return new_height, new_width


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB. Transparent pixels become white, as in the released image processor.

    Raises: ValueError for pixels of more than 8 bits, which Pillow would cut off at 255."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"pixels of mode {image.mode} would come out white or black; scale the picture to 8 bits per "
                         "channel first, as data.dataset.open_image does with files of 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_patches(image: Image.Image, min_pixels: int, max_pixels: int) -> tuple[Tensor, tuple[int, int, int]]:
    """An image -> its flattened patches (rows * columns, 1176) float32 and its grid (1, rows, columns).

    The four patches of each 2 x 2 block are consecutive, and blocks are in row order. The values of a patch are ordered
    by channel, frame (the image twice), y, x."""
    height, width = smart_resize(image.height, image.width, min_pixels, max_pixels)
    image = to_rgb(image)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.stack([np.asarray(band) for band in image.split()]) * np.float32(1 / 255)   # (3, height, width)
    pixels -= np.float32(IMAGE_MEAN)[:, None, None]
    pixels /= np.float32(IMAGE_STD)[:, None, None]
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.reshape(3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    blocks = blocks.transpose(1, 4, 2, 5, 0, 3, 6)          # block row, block column, row, column, channel, y, x
    patches = np.empty((*blocks.shape[:5], FRAMES, PATCH, PATCH), np.float32)
    patches[...] = blocks[:, :, :, :, :, None]
    return torch.from_numpy(patches.reshape(rows * columns, -1)), (1, rows, columns)
