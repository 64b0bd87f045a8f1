"""Checkpoint files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import load_model, save_model
from models.config import PRESETS
from models.qwen2_vl import Qwen2VL, new_model
from models.weights import split_shards

SMALL = replace(PRESETS["tiny"], vision=replace(PRESETS["tiny"].vision, depth=1),
                text=replace(PRESETS["tiny"].text, num_hidden_layers=1))


@pytest.fixture
def model():
    return new_model(SMALL, torch.Generator().manual_seed(0))


def assert_equal(model, other):
    assert other.config == model.config
    first, second = dict(model.named_parameters()), dict(other.named_parameters())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_2b_has_the_released_tensors():
    # 12 tensors x 28 text layers, 12 x 32 vision blocks, embeddings, final norm, patch embedding, 6 of the merger:
    # 336 + 384 + 1 + 1 + 1 + 6 = 729, of 4,417,971,200 bytes in bfloat16 (the index file of the release says the same).
    with torch.device("meta"):
        model = Qwen2VL(PRESETS["2b"])
    parameters = dict(model.named_parameters())
    assert len(parameters) == 729 and not list(model.buffers())
    assert sum(parameter.numel() for parameter in parameters.values()) * 2 == 4_417_971_200
    assert parameters["visual.patch_embed.proj.weight"].shape == (1280, 3, 2, 14, 14)
    assert parameters["visual.merger.mlp.2.weight"].shape == (1536, 5120)
    assert parameters["model.layers.27.self_attn.k_proj.bias"].shape == (256,)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_equal(tmp_path, tied):
    model = new_model(replace(SMALL, tie_word_embeddings=tied), torch.Generator().manual_seed(0))
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json",
                                                                "model.safetensors"]
    loaded = load_model(tmp_path)
    assert_equal(model, loaded)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(model(torch.tensor([[1, 2]])), loaded(torch.tensor([[1, 2]])))


def test_dtype_is_the_callers(tmp_path, model):
    save_model(model.to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    loaded = load_model(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.head_weight, model.head_weight.float())


def test_generation_config_stops_but_does_not_sample(tmp_path, model):
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 498, "pad_token_id": 498, "eos_token_id": [500, 498]}


def test_split_shards_by_hand():
    # Sizes 40, 8, 8, 12, 4 bytes, limit 20: 40 alone over the limit | 8 + 8 (+ 12 is over) | 12 + 4
    tensors = {name: torch.zeros(count) for name, count in zip("abcde", (10, 2, 2, 3, 1), strict=True)}
    assert split_shards(tensors, 20) == [["a"], ["b", "c"], ["d", "e"]]


def test_shards_round_trip_and_replace_each_other(tmp_path, model):
    save_model(model, tmp_path, max_file_bytes=600_000)
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 1
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert_equal(model, load_model(tmp_path))

    other = new_model(SMALL, torch.Generator().manual_seed(1))
    save_model(other, tmp_path)                                 # one file now; the shards must be gone
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    save_model(model, tmp_path, max_file_bytes=900_000)         # and back: the single file must not win
    assert_equal(model, load_model(tmp_path))


def test_nested_names_are_read(tmp_path, model):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    nested = {"model." + ("" if name.startswith("visual.") else "language_model.") + name.removeprefix("model."): tensor
              for name, tensor in tensors.items()}
    save_file(nested, tmp_path / "model.safetensors")
    assert "model.language_model.layers.0.mlp.up_proj.weight" in nested and "model.visual.merger.ln_q.bias" in nested
    assert_equal(model, load_model(tmp_path))


def test_one_error_names_all_wrong_tensors(tmp_path, model):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["visual.merger.ln_q.bias"]
    tensors["model.layers.1.input_layernorm.weight"] = torch.ones(128)
    tensors["visual.blocks.0.norm1.weight"] = torch.ones(63)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  missing: visual.merger.ln_q.bias (64,)", "  missing: model.norm.weight (128,)",
        "  surplus: model.layers.1.input_layernorm.weight (128,)",
        "  misshapen: visual.blocks.0.norm1.weight is (63,), the model needs (64,)"]


def test_broken_directories_are_named(tmp_path, model):
    save_model(model, tmp_path, max_file_bytes=600_000)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ValueError, match=shard.name):
        load_model(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors.index.json"):
        load_model(tmp_path)


def test_a_failed_save_leaves_the_old_files(tmp_path, model, monkeypatch):
    save_model(model, tmp_path)

    def broken(_tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("models.weights.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(new_model(SMALL, torch.Generator().manual_seed(1)), tmp_path)
    assert_equal(model, load_model(tmp_path))
