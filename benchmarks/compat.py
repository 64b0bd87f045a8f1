"""Do other programs read the models that we save? Checked with one release of transformers per environment:

    python3 -m venv ~/t449 && ~/t449/bin/pip install torch transformers==4.49.0 pillow torchvision
    ~/t449/bin/python benchmarks/compat.py --output benchmarks/results/compat.json

and again with 4.57.6 and 5.23.0; the records are merged by release. Nothing else in the project needs this script.
Small random models are saved by `save_policy`, tied and untied, whole and in shards, with two added tokens, and loaded
by AutoProcessor and Qwen2VLForConditionalGeneration: prompt text, ids, logits and greedy answers must equal ours.
`--template FILE` (text, or JSON with chat_template) is the published Instruct template, to compare rendered texts.
"""

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

# torchvision built for CUDA lacks its operators beside a torch for the CPU; declared, they need not exist to import it.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration  # noqa: E402

from grpo.batch import PromptSettings  # noqa: E402
from grpo.engine.checkpoint import load_policy, save_policy  # noqa: E402
from grpo.rollout import generate  # noqa: E402
from models.config import PRESETS  # noqa: E402
from models.processor import Processor, fit_config  # noqa: E402
from models.qwen2_vl import new_model  # noqa: E402
from models.template import CHAT_TEMPLATE, SYSTEM_PROMPT  # noqa: E402
from models.tokenizer import train_bpe  # noqa: E402
from models.weights import save_model  # noqa: E402

NEW_TOKENS, LOGIT_LIMIT = 24, 1e-4
IMAGE = {"type": "image"}
CHATS = {
    "text": ([{"role": "user", "content": "Speed 12 km/h, turn left."}], 0),
    "image": ([{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is the <act_0>plan?\n"}]}], 1),
    "turns": ([{"role": "system", "content": "Drive."}, {"role": "user", "content": [
        {"type": "text", "text": "a "}, IMAGE, {"type": "text", "text": " b"}, IMAGE]},
        {"role": "assistant", "content": "KEEP"}, {"role": "user", "content": "why"}], 2),
}
PICTURES = [Image.linear_gradient("L").resize((112, 56)).convert("RGB"), Image.new("RGB", (84, 140), (200, 30, 90))]
OTHER_PARTS = [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "a.png"}}, {"image": "a.png"}, {"type": "video", "video": "a.mp4"},
    {"type": "text", "text": "Plan?"}]}]
OTHER_TEXT = ("<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n<|im_start|>user\n"
              + 2 * "<|vision_start|><|image_pad|><|vision_end|>" + "<|vision_start|><|video_pad|><|vision_end|>"
              "Plan?<|im_end|>\n<|im_start|>assistant\n")


def main() -> None:
    """Compare, print one JSON object, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="the published Instruct template")
    parser.add_argument("--output", type=Path, help="merge the record into this JSON file")
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        results = {f"{'tied' if tied else 'untied'}, {'shards' if size else 'one file'}":
                   compare(save(Path(folder) / f"{tied}{size}", tied, size))
                   for tied, size in ((True, 0), (False, 0), (False, 600_000))}
    record = {"passed": all(part["passed"] for part in results.values()), "torch": torch.__version__,
              "tokenizers": tokenizers.__version__, "models": results}
    if flags.template:
        record["template"] = same_text(published(flags.template))
        record["passed"] &= record["template"]
    if flags.output:
        before = json.loads(flags.output.read_text()) if flags.output.is_file() else {}
        merged = {**before, transformers.__version__: record}
        flags.output.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")
    print(json.dumps({transformers.__version__: record}))
    sys.exit(not record["passed"])


def save(directory: Path, tied: bool, max_file_bytes: int) -> Path:
    """Write a random model whose tokenizer has a plain and a special added token."""
    texts = [SYSTEM_PROMPT, "system user assistant Speed 12 km/h, turn left. What is the plan? KEEP STRAIGHT"]
    rules = json.loads(train_bpe(texts, 320).to_str())
    for name, special in (("<act_0>", False), ("<think>", True)):
        rules["added_tokens"].append({**rules["added_tokens"][0], "content": name, "special": special,
                                      "id": len(rules["added_tokens"]) + 306})
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    config = replace(fit_config(PRESETS["tiny"], tokenizer), tie_word_embeddings=tied)
    model = new_model(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)            # far from uniform: greedy answers have no ties
    save_policy(model, Processor(tokenizer), PromptSettings(), {"stage": "sft"}, directory)
    if max_file_bytes:
        save_model(model, directory, max_file_bytes)
    return directory


def compare(directory: Path) -> dict[str, Any]:
    """What transformers makes of a directory against what this code does."""
    ours, processor, _ = load_policy(directory, torch.float32, "cpu")
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(directory, torch_dtype=torch.float32).eval()
    their_processor = AutoProcessor.from_pretrained(directory)
    result: dict[str, Any] = {"processor": type(their_processor).__name__, "chats": {}}
    for name, (messages, count) in CHATS.items():
        result["chats"][name] = compare_chat(ours, processor, theirs, their_processor, messages, PICTURES[:count])
    result["other parts"] = their_processor.apply_chat_template(
        OTHER_PARTS, tokenize=False, add_generation_prompt=True) == OTHER_TEXT
    words = "<act_0> <think>plan é 12"
    their_ids = AutoTokenizer.from_pretrained(directory)(words)["input_ids"]
    result["added tokens"] = their_ids == processor.encode_text(words)
    result["stop tokens"] = sorted(theirs.generation_config.eos_token_id) == sorted(ours.config.stop_token_ids)
    chats = [value for chat in result["chats"].values() for value in chat.values()]
    result["passed"] = all(value < LOGIT_LIMIT if isinstance(value, float) else value is True for value in (
        *chats, result["other parts"], result["added tokens"], result["stop tokens"]))
    return result


@torch.no_grad()
def compare_chat(ours: Any, processor: Processor, theirs: Any, their_processor: Any,  # noqa: ANN401  of any release
                 messages: list[dict], pictures: list[Image.Image]) -> dict[str, Any]:
    """One conversation: prompt text, ids, logits, greedy answer."""
    text = their_processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor([messages], [pictures])
    their_inputs = their_processor(text=[text], images=pictures or None, return_tensors="pt")
    written = processor.tokenizer.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)
    once = written.replace("<|image_pad|>", "").replace("<|vision_start|><|vision_end|>",
                                                        "<|vision_start|><|image_pad|><|vision_end|>")
    if pictures:
        their_inputs["pixel_values"] = inputs["pixel_values"]               # releases differ in the last bits
    result = {"text": text == once, "ids": their_inputs["input_ids"].tolist() == inputs["input_ids"].tolist(),
              "grids": not pictures or their_inputs["image_grid_thw"].tolist() == inputs["image_grid_thw"].tolist()}
    result["logits, largest difference"] = (theirs(**their_inputs).logits - ours(**inputs)).abs().max().item()
    rollout = generate(ours, processor, [messages], [pictures], group_size=1, max_new_tokens=NEW_TOKENS, temperature=0)
    ids = theirs.generate(**their_inputs, max_new_tokens=NEW_TOKENS, do_sample=False,
                          suppress_tokens=[*ours.config.suppressed_token_ids])[0, inputs["input_ids"].shape[1]:]
    result["answer"] = (their_processor.batch_decode([ids], skip_special_tokens=True)[0].replace("<think>", "")
                        == processor.decode(rollout.completion_ids[0]).replace("<think>", ""))
    result["answer is not empty"] = int(rollout.completion_mask.sum()) > 4
    return result


def published(path: Path) -> str:
    """The template in a file of text or of JSON."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text)["chat_template"] if path.suffix == ".json" else text


def same_text(template: str) -> bool:
    """Whether the published template and ours render every conversation alike."""
    from jinja2 import Environment
    chats = [messages for messages, _ in CHATS.values()] + [OTHER_PARTS, [{"role": "user", "content": []}]]
    ours, theirs = (Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)  # noqa: S701  no HTML
                    for text in (CHAT_TEMPLATE, template))
    return all(ours.render(messages=chat, **flags) == theirs.render(messages=chat, **flags) for chat in chats
               for flags in ({}, {"add_generation_prompt": True}, {"add_vision_id": True}))


if __name__ == "__main__":
    main()
