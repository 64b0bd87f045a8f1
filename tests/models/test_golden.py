"""Our model and processor against transformers on small random Qwen2-VLs (tests/golden/make_golden.py)."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from grpo.fast.sampler import generate
from models import load_model, load_processor
from models.images import IMAGE_MEAN, IMAGE_STD, image_patches
from models.qwen2_vl import rope_positions

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
EXPECTED = load_file(GOLDEN / "expected.safetensors")


def read_chats(batch):
    chats = [CASES["chats"][name] for name in CASES["batches"][batch]]
    return ([messages for messages, _ in chats],
            [[Image.open(GOLDEN / f"{name}.png") for name in names] for _, names in chats])


def read_inputs(batch):
    side = "right" if batch == "right" else "left"
    return load_processor(GOLDEN / "processor")(*read_chats(batch), padding_side=side)


def wanted(kind, batch):
    return {name.split(".")[2]: value for name, value in EXPECTED.items() if name.startswith(f"{kind}.{batch}.")}


@pytest.mark.parametrize("kind", CASES["kinds"])
@pytest.mark.parametrize("batch", CASES["batches"])
def test_ids_positions_features_and_logits_equal_transformers(kind, batch):
    want, model, inputs = wanted(kind, batch), load_model(GOLDEN / kind), read_inputs(batch)
    assert inputs["input_ids"].tolist() == want["input_ids"].tolist()
    assert inputs["attention_mask"].tolist() == want["attention_mask"].tolist()
    position_ids, _ = rope_positions(inputs["input_ids"], inputs["attention_mask"], inputs["image_grid_thw"],
                                     model.config)
    assert position_ids.tolist() == want["position_ids"].tolist()
    with torch.no_grad():
        if "features" in want:
            features = model.image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            torch.testing.assert_close(features, want["features"], atol=1e-5, rtol=0)
        logits = model(**inputs)
    last = [row[mask.bool()][-CASES["positions"]:] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
    torch.testing.assert_close(torch.stack(last), want["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CASES["kinds"])
@pytest.mark.parametrize("batch", ["text", "two", "left"])
def test_32_greedy_tokens_equal_transformers(kind, batch):
    # transformers was told neither to stop nor to write the ids that announce pictures.
    want = wanted(kind, batch)["greedy"].tolist()
    rollout = generate(load_model(GOLDEN / kind), load_processor(GOLDEN / "processor"), *read_chats(batch),
                       group_size=1, max_new_tokens=32, min_new_tokens=32, temperature=0)
    assert rollout.completion_ids.tolist() == want and all(len(row) == 32 for row in want)


@pytest.mark.parametrize("name", CASES["edges"])
def test_pictures_of_every_mode_and_edge_size_are_read_alike(name):
    # The release of Pillow decides how the last bit of a resampled value is rounded, hence one level of 255.
    patches, grid = image_patches(Image.open(GOLDEN / "edges" / name), 3136, 401_408)
    stem = name.rpartition(".")[0]
    want = EXPECTED[f"edges.{stem}.levels"].float()                             # patch, channel, y and x
    assert [list(grid)] == EXPECTED[f"edges.{stem}.grid"].tolist()
    std, mean = torch.tensor(IMAGE_STD).view(3, 1), torch.tensor(IMAGE_MEAN).view(3, 1)
    levels = (patches.view(-1, 3, 2, 196).movedim(2, 0) * std + mean) * 255     # frame, patch, channel, y and x
    assert (levels - want).abs().max() <= 1.001
    assert ((levels - want) / 255 / std).abs().mean() <= 1e-4


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_close_to_float32(dtype, limit):
    # bfloat16 keeps 8 bits, 0.4 % a rounding; float16 keeps 11 bits, 0.05 %. Errors of the two layers add up.
    inputs, found = read_inputs("left"), {}
    with torch.no_grad():
        for kind in (torch.float32, dtype):
            logits = load_model(GOLDEN / "untied", dtype=kind)(**inputs)
            assert logits.dtype == torch.float32
            found[kind] = logits[inputs["attention_mask"].bool()]
    exact = found[torch.float32]
    assert (found[dtype] - exact).norm() / exact.norm() < limit
    assert (found[dtype].argmax(-1) == exact.argmax(-1)).float().mean() > 0.9
