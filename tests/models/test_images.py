"""Images to patches."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.images import image_patches, smart_resize, to_rgb


@pytest.mark.parametrize(("height", "width", "max_pixels", "expected"), [
    (2160, 3840, 12_845_056, (77 * 28, 137 * 28)),      # 77.14 and 137.14 round down: 10,549 feature vectors
    (270, 480, 12_845_056, (10 * 28, 17 * 28)),         # 9.64 -> 10, 17.14 -> 17: 170
    # 8,294,400 / 401,408 = 20.663, root 4.5457: 2160 / 4.5457 / 28 = 16.97 -> 16, 3840 / 4.5457 / 28 = 30.17 -> 30
    (2160, 3840, 401_408, (16 * 28, 30 * 28)),
    (70, 98, 401_408, (56, 112)),                       # 2.5 -> 2 and 3.5 -> 4: halves go to the even number
    (28, 28, 401_408, (56, 56)),                        # 784 is under 3136: scaled by 2
    (252, 448, 401_408, (252, 448)),
    (20, 4000, 3136, (28, 784)),                        # 80,000 / 3136, root 5.05: 0.14 -> at least 1; 28.3 -> 28
])
def test_smart_resize_by_hand(height, width, max_pixels, expected):
    assert smart_resize(height, width, 3136, max_pixels) == expected


def test_smart_resize_refuses_ribbons():
    # Exactly 200 to 1 passes; 0.36 -> 0, area 0, so scaled by sqrt(3136 / 20,000) = .396: 0.14 -> 1, 28.3 -> 29
    assert smart_resize(10, 2000) == (28, 812)
    with pytest.raises(ValueError, match="2010 x 10"):
        smart_resize(10, 2010)


def test_transparency_becomes_white():
    # A third of black over white: 255 * 2 / 3 = 170. Fully opaque: as it is. Fully clear: white.
    pixel = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((85, 255, 0)):
        pixel.putpixel((x, 0), (0, 0, 0, alpha))
    assert np.asarray(to_rgb(pixel)).tolist() == [[[170] * 3, [0] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    palette.info["transparency"] = 1
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_patch_order_by_hand():
    # 28 x 56 pixels = 2 x 4 patches. Red numbers the patch (10 * row + column), green is y, blue is x.
    y, x = np.mgrid[0:28, 0:56]
    picture = Image.fromarray(np.stack([10 * (y // 14) + x // 14, y, x], axis=-1).astype(np.uint8))
    patches, grid = image_patches(picture, 784, 401_408)
    assert grid == (1, 2, 4) and patches.shape == (8, 1176) and patches.dtype == torch.float32
    levels = patches.view(8, 3, 2, 14, 14)                                  # patch, channel, frame, y, x
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    levels = ((levels * std.view(3, 1, 1, 1) + mean.view(3, 1, 1, 1)) * 255).round()
    assert levels[:, 0, 0, 0, 0].tolist() == [0, 1, 10, 11, 2, 3, 12, 13]   # the left 2 x 2 block comes first
    assert levels[2, :, 0, 3, 5].tolist() == [10, 14 + 3, 5]                # patch (1, 0): y = 14 + 3, x = 5
    assert levels[5, :, 1, 13, 0].tolist() == [3, 13, 42]                   # patch (0, 3): x = 42; frame 1 repeats 0


def test_pixels_are_normalised_per_channel():
    # 255: (1 - .48145466) / .26862954 = 1.930336; 0: -.4578275 / .26130258 = -1.752097; 51: (.2 - .40821073) /
    # .27577711 = -.754997
    patches, _ = image_patches(Image.new("RGB", (56, 56), (255, 0, 51)), 3136, 3136)
    assert patches[0, [0, 392, 784]].tolist() == pytest.approx([1.930336, -1.752097, -0.754997], abs=1e-5)


def test_pictures_of_any_mode_are_resized_to_the_budget():
    patches, grid = image_patches(Image.new("L", (3840, 2160), 128), 3136, 401_408)
    assert grid == (1, 32, 60) and patches.shape == (1920, 1176)            # 16 x 30 = 480 feature vectors


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pixels_of_more_than_8_bits_are_refused(mode):
    with pytest.raises(ValueError, match=f"pixels of mode {mode} would come out white or black; scale the picture"):
        to_rgb(Image.new(mode, (56, 28)))
