"""What the scripts decide themselves: which examples a step sees, what reaches the rewards, what the scores are."""

import json
import math
from functools import partial

import pytest
import torch
from PIL import Image

import report
from data.dataset import indices_at, open_image
from data.example import Example
from data.scenes import scene_examples, scene_text_corpus
from grpo.engine import setup
from grpo.engine.checkpoint import save_policy
from grpo.engine.examples import check_boxes, warn_of_long_targets, with_demonstrations, with_waypoints
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.loop import follow, headline
from grpo.engine.optimizer import make_optimizer, make_scheduler
from grpo.engine.prompts import PromptSettings
from grpo.engine.rewards import make_reward_fn
from grpo.engine.run import Run
from grpo.engine.setup import configure, prepare
from grpo.engine.stages import grpo_steps, make_learner, sft_steps
from grpo.engine.state import LoopState, Trained
from grpo.fast import FAST
from grpo.fast.sampler import generate
from models.qwen2_vl import frozen_model
from rewards import Decision
from rewards.waypoints import write_waypoints

KEEP, STOP = Decision("KEEP", "STRAIGHT"), Decision("STOP", "STRAIGHT")


def plan(decision, think="<think> Because. </think> "):
    return f"{think}<answer> {decision} </answer>"


@pytest.fixture
def make_run(make_model, processor, make_examples, tmp_path):
    """A Run whose encoded examples are noted in `seen`."""
    def make(config, count=6, seen=None):
        class Noted(Run):
            def encode(self, example):
                if seen is not None:
                    seen.append(example.id)
                return super().encode(example)
        settings = PromptSettings("compact", max_new_tokens=config.max_new_tokens)
        model = make_model(stop=3.0)

        def write(policy, facts, directory):
            save_policy(policy, processor, settings, facts, directory)

        return Noted(config, model, processor, settings, open_image, make_examples(count), [], tmp_path, write,
                     partial(frozen_model, model.config), about={"stage": "test"})
    return make


def make_trained(run):
    optimizer = make_optimizer(run.policy, run.config)
    return Trained(run.policy, None, optimizer, make_scheduler(optimizer, run.config, 9))


def test_every_sft_step_reads_new_examples(make_run):
    seen = []
    config = SFTFlags(batch_size=2, prompt_style="compact", steps=3, max_new_tokens=8, device="cpu")
    run = make_run(config, seen=seen)
    assert len(list(sft_steps(run, make_trained(run), FAST, 0, 3))) == 3
    wanted = [run.examples[i].id for i in indices_at(6, 0, 0, 6)]
    assert seen == wanted and len(set(seen)) == 6                  # 3 steps of 2: one whole epoch, nothing twice


def test_every_grpo_step_reads_new_examples(make_run):
    seen = []
    config = GRPOFlags(group_size=2, prompts_per_step=2, prompt_style="compact", max_new_tokens=4, device="cpu")
    run = make_run(config, seen=seen)
    assert len(list(grpo_steps(run, make_learner(run, 3), make_reward_fn(config), 0, 3))) == 3
    assert len(seen) == 6 and len(set(seen)) == 6


def test_reward_flags_reach_the_rewards():
    example = Example(id="a", scene=0, speed=1.0, navigation="Go straight", decision=STOP)
    hedge = plan("STOP, KEEP, STRAIGHT")
    (row,) = make_reward_fn(GRPOFlags())(example, [hedge])
    # F1 of {STOP, KEEP} against STOP = 2/3, mean weight (1 + .8) / 2 = .9: .6; the path is right: .8
    assert row == pytest.approx({"speed": 0.6, "path": 0.8, "format": 0.0, "accuracy": 0.0})
    (row,) = make_reward_fn(GRPOFlags(reward_accuracy="exact"))(example, [hedge])
    assert row["speed"] == 0.0
    twice = [plan(STOP)] * 2
    with_factor = make_reward_fn(GRPOFlags())(example, twice)
    without = make_reward_fn(GRPOFlags(diversity=False))(example, twice)
    assert [row["speed"] for row in with_factor] == pytest.approx([0.8, 0.8])       # (2 - 1) / 2, cut to .2
    assert [row["speed"] for row in without] == [1.0, 1.0]
    answer_only = make_reward_fn(GRPOFlags(reasoning=False))(example, [plan(STOP, "")])
    assert answer_only[0]["format"] == 1.0


def test_way_points_are_paid_beside_the_plan():
    # 1 m aside everywhere: exp(-1 / 2) = .606531; the plan's rewards do not change by the block
    ahead = tuple((float(k), 0.0) for k in range(1, 9))
    example = Example(id="a", scene=0, speed=1.0, navigation="Go straight", decision=STOP, trajectory=ahead)
    texts = [f"{plan(STOP)} {write_waypoints([(x, 1.0) for x, _ in ahead])}", plan(STOP),
             f"{plan(KEEP)} {write_waypoints(ahead)}"]
    rows = make_reward_fn(GRPOFlags(answer="trajectory"))(example, texts)
    plans = make_reward_fn(GRPOFlags())(example, [plan(STOP), plan(STOP), plan(KEEP)])
    for row, without, form, waypoints in zip(rows, plans, (1.0, 0.0, 1.0), (0.606531, 0.0, 1.0), strict=True):
        assert row == pytest.approx({**without, "format": form, "waypoints": waypoints}, abs=1e-6)


def test_the_score_of_driving_is_paid_on_built_in_scenes_only():
    (example,) = with_demonstrations(scene_examples("test", 1))
    config = GRPOFlags(answer="trajectory", trajectory_reward="pdms", reasoning=False)
    texts = [f"{plan(KEEP, '')} {write_waypoints(example.trajectory)}", plan(KEEP, "")]
    good, bad = make_reward_fn(config)(example, texts)
    assert good.keys() == {"speed", "path", "format", "accuracy", "pdms"} == {*config.component_weights, "accuracy"}
    assert good["pdms"] > 0.5 and (bad["pdms"], bad["format"]) == (0.0, 0.0)
    check_boxes([example])
    with pytest.raises(ValueError, match="--trajectory-reward is 'pdms', but example 'p' is a picture"):
        check_boxes([example, Example(id="p", image="x.png", prompt="?", decision=STOP)])


def test_examples_without_way_points_are_left_out(make_examples, capsys):
    photos = [Example(id=f"p{i}", image="x.png", prompt="?", decision=STOP, trajectory=(((1.0, 2.0),) * 8, None)[i])
              for i in range(2)]
    chosen = with_waypoints([*make_examples(2), *photos])
    assert [example.id for example in chosen] == ["example-0", "example-1", "p0"]
    assert all(len(example.trajectory) == 8 for example in chosen) and chosen[2] == photos[0]
    assert "1 of 4 examples have no way-points and are left out (--answer plan uses all)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no training example has way-points; use --answer plan"):
        with_waypoints(photos[1:])


def test_long_targets_are_told(processor, make_examples, capsys):
    examples = make_examples(2)
    warn_of_long_targets(examples, processor, PromptSettings("compact", max_new_tokens=3))
    assert "2 of 2 targets are longer than --max-new-tokens 3" in capsys.readouterr().out
    warn_of_long_targets(examples, processor, PromptSettings("compact", max_new_tokens=4000))
    assert capsys.readouterr().out == ""


def test_small_groups_are_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "scene_text_corpus", lambda count: scene_text_corpus(30))
    flags = {"model": "tiny", "scenes": 4, "eval_examples": 1, "device": "cpu", "output": str(tmp_path / "out")}
    prepare("grpo", configure("grpo", {**flags, "group_size": 2}))
    assert "warning: with 2 completions per group" in capsys.readouterr().out
    run = prepare("grpo", configure("grpo", {**flags, "group_size": 4, "gradient_checkpointing": True,
                                                         "max_pixels": 6272, "min_pixels": 3136}))
    assert "warning" not in capsys.readouterr().out
    assert run.policy.model.gradient_checkpointing and run.policy.visual.gradient_checkpointing
    assert (run.processor.min_pixels, run.processor.max_pixels) == (3136, 6272)


def test_a_fault_half_way_keeps_what_was_trained(make_run, capsys):
    run = make_run(SFTFlags(prompt_style="compact", steps=5, max_new_tokens=4, device="cpu"))

    def steps():
        yield {"loss": 1.0, "tokens": 1, "skipped": 0.0}, [], lambda: None
        raise ValueError("picture 7 is cut short")
    with pytest.raises(ValueError, match="picture 7"):
        follow(run, make_trained(run), steps(), LoopState(), 5, lambda: 0.0)
    assert (run.output / "model/model.safetensors").is_file()
    assert "stopped after step 1" in capsys.readouterr().out


def test_updates_skipped_for_too_long_stop_the_run(make_run):
    run = make_run(SFTFlags(prompt_style="compact", steps=9, max_skipped=2, max_new_tokens=4, device="cpu"))
    steps = iter([({"loss": math.nan, "tokens": 1, "skipped": 1.0}, [], lambda: None)] * 9)
    with pytest.raises(FloatingPointError, match="2 steps in a row had a non-finite loss or gradient"):
        follow(run, make_trained(run), steps, LoopState(), 9, lambda: 0.0)
    assert len((run.output / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_step_with_one_good_update_is_not_skipped(make_run):
    run = make_run(SFTFlags(prompt_style="compact", steps=3, max_skipped=2, max_new_tokens=4, device="cpu"))
    steps = iter([({"loss": 1.0, "tokens": 1, "skipped": 3.0, "updates": 1}, [], lambda: None)] * 3)
    assert follow(run, make_trained(run), steps, LoopState(), 3, lambda: 0.0).skipped == 0


def test_report_puts_runs_side_by_side(tmp_path, capsys):
    metrics = {"planning_accuracy": 0.5, "planning_accuracy_interval": [0.4, 0.6], "invalid_rate": 0.25,
               "acceptable_accuracy": 0.75, "bayes_ceiling": 0.8,
               "sampled": {"planning_accuracy": 0.45, "plan_entropy": 0.3, "safety": {"cost": 0.0625}}}
    (tmp_path / "eval-test").mkdir()
    (tmp_path / "eval-test/metrics.json").write_text(json.dumps(metrics))
    report.main([str(tmp_path)])
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[2:-1]]
    assert row == ["0.500 (0.400 to 0.600)", "0.450", "0.062", "0.750", "0.250", "0.300", "0.625"]   # .5 / .8
    with pytest.raises(SystemExit, match="run `python eval.py --model"):
        report.main([str(tmp_path / "absent")])


def test_half_precision_models_generate(make_model, processor):
    messages = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Plan."}]}]] * 2
    pictures = [[Image.new("RGB", (56, 28))], [Image.new("RGB", (28, 28))]]      # prompts of different lengths
    for dtype in (torch.float16, torch.bfloat16):
        rollout = generate(make_model().to(dtype), processor, messages, pictures, group_size=2, max_new_tokens=3)
        assert len(rollout.texts) == 4 and torch.isfinite(rollout.logprobs).all()


def test_a_picture_of_impossible_shape_names_example_and_file(make_run, tmp_path):
    Image.new("RGB", (4000, 10)).save(tmp_path / "thin.png")
    run = make_run(SFTFlags(prompt_style="compact", max_new_tokens=4, device="cpu"))
    example = Example(id="e7", image=str(tmp_path / "thin.png"), speed=1.0, navigation="Go straight", decision=KEEP)
    with pytest.raises(ValueError, match=r"example 'e7': picture .*thin\.png .*4000 x 10"):
        run.encode(example)


def test_a_broken_checkpoint_is_named_before_the_first_step(make_model, processor, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    save_policy(model, processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model: the tensor model\.norm\.weight has values that are NaN or infinite"):
        prepare("sft", configure("sft", {"model": str(tmp_path / "model"), "device": "cpu", "scenes": 4}))


def test_flags_that_differ_from_the_training_are_told(make_model, processor, tmp_path, capsys):
    save_policy(make_model(), processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "data": "a.json", "prompt_style": "alphadrive", "max_new_tokens": 8}
    configure("grpo", given)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the model was")] == [
        "note: the model was trained with --prompt-style compact; this run uses alphadrive"]


def test_without_any_update_the_learning_rate_is_not_blamed(make_run):
    run = make_run(SFTFlags(prompt_style="compact", steps=9, max_skipped=2, max_new_tokens=4, device="cpu"))
    bad, good = ({"loss": loss, "tokens": 1, "skipped": skipped} for loss, skipped in ((math.nan, 1.0), (1.0, 0.0)))
    for metrics, words in (([bad, bad], "no update has been made yet"), ([good, bad, bad], "lower --learning-rate")):
        with pytest.raises(FloatingPointError, match=words):
            follow(run, make_trained(run), iter([(m, [], lambda: None) for m in metrics]), LoopState(), 9, lambda: 0.0)


def test_the_progress_line_shows_what_moves():
    grpo = {"loss": 1e-8, "reward": 0.5, "reward_accuracy": 0.25, "flat_groups": 0.75, "kl": None, "entropy": 2.0,
            "completion_length": 30.0, "tokens_per_second": 9.0}
    assert headline(grpo) == {"reward": 0.5, "accuracy": 0.25, "kept": 0.25, "entropy": 2.0, "length": 30.0,
                              "tok/s": 9.0}
    assert headline({"loss": 1.5, "entropy": 2.0, "val_accuracy": 0.5}) == {"loss": 1.5, "entropy": 2.0, "val": 0.5}
