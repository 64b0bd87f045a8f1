"""The scripts on a model of two layers: they run, count what went through the model, and end with one JSON object."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import checkpoints, factors, h200, memory, rollout, step
from data.scenes import scene_text_corpus
from models import load_model, load_processor, save_model
from models.processor import save_processor
from models.text import TextModel
from models.vision import VisionModel

LIMITS = {"gemm_flops": 1e9, "copy_bytes_s": 1e9, "read_bytes_s": 1e9}
BATCH = ("--prompts", "2", "--group-size", "2", "--new-tokens", "3", "--image", "56x28", "--repeats", "1",
         "--threads", "1", "--device", "cpu")


@pytest.fixture
def model_dir(make_model, processor, tmp_path, monkeypatch):
    save_model(make_model(), tmp_path / "model")
    save_processor(processor, tmp_path / "model")
    for script in (rollout, step):
        monkeypatch.setattr(script, "ceiling", lambda *_: LIMITS)            # measuring it takes seconds
    return tmp_path / "model"


@pytest.fixture
def peer_python(tmp_path):
    """A `python` that answers as the peers do and says that everything took 1000 s and 1e6 MB."""
    run = {"seconds": 1000.0, "phases": {"decode": 750.0, "prefill": 250.0}, "work": {"decode": {"tokens": 9}}}
    path = tmp_path / "python"
    path.write_text(f"""#!{sys.executable}
import json, sys
print('{{"name": "stand-in"}}', flush=True)
for line in sys.stdin:
    print('{{"peak_mb": 1e6}}' if line == "peak\\n" else {json.dumps(run)!r}, flush=True)
""")
    path.chmod(0o755)
    return path


def record_of(script, capsys, *flags):
    script.main([*BATCH, *flags])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_rollout(model_dir, capsys, tmp_path):
    record = record_of(rollout, capsys, "--model", str(model_dir), "--dtype", "fp32", "--output",
                       str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == record
    first, second = record["shapes"]["prompt_tokens"]
    # each prompt once; 4 rows x (3 - 1) decode steps; two pictures of 2 x 4 patches
    assert record["work"] == {"prefill": {"tokens": first + second}, "decode": {"tokens": 8}, "vision": {"patches": 16}}
    assert sum(record["share_of_time"].values()) == pytest.approx(1)
    assert record["tokens_per_second"] == pytest.approx(12 / record["seconds"])             # 2 x 2 x 3 tokens
    assert record["share_of_ceiling"] == pytest.approx(sum(record["floor_seconds"].values()) / record["seconds"])
    assert record["peak_rss_mb"] > 50 and record["threads"] == 1 and record["torch"] == torch.__version__
    assert {"commit", "device", "spread", "repetitions", "dropped", "clean", "ceiling"} <= record.keys()


def test_every_saving_switched_off_alone_gives_the_same_numbers(model_dir, capsys, tmp_path):
    found = {}
    for name, off in factors.CASES:
        factors.main(["--model", str(model_dir), "--group-size", "2", "--new-tokens", "3", "--image", "56x28",
                      "--threads", "1", "--case", name, off, str(tmp_path)])
        found[name, off] = [json.loads(capsys.readouterr().out.splitlines()[-1])]
    rows = {case: factors.row(case, found, tmp_path) for case in factors.CASES}
    assert all(row["logprob_gap"] < 1e-5 and row["ids_equal"] in (None, True) for row in rows.values())
    assert all(row["gradient_gap"] < 1e-5 * row["largest_gradient"] for (name, _), row in rows.items()
               if name == "policy")
    assert rows["policy", factors.ON]["largest_gradient"] > 0 and rows["sampling", factors.ON]["times_slower"] == 1
    assert len(factors.markdown(list(rows.values())).splitlines()) == len(rows) + 2


def test_an_answer_apart_does_repeat_the_work(model_dir, monkeypatch, tmp_path):
    """What is switched off is off: tokens and patches that go through the model."""
    def counted(off):
        seen = {"tokens": 0, "patches": 0}
        text, vision = TextModel.forward, VisionModel.forward
        with monkeypatch.context() as patched:
            patched.setattr(TextModel, "forward", lambda self, embeds, *rest: (
                seen.update(tokens=seen["tokens"] + embeds.shape[:2].numel()), text(self, embeds, *rest))[1])
            patched.setattr(VisionModel, "forward", lambda self, pixels, *rest: (
                seen.update(patches=seen["patches"] + len(pixels)), vision(self, pixels, *rest))[1])
            factors.main(["--model", str(model_dir), "--group-size", "2", "--new-tokens", "3", "--image", "56x28",
                          "--threads", "1", "--case", "reference", off, str(tmp_path)])
        return seen

    on, answers, pictures = map(counted, (factors.ON, "answers apart", "pictures apart"))
    assert on["patches"] == answers["patches"] == pictures["patches"] / 2
    assert on["tokens"] < answers["tokens"] == pictures["tokens"]


def test_rollout_beside_a_peer(model_dir, peer_python, capsys):
    record = record_of(rollout, capsys, "--model", str(model_dir), "--against", "transformers", "--peer-python",
                       str(peer_python))
    peer = record["peer"]
    assert peer["name"] == "stand-in" and peer["seconds"] == 1000.0 and peer["peak_rss_mb"] == 1e6
    assert peer["tokens_per_second"] == pytest.approx(0.012) and peer["share_of_time"]["prefill"] == 0.25
    assert record["ratio"] == {"tokens_per_second": pytest.approx(1000 / record["seconds"]),
                               "memory": pytest.approx(record["peak_rss_mb"] / 1e6)}
    assert record["work"]["decode"]["tokens"] == 8 and peer["work"]["decode"]["tokens"] == 9


@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_step(model_dir, capsys, precision):
    record = record_of(step, capsys, "--model", str(model_dir), "--precision", precision)
    prompts = sum(record["shapes"]["prompt_tokens"])
    assert record["work"]["generate"] == {"tokens": prompts + 8, "patches": 16}
    assert record["work"]["reference"] == {"tokens": prompts + 12, "patches": 16}
    assert record["work"]["policy_forward"] == {"tokens": prompts + 12, "patches": 16}
    assert set(step.PHASES) <= set(record["share_of_time"])
    assert record["precision"] == precision and record["vision_trained"]


def test_step_without_reference_and_with_adapters(model_dir, capsys):
    record = record_of(step, capsys, "--model", str(model_dir), "--precision", "fp32", "--beta", "0")
    assert "reference" not in record["work"] and record["floor_seconds"]["reference"] == 0
    record = record_of(step, capsys, "--model", str(model_dir), "--precision", "bf16", "--lora-rank", "2")
    assert record["work"]["reference"]["tokens"] > 0 and not record["vision_trained"]


def test_the_reference_of_adapters_is_their_base(model_dir):
    flags = SimpleNamespace(model=model_dir, precision="bf16", gradient_checkpointing=False, lora_rank=2)
    policy, reference = step.make_models(flags, torch.device("cpu"), 0.04)
    shared = {parameter.data_ptr() for parameter in policy.parameters()}
    assert {parameter.data_ptr() for parameter in reference.parameters()} <= shared
    assert not any(parameter.requires_grad for parameter in reference.parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("amp", torch.float32), ("bf16", torch.bfloat16),
                                                  ("fp32", torch.float32)])
def test_weights_are_masters_or_half(model_dir, precision, dtype):
    flags = SimpleNamespace(model=model_dir, precision=precision, gradient_checkpointing=True, lora_rank=0)
    policy, reference = step.make_models(flags, torch.device("cpu"), 0.04)
    assert {parameter.dtype for parameter in policy.parameters()} == {dtype}
    computing = torch.float32 if precision == "fp32" else torch.bfloat16        # the reference is never updated
    assert {parameter.dtype for parameter in reference.parameters()} == {computing}
    assert policy.model.gradient_checkpointing and policy.head_weight.data_ptr() != reference.head_weight.data_ptr()
    assert step.make_models(flags, torch.device("cpu"), 0.0)[1] is None


def test_micro_batches_hold_what_the_peer_holds():
    flags = SimpleNamespace(precision="amp", beta=0.04, group_size=8, prompts=4, new_tokens=64, micro_batch_tokens=0,
                            decode="eager", gradient_checkpointing=False)
    # 16 completions are 2 groups of 8: 2 x (180 + 8 x 64)
    assert step.make_config(flags, 180).micro_batch_tokens == 1384
    assert step.make_config(flags, 180).precision == "bf16"
    flags.group_size, flags.precision = 32, "bf16"
    config = step.make_config(flags, 180)                                    # one group is larger than that: 180 + 2048
    assert (config.micro_batch_tokens, config.precision, config.beta) == (2228, "fp32", "0.04")


def test_every_part_of_the_large_card_starts_on_a_cpu(make_model, processor, peer_python, monkeypatch, tmp_path):
    def write(_name, directory, device):
        save_model(make_model(), directory)
        save_processor(processor, directory)

    monkeypatch.setattr(h200, "write_checkpoint", write)
    monkeypatch.setattr(h200, "ceiling", lambda *_: LIMITS)
    h200.main(["--device", "cpu", "--new-tokens", "3", "--image", "56x28", "--repeats", "1", "--peer-python",
               str(peer_python), "--output", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    parts = {name: part for name, part in record.items() if isinstance(part, dict) and name != "ceiling"}
    assert list(parts) == ["decode 16", "decode 64", "training", "decode 16 eager", "generate 16, dynamic cache",
                           "training, TRL", "generate 16, static cache"]
    assert not {name: part for name, part in parts.items() if {"failed", "skipped"} & part.keys()}
    # rows x (3 - 1) steps; decode is 750 of the stand-in's 1000 s and two steps long
    assert [parts[name]["work"]["decode"]["tokens"] for name in ("decode 16", "decode 64")] == [32, 128]
    assert parts["generate 16, static cache"]["ms_per_step"] == 375_000 and parts["training, TRL"]["seconds"] == 1000.0


def test_a_part_that_fails_or_comes_too_late_does_not_stop_the_others():
    def broken():
        raise RuntimeError("out of memory")

    cpu = torch.device("cpu")
    assert h200.attempt(broken, 1, 2.0, cpu) == {"failed": "RuntimeError: out of memory"}
    assert h200.attempt(dict, 3, 2.0, cpu) == {"skipped": "2 s left, it may need 3 s"}


def test_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "scene_text_corpus", lambda count: scene_text_corpus(30))
    count = checkpoints.write_checkpoint("tiny", tmp_path / "tiny")
    model, processor = load_model(tmp_path / "tiny"), load_processor(tmp_path / "tiny")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.config.text.vocab_size == 1088 >= processor.tokenizer.get_vocab_size()
    assert model.config.image_token_id == processor.image_token_id
    assert processor.max_pixels >= 896 * 504                                 # the sweeps' largest picture is not cut


def test_small_has_its_size():
    config, vocabulary, _ = checkpoints.CHECKPOINTS["small"]
    assert vocabulary == 1088 and config.text.head_dim == 64 and config.vision.head_dim == 64
    # a decoder layer's matrices: 768 x 64 x (12 + 4) + 768 x 768 + 3 x 768 x 2560 = 7,274,496; twelve of them
    from benchmarks.floor import matrix_parameters
    assert matrix_parameters(config.text) == 87_293_952


def test_memory_table():
    row = {"group_size": 8, "image": "448x252", "shapes": {"patches": [576]}, "tokens_per_second": 400.0,
           "peak_rss_mb": 1500.4, "peer": {"tokens_per_second": 100.0, "peak_rss_mb": 6001.0},
           "ratio": {"tokens_per_second": 4.0, "memory": 0.25}}
    lines = memory.markdown([row, {"group_size": 32, "image": "448x252", "failed": 1}]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2] == ["8", "448x252", "576", "2.50", "1500", "10.00", "6001", "4.00", "0.25"]
    assert cells[3][:3] == ["32", "448x252", "failed (1)"]
