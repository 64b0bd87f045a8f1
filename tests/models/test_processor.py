"""Chats and images to tensors; the files of a processor."""

import json
from copy import deepcopy

import pytest
import torch
from PIL import Image

from models import load_processor
from models.config import PRESETS
from models.processor import Processor, fit_config, is_instruct_template, save_processor
from models.tokenizer import train_bpe

TEXTS = ["You are a helpful assistant. Speed: 12 km/h, turn left.", "KEEP, STRAIGHT system user assistant"]
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def processor():
    return Processor(train_bpe(TEXTS, 320))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_empty_pictures_are_refused(processor, size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels: it is empty"):
        processor.encode([{"role": "user", "content": [IMAGE]}], [Image.new("RGB", size)])


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


def test_the_written_template_counts_as_the_instruct_one(processor, tmp_path):
    save_processor(processor, tmp_path)
    assert is_instruct_template(json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"])
    assert is_instruct_template(None)
    base_model = "{% for part in messages %}<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
    assert not is_instruct_template(base_model)
