"""Small Qwen2-VL models that every test of the engine can afford, and pictures for them.

The tokenizer has no merges: ids 0-255 are bytes in GPT-2's order, so "!" is 0, "A" is 32, "a" is 64, a blank is 220 and
a line break 198; then the 14 special tokens, of which <|endoftext|> is 256, <|im_end|> 258 and <|image_pad|> 268.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.example import Example
from grpo.engine import precision
from models.config import PRESETS, TextConfig, VisionConfig
from models.processor import Processor, fit_config
from models.prompt import make_prompt
from models.qwen2_vl import new_model
from models.tokenizer import train_bpe
from rewards import Decision


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small matrices gain nothing from threads, and sums stay the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def measures_nothing():
    """Both precisions seem equally fast, so that a run without --precision computes in fp32 on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "time_both", lambda _: (1.0, 1.0))
        yield


@pytest.fixture(scope="session")
def processor():
    return Processor(train_bpe(["no merges"], 256 + 14), min_pixels=28 * 28, max_pixels=56 * 84)


@pytest.fixture(scope="session")
def micro_config(processor):
    """Two decoder layers of width 32, one vision layer: about 60,000 parameters."""
    vision = VisionConfig(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2)
    text = TextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                      num_key_value_heads=1, mrope_section=(2, 3, 3), max_position_embeddings=2048)
    return fit_config(replace(PRESETS["tiny"], vision=vision, text=text), processor.tokenizer)


@pytest.fixture
def make_model(micro_config):
    """make_model(seed, stop=0.0, tied=True): random weights whose predictions are far from uniform.

    `stop` raises the logit of <|im_end|>, so that sampled answers end at different lengths."""
    def make(seed=0, stop=0.0, tied=True):
        model = new_model(replace(micro_config, tie_word_embeddings=tied), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(6)            # std 0.12: likely and unlikely tokens, none certain
            if not tied:
                model.lm_head.weight.mul_(6)
            if stop:
                model.model.embed_tokens.weight[:, 0] = 0.3    # a constant that the final norm passes on
                model.model.embed_tokens.weight[258, 0] += stop
        return model
    return make


@pytest.fixture
def make_bigram(micro_config):
    """make_bigram(logits): a model without layers whose next-token logits are logits[last token], (V, V) exactly."""
    def make(logits):
        size = 272                                             # 270 tokens, one dimension each, in heads of 16
        config = replace(micro_config, tie_word_embeddings=False, vision=replace(micro_config.vision, hidden_size=size),
                         text=replace(micro_config.text, hidden_size=size, num_hidden_layers=0, num_attention_heads=17,
                                      num_key_value_heads=17, rms_norm_eps=1e-12))
        model = new_model(config, torch.Generator().manual_seed(0))
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(270, size))
            # the norm turns a one-hot vector of 272 into sqrt(272) = 16.4924225 times that vector
            model.lm_head.weight.copy_(torch.nn.functional.pad(logits.T, (0, size - 270)) / 16.4924225)
        return model
    return make


@pytest.fixture(scope="session")
def picture():
    """picture(width, height, seed): noise, so that no two patches are alike."""
    def make(width=56, height=28, seed=0):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)
    return make


@pytest.fixture(scope="session")
def make_prompts(processor, micro_config, picture):
    """Three requests of different lengths: a picture of 2 features, none, a picture of 6 features."""
    def make():
        requests = [("Go.", [picture(56, 28, 1)]), ("A longer question without a picture", []),
                    ("Turn left now", [picture(84, 56, 2)])]
        return [make_prompt(*processor.encode(
            [{"role": "user", "content": [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]}],
            pictures), micro_config) for text, pictures in requests]
    return make


@pytest.fixture(scope="session")
def make_examples():
    """Driving examples with a scene, a question and an answer."""
    def make(count=3):
        plans = [Decision("STOP", "STRAIGHT"), Decision("KEEP", "LEFT_TURN"), Decision("ACCELERATE", "STRAIGHT"),
                 Decision("KEEP", "STRAIGHT")]
        return [Example(id=f"example-{i}", scene=i, speed=float(i), navigation="Go straight", decision=plans[i % 4],
                        reasoning="clear road") for i in range(count)]
    return make
