"""Policy directories: what goes in comes out, and a crash destroys nothing."""

import contextlib
import json
import os

import pytest
import torch

import grpo.engine.checkpoint as checkpoint
from grpo.engine.checkpoint import check_output, load_policy, prepare_output, read_settings, save_policy, write_json
from grpo.engine.prompts import PromptSettings
from models import processor as processors
from models import tokenizer

SETTINGS = PromptSettings(prompt_style="compact", reasoning=False, hide="picture", max_new_tokens=33,
                          scene_size="448x224", answer="trajectory")


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(make_model, processor, tmp_path, tied):
    model = make_model(tied=tied)
    save_policy(model, processor, SETTINGS, {"stage": "sft", "seed": 7}, tmp_path / "model")
    loaded, reader, settings = load_policy(tmp_path / "model", torch.float32, "cpu")
    assert loaded.config == model.config and same_weights(loaded, model)
    assert settings == SETTINGS
    assert (reader.min_pixels, reader.max_pixels) == (784, 4704)               # 28 * 28 and 56 * 84: they travel
    assert reader.encode_text("KEEP, <|im_end|>") == processor.encode_text("KEEP, <|im_end|>")
    about = json.loads((tmp_path / "model" / "drivegrpo.json").read_text())
    assert about["stage"] == "sft" and about["seed"] == 7 and about["prompt_style"] == "compact"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]       # nothing half-made stays behind


def test_pixel_budget_argument_goes_first(make_model, processor, tmp_path):
    save_policy(make_model(), processor, SETTINGS, {}, tmp_path / "model")
    _, reader, _ = load_policy(tmp_path / "model", torch.float32, "cpu", max_pixels=28 * 56)
    assert (reader.min_pixels, reader.max_pixels) == (784, 1568)


def test_published_directory_has_no_settings_and_a_capped_budget(make_model, processor, tmp_path):
    save_policy(make_model(), processor, SETTINGS, {}, tmp_path / "model")
    (tmp_path / "model" / "drivegrpo.json").unlink()
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_pixels": 12845056}))      # the published limit
    _, reader, settings = load_policy(tmp_path / "model", torch.float32, "cpu")
    assert settings is None and reader.max_pixels == 401408


@pytest.mark.parametrize("content", ["{not json", "[]", '{"prompt_style": "compact"}'])
def test_broken_settings_name_the_file(tmp_path, content):
    (tmp_path / "drivegrpo.json").write_text(content)
    with pytest.raises(ValueError, match="drivegrpo.json"):
        read_settings(tmp_path)


def test_models_older_than_the_picture_size_saw_the_usual_one(tmp_path):
    (tmp_path / "drivegrpo.json").write_text(
        '{"prompt_style": "compact", "reasoning": true, "hide": "nothing", "max_new_tokens": 8}')
    assert read_settings(tmp_path).scene_size == "224x112" and read_settings(tmp_path).answer == "plan"


def test_no_settings_file_is_none(tmp_path):
    assert read_settings(tmp_path) is None


def test_saving_again_replaces_the_directory(make_model, processor, tmp_path):
    save_policy(make_model(0), processor, SETTINGS, {}, tmp_path / "model")
    (tmp_path / "model" / "stale.txt").write_text("from before")
    save_policy(make_model(1), processor, SETTINGS, {}, tmp_path / "model")
    loaded, _, _ = load_policy(tmp_path / "model", torch.float32, "cpu")
    assert same_weights(loaded, make_model(1)) and not (tmp_path / "model" / "stale.txt").exists()


@pytest.mark.parametrize("broken", ["save_model", "save_processor", "write_json"])
def test_a_crash_while_writing_leaves_the_old_model(make_model, processor, tmp_path, monkeypatch, broken):
    save_policy(make_model(0), processor, SETTINGS, {}, tmp_path / "model")

    def fail(*arguments, **named):
        raise OSError("disk full")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, fail)
        with pytest.raises(OSError, match="disk full"):
            save_policy(make_model(1), processor, SETTINGS, {}, tmp_path / "model")
    loaded, _, settings = load_policy(tmp_path / "model", torch.float32, "cpu")
    assert same_weights(loaded, make_model(0)) and settings == SETTINGS
    save_policy(make_model(1), processor, SETTINGS, {}, tmp_path / "model")    # and the next save works
    assert same_weights(load_policy(tmp_path / "model", torch.float32, "cpu")[0], make_model(1))


@pytest.mark.parametrize("calls", [0, 1])
def test_a_crash_between_the_renames_loses_no_model(make_model, processor, tmp_path, monkeypatch, calls):
    save_policy(make_model(0), processor, SETTINGS, {}, tmp_path / "model")
    real, done = os.replace, []

    def replace(source, target):
        if source.is_dir():                                  # only the directories' renames, not the files' within
            if len(done) == calls:
                raise OSError("power cut")
            done.append(source)
        real(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="power cut"):
            save_policy(make_model(1), processor, SETTINGS, {}, tmp_path / "model")
    whole = [load_policy(path, torch.float32, "cpu")[0] for path in sorted(tmp_path.iterdir())]
    expected = [0, 1]                                        # model or model.old, and model.new, both complete
    assert sorted(next(s for s in (0, 1) if same_weights(m, make_model(s))) for m in whole) == expected


def test_write_json_is_whole_or_not_at_all(tmp_path):
    write_json({"a": 1}, tmp_path / "x.json")
    with pytest.raises(TypeError):
        write_json({"a": [1, 2, object()]}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_output_directory_is_made(tmp_path):
    assert prepare_output(tmp_path / "a" / "b", False).is_dir()
    assert prepare_output(tmp_path / "a" / "b", False).is_dir()                # empty is fine


def test_non_empty_output_is_refused_and_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="not empty.*--overwrite"):
        prepare_output(tmp_path, False)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"


def test_foreign_directory_is_not_emptied_even_when_asked(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no run of ours"):
        prepare_output(tmp_path, True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        prepare_output(tmp_path / "file", True)


def test_overwriting_empties_a_directory_of_ours(tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "sft"}')
    (tmp_path / "model").mkdir()
    assert list(prepare_output(tmp_path, True).iterdir()) == []


def test_a_model_directory_from_the_hub_is_never_emptied(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="holds files that no run of ours wrote"):
        prepare_output(tmp_path, True)
    assert (tmp_path / "model.safetensors").read_text() == "weights"


def test_an_output_that_cannot_be_made_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="--output .*file/run cannot be made: .*file is not a folder"):
        check_output(tmp_path / "file/run", False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"--output .*run cannot be made: {tmp_path} is not writable"):
        check_output(tmp_path / "run", False)


def test_an_output_behind_a_link_or_a_mount_is_emptied_in_place(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o770)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    (tmp_path / "new").symlink_to(tmp_path / "later")
    for name in ("runs", "new"):
        assert prepare_output(tmp_path / name, False) == tmp_path / name
        assert (tmp_path / name).is_symlink() and list((tmp_path / name).iterdir()) == []
    place = (tmp_path / "scratch").stat().st_ino
    (tmp_path / "scratch/config.json").write_text('{"stage": "sft"}')
    (tmp_path / "scratch/model").symlink_to(tmp_path / "later")
    monkeypatch.chdir(tmp_path / "scratch")
    assert list(prepare_output(".", True).iterdir()) == [] and (tmp_path / "later").is_dir()
    assert (tmp_path / "scratch").stat().st_ino == place and (tmp_path / "scratch").stat().st_mode & 0o777 == 0o770


RUN = ("config.json", "metrics.jsonl", "samples.jsonl", "report.html", "features.safetensors.tmp", ".eval-val.lock",
       "model/config.json", "model.old/config.json", "adapter.new/config.json", "state/step-00000002/state.json",
       "eval-test/config.json", "eval-test/predictions.jsonl", "eval-test/metrics.json", "eval-test/table.md",
       "eval-test/trajectories.jsonl", "skipped.jsonl", "error.txt", "bad-batches/step-1", "tensorboard/events",
       "sweep/config.json", "sweep/predictions.jsonl", ".sweep.lock")


def make_run(folder, *more):
    for name in (*RUN, *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        stage = "eval" if name.startswith(("eval", "sweep")) else "grpo"
        (folder / name).write_text(f'{{"stage": "{stage}"}}' if name.endswith("config.json") else "x")


@pytest.mark.parametrize("kept", ["thesis.tex", ".git/config", "eval-data.jsonl", "eval-test/notes.txt",
                                  "model.bak/weights", "second/config.json"])
def test_a_run_that_also_holds_something_else_is_not_emptied(tmp_path, kept):
    make_run(tmp_path, kept)
    named = tmp_path / (kept if kept.startswith("eval-") else kept.split("/")[0])
    with pytest.raises(ValueError, match=f"holds {named} that no run of ours wrote; move it elsewhere, or name"):
        prepare_output(tmp_path, True)
    assert all((tmp_path / name).is_file() for name in (*RUN, kept))


@pytest.mark.parametrize("config", ['{"zero_optimization": {"stage": 3}}', None])
def test_the_names_of_our_files_do_not_make_a_run(tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "metrics.json").write_text("years of work")
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="holds files that no run of ours wrote; name another"):
        prepare_output(tmp_path, True)
    assert (tmp_path / "metrics.json").read_text() == "years of work"


def test_a_kill_while_a_run_is_removed_leaves_what_can_be_removed(tmp_path, monkeypatch):
    """At every moment the folder is still known to be that of a run, or it is empty."""
    make_run(tmp_path)
    real = checkpoint.remove
    for _ in range(len(list(tmp_path.iterdir()))):
        check_output(tmp_path, True)
        done = []
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "remove", lambda path, done=done: done or done.append(real(path)))
            with contextlib.suppress(ValueError):
                prepare_output(tmp_path, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.json.tmp").write_text("{")           # killed while the next run wrote its first file
    assert list(prepare_output(tmp_path, True).iterdir()) == []


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr(checkpoint, "remove", lambda path: None)
    with pytest.raises(ValueError, match=f"cannot be emptied: {tmp_path}/.* cannot be removed; name"):
        prepare_output(tmp_path, True)


def test_the_tokenizer_is_read_once(make_model, processor, tmp_path, monkeypatch):
    save_policy(make_model(), processor, SETTINGS, {}, tmp_path / "model")
    real, calls = tokenizer.load_tokenizer, []
    for module in (tokenizer, processors):
        monkeypatch.setattr(module, "load_tokenizer", lambda path: calls.append(path) or real(path))
    load_policy(tmp_path / "model", torch.float32, "cpu")
    assert len(calls) == 1
