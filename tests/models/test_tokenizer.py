"""Tokenizers: trained and checked."""

import json

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
