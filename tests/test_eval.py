"""eval.py: the batch size, an interruption and more temperatures do not change the answers."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluate
from data.example import Example
from grpo.engine.checkpoint import only_writer, save_policy
from grpo.engine.flags import EvalConfig, SFTFlags
from grpo.engine.prompts import PromptSettings
from models.config import PRESETS
from models.processor import fit_config
from models.qwen2_vl import Qwen2VL, new_model
from rewards import Decision


def records(file):
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- answers

@pytest.fixture
def planner(make_model, processor):
    """Untrained, with answers of different lengths."""
    return make_model(stop=0.9), processor, PromptSettings("compact", max_new_tokens=12)


def answered(planner, examples, **flags):
    """Lines of predictions.jsonl by id."""
    config = EvalConfig(model="unused", **{"samples": 2, **flags})
    batches = evaluate.answer(planner, examples, range(len(examples)), config)
    return {row["id"]: row for batch, _ in batches for row in batch}


def test_the_batch_size_changes_nothing(planner, make_examples):
    examples = [*make_examples(5), Example(id="long", scene=9, speed=12.5, navigation="Keep going straight for 200 m",
                                           decision=Decision("KEEP", "STRAIGHT"))]
    alone = answered(planner, examples, batch_size=1)
    texts = [text for row in alone.values() for text in (row["text"], *row["samples"])]
    assert len(set(texts)) > 6 and len({len(row["text"]) for row in alone.values()}) > 1
    for size in (2, 4, 6):
        assert answered(planner, examples, batch_size=size) == alone


def test_the_batch_size_changes_nothing_for_tiny(processor, make_examples):
    model = new_model(fit_config(PRESETS["tiny"], processor.tokenizer), torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(6)                         # likely and unlikely tokens, as in conftest
    planner = model, processor, PromptSettings("compact", max_new_tokens=8)
    alone = answered(planner, make_examples(5), batch_size=1, samples=0)
    assert len({row["text"] for row in alone.values()}) > 1
    for size in (3, 5):
        assert answered(planner, make_examples(5), batch_size=size, samples=0) == alone


def test_longest_requests_come_first(planner, make_examples):
    examples = [Example(id=text, scene=1, speed=1.0, navigation=text, decision=Decision("KEEP", "STRAIGHT"))
                for text in ("Go", "Go straight on", "Go on")]
    config = EvalConfig(model="unused", batch_size=1, samples=0)
    order = [row["id"] for batch, _ in evaluate.answer(planner, examples, range(3), config) for row in batch]
    assert order == ["Go straight on", "Go on", "Go"]


def test_temperatures_reach_the_sampler_and_pictures_are_read_once(planner, make_examples, monkeypatch):
    heats, pictures = [], []
    real, encode = evaluate.Sampler, Qwen2VL.image_features
    monkeypatch.setattr(evaluate, "Sampler", lambda *given: heats.append(given[2]) or real(*given))
    monkeypatch.setattr(Qwen2VL, "image_features", lambda *given: pictures.append(1) or encode(*given))
    rows = answered(planner, make_examples(3), samples=3, temperature=0.6, temperatures="1.5,0.25")
    assert heats == [0.0, 0.25, 0.6, 1.5] and len(pictures) == 3
    for row in rows.values():
        assert list(row["sweep"]) == ["0.25", "0.6", "1.5"] and row["sweep"]["0.6"] == row["sample_decisions"]
        assert len(row["samples"]) == len(row["samples_truncated"]) == 3
    plain = answered(planner, make_examples(3), samples=0)
    assert all(row["samples"] == [] and row["sweep"] == {} for row in plain.values())
    assert [row["text"] for row in plain.values()] == [row["text"] for row in rows.values()]


@pytest.mark.parametrize("flags", [
    {"decoder": "runs/x"}, {"plan": "expert"}, {"eta": 0.5}, {"best_of": 2}, {"images": "a", "limit": 1},
    {"image": "a.png", "output": "b"}, {"images": "a", "temperatures": "0.5"}, {"image": "a.png", "split": "val"}])
def test_flags_that_would_do_nothing_are_refused(flags):
    with pytest.raises(ValueError, match=f"--{[*flags][-1].replace('_', '-')}.* left out with"):
        EvalConfig(**flags)


@pytest.mark.parametrize("flags", [{"temperatures": "0.5,0"}, {"temperatures": "warm"}, {"temperatures": "nan"},
                                   {"temperatures": "0.5", "samples": 0}, {"resume": True, "overwrite": True}])
def test_impossible_flags_are_refused(flags):
    with pytest.raises(ValueError, match="--temperatures|--resume"):
        EvalConfig(**flags)


@pytest.mark.parametrize("size", ["448", "448x", "27x112", "224x4097", "448 x 224", "x", "٤٤٨x224"])
def test_sizes_that_cannot_be_drawn_are_refused(size):
    for config in (EvalConfig, SFTFlags):
        with pytest.raises(ValueError, match="--scene-size is .* such as 448x224"):
            config(scene_size=size)


def test_the_sweep_holds_every_temperature_once():
    assert EvalConfig(temperatures="1.5,0.25,1").sweep == (0.25, 1.0, 1.5)
    assert EvalConfig().sweep == (1.0,) and EvalConfig(samples=0).sweep == ()


# ---------------------------------------------------------------- interrupted and resumed

@pytest.fixture
def model_directory(planner, tmp_path):
    save_policy(*planner, {}, tmp_path / "model")
    return tmp_path / "model"


def command(model, output, *more):
    evaluate.main([str(word) for word in ("--model", model, "--output", output, "--limit", 5, "--samples", 2,
                                          "--batch-size", 2, "--device", "cpu", *more)])


def test_files_are_whole_and_in_the_order_of_the_data(model_directory, tmp_path, capsys):
    command(model_directory, tmp_path / "out", "--temperatures", "0.5")
    rows = records(tmp_path / "out/predictions.jsonl")
    assert [row["id"] for row in rows] == [f"test-0-{i:06d}" for i in range(5)]
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [point["temperature"] for point in metrics["multimodality"]] == [0.5, 1.0]
    assert metrics["text"]["count"] == 5 and metrics["factors"]["night"]
    table = (tmp_path / "out/table.md").read_text()
    assert table.startswith("| run ") and table in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "metrics.json", "predictions.jsonl", "table.md"]


def sizes_seen(monkeypatch):
    """Collects the sizes of the pictures that eval.py encodes."""
    seen, encode = [], evaluate.encode_example

    def note(example, pictures, *rest):
        seen.extend(picture.size for picture in pictures)
        return encode(example, pictures, *rest)
    monkeypatch.setattr(evaluate, "encode_example", note)
    return seen


def test_pictures_are_as_large_as_in_training_unless_said(planner, tmp_path, monkeypatch, capsys):
    policy, processor, settings = planner
    save_policy(policy, processor, replace(settings, scene_size="112x84"), {}, tmp_path / "model")
    seen = sizes_seen(monkeypatch)
    command(tmp_path / "model", tmp_path / "own")
    assert set(seen) == {(112, 84)} and "note" not in capsys.readouterr().out
    seen.clear()
    command(tmp_path / "model", tmp_path / "other", "--scene-size", "56x28")
    assert set(seen) == {(56, 28)}
    assert "was trained on pictures of 112x84 and is scored on 56x28" in capsys.readouterr().out
    for name, size in (("own", "112x84"), ("other", "56x28")):
        for file in ("metrics.json", "config.json"):
            assert json.loads((tmp_path / name / file).read_text())["scene_size"] == size
    with pytest.raises(SystemExit, match="scene_size was '56x28' and is '112x84'"):
        command(tmp_path / "model", tmp_path / "other", "--resume")


def test_a_prior_has_its_own_scenes_ceiling_and_majority(model_directory, tmp_path):
    evaluate.main(["--model", str(model_directory), "--prior", "natural", "--limit", "40", "--samples", "0",
                   "--device", "cpu"])
    out = tmp_path / "eval-test-natural"
    metrics, rows = json.loads((out / "metrics.json").read_text()), records(out / "predictions.jsonl")
    assert metrics["prior"] == json.loads((out / "config.json").read_text())["prior"] == "natural"
    assert [row["id"] for row in rows] == [f"natural-test-0-{i:06d}" for i in range(40)]
    # three of four natural labels are KEEP, STRAIGHT, and the ceiling is .978; of balanced ones .158 STOP, and .806
    assert metrics["majority"]["plan"] == "KEEP, STRAIGHT" and 0.6 < metrics["majority"]["accuracy"] < 0.9
    assert 0.93 < metrics["bayes_ceiling"] < 1.0
    with pytest.raises(SystemExit, match="prior was 'natural' and is 'balanced'"):
        command(model_directory, out, "--resume")


def test_an_interrupted_scoring_goes_on_where_it_was(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "whole")
    real, written, asked = evaluate.append_lines, [], []

    def append(file, rows):
        if written:
            raise KeyboardInterrupt
        written.extend(rows)
        real(file, rows)
    monkeypatch.setattr(evaluate, "append_lines", append)
    with pytest.raises(KeyboardInterrupt):
        command(model_directory, tmp_path / "parts")
    monkeypatch.setattr(evaluate, "append_lines", real)
    file = tmp_path / "parts/predictions.jsonl"
    assert len(records(file)) == 2 and not (tmp_path / "parts/metrics.json").exists()
    content = file.read_bytes()
    file.write_bytes(content + content[:40])                            # a line half written
    encode = evaluate.encode_example
    monkeypatch.setattr(evaluate, "encode_example", lambda example, *rest: asked.append(example.id) or
                        encode(example, *rest))
    command(model_directory, tmp_path / "parts", "--resume")
    assert len(asked) == 3 and not {row["id"] for row in written} & set(asked)
    for left in ("predictions.jsonl", "metrics.json", "table.md"):
        assert (tmp_path / "parts" / left).read_text() == (tmp_path / "whole" / left).read_text()


@pytest.mark.parametrize(("fault", "message"), [
    (RuntimeError("CUDA error\nsecond line"), r"^error: RuntimeError: CUDA error second line \(.*error.txt\)$"),
    (MemoryError(), r"^error: out of memory \(MemoryError\): lower --batch-size or --max-pixels$"),
    (OSError(28, "No space left on device"), r"No space left on device"), (TypeError("x"), "^error: TypeError: x")])
def test_any_fault_is_one_line_and_keeps_the_answers(model_directory, tmp_path, monkeypatch, capsys, fault, message):
    real = evaluate.answer
    monkeypatch.setattr(evaluate, "answer", lambda *given: raising_after_one(real(*given), fault))
    with pytest.raises(SystemExit, match=message):
        command(model_directory, tmp_path / "out")
    assert f"2 of 5 answers are kept in {tmp_path / 'out'}: continue" in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "answer", real)
    command(model_directory, tmp_path / "out", "--resume")
    assert len(records(tmp_path / "out/predictions.jsonl")) == 5


def raising_after_one(items, fault):
    yield next(items)
    raise fault


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_waits_for_the_batch_and_says_how_to_continue(model_directory, tmp_path, monkeypatch, capsys, name):
    number, real = getattr(signal, name), evaluate.append_lines
    monkeypatch.setattr(evaluate, "append_lines", lambda *given: signal.raise_signal(number) or real(*given))
    with pytest.raises(SystemExit) as stop:
        command(model_directory, tmp_path / "out")
    assert stop.value.code == 128 + number and len(records(tmp_path / "out/predictions.jsonl")) == 2
    assert "2 of 5 answers are kept" in capsys.readouterr().err


def test_resume_begins_what_was_not_begun_and_scores_what_is_finished(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "out", "--resume")
    before = (tmp_path / "out/metrics.json").read_text()
    (tmp_path / "out/metrics.json").unlink()
    monkeypatch.setattr(evaluate, "encode_example", None)               # nothing is asked again
    command(model_directory, tmp_path / "out", "--resume")
    assert (tmp_path / "out/metrics.json").read_text() == before


def test_resume_where_no_line_was_finished(model_directory, tmp_path):
    command(model_directory, tmp_path / "out")
    file = tmp_path / "out/predictions.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    command(model_directory, tmp_path / "out", "--resume")
    assert file.read_bytes() == whole


def test_one_scoring_at_a_time_writes_to_an_output(model_directory, tmp_path):
    with only_writer(tmp_path / "out"), pytest.raises(SystemExit, match="another run is writing to --output"):
        evaluate.main(["--model", str(model_directory), "--limit", "2", "--output", str(tmp_path / "out")])
    with only_writer(tmp_path / "out"), pytest.raises(SystemExit, match="another run is writing to --output"):
        evaluate.main(["--trajectories", "2", "--decoder", str(tmp_path), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_torn_rewrite_of_an_earlier_end_is_forgotten(model_directory, tmp_path):
    command(model_directory, tmp_path / "out")
    file = tmp_path / "out/predictions.jsonl"
    whole = file.read_bytes()
    file.with_name("predictions.jsonl.tmp").write_bytes(whole[:40])     # killed while putting the lines in order
    command(model_directory, tmp_path / "out", "--resume")
    assert file.read_bytes() == whole


def test_resume_refuses_other_settings_weights_and_data(model_directory, tmp_path, planner, make_model):
    out = tmp_path / "out"
    command(model_directory, out)
    kept = (out / "predictions.jsonl").read_bytes()
    for flags, words in ((("--seed", 1), "seed was 0 and is 1"), (("--samples", 3), "samples was 2 and is 3"),
                         (("--temperature", 0.5), "temperature"), (("--max-new-tokens", 5), "max_new_tokens")):
        with pytest.raises(SystemExit, match=words):
            command(model_directory, out, "--resume", *flags)
    rows = records(out / "predictions.jsonl")
    (out / "predictions.jsonl").write_text(json.dumps({**rows[0], "truth": "KEEP, RIGHT_CHANGE"}) + "\n")
    with pytest.raises(SystemExit, match=f"answers {rows[0]['id']}"):
        command(model_directory, out, "--resume")
    (out / "predictions.jsonl").write_text(json.dumps({**rows[0], "scene": 5}) + "\n")
    with pytest.raises(SystemExit, match="with another picture, question, label or"):
        command(model_directory, out, "--resume")
    (out / "predictions.jsonl").write_bytes(kept)
    save_policy(make_model(seed=1), *planner[1:], {}, model_directory)  # trained again in between
    with pytest.raises(SystemExit, match="weights"):
        command(model_directory, out, "--resume")
    assert (out / "predictions.jsonl").read_bytes() == kept


def test_resume_refuses_other_way_points_of_the_expert(model_directory, tmp_path):
    picture, file = tmp_path / "a.png", tmp_path / "logs.json"
    Image.new("RGB", (56, 28)).save(picture)
    for step in (2.0, 2.5):
        file.write_text(json.dumps([{"id": "log", "image": "a.png", "speed": 4.0, "navigation": "Go straight",
                                     "decision": "KEEP, STRAIGHT", "split": "test",
                                     "trajectory": [[step * k, 0.0] for k in range(1, 9)]}]))
        flags = ["--data", file, "--answer", "trajectory", "--limit", 1]
        if step == 2.0:
            command(model_directory, tmp_path / "out", *flags)
    with pytest.raises(SystemExit, match="answers log with another picture, question, label or expert's drive"):
        command(model_directory, tmp_path / "out", *flags, "--resume")


def test_a_fault_before_the_first_answer_keeps_the_earlier_scores(model_directory, tmp_path, monkeypatch):
    command(model_directory, tmp_path / "out")
    before = (tmp_path / "out/metrics.json").read_text()

    def broken(*given):
        raise ValueError("picture 0 is cut short")
    monkeypatch.setattr(evaluate, "encode_example", broken)
    with pytest.raises(SystemExit, match="picture 0"):
        command(model_directory, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out/metrics.json").read_text() == before


# ---------------------------------------------------------------- files of others: bad pictures, limits, no labels

@pytest.fixture
def make_file(tmp_path):
    """make_file(count, **more) -> a data file of `count` pictures, ids p0, p1 ..., labels alternating KEEP and STOP."""
    def make(count, **more):
        lines = []
        for i in range(count):
            Image.new("RGB", (56, 28), (40 * i, 90, 60)).save(tmp_path / f"{i}.png")
            lines.append({"id": f"p{i}", "image": f"{i}.png", "speed": 5.0, "navigation": "Go straight",
                          "decision": ("KEEP, STRAIGHT", "STOP, STRAIGHT")[i % 2], **more})
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / "data.jsonl"
    return make


def tear(tmp_path, *numbers):
    """Cut these pictures short."""
    for number in numbers:
        file = tmp_path / f"{number}.png"
        file.write_bytes(file.read_bytes()[:60])


def test_the_size_of_scenes_is_refused_for_pictures(model_directory, make_file, tmp_path):
    with pytest.raises(SystemExit, match="--scene-size is '56x28'; leave it out for .*data.jsonl"):
        command(model_directory, tmp_path / "out", "--data", make_file(2), "--scene-size", "56x28")


def test_a_bad_picture_stops_or_is_skipped_and_counted(model_directory, make_file, tmp_path, capsys):
    data, out = make_file(6), tmp_path / "out"
    tear(tmp_path, 3, 4)
    with pytest.raises(SystemExit, match="example 'p[34]': picture .*[34].png .*; --on-bad-data skip scores"):
        command(model_directory, out, "--data", data, "--limit", 0)
    command(model_directory, out, "--data", data, "--limit", 0, "--on-bad-data", "skip", "--resume")
    assert "4 of 6 examples scored; 2 skipped, see skipped.jsonl" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["scene_size"] is None             # that of built-in scenes
    assert [row["id"] for row in records(out / "predictions.jsonl")] == ["p0", "p1", "p2", "p5"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["count"], metrics["available"], metrics["skipped"]) == (4, 6, 2)
    skipped = {row["id"]: row["fault"] for row in records(out / "skipped.jsonl")}
    assert set(skipped) == {"p3", "p4"} and "3.png" in skipped["p3"]


def test_skipping_changes_no_other_answer(model_directory, make_file, tmp_path):
    data = make_file(5)
    command(model_directory, tmp_path / "whole", "--data", data)
    tear(tmp_path, 0, 1)                                                # the first batch has no picture left
    command(model_directory, tmp_path / "rest", "--data", data, "--on-bad-data", "skip")
    assert records(tmp_path / "rest/predictions.jsonl") == records(tmp_path / "whole/predictions.jsonl")[2:]


def test_what_was_skipped_is_answered_once_it_is_mended(model_directory, make_file, tmp_path):
    data, out = make_file(4), tmp_path / "out"
    whole = (tmp_path / "2.png").read_bytes()
    tear(tmp_path, 2)
    command(model_directory, out, "--data", data, "--on-bad-data", "skip")
    (tmp_path / "2.png").write_bytes(whole)
    command(model_directory, out, "--data", data, "--on-bad-data", "skip", "--resume")
    assert [row["id"] for row in records(out / "predictions.jsonl")] == ["p0", "p1", "p2", "p3"]
    assert not (out / "skipped.jsonl").exists() and json.loads((out / "metrics.json").read_text())["skipped"] == 0


def test_nothing_usable_is_an_error_that_keeps_the_earlier_scores(model_directory, make_file, tmp_path):
    data, out = make_file(2), tmp_path / "out"
    command(model_directory, out, "--data", data)
    before = (out / "metrics.json").read_text()
    tear(tmp_path, 0, 1)
    with pytest.raises(SystemExit, match="none of 2 examples can be scored; the first fault: example 'p[01]'"):
        command(model_directory, out, "--data", data, "--overwrite", "--on-bad-data", "skip")
    assert (out / "metrics.json").read_text() == before


def test_scoring_what_a_model_was_trained_on_is_told(tmp_path, capsys):
    one = Example(id="a", prompt="?", decision=Decision("KEEP", "STRAIGHT"), scene=1)
    data, config = tmp_path / "own.jsonl", EvalConfig(model=str(tmp_path / "model"), data=str(tmp_path / "own.jsonl"))
    run, other = {"stage": "sft", "data": str(data), "split": "train"}, replace(one, split="test")
    for about, examples, told in ((run, [one, other], "1 of 2"), (run, [other], ""),
                                  (run | {"data": "scenes"}, [one], ""), (run | {"stage": None}, [one], ""),
                                  ('{"stage": "sft', [one], "")):                # cut off
        (tmp_path / "config.json").write_text(json.dumps(about) if isinstance(about, dict) else about)
        evaluate.note_trained_on(examples, config)
        shown = capsys.readouterr().err
        assert shown.startswith(f"note: {told} examples belong to the data that the model was trained on") == bool(told)
        assert bool(shown) == bool(told)


def test_a_picture_of_impossible_shape_is_named(model_directory, make_file, tmp_path):
    data = make_file(2)
    Image.new("RGB", (4000, 4)).save(tmp_path / "1.png")                # the processor takes ratios up to 200
    with pytest.raises(SystemExit, match="example 'p1': picture .*1.png .*--on-bad-data skip"):
        command(model_directory, tmp_path / "out", "--data", data)


def test_bad_records_and_missing_pictures_are_skipped(model_directory, make_file, tmp_path, capsys):
    data = make_file(4)
    data.write_text(data.read_text() + '{"id": "half", "image": "0.png"\n')
    (tmp_path / "2.png").unlink()
    command(model_directory, tmp_path / "out", "--data", data, "--on-bad-data", "skip")
    assert "3 of 5 examples scored; 2 skipped" in capsys.readouterr().out
    faults = " ".join(row["fault"] for row in records(tmp_path / "out/skipped.jsonl"))
    assert "line 5" in faults and "example 'p2'" in faults


def test_the_pictures_of_another_split_may_be_missing(model_directory, make_file, tmp_path):
    data = make_file(2, split="test")
    data.write_text(data.read_text() + '{"id": "t", "image": "9.png", "speed": 1, "navigation": "Go straight", '
                    '"decision": "KEEP, STRAIGHT", "split": "train"}\n')
    command(model_directory, tmp_path / "out", "--data", data)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["available"] == 2


def test_a_limit_says_how_many_of_how_many(model_directory, make_file, tmp_path, capsys):
    data = make_file(4)
    command(model_directory, tmp_path / "some", "--data", data, "--limit", 3)
    assert capsys.readouterr().out.startswith("3 of 4 examples scored; --limit 0 scores all\n")
    metrics = json.loads((tmp_path / "some/metrics.json").read_text())
    assert (metrics["count"], metrics["available"], metrics["skipped"]) == (3, 4, 0)
    command(model_directory, tmp_path / "all", "--data", data, "--limit", 0)
    assert capsys.readouterr().out.startswith("4 of 4 examples scored\n")
    command(model_directory, tmp_path / "scenes")
    assert capsys.readouterr().out.startswith("5 built-in scenes scored\n")
    assert json.loads((tmp_path / "scenes/metrics.json").read_text())["available"] is None


def test_a_folder_of_pictures_needs_no_labels(model_directory, make_file, tmp_path, capsys):
    make_file(3)
    tear(tmp_path, 1)
    flags = ["--model", str(model_directory), "--image", str(tmp_path), "--samples", "2", "--device", "cpu"]
    evaluate.main([*flags, "--on-bad-data", "skip"])
    lines = [text for text in capsys.readouterr().out.splitlines() if not text.startswith(" ")]
    assert [text for text in lines if text.endswith(".png")] == [str(tmp_path / f"{i}.png") for i in range(3)]
    assert lines[lines.index(str(tmp_path / "1.png")) + 1].startswith(f"skipped: example '{tmp_path / '1.png'}'")
    assert lines[1][:4] in ("1/2 ", "2/2 ")
    with pytest.raises(SystemExit, match="1.png cannot be read .*--on-bad-data skip"):
        evaluate.main(flags)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty contains no picture"):
        evaluate.main([*flags[:3], str(tmp_path / "empty")])


def test_a_single_picture_has_remedies_of_its_own(model_directory, make_file, tmp_path):
    make_file(1)
    tear(tmp_path, 0)
    for name, words in (("0.png", "0.png cannot be read"), ("9.png", "^error: --image .*9.png does not exist")):
        with pytest.raises(SystemExit, match=words) as stop:
            evaluate.main(["--model", str(model_directory), "--image", str(tmp_path / name), "--device", "cpu"])
        assert "scores the others" not in str(stop.value) and "'image'" not in str(stop.value)


def test_words_of_any_language_stay_readable(model_directory, make_file, tmp_path):
    data = make_file(2)
    data.write_text(data.read_text().replace("Go straight", "左转 für ü"), encoding="utf-8")
    command(model_directory, tmp_path / "out", "--data", data)
    assert "左转 für ü" in (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8")


def test_an_ascii_terminal_is_no_fault(model_directory, make_file, tmp_path):
    make_file(1)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "eval.py", "--model", model_directory, "--image", tmp_path / "0.png",
                           "--navigation", "左转".encode(), "--samples", "8", "--device", "cpu"], env=environment,
                          capture_output=True, cwd=Path(evaluate.__file__).parent, check=False)
    assert done.returncode == 0 and b"no valid plan" in done.stdout, done.stderr
    assert b"\\ufffd" in done.stdout                                     # what the untrained model writes is no UTF-8


# ---------------------------------------------------------------- several cameras

@pytest.fixture
def two_views(tmp_path):
    """Two pictures of different sizes."""
    files = [tmp_path / "front.png", tmp_path / "left.png"]
    for file, size in zip(files, ((56, 28), (28, 56)), strict=True):
        Image.new("RGB", size).save(file)
    return list(map(str, files))


def test_several_image_flags_are_one_question_in_order(model_directory, two_views, monkeypatch, capsys):
    seen, asked = sizes_seen(monkeypatch), []
    encode = evaluate.encode_example
    monkeypatch.setattr(evaluate, "encode_example", lambda example, *rest: asked.append(
        evaluate.request_text(example, rest[-1])) or encode(example, *rest))
    flags = ["--model", str(model_directory), "--device", "cpu", "--speed", "4", "--image"]
    evaluate.main([*flags, two_views[0], "--image", two_views[1], "--cameras", "front,front_left"])
    evaluate.main([*flags, two_views[1], "--image", two_views[0]])
    assert seen == [(56, 28), (28, 56), (28, 56), (56, 28)]
    assert asked == ["front, front left. speed 4.0 m/s. Go straight.", "speed 4.0 m/s. Go straight."]
    assert capsys.readouterr().out.count("1/1  ") == 2


@pytest.mark.parametrize(("more", "told"), [
    (["--image", "."], "--image . is no file; several --image are the pictures of one question"),
    (["--image", "gone.png"], "--image gone.png is no file"),
    (["--cameras", "front"], "cameras is 'front'; it must be one name for each of several --image")])
def test_what_is_no_question_with_several_pictures(model_directory, two_views, more, told):
    with pytest.raises((SystemExit, ValueError)) as error:
        evaluate.main(["--model", str(model_directory), "--device", "cpu", "--image", two_views[0], *more])
    assert told in str(error.value)


def test_hidden_sides_leave_the_front_picture_of_three(planner, tmp_path):
    (example,) = evaluate.scene_examples("test", 1, cameras=3)
    policy, processor, settings = planner
    three = evaluate.usable_prompt(example, planner, "stop")
    front = evaluate.usable_prompt(example, (policy, processor, replace(settings, hide="sides")), "stop")
    assert (len(three.image_grid_thw), len(front.image_grid_thw)) == (3, 1)
    assert torch.equal(front.pixel_values, three.pixel_values[:len(front.pixel_values)])
    assert set(answered(planner, [example])[example.id]["cameras"]) == {"front", "front_left", "front_right"}


def test_several_processes_do_not_score(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="eval.py is one process: start it without torchrun, or unset WORLD_SIZE"):
        evaluate.main(["--limit", "1"])


def test_overwriting_keeps_the_folder_of_the_pictures(model_directory, tmp_path):
    out = tmp_path / "exp"
    (out / "frames").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(out / "frames/a.png")
    (out / "metrics.json").write_text("{}")
    (tmp_path / "one.jsonl").write_text('{"image": "a.png", "speed": 1, "navigation": "Go straight", '
                                        '"decision": "KEEP, STRAIGHT", "split": "test"}\n')
    with pytest.raises(SystemExit, match="holds .*frames, which this command reads"):
        command(model_directory, out, "--data", tmp_path / "one.jsonl", "--image-root", out / "frames", "--overwrite")
    assert (out / "frames/a.png").is_file()
