"""One value for every fact that a model directory states in several files.

    head tied to embeddings   tie_word_embeddings outside and inside text_config; lm_head.weight in the weights
    stop tokens               eos_token_id in config.json and generation_config.json; <|im_end|> of the tokenizer
    special tokens            ..._token_id in config.json; the tokenizer
    vocabulary                vocab_size in config.json; the highest id of the tokenizer (the embedding: weights.py)

`load_model` calls `reconciled` once. Where the files leave one reading it is used; else both values are named.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from models.config import Qwen2VLConfig, flattened
from models.files import read_json
from models.tokenizer import special_token_ids

TOKENS = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
          "vision_token_id": "<|vision_pad|>", "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}


def reconciled(config: Qwen2VLConfig, directory: Path, has_head: bool, tokenizer: Tokenizer | None) -> Qwen2VLConfig:
    """The config that all files of the directory agree on. `has_head`: the weights hold lm_head.weight.

    Raises: ValueError naming the two values that cannot both be right."""
    stated = read_json(directory / "config.json")
    if stated.get("quantization_config"):
        warnings.warn(f"{directory / 'config.json'} has a quantization_config, which is ignored: only weights that are "
                      "not quantised are read", stacklevel=3)
    config = replace(config, tie_word_embeddings=tied(stated, directory, has_head))
    ends = end_tokens(stated, directory, config.text.vocab_size)
    if tokenizer is not None:
        config = with_tokens(config, flattened(stated), tokenizer, directory)
    return replace(config, other_stop_token_ids=tuple(i for i in ends if i not in (config.eos_token_id,
                                                                                   config.bos_token_id)))


def tied(stated: Mapping[str, Any], directory: Path, has_head: bool) -> bool:
    """Whether the head is the embedding matrix. The outer flag counts before that of text_config, a class default.

    Raises: ValueError if the head is said to be a matrix of its own that the weights lack."""
    outer = stated.get("tie_word_embeddings")
    inner = (stated.get("text_config") or {}).get("tie_word_embeddings")
    said = inner if outer is None else outer
    if has_head:
        return bool(said)
    if outer is False and inner is not True:
        raise ValueError(f"{directory / 'config.json'} has tie_word_embeddings false, but the weights have no "
                         "lm_head.weight. If the head is the embedding matrix, as in the 2B, change it to true; "
                         "otherwise the weights are incomplete: copy them again")
    if said is False:
        warnings.warn(f"{directory / 'config.json'} has tie_word_embeddings {outer}, its text_config {inner}; the "
                      "weights have no lm_head.weight, so the head is tied to the embeddings", stacklevel=4)
    return True


def end_tokens(stated: Mapping[str, Any], directory: Path, vocab_size: int) -> list[int]:
    """Every end token that config.json and generation_config.json name. Raises: ValueError for other values."""
    path = directory / "generation_config.json"
    sources = {directory / "config.json": flattened(stated), path: read_json(path) if path.is_file() else {}}
    found = []
    for source, values in sources.items():
        listed = values.get("eos_token_id")
        listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
        if wrong := [i for i in listed if type(i) is not int or not 0 <= i < vocab_size]:
            raise ValueError(f"{source}: eos_token_id {wrong[0]!r:.80} must be a whole number below vocab_size "
                             f"{vocab_size}")
        found += listed
    return list(dict.fromkeys(found))


def with_tokens(config: Qwen2VLConfig, stated: Mapping[str, Any], tokenizer: Tokenizer,
                directory: Path) -> Qwen2VLConfig:
    """The config with the special ids of the tokenizer, with which texts are encoded.

    Raises: ValueError if config.json states another id, or a vocabulary that is too small."""
    highest, words = max(tokenizer.get_vocab().values()), config.text.vocab_size
    if highest >= words:
        raise ValueError(f"{directory}: the tokenizer goes up to id {highest}, config.json has vocab_size {words}; the "
                         "files do not belong together")
    ids = special_token_ids(tokenizer)
    for name, token in TOKENS.items():
        if stated.get(name) not in (None, ids[token]):
            raise ValueError(f"{directory}: config.json has {name} {stated[name]!r:.80}, the tokenizer's {token} is "
                             f"{ids[token]}; the files do not belong together")
    return replace(config, eos_token_id=ids["<|im_end|>"], bos_token_id=ids["<|endoftext|>"],
                   **{name: ids[token] for name, token in TOKENS.items()})
