"""train.py and eval.py from end to end, as a user calls them: what they write, and how they fail."""

import contextlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eval as evaluate
import train
from data.example import Example, prompt_text
from grpo.engine import prompts, stages
from grpo.engine import rewards as reward_module
from grpo.engine.checkpoint import load_policy, save_policy
from grpo.engine.flags import GRPOFlags
from grpo.engine.prompts import PromptSettings
from models.qwen2_vl import new_model
from rewards import Decision

ROOT = Path(__file__).resolve().parent.parent
STEP_FIELDS = {"step", "loss", "entropy", "grad_norm", "lr", "seconds", "tokens_per_second"}
GRPO_FIELDS = STEP_FIELDS | {"reward", "reward_speed", "reward_path", "reward_format", "kl", "clip_frac", "flat_groups",
                             "completion_length", "truncated", "logprob_gap"}
SMALL = ["--scenes", "4", "--eval-examples", "2", "--steps", "2", "--max-new-tokens", "8", "--prompt-style", "compact",
         "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="session")
def micro(tmp_path_factory, micro_config, processor):
    """A model directory as another program would leave it: no settings of ours."""
    directory = tmp_path_factory.mktemp("micro") / "model"
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    save_policy(model, processor, PromptSettings(), {}, directory)
    (directory / "drivegrpo.json").unlink()
    return directory


@pytest.fixture
def copied(micro, tmp_path):
    """A private copy of the model directory, to be spoiled."""
    return Path(shutil.copytree(micro, tmp_path / "copied"))


def sft(*flags):
    train.main(["--stage", "sft", *map(str, flags)])


def grpo(*flags):
    train.main(["--stage", "grpo", *map(str, flags)])


def small_grpo(model, output, *flags):
    grpo("--model", model, "--output", output, *SMALL, "--group-size", 3, "--prompts-per-step", 2, *flags)


def score(*flags):
    evaluate.main([*map(str, flags)])


def records(file):
    def refuse(name):
        raise AssertionError(f"{file}: {name} is not JSON")
    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def alphadrive_prompt(speed=4.2):
    return prompt_text(Example(id="", image="", speed=speed, navigation={"100m": "Straight", "200m": "Turn left"},
                               decision=Decision("KEEP", "STRAIGHT")))


def write_alphadrive(folder, **changes):
    """Three records in AlphaDrive's released form; 640 x 360 pictures, the second one stored on its side (EXIF 6)."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).rotate(90, expand=True).save(folder / "1.jpg", exif=exif)
    Image.fromarray(pixels[:, ::-1]).save(folder / "2.png")
    plans = ["<answer> KEEP, STRAIGHT </answer>", "<answer> STOP, STRAIGHT </answer>",
             "<answer> DECELERATE, LEFT_TURN </answer>"]
    rows = [{"image": name, "problem": alphadrive_prompt(), "solution": plan, "thinking": "The road is clear.",
             **changes} for name, plan in zip(("0.jpg", "1.jpg", "2.png"), plans, strict=True)]
    (folder / "examples.json").write_text(json.dumps(rows))
    return folder / "examples.json"


@contextlib.contextmanager
def one_line_error(capsys, *words):
    """The body must exit with a code other than 0 and one line that holds the words."""
    with pytest.raises(SystemExit) as stop:
        yield
    shown = capsys.readouterr().err
    if isinstance(stop.value.code, str):                     # Python prints it on stderr and exits with 1
        shown += stop.value.code
    lines = shown.strip().splitlines()
    assert stop.value.code not in (0, None) and "Traceback" not in shown
    for word in words:
        assert str(word) in lines[-1], shown
    assert sum("error" in line for line in lines) == 1


# ---------------------------------------------------------------- the built-in road

@pytest.fixture(scope="session")
def built_in(tmp_path_factory):
    """sft -> grpo -> eval with tiny and the scenes, as the README has it but for the sizes. Run once."""
    root = tmp_path_factory.mktemp("runs")
    sft("--output", root / "sft", "--scenes", 6, "--steps", 2, "--batch-size", 3, "--eval-examples",
        2, "--max-new-tokens", 12, "--device", "cpu")
    grpo("--model", root / "sft/model", "--output", root / "grpo", "--preset", "demo", "--scenes", 6, "--steps", 2,
         "--prompts-per-step", 2, "--group-size", 3, "--eval-examples", 2, "--max-new-tokens", 12, "--samples-every", 1,
         "--device", "cpu")
    score("--model", root / "grpo/model", "--limit", 4, "--samples", 2, "--device", "cpu", "--output", root / "eval")
    return root


def test_sft_writes_what_is_promised(built_in):
    lines = records(built_in / "sft/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line.keys() >= STEP_FIELDS
        assert line["tokens_per_second"] > 0 and math.isfinite(line["loss"])
    assert 0.0 <= lines[-1]["val_accuracy"] <= 1.0
    config = json.loads((built_in / "sft/config.json").read_text())
    assert config["stage"] == "sft" and config["preset"] == "demo" and config["steps"] == 2
    assert config["prompt_style"] == "compact"               # the preset applied by itself


@pytest.mark.parametrize("field", sorted(GRPO_FIELDS))
def test_grpo_writes_every_promised_field(built_in, field):
    for line in records(built_in / "grpo/metrics.jsonl"):
        assert field in line


def test_grpo_writes_samples_and_config(built_in):
    config = json.loads((built_in / "grpo/config.json").read_text())
    assert config["stage"] == "grpo" and config["group_size"] == 3 and config["prompt_style"] == "compact"
    samples = records(built_in / "grpo/samples.jsonl")
    assert [sample["step"] for sample in samples] == [1, 1, 2, 2]              # two prompts a step
    for sample in samples:
        assert len(sample["texts"]) == len(sample["rewards"]) == len(sample["advantages"]) == 3
        assert {"speed", "path", "format"} <= sample["components"].keys()
        assert sample["truth"].count(",") == 1
    for line in records(built_in / "grpo/metrics.jsonl"):
        assert line["logprob_gap"] < 1e-4 and line["clip_frac"] == 0.0


def test_eval_writes_what_is_promised(built_in):
    metrics = json.loads((built_in / "eval/metrics.json").read_text())
    for name in ("planning_accuracy", "invalid_rate", "speed_accuracy", "path_accuracy"):
        assert 0.0 <= metrics[name] <= 1.0
    assert set(metrics["speed"]) == {"KEEP", "ACCELERATE", "DECELERATE", "STOP"}
    assert set(metrics["path"]) == {"STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN"}
    for part in ("speed", "path"):
        assert sum(row["support"] for row in metrics[part].values()) == 4
        for row in metrics[part].values():
            assert row.keys() >= {"precision", "recall", "f1", "support"}
    lines = records(built_in / "eval/predictions.jsonl")
    assert len(lines) == 4
    for line in lines:
        assert line.keys() >= {"id", "prompt", "truth", "acceptable", "factors", "text", "decision"}
        assert line["scene"] is not None and line["prompt"].startswith("speed ") and len(line["samples"]) == 2


@pytest.mark.parametrize("hide", ["picture", "text"])
def test_one_input_alone_with_another_prior_and_size(micro, tmp_path, monkeypatch, hide):
    """What sft was given, grpo and eval take from the model: size of the pictures, hidden input. Priors are a flag."""
    seen, asked = {}, []
    for name, script in (("train", prompts), ("eval", evaluate)):
        def encode(example, picture, *rest, name=name, real=script.encode_example):
            seen.setdefault(name, set()).update(one.size for one in picture)
            asked.append(example.id.partition("-")[0])
            return real(example, picture, *rest)
        monkeypatch.setattr(script, "encode_example", encode)
    prior = ("--prior", "natural")
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--hide", hide, "--scene-size", "112x84", *prior)
    small_grpo(tmp_path / "sft/model", tmp_path / "grpo", *prior)
    score("--model", tmp_path / "grpo/model", "--limit", 3, "--samples", 0, "--device", "cpu", *prior)
    assert seen == {"train": {(112, 84)}, "eval": {(112, 84)}} and set(asked) == {"natural"}
    metrics = json.loads((tmp_path / "grpo/eval-test-natural/metrics.json").read_text())
    assert (metrics["hide"], metrics["scene_size"], metrics["prior"]) == (hide, "112x84", "natural")
    for stage in ("sft", "grpo"):
        assert json.loads((tmp_path / stage / "config.json").read_text())["scene_size"] == "112x84"
    words = {line["prompt"] for line in records(tmp_path / "grpo/eval-test-natural/predictions.jsonl")}
    assert (words == {"Plan."}) == (hide == "text")


def test_model_directories_can_be_used_again(built_in):
    for stage in ("sft", "grpo"):
        _, _, settings = load_policy(built_in / stage / "model", torch.float32, "cpu")
        assert (settings.prompt_style, settings.max_new_tokens) == ("compact", 12)
        about = json.loads((built_in / stage / "model/drivegrpo.json").read_text())
        assert about["stage"] == stage


def test_eval_of_one_picture(built_in, tmp_path, capsys):
    Image.new("RGB", (100, 60), (90, 120, 150)).save(tmp_path / "street.png")
    score("--model", built_in / "grpo/model", "--image", tmp_path / "street.png", "--speed", "4.2", "--navigation",
          "{'100m': 'Straight', '200m': 'Turn left'}", "--samples", 4, "--device", "cpu")
    counts = [int(line.split("/4")[0]) for line in capsys.readouterr().out.splitlines() if "/4  " in line]
    assert sum(counts) == 4 and counts == sorted(counts, reverse=True)


# ---------------------------------------------------------------- AlphaDrive's released form

def test_alphadrive_file_from_sft_to_eval(micro, tmp_path):
    file = write_alphadrive(tmp_path / "data")
    common = ["--data", file, "--steps", 2, "--max-new-tokens", 8, "--max-pixels", 28 * 28 * 20, "--device", "cpu"]
    sft("--model", micro, "--output", tmp_path / "sft", "--batch-size", 2, *common)
    grpo("--model", tmp_path / "sft/model", "--output", tmp_path / "grpo", "--group-size", 2, "--prompts-per-step", 2,
         *common)
    score("--model", tmp_path / "grpo/model", "--data", file, "--device", "cpu", "--output", tmp_path / "eval")
    for line in records(tmp_path / "grpo/metrics.jsonl"):
        assert line.keys() >= GRPO_FIELDS                    # beta 0.04: kl is measured
        assert line["kl"] >= 0.0
    lines = records(tmp_path / "eval/predictions.jsonl")
    assert [line["truth"] for line in lines] == ["KEEP, STRAIGHT", "STOP, STRAIGHT", "DECELERATE, LEFT_TURN"]
    assert [Path(line["image"]).name for line in lines] == ["0.jpg", "1.jpg", "2.png"]
    assert all(line["prompt"] == alphadrive_prompt() for line in lines)        # verbatim
    _, processor, settings = load_policy(tmp_path / "grpo/model", torch.float32, "cpu")
    assert processor.max_pixels == 28 * 28 * 20 and settings.prompt_style == "alphadrive"


def test_rotated_picture_reaches_the_model_upright(micro, tmp_path, monkeypatch):
    seen = []

    def encode(example, pictures, *rest):
        seen.append((Path(example.image).name, *(picture.size for picture in pictures)))
        return real(example, pictures, *rest)
    real = prompts.encode_example
    monkeypatch.setattr(prompts, "encode_example", encode)
    sft("--model", micro, "--data", write_alphadrive(tmp_path / "data"), "--output", tmp_path / "sft", "--steps", 1,
        "--batch-size", 3, "--max-new-tokens", 8, "--max-pixels", 28 * 28 * 20, "--device", "cpu")
    assert set(seen) == {("0.jpg", (640, 360)), ("1.jpg", (640, 360)), ("2.png", (640, 360))}


def test_file_with_splits_is_used_by_its_splits(micro, tmp_path, capsys):
    file = write_alphadrive(tmp_path / "data")
    rows = json.loads(file.read_text())
    for row, split in zip(rows, ("train", "train", "val"), strict=True):
        row["split"] = split
    file.write_text(json.dumps(rows))
    sft("--model", micro, "--data", file, "--output", tmp_path / "sft", "--steps", 1, "--batch-size", 2,
        "--max-new-tokens", 4, "--max-pixels", 15680, "--split", "train", "--device", "cpu")
    assert "2 training examples, 1 for validation" in capsys.readouterr().out


def test_files_train_on_the_split_train_by_default(micro, tmp_path):
    """The flag's own help: `default: sft for stage sft, rl for stage grpo (scenes), train (files)`."""
    file = write_alphadrive(tmp_path / "data", split="train")
    sft("--model", micro, "--data", file, "--output", tmp_path / "sft", "--steps", 1, "--batch-size", 2,
        "--max-new-tokens", 4, "--max-pixels", 15680, "--device", "cpu")
    assert len(records(tmp_path / "sft/metrics.jsonl")) == 1


# ---------------------------------------------------------------- options

def test_reasoning_off_changes_prompt_target_and_format_rule(micro, tmp_path, monkeypatch, processor):
    targets, formats = [], []

    def keep_target(*arguments):
        targets.append(processor.decode(real_target(*arguments)))
        return real_target(*arguments)

    def keep_format(*arguments, **named):
        formats.append(named["reasoning"])
        return real_rewards(*arguments, **named)
    real_target, real_rewards = stages.encode_target, reward_module.planning_rewards
    monkeypatch.setattr(stages, "encode_target", keep_target)
    monkeypatch.setattr(reward_module, "planning_rewards", keep_format)
    file = write_alphadrive(tmp_path / "data")
    common = ["--data", file, "--steps", 1, "--max-new-tokens", 4, "--max-pixels", 15680, "--device", "cpu"]
    sft("--model", micro, "--output", tmp_path / "sft", "--reasoning", "off", "--batch-size", 3, *common)
    assert set(targets) == {"<answer> DECELERATE, LEFT_TURN </answer>", "<answer> KEEP, STRAIGHT </answer>",
                            "<answer> STOP, STRAIGHT </answer>"}
    # the setting travels: neither grpo nor eval is told again
    grpo("--model", tmp_path / "sft/model", "--output", tmp_path / "grpo", "--group-size", 2, "--prompts-per-step", 1,
         *common)
    assert formats == [False]
    score("--model", tmp_path / "grpo/model", "--data", file, "--device", "cpu", "--output", tmp_path / "eval",
          "--limit", 1)
    (line,) = records(tmp_path / "eval/predictions.jsonl")
    assert "think" not in line["prompt"] and "<answer> KEEP, LEFT_TURN </answer>" in line["prompt"]
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["reasoning"] is False


def test_way_points_from_the_data_to_the_scores(micro, tmp_path, capsys):
    """sft -> grpo -> eval with --answer trajectory: wording, target, rewards, what the model remembers, scores."""
    file = write_alphadrive(tmp_path, trajectory=[[2.0 * k, 0.0] for k in range(1, 9)])
    common = ["--data", file, "--steps", 1, "--max-new-tokens", 8, "--device", "cpu", "--eval-examples", 1]
    sft("--model", micro, "--output", tmp_path / "sft", "--batch-size", 2, "--answer", "trajectory", *common)
    settings = json.loads((tmp_path / "sft/model/drivegrpo.json").read_text())
    assert settings["answer"] == "trajectory"
    grpo("--model", tmp_path / "sft/model", "--output", tmp_path / "grpo", "--group-size", 2, "--prompts-per-step", 1,
         *common)                                            # the model says what to answer
    (step,) = records(tmp_path / "grpo/metrics.jsonl")
    assert step["reward_waypoints"] == 0.0
    (group,) = records(tmp_path / "grpo/samples.jsonl")
    assert "in <trajectory> </trajectory> tags: eight pairs x,y in metres" in group["prompt"]
    score("--model", tmp_path / "grpo/model", "--data", file, "--device", "cpu", "--output", tmp_path / "eval",
          "--samples", 2)
    for line in records(tmp_path / "eval/predictions.jsonl"):
        assert line["trajectory"] == [[2.0 * k, 0.0] for k in range(1, 9)] and "<trajectory>" in line["prompt"]
    scores = json.loads((tmp_path / "eval/metrics.json").read_text())["waypoints"]
    assert (scores["well_formed"], scores["ade"], scores["sampled"]["min_ade"]) == (0.0, None, None)
    assert "way-points  no readable way-points of which the expert's are known; 0.0000 w" in capsys.readouterr().out
    score("--model", tmp_path / "grpo/model", "--data", file, "--device", "cpu", "--output", tmp_path / "plans",
          "--answer", "plan", "--samples", 0)
    assert "<trajectory>" not in records(tmp_path / "plans/predictions.jsonl")[0]["prompt"]
    assert "waypoints" not in json.loads((tmp_path / "plans/metrics.json").read_text())


@pytest.mark.parametrize(("reasoning", "expected"), [(True, [1.0, 0.0]), (False, [0.0, 1.0])])
def test_format_rule_follows_reasoning(make_examples, reasoning, expected):
    config = GRPOFlags(reasoning=reasoning)
    texts = ["<think> clear </think> <answer> STOP, STRAIGHT </answer>", "<answer> STOP, STRAIGHT </answer>"]
    parts = reward_module.make_reward_fn(config)(make_examples(1)[0], texts)
    assert [part["format"] for part in parts] == expected
    assert [part["accuracy"] for part in parts] == [1.0, 1.0]


def test_same_seed_gives_the_same_run(micro, tmp_path, monkeypatch):
    def by_length(example, completions):                     # an untrained model earns nothing else
        return [{"speed": 0.1 * len(text), "path": 0.0, "format": 0.0} for text in completions]
    monkeypatch.setattr(train, "make_reward_fn", lambda config: by_length)
    lines = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_grpo(micro, tmp_path / name, "--seed", seed)
        lines.append([{key: value for key, value in line.items() if key not in ("seconds", "tokens_per_second")}
                      for line in records(tmp_path / name / "metrics.jsonl")])
    assert lines[0] == lines[1] != lines[2]
    one, two, three = (load_file(tmp_path / name / "model/model.safetensors") for name in "abc")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], three[key]) for key in one)


def test_bfloat16_directories_are_trained_in_float32(copied, tmp_path):
    tensors = load_file(copied / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, copied / "model.safetensors",
              metadata={"format": "pt"})
    sft("--model", copied, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--learning-rate", 1e-6)
    assert {t.dtype for t in load_file(tmp_path / "sft/model/model.safetensors").values()} == {torch.float32}


def test_overwrite_replaces_an_earlier_run(micro, tmp_path):
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2)
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--steps", 1, "--overwrite")
    assert len(records(tmp_path / "sft/metrics.jsonl")) == 1


def validations(monkeypatch, *accuracies):
    """Replace the validation by given accuracies, in order."""
    values = iter(accuracies)
    monkeypatch.setattr(stages, "validate", lambda run: next(values))


def saved_step(output):
    return json.loads((output / "model/drivegrpo.json").read_text())["step"]


def test_the_best_model_is_kept(micro, tmp_path, monkeypatch):
    validations(monkeypatch, 0.1, 0.5, 0.3)
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--steps", 3, "--eval-every", 1)
    assert saved_step(tmp_path / "sft") == 2
    assert [line["val_accuracy"] for line in records(tmp_path / "sft/metrics.jsonl")] == [0.1, 0.5, 0.3]


def test_gate_goes_on_until_it_is_passed(micro, tmp_path, monkeypatch):
    validations(monkeypatch, 0.1, 0.2, 0.6)                  # 4 steps, then 2 rounds of 2
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--steps", 4, "--gate", 0.5,
        "--gate-rounds", 5)
    assert [line["step"] for line in records(tmp_path / "sft/metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert saved_step(tmp_path / "sft") == 8


def test_gate_rounds_do_not_replace_a_better_model(micro, tmp_path, monkeypatch):
    validations(monkeypatch, 0.4, 0.2)
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--steps", 2, "--gate", 0.5,
        "--gate-rounds", 1)
    assert saved_step(tmp_path / "sft") == 2


# ---------------------------------------------------------------- bad input: one line, no traceback, nothing lost

EARLIER = '{"stage": "sft", "of": "an earlier run"}'


def earlier_run(folder):
    """What an earlier run left."""
    (folder / "model").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "model/model.safetensors"):
        (folder / name).write_text(EARLIER)
    return folder


def is_untouched(folder):
    return all((folder / name).is_file() and (folder / name).read_text() == EARLIER
               for name in ("config.json", "metrics.jsonl", "model/model.safetensors"))


def bad_image_missing(folder):
    file = write_alphadrive(folder)
    (folder / "1.jpg").unlink()
    return file, ["1.jpg"]


def bad_image_truncated(folder):
    file = write_alphadrive(folder)
    for name in ("0.jpg", "1.jpg", "2.png"):                 # all, so that the first batch meets one
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    return file, ["cannot be read"]


def bad_json_line(folder):
    file = write_alphadrive(folder).with_suffix(".jsonl")
    rows = json.loads((folder / "examples.json").read_text())
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:-20] + "\n" + json.dumps(rows[2]) + "\n")
    return file, ["examples.jsonl", "line 2"]


def bad_action(folder):
    return write_alphadrive(folder, solution="<answer> FLY, STRAIGHT </answer>"), ["examples.json", "FLY"]


def bad_file_missing(folder):
    return folder / "nothing.json", ["nothing.json"]


BAD_DATA = [bad_image_missing, bad_image_truncated, bad_json_line, bad_action, bad_file_missing]


@pytest.mark.parametrize("spoil", BAD_DATA)
def test_bad_data_is_one_line(micro, tmp_path, capsys, spoil):
    file, words = spoil(tmp_path / "data")
    with one_line_error(capsys, *words):
        sft("--model", micro, "--data", file, "--output", tmp_path / "sft", "--steps", 1, "--batch-size", 2,
            "--max-new-tokens", 4, "--max-pixels", 15680, "--device", "cpu")


@pytest.mark.parametrize("spoil", [bad_image_missing, bad_json_line])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_bad_data_does_not_destroy_the_earlier_run(micro, tmp_path, capsys, spoil, command):
    """--overwrite replaces a run by another one, not by nothing."""
    earlier = earlier_run(tmp_path / "earlier")
    file, words = spoil(tmp_path / "data")
    flags = ["--model", micro, "--data", file, "--output", earlier, "--overwrite", "--device", "cpu"]
    with one_line_error(capsys, *words):
        sft(*flags) if command == "train" else score(*flags)
    assert is_untouched(earlier)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_bad_model_does_not_destroy_the_earlier_run(tmp_path, capsys, command):
    earlier = earlier_run(tmp_path / "earlier")
    flags = ["--model", tmp_path / "no-such-model", "--output", earlier, "--overwrite", "--device", "cpu"]
    with one_line_error(capsys, "no-such-model"):
        sft(*flags) if command == "train" else score(*flags)
    assert is_untouched(earlier)


def test_overwriting_the_directory_that_holds_the_model_keeps_the_model(micro, tmp_path, capsys):
    """Continuing a run into its own directory may work or be refused; the model must not be deleted unread."""
    sft("--model", micro, "--output", tmp_path / "sft", *SMALL, "--batch-size", 2)
    with contextlib.suppress(SystemExit):
        sft("--model", tmp_path / "sft/model", "--output", tmp_path / "sft", *SMALL, "--batch-size", 2, "--overwrite")
    capsys.readouterr()
    load_policy(tmp_path / "sft/model", torch.float32, "cpu")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_model_directory_without_a_needed_file(copied, tmp_path, capsys, file):
    (copied / file).unlink()
    with one_line_error(capsys, file):
        sft("--model", copied, "--output", tmp_path / "out", *SMALL)
    with one_line_error(capsys, file):
        score("--model", copied, "--output", tmp_path / "out2", "--limit", 1, "--device", "cpu")


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_tensor_missing_or_surplus(copied, tmp_path, capsys, change):
    tensors, name = load_file(copied / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    else:
        name = "model.layers.9.mlp.up_proj.weight"
        tensors[name] = torch.zeros(2, 2)
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with one_line_error(capsys, change, name):
        sft("--model", copied, "--output", tmp_path / "out", *SMALL)


def test_truncated_weights(copied, tmp_path, capsys):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with one_line_error(capsys, "model.safetensors"):
        sft("--model", copied, "--output", tmp_path / "out", *SMALL)


@pytest.mark.parametrize("content", ["{", "{}", '"text"'])
def test_spoiled_tokenizer(copied, tmp_path, capsys, content):
    (copied / "tokenizer.json").write_text(content)
    with one_line_error(capsys, "tokenizer"):
        sft("--model", copied, "--output", tmp_path / "out", *SMALL)


def test_group_size_one(micro, tmp_path, capsys):
    with one_line_error(capsys, "--group-size is 1"):
        grpo("--model", micro, "--output", tmp_path / "out", "--group-size", 1)
    assert not (tmp_path / "out").exists()


def test_prompt_longer_than_the_context_names_the_example(micro, tmp_path, capsys):
    file = write_alphadrive(tmp_path / "data", problem="far too long " * 300)
    with one_line_error(capsys, "examples-00000", "context"):
        sft("--model", micro, "--data", file, "--output", tmp_path / "out", "--steps", 1, "--device", "cpu")


@pytest.mark.parametrize("stage", ["sft", "grpo", "eval"])
def test_non_empty_output_is_refused_and_kept(micro, tmp_path, capsys, stage):
    earlier = earlier_run(tmp_path / "earlier")
    with one_line_error(capsys, "earlier", "--overwrite"):
        if stage == "eval":
            score("--model", micro, "--output", earlier, "--limit", 1)
        else:
            train.main(["--stage", stage, "--model", str(micro), "--output", str(earlier)])
    assert is_untouched(earlier)


@pytest.mark.parametrize("arguments", [["--stage", "sft", "--grop-size", "4"], ["--stage", "sft", "--batch", "4"],
                                       ["--stage", "sft", "--group-size", "4"]])
def test_unknown_flags(arguments, capsys):
    with one_line_error(capsys, arguments[2]):
        train.main(arguments)
    with one_line_error(capsys, arguments[2]):
        evaluate.main(arguments[2:])


def test_stage_is_required_and_named(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([])
    assert "--stage" in str(stop.value.code)
    with pytest.raises(SystemExit) as stop:
        train.main(["--stage", "rl"])
    assert stop.value.code == 2 and "rl" in capsys.readouterr().err


def test_grpo_without_an_sft_model_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with one_line_error(capsys, "--stage sft"):
        train.main(["--stage", "grpo"])
    with one_line_error(capsys, "--model"):
        evaluate.main([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--reward-weights", "nan,1,1"], ["--delta", "0.5"], ["--max-skipped", "0"]])
def test_impossible_settings_are_refused_before_anything_is_written(micro, tmp_path, capsys, flags):
    with one_line_error(capsys, flags[0]):
        small_grpo(micro, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_device_that_is_not_there(micro, tmp_path, capsys, command):
    with one_line_error(capsys, "cuda"):
        if command == "train":
            sft("--model", micro, "--output", tmp_path / "out", *SMALL, "--device", "cuda")
        else:
            score("--model", micro, "--output", tmp_path / "out", "--limit", 1, "--device", "cuda")


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", "many"), ("max_new_tokens", -3), ("hide", "road"),
                                              ("prompt_style", "terse"), ("reasoning", "no"),
                                              ("scene_size", "9999999x8")])
def test_settings_of_the_model_directory_are_checked(copied, tmp_path, capsys, field, value):
    good = {"prompt_style": "compact", "reasoning": True, "hide": "nothing", "max_new_tokens": 8}
    (copied / "drivegrpo.json").write_text(json.dumps({**good, field: value}))
    with one_line_error(capsys, repr(value)):
        score("--model", copied, "--output", tmp_path / "eval", "--limit", 1, "--samples", 0, "--device", "cpu")


def test_a_run_that_blows_up_saves_no_broken_model(micro, tmp_path, capsys):
    """One finite step at rate 1e30 leaves weights that give NaN everywhere: not a best model, and no valid numbers."""
    with contextlib.suppress(SystemExit):
        sft("--model", micro, "--output", tmp_path / "out", *SMALL, "--batch-size", 2, "--steps", 4, "--learning-rate",
            "1e30", "--warmup-steps", 0)
    records(tmp_path / "out/metrics.jsonl")                  # strict JSON: a bare NaN is none
    if (tmp_path / "out/model").exists():
        model, processor, _ = load_policy(tmp_path / "out/model", torch.float32, "cpu")
        assert torch.isfinite(model(torch.tensor([processor.encode_text("Go.")]))).all()


def test_error_of_a_real_process(tmp_path):
    """Once as a process of its own: exit code 1, one line on stderr, nothing on the way."""
    result = subprocess.run([sys.executable, ROOT / "train.py", "--stage", "sft", "--data", tmp_path / "none.json",
                             "--model", tmp_path / "no-model", "--output", tmp_path / "out"],
                            capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")


def test_overwriting_keeps_every_input(micro, tmp_path, capsys):
    """An adapter, a data file or a reward inside the output would be deleted before it is read again."""
    out = tmp_path / "out"
    sft("--model", micro, *SMALL, "--batch-size", 2, "--lora-rank", 2, "--output", out)
    data = write_alphadrive(tmp_path / "own")
    inside = shutil.copy(data, out / "mine.json")
    (out / "paid.py").write_text("def f(example, completions):\n    return [{'f': 0.0}] * len(completions)\n")
    for flags in (["--adapter", out / "adapter"], ["--data", inside], ["--val-data", inside],
                  ["--reward", f"{out / 'paid.py'}:f"]):
        with one_line_error(capsys, "holds", str(flags[1]).split(":f")[0], "which this command reads"):
            stage = grpo if flags[0] == "--reward" else sft
            stage("--model", micro, *SMALL[2 * (flags[0] == "--data"):], *flags, "--output", out, "--overwrite")
    assert (out / "adapter").is_dir() and (out / "mine.json").is_file()


@pytest.mark.parametrize("command", [sft, grpo])
def test_a_cuda_graph_without_a_gpu_is_refused_before_the_earlier_run_is_removed(micro, tmp_path, capsys, command):
    before = earlier_run(tmp_path)
    with one_line_error(capsys, "--decode is 'graph', a CUDA graph, and there is no GPU"):
        command("--model", micro, *SMALL, "--decode", "graph", "--output", before, "--overwrite")
    assert is_untouched(before)


def test_set_valued_rewards_without_acceptable_plans_are_refused_at_the_start(micro, tmp_path, capsys):
    before, data = earlier_run(tmp_path / "run"), write_alphadrive(tmp_path / "own")
    with one_line_error(capsys, "--reward-mode is 'set', but example", "has no `acceptable` plans"):
        grpo("--model", micro, *SMALL[2:], "--data", data, "--reward-mode", "set", "--output", before, "--overwrite")
    assert is_untouched(before)


def test_equal_rewards_without_a_baseline_are_no_collapse(micro, tmp_path, capsys):
    flags = ["--model", micro, *SMALL, "--steps", 11, "--prompts-per-step", 1, "--group-size", 2, "--algorithm"]
    for algorithm, warned in (("reinforce", False), ("grpo", True)):
        grpo(*flags, algorithm, "--output", tmp_path / algorithm)
        assert ("flat_groups averaged" in capsys.readouterr().out) == warned
