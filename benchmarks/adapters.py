"""Do PEFT and DriveGRPO read each other's adapters? In an environment that has peft and transformers as well:

    PEFT_PYTHON benchmarks/adapters.py --output benchmarks/results/adapters.json

A small random model is given an adapter in each direction; the logits of 12 text tokens must be equal. Nothing else in
the project needs this script.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from benchmarks.measure import machine_record, write_record  # noqa: E402
from models import load_model, save_model  # noqa: E402
from models.adapters import adapter_tensors, merge_adapter, save_adapter  # noqa: E402
from models.lora import adapter_parameters, add_lora  # noqa: E402

OURS = {"all seven layers": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "two layers": ("q_proj", "down_proj")}
THEIRS = {"two layers": dict(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"]),
          "all linear layers, vision too, rank-stabilised, patterns": dict(
              r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear", rank_pattern={"q_proj": 2},
              alpha_pattern={"layers.0.self_attn.v_proj": 3})}
LIMIT = 1e-4        # of logits of about 4


def main() -> None:
    """Check both directions and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(load_model(ROOT / "tests/golden/tied"), f"{folder}/base")
        written = {name: ours_in_peft(f"{folder}/base", f"{folder}/ours {name}", targets)
                   for name, targets in OURS.items()}
        read = {name: theirs_in_ours(f"{folder}/base", f"{folder}/theirs {name}", config)
                for name, config in THEIRS.items()}
    write_record({"benchmark": "adapters", "peft": peft.__version__, "transformers": transformers.__version__,
                  "ours read by peft": written, "peft's read by us": read, **machine_record(torch.device("cpu"))},
                 flags.output)
    gaps = [row["gap"] for row in (*written.values(), *read.values())]
    sys.exit(f"error: the logits differ by {max(gaps):.2g}" if max(gaps) > LIMIT else 0)


def hub_model(base: str) -> torch.nn.Module:
    """The base model in transformers."""
    return transformers.Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32)


def ours_in_peft(base: str, directory: str, targets: tuple[str, ...]) -> dict[str, float]:
    """Train nothing, but give every A and B random numbers; save, and load with PEFT."""
    model = load_model(base)
    add_lora(model, 4, 16.0, targets, torch.Generator().manual_seed(0))
    for parameter in adapter_parameters(model):
        parameter.data.normal_(0, 0.1)
    save_adapter(adapter_tensors(model), 4, 16.0, base, directory)
    return compared(peft.PeftModel.from_pretrained(hub_model(base), directory), model, base)


def theirs_in_ours(base: str, directory: str, config: dict) -> dict[str, float]:
    """An adapter made and saved by PEFT, merged into our model."""
    wrapped = peft.get_peft_model(hub_model(base), peft.LoraConfig(**config, init_lora_weights=False))
    wrapped.save_pretrained(directory)
    model = load_model(base)
    merge_adapter(model, directory)
    return compared(wrapped, model, base)


@torch.no_grad()
def compared(theirs: torch.nn.Module, ours: torch.nn.Module, base: str) -> dict[str, float]:
    """Largest difference of the logits, their size, and how far the adapter moves them."""
    ids = torch.randint(0, 200, (1, 12))
    logits, before = theirs(input_ids=ids).logits, load_model(base)(ids)
    return {"gap": (ours(ids) - logits).abs().max().item(), "largest logit": logits.abs().max().item(),
            "moved by the adapter": (logits - before).abs().max().item()}


if __name__ == "__main__":
    main()
