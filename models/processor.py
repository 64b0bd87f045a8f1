"""From pictures and chat messages to the tensors of `Qwen2VL.forward`, and from token ids back to text.

    PIL image -> smart_resize -> bicubic -> normalise -> (patches, 1176) in merge-block order
    messages  -> chat template -> token ids, each picture's placeholder repeated once per feature vector

Section 2.1 of arXiv 2409.12191 ("naive dynamic resolution") explains why pictures keep their shape.
Special tokens are inserted as ids and never parsed from text, so a user who types "<|im_end|>" gets just these letters.
Turning a picture upright (EXIF) is the caller's business: a driving camera's frames need none.
`train_bpe` makes a small vocabulary of the same kind for models trained from scratch.

A directory may be a stranger's: its chat template is compared, never executed; a tokenizer that would do something else
than Qwen2's (rules that multiply a text, patterns that take exponential time) and absurd sizes are refused.
"""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from models.config import LARGEST, MAX_JSON_BYTES, Qwen2VLConfig, read_json
from storage import write_text

# {"role": ..., "content": a string, or a list of {"type": "image"} and {"type": "text", "text": ...}}
Message = Mapping[str, Any]

COPY_TOKENIZER = "copy the tokenizer's files of a Qwen2-VL checkpoint"
PATCH, MERGE, FRAMES = 14, 2, 2                     # pixels per patch side, patches per merged side, frames per patch
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)    # CLIP's training pictures, red, green, blue
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 3136, 401_408              # 4 and 512 feature vectors
LARGEST_PIXELS = 2**24                              # the released budget goes up to 12,845,056, 16,384 feature vectors
MAX_TOKENIZER_BYTES = 64 * 2**20                    # each of tokenizer.json, vocab.json, merges.txt; released: 7 MB
SYSTEM_PROMPT = "You are a helpful assistant."

# In the order of the released vocabulary, where they follow the byte-pair entries without a gap.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
                  "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
                  "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# Qwen2 splits text into contractions, words with one leading sign, single digits, signs, line breaks and blanks.
SPLIT_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# `Processor._chat_ids` in Jinja, for other programs that read a saved directory.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")


def smart_resize(height: int, width: int, min_pixels: int = MIN_PIXELS,
                 max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The size at which a picture is read: sides are multiples of 28, the area is in the pixel budget.

    Sides are rounded to the nearest multiple (halves to even). If that leaves the budget, both sides are scaled by
    sqrt(budget / (height * width)) and rounded towards the inside of the budget.
    Raises: ValueError if a side is 0 or one side is over 200 times the other.
    Source: the rule of the released image processor (transformers, Qwen2VLImageProcessor).
    """
    if min(height, width) < 1:
        raise ValueError(f"picture of {width} x {height} pixels: it is empty; its file may be broken")
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"picture of {width} x {height} pixels: one side is over 200 times the other; crop it")
    unit = PATCH * MERGE
    new_height, new_width = round(height / unit) * unit, round(width / unit) * unit
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(unit, math.floor(height / scale / unit) * unit)
        new_width = max(unit, math.floor(width / scale / unit) * unit)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height, new_width = math.ceil(height * scale / unit) * unit, math.ceil(width * scale / unit) * unit
    return new_height, new_width


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB. What is transparent becomes white, as in the released image processor."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def image_patches(image: Image.Image, min_pixels: int, max_pixels: int) -> tuple[Tensor, tuple[int, int, int]]:
    """One picture -> its flattened patches (rows * columns, 1176) float32 and its grid (1, rows, columns).

    The four patches of each 2 x 2 block follow each other, blocks run row after row; a patch holds channel, frame (the
    still twice), y, x."""
    height, width = smart_resize(image.height, image.width, min_pixels, max_pixels)
    image = to_rgb(image)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)          # (height, width, 3)
    pixels = (pixels - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)          # block row, block column, row, column, channel, y, x
    patches = blocks.reshape(rows * columns, 3, 1, PATCH, PATCH).repeat(FRAMES, axis=2)
    return torch.from_numpy(patches.reshape(rows * columns, -1)), (1, rows, columns)


def content_parts(content: str | Sequence[Mapping[str, Any]]) -> list[str | None]:
    """A message's content in its own order: text as it is, None for a picture.

    Raises: ValueError on anything else."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ValueError(f"message content must be a string or a list of parts, not {content!r}")
    return [_content_part(part) for part in parts]


def _content_part(part: Mapping[str, Any]) -> str | None:
    if part.get("type") == "image":
        return None
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(f"message part {part!r} is neither {{'type': 'image'}} nor {{'type': 'text', 'text': ...}}")


class Processor:
    """Tokenizer and picture reader of one model.

    `encode` reads one conversation, calling the processor reads a batch; both end with the generation prompt."""

    def __init__(self, tokenizer: Tokenizer, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> None:
        if not 0 < min_pixels <= max_pixels:
            raise ValueError(f"min_pixels {min_pixels} and max_pixels {max_pixels}: need 0 < min_pixels <= max_pixels")
        self.tokenizer, self.min_pixels, self.max_pixels = tokenizer, min_pixels, max_pixels
        self._plain_tokenizer = without_special_tokens(tokenizer)
        self.token_ids = special_token_ids(tokenizer)
        self.pad_token_id = self.token_ids["<|endoftext|>"]
        self.end_of_turn_id = self.token_ids["<|im_end|>"]
        self.image_token_id = self.token_ids["<|image_pad|>"]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; the names of special tokens in it are letters like all others."""
        return self._plain_tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of token ids without special tokens."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> tuple[list[int], Tensor, Tensor]:
        """One conversation -> ids, pixel_values (N, 1176) float32, image_grid_thw (I, 3) int64.

        Without pictures N = I = 0, which `Qwen2VL` accepts as it accepts None.
        Raises: ValueError if a message is malformed or pictures and image parts differ in number."""
        wanted = sum(part is None for message in messages for part in content_parts(message.get("content")))
        if wanted != len(images):
            raise ValueError(f"the messages have {wanted} image parts, but {len(images)} images were given")
        pixels, grids = [torch.zeros(0, 3 * FRAMES * PATCH**2)], []
        for image in images:
            patches, grid = image_patches(image, self.min_pixels, self.max_pixels)
            pixels.append(patches)
            grids.append(grid)
        ids = self._chat_ids(messages, [rows * columns // MERGE**2 for _, rows, columns in grids])
        return ids, torch.cat(pixels), torch.tensor(grids, dtype=torch.int64).view(-1, 3)

    def _chat_ids(self, messages: Sequence[Message], feature_counts: list[int]) -> list[int]:
        """The chat template of Qwen2-VL-Instruct, with the k-th picture taking feature_counts[k] placeholders."""
        if not messages:
            raise ValueError("messages is empty; give at least one {'role': 'user', 'content': ...}")
        if messages[0].get("role") != "system":
            messages = [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
        counts, ids = iter(feature_counts), []
        for message in messages:
            ids += self._message_ids(message, counts) + self.encode_text("\n")
        return ids + [self.token_ids["<|im_start|>"], *self.encode_text("assistant\n")]

    def _message_ids(self, message: Message, counts: Iterator[int]) -> list[int]:
        """<|im_start|> role, newline, content <|im_end|>. Text between two special tokens is encoded in one piece."""
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"message role {message.get('role')!r} is not one of system, user, assistant")
        ids, text = [self.token_ids["<|im_start|>"]], message["role"] + "\n"
        for part in content_parts(message.get("content")):
            if part is None:
                picture = [self.image_token_id] * next(counts)
                ids += [*self.encode_text(text), self.token_ids["<|vision_start|>"], *picture,
                        self.token_ids["<|vision_end|>"]]
                text = ""
            else:
                text += part
        return [*ids, *self.encode_text(text), self.end_of_turn_id]

    def __call__(self, messages: Sequence[Sequence[Message]], images: Sequence[Sequence[Image.Image]],
                 padding_side: str = "left") -> dict[str, Tensor]:
        """A batch: per row a conversation and its pictures -> the arguments of `Qwen2VL.forward`.

        Shapes: input_ids, attention_mask (B, T) int64; pixel_values (N, 1176); image_grid_thw (I, 3).
        Raises: ValueError as `encode`, or if messages and images differ in length."""
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side {padding_side!r} is not one of left, right")
        if not messages or len(messages) != len(images):
            raise ValueError(f"{len(messages)} rows of messages and {len(images)} rows of images: need one list of "
                             "images (it may be empty) for each conversation, and at least one row")
        encoded = [self.encode(chat, pictures) for chat, pictures in zip(messages, images, strict=True)]
        length = max(len(ids) for ids, _, _ in encoded)
        input_ids = torch.full((len(encoded), length), self.pad_token_id)       # (B, T)
        attention_mask = torch.zeros_like(input_ids)                            # (B, T)
        for row, (ids, _, _) in enumerate(encoded):
            place = slice(length - len(ids), length) if padding_side == "left" else slice(len(ids))
            input_ids[row, place], attention_mask[row, place] = torch.tensor(ids), 1
        return {"input_ids": input_ids, "attention_mask": attention_mask,
                "pixel_values": torch.cat([pixels for _, pixels, _ in encoded]),
                "image_grid_thw": torch.cat([grid for _, _, grid in encoded])}


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> id. Raises: ValueError naming the special tokens that the tokenizer lacks."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    if missing := [name for name, token_id in ids.items() if token_id is None]:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; use the one of a Qwen2-VL checkpoint or train_bpe")
    return ids


def without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary and splitting, to which "<|im_end|>" is ten letters and signs.

    A copy rather than the tokenizer's own switch (`encode_special_tokens`), which pickling forgets."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return plain


def fit_config(config: Qwen2VLConfig, tokenizer: Tokenizer) -> Qwen2VLConfig:
    """The configuration with the tokenizer's vocabulary size and special ids, for a model trained from scratch."""
    ids = special_token_ids(tokenizer)
    return replace(
        config, text=replace(config.text, vocab_size=tokenizer.get_vocab_size()), bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"])


def byte_level(model: BPE) -> Tokenizer:
    """Qwen2's pipeline around a byte-pair model: NFC, split by SPLIT_PATTERN, bytes."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of Qwen2's kind: at most `vocab_size` entries, the last 14 the special tokens.

    Equal texts give an equal tokenizer. Raises: ValueError if vocab_size has no room for bytes and special tokens."""
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size {vocab_size} is below 256 bytes + {len(SPECIAL_TOKENS)} special tokens = "
                         f"{256 + len(SPECIAL_TOKENS)}")
    tokenizer = byte_level(BPE())
    trainer = BpeTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), show_progress=False,
                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    return tokenizer


def load_processor(directory: str | Path, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor:
    """The processor of a checkpoint directory; a pixel budget given here goes before the directory's.

    Warns if the directory's chat template is not the Instruct models'. Raises: FileNotFoundError, ValueError."""
    directory = Path(directory)
    tokenizer = load_tokenizer(directory)
    if not is_instruct_template(_chat_template(directory)):
        warnings.warn(f"{directory}: its chat template is not that of Qwen2-VL-Instruct, which is used here; "
                      "a base model must be fine-tuned before it follows the template", stacklevel=2)
    lowest, highest = _pixel_budget(directory)
    return Processor(tokenizer, lowest if min_pixels is None else min_pixels,
                     highest if max_pixels is None else max_pixels)


def load_tokenizer(directory: Path) -> Tokenizer:
    """From tokenizer.json, or else from vocab.json, merges.txt and the added tokens of tokenizer_config.json.

    Raises: FileNotFoundError; ValueError naming a file that is broken, too large, or another kind of tokenizer."""
    names = ("tokenizer.json",)
    if not (directory / names[0]).is_file():
        names = ("vocab.json", "merges.txt", "tokenizer_config.json")
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise FileNotFoundError(f"{directory} has neither tokenizer.json nor {', '.join(missing)}")
    for path in (directory / name for name in names):
        if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path} has {size:,} bytes, at most {MAX_TOKENIZER_BYTES:,} are read; {COPY_TOKENIZER}")
    tokenizer = _from_three_files(directory) if len(names) == 3 else _from_one_file(directory / names[0])
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= LARGEST["vocab_size"]:
        raise ValueError(f"{directory / names[0]} gives a token the id {highest}, at most "
                         f"{LARGEST['vocab_size'] - 1} is read; {COPY_TOKENIZER}")
    return tokenizer


def _from_one_file(path: Path) -> Tokenizer:
    """tokenizer.json. Its rules are looked at before the library reads them, which ends the process at some."""
    try:
        text = path.read_text(encoding="utf-8")
        refuse_other_rules(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a tokenizer of Qwen2's kind ({error}); {COPY_TOKENIZER}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  the library raises nothing more specific
        raise ValueError(f"{path} is not a complete tokenizer file ({str(error)[:300]!r}); {COPY_TOKENIZER}") from error


def refuse_other_rules(tokenizer: Mapping[str, Any]) -> None:
    """Raises: ValueError naming what in a tokenizer.json is not a rule of Qwen2's: byte-pair entries of bytes, NFC,
    split by SPLIT_PATTERN. Nothing else is needed, and a rule can multiply a text or take exponential time."""
    if tokenizer["model"].get("type", "BPE") != "BPE" or "merges" not in tokenizer["model"]:
        raise ValueError(f"model type {tokenizer['model'].get('type')!r:.80}, not 'BPE'")
    for part, allowed in {"normalizer": ("NFC",), "pre_tokenizer": ("Split", "ByteLevel"),
                          "decoder": ("ByteLevel",)}.items():
        rule = tokenizer.get(part) or {}
        for step in rule.get("pretokenizers", [rule] if rule else []):
            if step["type"] not in allowed:
                raise ValueError(f"{part} {step['type']!r:.80}, not one of {', '.join(allowed)}")
            if step["type"] == "Split" and step["pattern"] != {"Regex": SPLIT_PATTERN}:
                raise ValueError(f"{part} splits by {step['pattern']!r:.200}, not by {SPLIT_PATTERN!r}")


def _from_three_files(directory: Path) -> Tokenizer:
    """vocab.json, merges.txt and the added tokens of tokenizer_config.json, in Qwen2's pipeline."""
    path = directory / "tokenizer_config.json"
    try:
        tokenizer = byte_level(BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    except Exception as error:  # noqa: BLE001  the library raises nothing more specific
        raise ValueError(f"{directory}: vocab.json and merges.txt are no byte-pair vocabulary ({str(error)[:300]!r}); "
                         f"{COPY_TOKENIZER}") from error
    try:
        added = sorted((int(token_id), token["content"], token["special"]) for token_id, token in
                       read_json(path).get("added_tokens_decoder", {}).items())
        for _, content, special in added:
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(content, normalized=False, special=special)])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: added_tokens_decoder cannot be read ({error!r:.300}); {COPY_TOKENIZER}") from error
    for token_id, content, _ in added:
        if tokenizer.token_to_id(content) != token_id:
            raise ValueError(f"{path}: {content!r:.80} should be id {token_id}, but vocab.json leaves it "
                             f"{tokenizer.token_to_id(content)}; the files do not belong together")
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file. Raises: ValueError naming the file."""
    return read_json(path) if path.is_file() else {}


def _chat_template(directory: Path) -> str | None:
    """The chat template from the places where releases of transformers put it."""
    if (directory / "chat_template.jinja").is_file():
        with open(directory / "chat_template.jinja", encoding="utf-8", errors="replace") as file:
            return file.read(MAX_JSON_BYTES)
    files = (_read_json(directory / name) for name in ("chat_template.json", "tokenizer_config.json"))
    return next((found["chat_template"] for found in files if found.get("chat_template")), None)


def is_instruct_template(template: str | None) -> bool:
    """Whether a chat template has the marks of the Instruct one; no template counts as it."""
    marks = ("<|im_start|>", "<|im_end|>", SYSTEM_PROMPT, "<|vision_start|><|image_pad|><|vision_end|>")
    return template is None or isinstance(template, str) and all(mark in template for mark in marks)


def _pixel_budget(directory: Path) -> tuple[int, int]:
    """(min_pixels, max_pixels) of the directory. Raises: ValueError if its pictures are cut up in another way."""
    path = directory / "preprocessor_config.json"
    settings = _read_json(path) or _read_json(directory / "processor_config.json").get("image_processor") or {}
    size = settings.get("size") if isinstance(settings, dict) else None         # transformers 5: the budget as "size"
    if not isinstance(settings, dict) or not isinstance(size, dict | None):
        raise ValueError(f"{path}: the settings of the image processor and their 'size' must be objects; copy it again")
    ours = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": FRAMES, "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD), "resample": Image.Resampling.BICUBIC, "do_resize": True, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    if other := {key: settings[key] for key, value in ours.items() if settings.get(key, value) != value}:
        raise ValueError(f"{path}: {other!r:.500} differs from Qwen2-VL's {({key: ours[key] for key in other})}")
    budget = (settings.get("min_pixels") or (size or {}).get("shortest_edge") or MIN_PIXELS,
              settings.get("max_pixels") or (size or {}).get("longest_edge") or MAX_PIXELS)
    if not all(type(pixels) is int and 0 < pixels <= LARGEST_PIXELS for pixels in budget):
        raise ValueError(f"{path}: min_pixels and max_pixels are {budget!r:.200}; both must be whole numbers from 1 to "
                         f"{LARGEST_PIXELS:,}")
    return budget


def save_processor(processor: Processor, directory: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and preprocessor_config.json, which transformers reads too."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None,
        "errors": "replace", "padding_side": "left", "model_max_length": 32768, "split_special_tokens": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]), "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {str(token_id): {"content": name, "lstrip": False, "normalized": False, "rstrip": False,
                                                 "single_word": False, "special": True}
                                 for name, token_id in processor.token_ids.items()}}
    preprocessor_config = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        "min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels,
        "size": {"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels}, "patch_size": PATCH,
        "temporal_patch_size": FRAMES, "merge_size": MERGE,
        "image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}
    write_text(directory / "tokenizer.json", processor.tokenizer.to_str(pretty=True))
    write_text(directory / "tokenizer_config.json", json.dumps(tokenizer_config, indent=2))
    write_text(directory / "preprocessor_config.json", json.dumps(preprocessor_config, indent=2))
