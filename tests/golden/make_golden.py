"""Make the golden files of tests/models/test_golden.py: what transformers computes on a small random Qwen2-VL.

Run from the repository root in an environment of its own (the project itself never needs transformers):

    python3 -m venv ~/oracle && ~/oracle/bin/pip install torch==2.13.0 transformers==5.23.0 pillow safetensors
    PYTHONPATH=. ~/oracle/bin/python tests/golden/make_golden.py

Model, tokenisation, picture reading, positions and logits are all transformers'; only the byte-pair training and the
chat template come from us. Weights are rounded to bfloat16 before use, so the stored half-size files are exact.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from models.processor import Processor, save_processor, train_bpe

FOLDER = Path(__file__).parent
POSITIONS, NEW_TOKENS = 4, 6        # logits kept per row: those of its last 4 tokens; greedy tokens generated
SIZES = {"wide": (100, 60), "tall": (56, 84), "large": (190, 130)}      # scaled to 112 x 56; as it is; down to 112 x 84
IMAGE = {"type": "image"}
CHATS = {
    "text": ([{"role": "user", "content": "Speed 12 km/h, turn left."}], []),
    "one": ([{"role": "user", "content": [IMAGE, {"type": "text", "text": "Keep straight?\n"}]}], ["wide"]),
    "two": ([{"role": "system", "content": "Drive."},
             {"role": "user",
              "content": [{"type": "text", "text": "a "}, IMAGE, {"type": "text", "text": " b"}, IMAGE]},
             {"role": "assistant", "content": "KEEP"},
             {"role": "user", "content": "why"}], ["tall", "large"]),
}
BATCHES = {"text": ["text"], "one": ["one"], "two": ["two"], "left": ["text", "one", "two"],
           "right": ["text", "one", "two"]}


def random_config(token_ids: dict[str, int], vocab_size: int, tied: bool) -> transformers.Qwen2VLConfig:
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": vocab_size, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": token_ids["<|endoftext|>"], "eos_token_id": token_ids["<|im_end|>"],
            "pad_token_id": token_ids["<|endoftext|>"]}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"], vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"])


def random_model(config: transformers.Qwen2VLConfig, folder: Path) -> Qwen2VLForConditionalGeneration:
    """Matrices N(0, 1 / inputs), norms 1 + N(0, 0.2), biases N(0, 0.2): nothing that a mistake could hide behind."""
    generator = torch.Generator().manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name or name.endswith("ln_q.weight") else 0.0
                parameter.normal_(centre if name.endswith("weight") else 0.0, 0.2, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def make_processor(folder: Path) -> tuple:
    tokenizer = train_bpe(["Speed 12 km/h, turn left. Keep straight? KEEP why Drive."] * 2, 300)
    save_processor(Processor(tokenizer, max_pixels=9408), folder)
    return AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)


def make_pictures() -> dict[str, Image.Image]:
    random = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        coarse = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BILINEAR).save(FOLDER / f"{name}.png")
    return {name: Image.open(FOLDER / f"{name}.png").convert("RGB") for name in SIZES}


def make_inputs(batch: str, tokenizer, reader, pictures) -> dict[str, torch.Tensor]:
    texts, images, grids = [], [], []
    for chat in BATCHES[batch]:
        messages, names = CHATS[chat]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for name in names:
            read = reader(pictures[name], return_tensors="pt")
            images.append(read["pixel_values"])
            grids.append(read["image_grid_thw"])
            text = text.replace("<|image_pad|>", "<|placeholder|>" * (grids[-1].prod().item() // 4), 1)
        texts.append(text.replace("<|placeholder|>", "<|image_pad|>"))
    inputs = tokenizer(texts, padding=True, padding_side="right" if batch == "right" else "left", return_tensors="pt")
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if images:
        inputs |= {"pixel_values": torch.cat(images), "image_grid_thw": torch.cat(grids)}
    return inputs


@torch.no_grad()
def expected(model: Qwen2VLForConditionalGeneration, inputs: dict, greedy: bool) -> dict[str, torch.Tensor]:
    types = (inputs["input_ids"] == model.config.image_token_id).long()
    positions, _ = model.model.get_rope_index(inputs["input_ids"], mm_token_type_ids=types,
                                              image_grid_thw=inputs.get("image_grid_thw"),
                                              attention_mask=inputs["attention_mask"])
    logits = model(**inputs, mm_token_type_ids=types).logits
    last = [row[mask.bool()][-POSITIONS:] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
    found = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "position_ids": positions,
             "logits": torch.stack(last)}
    if greedy:
        tokens = model.generate(**inputs, mm_token_type_ids=types, do_sample=False, max_new_tokens=NEW_TOKENS,
                                min_new_tokens=NEW_TOKENS)
        found["greedy"] = tokens[:, inputs["input_ids"].shape[1]:]
    return found


def main() -> None:
    tokenizer, reader = make_processor(FOLDER / "processor")
    pictures = make_pictures()
    tensors = {}
    for kind in ("tied", "untied"):
        config = random_config(tokenizer.get_vocab(), len(tokenizer), kind == "tied")
        model = random_model(config, FOLDER / kind)
        for batch in BATCHES:
            inputs = make_inputs(batch, tokenizer, reader, pictures)
            found = expected(model, inputs, greedy=batch != "right")
            tensors |= {f"{kind}.{batch}.{name}": value.contiguous() for name, value in found.items()}
    save_file(tensors, FOLDER / "expected.safetensors")
    record = {"chats": CHATS, "batches": BATCHES, "positions": POSITIONS, "versions": {
        "transformers": transformers.__version__, "torch": torch.__version__, "pillow": Image.__version__}}
    (FOLDER / "cases.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
