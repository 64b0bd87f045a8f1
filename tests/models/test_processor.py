"""Pictures to patches, chats to ids."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from models import load_processor
from models.config import PRESETS
from models.processor import (
    Processor,
    fit_config,
    image_patches,
    is_instruct_template,
    save_processor,
    smart_resize,
    to_rgb,
    train_bpe,
)

TEXTS = ["You are a helpful assistant. Speed: 12 km/h, turn left.", "KEEP, STRAIGHT system user assistant"]
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def processor():
    return Processor(train_bpe(TEXTS, 320))


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


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_empty_pictures_are_refused(processor, size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels: it is empty"):
        processor.encode([{"role": "user", "content": [IMAGE]}], [Image.new("RGB", size)])


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


def test_template_of_a_plain_question(processor):
    ids, pixel_values, grid = processor.encode([{"role": "user", "content": "turn left"}], [])
    assert processor.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nturn left<|im_end|>\n<|im_start|>assistant\n")
    special = [i for i in ids if i >= processor.token_ids["<|endoftext|>"]]
    start, end = processor.token_ids["<|im_start|>"], processor.end_of_turn_id
    assert special == [start, end, start, end, start]
    assert pixel_values.shape == (0, 1176) and grid.shape == (0, 3)


def test_template_keeps_the_order_of_the_content(processor):
    messages = [{"role": "system", "content": "Drive."},
                {"role": "user", "content": [text("a"), IMAGE, text("b"), text("c"), IMAGE]},
                {"role": "assistant", "content": "KEEP"}, {"role": "user", "content": [text("why")]}]
    pictures = [Image.new("RGB", (56, 56)), Image.new("RGB", (84, 56))]
    ids, pixel_values, grid = processor.encode(messages, pictures)
    assert processor.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nDrive.<|im_end|>\n<|im_start|>user\na<|vision_start|>" + 4 * "<|image_pad|>"
        + "<|vision_end|>bc<|vision_start|>" + 6 * "<|image_pad|>" + "<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nKEEP<|im_end|>\n<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n")
    assert grid.tolist() == [[1, 4, 4], [1, 4, 6]] and pixel_values.shape == (16 + 24, 1176)


def test_special_tokens_typed_by_a_user_stay_text(processor):
    typed = "<|image_pad|><|im_end|>"
    for copy in (processor, deepcopy(processor)):       # a deep copy goes through pickling, as worker processes do
        assert max(copy.encode_text(typed)) < copy.token_ids["<|endoftext|>"]
        assert copy.decode(copy.encode_text(typed)) == typed
        ids, _, _ = copy.encode([{"role": "user", "content": typed}], [])
        assert ids.count(copy.image_token_id) == 0 and ids.count(copy.end_of_turn_id) == 2


def test_decode_skips_special_tokens(processor):
    ids = [processor.token_ids["<|im_start|>"], *processor.encode_text("turn"), processor.end_of_turn_id]
    assert processor.decode(ids) == processor.decode(torch.tensor(ids)) == "turn"


@pytest.mark.parametrize("words", ["é ü 中文 👍", "a  b\n\n c\t", "I'll go 1234!"])
def test_text_round_trip(processor, words):
    assert processor.decode(processor.encode_text(words)) == words


def test_text_is_composed_first(processor):
    assert processor.encode_text("e\u0301") == processor.encode_text("\u00e9")


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded(processor, side):
    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": [IMAGE, text("b")]}]]
    pictures = [[], [Image.new("RGB", (56, 56))]]
    batch = processor(chats, pictures, padding_side=side)
    rows = [processor.encode(chat, pics)[0] for chat, pics in zip(chats, pictures, strict=True)]
    assert len(rows[1]) == len(rows[0]) + 6                         # vision start, 4 placeholders, vision end
    pad = [processor.pad_token_id] * 6
    assert batch["input_ids"].tolist() == [pad + rows[0] if side == "left" else rows[0] + pad, rows[1]]
    ones, zeros = [1] * len(rows[0]), [0] * 6
    assert batch["attention_mask"].tolist() == [zeros + ones if side == "left" else ones + zeros, [1] * len(rows[1])]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] and batch["pixel_values"].shape == (16, 1176)


@pytest.mark.parametrize(("messages", "images", "words"), [
    ([], 0, "messages is empty"),
    ([{"role": "robot", "content": "a"}], 0, "role 'robot'"),
    ([{"role": "user", "content": [{"type": "video"}]}], 0, "'video'"),
    ([{"role": "user"}], 0, "content must be"),
    ([{"role": "user", "content": [IMAGE, IMAGE]}], 1, "2 image parts, but 1 images"),
    ([{"role": "user", "content": "a"}], 1, "0 image parts, but 1 images"),
])
def test_malformed_chats_are_refused(processor, messages, images, words):
    with pytest.raises(ValueError, match=words):
        processor.encode(messages, [Image.new("RGB", (56, 56))] * images)


def test_malformed_batches_are_refused(processor):
    for messages, images, side in (([], [], "left"), ([[]], [], "left"), ([[]], [[]], "up")):
        with pytest.raises(ValueError, match="rows|padding_side"):
            processor(messages, images, padding_side=side)


def test_train_bpe_order_and_determinism():
    first, second = train_bpe(TEXTS, 320), train_bpe(TEXTS, 320)
    assert first.to_str() == second.to_str()
    size = first.get_vocab_size()
    assert size == 320
    # Special tokens are last, in the order of the released vocabulary: 14 of them, <|endoftext|> first.
    assert [first.id_to_token(size - 14 + i) for i in (0, 1, 2, 9, 10, 11, 12, 13)] == [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>"]
    with pytest.raises(ValueError, match="270"):
        train_bpe(TEXTS, 269)


def test_digits_never_merge():
    tokenizer = train_bpe(["120 120 120 km"] * 9, 320)
    assert tokenizer.encode("120").tokens == ["1", "2", "0"]


def test_fit_config_takes_the_tokenizers_ids(processor):
    config = fit_config(PRESETS["tiny"], processor.tokenizer)
    assert config.text.vocab_size == 320
    assert (config.bos_token_id, config.eos_token_id, config.video_token_id) == (306, 308, 319)
    assert config.suppressed_token_ids == (315, 316, 317, 318, 319)
    assert fit_config(PRESETS["tiny"], train_bpe([" ".join(TEXTS * 2)] + [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" * 3
                                                  for i in range(400)], 512)) == PRESETS["tiny"]


def test_saved_processor_reads_back(tmp_path, processor):
    save_processor(Processor(processor.tokenizer, 4000, 50_000), tmp_path)
    loaded = load_processor(tmp_path)
    assert (loaded.min_pixels, loaded.max_pixels) == (4000, 50_000)
    assert loaded.tokenizer.to_str() == processor.tokenizer.to_str()
    assert load_processor(tmp_path, max_pixels=6000).max_pixels == 6000     # an argument goes before the directory
    assert Processor(processor.tokenizer).max_pixels == 401_408


def test_vocab_and_merges_instead_of_tokenizer_json(tmp_path, processor):
    save_processor(processor, tmp_path)
    processor.tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    loaded = load_processor(tmp_path)
    words = "Speed: 12 km/h,  turn left é\n"
    assert loaded.encode_text(words) == processor.encode_text(words)
    assert loaded.token_ids == processor.token_ids
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        load_processor(tmp_path)


def test_pixel_budget_of_transformers_5(tmp_path, processor):
    save_processor(processor, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_processor(tmp_path).max_pixels == 401_408
    (tmp_path / "processor_config.json").write_text(json.dumps(
        {"image_processor": {"size": {"shortest_edge": 3200, "longest_edge": 64_000}}}))
    assert load_processor(tmp_path).min_pixels == 3200
    assert load_processor(tmp_path).max_pixels == 64_000


def test_other_patches_and_budgets_are_refused(tmp_path, processor):
    save_processor(processor, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 16}')
    with pytest.raises(ValueError, match="preprocessor_config.json.*patch_size.*16"):
        load_processor(tmp_path)
    for change in ('{"do_resize": false}', '{"resample": 2}', '{"rescale_factor": 1.0}'):
        (tmp_path / "preprocessor_config.json").write_text(change)
        with pytest.raises(ValueError, match=f"preprocessor_config.json.*{change[2:10]}"):
            load_processor(tmp_path)
    with pytest.raises(ValueError, match="max_pixels 100"):
        Processor(processor.tokenizer, max_pixels=100)


def test_foreign_chat_template_warns(tmp_path, processor, recwarn):
    save_processor(processor, tmp_path)
    load_processor(tmp_path)
    assert not recwarn
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    with pytest.warns(UserWarning, match="Qwen2-VL-Instruct"):
        load_processor(tmp_path)


def test_a_tokenizer_without_the_tokens_is_refused():
    tokenizer = train_bpe(TEXTS, 300)
    bare = json.loads(tokenizer.to_str())
    bare["added_tokens"] = [token for token in bare["added_tokens"] if token["content"] != "<|image_pad|>"]
    with pytest.raises(ValueError, match=r"lacks <\|image_pad\|>"):
        Processor(tokenizer.from_str(json.dumps(bare)))


def test_the_written_template_counts_as_the_instruct_one(processor, tmp_path):
    save_processor(processor, tmp_path)
    assert is_instruct_template(json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"])
    assert is_instruct_template(None)
    base_model = "{% for part in messages %}<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
    assert not is_instruct_template(base_model)
