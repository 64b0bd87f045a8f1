"""`python -m data.scenes --sheet sheet.png`: pictures of scenes with question, plans, odds and reason.

`python -m data.scenes --datasheet`: contents of the benchmark and reachable accuracies, as in docs/benchmark.md.
"""
import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.example import CAMERA_COUNTS, SCENE_SIZE, VIEWS, Example, picture_size, prompt_text
from data.scenes import PRIORS, SPLITS, draw, label_distribution, sample_scene, scene_examples
from data.scenes.datasheet import benchmark_sheet

CELL_WIDTH, TEXT_HEIGHT, MARGIN = 448, 150, 14
ACROSS = ("front_left", "front", "front_right")          # views from left to right


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.scenes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--sheet", type=Path, help="the PNG file to write")
    wanted.add_argument("--datasheet", action="store_true", help="print the datasheet")
    parser.add_argument("--split", choices=SPLITS, help="default: sft for --sheet, test for --datasheet")
    parser.add_argument("--prior", choices=PRIORS, default="balanced", help="for --sheet; --datasheet shows all")
    parser.add_argument("--count", type=int, help="number of scenes; default: 12 for --sheet, 20000 for --datasheet")
    parser.add_argument("--size", default=SCENE_SIZE, help="picture size, such as 448x224; small pictures are enlarged")
    parser.add_argument("--camera-count", type=int, choices=CAMERA_COUNTS, default=1,
                        help="3: front, left and right views of the scenes in which a side view may decide")
    parser.add_argument("--columns", type=int, default=3, help="pictures in a row of the sheet")
    parser.add_argument("--seed", type=int, default=0, help="which scenes of the split are shown")
    arguments = parser.parse_args(given)
    if (size := picture_size(arguments.size)) is None:
        parser.error(f"--size {arguments.size!r:.80}: give WIDTHxHEIGHT in pixels, each from 28 to 4096")
    if arguments.datasheet:
        print(benchmark_sheet(arguments.count or 20_000, arguments.split or "test", arguments.seed,      # noqa: T201
                              arguments.camera_count))
        return
    count = 12 if arguments.count is None else arguments.count
    examples = scene_examples(arguments.split or "sft", count, arguments.seed, prior=arguments.prior,
                              cameras=arguments.camera_count)
    contact_sheet(examples, max(arguments.columns, 1), size).save(arguments.sheet, optimize=True)
    print(f"wrote {len(examples)} scenes to {arguments.sheet}")                                          # noqa: T201


def contact_sheet(examples: list[Example], columns: int, size: tuple[int, int]) -> Image.Image:
    """The scenes in a grid with text below each. Pictures of at most half a cell are enlarged pixel by pixel."""
    rows, times = -(-len(examples) // columns), max(1, CELL_WIDTH // size[0])
    shown = (size[0] * times * max((len(example.cameras or VIEWS[:1]) for example in examples), default=1),
             size[1] * times)
    cell = (max(shown[0], CELL_WIDTH) + MARGIN, shown[1] + TEXT_HEIGHT)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, max(rows, 1) * cell[1] + MARGIN), (250, 250, 248))
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for index, example in enumerate(examples):
        left, top = MARGIN + index % columns * cell[0], MARGIN + index // columns * cell[1]
        picture = all_views(example, size)
        sheet.paste(picture.resize((times * picture.width, shown[1]), Image.Resampling.NEAREST), (left, top))
        canvas.multiline_text((left, top + shown[1] + 6), caption(example), fill=(20, 20, 24), font=font)
    return sheet


def all_views(example: Example, size: tuple[int, int]) -> Image.Image:
    """The views side by side, as they lie around the car."""
    scene, views = sample_scene(example.scene), [view for view in ACROSS if view in (example.cameras or VIEWS[:1])]
    strip = Image.new("RGB", (size[0] * len(views), size[1]))
    for place, view in enumerate(views):
        strip.paste(draw(scene, size, view), (place * size[0], 0))
    return strip


def caption(example: Example) -> str:
    odds = label_distribution(sample_scene(example.scene))
    plans = "   ".join(f"{plan} {100 * odds[plan]:.0f} %" for plan in example.acceptable)
    lines = [prompt_text(example, "compact"), plans, f"label: {example.decision}", example.reasoning]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 52))


if __name__ == "__main__":
    main()
