"""From images and chat messages to the tensors of `Qwen2VL.forward`, and from token ids back to text.

    messages -> chat template -> token ids, with the placeholder of each image repeated once per feature vector

Special tokens are inserted as ids and never parsed from text, so "<|im_end|>" typed by a user is ordinary text.
A directory may be untrusted: its chat template is compared, never executed.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from models.config import Qwen2VLConfig
from models.files import read_json
from models.images import FRAMES, IMAGE_MEAN, IMAGE_STD, MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, image_patches
from models.template import CHAT_TEMPLATE, SYSTEM_PROMPT, foreign_templates
from models.tokenizer import FLAGS, load_tokenizer, special_token_ids, without_own_tokens
from storage import write_json, write_text

# {"role": ..., "content": a string, or a list of {"type": "image"} and {"type": "text", "text": ...}}
Message = Mapping[str, Any]

KNOWN_TEXTS = 2**14                                 # texts whose ids are kept
LARGEST_PIXELS = 2**24                              # the released models allow 12,845,056: 16,384 feature vectors


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
        if not 0 < min_pixels <= max_pixels <= LARGEST_PIXELS:
            raise ValueError(f"min_pixels {min_pixels} and max_pixels {max_pixels}: need 0 < min_pixels <= max_pixels "
                             f"<= {LARGEST_PIXELS}")
        self.tokenizer, self.min_pixels, self.max_pixels = tokenizer, min_pixels, max_pixels
        self._text_tokenizer, self._added_ids = without_own_tokens(tokenizer)
        self._known_texts = lru_cache(KNOWN_TEXTS)(self._encode_text)           # most texts come again and again
        self.token_ids = special_token_ids(tokenizer)
        self._hidden = frozenset(self.token_ids.values())
        self.pad_token_id = self.token_ids["<|endoftext|>"]
        self.end_of_turn_id = self.token_ids["<|im_end|>"]
        self.image_token_id = self.token_ids["<|image_pad|>"]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text. Qwen2-VL's special tokens in it are ordinary characters; added tokens are tokens."""
        return list(self._known_texts(text))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._added_ids.get(i, i) for i in self._text_tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids. Only Qwen2-VL's own special tokens are left out."""
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return self.tokenizer.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False)

    def encode(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> tuple[list[int], Tensor, Tensor]:
        """One conversation -> ids, pixel_values (N, 1176) float32, image_grid_thw (I, 3) int64.

        Without images N = I = 0, which `Qwen2VL` treats like None.
        Raises: ValueError if a message is malformed, or the numbers of images and image parts differ."""
        wanted = sum(part is None for message in messages for part in content_parts(message.get("content")))
        if wanted != len(images):
            raise ValueError(f"the messages have {wanted} image parts, but {len(images)} images were given")
        pixels, grids = [np.zeros((0, 3 * FRAMES * PATCH**2), np.float32)], []
        for image in images:
            patches, grid = image_patches(image, self.min_pixels, self.max_pixels)
            pixels.append(patches.numpy())
            grids.append(grid)
        ids = self._chat_ids(messages, [rows * columns // MERGE**2 for _, rows, columns in grids])
        # numpy joins them, because torch would start threads of its own in the thread that prepares data, and OpenMP's
        # threads stop spinning, for every thread of the process, when there are more of them than cores
        joined = torch.from_numpy(np.concatenate(pixels))
        return ids, joined, torch.tensor(grids, dtype=torch.int64).view(-1, 3)

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


def load_processor(directory: str | Path, min_pixels: int | None = None, max_pixels: int | None = None,
                   cap: int | None = None, tokenizer: Tokenizer | None = None,
                   budget_of: str | Path = "") -> Processor:
    """The processor of a checkpoint directory; a pixel budget given here replaces the directory's.

    `cap` limits the directory's max_pixels, but not to less than its min_pixels. `tokenizer`: if it was read before.
    budget_of: the directory whose pixel budget counts, if it is another one.
    Warns if the directory's chat template is not that of the Instruct models. Raises: FileNotFoundError, ValueError."""
    directory = Path(directory)
    tokenizer = load_tokenizer(directory) if tokenizer is None else tokenizer
    if foreign := foreign_templates(directory):
        warnings.warn(f"{directory}: its chat template is not that of Qwen2-VL-Instruct, which is used here "
                      f"({', '.join(foreign)} differs). A model that was trained with another template must be "
                      "fine-tuned first", stacklevel=2)
    lowest, highest = _pixel_budget(Path(budget_of or directory))
    if cap is not None:
        highest = max(lowest, min(highest, cap))
    budget = lowest if min_pixels is None else min_pixels, highest if max_pixels is None else max_pixels
    if budget[0] > budget[1]:
        given = "min_pixels" if max_pixels is None else "max_pixels"
        other = (f"{given} was given, the other is that of {directory}; give both (--min-pixels, --max-pixels)"
                 if None in (min_pixels, max_pixels) else "raise --max-pixels, or lower --min-pixels")
        raise ValueError(f"min_pixels {budget[0]} is above max_pixels {budget[1]}: {other}")
    return Processor(tokenizer, *budget)


def _pixel_budget(directory: Path) -> tuple[int, int]:
    """(min_pixels, max_pixels) of a directory, the released ones if it states none.

    transformers 4 reads preprocessor_config.json, transformers 5 the image_processor of processor_config.json.
    Raises: ValueError if the two differ, or images are processed differently."""
    path, other = directory / "preprocessor_config.json", directory / "processor_config.json"
    nested = read_json(other).get("image_processor") if other.is_file() else None
    found = {path: read_json(path)} if path.is_file() else {}
    found |= {} if nested is None else {other: nested}
    budgets = {source: _budget_of(settings, source) for source, settings in found.items()}
    if len(set(budgets.values())) > 1:
        raise ValueError(f"{path} has min_pixels and max_pixels {budgets[path]}, {other} has {budgets[other]}; delete "
                         "the one that is out of date")
    return next(iter(budgets.values()), (MIN_PIXELS, MAX_PIXELS))


def _budget_of(settings: object, path: Path) -> tuple[int, int]:
    """(min_pixels, max_pixels) of the settings of an image processor. As in transformers, they count before `size`."""
    size = settings.get("size") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(size, dict | None):
        raise ValueError(f"{path}: the settings of the image processor and their 'size' must be objects; copy it again")
    ours = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": FRAMES, "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD), "resample": Image.Resampling.BICUBIC, "do_resize": True, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    if other := {key: settings[key] for key, value in ours.items() if settings.get(key, value) != value}:
        raise ValueError(f"{path}: {other!r:.500} differs from Qwen2-VL's {({key: ours[key] for key in other})}")
    stated = [next((part[name] for part, name in places if part.get(name)), None) for places in (
        ((settings, "min_pixels"), (size or {}, "shortest_edge"), (size or {}, "min_pixels")),
        ((settings, "max_pixels"), (size or {}, "longest_edge"), (size or {}, "max_pixels")))]
    if size and stated == [None, None]:
        raise ValueError(f"{path}: size {size!r:.200} names no shortest_edge and longest_edge, which are Qwen2-VL's "
                         "smallest and largest area in pixels; add min_pixels and max_pixels")
    budget = stated[0] or MIN_PIXELS, stated[1] or MAX_PIXELS
    if not all(type(pixels) is int and 0 < pixels <= LARGEST_PIXELS for pixels in budget):
        raise ValueError(f"{path}: min_pixels and max_pixels are {budget!r:.200}; both must be whole numbers from 1 to "
                         f"{LARGEST_PIXELS:,}")
    if budget[0] > budget[1]:
        raise ValueError(f"{path}: min_pixels {budget[0]} is above max_pixels {budget[1]}; correct one of them")
    return budget


def save_processor(processor: Processor, directory: str | Path) -> None:
    """Write tokenizer, chat template and image settings for this code, transformers 4.45 to 5 and vLLM.

    The template is written where each of them looks: chat_template.json, chat_template.jinja, tokenizer_config.json."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    added = processor.tokenizer.get_added_tokens_decoder()
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2VLProcessor", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "errors": "replace", "padding_side": "left", "model_max_length": 32768,
        "split_special_tokens": False, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "unk_token": None, "chat_template": CHAT_TEMPLATE,
        "additional_special_tokens": [token.content for token in added.values()
                                      if token.special and token.content != "<|endoftext|>"],
        "added_tokens_decoder": {str(token_id): {name: getattr(token, name) for name in ("content", *FLAGS)}
                                 for token_id, token in added.items()}}
    write_text(directory / "tokenizer.json", processor.tokenizer.to_str(pretty=True))
    write_text(directory / "chat_template.jinja", CHAT_TEMPLATE)
    write_json({"chat_template": CHAT_TEMPLATE}, directory / "chat_template.json")
    write_json(tokenizer_config, directory / "tokenizer_config.json")
    save_picture_settings(processor, directory)
    (directory / "processor_config.json").unlink(missing_ok=True)      # of a save by transformers 5, now out of date


def save_picture_settings(processor: Processor, directory: str | Path) -> None:
    """Write preprocessor_config.json: pixel budget, patch size and normalisation."""
    write_json({
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        "min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels,
        "size": {"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels}, "patch_size": PATCH,
        "temporal_patch_size": FRAMES, "merge_size": MERGE, "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD)}, Path(directory) / "preprocessor_config.json")
