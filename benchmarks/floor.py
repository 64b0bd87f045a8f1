"""The least work that a rollout or a GRPO step needs, and the least time for it on the measured machine.

Counted once per picture and once per prompt, whatever the group size, without padding; a multiply-add is 2 FLOP, a
backward pass twice its forward one. The same floor is held against us and against the peers, so that doing needless
work shows up as a lower share of the ceiling, not as a higher rate.

Every layer counts for every token. Nothing reads what the last layer's MLP computes for a prompt's tokens, so a pass
needs 2 to 3 % less, prefill 7 %.

    seconds >= FLOP / GEMM rate                                 for prefill, reference and training passes
    seconds >= max(bytes / bandwidth, FLOP / GEMM rate)         for decoding: weights and keys and values, every step
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.config import Qwen2VLConfig, TextConfig, VisionConfig


@dataclass(frozen=True)
class Shape:
    """One batch: tokens of each prompt, patches of each picture, samples of each prompt, tokens of each sample."""

    prompt_tokens: Sequence[int]
    patches: Sequence[int]
    group_size: int
    new_tokens: int

    @property
    def rows(self) -> int:
        return len(self.prompt_tokens) * self.group_size


def matrix_parameters(text: TextConfig) -> int:
    """Numbers in the decoder layers' matrices, which every token meets once."""
    heads = text.head_dim * (text.num_attention_heads + 2 * text.num_key_value_heads)
    attention = text.hidden_size * heads + text.num_attention_heads * text.head_dim * text.hidden_size
    return text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)


def text_flop(text: TextConfig, tokens: float, pairs: float) -> float:
    """Decoder layers: `tokens` through the matrices, `pairs` of a query and a key it may see (scores and values)."""
    per_pair = 4 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    return 2 * matrix_parameters(text) * tokens + per_pair * pairs


def head_flop(text: TextConfig, positions: int) -> float:
    """Scores of the whole vocabulary at some positions."""
    return 2 * text.hidden_size * text.vocab_size * positions


def vision_flop(vision: VisionConfig, patches: Sequence[int]) -> float:
    """Patch embedding, blocks (every patch sees every other of its picture) and merger."""
    d, joined = vision.embed_dim, vision.embed_dim * vision.spatial_merge_size**2
    block = 4 * d * d + 2 * int(d * vision.mlp_ratio) * d
    merger = joined * (joined + vision.hidden_size) / vision.spatial_merge_size**2
    per_patch = vision.patch_dim * d + vision.depth * block + merger
    return sum(2 * per_patch * n + 4 * d * vision.depth * n * n for n in patches)


def prefill_flop(config: Qwen2VLConfig, shape: Shape) -> float:
    """Pictures and prompts once, the head at each prompt's end."""
    pairs = sum(n * (n + 1) / 2 for n in shape.prompt_tokens)
    return (vision_flop(config.vision, shape.patches) + text_flop(config.text, sum(shape.prompt_tokens), pairs)
            + head_flop(config.text, len(shape.prompt_tokens)))


def decode_flop(config: Qwen2VLConfig, shape: Shape) -> float:
    """All tokens but the first of every row; token n sees its prompt and n of its own."""
    steps = shape.new_tokens - 1
    pairs = sum(shape.group_size * (n * steps + steps * (steps + 1) / 2) for n in shape.prompt_tokens)
    return text_flop(config.text, shape.rows * steps, pairs) + head_flop(config.text, shape.rows * steps)


def decode_bytes(config: Qwen2VLConfig, shape: Shape, bytes_each: int) -> float:
    """Read by all decode steps: every weight once a step, each prompt's keys and values once, each sample's own."""
    text, steps = config.text, shape.new_tokens - 1
    weights = matrix_parameters(text) + text.hidden_size * text.vocab_size
    kv_token = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers
    own = shape.rows * steps * (steps + 1) / 2
    return bytes_each * (steps * weights + kv_token * (steps * sum(shape.prompt_tokens) + own))


def scoring_flop(config: Qwen2VLConfig, shape: Shape, vision: bool) -> float:
    """One forward pass over prompts and all completions, the head at completion positions; `vision`: pictures too."""
    n, own = shape.new_tokens, shape.rows * shape.new_tokens
    pairs = sum(p * (p + 1) / 2 + shape.group_size * (n * p + n * (n + 1) / 2) for p in shape.prompt_tokens)
    return (text_flop(config.text, sum(shape.prompt_tokens) + own, pairs) + head_flop(config.text, own)
            + (vision_flop(config.vision, shape.patches) if vision else 0))


def rollout_floor(config: Qwen2VLConfig, shape: Shape, bytes_each: int, ceiling: Mapping[str, float]) -> dict:
    """Least seconds of a rollout, by phase."""
    gemm, bandwidth = ceiling["gemm_flops"], max(ceiling["copy_bytes_s"], ceiling["read_bytes_s"])
    decode = max(decode_bytes(config, shape, bytes_each) / bandwidth, decode_flop(config, shape) / gemm)
    return {"prefill": prefill_flop(config, shape) / gemm, "decode": decode}


def step_floor(config: Qwen2VLConfig, shape: Shape, bytes_each: int, ceiling: Mapping[str, float], reference: bool,
               vision_trained: bool, base_trained: bool = True) -> dict:
    """Least seconds of a GRPO step, by phase; a frozen vision tower has done its work in the rollout already.

    Under adapters the frozen base needs no gradient of its own, so backward costs one forward pass, not two."""
    one_pass = scoring_flop(config, shape, vision_trained) / ceiling["gemm_flops"]
    return {**rollout_floor(config, shape, bytes_each, ceiling), "reference": one_pass * reference,
            "policy": (3 if base_trained else 2) * one_pass}
