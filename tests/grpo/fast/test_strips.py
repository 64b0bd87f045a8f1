"""Scores in strips of the vocabulary against the plain form: values and gradients, whatever the strip."""

import pytest
import torch

from grpo.fast.strips import strip_logprobs
from grpo.logprobs import token_logprobs


@pytest.mark.parametrize("strip", [1, 3, 10, 1024])
@pytest.mark.parametrize("suppressed", [(), (3,), (0, 11)])
def test_strips_equal_the_plain_form(strip, suppressed):
    generator = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(10, 8, generator=generator), torch.randn(12, 8, generator=generator)
    targets, weights = torch.randint(0, 12, (10,), generator=generator), torch.randn(2, 10, generator=generator)

    def run(form, *size):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        logprobs, entropy = form(h, w, targets, 0.8, suppressed, *size)
        (weights[0] * logprobs.clamp(min=-100) + weights[1] * entropy).sum().backward()
        return logprobs.detach(), entropy.detach(), h.grad, w.grad
    for got, expected in zip(run(strip_logprobs, strip), run(token_logprobs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
