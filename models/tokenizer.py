"""Byte-level BPE tokenizers of Qwen2's kind: trained from text, or read from a model directory.

The files may be untrusted. Only Qwen2's own rules are accepted, because other rules can multiply a text or take
exponential time, and sizes are limited.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from models.config import LARGEST
from models.files import not_a_model, read_json, refuse_pointer

COPY_TOKENIZER = "copy the tokenizer's files of a Qwen2-VL checkpoint"
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")        # of an added token
MAX_TOKENIZER_BYTES = 64 * 2**20                    # each of tokenizer.json, vocab.json, merges.txt; released: 7 MB

# In the order of the released vocabulary, where they follow the byte-pair entries without a gap.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
                  "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
                  "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# Qwen2 splits text into contractions, words with one leading sign, single digits, signs, line breaks and spaces.
SPLIT_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# How Qwen2 splits a text before its merges, as tokenizer.json writes it
PIPELINE = ({"type": "Split", "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})


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
    """Train a tokenizer of at most `vocab_size` entries; the last 14 are the special tokens.

    Equal texts give an equal tokenizer. Raises: ValueError if vocab_size is too small for bytes and special tokens."""
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size {vocab_size} is below 256 bytes + {len(SPECIAL_TOKENS)} special tokens = "
                         f"{256 + len(SPECIAL_TOKENS)}")
    tokenizer = byte_level(BPE())
    trainer = BpeTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), show_progress=False,
                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    return tokenizer


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> id. Raises: ValueError naming the special tokens that the tokenizer lacks."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    if missing := [name for name, token_id in ids.items() if token_id is None]:
        raise ValueError(f"the tokenizer lacks {', '.join(missing)}; use the one of a Qwen2-VL checkpoint or train_bpe")
    return ids


def without_own_tokens(tokenizer: Tokenizer) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer that encodes SPECIAL_TOKENS as ordinary characters but knows all other added tokens.

    The copy numbers added tokens anew; the dict gives their ids in `tokenizer`. A copy is used, because pickling loses
    the tokenizer's own switch (`encode_special_tokens`)."""
    copy = Tokenizer(tokenizer.model)
    copy.normalizer, copy.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    added = {token_id: token for token_id, token in tokenizer.get_added_tokens_decoder().items()
             if token.content not in SPECIAL_TOKENS}
    copy.add_tokens(list(added.values()))
    return copy, {copy.token_to_id(token.content): token_id for token_id, token in added.items()}


def find_tokenizer(directory: Path) -> Tokenizer | None:
    """`load_tokenizer`, or None if the directory has none."""
    found = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return load_tokenizer(directory) if found else None


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json, or else vocab.json, merges.txt and the added tokens of tokenizer_config.json.

    Raises: FileNotFoundError; ValueError naming a file that is broken, too large, or another kind of tokenizer."""
    names = ("tokenizer.json",)
    if not (directory / names[0]).is_file():
        names = ("vocab.json", "merges.txt", "tokenizer_config.json")
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise FileNotFoundError(not_a_model(directory) or f"{directory} has neither tokenizer.json nor "
                                    f"{', '.join(missing)}; {COPY_TOKENIZER}")
    for path in (directory / name for name in names):
        refuse_pointer(path)
        if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{path} has {size:,} bytes, at most {MAX_TOKENIZER_BYTES:,} are read; {COPY_TOKENIZER}")
    tokenizer = _from_three_files(directory) if len(names) == 3 else _from_one_file(directory / names[0])
    if (highest := max(tokenizer.get_vocab().values(), default=0)) >= LARGEST["vocab_size"]:
        raise ValueError(f"{directory / names[0]} gives a token the id {highest}, at most "
                         f"{LARGEST['vocab_size'] - 1} is read; {COPY_TOKENIZER}")
    try:
        special_token_ids(tokenizer)
    except ValueError as error:
        raise ValueError(f"{directory / names[-1]}: {error}") from error
    return tokenizer


def _from_one_file(path: Path) -> Tokenizer:
    """Read tokenizer.json. Its rules are checked first, because some of them make the library end the process."""
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
    """Raises: ValueError naming a rule of tokenizer.json that Qwen2 does not have.

    Qwen2's rules are byte-level BPE, NFC and the split by SPLIT_PATTERN."""
    if tokenizer["model"].get("type", "BPE") != "BPE" or "merges" not in tokenizer["model"]:
        raise ValueError(f"model type {tokenizer['model'].get('type')!r:.80}, not 'BPE'")
    if tokenizer["model"].get("dropout"):
        raise ValueError(f"dropout {tokenizer['model']['dropout']!r:.80}, with which a text has other tokens each time")
    for part, allowed in {"normalizer": ("NFC",), "pre_tokenizer": ("Split", "ByteLevel"),
                          "decoder": ("ByteLevel",)}.items():
        rule = tokenizer.get(part) or {}
        for step in rule.get("pretokenizers", [rule] if rule else []):
            if step["type"] not in allowed:
                raise ValueError(f"{part} {step['type']!r:.80}, not one of {', '.join(allowed)}")
            if step["type"] == "Split" and step["pattern"] != {"Regex": SPLIT_PATTERN}:
                raise ValueError(f"{part} splits by {step['pattern']!r:.200}, not by {SPLIT_PATTERN!r}")
    refuse_other_steps(tokenizer)


def refuse_other_steps(tokenizer: Mapping[str, Any]) -> None:
    """Raises: ValueError for a step of tokenizer.json that is missing or has other settings than Qwen2's."""
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    found = [{name: step.get(name) for name in wanted} for step, wanted in zip(steps, PIPELINE, strict=False)]
    if len(steps) != len(PIPELINE) or found != list(PIPELINE):
        raise ValueError(f"pre_tokenizer {json.dumps(tokenizer.get('pre_tokenizer')):.200}, not Qwen2's: "
                         f"{json.dumps(PIPELINE)}")
    if not tokenizer.get("decoder"):
        raise ValueError("no decoder, without which answers are not text; Qwen2's is ByteLevel")
    if affix := [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if tokenizer["model"].get(name)]:
        raise ValueError(f"{affix[0]} {tokenizer['model'][affix[0]]!r:.80}; Qwen2 has none")


def _from_three_files(directory: Path) -> Tokenizer:
    """Read vocab.json, merges.txt and the added tokens of tokenizer_config.json into Qwen2's pipeline."""
    path = directory / "tokenizer_config.json"
    try:
        tokenizer = byte_level(BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    except Exception as error:  # noqa: BLE001  the library raises nothing more specific
        raise ValueError(f"{directory}: vocab.json and merges.txt are no byte-pair vocabulary ({str(error)[:300]!r}); "
                         f"{COPY_TOKENIZER}") from error
    merges = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
    made = sum(bool(line.strip()) and not line.startswith("#version") for line in merges)
    if made < tokenizer.get_vocab_size() - 256:             # each merge makes one entry; the others are the bytes
        raise ValueError(f"{directory}: merges.txt has {made} merges for the {tokenizer.get_vocab_size()} entries of "
                         f"vocab.json, and {tokenizer.get_vocab_size() - 256} are needed; {COPY_TOKENIZER}")
    try:
        added = sorted((int(token_id), token["content"], token) for token_id, token in
                       read_json(path).get("added_tokens_decoder", {}).items())
        for _, content, token in added:
            add = tokenizer.add_special_tokens if token["special"] else tokenizer.add_tokens
            add([AddedToken(content, **{name: bool(token.get(name)) for name in FLAGS})])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: added_tokens_decoder cannot be read ({error!r:.300}); {COPY_TOKENIZER}") from error
    for token_id, content, _ in added:
        if tokenizer.token_to_id(content) != token_id:
            raise ValueError(f"{path}: {content!r:.80} should be id {token_id}, but vocab.json leaves it "
                             f"{tokenizer.token_to_id(content)}; the files do not belong together")
    return tokenizer
