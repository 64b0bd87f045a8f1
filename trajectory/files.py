"""A decoder's directory: decoder.safetensors and decoder.json, which says what the decoder is conditioned on."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from storage import fresh_directory, save_file, write_json
from trajectory.denoiser import Decoder

WEIGHTS, ABOUT = "decoder.safetensors", "decoder.json"


def save_decoder(decoder: Decoder, about: dict[str, Any], directory: str | Path) -> None:
    """Write the decoder beside `directory`, then replace it; a crash leaves the old one or the new one."""
    with fresh_directory(directory) as fresh:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()},
                  fresh / WEIGHTS)
        write_json(about, fresh / ABOUT)


def load_decoder(directory: str | Path) -> tuple[Decoder, dict[str, Any]]:
    """The decoder and what decoder.json says. Raises: ValueError that says what the directory is or lacks."""
    directory = Path(directory)
    if not (directory / ABOUT).is_file():
        kind = "holds a language model, not a trajectory decoder" if (directory / "config.json").is_file() else \
            "holds no decoder.json" if directory.is_dir() else "does not exist"
        raise ValueError(f"{directory} {kind}: name a directory written by --stage trajectory-bc or trajectory-grpo")
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            features = file.get_slice("feature_mean").get_shape()[0]
        decoder = Decoder(features)
        decoder.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        raise ValueError(f"{directory} is no sound decoder: {fault}; copy it again, or train it anew") from fault
    if not all(torch.isfinite(tensor).all() for tensor in decoder.state_dict().values()):
        raise ValueError(f"{directory / WEIGHTS} has values that are not finite; copy it again, or train it anew")
    return decoder, about
