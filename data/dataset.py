"""From examples to batches: pictures, splits, and a seeded endless order that can resume at any position."""
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
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS or the like, which starts another program
MAX_PIXELS = 64 * 1024 * 1024           # eight 4K frames; a small file can claim far more


def open_image(example: Example, root: str | os.PathLike | None = None, scene_size: str = SCENE_SIZE) -> Image.Image:
    """The example's picture, RGB and upright. A built-in scene is drawn at `scene_size` (width x height).

    `root` is the start of relative picture paths (load_examples gives absolute ones).

    Raises: FileNotFoundError; ValueError naming the file that is no picture, is cut short, or is too large.
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
            white = Image.new("RGBA", upright.size, "white")                    # background as in the processor
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
        return upright.convert("RGB")


def check_images(examples: list[Example], root: str | os.PathLike | None = None, allow_some: bool = False) -> int:
    """The number of missing picture files. Run before a long run, so that it does not fail in the middle.

    Raises: FileNotFoundError naming the first missing file, if any is missing. With `allow_some`: if all are.
    """
    paths = [Path(root or "", e.image) for e in examples if e.image]
    missing = [path for path in paths if not path.is_file()]
    if missing and not (allow_some and len(missing) < len(paths)):
        raise FileNotFoundError(f"{len(missing)} of {len(examples)} pictures do not exist, first {missing[0]}"
                                f"{_break_in(missing[0])}; paths start at the folder of the examples' file")
    return len(missing)


def _break_in(path: Path) -> str:
    """The first missing folder of a path, for the message: moved data lack a folder, a lost file does not."""
    absent = [folder for folder in path.parents if not folder.exists()]
    return f" (there is no folder {absent[-1]}: were the data moved?)" if absent else ""


def example_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count) that depends only on (seed, epoch), on every machine and numpy version."""
    keys = np.random.PCG64([seed, epoch]).random_raw(count)        # (count,) raw bits, a stream that numpy guarantees
    return np.argsort(keys, kind="stable").tolist()


def indices_at(count: int, seed: int, position: int, number: int) -> list[int]:
    """Entries position .. position + number - 1 of the endless stream epoch 0, epoch 1, ...

    The position is all that is needed to resume. Batches may cross epochs.

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
    """For each place, (i, prepare(i)) for its first index i that can be prepared. Later indices are not touched.

    Returns these and (i, fault) for every index that failed. Raises: the last fault of a place where all fail.
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
    """A short hash of a list of examples in its order. The picture paths are not part of it."""
    found = hashlib.sha256()
    for example in examples:
        found.update(repr(replace(example, image=None)).encode())
    return found.hexdigest()[:16]


def select_split(examples: list[Example], split: str) -> list[Example]:
    """The examples of one split, or all examples if none names a split.

    Raises: ValueError if only some examples name a split, or none belongs to `split`.
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
    """prepare(n) for each n in order, made by a worker thread up to `depth` items ahead. Errors are raised here.

    So opening, drawing and patching pictures does not delay a training step.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1) as worker:
        for number in numbers:
            waiting.append(worker.submit(prepare, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
