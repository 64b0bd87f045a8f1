"""Two and three processes on one CPU take the step of one: the same samples, gradients and metrics."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from data.dataset import indices_at
from grpo.engine import stages
from grpo.engine.checkpoint import save_policy
from grpo.engine.distributed import SINGLE, Distributed, RankError, check_supported, join
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.prompts import PromptSettings
from grpo.engine.rewards import Scoring
from grpo.packing import pack
from models.qwen2_vl import new_model

ROOT = Path(__file__).resolve().parents[3]
WORKER = ROOT / "tests/grpo/engine/distributed_worker.py"
CASES = [(case, 2) for case in ("grpo", "dapo", "batch", "gae", "shared", "lora", "frozen", "sft")] + [
    (case, 3) for case in ("grpo", "gae", "lora", "sft")]
SFT = ["--stage", "sft", "--steps", "2", "--batch-size", "5", "--max-new-tokens", "8", "--eval-examples", "3",
       "--learning-rate", "1e-3", "--warmup-steps", "0", "--device", "cpu", "--threads", "1", "--precision", "fp32"]
ENDURING = ["--scenes", "9", "--max-new-tokens", "8", "--eval-examples", "3", "--learning-rate", "1e-3", "--steps", "2",
            "--device", "cpu", "--threads", "1", "--save-every", "1", "--keep", "9", "--precision", "fp32"]
RUNS = {"ppo": ["--stage", "grpo", "--algorithm", "ppo", "--value-learning-rate", "1e-2",
                "--group-size", "3", "--prompts-per-step", "5", *ENDURING],
        "sft": ["--stage", "sft", "--batch-size", "5", "--lora-rank", "2", *ENDURING]}
SKIP = ["--on-bad-data", "skip", "--reasoning", "off", "--save-every", "0", "--steps", "3"]


def start(size, folder, *flags):
    """`size` workers with what torchrun would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [launch([WORKER, folder, *flags], folder, **address, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(size)]


def launch(arguments, folder, **environment):
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, **own})


def end(*processes):
    """Wait; raise with what was said if one of them failed."""
    said = [process.communicate(timeout=600) for process in processes]
    assert not any(process.returncode for process in processes), said


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor, micro_config):
    """Two policies that stop at different lengths; pictures, one of them broken where process 1 will read it."""
    folder = tmp_path_factory.mktemp("distributed")
    for name, seed in (("policy", 0), ("reference", 5)):
        model = new_model(micro_config, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            embedding = model.model.embed_tokens.weight.mul_(6)
            embedding[:, 0], embedding[258, 0] = 0.3, embedding[258, 0] + 1
        save_policy(model, processor, PromptSettings("compact", max_new_tokens=8), {}, folder / name)
    Image.new("RGB", (56, 28)).save(folder / "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:50])
    rows = [{"id": f"row-{i}", "image": "bad.png" if i in (3, 8) else "good.png", "speed": float(i),
             "navigation": "Go straight", "solution": "FLY" if i == 5 else "KEEP, STRAIGHT"} for i in range(12)]
    (folder / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"id": f"row-{i}", "image": "bad.png" if i == 11 else "good.png", "speed": 1.0, "navigation": "Go straight",
             "split": "val" if i > 9 else "train", "decision": "KEEP, STRAIGHT"} for i in range(12)]
    (folder / "unread.json").write_text(json.dumps(rows))   # process 1 of 2 validates with the broken picture
    return folder


@pytest.fixture(scope="module")
def faulty(folder):
    """20 examples; the broken picture is behind the first 8, which are looked at before training, and is read by
    process 1 of 2 in the second step of 4 (positions 4 to 7 of the stream, of which 5 and 7 are process 1's)."""
    broken = next(i for i in (indices_at(20, seed, 5, 1)[0] for seed in range(9)) if i >= 8)
    seed = next(seed for seed in range(9) if indices_at(20, seed, 5, 1)[0] == broken)
    rows = [{"id": f"row-{i}", "image": "bad.png" if i == broken else "good.png", "speed": 1.0,
             "navigation": "Go straight", "solution": "KEEP, STRAIGHT"} for i in range(20)]
    (folder / "faulty.json").write_text(json.dumps(rows))
    return seed, broken


@pytest.fixture(scope="module")
def worker():
    """The script that other processes run, for this one to take part."""
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(folder, kind, output, *more, **order):
    """What a worker is told: a run of train.py."""
    at = RUNS[kind].index("--scenes") if "--data" in more else None             # which --data FILE does not read
    stage = RUNS[kind] if at is None else RUNS[kind][:at] + RUNS[kind][at + 2:]
    flags = [*stage, "--model", folder / "policy", "--output", folder / output, *more]
    return {"flags": [str(flag) for flag in flags], **order}


def driving_runs(folder, size):
    """Both trajectory stages on this many processes; the second from the decoder that one process cloned."""
    common = ["--scenes", "48", "--eval-examples", "4", "--steps", "2", "--save-every", "1", "--device", "cpu"]
    cloning = ["--stage", "trajectory-bc", "--condition", "facts", "--batch-size", "15", "--rounds", "0",
               "--output", folder / f"bc-{size}", *common]
    chains = ["--stage", "trajectory-grpo", "--model", folder / "bc-1/model", "--output", folder / f"chains-{size}",
              "--prompts-per-step", "5", "--group-size", "3", "--algorithm", "ppo", "--bc-coef", "1", *common]
    return [{"flags": [str(flag) for flag in flags]} for flags in (cloning, chains)]


@pytest.fixture(scope="module")
def alone(folder, worker):
    """Runs of one process: whole, and stopped after 1 of 2 steps, for others to go on with."""
    orders = [order for kind in RUNS for order in (run_of(folder, kind, f"{kind}-1"),
                                                   run_of(folder, kind, f"{kind}-1-parts", stop=1))]
    orders += [run_of(folder, "sft", "skip-1", *SKIP, "--data", folder / "some.jsonl")]
    orders += driving_runs(folder, 1)
    assert [code for code, _ in worker.make_runs(SINGLE, orders)] == [0, 143, 0, 143, 0, 0, 0]
    for kind, size in ((kind, size) for kind in RUNS for size in (2, 3)):
        shutil.copytree(folder / f"{kind}-1-parts", folder / f"{kind}-1-on-{size}")


@pytest.fixture(scope="module")
def started(folder, alone):
    """What runs beside this process, at once."""
    on = {size: [run_of(folder, kind, f"{kind}-1-on-{size}", "--resume", "auto") for kind in RUNS] for size in (2, 3)}
    two = [order for kind in RUNS for order in (
        run_of(folder, kind, f"{kind}-2"), run_of(folder, kind, f"{kind}-2-parts", stop=1),
        run_of(folder, kind, f"{kind}-2-parts", "--resume", "auto"))]
    full = [run_of(folder, "sft", "full", full=2), run_of(folder, "sft", "full", "--resume", "auto")]
    skip = run_of(folder, "sft", "skip-2", *SKIP, "--data", folder / "some.jsonl")
    other = run_of(folder, "sft", "unread", "--save-every", "0", "--reasoning", "off", "--data", folder / "unread.json")
    (folder / "runs-2.json").write_text(json.dumps([*two, *on[2], *full, skip, *driving_runs(folder, 2), other]))
    (folder / "runs-3.json").write_text(json.dumps(on[3]))
    model = ["--model", folder / "policy", "--scenes", "9"]
    return {2: start(2, folder, *SFT, *model, "--output", folder / "two"), 3: start(3, folder)}


@pytest.fixture(scope="module")
def results(folder, started, worker):
    """size -> records of every process, and the tensors that they share."""
    records, tensors = worker.run_cases(folder, SINGLE)
    found = {1: ([records], tensors)}
    for size in (2, 3):
        end(*started[size])
        found[size] = ([json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)],
                       load_file(folder / f"{size}.safetensors"))
    return found


# ---------------------------------------------------------------- K processes equal one

@pytest.mark.parametrize(("case", "size"), CASES)
def test_gradients_equal_those_of_one_process(results, case, size):
    single, several = results[1][1], results[size][1]
    names = [name for name in single if name.startswith(case + "/")]
    assert {name for name in several if name.startswith(case + "/")} == set(names) and len(names) >= 8
    assert 0.1 < max(single[name].abs().max().item() for name in names) < 1
    for name in names:
        assert (single[name] - several[name]).abs().max().item() < 1e-6, name


@pytest.mark.parametrize(("case", "size"), [*CASES, ("bf16", 2)])
def test_samples_equal_those_of_one_process(results, case, size):
    (single,), ranks = results[1][0], results[size][0]
    shares = [rank[case]["groups"] for rank in ranks]
    groups = {name: group for share in shares for name, group in share.items()}
    assert groups.keys() == single[case]["groups"].keys() and len(groups) == {"sft": 0}.get(case, 5)
    if case != "sft":
        assert [len(share) for share in shares] == {2: [3, 2], 3: [2, 2, 1]}[size]       # 5 prompts
    for name, group in single[case]["groups"].items():
        assert groups[name]["texts"] == group["texts"] and groups[name]["rewards"] == group["rewards"]


@pytest.mark.parametrize(("case", "size"), CASES)
def test_every_process_has_the_metrics_of_one(results, case, size):
    (single,), ranks = results[1][0], results[size][0]
    for rank in ranks:
        assert rank[case]["metrics"] == ranks[0][case]["metrics"]
        assert rank[case]["metrics"].keys() == single[case]["metrics"].keys()
        for name, value in single[case]["metrics"].items():
            expected = value if value is None else pytest.approx(value, rel=2e-6, abs=2e-6)
            assert rank[case]["metrics"][name] == expected, name


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kept", ["4", "3", "0"])
def test_advantages_are_scaled_and_whitened_over_all_processes(results, size, kept):
    """.1 .3 | 2 1 | 5 5.5 | 1 1 on processes that have all, some or none of them."""
    ranks = [rank["advantages"][kept] for rank in results[size][0]]
    # mean 15.9 / 8 = 1.9875; squares .01 + .09 + 4 + 1 + 25 + 30.25 + 1 + 1 = 62.35, less 8 * 1.9875^2 = 31.60125:
    # 30.74875 / 7 = 4.392679, root 2.095872, + .0001: half the gaps .1, .5, .25 divided by 2.095972
    scaled = [row for rank in ranks for row in rank["scaled"]]
    torch.testing.assert_close(torch.tensor(scaled), torch.tensor(
        [[-.0477106, .0477106], [.2385528, -.2385528], [-.1192764, .1192764], [0.0, 0.0]]), atol=1e-6, rtol=0)
    # without 5.5: mean 10.4 / 7 = 1.4857143; squares 32.1, less 7 * 2.2073469 = 15.4514286: 16.6485714 / 6 =
    # 2.7747619, root 1.6657617, + .0001: such as (.1 - 1.4857143) / 1.6658617
    whitened = [row for rank in ranks for row in rank["whitened"]]
    torch.testing.assert_close(torch.tensor(whitened), torch.tensor(
        [[-.8318303, -.7117724], [.3087205, -.2915694], [2.1095904, 0.0], [-.2915694, -.2915694]]), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- interrupted

def records(output):
    """The lines of metrics.jsonl, times aside."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "tokens_per_second")}
            for line in lines]


def tensors_of(output, step):
    """All tensors of a state, by file and name."""
    files = (output / f"state/step-{step:08d}").glob("*.safetensors")
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def gap(one, two):
    """The largest difference between two sets of tensors."""
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def outcomes(folder, results):
    """size -> for each process the exit codes and messages of its runs."""
    return {size: [json.loads((folder / f"outcomes-{size}-{rank}.json").read_text()) for rank in range(size)]
            for size in (2, 3)}


def test_all_processes_end_together(outcomes):
    codes = {size: [[code for code, _ in rank] for rank in ranks] for size, ranks in outcomes.items()}
    # whole, told to stop (one process was), resumed, for both kinds; from one process, both; a full disk, resumed;
    # skip; the trajectory stages; a broken validation picture
    assert codes == {2: [[0, 143, 0, 0, 143, 0, 0, 0, 1, 0, 0, 0, 0, 1]] * 2, 3: [[0, 0]] * 3}


@pytest.mark.parametrize("stage", ["bc", "chains"])
def test_the_trajectory_stages_on_two_processes_equal_one(folder, outcomes, stage):
    """Cloning, and PPO with a cloning term on chains: batch deviations, whitening and gradients are those of all."""
    one, two = folder / f"{stage}-1", folder / f"{stage}-2"
    assert gap(tensors_of(one, 2), tensors_of(two, 2)) < 1e-4
    for alone, shared in zip(records(one), records(two), strict=True):
        assert alone.keys() == shared.keys()
        for name in alone.keys() - {"logprob_gap", "approx_kl"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("kind", RUNS)
def test_n_and_n_are_2n_on_two_processes(folder, outcomes, kind):
    whole, parts = folder / f"{kind}-2", folder / f"{kind}-2-parts"
    assert records(whole) == records(parts) and [line["step"] for line in records(parts)] == [1, 2]
    assert gap(tensors_of(whole, 2), tensors_of(parts, 2)) == 0
    assert gap(tensors_of(whole, 1), tensors_of(whole, 2)) > 1e-4
    assert (whole / "model/model.safetensors").read_bytes() == (parts / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", RUNS)
def test_a_state_of_two_processes_is_that_of_one(folder, outcomes, kind):
    one, two = folder / f"{kind}-1", folder / f"{kind}-2"
    assert gap(tensors_of(one, 1), tensors_of(two, 1)) < 1e-4
    assert {path.name for path in (one / "state/step-00000001").iterdir()} == {
        path.name for path in (two / "state/step-00000001").iterdir()}


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind in RUNS for size in (2, 3)])
def test_a_state_of_one_process_goes_on_with_more(folder, outcomes, kind, size):
    assert gap(tensors_of(folder / f"{kind}-1", 2), tensors_of(folder / f"{kind}-1-on-{size}", 2)) < 1e-4


@pytest.mark.parametrize("kind", RUNS)
def test_a_state_of_two_processes_goes_on_with_one(folder, outcomes, worker, kind, capsys):
    shutil.copytree(folder / f"{kind}-2", folder / f"{kind}-2-on-1")
    order = run_of(folder, kind, f"{kind}-2-on-1", "--resume", folder / f"{kind}-2-on-1/state/step-00000001")
    assert worker.make_runs(SINGLE, [order])[0][0] == 0
    assert "the state was written by processes 2, this is 1" in capsys.readouterr().out
    assert gap(tensors_of(folder / f"{kind}-2", 2), tensors_of(folder / f"{kind}-2-on-1", 2)) < 1e-4


def test_a_full_disk_ends_all_with_its_message(folder, outcomes):
    for rank in outcomes[2]:
        assert "step-00000002 could not be written" in rank[8][1] and "step-00000001 is intact" in rank[8][1]
    assert records(folder / "full") == records(folder / "sft-2")               # mended, and resumed
    assert gap(tensors_of(folder / "full", 2), tensors_of(folder / "sft-2", 2)) == 0


def test_a_broken_validation_picture_loses_no_step(folder, outcomes):
    for rank in outcomes[2]:
        assert "bad.png cannot be read" in rank[-1][1]
    assert [path.name for path in (folder / "unread/state").iterdir()] == ["step-00000002"]


def test_rewards_of_other_components_on_another_process_are_told(monkeypatch):
    monkeypatch.setattr(stages, "rollout_metrics", lambda scored, credit: {"reward": 1.0})
    world = SimpleNamespace(texts=lambda own: [own, "speed, path"])
    with pytest.raises(RankError, match="different components, speed and speed, path; return the same names"):
        stages.over_ranks(world, {}, SimpleNamespace(components={"speed": 0}), None)


def test_a_reward_that_fails_on_one_process_fails_on_all(make_examples):
    def failing(action):
        with pytest.raises(ValueError, match="unfair"):
            action()
        raise RankError("unfair")

    def unfair(example, texts):
        raise ValueError("unfair")
    with pytest.raises(RankError, match="unfair"):
        Scoring(0, failing)(unfair, make_examples(1), [["a"]])


def test_two_processes_skip_what_one_does(folder, outcomes):
    """11 of 12 records are read, of which 2 have a broken picture; 15 are used, 4 or more of them spares' places."""
    one, two = ([json.loads(line) for line in (folder / name / "skipped.jsonl").read_text().splitlines()]
                for name in ("skip-1", "skip-2"))
    assert sorted(map(str, one)) == sorted(map(str, two)) and {line["step"] for line in two} == {0, 1, 2, 3}
    assert {line.get("id") for line in two} == {None, "row-3", "row-8"} and "'FLY' is not one plan" in two[0]["fault"]
    for single, several in zip(records(folder / "skip-1"), records(folder / "skip-2"), strict=True):
        assert several["loss"] == pytest.approx(single["loss"], rel=1e-5)
        assert several["tokens"] == single["tokens"]


# ---------------------------------------------------------------- the command

def test_training_on_two_processes(folder, results, capsys):
    train.main([*SFT, "--model", str(folder / "policy"), "--scenes", "9", "--output", str(folder / "one")])
    one, two = ([json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
                for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2]
    for single, several in zip(one, two, strict=True):
        for name in single.keys() - {"seconds", "tokens_per_second"}:
            assert several[name] == pytest.approx(single[name], rel=1e-5), name
    single, several = (load_file(folder / name / "model/model.safetensors") for name in ("one", "two"))
    assert single.keys() == several.keys()
    gaps = {name: (single[name] - several[name]).abs().max().item() for name in single}
    # Softmax ignores what all keys share, so a key bias has a gradient near zero; AdamW makes whole steps of it (1e-3).
    keys = max(gaps.pop(name) for name in list(gaps) if name.endswith("k_proj.bias"))
    assert max(gaps.values()) < 1e-5 and keys < 1e-4
    assert json.loads((folder / "two/config.json").read_text())["processes"] == 2


def test_a_process_that_fails_ends_the_job_with_its_error(folder, faulty):
    seed, broken = faulty
    before = time.monotonic()
    job = launch(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", ROOT / "train.py", *SFT,
                  "--batch-size", "4", "--model", folder / "policy", "--data", folder / "faulty.json", "--seed", seed,
                  "--output", folder / "faulty", "--steps", "5", "--reasoning", "off"], folder)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 1 and f"error: example 'row-{broken}': picture" in said
    assert [path.name for path in (folder / "faulty/state").iterdir()] == ["step-00000001"]    # all knew of it
    assert time.monotonic() - before < 45


# ---------------------------------------------------------------- what is refused; one process alone

@pytest.mark.parametrize(("config", "flag"), [
    (GRPOFlags(dynamic_sampling=2), "--dynamic-sampling"),
    (GRPOFlags(prompts_per_step=3), "--prompts-per-step"), (SFTFlags(batch_size=3), "--batch-size")])
def test_what_several_processes_cannot_do_names_its_flag(config, flag):
    with pytest.raises(ValueError, match=flag):
        check_supported(config, Distributed(1, 4))
    check_supported(config, SINGLE)


def test_shares_cover_everything_once():
    shares = [Distributed(rank, 3).share(range(5)) for rank in range(3)]
    assert shares == [range(0, 5, 3), range(1, 5, 3), range(2, 5, 3)]
    assert [list(Distributed(rank, 3).share("abcde")) for rank in range(3)] == [["a", "d"], ["b", "e"], ["c"]]


def test_idle_micro_batches_repeat_the_smallest(make_prompts, monkeypatch):
    monkeypatch.setattr(Distributed, "largest", lambda self, number: 4)
    large, small = (pack(make_prompts()[1:2] * rows, [[torch.tensor([5])]] * rows) for rows in (2, 1))
    packed = Distributed(1, 2).even([large, small])
    assert packed[:2] == [large, small] and [rows.idle for rows in packed] == [False, False, True, True]
    assert all(len(rows.input_ids) == 1 for rows in packed[2:])


def test_one_process_computes_nothing_twice(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") is SINGLE
    assert SINGLE.total({"a": 1}) == {"a": 1} and SINGLE.mean({"a": 2}, 7) == {"a": 2} and SINGLE.largest(3) == 3
    assert SINGLE.even([1, 2]) == [1, 2] and SINGLE.share([1, 2]) == [1, 2]
