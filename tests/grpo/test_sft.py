"""The supervised step against the usual definition: cross-entropy with the prompt masked out."""

import math

import pytest
import torch
import torch.nn.functional as F

from grpo.batch import PromptSettings, encode_target
from grpo.config import SFTConfig
from grpo.engine.optimizer import make_optimizer, make_scheduler
from grpo.sft import sft_step

TARGETS = [torch.tensor([40, 41, 42, 258]), torch.tensor([50, 258]), torch.tensor([60, 61, 62, 63, 64, 65, 258])]


def make_config(**changes):
    return SFTConfig(**{"learning_rate": 1e-2, "warmup_steps": 0, "lr_schedule": "constant", "max_grad_norm": 1e9,
                        "micro_batch_tokens": 4096, **changes})


def step(model, prompts, targets, config, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    return sft_step(model, optimizer, make_scheduler(optimizer, config, 100), prompts, targets, config)


def masked_cross_entropy(model, prompts, targets):
    """Mean over all supervised tokens of the batch; label -100 on the prompt, as in every other trainer."""
    logits, labels = [], []
    for prompt, target in zip(prompts, targets, strict=True):
        ids = torch.cat([prompt.input_ids, target])
        logits.append(model(ids[None], None, prompt.pixel_values, prompt.image_grid_thw)[0, :-1])
        labels.append(torch.cat([torch.full((len(prompt.input_ids) - 1,), -100), target]))
    return F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)


@pytest.mark.parametrize("size", [1, 90, 4096])
def test_loss_and_update_equal_masked_cross_entropy(make_model, make_prompts, size):
    model, plain, prompts = make_model(), make_model(), make_prompts()
    expected = masked_cross_entropy(plain, prompts, TARGETS)
    expected.backward()
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    metrics = step(model, prompts, TARGETS, make_config(micro_batch_tokens=size))
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    # 4 + 2 + 7 = 13 supervised tokens
    assert metrics["target_length"] == pytest.approx(13 / 3)
    assert metrics["tokens"] == 13 + sum(len(p.input_ids) for p in prompts)
    for name, p in model.named_parameters():
        gradient = dict(plain.named_parameters())[name].grad
        torch.testing.assert_close(p.detach(), before[name] - 0.01 * gradient, atol=1e-6, rtol=1e-5)


def test_uniform_model_has_the_loss_of_the_vocabulary(make_model, make_prompts):
    model = make_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    metrics = step(model, make_prompts(), TARGETS, make_config())
    assert metrics["loss"] == pytest.approx(5.598422, abs=1e-5)                # ln 270
    assert metrics["entropy"] == pytest.approx(5.598422, abs=1e-5)


def test_loss_counts_tokens_not_examples(make_bigram, make_prompts):
    # after a line break (the prompt's last token) all 270 tokens are alike: ln 270 = 5.598422 for each first token;
    # every later token is certain. Targets of 1 and 4 tokens: 2 * 5.598422 / 5 = 2.239369, not (5.598 + 5.598 / 4) / 2
    logits = torch.zeros(270, 270)
    logits[40, 41], logits[41, 42], logits[42, 258] = 1000.0, 1000.0, 1000.0
    model, prompts = make_bigram(logits), make_prompts()[:2]
    prompts[0] = prompts[1]
    targets = [torch.tensor([258]), torch.tensor([40, 41, 42, 258])]
    for size in (1, 4096):
        metrics = step(model, prompts, targets, make_config(learning_rate=1e-9, micro_batch_tokens=size))
        assert metrics["loss"] == pytest.approx(2.239369, abs=1e-4)


def test_no_input_is_changed(make_model, make_prompts):
    prompts, targets = make_prompts(), [target.clone() for target in TARGETS]
    ids = [p.input_ids.clone() for p in prompts]
    step(make_model(), prompts, targets, make_config())
    assert all(torch.equal(a, b) for a, b in zip(targets, TARGETS, strict=True))
    assert all(torch.equal(p.input_ids, i) for p, i in zip(prompts, ids, strict=True))


def test_autocast_keeps_float32_masters(make_model, make_prompts):
    model, exact = make_model(), make_model()
    low = step(model, make_prompts(), TARGETS, make_config(precision="bf16"))
    high = step(exact, make_prompts(), TARGETS, make_config(precision="fp32"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert low["loss"] == pytest.approx(high["loss"], rel=0.02)
    assert low["grad_norm"] == pytest.approx(high["grad_norm"], rel=0.05)


def test_a_few_steps_overfit_four_examples(make_model, make_prompts, make_examples, processor):
    prompts = make_prompts() + make_prompts()[:1]
    settings = PromptSettings(reasoning=False)
    targets = [encode_target(example, processor, settings) for example in make_examples(4)]
    targets[3] = targets[0]
    model, config = make_model(), make_config(learning_rate=1e-2, max_grad_norm=1.0)
    optimizer = make_optimizer(model, config)
    losses = [step(model, prompts, targets, config, optimizer)["loss"] for _ in range(40)]
    assert losses[0] > 4.0 and losses[-1] < 0.5
    assert all(math.isfinite(loss) for loss in losses)
