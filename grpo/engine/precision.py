"""--precision auto: bf16 or float32, chosen once per run by timing both on this CPU."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.engine.distributed import Distributed
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.state import read_about
from models.config import PRESETS, Qwen2VLConfig, TextConfig
from models.fast.recomputed import use_recomputed
from models.precision import compute_dtype, head_logits
from models.text import DecoderLayer, masked_attention, rotary

FASTER = 1.2                            # bf16 rounds, so it must be worth it
WIDE = 1024                             # a wider layer is timed in part
FEWEST, MOST, GROWTH = 8, 128, 4        # tokens of a timed pass
PAIRS, SECONDS = 5, 5.0                 # passes of each type, in turns; the longest time that those of a size may take


def choose_precision(config: SFTFlags | GRPOFlags, device: str, world: Distributed, resume: Path | None) -> str:
    """fp32 or bf16 for this run, the same on every rank, and a line that says why.

    A named precision is kept. For `auto` a resumed run keeps its own; else rank 0 measures on a CPU."""
    if config.precision != "auto":
        return config.precision
    if resume is not None:
        choice, why = stored_precision(read_about(resume), device), f"as in {resume}"
    elif device != "cpu":
        choice, why = without_measuring(device), f"on {device} without measuring"
    else:
        times = world.on_rank0(lambda: time_both(text_config(config.model)))
        choice, why = world.texts("" if times is None else "\n".join(decide(*times)))[0].split("\n")
    print(f"precision: {choice}, {why}", flush=True)
    return choice


def decide(fp32: float, bf16: float) -> tuple[str, str]:
    """bf16 if it is FASTER. Units: seconds of one pass. -> choice, reason."""
    choice = "bf16" if fp32 >= FASTER * bf16 else "fp32"
    return choice, (f"because a training pass through a layer of the model takes {1000 * fp32:.3g} ms in fp32 and "
                    f"{1000 * bf16:.3g} ms in bf16 on a core of this CPU: ratio {fp32 / bf16:.2f}, bf16 needs {FASTER}")


def without_measuring(device: str) -> str:
    """What `auto` is where nothing is measured."""
    return "fp32" if compute_dtype(device, "auto") is None else "bf16"


def stored_precision(about: dict[str, Any], device: str) -> str:
    """The precision of a saved state. Versions that did not measure stored `auto`."""
    stored = about["config"]["precision"]
    return without_measuring(device) if stored == "auto" else stored


# ---------------------------------------------------------------- timing

def text_config(model: str) -> TextConfig:
    """The language model's sizes, before its weights are loaded."""
    return (PRESETS["tiny"] if model == "tiny" else Qwen2VLConfig.from_directory(model)).text


def time_both(config: TextConfig) -> tuple[float, float]:
    """Seconds of a training pass through a decoder layer and its share of the output layer, in fp32 and in bf16.

    The passes grow to as many tokens as fit the time: with few of them bf16 mostly converts weights. One thread works,
    and its own time counts, so that other processes do not decide."""
    threads, tokens = torch.get_num_threads(), FEWEST
    layer, head, config = make_layer(config)
    torch.set_num_threads(1)
    try:
        times = time_pairs(layer, head, config, tokens)
        while tokens < MOST and GROWTH * PAIRS * sum(times) < SECONDS:
            tokens *= GROWTH
            times = time_pairs(layer, head, config, tokens)
        return times
    finally:
        torch.set_num_threads(threads)


def make_layer(config: TextConfig) -> tuple[DecoderLayer, Tensor, TextConfig]:
    """One layer in float32, as many rows of the output layer as there are per layer, and the layer's sizes.

    A wide layer is cut to one of its key/value heads with the queries of that head and as large a part of the MLP: its
    products run at the same rate in less time. No global generator is moved."""
    parts = config.num_key_value_heads if config.hidden_size > WIDE else 1
    heads, size = min(config.num_attention_heads // parts, 16), min(config.head_dim, 128)
    config = replace(config, hidden_size=heads * size, num_attention_heads=heads, mrope_section=(size // 2, 0, 0),
                     num_key_value_heads=math.gcd(heads, config.num_key_value_heads // parts),
                     intermediate_size=max(1, min(config.intermediate_size // parts, 8192)))
    with torch.random.fork_rng(devices=[]):
        layer = DecoderLayer(config, 0)
    use_recomputed(layer)
    words = max(1, min(config.vocab_size // max(1, config.num_hidden_layers) // parts, 8192))
    return layer, torch.zeros(words, config.hidden_size, requires_grad=True), config


def time_pairs(layer: DecoderLayer, head: Tensor, config: TextConfig, tokens: int) -> tuple[float, float]:
    """The shortest of PAIRS passes in fp32, and in bf16. Units: seconds."""
    x = torch.randn(1, tokens, config.hidden_size, generator=torch.Generator().manual_seed(0))      # (1, T, D)
    angles = rotary(torch.arange(tokens).expand(3, 1, tokens), config, torch.float32)               # 2 x (1, T, E)
    pairs = [tuple(time_pass(layer, head, x, angles, half) for half in (False, True)) for _ in range(PAIRS)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def time_pass(layer: DecoderLayer, head: Tensor, x: Tensor, angles: tuple[Tensor, Tensor], half: bool) -> float:
    """Seconds of this thread for one forward and backward pass, by autocast if `half`, as in training."""
    before = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = layer(x, *angles, masked_attention(None))                           # (1, T, D)
        answer = head_logits(y[0, ::4], head)                                   # a quarter of the tokens are answers
    answer.logsumexp(-1).sum().backward()
    return time.thread_time() - before
