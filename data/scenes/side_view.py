"""The pictures of the side cameras: what is beside the car and what comes from there. See sides.py.

The camera looks to the left, so that the car's front is at the right edge; the right view is drawn like a left one and
mirrored. Own lanes run across the picture. What the front view shows ahead is not in these pictures.
"""
import random

from PIL import Image, ImageOps

from data.scenes import paint
from data.scenes.brush import HEIGHT, HORIZON, WIDTH, Brush, trapezium
from data.scenes.paint import Colour
from data.scenes.world import Scene

PARKED = 0.4                            # share of side views with a harmless car parked far away
LANE = 94                               # upper row of the lane beside
CROSSING = 150                          # u of the crossing road of a near junction


def draw_side_road(brush: Brush, scene: Scene, side: str) -> None:
    """The lane beside, if there is one, its pavement, and the crossing road of a near junction."""
    lane = getattr(scene, f"{side}_lane") != "none"
    top = LANE if lane else LANE + 10
    brush.box(0, top - 7, WIDTH, top, paint.PAVEMENT)
    brush.box(0, top, WIDTH, HEIGHT, paint.ASPHALT)
    for u in range(6, WIDTH, 44) if lane else ():
        brush.box(u, HEIGHT - 4, u + 22, HEIGHT - 1, paint.WHITE)
    if scene.road == "junction_near":
        brush.polygon(trapezium(CROSSING, HORIZON + 1, 5, top, 48), paint.PAVEMENT)
        brush.polygon(trapezium(CROSSING, HORIZON + 1, 4, top, 42), paint.ASPHALT)
        for row, half in ((50, .6), (60, 1), (74, 1.6)):
            brush.polygon(trapezium(CROSSING, row, half, row + 7, half * 1.3), paint.WHITE)


def draw_side_objects(brush: Brush, scene: Scene, side: str, rng: random.Random) -> None:
    """A harmless parked car, then the fact of this side."""
    colours = rng.sample(paint.CAR_COLOURS, 2)
    if rng.random() < PARKED and scene.road != "junction_near":
        draw_profile(brush, rng.randint(30, WIDTH - 30), 72, 34, colours[1])
    if scene.side == f"beside_{side}":
        draw_profile(brush, 112, 109, 150, colours[0])
    if scene.side == f"car_{side}":
        draw_approaching(brush, CROSSING, 93, 62, colours[0])
    if scene.side == f"cyclist_{side}":
        draw_rider(brush, 120, 100, 3.0)


def draw_profile(brush: Brush, u: float, bottom: float, length: float, colour: Colour) -> None:
    """A car from the side."""
    unit, half = length / 40, length / 2
    brush.shadow(u, bottom, half)
    brush.polygon([(u - half * .62, bottom - 8 * unit), (u - half * .4, bottom - 13.5 * unit),
                   (u + half * .3, bottom - 13.5 * unit), (u + half * .6, bottom - 8 * unit)], colour)
    for left, right in ((-.46, -.06), (.0, .42)):
        brush.polygon([(u + half * left, bottom - 8 * unit), (u + half * (left + .1), bottom - 12.4 * unit),
                       (u + half * (right - .12), bottom - 12.4 * unit), (u + half * right, bottom - 8 * unit)],
                      paint.WINDOW)
    brush.box(u - half, bottom - 8.4 * unit, u + half, bottom - 2.4 * unit, colour)
    for wheel in (-.58, .58):
        brush.disc(u + wheel * half, bottom - 2.8 * unit, 3.1 * unit, paint.BLACK)
        brush.disc(u + wheel * half, bottom - 2.8 * unit, 1.4 * unit, paint.POLE)


def draw_approaching(brush: Brush, u: float, bottom: float, width: float, colour: Colour) -> None:
    """A car from the front with head lamps on, larger than it would be, like every signal of these pictures."""
    unit, half = width / 20, width / 2
    brush.shadow(u, bottom, half)
    brush.polygon(trapezium(u, bottom - 15 * unit, half * .66, bottom - 9 * unit, half * .94), colour)
    brush.polygon(trapezium(u, bottom - 14 * unit, half * .56, bottom - 9 * unit, half * .78), paint.WINDOW)
    brush.box(u - half, bottom - 9 * unit, u + half, bottom - 1.6 * unit, colour)
    brush.box(u - 5 * unit, bottom - 5.6 * unit, u + 5 * unit, bottom - 2.4 * unit, paint.BLACK)
    for side in (-1, 1):
        brush.box(u + side * 7.4 * unit - 2 * unit, bottom - 2 * unit, u + side * 7.4 * unit + 2 * unit, bottom,
                  paint.BLACK)
        brush.shining().disc(u + side * 7.4 * unit, bottom - 6 * unit, 2.3 * unit, (255, 250, 190))


def draw_rider(brush: Brush, u: float, bottom: float, unit: float) -> None:
    """A cyclist from the side, riding to the right: lime jacket, white helmet, two wheels."""
    brush.shadow(u, bottom, 13 * unit)
    for wheel in (-7, 7):
        brush.disc(u + wheel * unit, bottom - 4.4 * unit, 4.6 * unit, paint.BLACK)
        brush.disc(u + wheel * unit, bottom - 4.4 * unit, 3.0 * unit, (150, 152, 156))
    frame = [(u - 7 * unit, bottom - 4.4 * unit), (u - 2 * unit, bottom - 10 * unit),
             (u + 5 * unit, bottom - 10 * unit), (u + 7 * unit, bottom - 4.4 * unit)]
    brush.line(frame, paint.RED, 1.2 * unit)
    brush.line([(u - 2 * unit, bottom - 11 * unit), (u + 1.6 * unit, bottom - 7 * unit), (u, bottom - 2.6 * unit)],
               (36, 38, 52), 1.9 * unit)
    brush.polygon([(u - 4 * unit, bottom - 11 * unit), (u - 1 * unit, bottom - 18.5 * unit),
                   (u + 3.4 * unit, bottom - 17.5 * unit), (u + 1 * unit, bottom - 10.6 * unit)], paint.LIME)
    brush.line([(u + 1.6 * unit, bottom - 16.6 * unit), (u + 5.4 * unit, bottom - 11 * unit)], paint.LIME, 1.8 * unit)
    brush.disc(u + 2.6 * unit, bottom - 20 * unit, 2.3 * unit, paint.SKIN)
    brush.box(u, bottom - 23 * unit, u + 5.2 * unit, bottom - 20.4 * unit, paint.WHITE)


def mirrored(image: Image.Image, side: str) -> Image.Image:
    return ImageOps.mirror(image) if side == "right" else image
