"""Packing prompts and completions: the packed row must equal the plain batch, position by position."""

from dataclasses import replace

import pytest
import torch

from grpo.engine.features import FeatureCache
from grpo.engine.flags import GRPOFlags
from grpo.engine.memory import workload
from grpo.fast.sampler import Sampler
from grpo.logprobs import completion_logprobs
from grpo.losses import policy_loss
from grpo.packing import micro_batches, pack
from grpo.sampling import PlainSampler, uniform_table
from models.prompt import Prompt, make_prompt


def plain_logprobs(model, prompts, completions):
    """Every completion as a full sequence of its own, right-padded into one batch, through the model's forward.

    Written without anything of grpo/, so that it is a reference: list of (N,) log-probabilities, one per completion."""
    rows = [(p, ids) for p, group in zip(prompts, completions, strict=True) for ids in group]
    sequences = [torch.cat([p.input_ids, ids]) for p, ids in rows]
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=7)
    attention_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
    pixels = [p.pixel_values for p, _ in rows if p.pixel_values is not None]
    grids = [p.image_grid_thw for p, _ in rows if p.pixel_values is not None]
    logits = model(input_ids, attention_mask, torch.cat(pixels) if pixels else None,
                   torch.cat(grids) if grids else None)
    logprobs = logits.log_softmax(-1)
    return [torch.stack([logprobs[row, len(p.input_ids) - 1 + t, token] for t, token in enumerate(ids)])
            if len(ids) else torch.zeros(0) for row, (p, ids) in enumerate(rows)]


def random_completions(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(0, 256, (length,), generator=generator) for length in group] for group in counts]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lengths", [[[4], [1], [6]], [[4, 0, 2], [5, 3, 1], [1, 7, 6]]])
def test_packed_row_equals_plain_batch(make_model, make_prompts, lengths, tied):
    model, prompts, completions = make_model(tied=tied), make_prompts(), random_completions(lengths)
    flat_lengths = [n for group in lengths for n in group]
    advantages = torch.tensor([1.0, -0.5, 0.25, -1.0, 2.0, 0.75, -0.25, 0.5, -2.0])[:len(flat_lengths)]

    rows = pack(prompts, completions)
    packed, _ = completion_logprobs(model, rows)
    # ratio 1: the GRPO loss is the mean over non-empty rows of -A * mean over the row of exp(lp - lp.detach())
    packed_loss, _ = policy_loss(packed, packed.detach() + 0.05, advantages, rows.completion_mask, "grpo")
    packed_grads = gradients(model, packed_loss)

    plain = plain_logprobs(model, prompts, completions)
    terms = [-(a * (lp - lp.detach() - 0.05).exp()).mean() for a, lp in zip(advantages, plain, strict=True) if len(lp)]
    plain_loss = sum(terms) / len(terms)
    plain_grads = gradients(model, plain_loss)

    for row, expected in enumerate(plain):
        torch.testing.assert_close(packed[row, :len(expected)], expected, atol=1e-5, rtol=0)
        assert not packed[row, len(expected):].any()
    assert packed_loss.item() == pytest.approx(plain_loss.item(), abs=1e-6)
    assert packed_grads.keys() == plain_grads.keys()
    size = torch.cat([g.flatten() for g in plain_grads.values()]).norm()
    assert size > 0.01
    for name, gradient in plain_grads.items():
        assert (packed_grads[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * size, name


def test_gradient_checkpointing_changes_nothing(make_model, make_prompts):
    model, prompts, completions = make_model(), make_prompts(), random_completions([[4, 2], [3, 5], [1, 2]])
    results = []
    for model.model.gradient_checkpointing in (False, True):
        logprobs, _ = completion_logprobs(model, pack(prompts, completions))
        results.append((logprobs.detach(), gradients(model, logprobs.sum())))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-6, rtol=0)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=1e-5, rtol=1e-5)


def test_siblings_are_invisible(make_model, make_prompts):
    model, prompts = make_model(), make_prompts()
    before = random_completions([[4, 5, 2], [3, 3, 3], [2, 6, 1]])
    changed = [[ids.clone() for ids in group] for group in before]
    changed[0][0], changed[1][2] = (changed[0][0] + 101) % 256, (changed[1][2] + 57) % 256
    with torch.no_grad():
        one, _ = completion_logprobs(model, pack(prompts, before))
        two, _ = completion_logprobs(model, pack(prompts, changed))
    differs = (one - two).abs().amax(1) > 1e-6
    assert differs.tolist() == [True, False, False, False, False, True, False, False, False]


def test_row_neighbours_and_padding_do_not_matter(make_model, make_prompts):
    model, prompts, completions = make_model(), make_prompts(), random_completions([[4, 5], [3, 3], [2, 6]])
    with torch.no_grad():
        together, _ = completion_logprobs(model, pack(prompts, completions))
        for i in range(3):
            alone, _ = completion_logprobs(model, pack(prompts[i:i + 1], completions[i:i + 1], pad_id=99))
            torch.testing.assert_close(together[2 * i:2 * i + 2, :alone.shape[1]], alone, atol=1e-5, rtol=0)


def test_prompt_tokens_are_never_masked_by_their_id(make_model, micro_config):
    # <|endoftext|> = 256 is the pad id and 0 is pack's own filler; both are real tokens when they stand in a prompt
    model, completion = make_model(), [[torch.tensor([40, 41])]]

    def score(ids):
        prompt = make_prompt(ids, torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.long), micro_config)
        return completion_logprobs(model, pack([prompt], completion))[0][0], prompt
    with torch.no_grad():
        for special in (256, 258, 0):
            packed, prompt = score([60, special, 61, 62])
            torch.testing.assert_close(packed, plain_logprobs(model, [prompt], completion)[0], atol=1e-5, rtol=0)
            assert (packed - score([60, 63, 61, 62])[0]).abs().max() > 1e-3          # it is seen
            assert (packed - score([60, 61, 62])[0]).abs().max() > 1e-3              # and takes a position


def picture_prompt(config):
    # 3 text tokens, a picture of 4 x 4 patches = 2 x 2 features, 2 text tokens
    ids = [10, 11, 12, 268, 268, 268, 268, 13, 14]
    return make_prompt(ids, torch.zeros(16, 1176), torch.tensor([[1, 4, 4]]), config)


def test_positions_by_hand(micro_config):
    prompt = picture_prompt(micro_config)
    assert prompt.position_ids.tolist() == [[0, 1, 2, 3, 3, 3, 3, 5, 6],
                                            [0, 1, 2, 3, 3, 4, 4, 5, 6],
                                            [0, 1, 2, 3, 4, 3, 4, 5, 6]]
    assert prompt.next_position == 7                                   # 9 tokens, but the picture takes 2 positions


def test_pack_by_hand(micro_config):
    text = make_prompt([20, 21, 22], torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.long), micro_config)
    assert text.pixel_values is None and text.image_grid_thw is None and text.next_position == 3
    rows = pack([picture_prompt(micro_config), text],
                [[torch.tensor([30, 31, 32]), torch.tensor([], dtype=torch.long), torch.tensor([33])],
                 [torch.tensor([34, 258]), torch.tensor([35]), torch.tensor([36])]], pad_id=256)
    # row 0: 9 prompt tokens, 3 + 0 + 1 of completions = 13; row 1: 3 + 2 + 1 + 1 = 7, then 6 of padding
    assert rows.input_ids.tolist() == [[10, 11, 12, 268, 268, 268, 268, 13, 14, 30, 31, 32, 33],
                                       [20, 21, 22, 34, 258, 35, 36, 256, 256, 256, 256, 256, 256]]
    assert rows.branches.tolist() == [[0] * 9 + [1, 1, 1, 3], [0, 0, 0, 1, 1, 2, 3] + [-1] * 6]
    # every branch goes on where its prompt ended: 7 8 9 and again 7; 3 4, 3, 3
    assert rows.position_ids[:, 0, 9:].tolist() == [[7, 8, 9, 7]] * 3
    assert rows.position_ids[:, 1, :7].tolist() == [[0, 1, 2, 3, 4, 3, 3]] * 3
    # first tokens are predicted by the prompt's last token: 8 in row 0, 13 + 2 = 15 in row 1
    assert rows.predictors.tolist() == [8, 9, 10, 8, 15, 16, 15, 15]
    assert rows.targets.tolist() == [30, 31, 32, 33, 34, 258, 35, 36]
    assert rows.completion_mask.tolist() == [[True, True, True], [False] * 3, [True, False, False],
                                             [True, True, False], [True, False, False], [True, False, False]]
    assert rows.image_grid_thw.tolist() == [[1, 4, 4]]


def test_attention_by_hand():
    prompt = Prompt(torch.tensor([1, 2]), torch.tensor([[0, 1]] * 3), 2, None, None)
    mask = pack([prompt], [[torch.tensor([3, 4]), torch.tensor([5])]]).attention()
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0, 0],
                                         [1, 1, 0, 0, 0],
                                         [1, 1, 1, 0, 0],
                                         [1, 1, 1, 1, 0],
                                         [1, 1, 0, 0, 1]]      # the second completion does not see the first


class Successor(torch.nn.Module):
    """A stub whose logit for token v after token u is 3 if v = u + 1, else 0, over 16 tokens."""

    def __init__(self):
        super().__init__()
        self.head_weight = 3.0 * torch.eye(16).roll(1, dims=0)       # row v, column u = v - 1

    def embed(self, ids, features):
        return torch.nn.functional.one_hot(ids, 16).float()

    def hidden_states(self, embeds, position_ids, attend, wanted):
        return embeds.flatten(0, 1)[wanted]


def test_first_token_is_scored_by_the_last_prompt_position():
    # right shift: every token follows its predecessor: 3 - ln(e^3 + 15) = 3 - ln 35.0855369 = -0.5577888
    # wrong token: -ln 35.0855369 = -3.5577888
    prompt = Prompt(torch.tensor([9, 4]), torch.tensor([[0, 1]] * 3), 2, None, None)
    rows = pack([prompt, prompt], [[torch.tensor([5, 6, 7]), torch.tensor([5])], [torch.tensor([6, 7])]] * 1)
    logprobs, _ = completion_logprobs(Successor(), rows)
    expected = [[-0.5577888, -0.5577888, -0.5577888], [-0.5577888, 0, 0], [-3.5577888, -0.5577888, 0]]
    torch.testing.assert_close(logprobs, torch.tensor(expected), atol=2e-6, rtol=0)


def test_scoring_changes_no_input_tensor(make_model, make_prompts):
    prompts, completions = make_prompts(), random_completions([[4, 0], [3, 3], [2, 6]])
    rows = pack(prompts, completions)
    before = {name: value.clone() for name, value in vars(rows).items() if torch.is_tensor(value)}
    prompts_before = [p.input_ids.clone() for p in prompts]
    logprobs, entropy = completion_logprobs(make_model(), rows, 0.7, (268, 269))
    (logprobs + entropy).sum().backward()
    for name, value in before.items():
        assert torch.equal(vars(rows)[name], value), name
    assert all(torch.equal(p.input_ids, ids) for p, ids in zip(prompts, prompts_before, strict=True))


def test_two_completions_for_three_prompts_is_an_error(make_prompts):
    with pytest.raises(ValueError):
        pack(make_prompts(), random_completions([[1], [2]]))


def test_micro_batches_cover_everything_once():
    # padded size = rows x longest: 3 x 10 = 30 fits 30, a fourth row would make 40; 2 x 12 = 24 fits, 3 x 12 does not
    assert micro_batches([8, 9, 10, 10, 12, 12], 30) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert micro_batches([50, 5, 5], 30) == [slice(0, 1), slice(1, 3)]          # too long for any batch: alone
    assert micro_batches([5], 30) == [slice(0, 1)] and micro_batches([5, 5], 10**6) == [slice(0, 2)]


# ---------------------------------------------------------------- several pictures

@pytest.fixture
def of_cameras(processor, micro_config, picture):
    """Three requests with pictures of different sizes: three, two and one."""
    def prompt(text, *sizes):
        pictures = [picture(*size, seed) for seed, size in enumerate(sizes)]
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
        return make_prompt(*processor.encode([{"role": "user", "content": content}], pictures), micro_config)
    return [prompt("Go.", (56, 28), (28, 56), (84, 56)), prompt("Turn left now", (84, 56), (56, 56)),
            prompt("A longer question", (56, 28))]


def test_packed_rows_of_several_pictures_equal_one_example_at_a_time(make_model, of_cameras):
    model, completions = make_model(), random_completions([[4, 2], [3, 5], [1, 6]])
    advantages = torch.tensor([1.0, -0.5, 0.25, -1.0, 2.0, 0.75])
    rows = pack(of_cameras, completions)
    packed, _ = completion_logprobs(model, rows)
    packed_grads = gradients(model, policy_loss(packed, packed.detach() + 0.05, advantages, rows.completion_mask,
                                                "grpo")[0])
    alone = [lp for prompt, group in zip(of_cameras, completions, strict=True)
             for ids in group for lp in plain_logprobs(model, [prompt], [[ids]])]
    for row, expected in enumerate(alone):
        torch.testing.assert_close(packed[row, :len(expected)], expected, atol=1e-5, rtol=0)
    terms = [-(a * (lp - lp.detach() - 0.05).exp()).mean() for a, lp in zip(advantages, alone, strict=True)]
    for name, expected in gradients(model, sum(terms) / len(terms)).items():
        torch.testing.assert_close(packed_grads[name], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make_sampler", [PlainSampler, Sampler])
def test_samples_of_several_pictures_do_not_depend_on_the_batch(make_model, of_cameras, processor, make_sampler):
    sampler = make_sampler(make_model(stop=0.9), processor, 1.0, 10)
    together = sampler.sample(of_cameras, uniform_table(0, 0, range(3), 2, 10))
    alone = [sampler.sample([prompt], uniform_table(0, 0, [place], 2, 10)).texts
             for place, prompt in enumerate(of_cameras)]
    assert together.texts == [text for texts in alone for text in texts]


def test_the_order_of_the_pictures_counts(make_model, of_cameras):
    model, prompt = make_model(), of_cameras[1]
    patches = prompt.pixel_values.split(prompt.image_grid_thw.prod(1).tolist())
    turned = replace(prompt, pixel_values=torch.cat([patches[0].flip(0), patches[1]]))
    other = replace(prompt, pixel_values=torch.cat([patches[0], patches[1].flip(0)]))
    found = [completion_logprobs(model, pack([one], [[torch.tensor([5, 6])]]))[0] for one in (prompt, turned, other)]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])      # both pictures are seen


def test_features_of_several_pictures_are_kept_together(make_model, of_cameras):
    model = make_model()
    known = FeatureCache(model, "fp32", 10**9)("abc", of_cameras)
    # 2 + 2 + 6 features, 6 + 4, 2: pictures of 56 x 28, 28 x 56, 84 x 56; 84 x 56, 56 x 56; 56 x 28 pixels
    assert [len(one.image_features) for one in known] == [10, 10, 2]
    branches = [[torch.tensor([64, 65])]] * 3
    got, expected = (completion_logprobs(model, pack(prompts, branches))[0] for prompts in (known, of_cameras))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_the_memory_plan_counts_all_pictures(make_model, of_cameras):
    found = workload(make_model(), of_cameras, GRPOFlags(), 5)
    assert (found.patches, found.prompt_tokens) == (40, max(len(prompt.input_ids) for prompt in of_cameras))
