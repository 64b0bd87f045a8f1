"""A pretend card: tensors that claim to be on a device of their own, so that device errors show without a GPU.

    tensor.to("card")            a `Card`: real numbers on the CPU inside, another device outside
    card + cpu tensor            an error, as on CUDA; numbers without a dimension may mix in elementwise operations
    events()                     every copy between host and card so far, with the function of this repository it is in
    capturing()                  torch.cuda's graphs on the card: capture, then replay with frozen numbers and addresses

A `wait` makes the host wait for all work that the card has been given: reading a value back (`.item()`, `.cpu()`, a
boolean index) or a blocking copy in. A `send` is a copy in with non_blocking=True, which does not wait: CUDA takes the
bytes of ordinary memory over before the call returns. Rules and exceptions follow torch's CUDA backend.

Importing this file gives torch's one slot for further devices to the card, for good, and autograd counts devices at its
first backward pass. So it is imported by test_card's worker alone, in a process of its own.
"""

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).resolve().parent.parent
aten = torch.ops.aten

# what a CUDA kernel must know on the host, because its result's shape or value is Python's: a wait each
READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "bincount",
         "unique_consecutive", "is_nonzero", "masked_scatter_backward"}
# operations that make a tensor from numbers alone; the others are made of these and of operations in place
FACTORIES = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m",
             "linspace", "tril_indices", "triu_indices", "randperm")


class Event(NamedTuple):
    """One exchange between host and card."""

    kind: str                         # wait or send
    operation: str
    place: str                        # file: function


EVENTS: list[Event] = []
GRAPHS: list["Graph"] = []                  # the graph that is being captured, if any


def events() -> Iterator[Event]:
    """All exchanges since the last call."""
    found = list(EVENTS)
    EVENTS.clear()
    return found


def waits() -> dict[str, int]:
    """Place -> waits since the last call of `events` or this."""
    return dict(sorted(Counter(event.place for event in events() if event.kind == "wait").items()))


def note(kind: str, operation: str) -> None:
    """Note an exchange. Raises: RuntimeError while a graph is captured, as CUDA does."""
    place = place_in_repository()
    if GRAPHS:
        raise RuntimeError(f"{place}: {operation} ({kind}) while a graph is captured")
    EVENTS.append(Event(kind, operation, place))


def place_in_repository() -> str:
    """The innermost function of the product on the stack; in autograd's own thread there may be none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and not {"tests", ".venv"} & set(file.relative_to(ROOT).parts):
            return f"{file.relative_to(ROOT)}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "elsewhere"


class Card(Tensor):
    """A tensor on the card; `raw` holds its numbers, and views of it share them."""

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Card":
        return Tensor._make_wrapper_subclass(cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device="card:0",
                                             storage_offset=raw.storage_offset())

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    def data_ptr(self) -> int:
        """Two tensors have the same address if they share memory."""
        return self.raw.data_ptr()

    def tolist(self) -> object:
        """torch refuses it for subclasses."""
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict) -> Tensor:
        """Without a storage there is nothing that torch could copy itself."""
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def __repr__(self) -> str:
        return f"Card({self.raw})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None,
                           ) -> object:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        given = leaves((args, kwargs))
        if name == "_fused_sdp_choice":
            return 0                                        # attention by plain products, whose parts all come here
        check_devices(function, name, given, kwargs)
        if kind := exchange(name, args, kwargs):
            note(kind, name)
        raw_args, raw_kwargs = mapped(to_raw, args), mapped(to_raw, kwargs)
        result = function(*raw_args, **raw_kwargs)
        if GRAPHS:
            GRAPHS[-1].add(function, raw_args, raw_kwargs, result)
        if name == "_to_copy" and to_host(kwargs):
            return result
        owners = {id(x.raw): x for x in given if isinstance(x, Card)}
        if any(owner.shape != owner.raw.shape for owner in owners.values()):
            raise NotImplementedError(f"{name} changes a shape in place, which a pretend tensor cannot")
        return mapped(lambda x: owners[id(x)] if id(x) in owners else to_card(x), result)


def mapped(change: Callable[[object], object], value: object) -> object:
    """The value with every leaf of its tuples, lists and dicts changed."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(change, x) for x in value])
    return {key: mapped(change, x) for key, x in value.items()} if isinstance(value, dict) else change(value)


def leaves(value: object) -> list:
    """The leaves of a value, in order."""
    found = []
    mapped(found.append, value)
    return found


def to_raw(value: object) -> object:
    """The numbers of a tensor on the card; the CPU for the card's name."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "card" else value
    return value.raw if isinstance(value, Card) else value


def to_card(value: object) -> object:
    """A result on the card, if it is a tensor."""
    return Card(value) if isinstance(value, Tensor) else value


def to_host(kwargs: dict) -> bool:
    """Whether the keyword `device` names the CPU."""
    return kwargs.get("device") is not None and kwargs["device"].type == "cpu"


def check_devices(function: Callable, name: str, given: list, kwargs: dict) -> None:
    """Raise RuntimeError if tensors of the host and of the card meet in an operation that CUDA refuses."""
    strangers = [x for x in given if isinstance(x, Tensor) and not isinstance(x, Card)]
    if name in ("copy_", "_copy_from", "index", "index_put_", "_index_put_impl_") or not strangers:
        return                                              # copies; CUDA fetches the indices itself
    scalars = torch.Tag.pointwise in function.tags or name in ("masked_fill", "masked_fill_", "fill_", "where")
    if not scalars or any(x.ndim for x in strangers):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got tensors on card:0 and cpu "
                           f"at {place_in_repository()}")


def exchange(name: str, args: tuple, kwargs: dict) -> str:
    """wait, send or "": how this operation moves numbers between host and card."""
    if name == "copy_":
        return exchange_of_copy(*args[:2], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    indices = args[1] if name in ("index", "index_put_", "_index_put_impl_") else ()
    reads = (name in READS or (name == "_to_copy" and to_host(kwargs))
             or any(x is not None and (x.dtype == torch.bool or not isinstance(x, Card)) for x in indices)
             or (name == "where" and any(isinstance(x, Tensor) and not isinstance(x, Card) for x in args))
             or (name == "repeat_interleave" and kwargs.get("output_size") is None))
    return "wait" if reads else ""              # CUDA's `where` copies a number of the host in


def exchange_of_copy(target: Tensor, source: Tensor, non_blocking: bool) -> str:
    """How `target.copy_(source)` moves numbers."""
    if isinstance(target, Card) and isinstance(source, Card):
        return ""
    return "send" if non_blocking and isinstance(target, Card) else "wait" if source.numel() else ""


# ---------------------------------------------------------------- the device

class Module(_DummyBackendModule):
    """torch.card: what autocast and gradient checkpointing ask of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types of autocast."""
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        """The card has no random numbers of its own."""
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """See get_rng_state."""

    def device(self, index: int) -> contextlib.AbstractContextManager:
        """There is one card."""
        return contextlib.nullcontext()


def factory(function: Callable) -> Callable[..., Card]:
    """The card's kernel of an operation that makes tensors."""
    def make(*args: object, **kwargs: object) -> Card:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        result = function(*args, **kwargs)
        if GRAPHS:
            GRAPHS[-1].add(function, args, kwargs, result)
        return Card(result)
    return make


_setup_privateuseone_for_python_backend("card", backend_module=Module())
KERNELS = torch.library.Library("aten", "IMPL")
for _name in FACTORIES:
    _packet, _, _overload = _name.partition(".")
    KERNELS.impl(_name, factory(getattr(getattr(aten, _packet), _overload or "default")), "PrivateUse1")

def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """A copy where torch does not ask the tensor's class: in `torch.tensor(..., device="card")`."""
    if kind := exchange("copy_", (target, source, non_blocking), {}):
        note(kind, "copy_")
    to_raw(target).copy_(to_raw(source))
    return target


KERNELS.impl("_copy_from", copy_from, "PrivateUse1")


# ---------------------------------------------------------------- autocast, as CUDA's casts

AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
HALVED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
WIDENED = ("softmax.int", "log_softmax.int", "layer_norm", "exp", "log", "pow.Tensor_Scalar", "rsqrt", "cumsum", "sum",
           "sum.dim_IntList")


def with_casts(function: Callable, halve: bool) -> Callable:
    """The operation on floating tensors of the card in autocast's type, or in float32."""
    def cast(value: object) -> object:
        floating = isinstance(value, Card) and value.dtype in (torch.float32, torch.bfloat16)
        return value.to(torch.get_autocast_dtype("card") if halve else torch.float32) if floating else value

    def call(*args: object, **kwargs: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return function(*mapped(cast, args), **mapped(cast, kwargs))
    return call


REST = torch.library.Library("_", "IMPL")
REST.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name in (*HALVED, *WIDENED):
    _packet, _, _overload = _name.partition(".")
    KERNELS.impl(_name, with_casts(getattr(getattr(aten, _packet), _overload or "default"), _name in HALVED),
                 "AutocastPrivateUse1")


# ---------------------------------------------------------------- CUDA graphs

class Graph:
    """torch.cuda.CUDAGraph on the card: `replay` repeats the captured operations with the numbers that Python gave
    then, and every result goes to the address of then. A tensor from before the capture must not have been freed."""

    def __init__(self) -> None:
        self.operations: list[tuple] = []                   # function, its arguments, what it makes
        self.made: dict[int, Tensor] = {}                   # by identity: what the graph itself computes

    def add(self, function: Callable, args: tuple, kwargs: dict, result: object) -> None:
        """One operation on raw tensors."""
        given = {id(x) for x in leaves((args, kwargs))}
        made = [x for x in leaves(result) if id(x) not in given]
        outside = mapped(lambda x: weakref.ref(x) if isinstance(x, Tensor) and id(x) not in self.made else x,
                         (args, kwargs))
        self.operations.append((function, outside, made))
        self.made.update({id(x): x for x in made})

    def replay(self) -> None:
        """Once more."""
        for function, outside, made in self.operations:
            args, kwargs = mapped(alive, outside)
            found = leaves(function(*args, **kwargs))
            for old, new in zip(made, found if made else (), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def alive(value: object) -> object:
    """The value; of a reference the tensor, which the graph does not keep. Raises: RuntimeError if it was freed."""
    found = value() if isinstance(value, weakref.ref) else value
    if found is None and value is not None:
        raise RuntimeError("a graph reads memory that has been freed")
    return found


@contextlib.contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """torch.cuda.graph: any exchange with the host raises. CUDA does not execute what it captures; this does, once."""
    GRAPHS.append(graph)
    try:
        yield
    finally:
        GRAPHS.pop()


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Within, torch.cuda's streams and graphs are the card's."""
    stream = mock.Mock()
    with mock.patch.multiple(torch.cuda, Stream=lambda: stream, current_stream=lambda: stream,
                             stream=lambda _: contextlib.nullcontext(), CUDAGraph=Graph, graph=capture):
        yield
