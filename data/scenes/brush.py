"""What the picture is drawn with: a brush, colours, and where lanes run in the picture.

Coordinates are pixels of the 224 x 112 picture, whatever size is asked for: u to the right, v down, the horizon at
v = 42. Lane borders run from the vanishing point to the lower edge; a bend shifts them sideways.
"""
from dataclasses import dataclass, replace

from PIL import ImageDraw

from data.scenes.world import Scene

WIDTH, HEIGHT = 224, 112
HORIZON, CENTRE = 42, 112
LANE_SLOPE = 0.74                       # half the own lane's width per pixel below the horizon
BEND = {"curve_left": -1, "curve_right": 1}
RED, YELLOW, GREEN, OFF = (255, 40, 30), (255, 205, 0), (30, 235, 90), (58, 60, 62)
WHITE, BLACK, ORANGE = (245, 245, 240), (18, 18, 20), (255, 112, 10)
PAVEMENT, ASPHALT, POLE, SHADOW = (176, 172, 164), (84, 86, 92), (112, 114, 118), (46, 48, 52)
WINDOW, DARK_RED, SKIN, MAGENTA, CYAN = (52, 66, 82), (122, 22, 26), (236, 190, 158), (226, 36, 150), (0, 214, 236)
LIME = (178, 246, 26)
CAR_COLOURS = ((38, 84, 150), (225, 228, 230), (52, 156, 204), (24, 122, 100), (196, 176, 130), (116, 96, 180))

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Brush:
    """Draws in picture coordinates. `scale`: canvas pixels per picture pixel; `light`: share of the brightness left."""
    canvas: ImageDraw.ImageDraw
    scale: Point
    light: float = 1.0

    def tone(self, colour: Colour) -> Colour:
        red, green, blue = (int(part * self.light) for part in colour)
        return red, green, blue

    def place(self, u: float, v: float) -> Point:
        return u * self.scale[0], v * self.scale[1]

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.canvas.polygon([self.place(*point) for point in points], fill=self.tone(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        (u, v), (start, above) = self.place(right, bottom), self.place(left, top)
        self.canvas.rectangle((start, above, max(u - 1, start), max(v - 1, above)), fill=self.tone(colour))

    def disc(self, u: float, v: float, radius: float, colour: Colour) -> None:
        edges = (*self.place(u - radius, v - radius), *self.place(u + radius, v + radius))
        self.canvas.ellipse(edges, fill=self.tone(colour))

    def shadow(self, u: float, v: float, half: float) -> None:
        """What stands on the ground darkens it: a flat ellipse below row v."""
        edges = (*self.place(u - half, v - half * .12 - 1), *self.place(u + half, v + half * .12 + 1))
        self.canvas.ellipse(edges, fill=self.tone(SHADOW))

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        self.canvas.line([self.place(*point) for point in points], fill=self.tone(colour),
                         width=round(width * sum(self.scale) / 2), joint="curve")

    def shining(self) -> "Brush":
        return replace(self, light=1.0)


def lane_half(v: float) -> float:
    return LANE_SLOPE * (v - HORIZON)


def lane_centre(scene: Scene, v: float) -> float:
    """Where the own lane's middle is in row v; a bend grows with the square of the distance from the car."""
    depth = (HEIGHT - v) / (HEIGHT - HORIZON)
    return CENTRE + BEND.get(scene.road, 0) * 96 * depth * depth


def border(scene: Scene, lanes: float, top: float = HORIZON, bottom: float = HEIGHT) -> list[tuple[float, float]]:
    """Points along the line `lanes` half lane widths beside the middle, from row top to row bottom."""
    steps = 14 if scene.road in BEND else 1
    rows = [top + (bottom - top) * step / steps for step in range(steps + 1)]
    return [(lane_centre(scene, v) + lanes * lane_half(v), v) for v in rows]


def outer_borders(scene: Scene) -> tuple[int, int]:
    """Left and right edge of the road, in half lane widths from the own lane's middle."""
    return (-3 if scene.left_lane != "none" else -1, 3 if scene.right_lane != "none" else 1)


def shaded(colour: Colour, light: float = .72) -> Colour:
    red, green, blue = (int(part * light) for part in colour)
    return red, green, blue


def pale(colour: Colour) -> Colour:
    red, green, blue = ((255 + part) // 2 for part in colour)
    return red, green, blue


def trapezium(u: float, top: float, half_top: float, bottom: float, half_bottom: float) -> list[Point]:
    return [(u - half_top, top), (u + half_top, top), (u + half_bottom, bottom), (u - half_bottom, bottom)]
