"""Logits -> the sampling distribution, log-probabilities and entropies, with values from paper."""

import pytest
import torch

from grpo.fast.strips import strip_logprobs
from grpo.logprobs import completion_logprobs, sampling_logits, token_logprobs
from grpo.packing import pack


@pytest.fixture(params=[token_logprobs, strip_logprobs])
def form(request):
    """The plain form and the one in strips of the vocabulary: both have to give the values on paper."""
    return request.param


@pytest.fixture
def score(form):
    """score(logits): every token at one position with the given logits, from a hidden state of one dimension."""
    def of(logits, temperature=1.0, suppressed=()):
        count = len(logits)
        return form(torch.ones(count, 1), torch.tensor(logits)[:, None], torch.arange(count), temperature, suppressed)
    return of


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, [-0.407606, -1.407606, -2.407606]),
                                                       (0.5, [-0.142932, -2.142932, -4.142932])])
def test_temperature_by_hand(score, temperature, expected):
    # T = 1:  ln(e^2 + e + 1) = ln 11.107338 = 2.407606;   T = .5: logits 4 2 0, ln(e^4 + e^2 + 1) = 4.142932
    torch.testing.assert_close(score([2.0, 1.0, 0.0], temperature)[0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_entropy_by_hand(score):
    # T = 1:  p = .665241 .244728 .090031;  .665241 * .407606 + .244728 * 1.407606 + .090031 * 2.407606 = .832396
    # T = .5: p = .866814 .117310 .015876;  .866814 * .142932 + .117310 * 2.142932 + .015876 * 4.142932 = .441057
    assert score([2.0, 1.0, 0.0])[1].tolist() == pytest.approx([0.832396] * 3, abs=1e-5)
    assert score([2.0, 1.0, 0.0], 0.5)[1].tolist() == pytest.approx([0.441057] * 3, abs=1e-5)


def test_suppressed_ids_have_no_probability(score):
    # without token 0 the logits are 1 and 0: ln(e + 1) = 1.313262, so -.313262 and -1.313262
    # entropy .731059 * .313262 + .268941 * 1.313262 = .582203
    logprobs, entropy = score([2.0, 1.0, 0.0], suppressed=(0,))
    assert logprobs[0].exp().item() == 0.0
    assert logprobs[1:].tolist() == pytest.approx([-0.313262, -1.313262], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.582203] * 3, abs=1e-5)
    huge = torch.tensor([300.0, 1.0, 0.0])
    probabilities = sampling_logits(huge, 0.01, (0,)).softmax(-1)
    assert probabilities[0].item() == 0.0 and torch.isfinite(probabilities).all()


def test_suppressed_ids_give_finite_gradients(form):
    head = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logprobs, entropy = form(torch.ones(2, 3), head, torch.tensor([1, 2]), 0.1, (0, 5))
    (logprobs + entropy).sum().backward()
    assert torch.isfinite(head.grad).all() and head.grad[1:5].abs().sum() > 0
    assert not head.grad[[0, 5]].any()


def test_sampling_logits_leaves_its_argument_alone():
    logits = torch.tensor([2.0, 1.0, 0.0])
    sampling_logits(logits, 0.5, (1,))
    assert logits.tolist() == [2.0, 1.0, 0.0]


def test_logits_are_float32_whatever_the_hidden_states_are(form):
    logprobs, entropy = form(torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(5, 4, dtype=torch.bfloat16),
                             torch.tensor([2]))
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-1.609438, abs=1e-6)              # five equal tokens: -ln 5


def test_temperature_reaches_completion_logprobs(make_bigram, make_prompts):
    # the prompts end with a line break, id 198; after it tokens 64 65 66 have logits 2 1 0, the rest nothing
    logits = torch.full((270, 270), -1000.0)
    logits[198, [64, 65, 66]] = torch.tensor([2.0, 1.0, 0.0])
    rows = pack(make_prompts()[1:2], [[torch.tensor([64]), torch.tensor([66])]])
    with torch.no_grad():
        logprobs, entropy = completion_logprobs(make_bigram(logits), rows, 0.5)
    assert logprobs.flatten().tolist() == pytest.approx([-0.142932, -4.142932], abs=1e-5)
    assert entropy.flatten().tolist() == pytest.approx([0.441057] * 2, abs=1e-5)


def test_head_product_is_float32_even_for_bfloat16_weights():
    # logits 1 + 2^-9 and 1: bfloat16 would round both to 1 and say -ln 2 = -.693147; -ln(1 + e^(-2^-9)) = -.692171
    head = torch.tensor([[1.0, 2**-9], [1.0, 0.0]], dtype=torch.bfloat16)
    logprobs, _ = token_logprobs(torch.ones(1, 2, dtype=torch.bfloat16), head, torch.tensor([0]))
    assert logprobs.item() == pytest.approx(-0.692171, abs=1e-6)
