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
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from models.processor import Processor, save_processor
from models.tokenizer import train_bpe

FOLDER = Path(__file__).parent
POSITIONS, NEW_TOKENS = 4, 32       # logits kept per row: those of its last 4 tokens; greedy tokens generated
SIZES = {"wide": (100, 60), "tall": (56, 84), "large": (190, 130),      # scaled to 112 x 56; as it is; down to 112 x 84
         "ribbon": (308, 28), "mast": (28, 308)}                        # 1 x 11 and 11 x 1 feature vectors
EDGES = {"28x28": (28, 28, "RGB"), "29x1000": (29, 1000, "RGB"), "grey": (90, 61, "L"), "clear": (90, 61, "RGBA"),
         "palette": (90, 61, "P"), "cmyk": (90, 61, "CMYK")}
EDGE_BUDGET = {"min_pixels": 3136, "max_pixels": 401_408}
IMAGE = {"type": "image"}
CHATS = {
    "text": ([{"role": "user", "content": "Speed 12 km/h, turn left."}], []),
    "one": ([{"role": "user", "content": [IMAGE, {"type": "text", "text": "Keep straight?\n"}]}], ["wide"]),
    "two": ([{"role": "system", "content": "Drive."},
             {"role": "user",
              "content": [{"type": "text", "text": "a "}, IMAGE, {"type": "text", "text": " b"}, IMAGE]},
             {"role": "assistant", "content": "KEEP"},
             {"role": "user", "content": "why"}], ["tall", "large"]),
    "long": ([{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "turn"}]}], ["ribbon", "mast"]),
}
BATCHES = {"text": ["text"], "one": ["one"], "two": ["two"], "long": ["long"], "left": ["text", "one", "two", "long"],
           "right": ["text", "one", "two", "long"]}
KINDS = ("tied", "untied", "seven")     # "seven" has the 28 query and 4 key heads of the 7B


def random_config(token_ids: dict[str, int], vocab_size: int, kind: str) -> transformers.Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": vocab_size, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
            "rope_parameters": rope,
            "bos_token_id": token_ids["<|endoftext|>"], "eos_token_id": token_ids["<|im_end|>"],
            "pad_token_id": token_ids["<|endoftext|>"]}
    if kind == "seven":
        text |= {"hidden_size": 224, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 28,
                 "num_key_value_heads": 4, "rope_parameters": {**rope, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": text["hidden_size"], "num_heads": 2, "mlp_ratio": 2}
    return transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=kind == "tied",
        image_token_id=token_ids["<|image_pad|>"], video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"], vision_end_token_id=token_ids["<|vision_end|>"])


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


def edge_picture(width: int, height: int, mode: str) -> Image.Image:
    """A shaded picture with lines across it; RGBA with a shaded alpha, P with one transparent colour."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    shades = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    picture = Image.fromarray(shades.astype(np.uint8))
    for start in range(0, max(width, height), 13):
        ImageDraw.Draw(picture).line([(start, 0), (0, start)], fill=(start % 256, 200, 40), width=2)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray((x * 255 // width).astype(np.uint8)))
    return picture if mode == "RGBA" else picture.quantize(16) if mode == "P" else picture.convert(mode)


def make_edges() -> dict[str, torch.Tensor]:
    """Pictures of unusual size and mode, and what transformers reads of them: levels of 255 of the first frame."""
    reader, tensors = Qwen2VLImageProcessorPil(**EDGE_BUDGET), {}
    mean, std = (np.array(reader.image_mean)[:, None], np.array(reader.image_std)[:, None])
    (FOLDER / "edges").mkdir(exist_ok=True)
    for name, (width, height, mode) in EDGES.items():
        path = FOLDER / "edges" / f"{name}.{'tif' if mode == 'CMYK' else 'png'}"
        edge_picture(width, height, mode).save(path, **({"transparency": 3} if mode == "P" else {}))
        read = reader(Image.open(path), return_tensors="np")
        values = read["pixel_values"].reshape(-1, 3, 2, 196)[:, :, 0]                       # patch, channel, y and x
        tensors[f"edges.{name}.levels"] = torch.from_numpy(((values * std + mean) * 255).round().astype(np.uint8))
        tensors[f"edges.{name}.grid"] = torch.from_numpy(read["image_grid_thw"])
    return tensors


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
    if "pixel_values" in inputs:
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        found["features"] = torch.cat(list(features))
    if greedy:
        never = [token for name, token in vars(model.config).items()
                 if name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")]
        tokens = model.generate(**inputs, mm_token_type_ids=types, do_sample=False, max_new_tokens=NEW_TOKENS,
                                min_new_tokens=NEW_TOKENS, suppress_tokens=never)
        found["greedy"] = tokens[:, inputs["input_ids"].shape[1]:]
    return found


def main() -> None:
    tokenizer, reader = make_processor(FOLDER / "processor")
    pictures = make_pictures()
    tensors = make_edges()
    for kind in KINDS:
        config = random_config(tokenizer.get_vocab(), len(tokenizer), kind)
        model = random_model(config, FOLDER / kind)
        for batch in BATCHES:
            inputs = make_inputs(batch, tokenizer, reader, pictures)
            found = expected(model, inputs, greedy=batch in ("text", "two", "left"))
            tensors |= {f"{kind}.{batch}.{name}": value.contiguous() for name, value in found.items()}
    save_file(tensors, FOLDER / "expected.safetensors")
    record = {"chats": CHATS, "batches": BATCHES, "positions": POSITIONS, "kinds": KINDS,
              "edges": [path.name for path in sorted((FOLDER / "edges").iterdir())], "versions": {
        "transformers": transformers.__version__, "torch": torch.__version__, "pillow": Image.__version__}}
    (FOLDER / "cases.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
