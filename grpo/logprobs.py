"""From hidden states to log-probabilities: the ONE sampling distribution that every pass of the engine shares.

Sampler, old, reference and policy passes all call `sampling_logits`, so a token's log-probability means the same in
each of them. The (tokens, vocabulary) matrix is 151,936 wide for the real model: it is made for completion positions
only, a chunk at a time, and made again in the backward pass instead of being kept.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.batch import PackedRows
from models.qwen2_vl import Qwen2VL
from models.text import masked_attention

NEVER = -1e9  # a suppressed logit: exp gives exactly 0, and 0 * NEVER stays 0 in the entropy, which -inf would not


def autocast(model: Qwen2VL, precision: str) -> torch.autocast:
    """bf16 compute over float32 masters when asked for (`auto`: on cuda)."""
    device = model.head_weight.device.type
    enabled = precision == "bf16" or (precision == "auto" and device == "cuda")
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


def head_logits(hidden: Tensor, head_weight: Tensor) -> Tensor:
    """Scores of the vocabulary, in float32 whatever the rest computes in: rounding them to bf16 would set the sampler's
    log-probabilities 0.01 and more apart from the trainer's. Shapes: (..., D), (V, D) -> (..., V)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), head_weight.float())


def sampling_logits(logits: Tensor, temperature: float, suppressed: Sequence[int]) -> Tensor:
    """Logits of the distribution that tokens are drawn from: float32, divided by T, suppressed ids at NEVER.

    Shapes: logits (..., V) -> (..., V).
    Units:  temperature > 0. Temperature 0 (greedy) is the caller's business: it reports log-probabilities at T = 1.
    """
    logits = logits.float() / temperature
    return logits.index_fill(-1, torch.tensor(suppressed, device=logits.device), NEVER) if suppressed else logits


def score_chunk(hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float,
                suppressed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution. Shapes: (C, D), (V, D), (C,) -> (C,), (C,)."""
    logits = head_logits(hidden, head_weight)                                  # (C, V)
    logprobs = sampling_logits(logits, temperature, suppressed).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)                             # (C,)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   suppressed: Sequence[int] = (), chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """log pi(target | hidden) and entropy in nats, `chunk` positions at a time, recomputed in backward.

    Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> logprobs (C,), entropy (C,), float32.
    """
    parts = [checkpoint(score_chunk, h, head_weight, t, temperature, tuple(suppressed), use_reentrant=False)
             for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def completion_states(model: Qwen2VL, rows: PackedRows) -> Tensor:
    """Hidden state BEFORE every completion token: one forward of picture, prompt and all branches. -> (C, D)."""
    features = None if rows.pixel_values is None else model.image_features(rows.pixel_values, rows.image_grid_thw)
    embeds = model.embed(rows.input_ids, features)                              # (R, T, D)
    hidden = model.hidden_states(embeds, rows.position_ids, masked_attention(rows.attention()))
    return hidden.flatten(0, 1).index_select(0, rows.predictors)                # (C, D), one per completion token


def per_completion(values: Tensor, rows: PackedRows) -> Tensor:
    """One value per completion token (C,) -> (B, N), 0 where there is no token."""
    return torch.zeros(rows.completion_mask.shape, device=values.device).masked_scatter(rows.completion_mask, values)


def completion_logprobs(model: Qwen2VL, rows: PackedRows, temperature: float = 1.0, suppressed: Sequence[int] = (),
                        states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Score every completion of some packed rows; `states` are theirs if they are known already.

    Shapes: -> logprobs (B, N), entropy (B, N), float32; 0 where rows.completion_mask is False. B counts branches.
    """
    states = completion_states(model, rows) if states is None else states
    logprobs, entropy = token_logprobs(states, model.head_weight, rows.targets, temperature, suppressed)
    return per_completion(logprobs, rows), per_completion(entropy, rows)
