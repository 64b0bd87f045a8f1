"""What is written at the end of a step, and what an error then says. Whole runs: tests/test_resume.py."""

import math
from types import SimpleNamespace

import pytest
import torch

from grpo.engine import saving
from grpo.engine.distributed import SINGLE
from grpo.engine.state import LoopState
from models.lora import add_lora
from storage import write_json


@pytest.mark.parametrize(("broken", "flag"), [("policy.layer", "--learning-rate"),
                                              ("value.head.weight", "--value-learning-rate")])
def test_no_state_is_written_with_a_weight_that_is_not_finite(tmp_path, broken, flag):
    weights = {name: torch.ones(2) for name in ("policy.layer", "value.head.weight")}
    weights[broken][1] = math.inf
    run, trained = SimpleNamespace(world=SINGLE, output=tmp_path), SimpleNamespace(parameters=lambda: weights)
    with pytest.raises(FloatingPointError, match=f"step 7: .* the first in {broken}; .*; lower {flag}$"):
        saving.hold(run, trained, LoopState(step=7))
    assert list(tmp_path.iterdir()) == []


def full(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["model", "adapter"])
def test_a_full_disk_names_what_could_not_be_written(make_model, tmp_path, monkeypatch, broken):
    policy = make_model()
    add_lora(policy, 2, 4.0, ["q_proj"], torch.Generator())
    run = SimpleNamespace(
        output=tmp_path, about={"stage": "sft"}, processor=None, settings=None,
        write=full if broken == "model" else lambda policy, about, directory: directory.mkdir(),
        config=SimpleNamespace(seed=0, lora_rank=2, lora_alpha=4.0, model="base"))
    monkeypatch.setattr(saving, "save_adapter_policy", full)
    (tmp_path / "adapter").mkdir()
    write_json({}, tmp_path / "adapter/adapter_config.json")
    kept = {"model": "there is no earlier one", "adapter": "the earlier one is intact"}[broken]
    with pytest.raises(OSError, match=f"{tmp_path}/{broken} could not be written .*No space left.*; {kept}. It needs"):
        saving.write_model(run, policy, {"A": torch.zeros(2)}, 1, None)
