"""The trajectory stages as commands: runs, resume to the bit, conditions, evaluation, errors that say what to do."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eval as evaluation
import report
import train
import trajectory.demonstrations
import trajectory.scenes
from data.scenes import sample_scene, scene_examples
from data.scenes.geometry import BEND_CURVATURE
from grpo.engine import loop
from grpo.engine.checkpoint import save_policy
from grpo.engine.conditions import features_of, load_planner
from grpo.engine.driven import chosen_latents
from grpo.engine.flags import EvalConfig
from grpo.engine.prompts import PromptSettings
from grpo.engine.trajectories import gain
from models.qwen2_vl import new_model
from trajectory.field import make_field
from trajectory.files import load_decoder
from trajectory.kinematics import fit
from trajectory.scenes import make_scenes

BC = ["--stage", "trajectory-bc", "--scenes", 48, "--eval-examples", 8, "--steps", 4, "--batch-size", 16, "--rounds", 0,
      "--device", "cpu"]
GRPO = ["--stage", "trajectory-grpo", "--scenes", 48, "--eval-examples", 8, "--steps", 4, "--prompts-per-step", 4,
        "--group-size", 4, "--samples-every", 1, "--device", "cpu"]


def of_file(stage):
    """The flags of a stage without --scenes, which --data FILE does not read."""
    return [*stage[:2], *stage[4:]]


def run(*flags):
    train.main([str(flag) for flag in flags])


def score(*flags):
    evaluation.main([str(flag) for flag in flags])


def message(command, *flags):
    with pytest.raises(SystemExit) as stop:
        command(*flags)
    return str(stop.value.code)


def records(file):
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "tokens_per_second")}
            for line in file.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def rough_fits():
    """Controls are fitted in 5 updates instead of 20 and 60: these tests do not ask how well a car drives."""
    def roughly(*arguments, updates=60):
        return fit(*arguments, updates=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory.demonstrations, "fit", roughly)
        patch.setattr(trajectory.scenes, "fit", roughly)
        yield


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A decoder on facts, cloned for four steps."""
    output = tmp_path_factory.mktemp("cloned") / "bc"
    run(*BC, "--condition", "facts", "--output", output)
    return output


@pytest.fixture(scope="module")
def planner(tmp_path_factory, micro_config, processor):
    directory = tmp_path_factory.mktemp("planner") / "model"
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    save_policy(model, processor, PromptSettings("compact", max_new_tokens=8), {}, directory)
    return directory


def test_a_run_leaves_a_decoder_logs_and_a_configuration(cloned):
    _, about = load_decoder(cloned / "model")
    assert about["condition"] == "facts" and about["stage"] == "trajectory-bc" and about["step"] == 4
    lines = records(cloned / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert 0 < lines[-1]["val_accuracy"] < 1 and lines[-1]["tokens"] == 16
    assert json.loads((cloned / "config.json").read_text())["stage"] == "trajectory-bc"


def test_grpo_on_it_logs_factors_and_groups(cloned, tmp_path):
    run(*GRPO, "--model", cloned / "model", "--output", tmp_path / "run", "--updates-per-rollout", 2, "--ratio-reduce",
        "mean")
    line = records(tmp_path / "run/metrics.jsonl")[-1]
    assert line["logprob_gap"] < 1e-3                       # sampler and trainer reduce alike
    for name in ("reward", "reward_no_collision", "reward_progress", "accepted", "kl", "clipped_1", "clipped_5",
                 "flat_groups"):
        assert math.isfinite(line[name]), name
    assert "entropy" not in line                            # it does not depend on the weights
    group = records(tmp_path / "run/samples.jsonl")[0]
    assert np.array(group["waypoints"]).shape == (4, 8, 2) and len(group["advantages"]) == 4
    assert load_decoder(tmp_path / "run/model")[1]["condition"] == "facts"
    report.main([str(tmp_path / "run")])                    # it is not scored yet: its curves are shown
    assert "Share without a collision" in (tmp_path / "run/report.html").read_text()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("stage", ["trajectory-bc", "trajectory-grpo"])
def test_an_interrupted_run_continues_to_the_bit(stage, cloned, tmp_path, monkeypatch):
    flags = [*BC, "--condition", "facts", "--rounds", 1, "--round-gain", 0] if stage == "trajectory-bc" else \
        [*GRPO, "--model", cloned / "model", "--algorithm", "ppo", "--eval-every", 2]
    flags += ["--save-every", 1]
    run(*flags, "--output", tmp_path / "calm")
    real = loop.write_step

    def dying(run, step, *rest):
        real(run, step, *rest)
        if step == 3:
            raise Killed

    monkeypatch.setattr(loop, "write_step", dying)
    with pytest.raises(Killed):
        run(*flags, "--output", tmp_path / "killed")
    monkeypatch.setattr(loop, "write_step", real)
    run(*flags, "--output", tmp_path / "killed", "--resume", "auto")
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (tmp_path / "calm" / name).exists():
            assert records(tmp_path / "calm" / name) == records(tmp_path / "killed" / name)
    one, two = (load_file(tmp_path / name / "model/decoder.safetensors") for name in ("calm", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_cloning_ends_when_a_round_gains_too_little(tmp_path, capsys):
    run(*BC, "--condition", "facts", "--rounds", 3, "--round-gain", 0.9, "--output", tmp_path / "run")
    assert len(records(tmp_path / "run/metrics.jsonl")) == 6                    # 4, and one round of 2 that gains less
    assert "2 more steps, until they lower the validation loss by less than 90%" in capsys.readouterr().out


def test_gain_by_hand():
    # scores are exp(-loss): losses .5 and .4, a gain of a fifth
    assert gain(math.exp(-0.5), math.exp(-0.4)) == pytest.approx(0.2, abs=1e-6)
    assert gain(-1.0, 0.5) == 1.0                           # no validation before


def test_safe_demonstrations_alone(tmp_path, capsys):
    run(*BC, "--condition", "facts", "--demonstrations", "safe", "--output", tmp_path / "run")
    said = capsys.readouterr().out
    kept = int(said.split(" of 48 demonstrations are safe")[0].split()[-1])
    assert 36 <= kept < 48 and f"{kept} training scenes" in said


@pytest.fixture(scope="module")
def planned(planner, tmp_path_factory):
    """A decoder on a planner's hidden states."""
    output = tmp_path_factory.mktemp("planned") / "bc"
    run(*BC, "--model", planner, "--output", output)
    return output / "model"


def test_conditioned_on_a_planner(planner, planned, tmp_path, capsys):
    _, about = load_decoder(planned)
    assert about["planner"] == str(planner)
    run(*GRPO, "--model", planned, "--output", tmp_path / "grpo")
    score("--trajectories", 2, "--decoder", tmp_path / "grpo/model", "--limit", 6)
    rows = records(tmp_path / "grpo/eval-test/trajectories.jsonl")
    assert len(rows) == 6 and np.array(rows[0]["greedy"]["waypoints"]).shape == (8, 2)
    for number in range(2):
        Image.new("RGB", (56, 28), (90, 120 * number, 30)).save(tmp_path / f"view-{number}.png")
    capsys.readouterr()
    score("--trajectories", 3, "--decoder", tmp_path / "grpo/model", "--image", tmp_path, "--speed", 6)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["seconds"] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert [Path(line["image"]).name for line in lines] == ["view-0.png", "view-1.png"]
    assert np.array([row["waypoints"] for row in lines[0]["trajectories"]]).shape == (3, 8, 2)
    assert "pdms" not in lines[0]["trajectories"][0]        # no boxes are known, so none are invented


def test_a_decoder_refuses_another_planner(planned, micro_config, processor, tmp_path):
    other = new_model(micro_config, torch.Generator().manual_seed(7))
    save_policy(other, processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "other")
    said = message(run, *GRPO, "--model", planned, "--planner", tmp_path / "other", "--output", tmp_path / "grpo")
    assert "is not the planner that the decoder was conditioned on" in said and "--planner" in said


def test_hidden_features_do_not_depend_on_the_batch(planner):
    from data.scenes import scene_examples
    loaded, examples = load_planner(str(planner), "cpu"), scene_examples("val", 6)
    one, many = (features_of(loaded, examples, size).values for size in (1, 4))
    assert one.shape == (6, 3 * 32) and torch.allclose(one, many, atol=1e-5)


def test_evaluation_writes_scores_with_intervals(cloned, tmp_path, capsys):
    score("--trajectories", 4, "--decoder", cloned / "model", "--limit", 12, "--output", tmp_path / "scores")
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    low, high = metrics["pdms_interval"]
    assert low <= metrics["pdms"] <= high and metrics["count"] == 12
    for name in ("greedy_pdms", "best_pdms", "demonstration_pdms", "validity", "modes_covered", "min_ade", "diversity"):
        assert name in metrics
    assert "PDMS-like" in capsys.readouterr().out
    row = records(tmp_path / "scores/trajectories.jsonl")[0]
    assert row["plan"] is None and len(row["trajectories"]) == 4
    assert row["trajectories"][0]["driven"].count(",") == 1
    assert not [name for name in metrics if "agreement" in name]                # no plan is named


def test_way_points_stand_in_the_cars_frame(cloned, tmp_path):
    score("--trajectories", 2, "--decoder", cloned / "model", "--limit", 24, "--output", tmp_path / "scores")
    bends = {"curve_left": 1, "curve_right": -1}
    seen = set()
    for row in records(tmp_path / "scores/trajectories.jsonl"):
        side = bends.get(sample_scene(row["scene"]).road, 0)
        seen.add(side)
        for one in (row["greedy"], row["demonstration"], *row["trajectories"]):
            assert ("lane" in one) == (side != 0)
            if side:
                (s, y), (_, left), radius = one["lane"][-1], one["waypoints"][-1], 1 / BEND_CURVATURE
                assert side * left == pytest.approx(radius - math.cos(s / radius) * (radius - side * y), abs=0.03)
    assert {0} < seen


def drawn(cloned, output, *flags):
    """The scores of four trajectories a scene."""
    score("--trajectories", 4, "--decoder", cloned / "model", "--limit", 8, "--output", output, *flags)
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def plainly(cloned, tmp_path_factory):
    return drawn(cloned, tmp_path_factory.mktemp("drawn") / "plain")


@pytest.mark.parametrize("flags", [["--best-of", 3], ["--guidance", 2], ["--eta", 1, "--noise-floor", 0.1],
                                   ["--plan", "expert"]])
def test_other_ways_to_draw(plainly, cloned, tmp_path, flags):
    plain, other = plainly, drawn(cloned, tmp_path / "other", *flags)
    assert plain["pdms"] != other["pdms"]
    if flags[0] == "--best-of":
        assert other["pdms"] > plain["pdms"]
        assert (plain["best_of"], other["best_of"]) == (1, 3)
        assert json.loads((tmp_path / "other/config.json").read_text())["best_of"] == 3
    if flags[0] == "--plan":
        assert other["named_plan"] is not None and 0 < other["agreement"] < 1


def test_the_best_of_several_is_chosen_without_the_jittered_metres(cloned):
    """Neither the true field nor the progress that is possible in it may choose."""
    decoder, about = load_decoder(cloned / "model")
    examples = scene_examples("test", 8)
    scenes = make_scenes(examples, features_of(None, examples, 8, "stop").values, about["metre_noise"], 0)
    config = EvalConfig(trajectories=1, best_of=8, decoder=str(cloned / "model"))
    one, other = (chosen_latents(decoder, part, list(range(8)), config) for part in (
        scenes, replace(scenes, field=make_field(examples[::-1]), reach=torch.zeros(8))))
    assert torch.equal(one, other)


def test_logs_with_trajectories(planner, tmp_path, capsys):
    """Real data: way-points of the ego's future, no boxes. Reward and metrics are distances and kinematics."""
    Image.new("RGB", (56, 28), (90, 90, 90)).save(tmp_path / "a.png")
    wiggle = np.random.default_rng(0).normal(size=(60, 8, 2)).cumsum(1) * 0.2
    lines = [{"id": f"log-{i}", "image": "a.png", "speed": 6.0, "navigation": "Go straight",
              "decision": "KEEP, STRAIGHT", "split": "val" if i % 6 == 0 else "train",
              "trajectory": [[3.0 * (t + 1) + wiggle[i, t, 0], wiggle[i, t, 1]] for t in range(8)]} for i in range(60)]
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    data = ["--data", file]
    run(*of_file(BC), "--model", planner, *data, "--output", tmp_path / "bc")
    run(*of_file(GRPO), "--model", tmp_path / "bc/model", *data, "--output", tmp_path / "grpo")
    assert "reward_distance" in records(tmp_path / "grpo/metrics.jsonl")[-1]
    score("--trajectories", 2, "--decoder", tmp_path / "grpo/model", *data, "--split", "val")
    metrics = json.loads((tmp_path / "grpo/eval-val/metrics.json").read_text())
    assert "pdms" not in metrics and metrics["ade"] > 0 and "comfort" in metrics
    capsys.readouterr()
    file.write_text("\n".join(json.dumps({**line, "trajectory": line["trajectory"] if i else None})
                              for i, line in enumerate(lines)))
    score("--trajectories", 2, "--decoder", tmp_path / "grpo/model", *data, "--split", "val", "--output",
          tmp_path / "most")
    assert "note: 1 of 10 have no trajectory, so no distances are computed" in capsys.readouterr().out
    assert "ade" not in json.loads((tmp_path / "most/metrics.json").read_text())
    bare = [{name: value for name, value in line.items() if name != "trajectory"} for line in lines]
    file.write_text("\n".join(json.dumps(line) for line in bare))
    said = message(run, *of_file(BC), "--model", planner, *data, "--output", tmp_path / "none")
    assert "have no `trajectory`, the first is 'log-" in said


def test_broken_pictures_of_logs_and_no_validation(planner, tmp_path, capsys):
    """Two of 30 pictures are torn, and no example has the split val."""
    Image.new("RGB", (56, 28), (90, 90, 90)).save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    lines = [{"id": f"log-{i}", "image": "torn.png" if i in (3, 11) else "a.png", "speed": 6.0, "split": "train",
              "navigation": "Go straight", "decision": "KEEP, STRAIGHT",
              "trajectory": [[3.0 * (t + 1), 0.1 * math.cos(i * t)] for t in range(8)]} for i in range(30)]
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    flags = [*of_file(BC), "--model", planner, "--data", file]
    assert "example 'log-3': picture" in message(run, *flags, "--output", tmp_path / "stopped")
    run(*flags, "--on-bad-data", "skip", "--save-every", 2, "--output", tmp_path / "bc")
    said = capsys.readouterr().out
    assert "warning: 2 of 30 examples cannot be used" in said and "28 training scenes, 0 for validation" in said
    assert [row["fault"].split(":")[0] for row in records(tmp_path / "bc/skipped.jsonl")] == ["example 'log-3'",
                                                                                              "example 'log-11'"]
    run(*flags, "--on-bad-data", "skip", "--output", tmp_path / "bc", "--resume", "auto", "--steps", 5)
    assert len(records(tmp_path / "bc/metrics.jsonl")) == 5 and len(records(tmp_path / "bc/skipped.jsonl")) == 2
    driven = ["--trajectories", 2, "--decoder", tmp_path / "bc/model", "--data", file, "--split", "train",
              "--noise-floor", 1]                            # so few steps of cloning leave no other spread
    assert "example 'log-3': picture" in message(score, *driven)
    score(*driven, "--on-bad-data", "skip")
    rows = records(tmp_path / "bc/eval-train/trajectories.jsonl")
    assert [row["id"] for row in rows] == [f"log-{i}" for i in range(30) if i not in (3, 11)]
    assert json.loads((tmp_path / "bc/eval-train/metrics.json").read_text())["skipped"] == 2
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes())      # skipping changed no other drive
    score(*driven, "--output", tmp_path / "mended")
    mended = records(tmp_path / "mended/trajectories.jsonl")
    assert [row for row in mended if row["id"] not in ("log-3", "log-11")] == rows
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    capsys.readouterr()
    score("--trajectories", 1, "--decoder", tmp_path / "bc/model", "--image", tmp_path, "--on-bad-data", "skip")
    said = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in said.out.splitlines()] == ["a.png"]
    assert "skipped: " in said.err and "torn.png" in said.err


def test_facts_are_those_of_built_in_scenes(cloned, tmp_path):
    Image.new("RGB", (56, 28), (90, 90, 90)).save(tmp_path / "a.png")
    line = {"id": "log", "image": "a.png", "speed": 6.0, "navigation": "Go straight", "decision": "KEEP, STRAIGHT",
            "trajectory": [[3.0 * (t + 1), 0.0] for t in range(8)]}
    (tmp_path / "logs.json").write_text(json.dumps([line]))
    decoder, data = cloned / "model", ("--data", tmp_path / "logs.json")
    for command, flags in ((run, [*of_file(GRPO), "--model", decoder, *data, "--output", tmp_path / "run"]),
                           (score, ["--trajectories", 1, "--decoder", decoder, *data, "--split", "all"]),
                           (score, ["--trajectories", 1, "--decoder", decoder, "--image", tmp_path / "a.png"])):
        assert "conditioned on the facts of built-in scenes, which pictures lack" in message(command, *flags)


@pytest.mark.parametrize(("flags", "said"), [
    (["--stage", "trajectory-grpo"], "run `python train.py --stage trajectory-bc` first"),
    (["--stage", "trajectory-bc"], "run `python train.py --stage sft`"),
    (["--stage", "trajectory-bc", "--model", "missing"], "missing"),
])
def test_what_to_run_first(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in message(run, *flags)


def test_no_decoder_to_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run `python train.py --stage trajectory-bc`" in message(score, "--trajectories", 4)


@pytest.mark.parametrize(("stage", "flag", "owner"), [
    ("grpo", "--noise-floor=.1", "trajectory-grpo"), ("sft", "--guidance=1", "trajectory-grpo"),
    ("trajectory-grpo", "--temperature=1", "grpo"), ("trajectory-bc", "--reward-mode=paper", "grpo"),
    ("trajectory-grpo", "--ent-coef=.1", "grpo"), ("trajectory-grpo", "--lora-rank=4", "sft, grpo")])
def test_flags_of_other_stages_are_refused_by_name(stage, flag, owner, capsys):
    with pytest.raises(SystemExit):
        run("--stage", stage, flag)
    assert f"belongs to --stage {owner}" in capsys.readouterr().err


def test_a_broken_decoder_is_named(cloned, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/decoder.json").write_bytes((cloned / "model/decoder.json").read_bytes())
    (tmp_path / "model/decoder.safetensors").write_bytes(b"torn")
    said = message(run, *GRPO, "--model", tmp_path / "model", "--output", tmp_path / "run")
    assert "is no sound decoder" in said
    said = message(run, *GRPO, "--model", tmp_path, "--output", tmp_path / "run")
    assert "holds no decoder.json" in said


# ---------------------------------------------------------------- features, rounds and rankings of other runs

def losses(output):
    return [row["loss"] for row in records(output / "metrics.jsonl")]


def test_features_of_another_run_are_not_read(planner, tmp_path):
    """Where an earlier run has left features but no state, and where their file is cut short."""
    out, planned = tmp_path / "out", [*BC, "--model", planner]
    run(*planned, "--output", tmp_path / "calm")
    run(*BC, "--condition", "facts", "--output", out)
    run(*planned, "--output", out, "--overwrite", "--resume", "auto")
    assert losses(out) == losses(tmp_path / "calm")
    run(*planned, "--output", out, "--overwrite", "--save-every", 2)
    file = out / "features.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    run(*planned, "--output", out, "--resume", out / "state/step-00000002")
    assert losses(out) == losses(tmp_path / "calm")


def test_a_run_is_not_resumed_with_another_planner(planner, micro_config, processor, tmp_path):
    other = tmp_path / "other"
    save_policy(new_model(micro_config, torch.Generator().manual_seed(7)), processor,
                PromptSettings("compact", max_new_tokens=8), {}, other)
    run(*BC, "--model", planner, "--save-every", 2, "--output", tmp_path / "run")
    kept = (tmp_path / "run/features.safetensors").read_bytes()
    said = message(run, *BC, "--model", other, "--output", tmp_path / "run", "--resume", tmp_path /
                   "run/state/step-00000002")
    assert "was written with another --model" in said
    assert (tmp_path / "run/features.safetensors").read_bytes() == kept


def test_a_run_resumed_at_the_end_of_a_round_goes_on_to_the_next(tmp_path):
    flags = [*BC, "--condition", "facts", "--rounds", 2, "--round-gain", 1e-6, "--save-every", 1, "--keep", 20,
             "--learning-rate", 1e-3, "--warmup-steps", 0]
    run(*flags, "--output", tmp_path / "run")
    whole = losses(tmp_path / "run")
    assert len(whole) == 8                                  # 4, 2 and 2
    run(*flags, "--output", tmp_path / "run", "--resume", tmp_path / "run/state/step-00000006")
    assert losses(tmp_path / "run") == whole


def test_a_ranking_decoder_must_have_the_same_condition(cloned, planned, planner, micro_config, processor, tmp_path):
    said = message(run, *BC, "--condition", "facts", "--ranked", planned, "--output", tmp_path / "a")
    assert "is conditioned on planner, this run on facts" in said
    other = tmp_path / "other"
    save_policy(new_model(micro_config, torch.Generator().manual_seed(7)), processor,
                PromptSettings("compact", max_new_tokens=8), {}, other)
    said = message(run, *BC, "--model", other, "--ranked", planned, "--output", tmp_path / "b")
    assert "is not the planner that the decoder was conditioned on" in said
    said = message(run, *of_file(BC), "--model", planner, "--data", tmp_path / "logs.json", "--ranked", planned)
    assert "--ranked is" in said and "left out with --data FILE" in said


def test_logs_validate_by_their_distance_whatever_trains(planner, tmp_path):
    """The same decoder, hardly changed, on the same logs: with scenes or with the logs as training data."""
    wiggle = np.random.default_rng(0).normal(size=(60, 8, 2)).cumsum(1) * 0.2
    Image.new("RGB", (56, 28), (90, 90, 90)).save(tmp_path / "a.png")
    lines = [{"id": f"log-{i}", "image": "a.png", "speed": 6.0, "navigation": "Go straight", "split": name,
              "decision": "KEEP, STRAIGHT", "trajectory": (wiggle[i] + [[3.0 * (t + 1), 0] for t in range(8)]).tolist()}
             for i, name in enumerate(["train"] * 50 + ["val"] * 10)]
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    run(*of_file(BC), "--model", planner, "--data", file, "--output", tmp_path / "bc")
    still = [*of_file(GRPO), "--steps", 1, "--learning-rate", 1e-12, "--model", tmp_path / "bc/model"]
    run(*still, "--data", file, "--output", tmp_path / "logs")
    run(*still, "--val-data", file, "--scenes", 48, "--output", tmp_path / "scenes")
    found = [records(tmp_path / name / "metrics.jsonl")[-1]["val_accuracy"] for name in ("logs", "scenes")]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_group_of_one_has_no_spread(cloned, tmp_path):
    run(*GRPO, "--model", cloned / "model", "--algorithm", "reinforce", "--group-size", 1, "--output", tmp_path / "run")
    assert records(tmp_path / "run/metrics.jsonl")[-1]["reward_std"] == 0


@pytest.mark.parametrize(("flags", "said"), [
    (["--image", "a.png", "--best-of", 3], "--best-of is 3"),
    (["--image", "a.png", "--guidance", 2], "--guidance is 2"),
    (["--image", "a.png", "--plan", "expert"], "--plan is 'expert'; it must be none or planner with --image"),
    (["--resume"], "--resume is on; it must be left out with --trajectories")])
def test_flags_without_effect_on_driving_are_refused(cloned, flags, said):
    assert said in message(score, "--trajectories", 1, "--decoder", cloned / "model", *flags)


def test_another_prior_has_a_folder_of_its_own(cloned, tmp_path):
    decoder = shutil.copytree(cloned / "model", tmp_path / "run/model")
    score("--trajectories", 1, "--decoder", decoder, "--limit", 3, "--prior", "natural")
    assert json.loads((tmp_path / "run/eval-test-natural/metrics.json").read_text())["prior"] == "natural"


def test_seeds_beyond_31_bits_are_refused(tmp_path):
    assert "--seed is 4294967296" in message(run, *BC, "--condition", "facts", "--seed", 2**32, "--output", tmp_path)
