"""Seconds of one batch of rollouts, ours and transformers' `generate` in turns.

    python benchmarks/rollout.py --model DIR --prompts 2 --group-size 8 --new-tokens 64 --image 448x252 --dtype bf16 \
        --repeats 9 --against transformers --peer-python PEER/bin/python

DIR: see benchmarks/checkpoints.py; the peer's packages: benchmarks/requirements.txt. Both sides get the same
checkpoint, pictures and texts, already encoded, and write exactly --new-tokens tokens per row. Tokens and patches are
counted in the warm-up, which always decodes eagerly: a captured graph calls no Python. The last line printed is one
JSON object; docs/performance.md explains its fields.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.floor import Shape, rollout_floor  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    DTYPES,
    Peer,
    Phases,
    ceiling,
    choose_device,
    interleaved,
    machine_record,
    parse_image,
    peak_mb,
    peak_name,
    reset_peak,
    summary,
    write_record,
)
from data.dataset import open_image  # noqa: E402
from data.example import Example  # noqa: E402
from grpo.engine.prompts import PromptSettings, encode_example, request_text  # noqa: E402
from grpo.fast.sampler import Sampler  # noqa: E402
from grpo.sampling import uniform_table  # noqa: E402
from models import load_model, load_processor  # noqa: E402
from models.processor import Processor  # noqa: E402
from models.prompt import Prompt  # noqa: E402
from models.qwen2_vl import Qwen2VL  # noqa: E402
from models.text import TextModel  # noqa: E402
from models.vision import VisionModel  # noqa: E402
from rewards import Decision  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the record."""
    parser = common_flags(__doc__)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--against", choices=("transformers",))
    flags = parser.parse_args(arguments)
    device = choose_device(flags.device, flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        examples = make_examples(flags.prompts, parse_image(flags.image), Path(folder))
        record = compare(flags, examples, device)
    write_record(record, flags.output)


def batch_flags(description: str) -> argparse.ArgumentParser:
    """The flags that say what is computed: rollout.py, step.py and factors.py share them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory in hub layout")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64, help="of every row: the length is forced")
    parser.add_argument("--image", default="448x252", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--prompt-style", choices=("compact", "alphadrive"), default="compact")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of either side; 0: torch's choice")
    parser.add_argument("--output", type=Path, help="write the JSON object to this file too")
    return parser


def common_flags(description: str) -> argparse.ArgumentParser:
    """The flags that rollout.py and step.py share."""
    parser = batch_flags(description)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count; each side runs once per round")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--decode", choices=("eager", "graph", "compile"), default="eager", help="our decode step")
    parser.add_argument("--peer-python", default=sys.executable, help="python with benchmarks/requirements.txt")
    return parser


# ---------------------------------------------------------------- the batch

def make_examples(count: int, size: tuple[int, int], folder: Path) -> list[Example]:
    """Driving requests that differ in speed, each with a picture of its own, saved as PNG for both sides."""
    examples = []
    for i in range(count):
        blocks = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        path = folder / f"{i}.png"
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path)
        examples.append(Example(id=str(i), image=str(path), speed=1.5 + i, decision=Decision("KEEP", "STRAIGHT"),
                                navigation={"100m": "Straight", "200m": "Turn left", "300m": "Turn right"}))
    return examples


def encode(examples: Sequence[Example], processor: Processor, model: Qwen2VL, style: str,
           new_tokens: int) -> list[Prompt]:
    """Open the pictures and encode the requests."""
    settings = PromptSettings(style, max_new_tokens=new_tokens)
    return [encode_example(example, open_image(example), processor, model.config, settings) for example in examples]


def shape_of(prompts: Sequence[Prompt], group_size: int, new_tokens: int) -> Shape:
    """The sizes that the floor is computed from."""
    patches = [int(n) for prompt in prompts for n in prompt.image_grid_thw.prod(1)]
    return Shape([len(prompt.input_ids) for prompt in prompts], patches, group_size, new_tokens)


def peer_settings(flags: argparse.Namespace, examples: Sequence[Example], device: torch.device,
                  suppressed: Sequence[int], **more: object) -> dict[str, Any]:
    """What the peer's process is told; pictures go by file."""
    settings = PromptSettings(flags.prompt_style, max_new_tokens=flags.new_tokens)
    requests = [{"text": request_text(example, settings), "image": example.image} for example in examples]
    return {"model": str(flags.model.resolve()), "requests": requests, "group_size": flags.group_size,
            "new_tokens": flags.new_tokens, "threads": flags.threads, "device": device.type,
            "suppressed": list(suppressed), **more}


# ---------------------------------------------------------------- our side

def new_sampler(model: Qwen2VL, processor: Processor, new_tokens: int, decode: str,
                dtype: torch.dtype | None = None) -> Sampler:
    """A Sampler whose completions all have `new_tokens` tokens; the one place that knows its switches."""
    return Sampler(model, processor, max_new_tokens=new_tokens, min_new_tokens=new_tokens, dtype=dtype, decode=decode)


def count_work(phases: Phases) -> None:
    """Count what goes through any model of ours: policy, reference, or the sampler's own copy."""
    phases.count(TextModel, "forward", "tokens", lambda _self, embeds, *_: embeds.shape[:2].numel())
    phases.count(VisionModel, "forward", "patches", lambda _self, pixels, *_: len(pixels))


def time_rollout(phases: Phases) -> None:
    """Prefill and its vision tower apart from the rest, which is decoding."""
    phases.wrap(Sampler, "prefill", "prefill")
    phases.wrap(VisionModel, "forward", "vision")


class OurRollout:
    """`run()` samples the batch once and says what it took."""

    def __init__(self, flags: argparse.Namespace, examples: Sequence[Example], device: torch.device) -> None:
        self.flags, self.device, self.turn = flags, device, 0
        self.model = load_model(flags.model, dtype=DTYPES[flags.dtype], device=device).eval()
        self.processor = load_processor(flags.model)
        self.prompts = encode(examples, self.processor, self.model, flags.prompt_style, flags.new_tokens)
        self.sampler = new_sampler(self.model, self.processor, flags.new_tokens, flags.decode, DTYPES[flags.dtype])

    def warm_up(self) -> dict[str, Any]:
        """Run once with counters, decoding eagerly, and once as in the measurement. -> tokens and patches by phase."""
        plain = new_sampler(self.model, self.processor, self.flags.new_tokens, "eager", DTYPES[self.flags.dtype])
        with Phases(self.device, rest="decode") as phases:
            count_work(phases)
            time_rollout(phases)                            # outside the counters: they book on its phases
            phases.start()
            self.sample(plain)
            work = phases.stop()["work"]
        del plain
        self.run()
        reset_peak(self.device)
        return work

    def run(self) -> dict[str, Any]:
        with Phases(self.device, rest="decode") as phases:
            time_rollout(phases)
            phases.start()
            self.sample(self.sampler)
            return phases.stop()

    def sample(self, sampler: Sampler) -> Tensor:
        """One batch; the random numbers change from turn to turn, the amount of work does not."""
        self.turn += 1
        uniforms = uniform_table(0, self.turn, range(len(self.prompts)), self.flags.group_size, self.flags.new_tokens)
        ids = sampler.sample(self.prompts, uniforms).completion_ids
        if ids.shape != (len(self.prompts) * self.flags.group_size, self.flags.new_tokens):
            raise RuntimeError(f"completions of shape {tuple(ids.shape)}: the forced length was not kept")
        return ids


# ---------------------------------------------------------------- comparison

def compare(flags: argparse.Namespace, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """Ours alone, or in turns with the peer."""
    ours = OurRollout(flags, examples, device)
    shape = shape_of(ours.prompts, flags.group_size, flags.new_tokens)
    settings = peer_settings(flags, examples, device, ours.model.config.suppressed_token_ids, dtype=flags.dtype)
    found = in_turns(ours, flags, settings, device)
    limits = ceiling(device, DTYPES[flags.dtype])
    floor = rollout_floor(ours.model.config, shape, DTYPES[flags.dtype].itemsize, limits)
    return {"benchmark": "rollout", **machine_record(device), "dtype": flags.dtype, "decode": flags.decode,
            "shapes": shapes(flags, shape, ours.model), **report(found, shape, floor, device), "ceiling": limits}


def in_turns(ours: Any, flags: argparse.Namespace, settings: Mapping[str, Any],  # noqa: ANN401
             device: torch.device) -> dict[str, Any]:
    """Warm up, repeat in turns, read the peaks. `ours` has warm_up() and run(); the peer's process is its own."""
    work = ours.warm_up()
    sides: dict[str, Callable[[], dict]] = {"ours": ours.run}
    peer = Peer(flags.peer_python, flags.against, settings) if flags.against else None
    if peer:
        peer.ask("warm up")
        sides["peer"] = lambda: peer.ask("run")
    try:
        found = interleaved(sides, flags.repeats, [os.getpid(), *([peer.process.pid] if peer else [])])
        for result in found["results"]["ours"]:
            result["work"] = work
        found["peaks"] = {"ours": peak_mb(device), **({"peer": peer.ask("peak")["peak_mb"]} if peer else {})}
        found["about_peer"] = peer.about if peer else None
    finally:
        if peer:
            peer.close()
    return found


def shapes(flags: argparse.Namespace, shape: Shape, model: Qwen2VL) -> dict[str, Any]:
    """Everything about the batch and the model that a time depends on."""
    return {"prompts": flags.prompts, "group_size": flags.group_size, "new_tokens": flags.new_tokens,
            "image": flags.image, "prompt_style": flags.prompt_style, "prompt_tokens": list(shape.prompt_tokens),
            "patches": list(shape.patches), "parameters": sum(p.numel() for p in model.parameters()),
            "vocabulary": model.config.text.vocab_size}


def report(found: Mapping[str, Any], shape: Shape, floor: Mapping[str, float], device: torch.device) -> dict[str, Any]:
    """Figures of our side, the peer's same figures under `peer`, and how many times better ours are under `ratio`."""
    sides = {}
    for name, results in found["results"].items():
        side = summary(results)
        side |= {"tokens_per_second": shape.rows * shape.new_tokens / side["seconds"],
                 peak_name(device): found["peaks"][name], "share_of_ceiling": sum(floor.values()) / side["seconds"]}
        sides[name] = side
    record = {**sides["ours"], "floor_seconds": dict(floor),
              **{name: found[name] for name in ("repetitions", "dropped", "clean", "watched")}}
    if "peer" in sides:
        ours, peer = sides["ours"], sides["peer"]
        record |= {"peer": {**found["about_peer"], **peer},
                   "ratio": {"tokens_per_second": peer["seconds"] / ours["seconds"],
                             "memory": ours[peak_name(device)] / peer[peak_name(device)]}}
    return record


if __name__ == "__main__":
    main()
