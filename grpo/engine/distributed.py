"""Several processes as one, through torch.distributed: `torchrun --nproc-per-node K train.py --stage sft|grpo`.

    every process   its share of the prompts, a whole copy of the weights to sample from
    divided by K    float32 masters, gradients, AdamW's moments, the value network, the reference (FSDP2)
    added up        what losses are divided by, and every metric; FSDP averages gradients, so losses are multiplied by K

Randomness depends on (seed, step, prompt, sample) alone, so K processes draw the samples of one and take its step.
FSDP gathers the weights of a layer when the layer runs, and those of no layer within a call of `Root`. Each gathering
waits for all processes: they have to run the same number of micro-batches (`padded`), with pictures in all or in none.
What is frozen (a base under LoRA, a frozen vision tower) has neither gradient nor moments and stays whole everywhere.
FSDP is imported where it is used: one process alone is spared most of a second.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from grpo.config import GRPOConfig, SFTConfig, TrainConfig
from grpo.fast.copies import IN_FULL
from models.lora import lora_layers, plain_tensors
from models.qwen2_vl import Qwen2VL, frozen_model
from models.value import ValueNetwork

Item, Result = TypeVar("Item"), TypeVar("Result")
TIMEOUT = timedelta(minutes=15)     # a process that waits longer for the others ends with an error


class CommonFault(ValueError):  # noqa: N818  the fault of any process, raised in all of them at the same place
    """What one process met and all know of, so that they can still act together."""


def call(function: Callable[..., Result], *arguments: object) -> Result:
    """function(*arguments): what `Root` is to one process."""
    return function(*arguments)


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; alone unless torchrun says otherwise.

    with_policy(function, *arguments) runs a function while the weights of policy and value network can be read,
    with_reference while those of the reference can."""

    rank: int = 0
    size: int = 1
    with_policy: Callable[..., Any] = call
    with_reference: Callable[..., Any] = call

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of something that all processes know; parts differ by one at most."""
        return items[self.rank::self.size]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all processes of each named number, in float64."""
        if self.size == 1:
            return dict(values)
        found = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(found)
        return dict(zip(values, found.tolist(), strict=True))

    def mean(self, values: Mapping[str, float], weight: float) -> dict[str, float]:
        """The mean over all processes, each counting `weight` times."""
        if self.size == 1:
            return dict(values)
        sums = self.total({**{name: value * weight for name, value in values.items()}, "weight": weight})
        return {name: sums[name] / sums["weight"] for name in values}

    def largest(self, value: float) -> float:
        """The largest number that any process has."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def texts(self, own: str) -> list[str]:
        """What each process has to say, in all of them, by rank."""
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

    def together(self, action: Callable[[], Result]) -> Result:
        """action() in every process; if it fails in one, all raise here, and none waits for another elsewhere.

        The action itself may not wait for other processes."""
        if self.size == 1:
            return action()
        result = fault = None
        try:
            result = action()
        except (ValueError, OSError, FloatingPointError) as found:
            fault = found
        said = self.texts("" if fault is None else str(fault) or repr(fault))
        if any(said):
            raise CommonFault(next(text for text in said if text)) from fault
        return result

    def first(self, action: Callable[[], Result]) -> Result | None:
        """action() in process 0, which the others wait for; if it fails, all raise. -> its result, None elsewhere."""
        return self.together(action if self.rank == 0 else lambda: None)

    def each(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of an iterator; where the making of one fails in any process, all raise. No item is None."""
        yield from iter(lambda: self.together(lambda: next(items, None)), None)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def padded(self, parts: list[Item]) -> list[Item]:
        """As many parts as the process with the most has: the first one, the smallest, is repeated at the end."""
        return parts + parts[:1] * (int(self.largest(len(parts))) - len(parts))


ALONE = World()


class Root(nn.Module):
    """Calls a function: FSDP lets the weights that belong to no layer be read only within its outermost module."""

    def __init__(self, *models: nn.Module | None) -> None:
        super().__init__()
        self.models = nn.ModuleList(model for model in models if model is not None)

    def forward(self, function: Callable[..., Result], *arguments: object) -> Result:
        return function(*arguments)


def join(device: str) -> World:
    """The processes that torchrun started, once all of them are there; alone without it.

    Raises: ValueError if there are more processes than GPUs on this machine."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if device == "cuda":
        here, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= there:
            raise ValueError(f"--nproc-per-node is more than the {there} GPUs of this machine")
        torch.cuda.set_device(here)
    # numbers and counts travel between CPUs, so that no GPU waits for them
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


def depart(world: World, code: int = 0) -> None:
    """End this process with an exit code, once all the others have come here, too; one alone goes on.

    The interpreter's own end is left out: gloo's threads abort it now and then, after all work is done."""
    if world.size > 1:
        world.wait()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def check_supported(config: TrainConfig, world: World) -> None:
    """Raise ValueError, naming the flag, for what several processes cannot do or would do differently from one."""
    if world.size == 1:
        return
    enough = f"at least {world.size}"
    rules = []
    if isinstance(config, SFTConfig):
        rules += [("batch_size", config.batch_size >= world.size, enough)]
    if isinstance(config, GRPOConfig):
        rules += [("prompts_per_step", config.prompts_per_step >= world.size, enough),
                  ("scale_rewards", config.scale_rewards != "batch", "group or none: each knows its own rewards"),
                  ("dynamic_sampling", config.dynamic_sampling == 0, "0: each would have to know the groups of others")]
    for name, fits, wanted in rules:
        if not fits:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)!r}; with {world.size} processes it "
                             f"must be {wanted}")


def shard(world: World, dtype: torch.dtype | None, policy: Qwen2VL, value: ValueNetwork | None = None,
          reference: Qwen2VL | None = None) -> World:
    """Keep 1 / K of each of these models, in place, and say how to call what reads them. Make optimizers afterwards.

    All processes must hold the same weights. Layers are gathered in `dtype` if there is one: half the traffic, and what
    autocast would make of them anyway. Gradients are added up in float32."""
    if world.size == 1:
        return world
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    device = policy.head_weight.device.type
    settings = dict(mesh=init_device_mesh(device, (world.size,)), ignored_params=frozen(policy))
    layers = dict(mp_policy=MixedPrecisionPolicy(dtype, torch.float32 if dtype else None, cast_forward_inputs=False))
    for model in (policy, value.trunk if value else None):
        shard_layers(model, **settings, **layers)
    trained = fully_shard(Root(policy, value), **settings)
    if reference is None or lora_layers(policy):            # with adapters it is the policy's own base
        return replace(world, with_policy=trained)
    shard_layers(reference, mesh=settings["mesh"], **layers)
    fixed = fully_shard(Root(reference), mesh=settings["mesh"], reshard_after_forward=True)
    return replace(world, with_policy=trained, with_reference=fixed)


def frozen(model: nn.Module) -> set[nn.Parameter]:
    """What is not trained."""
    return {parameter for parameter in model.parameters() if not parameter.requires_grad}


def shard_layers(model: Qwen2VL | None, **settings: Any) -> None:  # noqa: ANN401
    """Each decoder layer by itself; the vision tower as one, for it runs its blocks once per picture size.

    A frozen tower is left out: its features are computed outside of `Root`."""
    from torch.distributed.fsdp import fully_shard
    if model is None:
        return
    for layer in model.model.layers:
        fully_shard(layer, **settings)
    if not set(model.visual.parameters()) <= settings.get("ignored_params", set()):
        fully_shard(model.visual, **settings)


def in_parts(tensor: Tensor) -> bool:
    """Whether each process holds a part of this tensor."""
    return type(tensor) not in (Tensor, nn.Parameter)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part. All processes must ask for it."""
    return tensor.full_tensor() if in_parts(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if in_parts(tensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, which all processes have, the part that this one holds of another of the same shape.

    Nothing is sent, so a state may come from any number of processes."""
    tensor = tensor.to(like.device)
    if not in_parts(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def gathered(policy: Qwen2VL, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and whole weight, adapters merged, one after the other. All processes must go through all of them.

    dtype: round all but embeddings and head to it, before they travel."""
    layers = {f"{name}.weight": layer for name, layer in lora_layers(policy).items()}
    for name, tensor in plain_tensors(policy).items():
        goal = tensor.dtype if name in IN_FULL or dtype is None else dtype
        if name in layers:
            up, down = whole(layers[name].lora_B), whole(layers[name].lora_A)
            yield name, torch.addmm(whole(tensor).float(), up, down, alpha=layers[name].scale).to(goal)
        else:
            yield name, whole(tensor.to(goal))


def whole_copy(policy: Qwen2VL, dtype: torch.dtype | None) -> Qwen2VL:
    """All weights in a plain model to sample from: layers in `dtype`, embeddings and head as they are."""
    return frozen_model(policy.config, dict(gathered(policy, dtype)))


def renew(policy: Qwen2VL, copy: Qwen2VL) -> None:
    """Bring a sampling copy up to date, in place."""
    goal = copy.state_dict()
    for name, tensor in gathered(policy, copy.model.norm.weight.dtype):
        if goal[name].data_ptr() != tensor.data_ptr():      # a frozen weight is the same memory
            goal[name].copy_(tensor)


def copy_to_save(policy: Qwen2VL, world: World) -> Qwen2VL | None:
    """All weights in a plain model on the CPU of process 0; None in the others, which must call this, too."""
    tensors = {name: tensor.cpu() for name, tensor in gathered(policy) if world.rank == 0}
    return frozen_model(policy.config, tensors) if world.rank == 0 else None
