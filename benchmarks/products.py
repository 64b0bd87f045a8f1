"""How fast a CPU multiplies the few rows of a decoding step: `python benchmarks/products.py --output FILE`.

Every product of the 102.8M model's layers with 8 to 128 rows, by each way that torch has:

    linear        F.linear, the plain layout
    blocked       oneDNN's layout, as models/fast/packed.py uses it
    swapped       W x^T, the plain layout
    mkl           MKL's packed layout (float32)

Medians of rounds in turns. Beside them stand the rate of a large product and the rate of reading memory, which
benchmarks/floor.py assumes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import machine  # noqa: E402, F401
from benchmarks.checkpoints import SMALL  # noqa: E402
from benchmarks.measure import DTYPES, ceiling, machine_record, write_record  # noqa: E402
from models.config import TextConfig  # noqa: E402
from models.fast.packed import ROWS  # noqa: E402


def main() -> None:
    """Measure and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the JSON object to this file too")
    flags = parser.parse_args()
    cpu, dtype = torch.device("cpu"), DTYPES[flags.dtype]
    sizes = matrices(SMALL.text)
    with torch.no_grad():
        weights = [torch.randn(size).to(dtype) for size in sizes]
        found = [{"rows": rows, "ms": measure(weights, rows, flags.rounds)} for rows in flags.rows]
    flop = 2 * sum(out * width for out, width in sizes)      # a row
    for row in found:
        row["gflops"] = {way: flop * row["rows"] / ms / 1e6 for way, ms in row["ms"].items()}
    record = {"benchmark": "products", **machine_record(cpu), "dtype": flags.dtype,
              "bytes": sum(weight.nbytes for weight in weights), "rows": found, "ceiling": ceiling(cpu, dtype)}
    write_record(record, flags.output)


def matrices(text: TextConfig) -> list[tuple[int, int]]:
    """(outputs, inputs) of the products of all layers; q, k, v are one."""
    width, inner = text.hidden_size, text.intermediate_size
    heads = text.head_dim * (text.num_attention_heads + 2 * text.num_key_value_heads)
    layer = [(heads, width), (width, text.num_attention_heads * text.head_dim), (inner, width), (inner, width),
             (width, inner)]
    return layer * text.num_hidden_layers


def measure(weights: list[Tensor], rows: int, rounds: int) -> dict[str, float]:
    """Milliseconds of all products, by way."""
    inputs = {size: torch.randn(rows, size).to(weights[0].dtype) for size in {w.shape[1] for w in weights}}
    ways = {way: [function_of(way, weight, rows) for weight in weights] for way in ways_of(weights[0].dtype)}
    times = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, functions in ways.items():
            began = time.perf_counter()
            for function, weight in zip(functions, weights, strict=True):
                function(inputs[weight.shape[1]])
            if number:                                      # the first round warms up
                times[way].append((time.perf_counter() - began) * 1e3)
    return {way: statistics.median(each) for way, each in times.items()}


def ways_of(dtype: torch.dtype) -> tuple[str, ...]:
    """The ways that this build of torch has for the type."""
    mkl = dtype == torch.float32 and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    return ("linear", "blocked", "swapped", *(["mkl"] if mkl else []))


def function_of(way: str, weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, inputs) -> W x, with the weight laid out before."""
    if way == "blocked":
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid_out, None, "none", [], "")
    if way == "mkl":
        laid_out = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkl._mkl_linear(x, laid_out, weight, None, rows)
    return (lambda x: F.linear(x, weight)) if way == "linear" else (lambda x: weight @ x.T)


if __name__ == "__main__":
    main()
