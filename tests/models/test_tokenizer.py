"""Tokenizers: trained and checked."""

import json
from pathlib import Path

import pytest

from models.processor import Processor
from models.tokenizer import load_tokenizer, train_bpe

TEXTS = ["You are a helpful assistant. Speed: 12 km/h, turn left.", "KEEP, STRAIGHT system user assistant"]


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


def test_a_tokenizer_without_the_tokens_is_refused():
    tokenizer = train_bpe(TEXTS, 300)
    bare = json.loads(tokenizer.to_str())
    bare["added_tokens"] = [token for token in bare["added_tokens"] if token["content"] != "<|image_pad|>"]
    with pytest.raises(ValueError, match=r"lacks <\|image_pad\|>"):
        Processor(tokenizer.from_str(json.dumps(bare)))


def test_tokens_that_change_each_time_are_refused(tmp_path):
    values = json.loads(train_bpe(["no merges"], 270).to_str())
    values["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="dropout 0.1, with which a text has other tokens each time"):
        load_tokenizer(tmp_path)


def changed(tokenizer, change):
    record = json.loads(tokenizer.to_str())
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(("change", "words"), [
    (lambda r: r.update(pre_tokenizer=None), "pre_tokenizer null, not Qwen2's"),
    (lambda r: r["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "pre_tokenizer .*, not Qwen2's"),
    (lambda r: r["pre_tokenizer"]["pretokenizers"].pop(0), "pre_tokenizer .*, not Qwen2's"),
    (lambda r: r["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True), "pre_tokenizer .*, not Qwen2's"),
    (lambda r: r["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "pre_tokenizer .*, not Qwen2's"),
    (lambda r: r.update(decoder=None), "no decoder"),
    (lambda r: r["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix '##'; Qwen2 has none"),
])
def test_steps_that_are_not_those_of_qwen2_are_refused(tmp_path, change, words):
    tokenizer = train_bpe(["KEEP, STRAIGHT"] * 20, 300)
    (tmp_path / "tokenizer.json").write_text(changed(tokenizer, lambda _: None))
    assert load_tokenizer(tmp_path).encode("KEEP").ids == tokenizer.encode("KEEP").ids
    (tmp_path / "tokenizer.json").write_text(changed(tokenizer, change))
    with pytest.raises(ValueError, match=words):
        load_tokenizer(tmp_path)


def test_merges_that_were_cut_short_are_told(tmp_path):
    tokenizer = train_bpe(["KEEP, STRAIGHT"] * 20, 290)
    vocab, merges = (Path(name) for name in tokenizer.model.save(str(tmp_path)))
    added = {str(i): {"content": token.content, "special": True}
             for i, token in tokenizer.get_added_tokens_decoder().items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert load_tokenizer(tmp_path).encode("KEEP").ids == tokenizer.encode("KEEP").ids
    lines = merges.read_text().splitlines()
    merges.write_text("\n".join(lines[:len(lines) // 2]) + "\n")
    with pytest.raises(ValueError, match=r"merges.txt has \d+ merges for the \d+ entries of vocab.json, and \d+ are"):
        load_tokenizer(tmp_path)
