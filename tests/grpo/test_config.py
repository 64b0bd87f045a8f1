"""Configuration: flags come from fields, mistakes are errors at once, values are resolved in one order."""

import dataclasses

import pytest

from grpo.config import PRESETS, EvalConfig, GRPOConfig, SFTConfig, parse_flags, resolve


@pytest.mark.parametrize("config_class", [SFTConfig, GRPOConfig, EvalConfig])
def test_every_field_is_a_flag_with_help(config_class, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(config_class, "", ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(config_class):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert field.metadata["help"]


def test_flags_are_typed_and_absent_ones_stay_absent():
    flags = parse_flags(GRPOConfig, "", ["--group-size", "4", "--learning-rate", "1e-5", "--variant", "dapo",
                                         "--diversity", "off", "--overwrite"])
    assert flags == {"group_size": 4, "learning_rate": 1e-5, "variant": "dapo", "diversity": False, "overwrite": True}


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("True", True), ("False", False),
                                             ("1", True), ("0", False)])
def test_booleans_are_on_or_off(text, value):
    assert parse_flags(SFTConfig, "", ["--reasoning", text]) == {"reasoning": value}


@pytest.mark.parametrize("arguments", [
    ["--no-such-flag", "1"], ["--group", "4"], ["--learning", "1"],            # unknown, abbreviated
    ["--reasoning", "maybe"], ["--variant", "trpo"], ["--group-size", "four"], ["--steps", "1.5"], ["stray"]])
def test_wrong_flags_are_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(GRPOConfig, "", arguments)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error" in last and arguments[0] in last


def test_group_size_one_is_refused():
    with pytest.raises(ValueError, match="--group-size is 1; it must be 2 or more"):
        GRPOConfig(group_size=1)


@pytest.mark.parametrize(("config_class", "name", "value"), [
    (SFTConfig, "learning_rate", 0.0), (SFTConfig, "learning_rate", float("nan")), (SFTConfig, "batch_size", 0),
    (SFTConfig, "learning_rate", float("inf")), (SFTConfig, "micro_batch", 0), (SFTConfig, "max_new_tokens", 0),
    (SFTConfig, "steps", -1), (SFTConfig, "lr_schedule", "exponential"), (SFTConfig, "precision", "fp16"),
    (SFTConfig, "weight_decay", -0.1), (SFTConfig, "max_grad_norm", float("nan")), (SFTConfig, "decay_share", 0.0),
    (SFTConfig, "decay_share", 1.5), (SFTConfig, "gate", 1.5), (SFTConfig, "epochs", 0.0),
    (GRPOConfig, "temperature", 0.0), (GRPOConfig, "temperature", float("inf")), (GRPOConfig, "beta", -0.1),
    (GRPOConfig, "beta", float("nan")), (GRPOConfig, "clip_low", float("nan")), (GRPOConfig, "clip_high", -0.1),
    (GRPOConfig, "reward_weights", "1,1"), (GRPOConfig, "reward_weights", "1,one,1"), (GRPOConfig, "reward_mode", "x"),
    (GRPOConfig, "scale_rewards", "median"), (GRPOConfig, "prompts_per_step", 0), (GRPOConfig, "variant", "trpo"),
    (EvalConfig, "samples", -1), (EvalConfig, "temperature", 0.0), (EvalConfig, "speed", -1.0),
    (EvalConfig, "speed", float("nan")), (EvalConfig, "batch_size", 0)])
def test_bad_values_name_the_flag(config_class, name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is {value!r}"):
        config_class(**{name: value})


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRPOConfig().group_size = 2


def test_real_model_defaults():
    assert (SFTConfig().learning_rate, GRPOConfig().learning_rate) == (2e-5, 1e-6)
    config = GRPOConfig()
    assert (config.group_size, config.beta, config.clip_low, config.clip_high) == (8, "0.04", 0.2, 0.2)
    assert config.component_weights == {"speed": 1.0, "path": 1.0, "format": 1.0}
    assert GRPOConfig(reward_weights="2,0.5,0").component_weights == {"speed": 2.0, "path": 0.5, "format": 0.0}


def test_order_is_defaults_preset_model_flags(monkeypatch):
    # the preset says compact, 64 tokens, 2e-3; the model says alphadrive and 100; the flag says 50
    monkeypatch.setitem(PRESETS["demo"], "sft", dict(prompt_style="compact", max_new_tokens=64, learning_rate=2e-3))
    preset = resolve(SFTConfig, "sft", {}, {}, built_in=True)
    assert (preset.prompt_style, preset.max_new_tokens, preset.preset) == ("compact", 64, "demo")
    assert (preset.learning_rate, preset.batch_size) == (2e-3, SFTConfig().batch_size)
    own = {"prompt_style": "alphadrive", "max_new_tokens": 100}
    model = resolve(SFTConfig, "sft", {}, own, built_in=True)
    assert (model.prompt_style, model.max_new_tokens) == ("alphadrive", 100)
    assert model.learning_rate == 2e-3
    flags = resolve(SFTConfig, "sft", {"max_new_tokens": 50, "learning_rate": 1.0}, own, built_in=True)
    assert (flags.prompt_style, flags.max_new_tokens, flags.learning_rate) == ("alphadrive", 50, 1.0)


def test_preset_applies_by_itself_to_built_in_runs_only():
    assert resolve(GRPOConfig, "grpo", {}, {}, built_in=False) == GRPOConfig(preset="none")
    assert resolve(GRPOConfig, "grpo", {"preset": "none"}, {}, built_in=True) == GRPOConfig(preset="none")
    asked = resolve(GRPOConfig, "grpo", {"preset": "demo"}, {}, built_in=False)
    assert asked.learning_rate != GRPOConfig().learning_rate
