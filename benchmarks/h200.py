"""The 2B on one large card, in one command and under 8 minutes: `python benchmarks/h200.py --output FILE`.

NOT YET RUN ON A CARD: it was written without one and tried on a CPU with the tiny model only
(`python benchmarks/h200.py --checkpoint tiny --device cpu --new-tokens 8 --image 112x84`). A test starts every part
that way.

    decode    bf16, B = 16 and 64 (groups of 8), CUDA graphs: share of the measured bandwidth floor, that is the time to
              read every weight and all keys and values once per step; and B = 16 without graphs
    training  reference pass, policy pass and backward of a step with 8 prompts x 8 samples under autocast: share of the
              measured bf16 GEMM rate. Prompts counted once per group; a backward pass counts twice its forward one.
    generate  transformers' `generate` on the same card and batch, if --peer-python has it
    TRL       a step of its GRPOTrainer on the same card and batch as "training", if --peer-python has it

Random weights are drawn on the card. A part that fails is reported and the next one runs; a part is not begun when less
than its share of --seconds is left. Every part is printed when it is done, all of them as one JSON object at the end.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import rollout, step  # noqa: E402
from benchmarks.checkpoints import CHECKPOINTS, write_checkpoint  # noqa: E402
from benchmarks.floor import decode_bytes, scoring_flop  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    Peer,
    ceiling,
    choose_device,
    machine_record,
    parse_image,
    peak_mb,
    peak_name,
    reset_peak,
    summary,
    write_record,
)
from models import Qwen2VLConfig  # noqa: E402

GROUP_SIZE = 8
STEP = {"precision": "amp", "beta": 0.04}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the checkpoint, measure the ceiling, run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--checkpoint", choices=sorted(CHECKPOINTS), default="2b")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--image", default="480x270")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=450, help="begin no part that may end later than this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--peer-python", default=sys.executable, help="python with transformers")
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args(arguments)
    start, device = time.perf_counter(), choose_device(flags.device, 0)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        write_checkpoint(flags.checkpoint, directory, device=device.type)
        limits = ceiling(device, torch.bfloat16)
        found = {"seconds_to_prepare": time.perf_counter() - start}
        print(json.dumps({**limits, **found}), flush=True)
        for name, (part, needs) in parts(flags, directory, device, limits).items():
            found[name] = attempt(part, needs, flags.seconds - (time.perf_counter() - start), device)
            print(json.dumps({name: found[name]}), flush=True)
    write_record({"benchmark": "h200", **machine_record(device), "checkpoint": flags.checkpoint, "ceiling": limits,
                  **found, "seconds": time.perf_counter() - start}, flags.output)


Part = Callable[[], dict[str, Any]]


def parts(flags: argparse.Namespace, directory: Path, device: torch.device,
          limits: Mapping[str, float]) -> dict[str, tuple[Part, float]]:
    """Name -> what to run, and about how many seconds it may take. The most wanted figures come first."""
    graph = "graph" if device.type == "cuda" else "eager"

    def of(prompts: int, *more: str) -> list[str]:
        return ["--model", str(directory), "--prompts", str(prompts), "--group-size", str(GROUP_SIZE), "--new-tokens",
                str(flags.new_tokens), "--image", flags.image, "--device", flags.device, *more]

    found: dict[str, tuple[Part, float]] = {
        "decode 16": (lambda: decode(of(2, "--decode", graph), flags.repeats, device, limits), 45),
        "decode 64": (lambda: decode(of(8, "--decode", graph), flags.repeats, device, limits), 45),
        "training": (lambda: training(of(8, "--decode", graph), flags.repeats, device, limits), 120),
        "decode 16 eager": (lambda: decode(of(2), 1, device, limits), 60)}
    other = flags.peer_python != sys.executable
    has = {name: other or importlib.util.find_spec(name) is not None for name in ("transformers", "trl")}
    if has["transformers"]:
        found["generate 16, dynamic cache"] = lambda: generate(of(2), flags, "dynamic", device), 90
    if has["trl"]:
        found["training, TRL"] = lambda: beside("trl", parse(step.step_flags(), of(8)), flags, device, **STEP), 120
    if has["transformers"]:
        found["generate 16, static cache"] = lambda: generate(of(2), flags, "static", device), 90
    return found


def attempt(part: Part, needs: float, left: float, device: torch.device) -> dict[str, Any]:
    """The part's figures, or why there are none. The memory of the part before is given back first."""
    if left < needs:
        return {"skipped": f"{left:.0f} s left, it may need {needs:.0f} s"}
    reset_peak(device)
    try:
        return part()
    except (RuntimeError, ValueError, OSError) as fault:    # out of memory is a RuntimeError too
        return {"failed": f"{type(fault).__name__}: {str(fault)[-600:]}"}


def decode(arguments: Sequence[str], repeats: int, device: torch.device, limits: Mapping[str, float]) -> dict[str, Any]:
    """Our rollout; the decode phase against the time to read weights, keys and values."""
    flags = parse(rollout.common_flags(""), arguments, dtype="bf16")
    with tempfile.TemporaryDirectory() as folder:
        examples = rollout.make_examples(flags.prompts, parse_image(flags.image), Path(folder))
        ours = rollout.OurRollout(flags, examples, device)
    work = ours.warm_up()
    side = summary([ours.run() for _ in range(repeats)])
    shape = rollout.shape_of(ours.prompts, flags.group_size, flags.new_tokens)
    steps, seconds = flags.new_tokens - 1, side["seconds"] * side["share_of_time"]["decode"]
    read = decode_bytes(ours.model.config, shape, 2)
    bandwidth = max(limits["copy_bytes_s"], limits["read_bytes_s"])
    return {**side, "work": work, "batch": shape.rows, "decode": flags.decode, "new_tokens": flags.new_tokens,
            "prompt_tokens": list(shape.prompt_tokens), "ms_per_step": 1000 * seconds / steps,
            "bytes_per_step": read / steps, "share_of_bandwidth": read / bandwidth / seconds,
            "tokens_per_second": shape.rows * flags.new_tokens / side["seconds"], peak_name(device): peak_mb(device)}


def training(arguments: Sequence[str], repeats: int, device: torch.device,
             limits: Mapping[str, float]) -> dict[str, Any]:
    """Our whole step; its reference, policy and backward phases against the GEMM rate."""
    flags = parse(step.step_flags(), arguments, **STEP)
    with tempfile.TemporaryDirectory() as folder:
        examples = rollout.make_examples(flags.prompts, parse_image(flags.image), Path(folder))
        ours = step.OurStep(flags, examples, device)
        work = ours.warm_up()
        side = summary([ours.run() for _ in range(repeats)])
    names = ("reference", "policy_forward", "backward")
    seconds = {name: side["seconds"] * side["share_of_time"].get(name, 0.0) for name in names}
    one_pass = scoring_flop(ours.learner.policy.config, ours.shape, vision=True)
    policy = seconds["policy_forward"] + seconds["backward"]
    return {**side, "work": work, "flop_per_pass": one_pass, "seconds_by_phase": seconds,
            "share_of_gemm": 4 * one_pass / limits["gemm_flops"] / sum(seconds.values()),
            "share_of_gemm_policy": 3 * one_pass / limits["gemm_flops"] / policy,
            "prompt_tokens": list(ours.shape.prompt_tokens), peak_name(device): peak_mb(device)}


def generate(arguments: Sequence[str], h200: argparse.Namespace, cache: str, device: torch.device) -> dict[str, Any]:
    """transformers on the same batch as `decode`."""
    flags = parse(rollout.common_flags(""), arguments)
    side = beside("transformers", flags, h200, device, dtype="bf16", cache=cache)
    seconds = side["seconds"] * side["share_of_time"]["decode"]
    return {**side, "ms_per_step": 1000 * seconds / (flags.new_tokens - 1),
            "tokens_per_second": flags.prompts * flags.group_size * flags.new_tokens / side["seconds"]}


def beside(kind: str, flags: argparse.Namespace, h200: argparse.Namespace, device: torch.device,
           **settings: object) -> dict[str, Any]:
    """A peer on the same batch, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        examples = rollout.make_examples(flags.prompts, parse_image(flags.image), Path(folder))
        suppressed = Qwen2VLConfig.from_directory(flags.model).suppressed_token_ids
        peer = Peer(h200.peer_python, kind, rollout.peer_settings(flags, examples, device, suppressed, **settings))
        try:
            peer.ask("warm up")
            side = summary([peer.ask("run") for _ in range(2)])
            return {**peer.about, **side, peak_name(device): peer.ask("peak")["peak_mb"]}
        finally:
            peer.close()


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str], **more: object) -> argparse.Namespace:
    """Flags of another benchmark, as it would read them itself."""
    return argparse.Namespace(**{**vars(parser.parse_args(arguments)), **more})


if __name__ == "__main__":
    main()
