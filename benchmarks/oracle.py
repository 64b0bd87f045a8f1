"""Our Qwen2-VL against transformers': the table of docs/qwen2_vl.md. Needs transformers, in an environment of its own:

    python3 -m venv ~/oracle && ~/oracle/bin/pip install -r benchmarks/requirements.txt
    ~/oracle/bin/python benchmarks/oracle.py --checkpoint DIR --template FILE --pictures FILE ...

DIR is a published Qwen2-VL directory, of which only config, vocabulary, chat template and index are read, no weights;
without it the small vocabulary of tests/golden stands in and the comparisons of names and text are left out. Nothing
else in the project needs this script. Models are random: matrices N(0, 1 / inputs), norms 1 + N(0, 0.2), biases
N(0, 0.2). `--only precision` runs the full size of the 2B, in three dtypes: 10 GB of memory, 5 GB of disk, minutes.
The last line printed is one JSON object; "max" is the largest absolute difference unless the name says otherwise.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil  # noqa: E402

from grpo.fast.sampler import generate  # noqa: E402
from models import Qwen2VLConfig, load_model, load_processor, save_model  # noqa: E402
from models.config import PRESETS, TextConfig, VisionConfig  # noqa: E402
from models.images import IMAGE_STD  # noqa: E402
from models.processor import Processor, fit_config, save_processor  # noqa: E402
from models.qwen2_vl import Qwen2VL, rope_positions  # noqa: E402
from models.template import CHAT_TEMPLATE, is_instruct_template  # noqa: E402

LOGIT_LIMIT, LEVEL_LIMIT, MEAN_LIMIT, NEW_TOKENS = 1e-4, 1.0, 1e-4, 32
IMAGE = {"type": "image"}
SIZES = {"square": (224, 224), "wide": (1372, 28), "tall": (28, 1372), "odd": (317, 201), "frame": (640, 360)}
SPECIAL = ["<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|im_start|>user", "<|vision_start|><|image_pad|>"]


def chat(*parts: str, system: str | None = None) -> tuple[list[dict], list[str]]:
    """A conversation whose parts are texts and names of SIZES; and those names."""
    content = [IMAGE if part in SIZES else {"type": "text", "text": part} for part in parts]
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": content}], [part for part in parts if part in SIZES]


CHATS = {
    "text": chat("Speed 7.5 m/s. Go straight on at the lights, please."),
    "square": chat("square", "What is the plan?"),
    "wide": chat("wide", "Turn left in 50 m."),
    "tall": chat("Look: ", "tall", " and answer."),
    "several": chat("frame", "Before. ", "odd", " After, ", "square", "tall", "and now?", system="You drive."),
}
BATCHES = {**{name: [name] for name in CHATS}, "padded left": [*CHATS], "padded right": [*CHATS]}


def main() -> None:
    """Run the comparisons, print each, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="directory of a published Qwen2-VL; weights are not needed")
    parser.add_argument("--template", type=Path, help="the Instruct chat template (text, or JSON with chat_template)")
    parser.add_argument("--pictures", nargs="*", type=Path, default=[], help="photographs for the picture reader")
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), help="default: all but precision")
    parser.add_argument("--output", type=Path, help="merge the results into this JSON file")
    flags = parser.parse_args()
    results = {}
    for name in flags.only or [name for name in PARTS if name != "precision"]:
        if name in ("names", "text") and flags.checkpoint is None:
            continue
        start = time.perf_counter()
        results[name] = PARTS[name](flags)
        print(f"{name} ({time.perf_counter() - start:.0f} s): {json.dumps(results[name])}", flush=True)
    before = json.loads(flags.output.read_text())["results"] if flags.output and flags.output.is_file() else {}
    record = {"passed": all(part.get("passed", True) for part in results.values()), "versions": versions(),
              "results": {**before, **results}}
    if flags.output:
        flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    sys.exit(not record["passed"])


def versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__, "pillow": Image.__version__,
            "tokenizers": tokenizers.__version__, "python": platform.python_version(), "machine": platform.machine()}


def names(flags: argparse.Namespace) -> dict:
    """The tensor names that the published index lists against those of a model made from the published config."""
    config = Qwen2VLConfig.from_directory(flags.checkpoint)
    index = json.loads((flags.checkpoint / "model.safetensors.index.json").read_text())
    with torch.device("meta"):
        model = Qwen2VL(config).to(torch.bfloat16)
    ours = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    size, bytes_ = index["metadata"]["total_size"], sum(ours.values())
    return {"published": len(index["weight_map"]), "ours": len(ours), "published_bytes": size, "our_bytes": bytes_,
            "passed": ours.keys() == index["weight_map"].keys() and size == bytes_}


def strings() -> Iterator[str]:
    """Several hundred texts: languages, code, numbers, blanks, contractions, emoji, special tokens, random mixtures."""
    yield from ("", " ", "\n", "\r\n\r\n", "\t\t x", "a  b   c\n\n\n d \n", "  leading", "trailing  ", "\u00a0\u3000 x")
    yield from ("I'll we're THEY'VE can't it's 'd 'M o'clock rock'n'roll", "don’t", "1234567890 3.14159 1,000,000 0x1F")
    yield from ("def f(x):\n    return x**2  # square\n", "<think> KEEP </think> <answer> STOP, STRAIGHT </answer>",
                "https://example.org/a?b=c&d=%20", "{\"key\": [1, 2.5e-3, null]}", "SELECT * FROM t WHERE a<>'b';")
    yield from ("中文字符，标点。", "日本語のテキスト", "한국어 문장", "Привет, мир!", "مرحبا بالعالم", "हिन्दी में")
    yield from ("ไทย", "Ελληνικά", "e\u0301 = \u00e9", "\u1e69 s\u0323\u0307", "ﬁ ² ½ Ⅷ", "\u200b\u200d\ufeff")
    yield from ("\x00\x07", "👍🏽 ☃️", "👨\u200d👩\u200d👧", "\U0001f1e9\U0001f1ea", "STOP✅ → 🛑")
    yield from SPECIAL
    yield from (f"a {token} b\n{token}{token}" for token in SPECIAL)
    pieces = [*"abcXYZ019 '\n\t.,;<>|/é中👍ß", "'s", "  ", "\r\n", " the", "ing", "<|", "|>", "STRAIGHT", "\u0301"]
    generator = random.Random(0)
    for length in [*range(1, 41)] * 10:
        yield "".join(generator.choices(pieces, k=length))


def text(flags: argparse.Namespace) -> dict:
    """Token ids of texts and of conversations. With special tokens parsed, then as plain letters, then from a file."""
    ours, theirs = load_processor(flags.checkpoint), AutoTokenizer.from_pretrained(flags.checkpoint)
    cases, options = [*strings()], {"add_special_tokens": False}
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        again = load_processor(folder) if (Path(folder) / "tokenizer.json").is_file() else None
    pairs = {
        "special_parsed": [(ours.tokenizer.encode(case).ids, theirs(case, **options).input_ids) for case in cases],
        "special_as_text": [(ours.encode_text(case), theirs(case, split_special_tokens=True, **options).input_ids)
                            for case in cases],
        "tokenizer_json": [(again.tokenizer.encode(case).ids, theirs(case, **options).input_ids) for case in cases],
        "decoded": [(ours.decode(ids), theirs.decode(ids, skip_special_tokens=True))
                    for ids in (theirs(case, **options).input_ids for case in cases)],
        "conversations": [conversation(messages, ours, theirs, template(flags)) for messages in conversations()]}
    counts = {name: {"cases": len(found), "different": sum(a != b for a, b in found)} for name, found in pairs.items()}
    return {"vocabulary": [ours.tokenizer.get_vocab_size(), len(theirs)], "published_template": bool(flags.template),
            **counts, "passed": not any(count["different"] for count in counts.values())}


def template(flags: argparse.Namespace) -> str:
    """The Jinja template to compare with: the given file's, else what `save_processor` writes."""
    if not flags.template:
        return CHAT_TEMPLATE
    found = flags.template.read_text()
    found = json.loads(found)["chat_template"] if flags.template.suffix == ".json" else found
    if not is_instruct_template(found):
        raise SystemExit(f"error: {flags.template} is not the template of Qwen2-VL-Instruct")
    return found


def conversations() -> Iterator[list[dict]]:
    """Conversations of one to five messages with and without a system message and pictures."""
    yield from (messages for messages, _ in CHATS.values())
    for text in ("plain", "", "\n", " two\nlines ", "中文 👍"):
        yield [{"role": "user", "content": text}]
        content = [IMAGE, {"type": "text", "text": text}]
        yield [{"role": "system", "content": text}, {"role": "user", "content": content}]
        turns = [{"role": role, "content": text + role} for role in ("user", "assistant")] * 2
        yield [*turns, {"role": "user", "content": [{"type": "text", "text": text}, IMAGE, IMAGE]}]


def conversation(messages: list[dict], ours: Processor, theirs: object, template: str) -> tuple[list[int], list[int]]:
    """(our ids, their ids) of one conversation whose pictures are all 56 x 56, four placeholders each."""
    count = sum(part == IMAGE for message in messages for part in message["content"])
    ids, _, _ = ours.encode(messages, [Image.new("RGB", (56, 56))] * count)
    rendered = theirs.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return ids, theirs(rendered.replace("<|image_pad|>", "<|image_pad|>" * 4)).input_ids


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise with sharp lines: resampling shows in both."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(height // 6, 1), max(width // 6, 1), 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    ImageDraw.Draw(picture).line([(0, 0), (width, height)], fill=(255, 255, 255), width=2)
    return picture


def edge_pictures() -> Iterator[tuple[str, Image.Image]]:
    """Sizes at the edges of the rules, and every mode that a picture file may have."""
    for width, height in ((28, 28), (29, 1000), (1000, 29), (3840, 2160), (1, 1), (1, 200), (70, 98), (27, 5400)):
        yield f"{width}x{height}", noise(width, height)
    base = noise(333, 222)
    for mode in ("L", "1", "LA", "CMYK", "YCbCr"):
        yield mode, base.convert("L").convert(mode) if mode in ("LA", "1") else base.convert(mode)
    clear = base.copy()
    clear.putalpha(base.convert("L"))
    yield "RGBA", clear
    yield "P", base.quantize(64)
    yield "LA transparent", clear.convert("LA")
    hole = base.quantize(64)
    hole.info["transparency"] = 5
    yield "P transparent", hole


def pixels(flags: argparse.Namespace) -> dict:
    """Every picture at three pixel budgets: levels of 255 and mean difference of the normalised values, and grids."""
    pictures = [*edge_pictures(), *((path.name, Image.open(path)) for path in flags.pictures)]
    levels, means, grids, cases = 0.0, 0.0, 0, 0
    std = np.repeat(np.float32(IMAGE_STD), 2 * 14 * 14)                         # (1176,), per value of a patch
    for low, high in ((3136, 12_845_056), (3136, 401_408), (50_176, 100_352)):
        ours = Processor(load_processor(ROOT / "tests/golden/processor").tokenizer, low, high)
        theirs = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)
        for _, picture in pictures:
            _, mine, grid = ours.encode([{"role": "user", "content": [IMAGE]}], [picture])
            other = theirs(picture, return_tensors="np")
            cases, grids = cases + 1, grids + (grid.tolist() != other["image_grid_thw"].tolist())
            difference = np.abs(mine.numpy() - other["pixel_values"])
            levels = max(levels, float((difference * std).max() * 255))
            means = max(means, float(difference.mean()))
    return {"cases": cases, "names": [name for name, _ in pictures], "different_grids": grids,
            "max_levels_of_255": levels, "largest_mean": means,
            "passed": not grids and levels <= LEVEL_LIMIT and means <= MEAN_LIMIT}


def shapes(processor: Processor) -> dict[str, Qwen2VLConfig]:
    """2B-like heads tied and untied, and the 7B's head counts; narrow and shallow."""
    vision = VisionConfig(depth=3, embed_dim=160, hidden_size=256, num_heads=2)
    text = TextConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2,
                      num_key_value_heads=1)
    small = fit_config(replace(PRESETS["2b"], vision=vision, text=text), processor.tokenizer)
    seven = replace(small.text, hidden_size=448, num_attention_heads=28, num_key_value_heads=4, mrope_section=(2, 3, 3))
    return {"tied": small, "untied": replace(small, tie_word_embeddings=False),
            "7B heads, untied": replace(small, text=seven, vision=replace(vision, hidden_size=448),
                                        tie_word_embeddings=False)}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Nothing is left at 0 or 1, where a mistake could hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                scale = ("norm" in name or "ln_q" in name) and name.endswith("weight")
                parameter.normal_(1.0 if scale else 0.0, 0.2, generator=generator)
    return model


def both(config: Qwen2VLConfig, folder: Path, **options: int) -> tuple[Qwen2VL, Qwen2VLForConditionalGeneration]:
    """Our model as `save_model` wrote it: read back by us, and read by transformers."""
    with torch.device("meta"):
        model = Qwen2VL(config)
    save_model(randomize(model.to_empty(device="cpu")), folder, **options)
    theirs, report = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"error: transformers reports {report}")
    return load_model(folder), theirs.eval()


class Reference:
    """transformers' tokenizer and PIL picture reader, and the pictures that both sides read."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        save_processor(processor, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.reader = Qwen2VLImageProcessorPil(min_pixels=processor.min_pixels, max_pixels=processor.max_pixels)
        self.pictures = {name: noise(*size, seed) for seed, (name, size) in enumerate(SIZES.items())}

    def inputs(self, batch: str) -> dict[str, Tensor]:
        """What transformers makes of a batch of CHATS."""
        texts, images, grids = [], [], []
        for messages, names in (CHATS[name] for name in BATCHES[batch]):
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for name in names:
                read = self.reader(self.pictures[name], return_tensors="pt")
                images.append(read["pixel_values"])
                grids.append(read["image_grid_thw"])
                text = text.replace("<|image_pad|>", "<|mark|>" * (int(grids[-1].prod()) // 4), 1)
            texts.append(text.replace("<|mark|>", "<|image_pad|>"))
        side = "right" if batch == "padded right" else "left"
        inputs = dict(self.tokenizer(texts, padding=True, padding_side=side, return_tensors="pt"))
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return {**inputs, "pixel_values": torch.cat(images), "image_grid_thw": torch.cat(grids)} if images else inputs


@torch.no_grad()
def one_batch(batch: str, ours: Qwen2VL, theirs: Qwen2VLForConditionalGeneration, processor: Processor,
              reference: Reference) -> dict[str, float]:
    """Differences of one batch: ids, positions, picture features, logits of the real tokens, greedy tokens."""
    wanted = reference.inputs(batch)
    chats = [CHATS[name] for name in BATCHES[batch]]
    pictures = [[reference.pictures[name] for name in names] for _, names in chats]
    inputs = processor([messages for messages, _ in chats], pictures,
                       padding_side="right" if batch == "padded right" else "left")
    ids, mask, grid = (wanted.get(name) for name in ("input_ids", "attention_mask", "image_grid_thw"))
    types = (ids == theirs.config.image_token_id).long()
    positions, _ = theirs.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask)
    logits = theirs(**wanted, mm_token_type_ids=types).logits
    found = {"ids": int((inputs["input_ids"] != ids).sum() + (inputs["attention_mask"] != mask).sum()),
             "positions": int((rope_positions(ids, mask, grid, ours.config)[0] != positions).sum()),
             "logits": largest(ours(**inputs) - logits, mask.bool()), "logit_std": float(logits[mask.bool()].std())}
    if grid is not None:
        features = theirs.model.get_image_features(wanted["pixel_values"], grid).pooler_output
        found["features"] = largest(ours.image_features(inputs["pixel_values"], grid) - torch.cat(list(features)))
    if batch != "padded right":
        tokens = theirs.generate(**wanted, mm_token_type_ids=types, do_sample=False, max_new_tokens=NEW_TOKENS,
                                 min_new_tokens=NEW_TOKENS, suppress_tokens=[*ours.config.suppressed_token_ids])
        rollout = generate(ours, processor, [messages for messages, _ in chats], pictures, group_size=1,
                           max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0)
        found["distinct"] = len(tokens[:, ids.shape[1]:].unique())
        found["greedy"] = int((rollout.completion_ids != tokens[:, ids.shape[1]:]).sum())
    return found


def largest(difference: Tensor, keep: Tensor | None = None) -> float:
    return float((difference if keep is None else difference[keep]).abs().max())


def model(flags: argparse.Namespace) -> dict:
    """Every shape of model with every batch. Every model went through `save_model`."""
    processor = load_processor(flags.checkpoint or ROOT / "tests/golden/processor", 3136, 100_352)
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(processor, Path(folder) / "processor")
        for name, config in shapes(processor).items():
            ours, theirs = both(config, Path(folder) / name)
            table[name] = {batch: one_batch(batch, ours, theirs, processor, reference) for batch in BATCHES}
    rows = [row for batches in table.values() for row in batches.values()]
    worst = {"fewest_distinct_tokens": min(row["distinct"] for row in rows if "distinct" in row)}
    worst |= {key: max(row[key] for row in rows if key in row) for key in
             ("ids", "positions", "features", "logits", "greedy")}
    exact = not worst["ids"] + worst["positions"] + worst["greedy"]
    return {**worst, "passed": exact and worst["logits"] <= LOGIT_LIMIT,
            "models": len(table), "batches": len(BATCHES), "new_tokens": NEW_TOKENS, "table": table}


@torch.no_grad()
def files(flags: argparse.Namespace) -> dict:
    """Checkpoints in both directions: one and many shards, hub and nested names, three dtypes."""
    processor = load_processor(ROOT / "tests/golden/processor")
    config, ids = shapes(processor)["untied"], torch.arange(200)[None]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {"ours, one file": {}, "ours, shards": {"max_file_bytes": 4_000_000}}.items():
            ours, theirs = both(config, Path(folder) / name, **options)
            found[name] = largest(ours(ids) - theirs(ids).logits)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            path = Path(folder) / str(dtype)
            theirs.to(dtype).save_pretrained(path, max_shard_size="4MB" if dtype == torch.float16 else "1GB")
            found[f"theirs, {str(dtype)[6:]}"] = reread(path, ids)
        path = Path(folder) / "torch.float32"
        tensors = load_file(path / "model.safetensors")
        save_file({nested_name(name): value for name, value in tensors.items()}, path / "model.safetensors",
                  metadata={"format": "pt"})
        found["nested names"] = reread(path, ids)
    return {"max": found, "passed": max(found.values()) <= LOGIT_LIMIT}


def reread(path: Path, ids: Tensor) -> float:
    """The logits' difference when both sides read the same directory."""
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    return largest(load_model(path)(ids) - theirs(ids).logits)


def nested_name(name: str) -> str:
    """A hub name as some releases of transformers write it."""
    if name.startswith("lm_head"):
        return name
    return "model." + ("" if name.startswith("visual.") else "language_model.") + name.removeprefix("model.")


@torch.no_grad()
def half(flags: argparse.Namespace) -> dict:
    """How far our half-precision logits and transformers' each are from float32, on the longest conversation."""
    processor = load_processor(ROOT / "tests/golden/processor", 3136, 100_352)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Reference(processor, Path(folder) / "processor").inputs("several")
        types = (inputs["input_ids"] == processor.image_token_id).long()
        for name, config in shapes(processor).items():
            _, theirs = both(config, Path(folder) / name)
            exact = theirs(**inputs, mm_token_type_ids=types).logits[0]
            for dtype in (torch.bfloat16, torch.float16):
                theirs = Qwen2VLForConditionalGeneration.from_pretrained(Path(folder) / name, dtype=dtype)
                other = theirs(**inputs, mm_token_type_ids=types).logits[0].float()
                found[f"{name}, {str(dtype)[6:]}"] = {
                    "ours": closeness(load_model(Path(folder) / name, dtype=dtype)(**inputs)[0], exact),
                    "transformers": closeness(other, exact)}
    return found


def precision(flags: argparse.Namespace) -> dict:
    """At the full size of the 2B: float32 against transformers, and both sides' half precision against float32."""
    config = Qwen2VLConfig.from_directory(flags.checkpoint) if flags.checkpoint else PRESETS["2b"]
    inputs = short_inputs(config, torch.Generator().manual_seed(1))
    types = {"mm_token_type_ids": (inputs["input_ids"] == config.image_token_id).long()}
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            model = Qwen2VL(config).to(torch.bfloat16)
        save_model(randomize(model.to_empty(device="cpu")), folder)
        del model
        exact = full_size(partial(load_model, folder), inputs)
        found, record = {}, {"tokens": len(exact), "logit_std": float(exact.std())}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = str(dtype).removeprefix("torch.")
            read = partial(Qwen2VLForConditionalGeneration.from_pretrained, folder, dtype=dtype)
            found[name] = full_size(read, {**inputs, **types})
            if dtype != torch.float32:
                record[name] = {"ours": closeness(full_size(partial(load_model, folder, dtype=dtype), inputs), exact),
                                "transformers": closeness(found[name], exact)}
    worst = largest(exact - found["float32"])
    return {**record, "float32_max": worst, "passed": worst <= LOGIT_LIMIT}


def short_inputs(config: Qwen2VLConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """A random picture of 8 x 10 patches, 20 features, and 44 random words."""
    picture = [config.vision_start_token_id, *[config.image_token_id] * 20, config.vision_end_token_id]
    ids = torch.randint(0, config.bos_token_id, (44,), generator=generator)
    return {"input_ids": torch.cat([torch.tensor(picture), ids])[None], "image_grid_thw": torch.tensor([[1, 8, 10]]),
            "pixel_values": torch.randn(80, config.vision.patch_dim, generator=generator)}


@torch.no_grad()
def full_size(read: Callable[[], nn.Module], inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits (T, V) of a model that lives only during this call: two of them would not fit."""
    logits = read()(**inputs)
    return (logits if isinstance(logits, Tensor) else logits.logits)[0].float()


def closeness(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Relative error |found - exact| / |exact - row mean| over all logits, share of equal argmax, mean KL in nats.

    Where the argmax differs, `lead` is how far apart (in standard deviations of a row) the exact two leaders are."""
    centred = exact - exact.mean(-1, keepdim=True)
    top, same = exact.topk(2).values, found.argmax(-1) == exact.argmax(-1)
    lead = (top[:, 0] - top[:, 1]) / exact.std(-1)
    kl = (exact.log_softmax(-1).exp() * (exact.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    return {"relative_error": float((found - exact).norm() / centred.norm()),
            "argmax_agreement": float(same.float().mean()),
            "largest_lead_lost": float(lead[~same].max()) if not same.all() else 0.0, "mean_kl": float(kl.mean())}


PARTS: Mapping[str, Callable[[argparse.Namespace], dict]] = {
    "names": names, "text": text, "pixels": pixels, "model": model, "files": files, "half": half,
    "precision": precision}

if __name__ == "__main__":
    main()
