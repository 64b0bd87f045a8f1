"""Memory plan of a run, computed from shapes before the first step; nothing is allocated.

Activations are the tensors that autograd saves for one micro-batch, counted with torch's fake tensors, which have a
shape, type and device but no data.
"""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from grpo.config import GRPOConfig
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.fast.attention import branch_attention
from grpo.fast.strips import STRIP
from grpo.packing import pack
from models.config import Qwen2VLConfig
from models.fast.recomputed import keep, restore, use_recomputed
from models.precision import compute_dtype
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL

Flags = SFTFlags | GRPOFlags
# On a CPU: pages of torch's kernels, and the share of freed memory that malloc keeps; it returns large blocks at once,
# hence the maximum. Measured as the peak minus all other parts, in SFT and GRPO of the demo and of a 100M model.
KERNELS, UNRETURNED, MOST_UNRETURNED = 40 * 10**6, 0.25, 150 * 10**6
SAVERS = {                                       # flags that may reduce a plan; by how much is computed
    "--gradient-checkpointing": dict(gradient_checkpointing=True),
    "--micro-batch-tokens 1": dict(micro_batch_tokens=1),
    "--freeze-vision": dict(freeze_vision=True),
    "--beta 0": dict(beta="0"),
    "--lora-rank 16": dict(lora_rank=16, freeze_vision=True),
}


@dataclass(frozen=True)
class Workload:
    """What the plan depends on besides the config: model sizes and a typical prompt."""

    config: Qwen2VLConfig
    parameters: int
    embedding: int                    # of these, in embeddings and head, which a sampling copy shares
    adapters: int                     # trained instead, with LoRA
    prompt_tokens: int
    patches: int                      # in a prompt's pictures
    device: str
    process: int                      # bytes that the process holds beside the model before the first step
    examples: int = 0                 # to train on


def workload(policy: Qwen2VL, prompts: Sequence[Prompt], config: Flags, process: int, examples: int = 0) -> Workload:
    """Workload of this model and the longest of some prompts."""
    shared = [policy.model.embed_tokens.weight, policy.head_weight]
    patches = [0 if p.image_grid_thw is None else int(p.image_grid_thw.prod(1).sum()) for p in prompts]
    plain = sum(p.numel() for name, p in policy.named_parameters() if "lora_" not in name)
    return Workload(policy.config, plain, sum({id(w): w.numel() for w in shared}.values()),
                    adapter_count(policy.config, config.lora_rank or 16, config.target_modules),
                    max(len(p.input_ids) for p in prompts), max(patches), policy.head_weight.device.type, process,
                    examples)


def memory_plan(work: Workload, config: Flags) -> dict[str, int]:
    """Bytes by purpose at the peak of a step.

    float32 weights, gradients and AdamW's two moments take 4 + 4 + 8 bytes per trained parameter.
    """
    half = compute_dtype(work.device, config.precision) is not None
    size = 2 if half else 4
    trained = work.adapters if config.lora_rank else work.parameters
    grpo = isinstance(config, GRPOConfig)
    rows, lengths = micro_batch_shape(work, config)
    prompts = config.prompts_per_step if grpo else config.batch_size
    plan = {"process": work.process, "weights": work.parameters * (2 if config.lora_rank and half else 4),
            "gradients": trained * 4, "AdamW": trained * 8,
            "activations": activation_bytes(work, config, rows, lengths),
            # float32 pixels of this step, their concatenation for the model, and those prefetched for the next
            "pictures": 3 * prompts * work.patches * work.config.vision.patch_dim * 4}
    if config.freeze_vision or config.lora_rank:
        plan["picture features"] = feature_bytes(work, config, size)
    if half and not config.lora_rank:
        plan["bf16 weights of a pass"] = (work.parameters - work.embedding) * 2
    plan["logits of a strip"] = 3 * 4 * rows * sum(lengths) * min(STRIP, work.config.text.vocab_size)
    if work.device == "cpu":
        freed = plan["activations"] + plan["logits of a strip"]
        plan["allocator"] = KERNELS + min(int(UNRETURNED * freed), MOST_UNRETURNED)
    if grpo:
        plan |= rollout_bytes(work, config, size)
        if config.needs_reference and not config.lora_rank:
            plan["reference"] = work.parameters * {"fp32": 4, "bf16": 2, "auto": size}[config.reference_dtype]
        if config.advantage == "gae" and config.value_trunk == "own":
            plan["value network"] = work.parameters * 16
    return plan


def feature_bytes(work: Workload, config: Flags, size: int) -> int:
    """Features of a frozen tower, kept for every picture until --feature-cache-mb is full."""
    one = work.patches // work.config.vision.spatial_merge_size**2 * work.config.text.hidden_size * size
    return min(work.examples * one, config.feature_cache_mb * 2**20)


def rollout_bytes(work: Workload, config: GRPOConfig, size: int) -> dict[str, int]:
    """The sampling copy of the layers, and the KV cache: each prompt once, each sample separately.

    A float32 copy, which only a CPU has, is free while gradients exist, so with full training it adds nothing to them.
    """
    text = work.config.text
    tokens = config.prompts_per_step * (work.prompt_tokens + config.group_size * config.max_new_tokens)
    kept = {"KV cache": tokens * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size}
    copied = work.device == "cpu" if config.lora_rank else size == 2            # packed for a CPU, adapters merged
    return kept | ({"sampling copy": (work.parameters - work.embedding) * size} if copied else {})


def micro_batch_shape(work: Workload, config: Flags) -> tuple[int, list[int]]:
    """Rows per micro-batch, and the completion lengths of one row at their maximum."""
    if not isinstance(config, GRPOConfig):
        lengths, most = [config.max_new_tokens], config.batch_size
    else:
        lengths, most = [config.max_new_tokens] * (config.group_size + config.uses("bc_coef")), config.prompts_per_step
    row = work.prompt_tokens + sum(lengths)
    return min(most, max(1, config.micro_batch_tokens // row)), lengths


def activation_bytes(work: Workload, config: Flags, rows: int, lengths: Sequence[int]) -> int:
    """Bytes that autograd saves for one micro-batch in the decoder and, if it is trained, in the vision tower."""
    dtype = compute_dtype(work.device, config.precision) or torch.float32
    ids = torch.zeros(work.prompt_tokens, dtype=torch.long)
    packed = pack([Prompt(ids, ids.expand(3, -1), 0, None, None)] * rows,
                  [[torch.zeros(n, dtype=torch.long) for n in lengths]] * rows)
    side = work.config.vision.spatial_merge_size
    grid = torch.tensor([[1, side, work.patches // side]] * rows)
    with torch.device("meta"):
        model = Qwen2VL(work.config)
    use_recomputed(model)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(work.device):
        model.load_state_dict({name: torch.empty(tensor.shape, dtype=dtype)
                               for name, tensor in model.state_dict().items()}, assign=True)
        model.model.gradient_checkpointing = model.visual.gradient_checkpointing = config.gradient_checkpointing
        positions, attend = torch.empty(packed.position_ids.shape), branch_attention(packed.to(work.device))
        embeds = torch.empty(*packed.input_ids.shape, work.config.text.hidden_size, dtype=dtype, requires_grad=True)
        kept = saved_bytes(model, lambda: model.hidden_states(embeds, positions, attend))
        if work.patches and not (config.freeze_vision or config.lora_rank):
            pixels = torch.empty(rows * work.patches, work.config.vision.patch_dim)
            kept += saved_bytes(model, lambda: model.image_features(pixels, grid))
    return kept


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the tensors, other than parameters, that autograd saves in a forward pass."""
    kept: dict[int, Tensor] = {}

    def count(tensor: Tensor) -> Tensor | tuple:
        found = keep(tensor)
        if isinstance(found, Tensor):
            kept[found.untyped_storage()._cdata] = found
        return found

    with torch.autograd.graph.saved_tensors_hooks(count, restore):
        result = forward()                                                      # alive until all are counted
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    del result
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in parameters)


def adapter_count(config: Qwen2VLConfig, rank: int, targets: Sequence[str]) -> int:
    """Number of parameters of adapters of this rank on these layers."""
    with torch.device("meta"):
        layers = Qwen2VL(config).model.layers
    return sum(rank * (layer.in_features + layer.out_features) for name, layer in layers.named_modules()
               if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets)


def describe(plan: dict[str, int]) -> str:
    """One line: the total and its parts, largest first."""
    parts = sorted(((size, name) for name, size in plan.items() if size), reverse=True)
    return f"{gigabytes(sum(plan.values()))} = " + " + ".join(f"{name} {gigabytes(size)}" for size, name in parts)


def what_helps(work: Workload, config: Flags, available: int) -> str | None:
    """None if the plan fits; else a line that says by how much each flag would reduce it."""
    needed = sum(memory_plan(work, config).values())
    if needed <= available:
        return None
    saved = {}
    for flag, change in SAVERS.items():
        with suppress(ValueError):                          # of flags that do not go together
            if all(hasattr(config, name) for name in change):
                saved[flag] = needed - sum(memory_plan(work, replace(config, **change)).values())
    helpful = sorted(((size, flag) for flag, size in saved.items() if size > needed // 100), reverse=True)
    lacking = f"the plan needs {gigabytes(needed)}, {gigabytes(available)} are available"
    if not helpful:
        return f"{lacking}, and no further flag saves memory: lower --max-pixels, or use a smaller model"
    return (f"{lacking}; each of these flags alone would save: "
            + ", ".join(f"{flag} {gigabytes(size)}" for size, flag in helpful))


def gigabytes(size: int) -> str:
    """Bytes as text."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def available_memory(device: str) -> int:
    """Bytes of the GPU that are free or this process's, or bytes that the system can provide without swapping plus
    what the process holds."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    try:
        with open("/proc/meminfo") as stream:
            fields = dict(line.split(":") for line in stream)
    except OSError:                                         # not Linux: all that is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(fields["MemAvailable"].split()[0]) * 1024 + peak_memory("cpu")


def resident_memory() -> int:
    """Bytes of this process that are in memory now; its peak where the system does not say."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory("cpu")


def peak_memory(device: str) -> int:
    """Peak bytes of this process so far: allocated on the GPU, or resident on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
