"""Our model and processor against transformers on a small random Qwen2-VL (tests/golden/make_golden.py)."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models import load_model, load_processor
from models.qwen2_vl import rope_positions

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())
EXPECTED = load_file(GOLDEN / "expected.safetensors")


def read_inputs(batch):
    processor = load_processor(GOLDEN / "processor")
    chats = [CASES["chats"][name] for name in CASES["batches"][batch]]
    pictures = [[Image.open(GOLDEN / f"{name}.png") for name in names] for _, names in chats]
    side = "right" if batch == "right" else "left"
    return processor([messages for messages, _ in chats], pictures, padding_side=side)


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("batch", CASES["batches"])
def test_ids_positions_and_logits_equal_transformers(kind, batch):
    want = {name.split(".")[2]: value for name, value in EXPECTED.items() if name.startswith(f"{kind}.{batch}.")}
    model, inputs = load_model(GOLDEN / kind), read_inputs(batch)
    assert inputs["input_ids"].tolist() == want["input_ids"].tolist()
    assert inputs["attention_mask"].tolist() == want["attention_mask"].tolist()
    position_ids, _ = rope_positions(inputs["input_ids"], inputs["attention_mask"], inputs["image_grid_thw"],
                                     model.config)
    assert position_ids.tolist() == want["position_ids"].tolist()
    with torch.no_grad():
        logits = model(**inputs)
    last = [row[mask.bool()][-CASES["positions"]:] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
    torch.testing.assert_close(torch.stack(last), want["logits"], atol=1e-4, rtol=0)


def test_greedy_tokens_equal_transformers():
    # The longest row, two pictures. transformers was told not to stop, hence <|im_end|> is passed over here too.
    model, inputs, want = load_model(GOLDEN / "tied"), read_inputs("two"), EXPECTED["tied.two.greedy"][0].tolist()
    ids, pictures = inputs["input_ids"], (inputs["pixel_values"], inputs["image_grid_thw"])
    with torch.no_grad():
        for _ in want:
            logits = model(ids, None, *pictures)[:, -1]
            logits[:, model.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert ids[0, -len(want):].tolist() == want
