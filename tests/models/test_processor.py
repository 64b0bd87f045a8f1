"""Chats and images to tensors; the files of a processor."""

import json
from copy import deepcopy

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from models import load_processor
from models.config import PRESETS
from models.processor import Processor, fit_config, save_processor
from models.tokenizer import train_bpe
from rewards import Decision, parse_plan

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


@pytest.fixture(scope="module")
def extended(processor):
    """Ids 320 to 323: special <think> and </think>, plain <answer> and </answer>, as a fine-tune may add them."""
    rules = json.loads(processor.tokenizer.to_str())
    for i, name in enumerate(("<think>", "</think>", "<answer>", "</answer>")):
        rules["added_tokens"].append(rules["added_tokens"][0] | {"id": 320 + i, "content": name, "special": i < 2})
    return Processor(Tokenizer.from_str(json.dumps(rules)))


def test_added_tokens_are_encoded_and_decoded_as_the_file_says(extended):
    words = "<think>turn</think> <answer>KEEP, STRAIGHT</answer>"
    for copy in (extended, deepcopy(extended)):
        ids = copy.encode_text(words)
        assert [i for i in ids if i >= 320] == [320, 321, 322, 323] and ids == copy.tokenizer.encode(words).ids
        assert copy.decode([*ids, copy.end_of_turn_id]) == words
        assert max(copy.encode_text("<|im_end|>")) < copy.token_ids["<|endoftext|>"]
        chat, _, _ = copy.encode([{"role": "user", "content": "<answer>"}], [])
        assert chat.count(322) == 1


def test_a_right_answer_in_added_tokens_is_paid(extended):
    ids = [320, *extended.encode_text("turn"), 321, 322, *extended.encode_text("KEEP, STRAIGHT"), 323]
    text = extended.decode([*ids, extended.end_of_turn_id])
    assert parse_plan(text) == Decision("KEEP", "STRAIGHT")


def test_added_tokens_are_saved_in_both_forms(extended, tmp_path):
    save_processor(extended, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [token["content"] for token in config["added_tokens_decoder"].values()][-4:] == [
        "<think>", "</think>", "<answer>", "</answer>"] and len(config["added_tokens_decoder"]) == 18
    assert config["added_tokens_decoder"]["322"] == {"content": "<answer>", "lstrip": False, "normalized": False,
                                                     "rstrip": False, "single_word": False, "special": False}
    assert config["additional_special_tokens"][-3:] == ["<|video_pad|>", "<think>", "</think>"]
    words = "<think>turn</think> <answer>KEEP</answer>"
    assert load_processor(tmp_path).encode_text(words) == extended.encode_text(words)
    extended.tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert load_processor(tmp_path).encode_text(words) == extended.encode_text(words)


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


def test_budgets_of_transformers_4_and_5_must_agree(tmp_path, processor):
    save_processor(processor, tmp_path)
    newer = tmp_path / "processor_config.json"
    newer.write_text(json.dumps({"image_processor": {"min_pixels": 3136, "max_pixels": 401_408}}))
    assert load_processor(tmp_path).max_pixels == 401_408
    newer.write_text(json.dumps({"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 64_000}}}))
    with pytest.raises(ValueError, match=r"has min_pixels and max_pixels \(3136, 401408\), .* has \(3136, 64000\)"):
        load_processor(tmp_path)
    save_processor(processor, tmp_path)                                     # what was written last counts alone
    assert load_processor(tmp_path).max_pixels == 401_408


def test_min_pixels_above_the_cap_or_a_flag(tmp_path, processor):
    save_processor(Processor(processor.tokenizer, 602_112, 1_003_520), tmp_path)
    capped = load_processor(tmp_path, cap=401_408)                          # not below the directory's own minimum
    assert (capped.min_pixels, capped.max_pixels) == (602_112, 602_112)
    save_processor(capped, tmp_path)
    assert load_processor(tmp_path).max_pixels == 602_112
    assert load_processor(tmp_path, cap=802_816).max_pixels == 602_112
    with pytest.raises(ValueError, match="min_pixels 602112 is above max_pixels 100352: max_pixels was given"):
        load_processor(tmp_path, max_pixels=100_352)
    assert load_processor(tmp_path, 3136, 100_352).max_pixels == 100_352    # the remedy
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": 6272, "max_pixels": 3136}')
    with pytest.raises(ValueError, match="preprocessor_config.json: min_pixels 6272 is above max_pixels 3136; correct"):
        load_processor(tmp_path)


def test_which_budget_counts(tmp_path, processor):
    """What is given before what the directory states, each number by itself; min_pixels and max_pixels before size."""
    save_processor(processor, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(
        {"min_pixels": 3136, "max_pixels": 6272, "size": {"shortest_edge": 784, "longest_edge": 12_544}}))
    for given, budget in (((None, None), (3136, 6272)), ((1568, None), (1568, 6272)), ((None, 3920), (3136, 3920)),
                          ((4704, 100_352), (4704, 100_352))):
        loaded = load_processor(tmp_path, *given)
        assert (loaded.min_pixels, loaded.max_pixels) == budget


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


def test_areas_under_other_names(tmp_path, processor):
    save_processor(processor, tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"min_pixels": 784, "max_pixels": 3920}}))
    loaded = load_processor(tmp_path)
    assert (loaded.min_pixels, loaded.max_pixels) == (784, 3920)
    file.write_text(json.dumps({"size": {"height": 448, "width": 448}}))
    with pytest.raises(ValueError, match="size .*448.* names no shortest_edge and longest_edge"):
        load_processor(tmp_path)


def test_a_budget_that_fills_the_memory_is_refused(tmp_path, processor):
    save_processor(processor, tmp_path)
    with pytest.raises(ValueError, match="max_pixels 1000000000: need .* <= 16777216"):
        load_processor(tmp_path, 10**9, 10**9)
