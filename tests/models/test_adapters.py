"""LoRA adapters in PEFT's format. benchmarks/adapters.py checks both directions against PEFT itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.adapters import CONFIG, WEIGHTS, adapter_tensors, merge_adapter, save_adapter
from models.lora import adapter_parameters, add_lora, merged_state_dict

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
TREE = "base_model.model.model.language_model."


@pytest.fixture
def adapted(make_model):
    """A model whose adapters have been trained."""
    model = make_model()
    add_lora(model, 2, 6.0, ["q_proj", "down_proj"], torch.Generator().manual_seed(0))
    for number, parameter in enumerate(adapter_parameters(model)):
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return model


@pytest.fixture
def directory(adapted, tmp_path):
    save_adapter(adapter_tensors(adapted), 2, 6.0, "the/base", tmp_path / "adapter")
    return tmp_path / "adapter"


def change(directory, **values):
    file = directory / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_written(directory):
    about = json.loads((directory / CONFIG).read_text())
    assert (about["peft_type"], about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (
        "LORA", 2, 6.0, "the/base")
    assert about["target_modules"] == ["down_proj", "q_proj"]
    tensors = load_file(directory / WEIGHTS)
    assert sorted(tensors) == sorted(f"{TREE}layers.{i}.{name}.lora_{part}.weight" for i in (0, 1) for part in "AB"
                                     for name in ("self_attn.q_proj", "mlp.down_proj"))
    assert tensors[f"{TREE}layers.0.mlp.down_proj.lora_A.weight"].shape == (2, 64)      # (rank, in)


def test_there_and_back(adapted, directory, make_model):
    model = make_model()
    merge_adapter(model, directory)
    wanted = merged_state_dict(adapted)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-6), name
    assert not torch.equal(model.get_parameter(Q), make_model().get_parameter(Q))


def by_hand(directory, names=("base_model.model.model.layers.0.self_attn.q_proj",), **config):
    """An adapter of rank 1: A = 2 at the first input, B = 3 at the second output; B A = 6 at (1, 0)."""
    down, up = torch.zeros(1, 32), torch.zeros(32, 1)
    down[0, 0], up[1, 0] = 2.0, 3.0
    directory.mkdir(exist_ok=True)
    save_file({f"{name}.{part}.weight": value.clone() for name in names
               for part, value in (("lora_A", down), ("lora_B", up))}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 0.5, **config}))
    return directory


@pytest.mark.parametrize(("config", "moved"), [
    ({}, 3.0),                                                              # alpha / r = 0.5
    ({"lora_alpha": 2, "alpha_pattern": {"q_proj": 0.25}}, 1.5),
    ({"lora_alpha": 2, "alpha_pattern": {"layers.0.self_attn.q_proj": 0.25, "q_proj": 9}}, 1.5),    # PEFT's first match
    ({"r": 4, "rank_pattern": {"layers.0.self_attn.q_proj": 1}}, 3.0),
    ({"bias": "none", "use_dora": False, "modules_to_save": None}, 3.0),
])
def test_the_scale_by_hand(make_model, tmp_path, config, moved):
    model, before = make_model(), make_model()
    merge_adapter(model, by_hand(tmp_path / "a", **config))
    difference = model.get_parameter(Q) - before.get_parameter(Q)
    assert difference[1, 0].item() == pytest.approx(moved, abs=1e-5)
    assert difference.count_nonzero() == 1
    assert torch.equal(model.get_parameter(DOWN), before.get_parameter(DOWN))


def test_rank_stabilised(make_model, tmp_path):
    model, before = make_model(), make_model()
    down, up = torch.zeros(4, 32), torch.zeros(32, 4)
    down[0, 0], up[1, 0] = 2.0, 3.0
    by_hand(tmp_path / "a", r=4, lora_alpha=1, use_rslora=True)
    save_file({f"model.layers.0.self_attn.q_proj.lora_{part}.default.weight": value
               for part, value in (("A", down), ("B", up))}, tmp_path / "a" / WEIGHTS)
    merge_adapter(model, tmp_path / "a")
    assert (model.get_parameter(Q) - before.get_parameter(Q))[1, 0].item() == pytest.approx(3.0)     # 1 / sqrt(4) * 6


def test_the_names_of_other_releases(make_model, tmp_path):
    models = []
    for tree in ("base_model.model.model.layers.0.self_attn.q_proj", TREE + "layers.0.self_attn.q_proj",
                 "base_model.model.language_model.layers.0.self_attn.q_proj"):
        models.append(make_model())
        merge_adapter(models[-1], by_hand(tmp_path / "a", names=(tree,)))
    assert all(torch.equal(model.get_parameter(Q), models[0].get_parameter(Q)) for model in models)


@pytest.mark.parametrize(("config", "words"), [
    ({"peft_type": "IA3"}, "adapter_config.json: peft_type is 'IA3'; only LORA is read"),
    ({"use_dora": True}, "use_dora is True, which is more than a low-rank update; merge the adapter with peft"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is .'lm_head'."),
    ({"r": "two"}, "adapter_config.json: r is 'two'; it must be a number above 0"),
    ({"lora_alpha": -1}, "lora_alpha is -1; it must be a number above 0"),
    ({"r": 8}, "says rank 8 for model.layers.0.self_attn.q_proj.weight, the tensors have 1"),
    ({"alpha_pattern": {"x_proj": 1}}, "alpha_pattern: 'x_proj' names no layer of the adapter"),
    ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern of 'q_proj' is None"),
    ({"rank_pattern": [1]}, "rank_pattern is .1.; it must be an object from layer to number"),
    ({"use_rslora": "false"}, "use_rslora is 'false'; it must be true or false"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', whose base weights are not those"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
])
def test_other_configurations_are_refused(make_model, tmp_path, config, words):
    model = make_model()
    with pytest.raises(ValueError, match=words):
        merge_adapter(model, by_hand(tmp_path / "a", **config))
    assert torch.equal(model.get_parameter(Q), make_model().get_parameter(Q))


def test_other_tensors_are_refused(make_model, directory, tmp_path):
    tensors, model = load_file(directory / WEIGHTS), make_model()
    half = {name: value for name, value in tensors.items() if not name.endswith("0.self_attn.q_proj.lora_B.weight")}
    foreign = {f"{TREE}layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32),
               f"{TREE}layers.7.self_attn.q_proj.lora_B.weight": torch.zeros(32, 2)}
    for content, words in (
            (half, "only one of A and B for model.layers.0.self_attn.q_proj.weight"),
            ({**tensors, f"{TREE}layers.0.self_attn.q_proj.lora_magnitude_vector": torch.zeros(32)}, "no A or B of a"),
            ({**tensors, **foreign}, "layers.7.self_attn.q_proj.weight , which the model does not have; .* 'the/base'"),
            ({name: value[:, :5].contiguous() if "lora_A" in name else value for name, value in tensors.items()},
             "A .2, 5. and B .32, 2. do not fit model.layers.0.* .32, 64."),
            ({}, "holds no adapter")):
        save_file(content, directory / WEIGHTS)
        with pytest.raises(ValueError, match=words):
            merge_adapter(model, directory)
    (directory / WEIGHTS).unlink()
    (directory / "adapter_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="pickled adapter_model.bin is not read; .* safe_serialization=True"):
        merge_adapter(model, directory)
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json; give the directory of a LoRA adapter"):
        merge_adapter(model, tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), make_model().parameters(), strict=True))


def test_an_adapter_that_is_not_finite_is_named(directory, make_model):
    tensors = load_file(directory / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, directory / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: .*lora_A.weight has values that are NaN or infinite"):
        merge_adapter(make_model(), directory)
