"""Several processes that train as one: `torchrun --nproc-per-node K train.py --stage sft|grpo`.

    replicated   each process has its share of the prompts and a full copy of the weights to sample from
    sharded      float32 weights, gradients, AdamW's moments, value network, reference (FSDP2)
    all-reduced  loss denominators and metrics; gradients are summed, because losses divide by the whole batch's counts

Random numbers depend on (seed, step, prompt, sample) only, so K processes draw the same samples and take the same step
as one process. FSDP gathers a layer's weights when the layer runs, and those outside layers when `Root` is called.
Every gather is collective: all processes must run the same number of micro-batches (`even`), and either all of them or
none with pictures. Frozen weights (the base under LoRA, a frozen vision tower) are not sharded, because they
have neither gradients nor moments. FSDP is imported where it is used, which saves a single process most of a second.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grpo.config import GRPOConfig, MethodConfig, SFTConfig
from grpo.fast.copies import IN_FULL
from grpo.logprobs import PLAIN, Kernels
from grpo.packing import PackedRows
from models.lora import lora_layers, plain_tensors
from models.qwen2_vl import Qwen2VL, frozen_model
from models.value import ValueNetwork

Item, Result = TypeVar("Item"), TypeVar("Result")
TIMEOUT = timedelta(minutes=15)     # a process that waits longer than this for the others ends with an error


class RankError(ValueError):
    """An error on one rank, re-raised on every rank at the same place, so that they can still act together."""


@dataclass(frozen=True)
class Distributed:
    """Rank and number of processes; a single process unless torchrun started several."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of a sequence that all ranks know; the sizes of the parts differ by at most one."""
        return items[self.rank::self.size]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """All-reduce: the sum over ranks of each named number, in float64."""
        if self.size == 1:
            return dict(values)
        found = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(found)
        return dict(zip(values, found.tolist(), strict=True))

    def mean(self, values: Mapping[str, float], weight: float) -> dict[str, float]:
        """All-reduce: the mean over ranks of each named number, each rank weighted by `weight`."""
        if self.size == 1:
            return dict(values)
        sums = self.total({**{name: value * weight for name, value in values.items()}, "weight": weight})
        return {name: sums[name] / sums["weight"] for name in values}

    def largest(self, value: float) -> float:
        """All-reduce: the maximum over ranks."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def texts(self, own: str) -> list[str]:
        """All-gather one string per rank."""
        if self.size == 1:
            return [own]
        data = own.encode("utf-8", "surrogatepass")
        longest = int(self.largest(len(data)))
        if longest == 0:
            return [""] * self.size
        mine = torch.tensor([*data, *bytes(longest - len(data))], dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine)
        return [bytes(text.tolist()).rstrip(b"\0").decode("utf-8", "surrogatepass") for text in found]

    def on_all(self, action: Callable[[], Result]) -> Result:
        """Run action() on every rank. If it fails on one, all ranks raise RankError, so that none waits for the others.

        The action itself must not communicate."""
        if self.size == 1:
            return action()
        result = fault = None
        try:
            result = action()
        except (ValueError, OSError, FloatingPointError) as found:
            fault = found
        messages = self.texts("" if fault is None else str(fault) or repr(fault))
        if any(messages):
            raise RankError(next(text for text in messages if text)) from fault
        return result

    def on_rank0(self, action: Callable[[], Result]) -> Result | None:
        """Run action() on rank 0 while the others wait; if it fails, all raise. -> its result, None on other ranks."""
        return self.on_all(action if self.rank == 0 else lambda: None)

    def each(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of an iterator; if producing one fails on any rank, all ranks raise. No item may be None."""
        yield from iter(lambda: self.on_all(lambda: next(items, None)), None)

    def wait(self) -> None:
        """Barrier."""
        if self.size > 1:
            dist.barrier()

    def even(self, packed: list[PackedRows]) -> list[PackedRows]:
        """Append idle micro-batches up to the largest number on any rank; they repeat its smallest."""
        missing = int(self.largest(len(packed))) - len(packed)
        return packed + [replace(min(packed, key=lambda rows: rows.input_ids.numel()), idle=True)
                         for _ in range(missing)]


SINGLE = Distributed()


class Root(nn.Module):
    """FSDP's outermost module, which calls a function: it gathers the weights outside the layers, and keeps them
    until the backward pass has run."""

    def __init__(self, *models: nn.Module | None) -> None:
        super().__init__()
        self.models = nn.ModuleList(model for model in models if model is not None)

    def forward(self, function: Callable[..., Result], *arguments: object) -> Result:
        return function(*arguments)


def join(device: str) -> Distributed:
    """Wait for all processes that torchrun started; SINGLE without torchrun.

    Raises: ValueError if there are more processes than GPUs on this machine."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE
    if "RANK" not in os.environ:
        raise ValueError("WORLD_SIZE is set and RANK is not: start with torchrun, or unset WORLD_SIZE")
    if device == "cuda":
        here, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= there:
            raise ValueError(f"--nproc-per-node exceeds the number of GPUs of this machine ({there}); start at most "
                             f"{there} processes, or use --device cpu")
        torch.cuda.set_device(here)
    # gloo carries metrics and counts between CPUs, so that they cause no GPU synchronisation
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    return Distributed(dist.get_rank(), dist.get_world_size())


def depart(world: Distributed, code: int = 0) -> None:
    """Wait for all ranks, then end this process with an exit code. A single process returns.

    os._exit skips the interpreter's shutdown, in which gloo's threads sometimes abort after all work is done."""
    if world.size > 1:
        world.wait()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def check_supported(config: MethodConfig, world: Distributed) -> None:
    """Raise ValueError, naming the flag, for settings that several processes do not support."""
    if world.size == 1:
        return
    enough = f"at least {world.size}"
    rules = [("kernels", config.kernels == "fast", "fast: the plain sampler reads no sharded weights")]
    if isinstance(config, SFTConfig):
        rules += [("batch_size", config.batch_size >= world.size, enough)]
    if isinstance(config, GRPOConfig):
        rules += [("prompts_per_step", config.prompts_per_step >= world.size, enough),
                  ("dynamic_sampling", config.dynamic_sampling == 0, "0: a rank has its own groups only")]
    for name, fits, wanted in rules:
        if not fits:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)!r}; with {world.size} processes it "
                             f"must be {wanted}")


def shard(world: Distributed, dtype: torch.dtype | None, policy: Qwen2VL, value: ValueNetwork | None = None,
          reference: Qwen2VL | None = None, kernels: Kernels = PLAIN) -> Kernels:
    """Shard these models in place, 1 / K per rank. -> the kernels that read them. Make optimizers afterwards.

    All ranks must hold equal weights. Layers are gathered in `dtype` if given: half the traffic, and the type that
    autocast would convert them to anyway. Gradients are reduced in float32."""
    if world.size == 1:
        return kernels
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    device = policy.head_weight.device.type
    settings = dict(mesh=init_device_mesh(device, (world.size,)), ignored_params=frozen(policy))
    layers = dict(mp_policy=MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False))
    for model in (policy, value.trunk if value else None):
        shard_layers(model, **settings, **layers)
    trained = fully_shard(Root(policy, value), **settings)
    sum_gradients(trained)
    if reference is None or lora_layers(policy):            # with adapters the reference is the policy's own base
        return replace(kernels, states=partial(trained, kernels.states))
    shard_layers(reference, mesh=settings["mesh"], **layers)
    fixed = fully_shard(Root(reference), mesh=settings["mesh"])

    def states(model: Qwen2VL, rows: PackedRows) -> Tensor:
        if model is reference:
            return fixed(kernels.states, model, rows)
        fixed.reshard()                                     # frees the reference's embeddings, gathered for its pass
        return trained(kernels.states, model, rows)

    return replace(kernels, states=states)


def shard_networks(world: Distributed, *networks: nn.Module | None) -> None:
    """Shard small networks in place, each as one: a call of it gathers its weights."""
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    for network in networks:
        if network is not None:
            mesh = init_device_mesh(next(network.parameters()).device.type, (world.size,))
            sum_gradients(fully_shard(network, mesh=mesh))


def sum_gradients(root: nn.Module) -> None:
    """Reduce gradients by their sum. FSDP would average them, but losses already divide by the whole batch's counts."""
    from torch.distributed.fsdp import FSDPModule
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums


def frozen(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that are not trained."""
    return {parameter for parameter in model.parameters() if not parameter.requires_grad}


def shard_layers(model: Qwen2VL | None, **settings: Any) -> None:  # noqa: ANN401
    """Shard each decoder layer by itself, and the vision tower as one: its blocks run once per picture size.

    A frozen tower is not sharded: its features are computed outside `Root`."""
    from torch.distributed.fsdp import fully_shard
    if model is None:
        return
    for layer in model.model.layers:
        fully_shard(layer, **settings)
    if not set(model.visual.parameters()) <= settings.get("ignored_params", set()):
        fully_shard(model.visual, **settings)


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a shard of this tensor. By name: importing the class takes as long as a small run."""
    return type(tensor).__name__ == "DTensor"


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded. Collective: all ranks must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which all ranks have, like another of the same shape.

    Nothing is sent, so a state can be loaded by any number of processes."""
    tensor = tensor.to(like.device)
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def gathered(policy: Qwen2VL, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and full weight, adapters merged, one after the other. Collective: all ranks must iterate to the end.

    dtype: convert all weights but embeddings and head to it before they are sent."""
    layers = {f"{name}.weight": layer for name, layer in lora_layers(policy).items()}
    for name, tensor in plain_tensors(policy).items():
        goal = tensor.dtype if name in IN_FULL or dtype is None else dtype
        if name in layers:
            up, down = full_tensor(layers[name].lora_B), full_tensor(layers[name].lora_A)
            yield name, torch.addmm(full_tensor(tensor).float(), up, down, alpha=layers[name].scale).to(goal)
        else:
            yield name, full_tensor(tensor.to(goal))


def full_copy(policy: Qwen2VL, dtype: torch.dtype | None) -> Qwen2VL:
    """An unsharded model to sample from: layers in `dtype`, embeddings and head as they are."""
    return frozen_model(policy.config, dict(gathered(policy, dtype)))


def renew(policy: Qwen2VL, copy: Qwen2VL) -> None:
    """Update a sampling copy in place."""
    goal = copy.state_dict()
    for name, tensor in gathered(policy, copy.model.norm.weight.dtype):
        if goal[name].data_ptr() != tensor.data_ptr():      # a frozen weight shares its memory
            goal[name].copy_(tensor)


def copy_to_save(policy: nn.Module, world: Distributed,
                 make: Callable[[dict[str, Tensor]], nn.Module]) -> nn.Module | None:
    """An unsharded model on rank 0's CPU, made of its tensors; None on other ranks. Collective."""
    tensors = {name: tensor.cpu() for name, tensor in gathered(policy) if world.rank == 0}
    return make(tensors) if world.rank == 0 else None
