"""Facts that a model directory states twice: each pair agrees, is settled, or is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import load_model, save_model
from models.processor import save_processor

# The ids of the conftest tokenizer: <|endoftext|> 256, <|im_end|> 258, <|vision_start|> 265 to <|video_pad|> 269.


@pytest.fixture
def directory(tmp_path, make_model, processor):
    save_model(make_model(), tmp_path)
    save_processor(processor, tmp_path)
    return tmp_path


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.mark.parametrize("eos", [256, [256, 258], [258, 256], 258, None, ...])
def test_the_end_of_a_turn_always_stops(directory, eos):
    edit(directory / "config.json", eos_token_id=eos)
    edit(directory / "generation_config.json", eos_token_id=eos)
    model = load_model(directory)
    assert model.config.stop_token_ids == (258, 256)
    save_model(model, directory)
    assert json.loads((directory / "config.json").read_text())["eos_token_id"] == 258
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [258, 256]


def test_other_end_tokens_stop_too_and_are_saved(directory):
    edit(directory / "config.json", eos_token_id=100)
    edit(directory / "generation_config.json", eos_token_id=[256, 101, 100])
    for _ in range(2):
        model = load_model(directory)
        assert model.config.stop_token_ids == (258, 256, 100, 101)
        save_model(model, directory)


def test_without_a_tokenizer_the_config_counts(directory):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    edit(directory / "config.json", eos_token_id=[256, 258])
    edit(directory / "generation_config.json", eos_token_id=256)
    assert set(load_model(directory).config.stop_token_ids) == {256, 258}


@pytest.mark.parametrize("eos", [-1, 270, "258", [258, None], True, 2.0])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_impossible_end_tokens_are_named(directory, name, eos):
    edit(directory / name, eos_token_id=eos)
    with pytest.raises(ValueError, match=f"{directory / name}: eos_token_id .* must be a whole number"):
        load_model(directory)


@pytest.mark.parametrize(("name", "token", "right"), [
    ("image_token_id", "image_pad", 268), ("video_token_id", "video_pad", 269),
    ("vision_start_token_id", "vision_start", 265), ("vision_end_token_id", "vision_end", 266),
    ("vision_token_id", "vision_pad", 267)])
def test_special_ids_of_config_and_tokenizer(directory, name, token, right):
    edit(directory / "config.json", **{name: 3})
    with pytest.raises(ValueError, match=rf"config.json has {name} 3, the tokenizer's <\|{token}\|> is {right}; the"):
        load_model(directory)
    for absent in (None, ...):                              # transformers leaves out what equals its class default
        edit(directory / "config.json", **{name: absent})
        assert getattr(load_model(directory).config, name) == right


def test_a_tokenizer_beyond_the_vocabulary_is_named(directory):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 270, "content": "<new>"})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="goes up to id 270, config.json has vocab_size 270; the files do not belong"):
        load_model(directory)


def nest(directory, outer, inner):
    """The form of transformers 5, with both flags given."""
    path = directory / "config.json"
    values = json.loads(path.read_text())
    values["text_config"] = {key: values.pop(key) for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling")} | {"tie_word_embeddings": inner}
    values["text_config"] = {key: value for key, value in values["text_config"].items() if value is not ...}
    path.write_text(json.dumps(values))
    edit(path, tie_word_embeddings=outer)


@pytest.mark.parametrize(("outer", "inner", "warned"), [
    (True, False, False), (True, True, False), (True, ..., False), (..., ..., False), (..., True, False),
    (False, True, True), (..., False, True)])
def test_without_a_head_it_is_tied(directory, recwarn, outer, inner, warned):
    nest(directory, outer, inner)
    assert load_model(directory).config.tie_word_embeddings
    assert len(recwarn) == warned and (not warned or "so the head is tied" in str(recwarn[0].message))


@pytest.mark.parametrize("inner", [False, ...])
def test_a_head_that_should_be_there_is_missed(directory, inner):
    nest(directory, False, inner)
    with pytest.raises(ValueError, match="tie_word_embeddings false, but the weights have no lm_head.weight. If the"):
        load_model(directory)
    nest_true = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(nest_true))                   # the remedy
    load_model(directory)


@pytest.mark.parametrize(("outer", "inner", "want"), [(False, True, False), (..., ..., False), (..., False, False),
                                                      (True, False, True), (..., True, True)])
def test_a_head_in_the_file(directory, outer, inner, want):
    nest(directory, outer, inner)
    tensors = load_file(directory / "model.safetensors")
    head = tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, directory / "model.safetensors")
    model = load_model(directory)
    assert model.config.tie_word_embeddings == want and torch.equal(model.head_weight, head)
    head[0, 0] += 1
    save_file(tensors, directory / "model.safetensors")
    if want:
        with pytest.raises(ValueError, match="tie_word_embeddings true, but lm_head.weight differs from model.embed"):
            load_model(directory)
        edit(directory / "config.json", tie_word_embeddings=False)                  # the remedy
    assert torch.equal(load_model(directory).head_weight, head)


def test_a_left_over_quantization_config_is_told(directory):
    edit(directory / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.warns(UserWarning, match="has a quantization_config, which is ignored"):
        model = load_model(directory)
    save_model(model, directory)
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
