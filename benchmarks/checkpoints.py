"""Random checkpoints in hub layout for the benchmarks: `python benchmarks/checkpoints.py small DIR`.

    small        102.8 M parameters: hidden 768, 12 layers, 12 / 2 heads, intermediate 2560, vision 384 x 6 blocks,
                 vocabulary 1088
    small-vocab  the same with 151,936 words, as the released models have
    2b           the released 2B's shape, in bfloat16
    tiny         the built-in model, for trying things out

The tokenizer is a byte-level BPE trained on the built-in scenes' sentences, which yield fewer than 1,088 entries; the
model's further words have no name and decode to nothing. Ours and transformers load the same directory.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from data.scenes import scene_text_corpus  # noqa: E402
from models import Qwen2VLConfig, save_model  # noqa: E402
from models.config import PRESETS, TextConfig, VisionConfig  # noqa: E402
from models.processor import SYSTEM_PROMPT, Processor, fit_config, save_processor  # noqa: E402
from models.qwen2_vl import Qwen2VL, init_weights  # noqa: E402
from models.tokenizer import train_bpe  # noqa: E402

VOCABULARY, RELEASED_VOCABULARY = 1088, 151_936
MAX_PIXELS = 1_003_520      # 1,280 feature vectors: the largest picture of the sweeps (896 x 504) keeps its size
SMALL = Qwen2VLConfig(
    vision=VisionConfig(depth=6, embed_dim=384, hidden_size=768, num_heads=6, mlp_ratio=4),
    text=TextConfig(hidden_size=768, intermediate_size=2560, num_hidden_layers=12, num_attention_heads=12,
                    num_key_value_heads=2, mrope_section=(8, 12, 12), max_position_embeddings=8192))
# name: (sizes, rows of the vocabulary, dtype of the file)
CHECKPOINTS = {"tiny": (PRESETS["tiny"], VOCABULARY, torch.float32),
               "small": (SMALL, VOCABULARY, torch.float32),
               "small-vocab": (SMALL, RELEASED_VOCABULARY, torch.float32),
               "2b": (PRESETS["2b"], RELEASED_VOCABULARY, torch.bfloat16)}


def main() -> None:
    """Write the checkpoints asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(CHECKPOINTS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the numbers are drawn")
    flags = parser.parse_args()
    if flags.directory.exists() and any(flags.directory.iterdir()):
        parser.error(f"{flags.directory} is not empty; name a new directory")
    count = write_checkpoint(flags.name, flags.directory, flags.seed, flags.device)
    print(f"{flags.directory}: {flags.name}, {count:,} parameters")


def write_checkpoint(name: str, directory: Path, seed: int = 0, device: str = "cpu") -> int:
    """Weights, configuration, tokenizer and picture settings. -> number of parameters."""
    config, vocabulary, dtype = CHECKPOINTS[name]
    chat = [f"{role}\n{text}" for role, text in (("system", SYSTEM_PROMPT), ("user", ""), ("assistant", ""))]
    processor = Processor(train_bpe(scene_text_corpus(3000) + chat * 100, VOCABULARY), max_pixels=MAX_PIXELS)
    config = fit_config(config, processor.tokenizer)
    config = replace(config, text=replace(config.text, vocab_size=vocabulary))
    with torch.device("meta"):
        model = Qwen2VL(config).to(dtype)
    model.to_empty(device=device)
    init_weights(model, torch.Generator(device).manual_seed(seed))
    save_model(model, directory)
    save_processor(processor, directory)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
