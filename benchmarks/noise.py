"""Why noise belongs on whitened controls and not on way-points: `python benchmarks/noise.py`.

One demonstration of each of 1,000 scenes gets independent noise of the same relative size in three spaces: way-points
and controls, each number standardised over the demonstrations, and their whitened controls. Comfort is judged for all
in the same way, from way-points 0.5 s apart, which is lenient. Writes benchmarks/results/noise.json.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import git_commit  # noqa: E402
from data.scenes import scene_examples  # noqa: E402
from trajectory.demonstrations import demonstrate  # noqa: E402
from trajectory.denoiser import LATENT  # noqa: E402
from trajectory.field import Field, make_field  # noqa: E402
from trajectory.kinematics import drive, from_policy, to_policy, waypoints  # noqa: E402
from trajectory.latent import fit_latent  # noqa: E402
from trajectory.score import COMFORT  # noqa: E402

FLOORS = (0.01, 0.02, 0.05, 0.1, 0.2)
SHOWN = 12                              # noisy copies of one demonstration, for the figure
GAP = 0.5                               # s


def comfortable(points: Tensor, speed: Tensor) -> Tensor:
    """Whether acceleration and jerk stay within the limits, by differences of way-points. (P, 8, 2), (P,) -> (P,).

    Acceleration along and across is bounded by 4.05 and 4.89 m/s2, jerk by 8.37 m/s3."""
    start = torch.zeros_like(points[:, :1])
    before = torch.stack([-speed * GAP, torch.zeros_like(speed)], dim=-1)[:, None]      # half a second ago
    way = torch.cat([before, start, points], dim=1)
    velocity = way.diff(dim=1) / GAP
    acceleration = velocity.diff(dim=1) / GAP
    jerk = acceleration[:, 1:].diff(dim=1) / GAP
    along, across = acceleration[..., 0].abs().amax(1), acceleration[..., 1].abs().amax(1)
    return (along <= -COMFORT["acceleration"][0]) & (across <= COMFORT["lateral"][1]) \
        & (jerk.norm(dim=-1).amax(1) <= COMFORT["jerk"][1])


def noisy(controls: Tensor, field: Field, floor: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Way-points (P, 8, 2) of the demonstrations with noise in each space."""
    numbers = to_policy(controls[:, None], field)[:, 0]                         # (P, 16)
    latent = fit_latent(numbers, LATENT)

    def driven(values: Tensor) -> Tensor:
        return waypoints(drive(from_policy(values[:, None], field), field))[:, 0]

    def noise(like: Tensor) -> Tensor:
        return floor * torch.randn(like.shape, generator=generator)

    points, z = driven(numbers), latent.encode(numbers)
    return {"way-points": points + noise(points) * points.std(0), "controls": driven(numbers + noise(numbers)
                                                                                    * numbers.std(0)),
            "whitened controls": driven(latent.decode(z + noise(z)))}


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    examples = scene_examples("test", 1000)
    field = make_field(examples)
    controls, _ = demonstrate(examples, field, seed=0)
    record: dict = {"commit": git_commit(), "scenes": len(examples), "floors": list(FLOORS), "comfortable": {},
                    "moved": {}}
    plain = noisy(controls, field, 0.0, torch.Generator().manual_seed(0))
    record["undisturbed"] = comfortable(plain["way-points"], field.speed).float().mean().item()
    for floor in FLOORS:
        for space, points in noisy(controls, field, floor, torch.Generator().manual_seed(1)).items():
            shares, moved = record["comfortable"].setdefault(space, []), record["moved"].setdefault(space, [])
            shares.append(round(comfortable(points, field.speed).float().mean().item(), 3))
            moved.append(round((points - plain[space])[:, -1].norm(dim=-1).mean().item(), 2))
    record["drawn"] = drawn(controls, field, 0.1)
    (ROOT / "benchmarks/results/noise.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for space in record["comfortable"]:
        print(space, record["comfortable"][space], record["moved"][space])


def drawn(controls: Tensor, field: Field, floor: float) -> dict[str, list]:
    """Noisy copies of the first fast, straight demonstration, for the figure."""
    numbers = to_policy(controls[:, None], field)[:, 0]
    quiet = (numbers[:, :8].abs().amax(1) < 1) & (numbers[:, 8:].abs().amax(1) < 0.1) & (field.speed - 8).abs().lt(1)
    first = int(quiet.nonzero()[0])
    found: dict[str, list] = {}
    for copy in range(SHOWN):
        for space, points in noisy(controls, field, floor, torch.Generator().manual_seed(copy)).items():
            found.setdefault(space, []).append([[round(x, 2) for x in point] for point in points[first].tolist()])
    return found


if __name__ == "__main__":
    main()
