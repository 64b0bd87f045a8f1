"""How the cost of a completion token grows with the group and with the picture: a table, ours beside TRL's.

    python benchmarks/memory.py --model DIR --against trl --peer-python PEER/bin/python --output FILE

Every row is one run of benchmarks/step.py in a process of its own; flags that this script does not know go to it (for
instance --precision, --beta, --threads, --repeats). One prompt a step by default: the group is what grows.
Prints the table in Markdown, then one JSON object on the last line.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import write_record  # noqa: E402
from evaluation.scoring import table  # noqa: E402

GROUPS, IMAGES = "4,8,16,32", "224x140,448x252,672x378,896x504"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the two sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=8, help="of the pictures' sweep")
    parser.add_argument("--image", default="448x252", help="of the groups' sweep")
    parser.add_argument("--groups", default=GROUPS, help="sizes, with commas; empty: no such sweep")
    parser.add_argument("--images", default=IMAGES, help="sizes, with commas; empty: no such sweep")
    parser.add_argument("--output", type=Path)
    flags, rest = parser.parse_known_args(arguments)
    points = [(int(size), flags.image) for size in filter(None, flags.groups.split(","))]
    points += [(flags.group_size, image) for image in filter(None, flags.images.split(","))]
    rows = [measure(flags, rest, *point) for point in dict.fromkeys(points)]
    print(markdown(rows))
    write_record({"benchmark": "memory", "rows": rows}, flags.output)


def measure(flags: argparse.Namespace, rest: Sequence[str], group_size: int, image: str) -> dict[str, Any]:
    """One record of step.py. A run that fails (a peer that needs too much memory, say) is a row that says so."""
    command = [sys.executable, str(ROOT / "benchmarks/step.py"), "--model", str(flags.model), "--prompts",
               str(flags.prompts), "--group-size", str(group_size), "--image", image, *rest]
    print(f"group {group_size}, picture {image} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    point = {"group_size": group_size, "image": image}
    if done.returncode:
        return {**point, "failed": done.returncode, "log": done.stderr.splitlines()[-5:]}
    return {**point, **json.loads(done.stdout.splitlines()[-1])}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Milliseconds per completion token and peak memory, ours and the peer's."""
    names = ["G", "picture", "patches", "ms/token", "peak MB", "TRL ms/token", "TRL peak MB", "times faster",
             "share of memory"]
    return table(names, [cells(row) for row in rows])


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if "failed" in row:
        return [str(row["group_size"]), row["image"], f"failed ({row['failed']})", *[""] * 6]
    sides = [figure for side in (row, row.get("peer")) for figure in costs(side)]
    ratio = row.get("ratio")
    compared = [f"{ratio['tokens_per_second']:.2f}", f"{ratio['memory']:.2f}"] if ratio else ["", ""]
    return [str(row["group_size"]), row["image"], str(row["shapes"]["patches"][0]), *sides, *compared]


def costs(side: dict[str, Any] | None) -> list[str]:
    """Milliseconds per completion token, peak memory."""
    if side is None:
        return ["", ""]
    peak = side.get("peak_rss_mb", side.get("peak_gpu_mb"))
    return [f"{1000 / side['tokens_per_second']:.2f}", f"{peak:.0f}"]


if __name__ == "__main__":
    main()
