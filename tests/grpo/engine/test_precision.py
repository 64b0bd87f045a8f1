"""--precision auto: the choice by two times, on every rank, and when a run is resumed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from benchmarks import results
from grpo.engine import precision
from grpo.engine.checkpoint import save_policy
from grpo.engine.distributed import SINGLE
from grpo.engine.flags import STAGES, SFTFlags, resolve
from grpo.engine.precision import choose_precision, decide, make_layer, time_both  # the real one, no stub
from grpo.engine.prompts import PromptSettings
from grpo.engine.setup import configure, read_command
from grpo.engine.state import digest
from models.config import PRESETS

SMALL = ["--stage", "sft", "--scenes", "6", "--eval-examples", "0", "--batch-size", "2", "--max-new-tokens", "8",
         "--prompt-style", "compact", "--device", "cpu", "--save-every", "1"]
AUTO = SFTFlags(model="tiny")


@pytest.fixture
def measured(monkeypatch):
    """measured(fp32, bf16): what this machine seems to take. -> the sizes that were timed."""
    def install(*times):
        seen = []
        monkeypatch.setattr(precision, "time_both", lambda sizes: seen.append(sizes) or times)
        return seen
    return install


@pytest.fixture
def go(make_model, processor, tmp_path):
    """go(*flags): a run in tmp_path/run."""
    save_policy(make_model(), processor, PromptSettings("compact", max_new_tokens=8), {}, tmp_path / "base")

    def run(*flags):
        train.main([*SMALL, "--model", str(tmp_path / "base"), "--output", str(tmp_path / "run"), *flags])
    return run


@pytest.mark.parametrize(("fp32", "bf16", "choice"), [(1.19, 1.0, "fp32"), (1.21, 1.0, "bf16"), (0.5, 1.0, "fp32")])
def test_bf16_has_to_be_faster_by_a_fifth(fp32, bf16, choice):
    assert decide(fp32, bf16)[0] == choice


def test_the_line_names_both_times_and_their_ratio(measured, capsys):
    measured(0.0242, 0.02)
    assert choose_precision(AUTO, "cpu", SINGLE, None) == "bf16"
    line, = capsys.readouterr().out.splitlines()
    assert line == ("precision: bf16, because a training pass through a layer of the model takes 24.2 ms in fp32 and "
                    "20 ms in bf16 on a core of this CPU: ratio 1.21, bf16 needs 1.2")


@pytest.mark.parametrize(("asked", "device", "choice", "line"), [
    ("fp32", "cpu", "fp32", ""), ("bf16", "cpu", "bf16", ""), ("fp32", "cuda", "fp32", ""),
    ("auto", "cuda", "bf16", "precision: bf16, on cuda without measuring\n")])
def test_nothing_is_measured_where_nothing_is_to_choose(measured, capsys, asked, device, choice, line):
    seen = measured(9.0, 1.0)
    assert choose_precision(replace(AUTO, precision=asked), device, SINGLE, None) == choice
    assert (seen, capsys.readouterr().out) == ([], line)


class Pair:
    """One of two ranks. Rank 0 is asked first; rank 1 hears what it said."""

    said = ""

    def __init__(self, rank):
        self.rank = rank

    def on_rank0(self, action):
        return action() if self.rank == 0 else None

    def texts(self, own):
        Pair.said = own if self.rank == 0 else Pair.said
        return [Pair.said, own]


def test_two_ranks_take_the_choice_of_rank_0(measured):
    seen = measured(2.0, 1.0)
    assert [choose_precision(AUTO, "cpu", Pair(rank), None) for rank in (0, 1)] == ["bf16", "bf16"]
    assert seen == [PRESETS["tiny"].text]                    # once


def read(tmp_path, file):
    return json.loads((tmp_path / "run" / file).read_text())


def test_a_resumed_run_keeps_the_choice_without_measuring(go, measured, tmp_path, capsys):
    assert len(measured(2.0, 1.0)) == 0
    go("--steps", "1")
    assert "precision: bf16, because" in capsys.readouterr().out
    assert read(tmp_path, "config.json")["precision"] == "bf16"
    assert read(tmp_path, "state/step-00000001/state.json")["config"]["precision"] == "bf16"
    seen = measured(1.0, 2.0)                                # this machine would choose fp32
    go("--steps", "2", "--resume", "auto")
    assert seen == [] and "precision: bf16, as in " in capsys.readouterr().out
    assert read(tmp_path, "state/step-00000002/state.json")["config"]["precision"] == "bf16"
    with pytest.raises(SystemExit, match="--precision was 'bf16' and is 'fp32'"):
        go("--steps", "3", "--resume", "auto", "--precision", "fp32")


def test_a_state_of_a_version_that_did_not_measure(go, measured, tmp_path):
    """It says auto, which was fp32 on a CPU."""
    go("--steps", "1", "--precision", "fp32")
    folder = tmp_path / "run/state/step-00000001"
    text = (folder / "state.json").read_text()
    assert text.count('"precision": "fp32"') == 1
    (folder / "state.json").write_text(text.replace('"precision": "fp32"', '"precision": "auto"'))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": (folder / "state.json").stat().st_size, "sha256": digest(folder / "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="--precision was 'fp32' and is 'bf16'"):
        go("--steps", "2", "--resume", "auto", "--precision", "bf16")
    seen = measured(2.0, 1.0)
    go("--steps", "2", "--resume", "auto")
    assert seen == [] and read(tmp_path, "state/step-00000002/state.json")["config"]["precision"] == "fp32"


def test_the_demo_and_the_results_name_fp32():
    assert configure("sft", {}).precision == "fp32"          # model and data are built in: the demo
    for arm in [arm for arm in results.ARMS.values() if arm.stage != "eval"]:
        stage, flags = read_command(list(results.train(arm, Path("out"), 0)[1:]), "")
        assert resolve(STAGES[stage], stage, flags, {}, False).precision == "fp32", arm.name
    assert [STAGES[stage]().precision for stage in ("sft", "grpo")] == ["auto", "auto"]


@pytest.mark.parametrize(("changes", "sizes", "words"), [
    ({}, (1536 // 2, 6, 1, 8960 // 2), 151936 // 28 // 2),                          # the 2B: one key/value head of two
    (dict(hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
          num_key_value_heads=8, vocab_size=152064), (1024, 8, 1, 3696), 152064 // 80 // 8),      # the 72B
    (dict(hidden_size=65536, intermediate_size=524288, num_hidden_layers=0, num_attention_heads=512,
          num_key_value_heads=1, vocab_size=10**6), (2048, 16, 1, 8192), 8192)])    # a file may claim any size
def test_wide_layers_are_timed_in_part(changes, sizes, words):
    with torch.device("meta"):
        layer, head, config = make_layer(replace(PRESETS["2b"].text, **changes))
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.intermediate_size) == sizes
    assert head.shape == (words, sizes[0]) and layer.mlp.up_proj.weight.shape == (sizes[3], sizes[0])


def test_timing_leaves_threads_and_generators_alone(micro_config):
    wide = replace(micro_config.text, hidden_size=80, num_attention_heads=1, num_key_value_heads=1,
                   mrope_section=(20, 10, 10))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        fp32, bf16 = time_both(wide)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)                             # as conftest.py has it
    assert 0 < fp32 < 1 and 0 < bf16 < 1
    assert torch.equal(torch.get_rng_state(), before)
