"""From examples to batches: pictures, a seeded endless order that a position resumes, and splits."""
import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from data.example import SCENE_SIZE, Example, picture_size
from data.scenes import draw, sample_scene

Item = TypeVar("Item")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # not EPS and the like, which start another program
MAX_PIXELS = 64 * 1024 * 1024           # eight times a 4K frame; a small file can claim far more and fill the memory


def open_image(example: Example, root: str | os.PathLike | None = None, scene_size: str = SCENE_SIZE) -> Image.Image:
    """The example's picture, RGB and upright; a built-in scene is drawn, `scene_size` (width x height) large.

    `root` is where a relative picture path starts (load_examples gives absolute ones).

    Raises: FileNotFoundError; ValueError naming the file that is no picture, is cut short, or is far too large.
    """
    if example.image is None:
        return draw(sample_scene(example.scene), picture_size(scene_size))
    path = Path(root or "", example.image)
    if not path.is_file():
        raise FileNotFoundError(f"example {example.id!r}: picture {path} does not exist; correct the path in 'image'")
    try:
        return _decode(path)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"example {example.id!r}: picture {path} cannot be read ({error}); replace the file or remove "
                         "the example") from error


def _decode(path: Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")                    # what lies behind, as for the processor
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
        return upright.convert("RGB")


def check_images(examples: list[Example], root: str | os.PathLike | None = None, allow_some: bool = False) -> int:
    """Fail before a long run, not within it, when picture files are missing. -> how many are, which is 0 unless
    `allow_some` lets a part of them be.

    Raises: FileNotFoundError with the number of missing files, the first of them and where its path breaks off.
    """
    paths = [Path(root or "", e.image) for e in examples if e.image]
    missing = [path for path in paths if not path.is_file()]
    if missing and not (allow_some and len(missing) < len(paths)):
        raise FileNotFoundError(f"{len(missing)} of {len(examples)} pictures do not exist, first {missing[0]}"
                                f"{_break_in(missing[0])}; paths start at the folder of the examples' file")
    return len(missing)


def _break_in(path: Path) -> str:
    """The first folder of a path that is not there: data that were moved lack one, a lost file does not."""
    absent = [folder for folder in path.parents if not folder.exists()]
    return f" (there is no folder {absent[-1]}: were the data moved?)" if absent else ""


def example_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count) that depends on (seed, epoch) only, on every machine and numpy version."""
    keys = np.random.PCG64([seed, epoch]).random_raw(count)        # (count,) raw bits: numpy promises this stream
    return np.argsort(keys, kind="stable").tolist()


def indices_at(count: int, seed: int, position: int, number: int) -> list[int]:
    """Entries position .. position + number - 1 of the endless stream epoch 0, epoch 1, ...

    Nothing else has to be remembered to resume, and batches may straddle epochs.

    Raises: ValueError if there is no example to draw from.
    """
    if count < 1:
        raise ValueError("there are no examples to draw from; check the file and the split")
    first, last = position // count, (position + max(number, 1) - 1) // count
    stream = [index for epoch in range(first, last + 1) for index in example_order(count, seed, epoch)]
    start = position - first * count
    return stream[start:start + number]


def usable(prepare: Callable[[int], Item],
           places: Iterable[Iterable[int]]) -> tuple[list[tuple[int, Item]], list[tuple[int, str]]]:
    """(i, prepare(i)) for each place, i being the first of its indices that can be prepared; no other is touched.

    -> those that could, and (i, fault) of those that could not. Raises: the last fault of a place without any.
    """
    found, faults = [], []
    for candidates in places:
        reason = ValueError("there is no example for this place")
        for index in candidates:
            try:
                found.append((index, prepare(index)))
                break
            except (ValueError, OSError) as fault:
                faults.append((index, str(fault)))
                reason = fault
        else:
            raise reason
    return found, faults


def data_sign(examples: Iterable[Example]) -> str:
    """A short sign of a list of examples and its order; where the pictures lie does not count."""
    found = hashlib.sha256()
    for example in examples:
        found.update(repr(replace(example, image=None)).encode())
    return found.hexdigest()[:16]


def select_split(examples: list[Example], split: str) -> list[Example]:
    """The examples of one split; a file whose examples name no split is one split by itself and comes back whole.

    Raises: ValueError if only some examples name a split, or none belongs to the one wanted.
    """
    names = {example.split for example in examples}
    if names <= {None}:
        return list(examples)
    if None in names:
        unnamed = next(example.id for example in examples if example.split is None)
        raise ValueError(f"example {unnamed!r} names no split while others do; give every example a 'split' or none")
    chosen = [example for example in examples if example.split == split]
    if not chosen:
        raise ValueError(f"no example belongs to split {split!r}; present are {', '.join(sorted(names))}")
    return chosen


def prepared_ahead(prepare: Callable[[int], Item], numbers: Iterable[int], depth: int = 2) -> Iterator[Item]:
    """prepare(n) for each n, in order, made by a worker thread up to `depth` ahead of its use; errors come out here.

    Opening, drawing and patching pictures thus costs a training step no time.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for number in numbers:
            waiting.append(worker.submit(prepare, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
