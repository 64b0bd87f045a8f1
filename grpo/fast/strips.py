"""Log-probabilities a strip of the vocabulary at a time: `grpo.logprobs.token_logprobs` in less memory.

The (tokens, vocabulary) matrix is 151,936 wide for the real model. It is made one strip at a time, and made again in
the backward pass.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from grpo.logprobs import NEVER
from models.precision import head_logits

STRIP = 4096  # tokens of the vocabulary scored at once: more are no faster and need more memory


class StripScores(torch.autograd.Function):
    """Log-probability of each target and entropy of its distribution, one strip of the vocabulary after the other.

        log p(t) = l_t - lse,   H = lse - E[l],   dlog p(t) / dl_j = 1[j = t] - p_j,   dH / dl_j = -p_j (log p_j + H)

    Forward keeps only lse and H; backward computes the logits l again. Each strip of the weight's gradient is written
    once. Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> (C,), (C,). Memory: C x strip, whatever V is.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, head_weight: Tensor, targets: Tensor,
                suppressed: tuple[int, ...], strip: int) -> tuple[Tensor, Tensor]:
        top = hidden.new_full((len(hidden),), -1e30)                            # largest logit so far
        total, moment, chosen = (torch.zeros_like(top) for _ in range(3))       # sums of exp(l - top) [x (l - top)]
        for start, logits in strips(hidden, head_weight, suppressed, strip):
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
        ctx.settings = suppressed, strip
        return chosen - lse, entropy

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, for_logprob: Tensor, for_entropy: Tensor) -> tuple:
        hidden, head_weight, targets, lse, entropy = ctx.saved_tensors
        suppressed, strip = ctx.settings
        for_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(head_weight) if ctx.needs_input_grad[1] else None
        for start, logits in strips(hidden, head_weight, suppressed, strip):
            inside, column = in_strip(targets, start, logits)
            logits -= lse[:, None]                                              # (C, <= strip): log p
            slope = logits.exp()
            slope *= (logits + entropy[:, None]).mul_(-for_entropy[:, None]).sub_(for_logprob[:, None])
            slope.scatter_add_(1, column, torch.where(inside, for_logprob, 0.0)[:, None])
            rows = slice(start, start + slope.shape[1])
            if for_hidden is not None:
                for_hidden.addmm_(slope, head_weight[rows].float())
            if for_weight is not None:
                for_weight[rows] = (slope.T @ hidden).to(for_weight.dtype)
        return for_hidden, for_weight, None, None, None


def strips(hidden: Tensor, head_weight: Tensor, suppressed: Sequence[int],
           strip: int) -> Iterator[tuple[int, Tensor]]:
    """First id and sampling logits (C, <= strip) of every strip of the vocabulary."""
    for start in range(0, len(head_weight), strip):
        weight = head_weight[start:start + strip]
        logits = head_logits(hidden, weight)
        for token in suppressed:
            if start <= token < start + len(weight):
                logits[:, token - start] = NEVER
        yield start, logits


def in_strip(targets: Tensor, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which targets lie in the strip, and their column (0 for the others). -> (C,) bool, (C, 1)."""
    column = targets - start
    inside = (column >= 0) & (column < logits.shape[1])
    return inside, torch.where(inside, column, 0)[:, None]


def strip_logprobs(hidden: Tensor, head_weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   suppressed: Sequence[int] = (), strip: int = STRIP) -> tuple[Tensor, Tensor]:
    """log pi(target | hidden) and entropy in nats, in float32 whatever the type of the states.

    Shapes: hidden (C, D), head_weight (V, D), targets (C,) -> logprobs (C,), entropy (C,), float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        scaled = hidden.float() / temperature               # the same as dividing every logit, and much smaller
        return StripScores.apply(scaled, head_weight, targets, tuple(suppressed), strip)
