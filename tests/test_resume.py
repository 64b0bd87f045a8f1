"""Runs that are interrupted: N + N steps are 2 N steps to the bit, signals and faults lose nothing."""

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from data.files import write_examples
from data.scenes import scene_examples
from grpo import sft
from grpo import step as method
from grpo.engine import guards, loop, saving, setup, stages, state
from grpo.engine.checkpoint import only_writer, save_policy
from grpo.engine.flags import SFTFlags
from grpo.engine.guards import Stop, collapsed, naming_the_culprit
from grpo.engine.prompts import PromptSettings
from models.qwen2_vl import new_model

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["--scenes", 6, "--eval-examples", 2, "--max-new-tokens", 8, "--prompt-style", "compact", "--device", "cpu",
          "--save-every", 1, "--learning-rate", 1e-3, "--precision", "fp32"]
SFT = ["--stage", "sft", *COMMON, "--batch-size", 2]
GRPO = ["--stage", "grpo", *COMMON, "--group-size", 3, "--prompts-per-step", 2, "--samples-every", 1]


def of_file(stage):
    """The flags of a stage without --scenes, which --data FILE does not read."""
    return [*stage[:2], *stage[4:]]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.fixture(scope="session")
def micro(tmp_path_factory, micro_config, processor):
    """A model directory whose predictions are far from uniform, so that answers differ."""
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(6)
    directory = tmp_path_factory.mktemp("micro") / "model"
    save_policy(model, processor, PromptSettings("compact", max_new_tokens=8), {}, directory)
    return directory


@pytest.fixture(autouse=True)
def by_length(monkeypatch):
    """An untrained model earns nothing else; coarsely, so that some groups are flat."""
    monkeypatch.setattr(train, "make_reward_fn", lambda config: lambda example, completions: [
        {"speed": 0.1 * (len(text) // 6), "path": 0.0, "format": 0.0} for text in completions])
    monkeypatch.setattr(train, "print_plan", lambda *_: 0)   # the plan of the memory takes longer than these runs


def run(*flags):
    torch.seed()                                             # as in a process of its own: another one every time
    random.seed()
    np.random.seed()
    train.main([str(flag) for flag in flags])


def code_of(*flags):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    return stop.value.code


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, action): do something right after step n has been logged."""
    real = loop.write_step

    def install(number, action):
        def write_step(run, step, *rest):
            real(run, step, *rest)
            if step == number:
                action()
        monkeypatch.setattr(loop, "write_step", write_step)
    return install


def kill():
    raise Killed


def run_until_killed(flags, output, at_step, number):
    """A run that is killed while it logs step `number`; later runs are left in peace."""
    at_step(number, kill)
    with pytest.raises(Killed):
        run(*flags, "--output", output)
    at_step(0, lambda: None)


def records(file):
    """The lines of a log, times aside."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{name: value for name, value in line.items() if name not in ("seconds", "tokens_per_second")}
            for line in lines]


def signs(output):
    """What the last state's tensor files are, byte for byte."""
    newest = sorted((output / "state").iterdir())[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    generators = json.loads((newest / "state.json").read_text())["generators"]
    return newest.name, generators, {name: sign for name, sign in manifest.items() if name.endswith(".safetensors")}


def assert_same(one, two, steps):
    assert [line["step"] for line in records(one / "metrics.jsonl")] == list(range(1, steps + 1))
    for log in ("metrics.jsonl", "samples.jsonl", "skipped.jsonl"):
        assert records(one / log) == records(two / log), log
    assert signs(one) == signs(two)
    assert not any(map(state.damage, (one / "state").iterdir()))
    first, second = (load_file(path / "model/model.safetensors") for path in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "model/drivegrpo.json").read_text() == (two / "model/drivegrpo.json").read_text()


def moved(model, output):
    one, two = load_file(model / "model.safetensors"), load_file(output / "model/model.safetensors")
    return any(not torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- N + N = 2 N

LORA = ["--lora-rank", 2]
CASES = {
    "sft": (SFT, 2), "sft-first": (SFT, 1), "sft-late": (SFT, 3), "sft-eval": ([*SFT, "--eval-every", 1], 2),
    "sft-balance": ([*SFT, "--balance"], 3),
    "sft-lora-frozen-vision": ([*SFT, *LORA, "--freeze-vision", "on"], 2),
    "grpo": (GRPO, 2), "grpo-first": (GRPO, 1),
    "updates-2": ([*GRPO, "--updates-per-rollout", 2, "--target-kl", 0.5], 2),
    "dynamic-sampling": ([*GRPO, "--dynamic-sampling", 2, "--beta", "0.1:0:linear"], 2),
    "grpo-lora": ([*GRPO, *LORA, "--updates-per-rollout", 2], 2),
    "ppo": ([*GRPO, "--algorithm", "ppo", "--value-learning-rate", 1e-2], 2),
    "ppo-shared": ([*GRPO, "--algorithm", "ppo", "--value-trunk", "shared", "--ent-coef", "0.1:0:cosine"], 2),
    "bf16": ([*GRPO, "--precision", "bf16", "--updates-per-rollout", 2], 2),   # its sampler has a copy of its own
}

SHOWN = {"updates-2": {"updates": 2, "kl": 1e-6}, "dynamic-sampling": {"redrawn": 1}, "ppo": {"value_loss": 1e-9}}


@pytest.mark.parametrize("case", CASES)
def test_n_and_n_are_2n(micro, tmp_path, at_step, case):
    flags, number = CASES[case]
    flags = [*flags, "--model", micro, "--steps", 4]
    run(*flags, "--output", tmp_path / "whole")
    assert moved(micro, tmp_path / "whole")
    for name, least in SHOWN.get(case, {}).items():          # or the case shows nothing
        assert max(line[name] for line in records(tmp_path / "whole/metrics.jsonl")) >= least
    at_step(number, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags, "--output", tmp_path / "parts") == 143
    assert len(records(tmp_path / "parts/metrics.jsonl")) == number
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_gate_rounds_resume(micro, tmp_path, at_step, number):
    """4 steps, then two rounds of 2 with schedules of their own; the gate is never passed."""
    flags = [*SFT, "--model", micro, "--steps", 4, "--gate", 1, "--gate-rounds", 2, "--warmup-steps", 0,
             "--lr-schedule", "linear"]
    run(*flags, "--output", tmp_path / "whole")
    at_step(number, lambda: signal.raise_signal(signal.SIGINT))
    assert code_of(*flags, "--output", tmp_path / "parts") == 130
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 8)
    rates = [line["lr"] for line in records(tmp_path / "whole/metrics.jsonl")]
    # from 1e-3 linearly to 0 over the 4 steps, then over the 2 of each round
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-3, 5e-4, 1e-3, 5e-4])


def test_a_kill_between_two_states(micro, tmp_path, at_step):
    """States after 2 and 4 steps, killed in the middle of logging step 4: steps 3 and 4 are made again."""
    flags = [*GRPO, "--model", micro, "--steps", 6, "--save-every", 2]
    run(*flags, "--output", tmp_path / "whole")
    run_until_killed(flags, tmp_path / "parts", at_step, 4)
    file = tmp_path / "parts/metrics.jsonl"
    file.write_text(file.read_text()[:-30])                  # its last line is torn
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 6)


def test_a_run_killed_before_its_first_state_starts_again(micro, tmp_path, at_step):
    flags = [*SFT, "--model", micro, "--steps", 3, "--save-every", 2]
    run(*flags, "--output", tmp_path / "whole")
    run_until_killed(flags, tmp_path / "parts", at_step, 1)
    assert "--overwrite" in code_of(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto", "--overwrite")
    assert_same(tmp_path / "parts", tmp_path / "whole", 3)


def test_resuming_a_finished_run_changes_nothing(micro, tmp_path, capsys):
    flags = [*SFT, "--model", micro, "--steps", 2, "--output", tmp_path / "run"]
    run(*flags)
    before = signs(tmp_path / "run"), records(tmp_path / "run/metrics.jsonl")
    run(*flags, "--resume", "auto", "--overwrite")           # the same line may be given again: it never starts over
    assert (signs(tmp_path / "run"), records(tmp_path / "run/metrics.jsonl")) == before
    assert "resumed after step 2" in capsys.readouterr().out


def test_a_damaged_state_is_left_alone_until_told(micro, tmp_path, capsys):
    flags = [*SFT, "--model", micro, "--steps", 4, "--keep", 3]
    run(*flags, "--output", tmp_path / "whole")
    run(*flags, "--output", tmp_path / "parts")
    states = tmp_path / "parts/state"
    with open(states / "step-00000004/exp_avg.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    message = code_of(*flags, "--output", tmp_path / "parts", "--resume", "auto", "--overwrite")
    assert "damaged: exp_avg.safetensors has another sha256 than in the manifest" in message
    assert f"to continue from the newest intact state before it, use --resume {states / 'step-00000003'}" in message
    assert len(records(tmp_path / "parts/metrics.jsonl")) == 4                 # and nothing has changed
    assert "after this state" not in capsys.readouterr().out
    run(*flags, "--output", tmp_path / "parts", "--resume", states / "step-00000002")
    assert f"note: {tmp_path / 'parts/model'} is of step 4, after this state; it stays" in capsys.readouterr().out
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


@pytest.mark.parametrize(("flags", "words"), [
    (["--seed", 1], "--seed was 0 and is 1"), (["--learning-rate", 1e-4], "--learning-rate was 0.001"),
    (["--scenes", 5], "--scenes was 6"), (["--resume", "elsewhere"], "elsewhere is not a state of this run")])
def test_another_run_is_not_resumed(micro, tmp_path, flags, words):
    common = [*SFT, "--model", micro, "--steps", 2, "--output", tmp_path / "run"]
    run(*common)
    before = signs(tmp_path / "run")
    assert words in code_of(*common, "--resume", "auto", "--overwrite", *flags)
    assert signs(tmp_path / "run") == before and (tmp_path / "run/metrics.jsonl").is_file()


def test_a_changed_starting_model_is_noticed(micro, tmp_path, make_model, processor):
    """It is the reference, or the base below the adapters: a state does not hold it."""
    save_policy(make_model(0), processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "model")
    common = [*GRPO, "--model", tmp_path / "model", "--steps", 2, "--output", tmp_path / "run"]
    run(*common)
    save_policy(make_model(1), processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "model")
    assert "another --model, or its contents have changed" in code_of(*common, "--resume", "auto")


def test_an_odd_log_or_folder_does_not_stop_a_resume(micro, tmp_path, capsys):
    """Lines that are no records of ours count as torn; only step-NNNNNNNN is a state."""
    flags = [*SFT, "--model", micro, "--output", tmp_path / "run"]
    run(*flags, "--steps", 2)
    (tmp_path / "run/state/step-old").mkdir()
    for steps, odd in ((3, b'{"a": 1}\n'), (4, b"[1]\n"), (5, b'{"step": "\xff"}\n')):
        log = tmp_path / "run/metrics.jsonl"
        log.write_bytes(log.read_bytes() + odd)
        run(*flags, "--steps", steps, "--resume", "auto")
        assert f"resumed after step {steps - 1}" in (told := capsys.readouterr().out) and "1 later log lines" in told
        assert len(records(log)) == steps


def test_a_damaged_only_state_has_a_remedy_that_works(micro, tmp_path):
    flags = [*SFT, "--model", micro, "--steps", 2, "--keep", 1, "--output", tmp_path / "run"]
    run(*flags)
    (tmp_path / "run/state/step-00000002/manifest.json").unlink()
    assert "start again with --overwrite and without --resume" in code_of(*flags, "--resume", "auto")
    run(*flags, "--overwrite")
    assert not state.damage(tmp_path / "run/state/step-00000002")


# ---------------------------------------------------------------- signals and time

def test_signals_without_save_every_still_save(micro, tmp_path, at_step, capsys):
    flags = [*SFT, "--model", micro, "--steps", 4, "--save-every", 0]
    before = signal.getsignal(signal.SIGINT)                 # a job in the background ignores it
    run(*flags, "--output", tmp_path / "whole")
    assert not (tmp_path / "whole/state").exists()
    at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    assert code_of(*flags, "--output", tmp_path / "parts") == 130
    out = capsys.readouterr().out
    assert "stopped after step 2: continue with the same command and --resume auto" in out
    assert [path.name for path in (tmp_path / "parts/state").iterdir()] == ["step-00000002"]
    assert (tmp_path / "parts/model/model.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is before                           # given back


def test_rewards_that_draw_at_random_resume(micro, tmp_path, at_step, monkeypatch):
    """The generators of torch, numpy and Python are seeded and saved, whoever uses them."""
    monkeypatch.setattr(train, "make_reward_fn", lambda config: lambda example, completions: [
        {"speed": random.random(), "path": np.random.random(), "format": torch.rand(()).item()} for _ in completions])
    flags = [*GRPO, "--model", micro, "--steps", 4]
    run(*flags, "--output", tmp_path / "whole")
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags, "--output", tmp_path / "parts") == 143
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


def test_a_second_signal_ends_at_once():
    code = "import signal; from grpo.engine.guards import Stop\nwith Stop():\n" \
           "    signal.raise_signal(signal.SIGTERM); print('going on', flush=True)\n" \
           "    signal.raise_signal(signal.SIGINT); print('never')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "going on\n")
    assert "a second Ctrl-C or SIGTERM exits at once" in done.stderr


def test_a_real_process_is_terminated_and_goes_on(micro, tmp_path):
    command = [sys.executable, ROOT / "train.py", *SFT, "--model", micro, "--output", tmp_path / "run", "--save-every",
               0, "--lr-schedule", "constant"]
    process = subprocess.Popen([str(word) for word in [*command, "--steps", 3000]], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    done = len(records(tmp_path / "run/metrics.jsonl"))
    assert 1 <= done < 3000
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == [f"step-{done:08d}"]


def test_the_deadline(micro, tmp_path, monkeypatch, capsys):
    """A clock that gains an hour each time it is read: the step at hand is finished, then there is no time left."""
    now = [0.0]
    flags = [*SFT, "--model", micro, "--steps", 4, "--output", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(guards.time, "monotonic", lambda: now.__setitem__(0, now[0] + 3600) or now[0])
        assert code_of(*flags, "--max-time", "1h30m") == 75
    assert "time is up after step 1" in capsys.readouterr().out
    run(*flags, "--resume", "auto", "--max-time", "10h")
    assert len(records(tmp_path / "run/metrics.jsonl")) == 4


def test_the_deadline_leaves_room_for_another_slow_step(monkeypatch):
    clock = iter([0.0, 30.0, 60.0, 69.0, 71.0])
    monkeypatch.setattr(guards.time, "monotonic", lambda: next(clock))
    stop = Stop(100.0)
    # slowest step 30: 30 + 30 and 60 + 30 and 69 + 30 fit into 100, 71 + 30 does not
    assert [stop.code(seconds) for seconds in (30.0, 10.0, 9.0, 2.0)] == [0, 0, 0, 75]


@pytest.mark.parametrize(("text", "seconds"), [("3h", 10800), ("1h30m", 5400), ("45m", 2700), ("90s", 90),
                                               ("2h5s", 7205), ("", math.inf)])
def test_times_are_read(text, seconds):
    assert SFTFlags(max_time=text).max_seconds == seconds


@pytest.mark.parametrize("text", ["3", "h", "-3h", "1.5h", "0h", "soon", "3h 5m"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="--max-time is"):
        SFTFlags(max_time=text)


# ---------------------------------------------------------------- disk

def test_a_full_disk_stops_with_the_earlier_state_intact(micro, tmp_path, monkeypatch, at_step):
    flags = [*SFT, "--model", micro, "--steps", 4]
    run(*flags, "--output", tmp_path / "whole")

    def full(*arguments):
        raise OSError(28, "No space left on device")
    at_step(3, lambda: monkeypatch.setattr("grpo.engine.state.save_file", full))
    real = state.save_file
    message = code_of(*flags, "--output", tmp_path / "parts")
    assert "No space left on device" in message and "step-00000002 is intact" in message and "Free some" in message
    monkeypatch.setattr("grpo.engine.state.save_file", real)
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


def test_too_little_room_is_told_at_the_start(micro, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6})())
    run(*SFT, "--model", micro, "--steps", 1, "--output", tmp_path / "run", "--keep", 4)
    assert "warning: 4 states and the one being written need" in capsys.readouterr().out


# ---------------------------------------------------------------- numbers that are not finite

def test_a_bad_batch_is_skipped_and_kept(micro, tmp_path, monkeypatch, at_step):
    """Step 2's picture holds a NaN: no update, the schedule waits, and the run resumes across it to the bit."""
    real = stages.sft_step
    calls = []

    def sft_step(policy, optimizer, scheduler, prompts, *rest):
        calls.append(scheduler.last_epoch)
        if len(calls) % 4 == 2:                              # two runs of 4 steps
            prompts[0].pixel_values[0, 0] = math.nan
        return real(policy, optimizer, scheduler, prompts, *rest)
    monkeypatch.setattr(stages, "sft_step", sft_step)
    flags = [*SFT, "--model", micro, "--steps", 4]
    run(*flags, "--output", tmp_path / "whole")
    assert calls == [0, 1, 1, 2]
    lines = records(tmp_path / "whole/metrics.jsonl")
    assert [line["skipped"] for line in lines] == [0.0, 1.0, 0.0, 0.0]
    assert lines[1]["loss"] is None                          # NaN is not JSON
    kept = json.loads((tmp_path / "whole/bad-batches/step-00000002.json").read_text())
    tensors = load_file(tmp_path / "whole/bad-batches/step-00000002.safetensors")
    assert len(kept["ids"]) == 2 and kept["metrics"]["loss"] is None
    assert tensors["prompt.0.pixel_values"].isnan().sum() == 1 and len(tensors["completion.1"]) > 1
    assert len(list((tmp_path / "whole/bad-batches").iterdir())) == 2
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags, "--output", tmp_path / "parts") == 143
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


@pytest.mark.parametrize("stage", [SFT, GRPO])
def test_a_bad_loss_with_a_sound_gradient_is_skipped_and_kept(micro, tmp_path, monkeypatch, stage):
    """The first loss has a constant beyond float32 added, which no gradient shows."""
    aggregate, objective = sft.aggregate, method.objective
    broken = [math.inf]

    def added_to_sum(values, *rest, **named):
        return aggregate(values, *rest, **named) + (broken.pop() if broken and values.requires_grad else 0)

    def added_to_terms(*arguments):
        loss, metrics, logprobs = objective(*arguments)
        more = broken.pop() if broken else 0
        return loss + more, {**metrics, "loss": metrics["loss"] + more}, logprobs
    monkeypatch.setattr(sft, "aggregate", added_to_sum)
    monkeypatch.setattr(method, "objective", added_to_terms)
    run(*stage, "--model", micro, "--output", tmp_path / "run", "--steps", 3)
    lines = records(tmp_path / "run/metrics.jsonl")
    assert [line["skipped"] for line in lines] == [1.0, 0.0, 0.0]
    assert lines[0]["loss"] is None and lines[0]["grad_norm"] > 0              # infinity is not JSON
    assert lines[0]["lr"] == lines[1]["lr"]                                    # the schedule has waited
    assert {path.name for path in (tmp_path / "run/bad-batches").iterdir()} == {
        "step-00000001.json", "step-00000001.safetensors"}


def test_grpo_keeps_the_sampled_batch_and_stops(micro, tmp_path, monkeypatch):
    """Rewards of 1e38, not divided by their deviation, give gradients beyond float32."""
    monkeypatch.setattr(train, "make_reward_fn", lambda config: lambda example, completions: [
        {"speed": 1e38 * (i % 2), "path": 0.0, "format": 0.0} for i, _ in enumerate(completions)])
    message = code_of(*GRPO, "--model", micro, "--output", tmp_path / "run", "--steps", 9, "--scale-rewards", "none",
                      "--max-skipped", 2)
    assert "2 steps in a row had a non-finite loss or gradient" in message and "bad-batches" in message
    assert [line["skipped"] for line in records(tmp_path / "run/metrics.jsonl")] == [1.0, 1.0]
    kept = json.loads((tmp_path / "run/bad-batches/step-00000001.json").read_text())
    tensors = load_file(tmp_path / "run/bad-batches/step-00000001.safetensors")
    assert len(kept["groups"]) == 2 and len(kept["groups"][0]["texts"]) == 3
    assert len([name for name in tensors if name.startswith("completion.")]) == 6
    order = [group["id"] for group in kept["groups"]]
    first = kept["ids"].index(order[0])
    ids = tensors[f"completion.{3 * first}"]
    text = bytes(ids[ids < 256].tolist())                    # no merges: as many letters as the text has bytes
    assert len(text) >= len(kept["groups"][0]["texts"][0]) > 0


def test_rewards_cannot_change_what_is_logged():
    def greedy(example, completions):
        completions.clear()
        return []
    texts = ["a", "b"]
    assert naming_the_culprit(greedy)(None, texts) == [] and texts == ["a", "b"]


def test_rewards_that_raise_name_the_function_in_one_line(make_examples):
    class Judge:
        def __call__(self, example, completions):
            raise KeyError("a\nb")
    with pytest.raises(ValueError, match="^reward function Judge: the rewards of example example-0 raised") as e:
        naming_the_culprit(Judge())(make_examples(1)[0], ["x"])
    assert "\n" not in str(e.value)


def test_rewards_that_raise_name_the_completion(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "make_reward_fn", lambda config: lambda example, completions: [
        {"speed": 1 / 0, "path": 0.0, "format": 0.0} for _ in completions])
    message = code_of(*GRPO, "--model", micro, "--output", tmp_path / "run", "--steps", 2)
    assert re.search(r"raised ZeroDivisionError .division by zero. in line \d+ of .*test_resume.py for completion",
                     message)


def test_blame_falls_on_the_right_completion(make_examples):
    def reward(example, completions):
        if completions == ["a", "b"]:
            raise KeyError("two of them")
        return [{"speed": float({"1": 1, "2": 2}[text])} for text in completions]
    rewards, example = naming_the_culprit(reward), make_examples(1)[0]
    assert rewards(example, ["2", "1"]) == [{"speed": 2.0}, {"speed": 1.0}]
    with pytest.raises(ValueError, match="rewards of example example-0 raised KeyError .* for completion 'x'"):
        rewards(example, ["1", "x", "2"])
    with pytest.raises(ValueError, match=r"for completion 'a'"):
        rewards(example, ["a", "b"])


def test_a_reward_that_ends_the_program_is_a_fault(make_examples):
    def reward(example, completions):
        sys.exit()
    with pytest.raises(ValueError, match="reward function reward: .* raised SystemExit"):
        naming_the_culprit(reward)(make_examples(1)[0], ["x"])


# ---------------------------------------------------------------- collapse

HEALTHY = {"reward": 0.5, "entropy": 0.5, "flat_groups": 0.2, "truncated": 0.0, "reward_format": 0.9,
           "completion_length": 30.0}


@pytest.mark.parametrize(("changes", "words"), [
    ({"entropy": 0.01}, "entropy averaged 0.01 over the last 10 steps: 0.01 nats per token: the policy samples nearly"),
    ({"flat_groups": 1.0}, "flat_groups averaged 1 over the last 10 steps: 100% of the groups have equal rewards"),
    ({"truncated": 0.6}, ": 60% of the answers are truncated at --max-new"),
    ({"completion_length": 2.0}, "too short for a plan"),
    ({"reward_format": 0.1}, "most answers are invalid")])
def test_a_collapse_is_told_with_its_meaning(changes, words):
    assert collapsed([HEALTHY] * 10) == {}
    assert collapsed([HEALTHY | changes] * 9) == {}          # too short to judge
    (name, warning), = collapsed([HEALTHY] + [HEALTHY | changes] * 10).items()
    assert name in changes and re.search(words, warning)
    assert collapsed([{name: value for name, value in (HEALTHY | changes).items() if name != "reward"}] * 10) == {}


def test_a_warning_comes_once_even_after_a_resume(micro, tmp_path, at_step, capsys):
    flags = [*GRPO, "--model", micro, "--output", tmp_path / "run", "--steps", 14, "--eval-examples", 1]
    at_step(12, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags) == 143
    first = capsys.readouterr().out
    at_step(0, lambda: None)
    run(*flags, "--resume", "auto")
    assert first.count("most answers are invalid") == 1 and "warning: step 10: reward_format" in first
    assert "most answers are invalid" not in capsys.readouterr().out


# ---------------------------------------------------------------- data

def write_data(folder, count=6):
    """Pictures of one colour each, labelled KEEP, STRAIGHT; the last two validate."""
    folder.mkdir()
    rows = []
    for i in range(count):
        Image.new("RGB", (56, 28), (40 * i, 90, 120)).save(folder / f"{i}.png")
        rows.append({"id": f"e{i}", "image": f"{i}.png", "speed": 3.0, "navigation": "Go straight",
                     "decision": "KEEP, STRAIGHT", "reasoning": "clear", "split": "train" if i < count - 2 else "val"})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


@pytest.mark.parametrize("stage", [SFT, GRPO])
def test_bad_pictures_are_skipped_listed_and_resumed_over(micro, tmp_path, at_step, capsys, stage):
    file = write_data(tmp_path / "data")
    (tmp_path / "data/1.png").write_bytes(b"no picture")
    (tmp_path / "data/2.png").unlink()
    (tmp_path / "data/5.png").write_bytes(b"no picture")
    flags = [*of_file(stage), "--model", micro, "--data", file, "--steps", 4, "--split", "train"]
    assert "2.png" in code_of(*flags, "--output", tmp_path / "stopped")
    run(*flags, "--on-bad-data", "skip", "--output", tmp_path / "whole")
    out = capsys.readouterr().out
    assert "warning: pictures that do not exist: 1; examples (of 6) that need one are skipped" in out
    assert "left out of validation" in out and "5.png" in out
    first, *listed = records(tmp_path / "whole/skipped.jsonl")
    assert first["step"] == 0 and "5.png" in first["fault"]                    # validation's, before the first step
    assert {line["id"] for line in listed} == {"e1", "e2"} and all(line["fault"] in out for line in listed)
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags, "--on-bad-data", "skip", "--output", tmp_path / "parts") == 143
    at_step(0, lambda: None)
    run(*flags, "--on-bad-data", "skip", "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


BROKEN = {"torn": ('{"id": "torn", "ima', "line 3: not valid JSON"),
          "no picture": ({"id": "x", "speed": 1.0, "navigation": "Go", "solution": "KEEP, STRAIGHT"},
                         "line 5: fields 'image' and 'scene': both are missing"),
          "no plan": ({"id": "y", "image": "0.png", "speed": 1.0, "navigation": "Go", "solution": "FLY"},
                      "line 7: field 'solution': 'FLY' is not one plan"),
          "twice": ({"id": "e0", "image": "0.png", "speed": 1.0, "navigation": "Go", "solution": "STOP, STRAIGHT"},
                    "line 9: field 'id': 'e0' was already used at")}


def test_bad_records_stop_or_are_left_out_and_listed(micro, tmp_path, at_step, capsys):
    """Lines 1, 2, 4, 6, 8 and 10 are good, the four others are not."""
    file = write_data(tmp_path / "data").rename(tmp_path / "data/good.json")
    good, bad = [json.dumps(row) for row in json.loads(file.read_text())], [*BROKEN.values()]
    lines = [good[0]] + [line for i, row in enumerate(good[1:]) for line in (
        row, *([bad[i][0] if isinstance(bad[i][0], str) else json.dumps(bad[i][0])] if i < 4 else []))]
    (tmp_path / "data/data.jsonl").write_text("\n".join(lines))
    flags = [*of_file(SFT), "--model", micro, "--data", tmp_path / "data/data.jsonl", "--steps", 4, "--split", "train"]
    message = code_of(*flags, "--output", tmp_path / "stopped")                # the first of them stops the run
    assert f"{tmp_path / 'data/data.jsonl'}: {bad[0][1]}" in message and not (tmp_path / "stopped").exists()
    flags += ["--on-bad-data", "skip"]
    run(*flags, "--output", tmp_path / "whole")
    out = capsys.readouterr().out
    assert "warning: 4 of 10 records of" in out and "4 training examples, 2 for validation" in out
    listed = records(tmp_path / "whole/skipped.jsonl")
    assert [line["step"] for line in listed] == [0, 0, 0, 0]
    for line, (_, words) in zip(listed, bad, strict=True):
        assert words in line["fault"] and line["fault"] in out
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert code_of(*flags, "--output", tmp_path / "parts") == 143
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)
    run(*flags[:-2], "--data", file, "--output", tmp_path / "good")            # as if they had never been there
    assert records(tmp_path / "good/metrics.jsonl") == records(tmp_path / "whole/metrics.jsonl")


def test_nothing_but_bad_data_is_an_error(micro, tmp_path):
    file = write_data(tmp_path / "data")
    for i in range(4):
        (tmp_path / f"data/{i}.png").write_bytes(b"no picture")
    assert "cannot be read" in code_of(*of_file(SFT), "--model", micro, "--data", file, "--steps", 1, "--split",
                                       "train", "--on-bad-data", "skip", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_moved_data_are_reported(micro, tmp_path, mode):
    file = write_data(tmp_path / "data")
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{**row, "image": f"camera/{row['image']}"} for row in rows]))
    message = code_of(*of_file(SFT), "--model", micro, "--data", file, "--steps", 1, "--on-bad-data", mode, "--output",
                      tmp_path / "run")
    assert f"6 of 6 pictures do not exist, first {tmp_path / 'data/camera/0.png'} (there is no folder " \
           f"{tmp_path / 'data/camera'}: were the data moved?)" in message


def test_a_fault_in_the_data_half_way_can_be_mended_and_resumed(micro, tmp_path, at_step):
    file = write_data(tmp_path / "data")
    flags = [*of_file(SFT), "--model", micro, "--data", file, "--steps", 6, "--split", "train"]
    run(*flags, "--output", tmp_path / "whole")
    good = {i: (tmp_path / f"data/{i}.png").read_bytes() for i in range(4)}

    def spoil():
        for i in range(4):
            (tmp_path / f"data/{i}.png").write_bytes(b"no picture")
    at_step(1, spoil)
    assert "cannot be read" in code_of(*flags, "--output", tmp_path / "parts", "--save-every", 0)
    for i, content in good.items():
        (tmp_path / f"data/{i}.png").write_bytes(content)
    at_step(0, lambda: None)
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 6)


# ---------------------------------------------------------------- every ending leaves a state

def fail_at(monkeypatch, name, call, fault, late=False):
    """Have one call of stages.sft_step or stages.grpo_step raise: before its update, or after it (`late`)."""
    real, calls = getattr(stages, name), []

    def step(*given, **named):
        calls.append(1)
        if len(calls) == call and not late:
            random.random(), torch.rand(1), np.random.rand()                   # a reward of the user's drew from them
            raise fault
        result = real(*given, **named)
        if len(calls) == call:
            raise fault
        return result
    monkeypatch.setattr(stages, name, step)


def end_of(*flags):
    """The exit code, or the message, of a run that ends early."""
    try:
        run(*flags)
    except SystemExit as end:
        return end.code
    raise AssertionError("the run did not end early")


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error"),
                                   MemoryError(), TypeError("reward"), AssertionError(), SystemExit("bye")])
def test_any_fault_before_the_update_keeps_the_last_whole_step(micro, tmp_path, monkeypatch, capsys, fault):
    flags = [*GRPO, "--model", micro, "--steps", 3, "--save-every", 0]
    run(*flags, "--save-every", 3, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, "grpo_step", 3, fault)
        message = end_of(*flags, "--output", tmp_path / "parts")
    assert str(fault) in message and "\n" not in message
    assert "the state after step 2 is saved" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "parts/state").iterdir()] == ["step-00000002"]
    run(*flags, "--save-every", 3, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 3)   # the generators too


def test_a_fault_within_the_update_goes_back_to_the_newest_state(micro, tmp_path, monkeypatch, capsys):
    flags = [*SFT, "--model", micro, "--steps", 4, "--save-every", 2]
    run(*flags, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, "sft_step", 4, RuntimeError("device lost"), late=True)
        assert "RuntimeError: device lost" in end_of(*flags, "--output", tmp_path / "parts")
    told = capsys.readouterr().err
    assert "step 4 failed within its update" in told and "step-00000002: 1 steps are lost" in told
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_fault_within_the_update_is_undone_as_long_as_no_state_is_saved(micro, tmp_path, monkeypatch, capsys, stage):
    flags = [*{"sft": SFT, "grpo": [*GRPO, "--updates-per-rollout", 2]}[stage], "--model", micro, "--steps", 4,
             "--save-every", 0]
    run(*flags, "--save-every", 4, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_at(patch, f"{stage}_step", 3, RuntimeError("device lost"), late=True)
        end_of(*flags, "--output", tmp_path / "parts")
    assert "the state after step 2 is saved" in capsys.readouterr().out
    run(*flags, "--save-every", 4, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


def test_a_fault_within_the_update_without_a_state_says_so(micro, tmp_path, monkeypatch, capsys):
    """Of a run that is too large for copies."""
    monkeypatch.setattr(saving, "SMALL", 0)
    fail_at(monkeypatch, "sft_step", 3, RuntimeError("device lost"), late=True)
    end_of(*SFT, "--model", micro, "--steps", 4, "--save-every", 0, "--output", tmp_path / "run")
    assert "no state was saved: 2 steps are lost" in capsys.readouterr().err


def test_a_fault_in_validation_keeps_the_step(micro, tmp_path, monkeypatch):
    """Step 2 is done when its validation fails; the resumed run validates and logs it first."""
    flags = [*SFT, "--model", micro, "--steps", 3, "--save-every", 3, "--eval-every", 1]
    run(*flags, "--output", tmp_path / "whole")
    real, calls = stages.validate, []

    def broken(run):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(run)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "validate", broken)
        assert "out of memory" in end_of(*flags, "--output", tmp_path / "parts")
    assert len(records(tmp_path / "parts/metrics.jsonl")) == 1
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 3)


def test_a_full_disk_at_the_model_keeps_the_state(micro, tmp_path, monkeypatch):
    flags = [*SFT, "--model", micro, "--steps", 3, "--save-every", 0]
    run(*flags, "--output", tmp_path / "whole", "--save-every", 3)

    def full(*arguments):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(setup, "save_policy", full)
        message = end_of(*flags, "--output", tmp_path / "parts")
    assert "model could not be written" in message and "No space left" in message and "no earlier one" in message
    assert [path.name for path in (tmp_path / "parts/state").iterdir()] == ["step-00000003"]
    run(*flags, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 3)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU"])
def test_every_signal_saves(micro, tmp_path, at_step, name):
    number = getattr(signal, name)

    def twice():
        signal.raise_signal(number)                          # a terminal that closes sends it twice
        signal.raise_signal(number)
    at_step(2, twice)
    flags = [*SFT, "--model", micro, "--steps", 4, "--save-every", 0, "--output", tmp_path / "run"]
    assert end_of(*flags) == 128 + number
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step-00000002"]


def test_nohup_is_respected(micro, tmp_path, at_step):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(1, lambda: signal.raise_signal(signal.SIGHUP))
        run(*SFT, "--model", micro, "--steps", 2, "--output", tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_a_lost_terminal_saves(micro, tmp_path):
    """The reader of both streams goes away, then SIGHUP comes."""
    command = [sys.executable, ROOT / "train.py", *SFT, "--model", micro, "--output", tmp_path / "run", "--save-every",
               0, "--steps", 3000]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    assert len(list((tmp_path / "run/state").glob("step-*"))) == 1


def test_a_step_at_a_time_by_the_clock(micro, tmp_path, monkeypatch, capsys):
    """A clock that gains a minute each time it is read: a state after each step, and a full disk ends nothing."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now.__setitem__(0, now[0] + 60) or now[0])
    flags = [*SFT, "--model", micro, "--steps", 3, "--save-every", 0, "--keep", 9]
    run(*flags, "--save-minutes", 1, "--output", tmp_path / "some")
    assert len(list((tmp_path / "some/state").iterdir())) == 3
    run(*flags, "--save-minutes", 0, "--output", tmp_path / "none")
    assert not (tmp_path / "none/state").exists()

    def full(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("grpo.engine.state.save_file", full)
    run(*flags, "--save-minutes", 1, "--output", tmp_path / "full")
    assert "warning: " in (told := capsys.readouterr().err) and "No space left on device" in told
    assert len(records(tmp_path / "full/metrics.jsonl")) == 3


# ---------------------------------------------------------------- longer than before

@pytest.mark.parametrize("stage", [SFT, GRPO])
def test_more_steps_than_before(micro, tmp_path, capsys, stage):
    flags = [*stage, "--model", micro, "--warmup-steps", 0, "--lr-schedule", "linear", "--output", tmp_path / "run"]
    run(*flags, "--steps", 2)
    capsys.readouterr()
    run(*flags, "--steps", 4, "--resume", "auto")
    assert "note: 4 steps instead of 2: from step 3 on" in capsys.readouterr().out
    config = json.loads((tmp_path / "run/config.json").read_text())             # report.py reads it
    assert config["steps"] == config["planned_steps"] == 4
    # 1e-3 falling to 0 in 2 steps: 1e-3, 5e-4; then as in 4 steps: 5e-4, 2.5e-4
    rates = [line["lr"] for line in records(tmp_path / "run/metrics.jsonl")]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


def test_more_steps_at_a_constant_rate_are_the_longer_run(micro, tmp_path):
    flags = [*SFT, "--model", micro, "--warmup-steps", 0, "--lr-schedule", "constant", "--eval-examples", 0]
    run(*flags, "--steps", 4, "--output", tmp_path / "whole")
    run(*flags, "--steps", 2, "--output", tmp_path / "parts")
    run(*flags, "--steps", 4, "--output", tmp_path / "parts", "--resume", "auto")
    assert_same(tmp_path / "parts", tmp_path / "whole", 4)


def test_fewer_steps_than_done_are_refused(micro, tmp_path):
    flags = [*SFT, "--model", micro, "--output", tmp_path / "run"]
    run(*flags, "--steps", 3)
    for fewer in (2, 1):                                     # of 1, all rounds of --gate end before the state
        told = end_of(*flags, "--steps", fewer, "--resume", "auto")
        assert f"cannot continue with {fewer} steps instead of 3: it has done 3 steps" in told


def test_one_run_at_a_time_writes_to_an_output(micro, tmp_path):
    with only_writer(tmp_path / "run"):
        told = end_of(*SFT, "--model", micro, "--output", tmp_path / "run", "--steps", 1)
    assert f"another run is writing to --output {tmp_path / 'run'}; wait for its end" in told
    run(*SFT, "--model", micro, "--output", tmp_path / "run", "--steps", 1)
    assert not list(tmp_path.glob(".*.lock"))                # nothing is left of the lock


def test_a_run_without_a_model_is_told(micro, tmp_path):
    run(*SFT, "--model", micro, "--output", tmp_path / "run", "--steps", 1)
    shutil.rmtree(tmp_path / "run/model")
    told = end_of(*SFT, "--model", tmp_path / "run", "--output", tmp_path / "next", "--steps", 1)
    assert "is a run that has saved no model yet; continue it with --resume auto" in told


def test_other_validation_data_are_refused(micro, tmp_path):
    flags = [*SFT, "--model", micro, "--output", tmp_path / "run", "--steps", 2]
    run(*flags)
    write_examples([replace(e, split="val") for e in scene_examples("test", 3)], tmp_path / "val.jsonl")
    assert "was written with another --val-data" in end_of(*flags, "--val-data", tmp_path / "val.jsonl", "--resume",
                                                           "auto")


def test_the_trace_of_an_error_goes_when_its_run_goes_on(micro, tmp_path):
    flags = [*SFT, "--model", micro, "--output", tmp_path / "run"]
    run(*flags, "--steps", 1)
    (tmp_path / "run/error.txt").write_text("an earlier end")
    run(*flags, "--steps", 2, "--resume", "auto")
    assert not (tmp_path / "run/error.txt").exists()


def test_a_model_between_two_names_is_found_when_a_run_is_resumed(micro, tmp_path, capsys):
    flags = [*SFT, "--model", micro, "--output", tmp_path / "run", "--steps", 2, "--save-every", 1]
    run(*flags)
    (tmp_path / "run/model").rename(tmp_path / "run/model.new")
    (tmp_path / "run/model.old").mkdir()
    capsys.readouterr()
    run(*flags, "--resume", "auto")
    assert "no longer there" not in capsys.readouterr().out
    assert (tmp_path / "run/model/model.safetensors").is_file() and not (tmp_path / "run/model.new").exists()
