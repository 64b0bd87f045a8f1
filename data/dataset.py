"""From examples to batches: pictures, splits, and a seeded endless order that can resume at any position."""
import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from data.example import SCENE_SIZE, VIEWS, Example, picture_size
from data.recognise import broken_path, what_else
from data.scenes import draw, sample_scene
from data.splits import same_split
from machine import leave_core

Item = TypeVar("Item")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS or the like, which starts another program
MAX_PIXELS = 64 * 1024 * 1024           # eight 4K frames; a small file can claim far more
DRAWINGS = 4_096                        # built-in scenes kept in memory: about 4 kB each, at the default size
# what Pillow's decoders raise for a broken file
BROKEN = (OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, struct.error,
          Image.DecompressionBombError)
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by EXIF orientation
MAX_ASPECT = 200                        # longer side over shorter side, the rule of Qwen2-VL's processor


def open_image(example: Example, root: str | os.PathLike | None = None, scene_size: str = SCENE_SIZE) -> Image.Image:
    """The example's only picture, or its first; see open_images."""
    return next(_opened(example, root, scene_size))


def open_images(example: Example, root: str | os.PathLike | None = None,
                scene_size: str = SCENE_SIZE) -> list[Image.Image]:
    """The example's pictures in order, RGB and upright. A built-in scene is drawn at `scene_size` (width x height).

    `root` is the start of relative picture paths (load_examples gives absolute ones).

    Raises: FileNotFoundError; ValueError naming the file that is no picture, is cut short, or is too large.
    """
    return list(_opened(example, root, scene_size))


def _opened(example: Example, root: str | os.PathLike | None, scene_size: str) -> Iterator[Image.Image]:
    if example.scene is not None:
        size = picture_size(scene_size)
        for view in example.cameras or VIEWS[:1]:
            yield Image.frombytes("RGB", size, zlib.decompress(drawn(example.scene, size, view)))
    for picture in example.pictures:
        yield open_file(Path(root or "", picture), example)


@lru_cache(DRAWINGS)
def drawn(scene: int, size: tuple[int, int], view: str) -> bytes:
    """The compressed pixels of a built-in scene: SFT draws each several times, and reading them takes a tenth."""
    return zlib.compress(draw(sample_scene(scene), size, view).tobytes(), level=1)


def open_file(path: Path, example: Example) -> Image.Image:
    """One picture file of an example."""
    if os.path.isdir(path):
        raise ValueError(f"example {example.id!r}: picture {path} is a folder; give one picture file")
    if not os.path.isfile(path):                            # unlike Path.is_file it never raises
        raise FileNotFoundError(f"example {example.id!r}: picture {path} does not exist{broken_path(path)}; correct "
                                "the path in 'image'")
    try:
        return _decode(path)
    except BROKEN as error:
        known = what_else(path)
        told = f": it {known}" if known else f" ({error}); replace the file or remove the example"
        raise ValueError(f"example {example.id!r}: picture {path} cannot be read{told}") from error


def _decode(path: Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
        check_shape(image.size)
        check_end(path, image.format)
        deep = ";16" in str(image.tile)                     # how the file is coded, which decoding forgets
        upright = turned_upright(image)
        if deep and max(highest for _, highest in upright.convert("RGB").getextrema()) < 16:
            raise ValueError("16-bit colours below 4096 would be almost black; scale them and save it with 8 bits per "
                             "channel")
        return on_white(upright)


def turned_upright(image: Image.Image) -> Image.Image:
    """An opened file's picture, turned by its EXIF orientation, with 8 bits per channel."""
    image.load()                                            # which turns a TIFF itself and then drops the tag
    # ImageOps.exif_transpose would also write the EXIF block anew, which fails where another tag has a wrong type
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return eight_bits(image if turn is None else image.transpose(turn), image.format)


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with white behind transparent pixels, as in the processor."""
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def check_end(path: Path, file_format: str) -> None:
    """Raises: ValueError for a JPEG whose end was never written: Pillow reads the zeros there as grey pixels."""
    if file_format == "JPEG":
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 16))
            if not any(file.read()):
                file.seek(0)
                if not file.read().rstrip(b"\0").endswith(b"\xff\xd9"):     # the end mark; a camera may pad behind it
                    raise ValueError("its end consists of zeros, as after an interrupted copy")


def check_shape(size: tuple[int, int]) -> None:
    """Raises: ValueError for a picture that no Qwen2-VL processor accepts, whatever its pixel budget."""
    short, long = sorted(size)
    if short < 1 or long > MAX_ASPECT * short:
        raise ValueError(f"{size[0]} x {size[1]} pixels: one side is over {MAX_ASPECT} times the other; crop it")


def eight_bits(image: Image.Image, file_format: str) -> Image.Image:
    """A 16-bit grey picture with its full range scaled to 8 bits; any other picture unchanged.

    Raises: ValueError for float and 32-bit pixels, whose range is not known, and for 16 bits that hold 12 or less.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM"))
    if not deep and image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range; save it with 8 bits per channel")
    if not deep:
        return image
    values = np.asarray(image, dtype=np.float64)                                # (height, width), 0 to 65,535
    if values.max() < 4096:
        raise ValueError(f"16-bit pixels of at most {values.max():.0f} would be almost black; scale them and save it "
                         "with 8 bits per channel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def check_images(examples: list[Example], root: str | os.PathLike | None = None, allow_some: bool = False) -> int:
    """The number of missing picture files. Run before a long run, so that it does not fail in the middle.

    Raises: FileNotFoundError naming the first missing file, if any is missing; with `allow_some`, if all are.
    ValueError if the first one is something else, such as a Git LFS pointer.
    """
    paths = [Path(root or "", picture) for e in examples for picture in e.pictures]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing and not (allow_some and len(missing) < len(paths)):
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} pictures do not exist, first {missing[0]}"
                                f"{broken_path(missing[0])}; paths start at the folder of the examples' file, "
                                "or at --image-root")
    if paths and not missing and not allow_some and (told := what_else(paths[0])):
        raise ValueError(f"picture {paths[0]} {told}")
    return len(missing)


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


def balanced_at(groups: Sequence[Sequence[int]], seed: int, position: int, number: int) -> list[int]:
    """Entries position .. position + number - 1 of an endless stream that draws from all groups equally often.

    It consists of rounds with one index of every group, in a random order of the groups. A group's own indices come in
    random order, each once before one comes again. As with `indices_at`, the position is all that is needed to resume.
    """
    count = len(groups)
    first, last = position // count, (position + max(number, 1) - 1) // count   # rounds
    drawn = [[group[i] for i in indices_at(len(group), seed + 1 + place, first, last - first + 1)]
             for place, group in enumerate(groups)]
    stream = [drawn[place][turn - first] for turn in range(first, last + 1)
              for place in example_order(count, seed, turn)]
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
    """A short hash of a list of examples in its order. The picture paths are not part of it.

    Examples without a trajectory, extra fields or several pictures keep the hash of a time before there were any, so
    old states resume.
    """
    found = hashlib.sha256()
    for example in examples:
        found.update(repr(replace(example, image=None)).encode())
        found.update(repr(example.trajectory).encode() if example.trajectory else b"")
        found.update(repr(sorted(example.extra.items())).encode() if example.extra else b"")
        views = len(example.images or ()), example.cameras
        found.update(repr(views).encode() if any(views) else b"")
    return found.hexdigest()[:16]


def select_split(examples: list[Example], split: str) -> list[Example]:
    """The examples of one split, or all examples if none names a split. `validation`, `valid` and `dev` are `val`.

    Raises: ValueError if only some examples name a split, or none belongs to `split`.
    """
    names = {example.split for example in examples}
    if names <= {None}:
        return list(examples)
    if None in names:
        unnamed = next(example.id for example in examples if example.split is None)
        raise ValueError(f"example {unnamed!r} names no split while others do; give every example a 'split' or none")
    chosen = [example for example in examples if same_split(example.split, split)]
    if not chosen:
        raise ValueError(f"no example belongs to split {split!r}; present are {', '.join(sorted(names))}")
    return chosen


def prepared_ahead(prepare: Callable[[int], Item], numbers: Iterable[int], depth: int = 2) -> Iterator[Item]:
    """prepare(n) for each n in order, made by a worker thread up to `depth` items ahead. Errors are raised here.

    So opening, drawing and patching pictures does not delay a training step.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1, initializer=leave_core) as worker:
        for number in numbers:
            waiting.append(worker.submit(prepare, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
