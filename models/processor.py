"""From images and chat messages to the tensors of `Qwen2VL.forward`, and from token ids back to text.

    messages -> chat template -> token ids, with the placeholder of each image repeated once per feature vector

Special tokens are inserted as ids and never parsed from text, so "<|im_end|>" typed by a user is ordinary text.
A directory may be untrusted: its chat template is compared, never executed.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from models.config import Qwen2VLConfig
from models.files import MAX_JSON_BYTES, read_json
from models.images import FRAMES, IMAGE_MEAN, IMAGE_STD, MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, image_patches
from models.tokenizer import SPECIAL_TOKENS, load_tokenizer, special_token_ids, without_special_tokens
from storage import write_json, write_text

# {"role": ..., "content": a string, or a list of {"type": "image"} and {"type": "text", "text": ...}}
Message = Mapping[str, Any]

LARGEST_PIXELS = 2**24                              # the released models allow 12,845,056: 16,384 feature vectors
SYSTEM_PROMPT = "You are a helpful assistant."

# `Processor._chat_ids` as a Jinja template, for other programs that read a saved directory.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")


def content_parts(content: str | Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The parts of a message in order: the text of a text part, None for an image.

    Raises: ValueError for anything else."""
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
    """The tokenizer and the pixel budget of a model.

    `encode` takes one conversation, a call takes a batch. Both end with the generation prompt."""

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
        """Token ids of a text; the names of special tokens in it are ordinary characters."""
        return self._plain_tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids, without special tokens."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> tuple[list[int], Tensor, Tensor]:
        """One conversation -> ids, pixel_values (N, 1176) float32, image_grid_thw (I, 3) int64.

        Without images N = I = 0, which `Qwen2VL` treats like None.
        Raises: ValueError if a message is malformed, or the numbers of images and image parts differ."""
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
        """The chat template of Qwen2-VL-Instruct; the k-th image has feature_counts[k] placeholders."""
        if not messages:
            raise ValueError("messages is empty; give at least one {'role': 'user', 'content': ...}")
        if messages[0].get("role") != "system":
            messages = [{"role": "system", "content": SYSTEM_PROMPT}, *messages]
        counts, ids = iter(feature_counts), []
        for message in messages:
            ids += self._message_ids(message, counts) + self.encode_text("\n")
        return ids + [self.token_ids["<|im_start|>"], *self.encode_text("assistant\n")]

    def _message_ids(self, message: Message, counts: Iterator[int]) -> list[int]:
        """<|im_start|> role, newline, content <|im_end|>. The text between two special tokens is encoded as a whole."""
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
        """A batch: one conversation and its images per row -> the arguments of `Qwen2VL.forward`.

        Shapes: input_ids, attention_mask (B, T) int64; pixel_values (N, 1176); image_grid_thw (I, 3).
        Raises: ValueError as in `encode`, or if messages and images differ in length."""
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


def fit_config(config: Qwen2VLConfig, tokenizer: Tokenizer) -> Qwen2VLConfig:
    """The config with the vocabulary size and special ids of a tokenizer, for a model trained from scratch."""
    ids = special_token_ids(tokenizer)
    return replace(
        config, text=replace(config.text, vocab_size=tokenizer.get_vocab_size()), bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], vision_token_id=ids["<|vision_pad|>"],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"])


def load_processor(directory: str | Path, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor:
    """The processor of a checkpoint directory; a pixel budget given here replaces the directory's.

    Warns if the directory's chat template is not that of the Instruct models. Raises: FileNotFoundError, ValueError."""
    directory = Path(directory)
    tokenizer = load_tokenizer(directory)
    if not is_instruct_template(_chat_template(directory)):
        warnings.warn(f"{directory}: its chat template is not that of Qwen2-VL-Instruct, which is used here; "
                      "a base model must be fine-tuned before it follows this template", stacklevel=2)
    lowest, highest = _pixel_budget(directory)
    return Processor(tokenizer, lowest if min_pixels is None else min_pixels,
                     highest if max_pixels is None else max_pixels)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, {} if the file does not exist. Raises: ValueError naming the file."""
    return read_json(path) if path.is_file() else {}


def _chat_template(directory: Path) -> str | None:
    """The chat template, from the files in which releases of transformers store it."""
    if (directory / "chat_template.jinja").is_file():
        with open(directory / "chat_template.jinja", encoding="utf-8", errors="replace") as file:
            return file.read(MAX_JSON_BYTES)
    files = (_read_json(directory / name) for name in ("chat_template.json", "tokenizer_config.json"))
    return next((found["chat_template"] for found in files if found.get("chat_template")), None)


def is_instruct_template(template: str | None) -> bool:
    """Whether a chat template looks like that of the Instruct models. None counts as such."""
    marks = ("<|im_start|>", "<|im_end|>", SYSTEM_PROMPT, "<|vision_start|><|image_pad|><|vision_end|>")
    return template is None or isinstance(template, str) and all(mark in template for mark in marks)


def _pixel_budget(directory: Path) -> tuple[int, int]:
    """(min_pixels, max_pixels) of the directory. Raises: ValueError if it processes images differently."""
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
    """Write tokenizer.json, tokenizer_config.json and preprocessor_config.json for this code and transformers."""
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
    write_json(tokenizer_config, directory / "tokenizer_config.json")
    write_json(preprocessor_config, directory / "preprocessor_config.json")
