"""The least work of a batch, worked out by hand for a model of a few numbers."""

import pytest

from benchmarks.floor import (
    Shape,
    decode_bytes,
    decode_flop,
    head_flop,
    matrix_parameters,
    prefill_flop,
    rollout_floor,
    scoring_flop,
    step_floor,
    text_flop,
    vision_flop,
)
from models.config import Qwen2VLConfig, TextConfig, VisionConfig

TEXT = TextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                  num_key_value_heads=1, vocab_size=32, mrope_section=(1, 1, 0))
VISION = VisionConfig(depth=1, embed_dim=16, hidden_size=8, num_heads=2, mlp_ratio=2)
CONFIG = Qwen2VLConfig(VISION, TEXT)
SHAPE = Shape([5], [4], group_size=2, new_tokens=3)


def test_parts():
    # head dim 4. A layer: q k v 8 x 4 (2 + 2) = 128, o 8 x 8 = 64, mlp 3 x 8 x 16 = 384, together 576; two layers
    assert matrix_parameters(TEXT) == 1152
    # 2 x 1152 x 10 tokens + 4 x (2 heads x 4) x 2 layers x 55 pairs = 23040 + 3520
    assert text_flop(TEXT, 10, 55) == 26560
    assert head_flop(TEXT, 3) == 1536                                        # 2 x 8 x 32 x 3
    # patch: 1176 x 16 = 18816; block 4 x 256 + 2 x 32 x 16 = 2048; merger 64 (64 + 8) / 4 = 1152; together 22016
    # 2 x 22016 x 4 patches + attention 4 x 16 x 4 x 4 = 176128 + 1024
    assert vision_flop(VISION, [4]) == 177152


def test_batch():
    # vision 177152 + 5 tokens 11520 + 15 pairs x 64 = 960 + one head position 512
    assert prefill_flop(CONFIG, SHAPE) == 190144
    # 2 rows x 2 steps: 4 tokens 9216 + 4 head positions 2048; a row sees 5 + 1, then 5 + 2: 13 pairs, 26 x 64 = 1664
    assert decode_flop(CONFIG, SHAPE) == 12928
    # two steps read 1152 + 256 weights; a token's keys and values are 2 x 4 x 2 layers = 16 numbers: the prompt's 5
    # twice, a row's own 1 and then 2, two rows: 10 + 6. (2 x 1408 + 16 x 16) x 2 bytes
    assert decode_bytes(CONFIG, SHAPE, 2) == 6144
    # prompt once: 5 + 2 x 3 = 11 tokens 25344; pairs 15 + 2 x (3 x 5 + 6) = 57, x 64 = 3648; 6 head positions 3072
    assert scoring_flop(CONFIG, SHAPE, vision=False) == 32064
    assert scoring_flop(CONFIG, SHAPE, vision=True) == 209216


def test_floors():
    limits = {"gemm_flops": 1000.0, "copy_bytes_s": 512.0, "read_bytes_s": 256.0}
    floor = rollout_floor(CONFIG, SHAPE, 2, limits)
    assert floor == {"prefill": pytest.approx(190.144), "decode": pytest.approx(12.928)}    # 6144 / 512 = 12 is less
    assert rollout_floor(CONFIG, SHAPE, 4, limits)["decode"] == pytest.approx(24.0)         # bandwidth decides
    floor = step_floor(CONFIG, SHAPE, 2, limits, reference=True, vision_trained=False)
    assert floor["reference"] == pytest.approx(32.064) and floor["policy"] == pytest.approx(96.192)
    assert step_floor(CONFIG, SHAPE, 2, limits, reference=False, vision_trained=False)["reference"] == 0
    adapters = step_floor(CONFIG, SHAPE, 2, limits, reference=True, vision_trained=False, base_trained=False)
    assert adapters["policy"] == pytest.approx(64.128)                       # forward, and backward to the inputs only
