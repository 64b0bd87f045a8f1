"""Positions, splicing, vision batching and padding of the whole model."""

from dataclasses import replace

import pytest
import torch

from models.config import PRESETS
from models.qwen2_vl import new_model, rope_positions
from models.vision import vision_rotary

TINY = PRESETS["tiny"]
PAD, START, END, IMAGE = 498, 507, 508, 510


@pytest.fixture(scope="module")
def model():
    """Tiny with large random embeddings and uneven norms, so that mistakes show."""
    generator = torch.Generator().manual_seed(0)
    model = new_model(TINY, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        model.model.embed_tokens.weight.mul_(5)
    return model


def pixels(*grids):
    return torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=torch.Generator().manual_seed(1))


def test_positions_by_hand():
    # 3 words, a picture of 4 x 4 patches = 2 x 2 tokens, 2 words. The picture stands at 3, the text goes on at 3 + 2.
    ids = torch.tensor([[1, 2, START, IMAGE, IMAGE, IMAGE, IMAGE, END, 3]])
    positions, following = rope_positions(ids, None, torch.tensor([[1, 4, 4]]), TINY)
    assert positions[:, 0].tolist() == [[0, 1, 2, 3, 3, 3, 3, 5, 6], [0, 1, 2, 3, 3, 4, 4, 5, 6],
                                        [0, 1, 2, 3, 4, 3, 4, 5, 6]]
    assert following.tolist() == [7]
    # After the picture's last token (7 tokens so far) the next position is 5: 7 - 2.
    _, following = rope_positions(ids[:, :7], None, torch.tensor([[1, 4, 4]]), TINY)
    assert following.tolist() == [5]


def test_positions_of_a_padded_batch():
    # Row 0: no picture. Row 1: pictures of 1 x 3 and 2 x 1 tokens; at 1 (next 1 + 3 = 4) and at 5 (next 5 + 2 = 7).
    rows = [[1, 2, PAD], [START, IMAGE, IMAGE, IMAGE, END, IMAGE, IMAGE, 9]]
    grids = torch.tensor([[1, 2, 6], [1, 4, 2]])
    left = torch.tensor([[PAD] * 5 + rows[0], rows[1]])
    mask = torch.tensor([[0] * 5 + [1] * 3, [1] * 8])
    positions, following = rope_positions(left, mask, grids, TINY)
    assert positions[:, 0].tolist() == [[0, 0, 0, 0, 0, 0, 1, 2]] * 3       # a pad id inside the prompt counts
    assert positions[:, 1].tolist() == [[0, 1, 1, 1, 4, 5, 5, 7], [0, 1, 1, 1, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 5, 7]]
    assert following.tolist() == [3, 8]
    right, mask = torch.tensor([rows[0] + [PAD] * 5, rows[1]]), mask.clone()
    mask[0] = torch.tensor([1] * 3 + [0] * 5)
    positions, following = rope_positions(right, mask, grids, TINY)
    assert positions[:, 0].tolist() == [[0, 1, 2, 0, 0, 0, 0, 0]] * 3
    assert following.tolist() == [3, 8]


@pytest.mark.parametrize("grids", [None, [[1, 4, 6]], [[1, 2, 4]], [[2, 4, 4]], [[1, 4, 4], [1, 4, 4]]])
def test_placeholders_must_match_the_pictures(model, grids):
    ids = torch.tensor([[START, IMAGE, IMAGE, IMAGE, IMAGE, END]])
    grid = None if grids is None else torch.tensor(grids)
    with pytest.raises(ValueError, match="image_pad"):
        rope_positions(ids, None, grid, TINY)
    with pytest.raises(ValueError, match="image_pad"):
        model(ids, None, None if grids is None else pixels(*grids), grid)


def test_features_replace_placeholders_in_order(model):
    ids = torch.tensor([[1, IMAGE, 2], [IMAGE, IMAGE, 3]])
    features = torch.arange(3.0)[:, None].repeat(1, 128).requires_grad_()
    embeds = model.embed(ids, features)
    assert [embeds[0, 1, 0].item(), embeds[1, 0, 0].item(), embeds[1, 1, 0].item()] == [0, 1, 2]
    assert torch.equal(embeds[1, 2], model.model.embed_tokens.weight[3])
    (embeds * torch.tensor([[1.0, 2, 4], [8, 16, 32]])[..., None]).sum().backward()
    assert features.grad[:, 0].tolist() == [2, 8, 16]
    with pytest.raises(ValueError, match="3 image placeholders.*2 features"):
        model.embed(ids, features[:2])


def test_vision_positions_follow_merge_blocks():
    # 2 x 4 patches: the left 2 x 2 block first. Head dim 32: angle 0 is the row, angle 8 the column (frequency 1).
    cos, sin = vision_rotary(2, 4, TINY.vision, torch.device("cpu"))
    angles = torch.atan2(sin, cos)
    assert cos.shape == (8, 32)
    assert angles[:, 0].tolist() == pytest.approx([0, 0, 1, 1, 0, 0, 1, 1])
    assert angles[:, 8].tolist() == pytest.approx([0, 1, 0, 1, 2, 3, 2, 3])
    assert angles[:, 24].tolist() == pytest.approx([0, 1, 0, 1, 2, 3, 2, 3])
    # frequency 1 of 8 is 10000^(-1/8) = 10^-0.5 = .3162278
    assert angles[7, [1, 9]].tolist() == pytest.approx([0.3162278, 0.9486833])


def test_vision_rotates_in_float32():
    tower, seen = new_model(TINY, torch.Generator().manual_seed(0)).visual.bfloat16(), []

    def rotate(x, cos, sin):
        seen.append((x.dtype, cos.dtype, sin.dtype))
        return x

    tower.blocks[0].attn.rotate = rotate
    assert tower(pixels((1, 2, 2)).bfloat16(), torch.tensor([[1, 2, 2]])).dtype == torch.bfloat16
    assert seen == [(torch.float32,) * 3] * 2               # queries, keys


def test_pictures_do_not_see_each_other(model):
    grids = [(1, 4, 4), (1, 2, 6), (1, 4, 4), (1, 6, 2)]
    values = pixels(*grids)
    together = model.image_features(values, torch.tensor(grids))
    assert together.shape == (4 + 3 + 4 + 3, 128)
    alone = [model.image_features(part, torch.tensor([grid]))
             for part, grid in zip(values.split([16, 12, 16, 12]), grids, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_vision_refuses_what_does_not_fit(model):
    with pytest.raises(ValueError, match=r"\(16, 1176\).*\(24, 1176\)"):
        model.image_features(pixels((1, 4, 4)), torch.tensor([[1, 4, 6]]))
    with pytest.raises(ValueError, match="multiple of 2"):
        model.image_features(pixels((1, 3, 4)), torch.tensor([[1, 3, 4]]))
    assert model.image_features(torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 128)


def rows_and_pictures():
    # A stop and pad id (498) inside the text, pictures of unequal size, one row without.
    rows = [[5, 498, 7, 8], [1, START, *[IMAGE] * 4, END, 9, 10],
            [START, *[IMAGE] * 3, END, 4, START, *[IMAGE] * 2, END]]
    return rows, [[], [(1, 4, 4)], [(1, 2, 6), (1, 4, 2)]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_neighbours_do_not_move_logprobs(model, side):
    rows, grids = rows_and_pictures()
    values = pixels(*sum(grids, []))
    parts = values.split([sum(h * w for _, h, w in of_row) for of_row in grids])
    pad = [[PAD] * (11 - len(row)) for row in rows]
    ids = torch.tensor([p + r if side == "left" else r + p for r, p in zip(rows, pad, strict=True)])
    real = [[0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
            for r, p in zip(rows, pad, strict=True)]
    with torch.no_grad():
        batch = model(ids, torch.tensor(real), values, torch.tensor(sum(grids, []))).log_softmax(-1)
        for row, mask, logprobs, part, grid in zip(rows, real, batch, parts, grids, strict=True):
            alone = model(torch.tensor([row]), None, part, torch.tensor(grid).view(-1, 3)).log_softmax(-1)
            torch.testing.assert_close(logprobs[torch.tensor(mask).bool()], alone[0], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_and_repeat_bit_for_bit(model):
    rows, grids = rows_and_pictures()
    runs = []
    for _ in range(2):
        model.zero_grad()
        model(torch.tensor([rows[2]]), None, pixels(*grids[2]), torch.tensor(grids[2])).logsumexp(-1).mean().backward()
        runs.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*runs, strict=True))
    model.zero_grad()


def test_logits_are_float32_in_every_dtype():
    model = new_model(TINY, torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert model(torch.tensor([[1, 2]])).dtype == torch.float32


def test_new_model_is_seeded_silent_and_almost_uniform():
    before = torch.random.get_rng_state()
    first, second, other = (new_model(TINY, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head_weight, other.head_weight)
    # Hidden states have root mean square 1 and embeddings 0.02: logits have std 0.02 * sqrt(128) = 0.226.
    assert first(torch.tensor([[5, 6, 7, 8]])).std().item() == pytest.approx(0.226, abs=0.03)
    assert sum(parameter.numel() for parameter in first.parameters()) == 1_128_192


def test_untied_head_is_its_own_matrix():
    model = new_model(replace(TINY, tie_word_embeddings=False), torch.Generator().manual_seed(0))
    assert model.head_weight is model.lm_head.weight
    assert "lm_head.weight" not in new_model(TINY, torch.Generator().manual_seed(0)).state_dict()


def test_init_scales_by_hand():
    # q: 1 / sqrt(128) = .0884; o: .0884 / sqrt(2 * 4 layers) = .03125; vision fc2 (256 in, 2 blocks): 1/16 / 2 = .03125
    weights = new_model(TINY, torch.Generator().manual_seed(0)).state_dict()
    stds = [weights[name].std().item() for name in (
        "model.layers.0.self_attn.q_proj.weight", "model.layers.3.self_attn.o_proj.weight",
        "visual.blocks.1.mlp.fc2.weight", "model.embed_tokens.weight")]
    assert stds == pytest.approx([0.0884, 0.03125, 0.03125, 0.02], rel=0.03)
    assert weights["model.norm.weight"].eq(1).all() and weights["visual.merger.ln_q.bias"].eq(0).all()


def test_positions_of_three_pictures_by_hand():
    # Qwen2-VL: each picture begins one after the largest position so far, text too. Pictures of 1 x 2, 2 x 1 and 1 x 1
    # tokens, with <|vision_end|> and <|vision_start|> between: 0 | 1: (1, 1) (1, 2) | 3 4 | 5: (5, 5) (6, 5) | 7 8
    # | 9 | 10.
    ids = torch.tensor([[START, IMAGE, IMAGE, END, START, IMAGE, IMAGE, END, START, IMAGE, END]])
    grids = torch.tensor([[1, 2, 4], [1, 4, 2], [1, 2, 2]])
    positions, following = rope_positions(ids, None, grids, TINY)
    assert positions[:, 0].tolist() == [[0, 1, 1, 3, 4, 5, 5, 7, 8, 9, 10], [0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10],
                                        [0, 1, 2, 3, 4, 5, 5, 7, 8, 9, 10]]
    assert following.tolist() == [11]
    with pytest.raises(ValueError, match="run of 2"):
        rope_positions(ids, None, grids[[2, 1, 0]], TINY)                       # the order of the pictures counts
