"""Checkpoint files."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import load_model, save_model
from models.config import PRESETS
from models.qwen2_vl import Qwen2VL, new_model
from models.weights import hub_name, split_shards

ROOT = Path(__file__).parents[2]
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


def released_names(text_layers, tied):
    """The tensor names of a published index, written out independently of the model."""
    names = {"visual.patch_embed.proj.weight", "model.embed_tokens.weight", "model.norm.weight"}
    names |= set() if tied else {"lm_head.weight"}
    both = ("weight", "bias")
    names |= {f"visual.merger.{part}.{kind}" for part in ("ln_q", "mlp.0", "mlp.2") for kind in both}
    names |= {f"visual.blocks.{i}.{part}.{kind}" for i in range(32) for kind in both
              for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    names |= {f"model.layers.{i}.self_attn.{part}_proj.{kind}" for i in range(text_layers) for part in "qkv"
              for kind in both}
    return names | {f"model.layers.{i}.{part}.weight" for i in range(text_layers) for part in (
        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
        "post_attention_layernorm")}


def test_names_are_those_of_the_released_2b():
    with torch.device("meta"):
        model = Qwen2VL(PRESETS["2b"])
    assert {name for name, _ in model.named_parameters()} == released_names(28, tied=True)
    assert len(released_names(28, tied=True)) == 729


def test_names_and_size_of_the_released_7b():
    # Bytes in bfloat16. Text: embeddings and head 2 * 152064 * 3584 = 1,089,994,752; a layer q 12,848,640, k and v
    # 2 * 1,835,520, o 12,845,056, MLP 3 * 3584 * 18944 = 203,685,888, norms 7,168: 233,057,792, 28 of them
    # 6,525,618,176; last norm 3,584. Vision: 32 blocks of 19,677,440 = 629,678,080, patches 1,505,280, merger
    # 2,560 + 26,219,520 + 5120 * 3584 + 3584 = 44,575,744. Together 8,291,375,616 numbers, twice that in bytes.
    two = PRESETS["2b"]
    config = replace(two, tie_word_embeddings=False, vision=replace(two.vision, hidden_size=3584), text=replace(
        two.text, hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064))
    with torch.device("meta"):
        parameters = dict(Qwen2VL(config).named_parameters())
    assert parameters.keys() == released_names(28, tied=False) and len(parameters) == 730
    assert sum(parameter.numel() for parameter in parameters.values()) * 2 == 16_582_751_232
    assert parameters["model.layers.0.self_attn.k_proj.weight"].shape == (512, 3584)


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


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_the_callers(tmp_path, model, stored, wanted):
    save_model(model.to(stored), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(stored).removeprefix("torch.")
    loaded = load_model(tmp_path, dtype=wanted)
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    assert torch.equal(loaded.head_weight, model.head_weight.to(wanted))


def test_an_unchanged_dtype_is_not_copied(tmp_path, model):
    save_model(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_model(tmp_path)
    # All tensors lie where the file is mapped: end to end they span no more than the file.
    places = [(parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes) for parameter in loaded.parameters()]
    assert max(end for _, end in places) - min(start for start, _ in places) <= len(before)
    with torch.no_grad():
        loaded.model.norm.weight += 1                           # writing copies the page; the file stays
    assert (tmp_path / "model.safetensors").read_bytes() == before
    save_model(loaded, tmp_path)                                # replacing the file under the mapping is safe
    again = load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert_equal(loaded, again)


def test_every_tensor_goes_to_the_device(tmp_path, model):
    save_model(model, tmp_path, max_file_bytes=600_000)
    assert all(parameter.is_meta for parameter in load_model(tmp_path, device="meta").parameters())


def test_laying_out_a_model_imports_no_compiler():
    # nn.Embedding's own initialisation on the meta device pulls in torch._dynamo: over a second of each load.
    script = ("import sys, torch; from models.config import PRESETS; from models.qwen2_vl import Qwen2VL\n"
              "with torch.device('meta'): Qwen2VL(PRESETS['tiny'])\n"
              "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


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


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.", "module._orig_mod.", "model.",
                                    "_orig_mod.module.", "base_model.model.model.language_model."])
def test_prefixes_of_wrappers_are_removed(tmp_path, model, prefix):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if prefix.endswith("language_model."):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
        renamed |= {f"base_model.model.{name}": tensor for name, tensor in load_file(
            tmp_path / "model.safetensors").items() if name.startswith("visual.")}
    else:
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    assert_equal(model, load_model(tmp_path))


def test_names_by_hand():
    for other, name in {
            "module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
            "model.layers.3._checkpoint_wrapped_module.mlp.up_proj.weight": "model.layers.3.mlp.up_proj.weight",
            "_orig_mod.model.language_model.norm.weight": "model.norm.weight",
            "language_model.embed_tokens.weight": "model.embed_tokens.weight", "model.lm_head.weight": "lm_head.weight",
            "model.model.norm.weight": "model.norm.weight", "model.visual.merger.ln_q.bias": "visual.merger.ln_q.bias",
            "visual.merger.mlp.0.weight": "visual.merger.mlp.0.weight", "lm_head.weight": "lm_head.weight",
            "model.norm.weight": "model.norm.weight"}.items():
        assert hub_name(other) == name


LEFT = {"mlp.up_proj.weight_scale": torch.ones(1), "mlp.up_proj.qweight": torch.ones(4, 4, dtype=torch.int32),
        "mlp.down_proj.weight_format": torch.ones(1, dtype=torch.uint8), "mlp.down_proj.SCB": torch.ones(8),
        "self_attn.rotary_emb.inv_freq": torch.ones(16),
        "mlp.up_proj.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}


def test_leftovers_of_quantisation_beside_whole_weights_are_told(tmp_path, model):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"model.layers.0.{name}": tensor for name, tensor in LEFT.items()},
              tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=rf"6 of {len(tensors) + 6} tensors are left over from quantisation"):
        assert_equal(model, load_model(tmp_path))


def test_quantised_weights_are_refused(tmp_path, model):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for change in ({name: torch.ones(4, 4, dtype=torch.int8)}, {name: torch.ones(9, 1, dtype=torch.uint8)},
                   {name: torch.ones(4, 4).to(torch.float8_e4m3fn)}):
        save_file(tensors | change, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"{name} has the dtype .*use a checkpoint that is not quantised"):
            load_model(tmp_path)
    save_file(tensors | {name: tensors[name].double()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} has the dtype F64; .*save it as float32 or bfloat16"):
        load_model(tmp_path)
    del tensors[name]
    save_file(tensors | {"model.layers.0.mlp.up_proj.qweight": LEFT["mlp.up_proj.qweight"]},
              tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: .*up_proj.weight(.|\n)*like .*up_proj.qweight are quantised"):
        load_model(tmp_path)


def test_unmerged_adapters_are_named(tmp_path, model):
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    renamed = {key.replace(f"{name}.weight", f"{name}.base_layer.weight"): tensor for key, tensor in tensors.items()}
    save_file(renamed | {f"{name}.lora_A.default.weight": torch.ones(4, 128)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="LoRA adapters are not merged; merge them .in peft: merge_and_unload"):
        load_model(tmp_path)


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


def test_repeated_tensors_and_broken_indices_are_refused(tmp_path, model):
    save_model(model, tmp_path, max_file_bytes=600_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    with pytest.raises(ValueError, match=f"{second.name} repeats tensors of another file: {name};"):
        load_model(tmp_path)
    for content in ("[]", "{}", "{", '{"weight_map": 3}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match="index.json is not a safetensors index"):
            load_model(tmp_path)


@pytest.mark.parametrize("old_bytes", [600_000, 10**9])
@pytest.mark.parametrize("new_bytes", [600_000, 10**9])
def test_a_crash_at_any_rename_leaves_old_or_new(tmp_path, model, monkeypatch, old_bytes, new_bytes):
    new = new_model(SMALL, torch.Generator().manual_seed(1))
    rename = os.replace
    for survivors in range(12):
        save_model(model, tmp_path, max_file_bytes=old_bytes)
        left = iter(range(survivors))

        def crash(source, target, left=left):
            if next(left, None) is None:
                raise OSError("power cut")
            rename(source, target)

        monkeypatch.setattr(os, "replace", crash)
        with contextlib.suppress(OSError):
            save_model(new, tmp_path, max_file_bytes=new_bytes)
        monkeypatch.setattr(os, "replace", rename)
        found = load_model(tmp_path)
        assert_equal(new if torch.equal(found.head_weight, new.head_weight) else model, found)


def test_a_failed_save_leaves_the_old_files(tmp_path, model, monkeypatch):
    save_model(model, tmp_path)

    def broken(_tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("models.weights.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(new_model(SMALL, torch.Generator().manual_seed(1)), tmp_path)
    assert_equal(model, load_model(tmp_path))


def test_weights_in_two_forms_are_told(tmp_path, model):
    save_model(model, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.warns(UserWarning, match="has model.safetensors, which is read, and model.safetensors.index.json"):
        assert_equal(load_model(tmp_path), model)
