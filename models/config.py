"""The sizes and token ids of a Qwen2-VL model, read from every published form of config.json.

Qwen2-VL (arXiv 2409.12191, section 2.1) has two towers: a vision transformer that turns an image into feature vectors,
and a Qwen2 language model that reads them in place of word embeddings. `VisionConfig` and `TextConfig` describe one
tower each; `Qwen2VLConfig` holds both and the token ids that mark an image in the text.

config.json is flat on the hub, nested under `text_config` when transformers 5 saved it, and reduced when 4.45 or 4.46
did (four keys in vision_config). `Qwen2VLConfig.from_dict` reads all of them; `to_dict` writes the hub's form.

The file may be untrusted: every number has an upper limit, so a false size gives an error and allocates nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models.files import not_a_model, read_json

# About eight times the sizes of the released 72B.
LARGEST = {"depth": 1000, "embed_dim": 65_536, "hidden_size": 65_536, "num_heads": 1024, "mlp_ratio": 64,
           "patch_size": 256, "spatial_merge_size": 16, "temporal_patch_size": 16, "in_channels": 64,
           "intermediate_size": 524_288, "num_hidden_layers": 1000, "num_attention_heads": 1024,
           "num_key_value_heads": 1024, "vocab_size": 1_048_576, "rms_norm_eps": 1, "rope_theta": 1e12,
           "max_position_embeddings": 1_048_576}
FRACTIONS = ("mlp_ratio", "rms_norm_eps", "rope_theta")
MAY_BE_ZERO = ("depth", "num_hidden_layers")


def _check_sizes(record: "VisionConfig | TextConfig") -> None:
    """Raises: ValueError unless every size is an integer from 1 (MAY_BE_ZERO: 0) to LARGEST; FRACTIONS may be float."""
    for name, value in vars(record).items():
        if name not in LARGEST:
            continue
        least = 0 if name in (*FRACTIONS, *MAY_BE_ZERO) else 1
        kinds = (int, float) if name in FRACTIONS else (int,)                   # type() excludes True, <= excludes nan
        if type(value) not in kinds or not least <= value <= LARGEST[name]:
            raise ValueError(f"{name} {value!r:.80} must be a {'' if name in FRACTIONS else 'whole '}number from "
                             f"{least} to {LARGEST[name]:,}")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `embed_dim` is its width; `hidden_size` is the width of its output, the language model's."""

    depth: int = 32
    embed_dim: int = 1280
    hidden_size: int = 1536
    num_heads: int = 16
    mlp_ratio: float = 4
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"vision embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 4:
            raise ValueError(f"vision head_dim {self.head_dim} must be a multiple of 4 (rotary positions on two axes)")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values per flattened patch: channels x frames x height x width, 1,176 in the released models."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """The language model. `mrope_section` is the number of rotary frequencies for time, height and width."""

    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    vocab_size: int = 151936
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    max_position_embeddings: int = 32768

    def __post_init__(self) -> None:
        _check_sizes(self)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        section = self.mrope_section
        whole = isinstance(section, tuple) and all(type(number) is int and number >= 0 for number in section)
        if not whole or len(section) != 3 or 2 * sum(section) != self.head_dim:
            raise ValueError(f"mrope_section {section!r:.80} must be three numbers (time, height, width) whose sum is "
                             f"head_dim / 2 = {self.head_dim // 2}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Qwen2VLConfig:
    """Both towers and the token ids. The defaults are the released Qwen2-VL-2B.

    `eos_token_id` is <|im_end|>, which ends a chat turn; `bos_token_id` is <|endoftext|>, also used for padding;
    `vision_token_id` is <|vision_pad|>, or None if the config does not name it. `other_stop_token_ids` are further end
    tokens that a fine-tune may have.
    """

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    tie_word_embeddings: bool = True
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    eos_token_id: int = 151645
    bos_token_id: int = 151643
    vision_token_id: int | None = None
    other_stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_token_id") and value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} {value!r} must be a whole number >= 0")
        if self.vision.hidden_size != self.text.hidden_size:
            raise ValueError(f"vision_config.hidden_size {self.vision.hidden_size} must equal the language model's "
                             f"hidden_size {self.text.hidden_size}, because image features replace word embeddings")

    @property
    def pad_token_id(self) -> int:
        return self.bos_token_id

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """A completion ends with any of these."""
        return self.eos_token_id, self.bos_token_id, *self.other_stop_token_ids

    @property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled, because they would announce an image that does not exist."""
        ids = (self.vision_start_token_id, self.vision_end_token_id, self.vision_token_id, self.image_token_id,
               self.video_token_id)
        return tuple(i for i in ids if i is not None)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Qwen2VLConfig":
        """Read DIRECTORY/config.json. Raises: FileNotFoundError or ValueError that names the file."""
        path = Path(directory) / "config.json"
        if told := not_a_model(path.parent):                # a training run has a config.json, too
            raise FileNotFoundError(told)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; a Qwen2-VL checkpoint directory holds config.json")
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Qwen2VLConfig":
        """Read config.json in any form: flat, nested or reduced. Raises: ValueError for an unsupported model."""
        config = {**config, **{key: _object(config, key) for key in ("text_config", "vision_config")}}
        _refuse_unsupported(config)
        _refuse_two_values(config)
        flat = flattened(config)
        text = TextConfig(**_pick(TextConfig, {**flat, **_rope(flat)}))
        ids = {key: _first(value) for key, value in flat.items() if key.endswith("_token_id") and value is not None}
        flags = [part.get("tie_word_embeddings") for part in (config, config["text_config"])]
        if wrong := [flag for flag in flags if not isinstance(flag, bool | None)]:
            raise ValueError(f"tie_word_embeddings {wrong[0]!r:.80} must be true or false")
        tied = bool(flags[1] if flags[0] is None else flags[0])     # with the weights: models/reconcile.py
        return cls(vision=_vision(config["vision_config"], text), text=text, tie_word_embeddings=tied,
                   **_pick(cls, ids))

    def to_dict(self) -> dict[str, Any]:
        """The hub's flat form, which transformers 4.45 to 5 and vLLM can read."""
        text, vision = dict(vars(self.text)), dict(vars(self.vision))
        section = list(text.pop("mrope_section"))
        ids = {key: value for key, value in vars(self).items() if key.endswith("_token_id") and value is not None}
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **ids, **text,
            "pad_token_id": self.pad_token_id, "hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True,
            "use_sliding_window": False, "tie_word_embeddings": self.tie_word_embeddings,
            "rope_scaling": {"type": "mrope", "mrope_section": section},
            "vision_config": {"model_type": "qwen2_vl", **vision, "in_chans": self.vision.in_channels,
                              "spatial_patch_size": self.vision.patch_size, "hidden_act": "quick_gelu"},
        }


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of config.json, with those of its text_config in place of outer ones of the same name."""
    return {**config, **{key: value for key, value in _object(config, "text_config").items() if value is not None}}


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object config[key]; {} if it is absent or null."""
    value = config.get(key)
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{key} {value!r:.80} must be an object")
    return value or {}


def _pick(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are fields of the dataclass and not None."""
    names = {field.name for field in fields(record)}
    return {key: value for key, value in values.items() if key in names and value is not None}


def _first(token_id: int | list[int]) -> int:
    """The first id of a list of end tokens; a single id is returned as it is. models/reconcile.py reads all."""
    return token_id[0] if isinstance(token_id, list) and token_id else token_id


def _rope(flat: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and mrope_section from `rope_scaling` (hub) or `rope_parameters` (transformers 5)."""
    rope = {**_object(flat, "rope_scaling"), **_object(flat, "rope_parameters")}
    kinds = [rope[name] for name in ("rope_type", "type") if name in rope]
    if wrong := [kind for kind in kinds if kind not in ("mrope", "default")]:
        raise ValueError(f"rope type {wrong[0]!r:.80} is not supported; use a Qwen2-VL checkpoint without context "
                         "extension (rope type mrope or default)")
    bases = [part["rope_theta"] for part in (rope, flat) if part.get("rope_theta") is not None]
    if bases[1:] and bases[0] != bases[1]:
        raise ValueError(f"rope_theta is {bases[0]!r:.80} inside the rope settings and {bases[1]!r:.80} outside; "
                         "correct one of them")
    found = {"rope_theta": bases[0] if bases else None}
    if "mrope_section" in rope:
        section = rope["mrope_section"]
        found["mrope_section"] = tuple(section) if isinstance(section, list) else section
    return found


def _refuse_two_values(config: Mapping[str, Any]) -> None:
    """Raises: ValueError for a size that text_config and the outer object state differently. The embedding tells the
    vocabulary (weights.py); the tokenizer, its ids."""
    outer, inner = ({**part, **_rope(part)} for part in (config, config["text_config"]))
    for name in (field.name for field in fields(TextConfig) if field.name != "vocab_size"):
        if None not in (inner.get(name), outer.get(name)) and inner[name] != outer[name]:
            raise ValueError(f"{name} is {inner[name]!r:.80} in text_config and {outer[name]!r:.80} outside it; "
                             "correct one of them")


def _vision(config: Mapping[str, Any], text: TextConfig) -> VisionConfig:
    renamed = {"hidden_size": text.hidden_size, "in_channels": config.get("in_chans"),
               "patch_size": config.get("spatial_patch_size")}
    return VisionConfig(**_pick(VisionConfig, {**renamed, **config}))


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind != "qwen2_vl":
        raise ValueError(f"model_type {kind!r:.80} is not supported; this code runs Qwen2-VL (model_type 'qwen2_vl', "
                         "2B, 7B and 72B), not Qwen2.5-VL, Qwen3-VL or text-only models")
    flat = {**config, **config["text_config"]}
    if flat.get("use_sliding_window"):
        raise ValueError("use_sliding_window true is not supported; the released Qwen2-VL models have false")
    vision_act = config["vision_config"].get("hidden_act", "quick_gelu")
    if flat.get("hidden_act", "silu") != "silu" or vision_act != "quick_gelu":
        raise ValueError(f"hidden_act {flat.get('hidden_act', 'silu')!r:.80} / {vision_act!r:.80} is not supported; "
                         "Qwen2-VL uses 'silu' in the text tower and 'quick_gelu' in the vision tower")


# "tiny" learns the built-in driving scenes on a CPU in minutes. Its vocabulary is a placeholder of the form of
# `train_bpe(texts, 512)`: 498 byte-pair entries, then the 14 special tokens. `processor.fit_config` sets the real one.
PRESETS = {
    "2b": Qwen2VLConfig(vision_token_id=151654),
    "tiny": Qwen2VLConfig(
        vision=VisionConfig(depth=2, embed_dim=64, hidden_size=128, num_heads=2, mlp_ratio=4),
        text=TextConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                        num_key_value_heads=2, vocab_size=512, mrope_section=(4, 6, 6), max_position_embeddings=4096),
        bos_token_id=498, eos_token_id=500, vision_start_token_id=507, vision_end_token_id=508, vision_token_id=509,
        image_token_id=510, video_token_id=511),
}
