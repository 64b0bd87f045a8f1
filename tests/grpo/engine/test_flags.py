"""Flags: one per field, mistakes are errors at once, values are resolved in one order."""

import dataclasses
from dataclasses import replace

import pytest

from data import Example
from grpo.config import ALGORITHMS
from grpo.engine.flags import PRESETS, EvalConfig, GRPOFlags, SFTFlags, TrajectoryFlags, parse_flags, resolve
from grpo.engine.setup import check_scene_size, configure
from rewards import Decision


@pytest.mark.parametrize("config_class", [SFTFlags, GRPOFlags, EvalConfig])
def test_every_field_is_a_flag_with_help(config_class, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(config_class, "", ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(config_class):
        assert f"--{field.name.replace('_', '-')}" in shown
        assert field.metadata["help"]


def test_flags_are_typed_and_absent_ones_stay_absent():
    flags = parse_flags(GRPOFlags, "", ["--group-size", "4", "--learning-rate", "1e-5", "--variant", "dapo",
                                         "--diversity", "off", "--overwrite"])
    assert flags == {"group_size": 4, "learning_rate": 1e-5, "variant": "dapo", "diversity": False, "overwrite": True}


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("True", True), ("False", False),
                                             ("1", True), ("0", False)])
def test_booleans_are_on_or_off(text, value):
    assert parse_flags(SFTFlags, "", ["--reasoning", text]) == {"reasoning": value}


@pytest.mark.parametrize("arguments", [
    ["--no-such-flag", "1"], ["--group", "4"], ["--learning", "1"],            # unknown, abbreviated
    ["--reasoning", "maybe"], ["--variant", "trpo"], ["--group-size", "four"], ["--steps", "1.5"], ["stray"]])
def test_wrong_flags_are_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(GRPOFlags, "", arguments)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error" in last and arguments[0] in last


@pytest.mark.parametrize(("config_class", "name", "value"), [
    (SFTFlags, "learning_rate", 0.0), (SFTFlags, "learning_rate", float("nan")), (SFTFlags, "batch_size", 0),
    (SFTFlags, "learning_rate", float("inf")), (SFTFlags, "micro_batch_tokens", 0), (SFTFlags, "max_new_tokens", 0),
    (SFTFlags, "steps", -1), (SFTFlags, "lr_schedule", "exponential"), (SFTFlags, "precision", "fp16"),
    (SFTFlags, "weight_decay", -0.1), (SFTFlags, "max_grad_norm", float("nan")), (SFTFlags, "decay_share", 0.0),
    (SFTFlags, "decay_share", 1.5), (SFTFlags, "gate", 1.5), (SFTFlags, "epochs", 0.0),
    (GRPOFlags, "temperature", 0.0), (GRPOFlags, "temperature", float("inf")), (GRPOFlags, "beta", -0.1),
    (GRPOFlags, "beta", float("nan")), (GRPOFlags, "clip_low", float("nan")), (GRPOFlags, "clip_high", -0.1),
    (GRPOFlags, "reward_weights", "1,1"), (GRPOFlags, "reward_weights", "1,one,1"), (GRPOFlags, "reward_mode", "x"),
    (GRPOFlags, "scale_rewards", "median"), (GRPOFlags, "prompts_per_step", 0), (GRPOFlags, "variant", "trpo"),
    (GRPOFlags, "beta", "1:2"), (GRPOFlags, "ent_coef", "1:0:step"), (GRPOFlags, "bc_coef", "much"),
    (GRPOFlags, "vf_coef", "1:-1:linear"), (GRPOFlags, "pg_coef", "inf"), (GRPOFlags, "gamma", 1.01),
    (GRPOFlags, "gae_lambda", -0.1), (GRPOFlags, "target_kl", -1.0), (GRPOFlags, "reward_kl", float("nan")),
    (GRPOFlags, "delta", 1.1), (GRPOFlags, "importance_cap", -1.0), (GRPOFlags, "dynamic_sampling", -1),
    (GRPOFlags, "length_margin", 256), (GRPOFlags, "advantage", "value"), (GRPOFlags, "algorithm", "trpo"),
    (GRPOFlags, "answer", "way"), (SFTFlags, "answer", ""), (GRPOFlags, "trajectory_reward", "pdms"),
    (GRPOFlags, "reward_weights", "1,1,1,1"), (EvalConfig, "answer", "way"),
    (GRPOFlags, "value_learning_rate", 0.0), (GRPOFlags, "updates_per_rollout", 0),
    (EvalConfig, "samples", -1), (EvalConfig, "temperature", 0.0), (EvalConfig, "speed", -1.0),
    (EvalConfig, "speed", float("nan")), (EvalConfig, "batch_size", 0)])
def test_bad_values_name_the_flag(config_class, name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is {value!r}"):
        config_class(**{name: value})


def test_the_reference_of_adapters_has_its_own_type():
    assert GRPOFlags(lora_rank=2).reference_dtype == "auto" and GRPOFlags(reference_dtype="fp32").lora_rank == 0
    with pytest.raises(ValueError, match="--reference-dtype is 'fp32'; it must be auto with --lora-rank"):
        GRPOFlags(lora_rank=2, reference_dtype="fp32")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRPOFlags().group_size = 2


def test_real_model_defaults():
    assert (SFTFlags().learning_rate, GRPOFlags().learning_rate) == (2e-5, 1e-6)
    config = GRPOFlags()
    assert (config.group_size, config.beta, config.clip_low, config.clip_high) == (8, "0.04", 0.2, 0.2)
    assert config.component_weights == {"speed": 1.0, "path": 1.0, "format": 1.0}
    assert GRPOFlags(reward_weights="2,0.5,0").component_weights == {"speed": 2.0, "path": 0.5, "format": 0.0}


def test_way_points_are_a_reward_of_their_own():
    def weights(**settings):
        return GRPOFlags(answer="trajectory", **settings).component_weights
    assert weights() == {"speed": 1.0, "path": 1.0, "format": 1.0, "waypoints": 1.0}
    assert weights(reward_weights="1,2,0", trajectory_reward="pdms") == {
        "speed": 1.0, "path": 2.0, "format": 0.0, "pdms": 1.0}
    assert weights(reward_weights="1,1,1,0.25", length_margin=4)["waypoints"] == 0.25
    with pytest.raises(ValueError, match="speed,path,format; or a fourth for the way-points"):
        weights(reward_weights="1,1")
    with pytest.raises(ValueError, match="--answer is 'trajectory'; it must be plan with --task caption"):
        SFTFlags(task="caption", answer="trajectory")


def test_way_points_lengthen_the_preset_s_answers(monkeypatch):
    monkeypatch.setitem(PRESETS["demo"], "sft", dict(max_new_tokens=48))
    asked = {"answer": "trajectory"}
    assert resolve(SFTFlags, "sft", asked, {}, built_in=True).max_new_tokens == 144
    assert resolve(SFTFlags, "sft", {**asked, "max_new_tokens": 50}, {}, built_in=True).max_new_tokens == 50
    assert resolve(SFTFlags, "sft", asked, {"max_new_tokens": 150}, built_in=True).max_new_tokens == 150
    assert resolve(SFTFlags, "sft", {}, {}, built_in=True).max_new_tokens == 48


def test_order_is_defaults_preset_model_flags(monkeypatch):
    # the preset says compact, 64 tokens, 2e-3; the model says alphadrive and 100; the flag says 50
    monkeypatch.setitem(PRESETS["demo"], "sft", dict(prompt_style="compact", max_new_tokens=64, learning_rate=2e-3))
    preset = resolve(SFTFlags, "sft", {}, {}, built_in=True)
    assert (preset.prompt_style, preset.max_new_tokens, preset.preset) == ("compact", 64, "demo")
    assert (preset.learning_rate, preset.batch_size) == (2e-3, SFTFlags().batch_size)
    own = {"prompt_style": "alphadrive", "max_new_tokens": 100}
    model = resolve(SFTFlags, "sft", {}, own, built_in=True)
    assert (model.prompt_style, model.max_new_tokens) == ("alphadrive", 100)
    assert model.learning_rate == 2e-3
    flags = resolve(SFTFlags, "sft", {"max_new_tokens": 50, "learning_rate": 1.0}, own, built_in=True)
    assert (flags.prompt_style, flags.max_new_tokens, flags.learning_rate) == ("alphadrive", 50, 1.0)


def test_preset_applies_by_itself_to_built_in_runs_only():
    assert resolve(GRPOFlags, "grpo", {}, {}, built_in=False) == GRPOFlags(preset="none")
    assert resolve(GRPOFlags, "grpo", {"preset": "none"}, {}, built_in=True) == GRPOFlags(preset="none")
    asked = resolve(GRPOFlags, "grpo", {"preset": "demo"}, {}, built_in=False)
    assert asked.learning_rate != GRPOFlags().learning_rate


# ---------------------------------------------------------------- algorithms

DOCUMENTED = {
    "reinforce": {"variant": "reinforce", "advantage": "return", "beta": "0", "reward_kl": 0.0},
    "rloo": {"variant": "reinforce", "advantage": "leave_one_out", "beta": "0", "reward_kl": 0.04},
    "ppo": {"variant": "ppo", "advantage": "gae", "beta": "0", "reward_kl": 0.04, "updates_per_rollout": 4,
            "vf_coef": "0.5", "whiten_advantages": True, "clip_value": 0.2, "gamma": 1.0, "gae_lambda": 0.95},
    "grpo": {"variant": "grpo", "advantage": "group", "scale_rewards": "group", "beta": "0.04", "clip_high": 0.2},
    "dapo": {"variant": "dapo", "advantage": "group", "clip_low": 0.2, "clip_high": 0.28, "beta": "0",
             "dynamic_sampling": 3},
    "dr_grpo": {"variant": "dr_grpo", "advantage": "group", "scale_rewards": "none", "beta": "0"},
    "gspo": {"variant": "gspo", "advantage": "group", "clip_low": 3e-4, "clip_high": 4e-4, "beta": "0"},
    "cispo": {"variant": "cispo", "advantage": "group", "clip_low": 1.0, "clip_high": 4.0, "beta": "0"},
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_algorithm_is_its_documented_settings(name):
    config = resolve(GRPOFlags, "grpo", {"algorithm": name}, {}, built_in=False)
    assert {field: getattr(config, field) for field in DOCUMENTED[name]} == DOCUMENTED[name]
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}
    assert changed <= {*DOCUMENTED[name], "preset", "algorithm"}               # and nothing else


def test_the_table_and_the_flag_name_the_same_algorithms():
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(GRPOFlags)}["algorithm"]
    assert set(choices) == set(ALGORITHMS) == set(DOCUMENTED)
    assert resolve(GRPOFlags, "grpo", {"algorithm": "grpo"}, {}, False) == GRPOFlags(preset="none")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_setting_of_an_algorithm_can_be_overridden(name):
    others = {"variant": "dapo", "advantage": "group", "beta": "0.5", "reward_kl": 0.7, "updates_per_rollout": 9,
              "vf_coef": "3", "scale_rewards": "none", "clip_low": 0.11, "clip_high": 0.12, "dynamic_sampling": 7}
    own = {field: others[field] for field in ALGORITHMS[name]}
    config = resolve(GRPOFlags, "grpo", {"algorithm": name, **own}, {}, built_in=False)
    assert {field: getattr(config, field) for field in own} == own and config.algorithm == name


def test_order_is_defaults_preset_algorithm_model_flags(monkeypatch):
    # clip_high: default .2 < preset .21 < dapo .28 < flag .3;  max_new_tokens: default 256 < preset 48 < model 100
    preset = dict(clip_high=0.21, max_new_tokens=48, learning_rate=1e-4, beta="0.5")
    monkeypatch.setitem(PRESETS["demo"], "grpo", preset)
    own = {"max_new_tokens": 100}
    plain = resolve(GRPOFlags, "grpo", {}, {}, built_in=True)
    assert (plain.clip_high, plain.max_new_tokens, plain.learning_rate, plain.beta) == (0.21, 48, 1e-4, "0.5")
    dapo = resolve(GRPOFlags, "grpo", {"algorithm": "dapo"}, own, built_in=True)
    assert (dapo.clip_high, dapo.max_new_tokens, dapo.learning_rate, dapo.beta) == (0.28, 100, 1e-4, "0")
    asked = resolve(GRPOFlags, "grpo", {"algorithm": "dapo", "clip_high": 0.3, "max_new_tokens": 9}, own, True)
    assert (asked.clip_high, asked.max_new_tokens) == (0.3, 9)


def test_a_group_of_one_is_enough_where_nothing_is_compared():
    for name in ("reinforce", "ppo"):
        assert resolve(GRPOFlags, "grpo", {"algorithm": name, "group_size": 1}, {}, built_in=False).group_size == 1


@pytest.mark.parametrize("config", [SFTFlags, GRPOFlags, EvalConfig])
@pytest.mark.parametrize(("place", "words"), [
    ("~/runs", "it must be a whole path: the shell expands ~ only at the start of a word"),
    ("file:///runs", "it must be a plain path, without file://"), (r"runs\first", "separated by /")])
def test_places_that_are_no_plain_paths_are_refused(config, place, words):
    """`--output=~/runs` would make a folder of the name ~ here."""
    for name in ("output", "model", "data"):
        with pytest.raises(ValueError, match=f"--{name} is .*{words}"):
            config(**{name: place})


@pytest.mark.parametrize("config", [SFTFlags, GRPOFlags, EvalConfig])
def test_seeds_that_no_generator_takes_are_named(config):
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"--seed is {seed}"):
            config(seed=seed)


def test_a_root_of_pictures_that_is_no_folder_is_named(tmp_path):
    for config in (SFTFlags, GRPOFlags, EvalConfig):
        assert config(image_root=str(tmp_path), data="own.jsonl").image_root
        with pytest.raises(ValueError, match="--image-root is .*gone.* it must be a folder that exists"):
            config(image_root=str(tmp_path / "gone"))


@pytest.mark.parametrize("config", [SFTFlags, GRPOFlags, EvalConfig])
@pytest.mark.parametrize("flag", [{"prior": "natural"}, {"camera_count": 3}])
def test_settings_of_built_in_scenes_are_refused_with_a_file(config, flag):
    assert config(**flag)
    with pytest.raises(ValueError, match=f"--{next(iter(flag)).replace('_', '-')} is .* with --data FILE"):
        config(data="own.jsonl", **flag)


@pytest.mark.parametrize("flags", [{"guidance": 2}, {"noise_adapt": "complexity"}])
def test_what_needs_facts_is_refused_with_logs(flags):
    with pytest.raises(ValueError, match="with --data FILE: .* the facts of the built-in scenes"):
        TrajectoryFlags(data="logs.jsonl", **flags)
    TrajectoryFlags(**flags)
    TrajectoryFlags(data="logs.jsonl", reject="drop", noise_adapt="validity")   # logs know what is comfortable


@pytest.mark.parametrize("variant", ["cispo", "reinforce"])
def test_a_bound_that_nothing_reads_is_refused(variant):
    with pytest.raises(ValueError, match="--delta"):
        GRPOFlags(variant=variant, delta=2.0)


@pytest.mark.parametrize(("config", "flags", "name", "good"), [
    (EvalConfig, {"speed": 4.0}, "speed", {"image": "a.png"}),
    (EvalConfig, {"navigation": "Turn left", "data": "own.jsonl"}, "navigation", {"images": "-", "data": "scenes"}),
    (EvalConfig, {"temperature": 0.5, "images": "-"}, "temperature", {"samples": 2}),
    (EvalConfig, {"temperature": 0.5, "samples": 0}, "temperature", {"samples": 1}),
    (EvalConfig, {"samples": 4, "trajectories": 2}, "samples", {"trajectories": 0}),
    (EvalConfig, {"data": "own.jsonl", "image": "a.png"}, "data", {"image": ""}),
    (EvalConfig, {"overwrite": True, "image": "a.png"}, "overwrite", {"image": ""}),
    (GRPOFlags, {"reward": "a.py:f", "reward_mode": "set"}, "reward_mode", {"reward": "planning,a.py:f"}),
    (GRPOFlags, {"reward": "a.py:f", "diversity": False}, "diversity", {"reward": "planning"}),
    (GRPOFlags, {"reward_processes": 2}, "reward_processes", {"reward": "a.py:f"}),
    (GRPOFlags, {"reward_timeout": 2.0, "reward": "a.py:f"}, "reward_timeout", {"reward_processes": 2}),
    (GRPOFlags, {"advantage": "gae", "variant": "ppo", "dynamic_sampling": 2}, "dynamic_sampling",
     {"advantage": "leave_one_out"}),
    (SFTFlags, {"lora_alpha": 8.0}, "lora_alpha", {"lora_rank": 2})])
def test_a_flag_that_nothing_reads_is_refused(config, flags, name, good):
    assert config(**flags | good)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is .*; it must be left out"):
        config(**flags)


def test_a_resumed_run_keeps_flags_that_an_earlier_version_took():
    assert GRPOFlags(resume="auto", lora_alpha=8.0, advantage="return", variant="reinforce", dynamic_sampling=2)
    assert EvalConfig(resume=True, samples=0, temperature=0.5)
    assert configure("sft", {"scenes": 9, "data": "own.jsonl", "model": "tiny", "resume": "auto"}).scenes == 9
    own = Example(id="a", image="a.png", speed=1.0, navigation="Go straight", decision=Decision("KEEP", "STRAIGHT"))
    check_scene_size([own], SFTFlags(model="tiny", data="own.jsonl", scene_size="56x28", resume="auto"))


def test_given_flags_that_others_make_void():
    """`--scenes` and `--epochs` have values of a preset, too, so only the command line tells."""
    for flags, told in (({"scenes": 9, "data": "own.jsonl"}, "--scenes is 9; it must be left out with --data FILE"),
                        ({"epochs": 2.0}, "--epochs is 2.0; it must be left out with --steps 300")):
        with pytest.raises(ValueError, match=told):
            configure("sft", flags)
    assert configure("sft", {"epochs": 2.0, "steps": 0}).steps == 0
    assert configure("sft", {"preset": "demo", "data": "own.jsonl", "model": "tiny"}).steps == 300


def test_a_size_of_scenes_is_refused_with_pictures():
    own = Example(id="a", image="a.png", speed=1.0, navigation="Go straight", decision=Decision("KEEP", "STRAIGHT"))
    config = SFTFlags(model="tiny", data="own.jsonl", scene_size="56x28")
    with pytest.raises(ValueError, match="--scene-size is '56x28'; it must be left out for own.jsonl, whose pictures"):
        check_scene_size([own], config)
    check_scene_size([own, replace(own, image=None, scene=1)], config)
