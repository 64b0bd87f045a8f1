"""States on disk: what goes in comes out, nothing half-written is found, nothing damaged is used unasked."""

import json
import os
import random
import resource
import shutil

import numpy as np
import pytest
import torch

import grpo.engine.state as state
from grpo.engine.flags import GRPOFlags
from grpo.engine.optimizer import make_optimizer, make_scheduler
from grpo.engine.state import (
    LoopState,
    Trained,
    check_same,
    cut_back,
    damage,
    find_state,
    fingerprint,
    forget_after,
    last_records,
    list_states,
    load_state,
    read_about,
    save_state,
)
from models.lora import add_lora
from models.value import ValueNetwork


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.fixture
def make_trained(make_model):
    """make_trained(seed, lora, value): a model that has made three updates with gradients of the seed's."""
    def make(seed=0, lora=False, value=False, updates=3):
        policy = make_model(seed)
        if lora:
            add_lora(policy, 2, 4.0, ["q_proj", "up_proj"], torch.Generator().manual_seed(0))
        network = ValueNetwork(policy, own_trunk=True) if value else None
        config = GRPOFlags(learning_rate=1e-2, weight_decay=0.1, value_learning_rate=2e-2)
        optimizer = make_optimizer(policy, config, network)
        trained = Trained(policy, network, optimizer, make_scheduler(optimizer, config, 20))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(updates):
            for parameter in trained.parameters().values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            trained.scheduler.step()
        return trained
    return make


def contents(trained):
    """Every number an update reads: parameters, moments, step counts, rates, place in the schedule."""
    numbers = {name: parameter.detach().clone() for name, parameter in trained.parameters().items()}
    for name, parameter in trained.parameters().items():
        numbers |= {f"{name} {kind}": value.clone() for kind, value in trained.optimizer.state[parameter].items()}
    rates = [{key: value for key, value in group.items() if key != "params"}
             for group in trained.optimizer.param_groups]
    return numbers, rates, trained.scheduler.state_dict()


def same(one, two):
    return one[0].keys() == two[0].keys() and all(torch.equal(one[0][name], two[0][name]) for name in one[0]) \
        and one[1:] == two[1:]


# ---------------------------------------------------------------- round trip

@pytest.mark.parametrize("kind", [{}, {"lora": True}, {"value": True}])
def test_everything_comes_back_to_the_bit(make_trained, tmp_path, kind):
    one, two = make_trained(0, **kind), make_trained(1, **kind, updates=1)
    assert not same(contents(one), contents(two))
    place = save_state(tmp_path, one, {"stage": "sft"}, 3, keep=2)
    addresses = [parameter.data_ptr() for parameter in two.parameters().values()]
    load_state(place, two)
    assert same(contents(one), contents(two))
    assert addresses == [parameter.data_ptr() for parameter in two.parameters().values()]  # whoever shares them sees it
    assert read_about(place)["step"] == 3 and read_about(place)["stage"] == "sft"
    assert len(contents(one)[0]) == 4 * len(one.parameters())                  # itself, step, two moments


def test_a_parameter_without_a_gradient_has_no_moments(make_trained, tmp_path):
    one, two = make_trained(0, updates=0), make_trained(0, updates=0)
    name = "policy.visual.patch_embed.proj.weight"
    for key, parameter in one.parameters().items():
        parameter.grad = None if key == name else torch.ones_like(parameter)
    one.optimizer.step()
    load_state(save_state(tmp_path, one, {}, 1, 1), two)
    assert not two.optimizer.state[two.parameters()[name]]
    assert same(contents(one), contents(two))


def test_lora_saves_the_adapters_alone(make_trained, tmp_path):
    save_state(tmp_path, make_trained(lora=True), {}, 1, 1)
    assert all(".lora_" in name for name in make_trained(lora=True).parameters())
    assert (tmp_path / "step-00000001/parameters.safetensors").stat().st_size < 20_000     # the model has 240,000


def test_generators_come_back(make_trained, tmp_path):
    trained = make_trained()
    place = save_state(tmp_path, trained, {}, 1, 1)
    drawn = [torch.rand(3).tolist(), random.random(), np.random.random()]
    load_state(place, trained)
    assert [torch.rand(3).tolist(), random.random(), np.random.random()] == drawn


def test_nothing_is_pickled(make_trained, tmp_path):
    place = save_state(tmp_path, make_trained(), {}, 1, 1)
    assert sorted(path.name for path in place.iterdir()) == [
        "exp_avg.safetensors", "exp_avg_sq.safetensors", "generators.safetensors", "manifest.json",
        "parameters.safetensors", "state.json", "step.safetensors"]


def test_another_model_is_refused_before_anything_changes(make_trained, tmp_path):
    place, other = save_state(tmp_path, make_trained(0), {}, 1, 1), make_trained(1, lora=True)
    before = contents(other)
    with pytest.raises(ValueError, match="does not match what this run trains"):
        load_state(place, other)
    assert same(before, contents(other))


# ---------------------------------------------------------------- crashes while writing

def test_the_newest_are_kept(make_trained, tmp_path):
    for step in (2, 4, 6, 100):
        save_state(tmp_path, make_trained(), {}, step, keep=2)
    assert [path.name for path in list_states(tmp_path)] == ["step-00000006", "step-00000100"]
    assert find_state(tmp_path, "auto").name == "step-00000100"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000100"]


def test_no_state_is_none(tmp_path):
    assert find_state(tmp_path / "absent", "auto") is None


def die_at(patch, moment):
    """Let `moment` calls that touch the disk pass, and die at the next."""
    passed = []

    def deadly(real):
        def call(*arguments, **named):
            if len(passed) == moment:
                raise Killed
            passed.append(real)
            return real(*arguments, **named)
        return call
    for place, name in ((state, "save_file"), (state, "sync"), (state, "write_json"), (os, "replace"),
                        (shutil, "rmtree")):
        patch.setattr(place, name, deadly(getattr(place, name)))


def test_a_kill_at_any_write_leaves_a_whole_state(make_trained, tmp_path, monkeypatch):
    """Every call that touches the disk, in turn, is the last one of its process."""
    one, two = make_trained(0), make_trained(1)
    moment, finished = 0, False
    while not finished:
        folder = tmp_path / str(moment)
        save_state(folder, one, {}, 1, keep=1)
        with monkeypatch.context() as patch:
            die_at(patch, moment)
            try:
                save_state(folder, two, {}, 2, keep=1)
                finished = True
            except Killed:
                pass
        found = find_state(folder, "auto")                   # whole, or this raises
        loaded = make_trained(2)
        load_state(found, loaded)
        assert same(contents(loaded), contents({1: one, 2: two}[read_about(found)["step"]]))
        save_state(folder, two, {}, 3, keep=1)               # and the next one clears up
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]
        moment += 1
    assert moment - 1 == 14                                  # writes, each of which was once the last


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied"),
                                   OSError(30, "Read-only file system")])
@pytest.mark.parametrize("broken", ["save_file", "write_json"])
def test_a_disk_that_refuses(make_trained, tmp_path, monkeypatch, fault, broken):
    save_state(tmp_path, make_trained(0), {}, 1, keep=2)

    def refuse(*arguments):
        raise fault
    with monkeypatch.context() as patch:
        patch.setattr(state, broken, refuse)
        with pytest.raises(OSError, match=f"{fault.strerror}.*step-00000001 is intact.*Free some.*--resume auto"):
            save_state(tmp_path, make_trained(1), {}, 2, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]     # nothing half-made takes up room
    assert damage(tmp_path / "step-00000001") == ""


def test_a_real_limit_on_file_size(make_trained, tmp_path):
    """RLIMIT_FSIZE stands for the full disk: the writer itself fails, in its own way."""
    save_state(tmp_path, make_trained(0), {}, 1, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))             # parameters alone take 240,000 bytes
        with pytest.raises(OSError, match="could not be written .*step-00000001 is intact"):
            save_state(tmp_path, make_trained(1), {}, 2, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert find_state(tmp_path, "auto").name == "step-00000001"


def test_a_folder_that_cannot_be_made(make_trained, tmp_path):
    (tmp_path / "state").write_text("a file is in the way")
    with pytest.raises(OSError, match="there is no earlier state"):
        save_state(tmp_path / "state", make_trained(), {}, 1, keep=2)


# ---------------------------------------------------------------- damage

def spoil(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:-1])
    elif kind == "longer":
        path.write_bytes(data + b"\0")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_a_damaged_state_is_named_and_the_one_before_used_only_when_asked(make_trained, tmp_path):
    for step in (1, 2):
        save_state(tmp_path / "good", make_trained(step), {}, step, keep=2)
    names, tried = sorted(path.name for path in (tmp_path / "good/step-00000002").iterdir()), 0
    for name in names:
        for kind in ("missing", "cut", "longer", "flipped"):
            folder = tmp_path / f"{name}-{kind}"
            shutil.copytree(tmp_path / "good", folder)
            spoil(folder / "step-00000002" / name, kind)
            with pytest.raises(ValueError, match=r"step-00000002 is damaged: .*\.(safetensors|json) .*"
                                                 "--resume .*step-00000001") as stop:
                find_state(folder, "auto")
            # a flipped bit in the manifest makes it disagree with one of the others
            assert f"damaged: {name}" in str(stop.value) or (name, kind) == ("manifest.json", "flipped")
            assert find_state(folder, str(folder / "step-00000001")) == folder / "step-00000001"
            tried += 1
    assert tried == 28                                       # 7 files, 4 ways


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"parameters.safetensors": 3}', '{"state.json": {"bytes": 1}}'])
def test_a_broken_manifest(make_trained, tmp_path, manifest):
    save_state(tmp_path, make_trained(), {}, 1, keep=2)
    (tmp_path / "step-00000001/manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match="step-00000001 is damaged: manifest.json.*there is no intact state before it"):
        find_state(tmp_path, "auto")


def test_a_name_that_is_no_state(make_trained, tmp_path):
    save_state(tmp_path, make_trained(), {}, 1, keep=2)
    with pytest.raises(FileNotFoundError, match="step-00000007 is not a state of this run; .* has step-00000001"):
        find_state(tmp_path, str(tmp_path / "step-00000007"))


def test_going_back_forgets_what_came_after(make_trained, tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, make_trained(), {}, step, keep=3)
    removed = forget_after(tmp_path, tmp_path / "step-00000001")
    assert [path.name for path in removed] == ["step-00000002", "step-00000003"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ---------------------------------------------------------------- logs

@pytest.mark.parametrize(("text", "step", "left", "dropped"), [
    ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, [1, 2], 1),
    ('{"step": 1}\n{"step": 2}\n{"st', 2, [1, 2], 1),                          # torn by a crash
    ('{"step": 1}\n{"step": 1}\n{"step": 2}\n', 1, [1, 1], 1),                 # samples.jsonl: several a step
    ('{"step": 1}\n', 5, [1], 0), ("", 5, [], 0)])
def test_logs_are_cut_back(tmp_path, text, step, left, dropped):
    file = tmp_path / "metrics.jsonl"
    file.write_text(text)
    assert cut_back(file, step) == dropped
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == left
    assert [record["step"] for record in last_records(file, 2)] == left[-2:]


def test_no_log_is_no_fault(tmp_path):
    assert cut_back(tmp_path / "none.jsonl", 3) == 0 and last_records(tmp_path / "none.jsonl", 3) == []


# ---------------------------------------------------------------- the same run?

def about(**changes):
    return {"stage": "grpo", "model": "a", "data": "b", "config": {"seed": 0, "keep": 2, "group_size": 4}, **changes}


@pytest.mark.parametrize(("changes", "words"), [
    ({"config": {"seed": 1, "keep": 2, "group_size": 4}}, "--seed was 0 and is 1"),
    ({"config": {"seed": 0, "keep": 9, "group_size": 8}}, "--group-size was 4 and is 8"),
    ({"stage": "sft"}, "--stage was grpo"), ({"model": "c"}, "another --model"), ({"data": "c"}, "another --data")])
def test_another_run_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        check_same(tmp_path, about(), about(**changes), {"keep"})


def test_free_flags_may_change(tmp_path):
    check_same(tmp_path, about(), about(config={"seed": 0, "keep": 9, "group_size": 4, "new": 1}), {"keep"})


def test_fingerprint_sees_another_model(make_model):
    one, two = make_model(0).state_dict(), make_model(0).state_dict()
    assert fingerprint(one) == fingerprint(two) != fingerprint(make_model(1).state_dict())
    two["model.norm.weight"][3] += 1e-6
    assert fingerprint(one) != fingerprint(two)


def test_counters_survive_json():
    counters = LoopState(7, 0.1, 0.30000000000000004, 2, 12.5, ("entropy",))
    assert json.loads(json.dumps(vars(counters)))["best"] == 0.30000000000000004
