"""`python -m data.scenes --sheet sheet.png`: scenes with prompt, plans and their odds, and reason."""
import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data.scenes import SPLITS, draw, label_distribution, sample_scene, scene_examples
from data.schema import Example, prompt_text

CELL_WIDTH, PICTURE_HEIGHT, TEXT_HEIGHT, MARGIN = 448, 224, 150, 14


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.scenes", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--split", choices=SPLITS, default="sft")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    examples = scene_examples(arguments.split, arguments.count, arguments.seed)
    contact_sheet(examples, max(arguments.columns, 1)).save(arguments.sheet)
    print(f"wrote {len(examples)} scenes to {arguments.sheet}")  # noqa: T201


def contact_sheet(examples: list[Example], columns: int) -> Image.Image:
    """The scenes at twice their size in a grid, the text below each."""
    rows = -(-len(examples) // columns)
    cell = (CELL_WIDTH + MARGIN, PICTURE_HEIGHT + TEXT_HEIGHT)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, max(rows, 1) * cell[1] + MARGIN), (250, 250, 248))
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for index, example in enumerate(examples):
        left, top = MARGIN + index % columns * cell[0], MARGIN + index // columns * cell[1]
        picture = draw(sample_scene(example.scene)).resize((CELL_WIDTH, PICTURE_HEIGHT), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        canvas.multiline_text((left, top + PICTURE_HEIGHT + 6), caption(example), fill=(20, 20, 24), font=font)
    return sheet


def caption(example: Example) -> str:
    odds = label_distribution(sample_scene(example.scene))
    plans = "   ".join(f"{plan} {100 * odds[plan]:.0f} %" for plan in example.acceptable)
    lines = [prompt_text(example, "compact"), plans, f"label: {example.decision}", example.reasoning]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 52))


if __name__ == "__main__":
    main()
