"""The brush that pictures are drawn with, and where lanes run in a picture.

Coordinates are pixels of the 224 x 112 picture at every output size: u to the right, v down, the horizon at v = 42.
Lane borders run from the vanishing point to the lower edge; a bend shifts them sideways.
"""
from dataclasses import dataclass, replace

from PIL import ImageDraw

from data.scenes.paint import SHADOW, Colour, shaded
from data.scenes.world import Scene

WIDTH, HEIGHT = 224, 112
HORIZON, CENTRE = 42, 112
LANE_SLOPE = 0.74                       # half the own lane's width per pixel below the horizon
BEND = {"curve_left": -1, "curve_right": 1}
Point = tuple[float, float]


@dataclass(frozen=True)
class Brush:
    """Draws in picture coordinates. `scale`: canvas pixels per picture pixel; `light`: share of the brightness left."""
    canvas: ImageDraw.ImageDraw
    scale: Point
    light: float = 1.0

    def place(self, u: float, v: float) -> Point:
        return u * self.scale[0], v * self.scale[1]

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.canvas.polygon([self.place(*point) for point in points], fill=shaded(colour, self.light))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        (u, v), (start, above) = self.place(right, bottom), self.place(left, top)
        self.canvas.rectangle((start, above, max(u - 1, start), max(v - 1, above)), fill=shaded(colour, self.light))

    def disc(self, u: float, v: float, radius: float, colour: Colour) -> None:
        edges = (*self.place(u - radius, v - radius), *self.place(u + radius, v + radius))
        self.canvas.ellipse(edges, fill=shaded(colour, self.light))

    def shadow(self, u: float, v: float, half: float) -> None:
        """A flat dark ellipse on the ground around row v."""
        edges = (*self.place(u - half, v - half * .12 - 1), *self.place(u + half, v + half * .12 + 1))
        self.canvas.ellipse(edges, fill=shaded(SHADOW, self.light))

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        self.canvas.line([self.place(*point) for point in points], fill=shaded(colour, self.light),
                         width=round(width * sum(self.scale) / 2), joint="curve")

    def shining(self) -> "Brush":
        return replace(self, light=1.0)


def lane_half(v: float) -> float:
    return LANE_SLOPE * (v - HORIZON)


def lane_centre(scene: Scene, v: float) -> float:
    """u of the own lane's middle in row v. In a bend its offset grows with the square of the distance."""
    depth = (HEIGHT - v) / (HEIGHT - HORIZON)
    return CENTRE + BEND.get(scene.road, 0) * 96 * depth * depth


def border(scene: Scene, lanes: float, top: float = HORIZON, bottom: float = HEIGHT) -> list[tuple[float, float]]:
    """Points of the line that runs `lanes` half lane widths beside the middle, from row `top` to row `bottom`."""
    steps = 14 if scene.road in BEND else 1
    rows = [top + (bottom - top) * step / steps for step in range(steps + 1)]
    return [(lane_centre(scene, v) + lanes * lane_half(v), v) for v in rows]


def outer_borders(scene: Scene) -> tuple[int, int]:
    """Left and right edge of the road, in half lane widths from the own lane's middle."""
    return (-3 if scene.left_lane != "none" else -1, 3 if scene.right_lane != "none" else 1)


def trapezium(u: float, top: float, half_top: float, bottom: float, half_bottom: float) -> list[Point]:
    return [(u - half_top, top), (u + half_top, top), (u + half_bottom, bottom), (u - half_bottom, bottom)]
