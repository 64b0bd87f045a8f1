"""From hidden states to log-probabilities: ONE sampling distribution, shared by every pass.

Sampler, old, reference and policy passes divide by the same temperature and suppress the same ids.
`Kernels` names the two computations that have a faster form: the plain ones below define the
numbers, grpo/fast/ computes the same numbers in less time and memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.packing import PackedRows
from models.precision import head_logits
from models.qwen2_vl import Qwen2VL
from models.text import Attend, masked_attention

NEVER = -1e9  # a suppressed logit: exp gives 0, and 0 * NEVER is 0 in the entropy, unlike 0 * -inf


def sampling_logits(logits: Tensor, temperature: float,
                    suppressed: Sequence[int] | Tensor) -> Tensor:
    """Logits of the sampling distribution: float32, divided by T, suppressed ids at NEVER.

    Shapes: logits (..., V) -> (..., V). For temperature 0 (greedy) the caller passes 1."""
    ids = torch.as_tensor(suppressed, dtype=torch.long).to(logits.device, non_blocking=True)
    return (logits.float() / temperature).index_fill_(-1, ids, NEVER)


def token_logprobs(hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   suppressed: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """log pi(target | hidden), and the entropy of pi(. | hidden) in nats.

    Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> logprobs, entropy (C,), float32."""
    logits = sampling_logits(head_logits(hidden, head_weight), temperature, suppressed)
    logprobs = logits.log_softmax(-1)                                           # (C, V)
    entropy = -(logprobs.exp() * logprobs).sum(-1)                              # (C,)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def dense_attention(rows: PackedRows) -> Attend:
    """Attention over whole rows under the mask that defines packing."""
    return masked_attention(rows.attention())


def completion_states(model: Qwen2VL, rows: PackedRows,
                      attention: Callable[[PackedRows], Attend] = dense_attention) -> Tensor:
    """Hidden state BEFORE every completion token, from one forward pass of the rows. -> (C, D)."""
    features = rows.image_features
    if rows.pixel_values is not None:
        features = model.image_features(rows.pixel_values, rows.image_grid_thw)
    embeds = model.embed(rows.input_ids, features)                              # (R, T, D)
    return model.hidden_states(embeds, rows.position_ids, attention(rows), rows.predictors)


@dataclass(frozen=True)
class Kernels:
    """How hidden states and log-probabilities are computed; any choice gives the same numbers."""

    states: Callable[[Qwen2VL, PackedRows], Tensor] = completion_states
    score: Callable[..., tuple[Tensor, Tensor]] = token_logprobs


PLAIN = Kernels()


def completion_logprobs(model: Qwen2VL, rows: PackedRows, temperature: float = 1.0,
                        suppressed: Sequence[int] = (), states: Tensor | None = None,
                        kernels: Kernels = PLAIN) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every completion of some rows; `states` are theirs if already computed.

    Shapes: -> logprobs, entropy (B, N), float32; 0 where rows.completion_mask is False."""
    states = kernels.states(model, rows) if states is None else states
    logprobs, entropy = kernels.score(states, model.head_weight, rows.targets, temperature,
                                      suppressed)
    return per_completion(logprobs, rows), per_completion(entropy, rows)


def per_completion(values: Tensor, rows: PackedRows) -> Tensor:
    """One value per completion token (C,) -> (B, N), 0 where there is no token."""
    empty = torch.zeros(rows.completion_mask.numel(), device=values.device)
    return empty.index_copy(0, rows.cells, values).view_as(rows.completion_mask)    # no wait
