"""The peers, each in a process of its own: transformers' `generate` and TRL's GRPOTrainer, as a careful user sets them.

Started by benchmarks/measure.py: `python benchmarks/peers.py transformers|trl SETTINGS`, SETTINGS being JSON. Reads
one command per line (`warm up`, `run`, `peak`), answers each with one JSON object, and ends with its input. The
settings were chosen by measurement (docs/performance.md): bf16, dynamic cache and num_return_sequences for generate;
sdpa attention, micro-batches of 16 completions and no gradient checkpointing for TRL.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

MICRO_BATCH = 16


def main() -> None:
    """Answer commands until the input ends; all that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    _operators = missing_operators()                        # held until the end
    {"transformers": serve_transformers, "trl": serve_trl}[kind](settings, answers)


def reply(answers: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)


def commands() -> Any:  # noqa: ANN401
    """The commands, line by line."""
    return (line.strip() for line in iter(sys.stdin.readline, ""))


def missing_operators() -> torch.library.Library | None:
    """Names of two operators that torchvision's CUDA build describes and only its compiled part defines, so that it can
    be imported beside a CPU-only torch; they serve detection and are never called here. Keep the result.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        return library
    return None


def load_processor(directory: str) -> Any:  # noqa: ANN401
    """The checkpoint's processor; a directory of ours keeps the chat template with the tokenizer."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    return processor


# ---------------------------------------------------------------- transformers

def serve_transformers(settings: dict[str, Any], answers: TextIO) -> None:
    """Rollouts by `generate`: pictures and prompts encoded before, as for our side."""
    from transformers import Qwen2VLForConditionalGeneration, __version__

    from benchmarks.measure import DTYPES, Phases, peak_mb, reset_peak

    device = torch.device(settings["device"])
    processor = load_processor(settings["model"])
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        settings["model"], dtype=DTYPES[settings["dtype"]], attn_implementation="sdpa").to(device).eval()
    inputs = encode(settings["requests"], processor).to(device)
    reply(answers, {"name": "transformers", "versions": {"transformers": __version__, "torch": torch.__version__},
                    "settings": {"attention": "sdpa", "cache": settings.get("cache", "dynamic"),
                                 "num_return_sequences": True}})
    phases = Phases(device, rest="decode")
    phases.wrap(model, "forward", lambda input_ids=None, **_: "prefill" if input_ids.shape[1] > 1 else "decode")
    watch(phases, model)
    phases.wrap(model.model.visual, "forward", "vision")
    for command in commands():
        if command == "peak":
            reply(answers, {"peak_mb": peak_mb(device)})
            continue
        phases.start()
        generate(model, inputs, settings)
        found = phases.stop()
        if command == "warm up":
            reset_peak(device)
        reply(answers, found)                               # last: from here on this process is silent


def encode(requests: list[dict[str, str]], processor: Any) -> Any:  # noqa: ANN401
    """Texts and pictures -> the model's inputs, padded on the left."""
    from PIL import Image

    texts = [processor.apply_chat_template(chat(request["text"]), tokenize=False, add_generation_prompt=True)
             for request in requests]
    images = [Image.open(request["image"]).convert("RGB") for request in requests]
    return processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")


def chat(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


@torch.inference_mode()
def generate(model: Any, inputs: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401
    """The whole batch, sampled from the full distribution, at the forced length."""
    length = settings["new_tokens"]
    static = {"cache_implementation": "static"} if settings.get("cache") == "static" else {}
    tokens = model.generate(**inputs, num_return_sequences=settings["group_size"], do_sample=True, temperature=1.0,
                            top_k=0, top_p=1.0, min_new_tokens=length, max_new_tokens=length,
                            suppress_tokens=settings["suppressed"], **static)
    if tokens.shape[1] - inputs["input_ids"].shape[1] != length:
        raise RuntimeError(f"generate gave {tuple(tokens.shape)}: the forced length was not kept")


def watch(phases: Any, model: Any) -> None:  # noqa: ANN401
    """Count the patches of the vision tower and the tokens of the decoder."""
    def tokens(input_ids: Any = None, inputs_embeds: Any = None, **_: object) -> int:  # noqa: ANN401
        return (input_ids if inputs_embeds is None else inputs_embeds).shape[:2].numel()

    phases.count(model.model.language_model, "forward", "tokens", tokens)
    phases.count(model.model.visual, "forward", "patches", lambda pixels, *_, **__: len(pixels))


# ---------------------------------------------------------------- TRL

def serve_trl(settings: dict[str, Any], answers: TextIO) -> None:
    """Whole steps by GRPOTrainer. Its own loop runs; a callback stops before each step until it is asked for."""
    from datasets import Dataset, Image
    from trl import GRPOTrainer

    from benchmarks.measure import Phases

    device = torch.device(settings["device"])
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": r["text"]}] for r in settings["requests"]],
                                 "image": [r["image"] for r in settings["requests"]]}).cast_column("image", Image())
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(model=settings["model"], reward_funcs=varied_reward, args=trl_config(settings, folder),
                              train_dataset=dataset, processing_class=load_processor(settings["model"]))
        phases = Phases(device)
        trainer.add_callback(make_callback(trainer, phases, device, answers))
        trainer.train()


def varied_reward(completions: list, **_: object) -> list[float]:
    """A reward that differs within nearly every group; the same one that our side is given."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [0.01 * sum(map(ord, text)) % 1 for text in texts]


def trl_config(settings: dict[str, Any], folder: str) -> Any:  # noqa: ANN401
    """GRPOConfig of one update per batch: amp = fp32 weights under bf16 autocast, bf16 = bf16 weights."""
    from trl import GRPOConfig

    rows = len(settings["requests"]) * settings["group_size"]
    micro = min(MICRO_BATCH, rows)
    if rows % micro:
        raise ValueError(f"{rows} completions do not divide into micro-batches of {micro}; choose other numbers")
    dtype = "bfloat16" if settings["precision"] == "bf16" else "float32"
    length = settings["new_tokens"]
    return GRPOConfig(
        output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro,
        num_generations=settings["group_size"], max_completion_length=length, num_iterations=1,
        beta=settings["beta"], loss_type="grpo", temperature=1.0, top_p=1.0, top_k=0, learning_rate=1e-6,
        lr_scheduler_type="constant", max_steps=10**6, bf16=settings["precision"] == "amp",
        gradient_checkpointing=False,
        generation_kwargs={"min_new_tokens": length, "suppress_tokens": settings["suppressed"]},
        model_init_kwargs={"dtype": dtype, "attn_implementation": "sdpa"}, use_cpu=settings["device"] == "cpu",
        shuffle_dataset=False, disable_tqdm=True, report_to="none", save_strategy="no", logging_strategy="no",
        dataloader_pin_memory=settings["device"] != "cpu")


def make_callback(trainer: Any, phases: Any, device: torch.device, answers: TextIO) -> Any:  # noqa: ANN401
    """Wraps the trainer's own parts once it is set up, and waits before every step until one is asked for.

    A step is answered for when the trainer stands before the next one: all it does in between would disturb our side.
    """
    from transformers import TrainerCallback, __version__
    from trl import __version__ as trl_version

    from benchmarks.measure import peak_mb, reset_peak

    class Turns(TrainerCallback):
        command, found = "", None

        def on_train_begin(self, *_: object, optimizer: Any = None, **__: object) -> None:  # noqa: ANN401
            wrap_trainer(trainer, phases, optimizer)
            about = {"micro_batch": trainer.args.per_device_train_batch_size, "gradient_checkpointing": False,
                     "autocast": trainer.args.bf16, "weights": str(trainer.model.dtype)}
            reply(answers, {"name": "trl", "settings": about, "versions":
                            {"trl": trl_version, "transformers": __version__, "torch": torch.__version__}})

        def on_step_begin(self, *_: object, **__: object) -> None:
            if self.command == "warm up":
                reset_peak(device)
            if self.found:
                reply(answers, self.found)
            for self.command in commands():
                if self.command != "peak":
                    break
                reply(answers, {"peak_mb": peak_mb(device)})
            else:
                os._exit(0)                                 # our side is done; there is nothing to save
            phases.start()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.found = phases.stop()

    return Turns()


def wrap_trainer(trainer: Any, phases: Any, optimizer: Any) -> None:  # noqa: ANN401
    """Phases of a step, and the work of policy and reference."""
    phases.wrap(trainer, "_generate_single_turn", "generate")
    phases.wrap(trainer, "_get_per_token_logps_and_entropies",
                lambda *_, **__: "policy_forward" if torch.is_grad_enabled() else "reference")
    phases.wrap(trainer, "compute_loss", "policy_forward")
    phases.wrap(trainer.accelerator, "backward", "backward")
    phases.wrap(optimizer, "step", "optimizer")
    for model in filter(None, (trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model)):
        watch(phases, trainer.accelerator.unwrap_model(model))


if __name__ == "__main__":
    main()
