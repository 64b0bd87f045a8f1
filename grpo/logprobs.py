"""From hidden states to log-probabilities: the ONE sampling distribution that every pass of the engine shares.

Sampler, old, reference and policy passes all divide by the same temperature and suppress the same ids, so a token's
log-probability means the same in each of them. The (tokens, vocabulary) matrix is 151,936 wide for the real model: it
is made for completion positions only, a strip of the vocabulary at a time, and made again in the backward pass.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.batch import PackedRows
from grpo.fast.attention import branch_attention
from models.qwen2_vl import Qwen2VL

STRIP = 4096  # tokens of the vocabulary scored at once: more are no faster and need more memory
NEVER = -1e9  # a suppressed logit: exp gives exactly 0, and 0 * NEVER stays 0 in the entropy, which -inf would not


def compute_dtype(device: str, precision: str) -> torch.dtype | None:
    """bf16 when asked for (`auto`: on cuda), else None: whatever the weights are in."""
    wanted = precision == "bf16" or (precision == "auto" and device == "cuda")
    return torch.bfloat16 if wanted else None


def autocast(model: Qwen2VL, precision: str) -> torch.autocast:
    """bf16 compute over float32 masters, when that is the precision."""
    device = model.head_weight.device.type
    return torch.autocast(device, torch.bfloat16, enabled=compute_dtype(device, precision) is not None)


def head_logits(hidden: Tensor, head_weight: Tensor) -> Tensor:
    """Scores of the vocabulary, in float32 whatever the rest computes in: rounding them to bf16 would set the sampler's
    log-probabilities 0.01 and more apart from the trainer's. Shapes: (B, D), (V, D) -> (B, V)."""
    with torch.autocast(hidden.device.type, enabled=False):
        if hidden.is_cuda and hidden.dtype == head_weight.dtype == torch.bfloat16:
            return torch.mm(hidden, head_weight.T, out_dtype=torch.float32)    # without a float32 copy of the head
        return F.linear(hidden.float(), head_weight.float())


def sampling_logits(logits: Tensor, temperature: float, suppressed: Sequence[int] | Tensor) -> Tensor:
    """Logits of the distribution that tokens are drawn from: float32, divided by T, suppressed ids at NEVER.

    Shapes: logits (..., V) -> (..., V).
    Units:  temperature > 0. Temperature 0 (greedy) is the caller's business: it reports log-probabilities at T = 1.
    """
    logits = logits.float() / temperature
    return logits.index_fill(-1, torch.as_tensor(suppressed, dtype=torch.long, device=logits.device), NEVER)


class StripScores(torch.autograd.Function):
    """Log-probability of each target and entropy of its distribution, one strip of the vocabulary after the other.

        log p(t) = l_t - lse,   H = lse - E[l],   dlog p(t) / dl_j = 1[j = t] - p_j,   dH / dl_j = -p_j (log p_j + H)

    Forward keeps lse and H alone; backward makes the logits l again. A strip's part of the weight's gradient is written
    once. Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> (C,), (C,). Memory: C x strip, whatever V is.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, head_weight: Tensor, targets: Tensor,
                temperature: float, suppressed: tuple[int, ...], strip: int) -> tuple[Tensor, Tensor]:
        top = hidden.new_full((len(hidden),), -1e30)                            # largest logit so far
        total, moment, chosen = (torch.zeros_like(top) for _ in range(3))       # sums of exp(l - top) [x (l - top)]
        for start, logits in strips(hidden, head_weight, temperature, suppressed, strip):
            inside, column = in_strip(targets, start, logits)
            chosen = torch.where(inside, logits.gather(1, column)[:, 0], chosen)
            before, top = top, torch.maximum(top, logits.amax(1))
            shift = (before - top).exp()
            logits -= top[:, None]
            weights = logits.exp()
            moment = shift * (moment + (before - top) * total) + logits.mul_(weights).sum(1)
            total = shift * total + weights.sum(1)
        lse, entropy = top + total.log(), total.log() - moment / total
        ctx.save_for_backward(hidden, head_weight, targets, lse, entropy)
        ctx.settings = temperature, suppressed, strip
        return chosen - lse, entropy

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, for_logprob: Tensor, for_entropy: Tensor) -> tuple:
        hidden, head_weight, targets, lse, entropy = ctx.saved_tensors
        temperature, suppressed, strip = ctx.settings
        for_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(head_weight) if ctx.needs_input_grad[1] else None
        for start, logits in strips(hidden, head_weight, temperature, suppressed, strip):
            inside, column = in_strip(targets, start, logits)
            logits -= lse[:, None]                                              # (C, <= strip): log p
            slope = logits.exp()
            slope *= (logits + entropy[:, None]).mul_(-for_entropy[:, None]).sub_(for_logprob[:, None])
            slope.scatter_add_(1, column, torch.where(inside, for_logprob, 0.0)[:, None])
            slope /= temperature
            rows = slice(start, start + slope.shape[1])
            if for_hidden is not None:
                for_hidden += slope @ head_weight[rows].float()
            if for_weight is not None:
                for_weight[rows] = (slope.T @ hidden).to(for_weight.dtype)
        return for_hidden, for_weight, None, None, None, None


def strips(hidden: Tensor, head_weight: Tensor, temperature: float, suppressed: Sequence[int],
           strip: int) -> Iterator[tuple[int, Tensor]]:
    """First id and sampling logits (C, <= strip) of every strip of the vocabulary."""
    for start in range(0, len(head_weight), strip):
        weight = head_weight[start:start + strip]
        never = [token - start for token in suppressed if start <= token < start + len(weight)]
        yield start, sampling_logits(head_logits(hidden, weight), temperature, never)


def in_strip(targets: Tensor, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets lie in the strip, and their column (0 for the others). -> (C,) bool, (C, 1)."""
    column = targets - start
    inside = (column >= 0) & (column < logits.shape[1])
    return inside, torch.where(inside, column, 0)[:, None]


def token_logprobs(hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   suppressed: Sequence[int] = (), strip: int = STRIP) -> tuple[Tensor, Tensor]:
    """log pi(target | hidden) and entropy in nats, in float32 whatever the states come in.

    Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> logprobs (C,), entropy (C,), float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return StripScores.apply(hidden.float(), head_weight, targets, temperature, tuple(suppressed), strip)


def completion_states(model: Qwen2VL, rows: PackedRows) -> Tensor:
    """Hidden state BEFORE every completion token: one forward of picture, prompt and all branches. -> (C, D)."""
    features = rows.image_features
    if rows.pixel_values is not None:
        features = model.image_features(rows.pixel_values, rows.image_grid_thw)
    embeds = model.embed(rows.input_ids, features)                              # (R, T, D)
    hidden = model.hidden_states(embeds, rows.position_ids, branch_attention(rows))
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
