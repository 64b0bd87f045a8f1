"""What each saving of a step is worth alone: time, memory, and the largest difference of its numbers.

    python benchmarks/factors.py --model DIR --rounds 3 --output FILE

A saving is switched off in one of the three passes of a step: sampling, reference (log-probabilities alone) and policy
(forward and backward). Everything else stays on. Every time is of a process of its own, and all of them alternate; the
first call of a process does not count. `answers apart` repeats the prompt for every answer, and shares the picture
among them; `pictures apart` repeats the picture too, as TRL and transformers do. The model is in float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.measure import choose_device, machine_record, parse_image, peak_mb, write_record  # noqa: E402
from benchmarks.peers import MICRO_BATCH  # noqa: E402
from benchmarks.rollout import batch_flags, encode, make_examples, new_sampler  # noqa: E402
from evaluation.scoring import table  # noqa: E402
from grpo.fast import FAST  # noqa: E402
from grpo.fast import sampler as fast_sampler  # noqa: E402
from grpo.logprobs import Kernels, completion_logprobs  # noqa: E402
from grpo.packing import PackedRows, pack_groups  # noqa: E402
from grpo.sampling import uniform_table  # noqa: E402
from models import load_model, load_processor  # noqa: E402
from models.fast.recomputed import use_recomputed  # noqa: E402
from models.processor import Processor  # noqa: E402
from models.prompt import Prompt  # noqa: E402
from models.qwen2_vl import Qwen2VL  # noqa: E402

ON = "all on"
# pass: what can be switched off in it
OFF = {"sampling": ("answers apart", "pictures apart", "layers not packed"),
       "reference": ("answers apart", "pictures apart", "dense attention", "whole vocabulary"),
       "policy": ("answers apart", "pictures apart", "dense attention", "whole vocabulary", "nothing recomputed")}
CASES = [(name, off) for name, switches in OFF.items() for off in (ON, *switches)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases in turns and print the record; with --case, be the process that is timed."""
    parser = batch_flags(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs=3, metavar=("PASS", "OFF", "FOLDER"), help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.case:
        print(json.dumps(timed(flags, flags.case[0], flags.case[1], Path(flags.case[2]))))
        return
    record = measure(flags, list(sys.argv[1:] if arguments is None else arguments))
    print(markdown(record["rows"]))
    write_record(record, flags.output)


# ---------------------------------------------------------------- one case, a process of its own

def timed(flags: argparse.Namespace, name: str, off: str, folder: Path) -> dict:
    """Seconds of the pass's second call, and peak memory; its numbers go to a file."""
    device = choose_device("cpu", flags.threads)
    model, processor = load_model(flags.model, device=device), load_processor(flags.model)
    prompts = encode(make_examples(flags.prompts, parse_image(flags.image), folder), processor, model,
                     flags.prompt_style, flags.new_tokens)
    run = (sampling(flags, model, processor, prompts, off) if name == "sampling" else
           scoring(flags, model, prompts, off, trained=name == "policy"))
    run()
    began = time.perf_counter()
    numbers = run()
    seconds = time.perf_counter() - began
    peak = peak_mb(device)
    torch.save(numbers, folder / f"{name} {off}.pt")
    return {"seconds": seconds, "peak_mb": peak}


def apart(prompts: Sequence[Prompt], group_size: int, off: str) -> list[Prompt]:
    """Every prompt once per answer; with `pictures apart` each with a copy of the picture."""
    def own(prompt: Prompt) -> Prompt:
        return replace(prompt, pixel_values=prompt.pixel_values.clone()) if off == "pictures apart" else prompt

    return [own(prompt) for prompt in prompts for _ in range(group_size)]


def sampling(flags: argparse.Namespace, model: Qwen2VL, processor: Processor, prompts: Sequence[Prompt],
             off: str) -> Callable[[], dict[str, Tensor]]:
    """Sample every group once."""
    uniforms = uniform_table(0, 0, range(len(prompts)), flags.group_size, flags.new_tokens)         # (P, G, N)
    plain = patch.object(fast_sampler, "sampling_copy", lambda source, _dtype, **_pack: source)
    with plain if off == "layers not packed" else nullcontext():
        sampler = new_sampler(model.eval(), processor, flags.new_tokens, "eager", torch.float32)
    if off.endswith("apart"):
        prompts, uniforms = apart(prompts, flags.group_size, off), uniforms.flatten(0, 1)[:, None]

    def run() -> dict[str, Tensor]:
        rollout = sampler.sample(prompts, uniforms)
        return {"ids": rollout.completion_ids, "logprobs": rollout.logprobs}
    return run


def scoring(flags: argparse.Namespace, model: Qwen2VL, prompts: Sequence[Prompt], off: str,
            trained: bool) -> Callable[[], dict[str, Tensor]]:
    """Log-probabilities of fixed answers and, if it is trained, the gradient of the surrogate at ratio 1."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(1, 100, (len(prompts), flags.group_size, flags.new_tokens), generator=generator)
    advantages = torch.randn(answers.shape[:2], generator=generator).flatten()                      # (P * G,)
    groups = max(1, MICRO_BATCH // flags.group_size)
    tokens = groups * (max(len(p.input_ids) for p in prompts) + flags.group_size * flags.new_tokens)
    if off.endswith("apart"):
        prompts, answers = apart(prompts, flags.group_size, off), answers.flatten(0, 1)[:, None]
    rows = pack_groups(prompts, [list(group) for group in answers], tokens)
    if off == "answers apart":
        model.image_features = shared_pictures(model.image_features)
    if off != "nothing recomputed":
        use_recomputed(model)
    plain = {"dense attention": Kernels(score=FAST.score), "whole vocabulary": Kernels(FAST.states)}
    kernels = plain.get(off, FAST)

    def reference() -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logprobs": torch.cat([logprobs(part) for part in rows])}

    def policy() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        found, first = [], 0
        for part in rows:
            values = logprobs(part)                                                                 # (B, N)
            own = advantages[first:first + len(values), None]
            (-(own * values).sum() / flags.new_tokens / len(advantages)).backward()
            found.append(values.detach())
            first += len(values)
        gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {"logprobs": torch.cat(found), **gradient}

    def logprobs(part: PackedRows) -> Tensor:
        return completion_logprobs(model, part, 1.0, model.config.suppressed_token_ids, kernels=kernels)[0]
    return policy if trained else reference


def shared_pictures(encode_pictures: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`image_features` that encodes a picture once where neighbours are equal, all of one size."""
    def features(pixels: Tensor, grids: Tensor) -> Tensor:
        pictures = pixels.unflatten(0, (len(grids), -1))                                            # (I, patches, 1176)
        new = [i for i in range(len(grids)) if i == 0 or not torch.equal(pictures[i], pictures[i - 1])]
        repeats = torch.tensor([*new[1:], len(grids)]) - torch.tensor(new)
        encoded = encode_pictures(pictures[new].flatten(0, 1), grids[new])
        return encoded.unflatten(0, (len(new), -1)).repeat_interleave(repeats, dim=0).flatten(0, 1)
    return features


# ---------------------------------------------------------------- all cases

def measure(flags: argparse.Namespace, arguments: Sequence[str]) -> dict:
    """Every case in a process of its own, all of them once a round."""
    found = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(flags.rounds):
            for case in CASES:
                command = [sys.executable, __file__, *arguments, "--case", *case, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"case {case} failed:\n{done.stderr}")
                found[case].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} of {flags.rounds}", file=sys.stderr, flush=True)
        rows = [row(case, found, Path(folder)) for case in CASES]
    return {"benchmark": "factors", **machine_record(torch.device("cpu")), "rounds": flags.rounds,
            "shapes": {name: getattr(flags, name)
                       for name in ("prompts", "group_size", "new_tokens", "image", "prompt_style")},
            "model": flags.model.name, "rows": rows}


def row(case: tuple[str, str], found: dict, folder: Path) -> dict:
    """Medians of a case, how much slower it is than with all on, and how far its numbers are from those."""
    name, off = case
    seconds, base = (statistics.median(run["seconds"] for run in found[name, which]) for which in (off, ON))
    peak = statistics.median(run["peak_mb"] for run in found[case])
    numbers, reference = (torch.load(folder / f"{name} {which}.pt") for which in (off, ON))
    gaps = {key: float((value.float() - reference[key].float()).abs().max()) for key, value in numbers.items()}
    gradients = [key for key in numbers if key not in ("ids", "logprobs")]
    largest = max((float(reference[key].abs().max()) for key in gradients), default=None)
    return {"pass": name, "off": off, "seconds": seconds, "all_seconds": [run["seconds"] for run in found[case]],
            "peak_mb": peak, "times_slower": seconds / base, "logprob_gap": gaps["logprobs"],
            "ids_equal": None if "ids" not in numbers else bool(torch.equal(numbers["ids"], reference["ids"])),
            "gradient_gap": max((gaps[key] for key in gradients), default=None), "largest_gradient": largest}


def markdown(rows: Sequence[dict]) -> str:
    """The rows as a table."""
    names = ["pass", "off", "seconds", "times slower", "peak MB", "log-probability gap", "gradient gap / largest"]
    return table(names, [[row["pass"], row["off"], f"{row['seconds']:.2f}", f"{row['times_slower']:.2f}",
                          f"{row['peak_mb']:.0f}", f"{row['logprob_gap']:.1e}",
                          "" if row["gradient_gap"] is None else
                          f"{row['gradient_gap'] / row['largest_gradient']:.1e}"] for row in rows])


if __name__ == "__main__":
    main()
