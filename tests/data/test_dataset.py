"""Pictures upright and whole, an order that a position resumes, splits."""
import dataclasses
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data import Example
from data.dataset import (
    balanced_at,
    check_images,
    data_sign,
    example_order,
    indices_at,
    open_file,
    open_image,
    open_images,
    select_split,
)
from rewards import Decision


def example(image, **changes):
    return Example(id="a", image=str(image), prompt="?", decision=Decision("KEEP", "STRAIGHT"), **changes)


def save_picture(path, orientation=None):
    """4 wide, 2 high; the left half red, the right half blue."""
    image = Image.new("RGB", (64, 32), (250, 0, 0))
    image.paste((0, 0, 250), (32, 0, 64, 32))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


def test_orientation_6_is_turned_upright(tmp_path):
    save_picture(tmp_path / "turned.jpg", orientation=6)          # "turn me 90 degrees clockwise": left becomes the top
    image = open_image(example(tmp_path / "turned.jpg"))
    assert image.size == (32, 64)
    top, bottom = image.getpixel((16, 8)), image.getpixel((16, 56))
    assert top[0] > 200 > bottom[0] and bottom[2] > 200 > top[2]


def test_picture_becomes_rgb_and_root_applies(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    image = open_image(example("grey.png"), root=tmp_path)
    assert (image.mode, image.getpixel((3, 3))) == ("RGB", (77, 77, 77))


RAMP = np.tile(np.arange(0, 65536, 257, dtype=np.uint16), (8, 1))              # (8, 256): 0 and every grey up to white


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_to_8(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    image = open_image(example(tmp_path / name))
    assert image.mode == "RGB" and [image.getpixel((x, 3)) for x in (0, 1, 128, 255)] == [
        (0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]


def test_16_bits_of_a_phone_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    image = open_image(example(tmp_path / "a.png"))
    assert (image.size, image.getpixel((3, 0)), image.getpixel((3, 255))) == ((8, 256), (0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(("pixels", "told"), [
    (RAMP // 16, "16-bit pixels of at most 4095 would be almost black"),        # 12 bits in 16
    (RAMP.astype(np.int32), "pixels of mode I have no fixed range"),
    ((RAMP / 65535).astype(np.float32), "pixels of mode F have no fixed range")])
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels, told):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"example 'a': picture .*a.tif cannot be read .{told}.*8 bits per channel"):
        open_image(example(tmp_path / "a.tif"))


@pytest.mark.parametrize(("mode", "colour", "name", "shown"), [
    ("1", 1, "a.png", (255, 255, 255)), ("L", 90, "a.png", (90, 90, 90)), ("LA", (90, 255), "a.png", (90, 90, 90)),
    ("LA", (90, 0), "a.png", (255, 255, 255)), ("RGBA", (10, 20, 30, 0), "a.png", (255, 255, 255)),
    ("RGBA", (200, 0, 100, 255), "a.webp", (200, 0, 100)), ("P", 1, "a.png", (10, 20, 30)),
    ("P", 1, "a.gif", (10, 20, 30)),
    ("CMYK", (0, 255, 255, 0), "a.jpg", (254, 0, 0)), ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0))])
def test_every_mode_becomes_the_colour_that_a_viewer_shows(tmp_path, mode, colour, name, shown):
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / name, lossless=True, quality=100)
    seen = open_image(example(tmp_path / name)).getpixel((8, 8))
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(seen, shown, strict=True)), seen


@pytest.mark.parametrize("size", [(4000, 10), (10, 2001)])
def test_a_thin_picture_names_its_example(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "thin.png")
    told = f"example 'a': picture .*thin.png cannot be read .{size[0]} x {size[1]} pixels: one side is over 200 times"
    with pytest.raises(ValueError, match=told):
        open_image(example(tmp_path / "thin.png"))
    Image.new("RGB", (2000, 10)).save(tmp_path / "just.png")                    # 200 times: read
    assert open_image(example(tmp_path / "just.png")).size == (2000, 10)


def test_scene_is_drawn():
    drawn = open_image(Example(id="s", scene=3, prompt="?", decision=Decision("KEEP", "STRAIGHT")))
    assert (drawn.mode, drawn.size) == ("RGB", (224, 112))


def test_missing_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="example 'a': picture .*gone.jpg does not exist; correct the path"):
        open_image(example(tmp_path / "gone.jpg"))
    save_picture(tmp_path / "here.jpg")
    check_images([example(tmp_path / "here.jpg")])
    with pytest.raises(FileNotFoundError, match="1 of 2 pictures do not exist, first .*gone.jpg"):
        check_images([example(tmp_path / "here.jpg"), example(tmp_path / "gone.jpg")])


def test_truncated_jpeg(tmp_path):
    save_picture(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:len(data) - 200])
    with pytest.raises(ValueError, match="example 'a': picture .*cut.jpg cannot be read .*; replace"):
        open_image(example(tmp_path / "cut.jpg"))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_not_a_picture(tmp_path, content):
    (tmp_path / "text.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="text.jpg cannot be read"):
        open_image(example(tmp_path / "text.jpg"))


@pytest.mark.parametrize("side", [9_000, 60_000])                 # above our limit, and above Pillow's own
def test_decompression_bomb(tmp_path, side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match="bomb.png cannot be read .*pixels"):
        open_image(example(tmp_path / "bomb.png"))


# ---------------------------------------------------------------- order

def test_order_is_a_permutation_fixed_by_seed_and_epoch():
    assert sorted(example_order(100, seed=1, epoch=0)) == list(range(100))
    assert example_order(100, seed=1, epoch=0) == example_order(100, seed=1, epoch=0)
    orders = [example_order(100, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0), (0, 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert example_order(6, seed=0, epoch=0) == ORDER_OF_SIX        # a stored run must find the same examples again


ORDER_OF_SIX = [3, 2, 1, 0, 4, 5]


def test_position_alone_resumes_the_stream():
    whole = indices_at(5, seed=3, position=0, number=23)
    assert [len(whole), sorted(whole[:5]), sorted(whole[5:10])] == [23, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert whole[:5] != whole[5:10]
    assert [i for start in range(0, 21, 7) for i in indices_at(5, 3, start, 7)] == whole[:21]
    assert indices_at(5, 3, 4, 2) == whole[4:6]                   # across the border of two epochs
    assert indices_at(5, 3, 10, 0) == []


def test_balanced_draws_by_hand():
    groups = [[10], [20, 21], [30, 31, 32, 33]]
    whole = balanced_at(groups, seed=3, position=0, number=24)      # 8 rounds
    rounds = [whole[start:start + 3] for start in range(0, 24, 3)]
    assert all(sorted(one // 10 for one in turn) == [1, 2, 3] for turn in rounds)
    assert len({tuple(one // 10 for one in turn) for turn in rounds}) > 1
    large = [one for one in whole if one >= 30]
    assert sorted(large[:4]) == sorted(large[4:]) == groups[2] and large[:4] != large[4:]
    assert [i for start in range(0, 20, 5) for i in balanced_at(groups, 3, start, 5)] == whole[:20]
    others = [[one for one in balanced_at(groups, seed, 0, 24) if one >= 30] for seed in range(4, 9)]
    assert any(other != large for other in others)          # the seed orders the examples of a plan, too
    assert balanced_at(groups, 3, 4, 0) == []


def test_no_examples_to_draw_from():
    with pytest.raises(ValueError, match="no examples to draw from; check the file and the split"):
        indices_at(0, 0, 0, 1)


# ---------------------------------------------------------------- splits

def test_split_of_a_file_without_splits_is_the_file():
    examples = [example("x"), example("y")]
    assert select_split(examples, "test") == examples


@pytest.mark.parametrize(("name", "split"), [
    ("Training", "train"), ("TRAIN", "train"), ("testing", "test"), ("Valid", "val"), ("dev", "validation")])
def test_usual_names_of_one_split(name, split):
    examples = [example("x", split=name), example("y", split="other")]
    assert [chosen.image for chosen in select_split(examples, split)] == ["x"]


def test_own_names_of_splits_are_compared_as_they_are():
    with pytest.raises(ValueError, match="no example belongs to split 'sft'"):
        select_split([example("x", split="SFT")], "sft")


def test_split_named_by_the_examples():
    examples = [example("x", split="sft"), example("y", split="test"), example("z", split="sft")]
    assert [chosen.image for chosen in select_split(examples, "sft")] == ["x", "z"]
    with pytest.raises(ValueError, match="no example belongs to split 'val'; present are sft, test"):
        select_split(examples, "val")
    with pytest.raises(ValueError, match="example 'q' names no split while others do"):
        select_split([*examples, dataclasses.replace(examples[0], id="q", split=None)], "sft")


def write_png(path, parts):
    """A PNG file of these chunks."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()))


@pytest.mark.parametrize(("highest", "told"), [(4095, "16-bit colours below 4096 would be almost black"), (65535, "")])
def test_16_bit_colours_that_hold_less(tmp_path, highest, told):
    """Pillow reads the upper byte of a 16-bit PNG in colour: 12 bits would end at 15 of 255."""
    row = b"\0" + highest.to_bytes(2, "big") * 3 * 56
    parts = {b"IHDR": struct.pack(">IIBBBBB", 56, 28, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(row * 28), b"IEND": b""}
    write_png(tmp_path / "a.png", parts)
    if told:
        with pytest.raises(ValueError, match=told):
            open_image(example(tmp_path / "a.png"))
    else:
        assert open_image(example(tmp_path / "a.png")).getpixel((0, 0)) == (255, 255, 255)


def test_a_path_that_the_system_refuses_names_its_example(tmp_path):
    name = tmp_path / ("a" * 300 + ".png")
    with pytest.raises(FileNotFoundError, match=r"example 'a': picture .* does not exist \(File name too long\)"):
        open_image(example(name))
    with pytest.raises(FileNotFoundError, match=r"1 of 1 pictures do not exist.*\(File name too long\)"):
        check_images([example(name)])


def test_the_sign_of_examples_without_a_trajectory_stays_as_before_the_field():
    # the literals are those of 6984dcf, where an example had no such field
    without = [Example(id="a", scene=7, speed=4.2, navigation="Go straight", decision=Decision("KEEP", "STRAIGHT"))]
    assert data_sign(without) == "d59c9a49b9c87989"
    assert data_sign([dataclasses.replace(without[0], trajectory=((1.0, 0.0),) * 8)]) != data_sign(without)
    views = [dataclasses.replace(without[0], cameras=names) for names in (("front", "rear"), ("rear", "front"))]
    assert len({data_sign(without), *(data_sign([one]) for one in views)}) == 3


def test_several_pictures_are_opened_in_order(tmp_path):
    for name, colour in (("a", (250, 0, 0)), ("b", (0, 0, 250))):
        Image.new("RGB", (64, 32), colour).save(tmp_path / f"{name}.png")
    several = Example(id="a", images=("b.png", "a.png"), prompt="?", decision=Decision("KEEP", "STRAIGHT"))
    opened = open_images(several, root=tmp_path)
    assert [picture.getpixel((5, 5)) for picture in opened] == [(0, 0, 250), (250, 0, 0)]
    assert open_image(several, root=tmp_path).getpixel((5, 5)) == (0, 0, 250)
    assert check_images([several], tmp_path) == 0
    gone = dataclasses.replace(several, images=("b.png", "gone.png"))
    with pytest.raises(FileNotFoundError, match="1 of 4 pictures do not exist, first .*gone.png"):
        check_images([several, gone], tmp_path)
    with pytest.raises(FileNotFoundError, match="example 'a': picture .*gone.png does not exist"):
        open_images(gone, root=tmp_path)


def test_a_wrong_exif_tag_beside_the_orientation_does_no_harm(tmp_path):
    """XResolution given as text: writing the EXIF block anew, as Pillow's own turn does, fails."""
    save_picture(tmp_path / "turned.jpg", orientation=6)
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x02\0\0\0\x02x\0\0\0\0\0\0\0"
    with Image.open(tmp_path / "turned.jpg") as image:
        image.save(tmp_path / "wrong.jpg", exif=block, quality=95)
    with Image.open(tmp_path / "wrong.jpg") as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)                          # this is what would happen
    image = open_image(example(tmp_path / "wrong.jpg"))
    assert image.size == (32, 64) and image.getpixel((16, 8))[0] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path, orientation):
    save_picture(tmp_path / "a.jpg", orientation)
    with Image.open(tmp_path / "a.jpg") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(open_image(example(tmp_path / "a.jpg"))), wanted)


def test_16_bit_colours_behind_transparent_pixels_are_judged_as_they_are(tmp_path):
    """12 bits in 16, all transparent: on white they would look sound."""
    row = b"\0" + ((4095).to_bytes(2, "big") * 3 + b"\0\0") * 56                # red, green, blue, alpha 0
    parts = {b"IHDR": struct.pack(">IIBBBBB", 56, 28, 16, 6, 0, 0, 0), b"IDAT": zlib.compress(row * 28), b"IEND": b""}
    write_png(tmp_path / "a.png", parts)
    with pytest.raises(ValueError, match="16-bit colours below 4096 would be almost black"):
        open_image(example(tmp_path / "a.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "jpg", "png", "webp"])
def test_every_orientation_is_turned_once(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RAMP).convert("RGB").save(path, **({"tiffinfo": {0x0112: orientation}} if ending == "tif" else
                                                       {"exif": exif}))
    with Image.open(path) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    found = open_file(path, example(path))
    assert found.size == wanted.size and np.array_equal(np.asarray(found), np.asarray(wanted))


def test_a_jpeg_whose_end_was_never_written_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "padded.jpg").write_bytes(whole + bytes(100))                   # as some cameras write it
    assert open_file(tmp_path / "padded.jpg", example("a")).size == (64, 64)
    (tmp_path / "cut.jpg").write_bytes(whole[:len(whole) // 2] + bytes(len(whole) // 2))
    with pytest.raises(ValueError, match=r"cut.jpg cannot be read .its end consists of zeros, as after an interrupted"):
        open_file(tmp_path / "cut.jpg", example("a"))
