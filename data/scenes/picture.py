"""The picture of a scene, seen by a fixed camera. Signals are far larger than life, so that a small model sees them.

Everything is drawn at twice the size and averaged down. Coordinates are pixels of the 224 x 112 picture: u to the
right, v down, the horizon at v = 42. Lane borders run from the vanishing point to the lower edge; a bend shifts them
sideways. At night the land is dark, the head lamps light what stands on the road, and lamps shine by themselves.
"""
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from data.scenes.world import Scene

WIDTH, HEIGHT, SCALE = 224, 112, 2
HORIZON, CENTRE = 42, 112
GRASS_LIGHT, ROAD_LIGHT, OBJECT_LIGHT = 0.44, 0.60, 0.85        # share of the daylight left at night
LANE_SLOPE = 0.74                       # half the own lane's width per pixel below the horizon
BEND = {"curve_left": -1, "curve_right": 1}
RED, YELLOW, GREEN, OFF = (255, 40, 30), (255, 205, 0), (30, 235, 90), (58, 60, 62)
WHITE, BLACK, ORANGE = (245, 245, 240), (18, 18, 20), (255, 112, 10)
PAVEMENT, ASPHALT, POLE = (176, 172, 164), (84, 86, 92), (112, 114, 118)
WINDOW, DARK_RED, SKIN, MAGENTA, CYAN = (52, 66, 82), (122, 22, 26), (236, 190, 158), (226, 36, 150), (0, 214, 236)
CAR_COLOURS = ((38, 84, 150), (225, 228, 230), (52, 156, 204), (24, 122, 100), (196, 176, 130), (116, 96, 180))

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Brush:
    """Draws in picture coordinates; `light` is the share of a colour's brightness that is left."""
    canvas: ImageDraw.ImageDraw
    light: float = 1.0

    def tone(self, colour: Colour) -> Colour:
        red, green, blue = (int(part * self.light) for part in colour)
        return red, green, blue

    def polygon(self, points: list[Point], colour: Colour) -> None:
        self.canvas.polygon([(u * SCALE, v * SCALE) for u, v in points], fill=self.tone(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        edges = (left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1)
        self.canvas.rectangle(edges, fill=self.tone(colour))

    def disc(self, u: float, v: float, radius: float, colour: Colour) -> None:
        edges = ((u - radius) * SCALE, (v - radius) * SCALE, (u + radius) * SCALE, (v + radius) * SCALE)
        self.canvas.ellipse(edges, fill=self.tone(colour))

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        self.canvas.line([(u * SCALE, v * SCALE) for u, v in points], fill=self.tone(colour),
                         width=round(width * SCALE), joint="curve")

    def shining(self) -> "Brush":
        return Brush(self.canvas)


def draw(scene: Scene, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """The front view as an RGB picture of `size` (width, height), painted from far to near.

    The same scene gives the same bytes. Colours of sky, houses and cars come from the scene's seed and mean nothing.
    """
    rng = random.Random(f"picture {scene.seed}")
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
    canvas = ImageDraw.Draw(image)
    land, road, objects = (Brush(canvas, light if scene.night else 1.0)
                           for light in (GRASS_LIGHT, ROAD_LIGHT, OBJECT_LIGHT))
    draw_background(land, rng)
    draw_road(road, scene)
    if scene.road.startswith("junction"):
        draw_junction(road, scene)
    draw_signs(objects, scene)
    draw_objects(objects, scene, rng)
    return image.reduce(SCALE) if size == (WIDTH, HEIGHT) else image.resize(size, Image.Resampling.LANCZOS)


# ---------------------------------------------------------------- ground

def draw_background(brush: Brush, rng: random.Random) -> None:
    shade = rng.randint(-10, 10)
    for step in range(6):
        light = 22 * step // 3 + shade
        brush.box(0, step * 7, WIDTH, step * 7 + 7, (118 + light, 172 + light, 226 + light // 2))
    u = -rng.randint(0, 20)
    while u < WIDTH:
        width, height, grey = rng.randint(16, 34), rng.randint(5, 15), rng.randint(128, 168)
        brush.box(u, HORIZON - height, u + width, HORIZON, (grey, grey - 4, grey + 6))
        u += width
    grass = rng.randint(-12, 12)
    brush.box(0, HORIZON, WIDTH, HEIGHT, (92 + grass, 146 + grass, 78 + grass))


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


def stripe(brush: Brush, scene: Scene, lanes: float, half: float, rows: Point = (HORIZON, HEIGHT)) -> None:
    """A painted line beside the lane's middle, from the first of `rows` to the second."""
    brush.polygon(border(scene, lanes - half, *rows) + border(scene, lanes + half, *rows)[::-1], WHITE)


def draw_road(brush: Brush, scene: Scene) -> None:
    left, right = outer_borders(scene)
    brush.polygon(border(scene, left - .34) + border(scene, right + .34)[::-1], PAVEMENT)
    brush.polygon(border(scene, left) + border(scene, right)[::-1], ASPHALT)
    for lanes in (left, right):
        stripe(brush, scene, lanes, .05)
    for lanes in {-1, 1} - {left, right}:
        for rows in ((46, 50), (55, 62), (70, 82), (94, 112)):
            stripe(brush, scene, lanes, .06, rows)


def draw_junction(brush: Brush, scene: Scene) -> None:
    """The crossing road, and before a near one a zebra crossing and the stop line."""
    near = scene.road == "junction_near"
    top, bottom = (49, 66) if near else (44, 50)
    brush.box(0, top - 1, WIDTH, bottom + 1, PAVEMENT)
    brush.box(0, top, WIDTH, bottom, ASPHALT)
    if not near:
        return
    left, right = outer_borders(scene)
    for bar in range(left * 2, right * 2):
        corners = ((bar / 2 + .1, 68), (bar / 2 + .4, 68), (bar / 2 + .4, 76), (bar / 2 + .1, 76))
        brush.polygon([(CENTRE + lanes * lane_half(v), v) for lanes, v in corners], WHITE)
    brush.box(CENTRE - lane_half(80), 79, CENTRE + lane_half(80), 82, WHITE)


# ---------------------------------------------------------------- signs and lights

def draw_signs(brush: Brush, scene: Scene) -> None:
    if scene.road in BEND:
        draw_bend_boards(brush, BEND[scene.road])
    if scene.road == "junction_far":
        draw_junction_sign(brush, 42)
    if scene.light != "none":
        draw_light(brush, scene)


def draw_bend_boards(brush: Brush, side: int) -> None:
    """Two arrow boards on the outside of the bend; they point where the road goes."""
    for offset in (48, 82):
        u = CENTRE - side * offset
        brush.box(u - 1.5, 50, u + 1.5, 64, POLE)
        brush.box(u - 15, 22, u + 15, 52, BLACK)
        brush.box(u - 13, 24, u + 13, 50, YELLOW)
        tip, tail = u + side * 9, u - side * 5
        brush.polygon([(tail - side * 4, 26), (tail + side * 4, 26), (tip, 37), (tail + side * 4, 48),
                       (tail - side * 4, 48), (tip - side * 8, 37)], BLACK)


def draw_junction_sign(brush: Brush, u: float) -> None:
    """A yellow diamond with a cross: a junction comes, but it is still far."""
    brush.box(u - 1.5, 40, u + 1.5, 66, POLE)
    for radius, colour in ((19, BLACK), (16.5, YELLOW)):
        brush.polygon([(u, 28 - radius), (u + radius, 28), (u, 28 + radius), (u - radius, 28)], colour)
    brush.box(u - 2, 19, u + 2, 37, BLACK)
    brush.box(u - 9, 26, u + 9, 30, BLACK)


def draw_light(brush: Brush, scene: Scene) -> None:
    """A signal head on a mast beside the road, larger when the junction is near."""
    near = scene.road == "junction_near"
    u, radius, base = (182, 6.6, 70) if near else (168, 5.2, 50)
    top, pitch = 2, radius * 2.3
    brush.box(u - 1.5, top, u + 1.5, base, POLE)
    brush.box(u - radius - 3.5, top, u + radius + 3.5, top + 3 * pitch + 3, BLACK)
    for row, (name, colour) in enumerate((("red", RED), ("yellow", YELLOW), ("green", GREEN))):
        v = top + pitch * (row + .5) + 1.5
        if scene.light == name:
            brush.shining().disc(u, v, radius, colour)
            brush.shining().disc(u, v, radius * .4, pale(colour))
        else:
            brush.disc(u, v, radius, OFF)


def pale(colour: Colour) -> Colour:
    red, green, blue = ((255 + part) // 2 for part in colour)
    return red, green, blue


# ---------------------------------------------------------------- road users, far to near

def draw_objects(brush: Brush, scene: Scene, rng: random.Random) -> None:
    paint = rng.sample(CAR_COLOURS, 4)
    near_u = lane_centre(scene, 88)
    if scene.lead == "far":
        draw_car(brush, lane_centre(scene, 60), 62, 24, paint[0], braking=scene.braking)
    if scene.pedestrian == "kerb":                                  # on the outside of a bend, where there is room
        draw_pedestrian(brush, CENTRE + (-99 if scene.road == "curve_right" else 99), 92, walking=False)
    for side, lane in ((-2, scene.left_lane), (2, scene.right_lane)):
        if lane == "occupied":
            draw_car(brush, near_u + side * lane_half(88), 90, 50, paint[2 if side < 0 else 3])
    if scene.lead == "near":
        draw_car(brush, near_u, 95, 56, paint[0], braking=scene.braking)
    draw_blockage(brush, scene, paint[1])
    if scene.pedestrian == "crossing":
        draw_pedestrian(brush, near_u + rng.randint(-6, 6), 98, walking=True)


def draw_blockage(brush: Brush, scene: Scene, colour: Colour) -> None:
    if scene.blockage == "parked":
        draw_parked_car(brush, lane_centre(scene, 80), colour)
    if scene.blockage == "cones":
        for lanes in (-.72, 0, .72):
            draw_cone(brush, lane_centre(scene, 88) + lanes * lane_half(88), 92)


def draw_car(brush: Brush, u: float, bottom: float, width: float, colour: Colour, braking: bool = False) -> None:
    """A car from behind; lit brake lamps are large, bright and three."""
    unit, half = width / 20, width / 2
    top, waist = bottom - 15 * unit, bottom - 9.5 * unit
    for side in (-1, 1):
        wheel = u + side * (half - 2 * unit)
        brush.box(wheel - 2 * unit, bottom - 3 * unit, wheel + 2 * unit, bottom, BLACK)
    brush.polygon(trapezium(u, top, half - 3.4 * unit, waist, half - .6 * unit), colour)
    brush.polygon(trapezium(u, top + unit, half - 4.6 * unit, waist, half - 2.6 * unit), WINDOW)
    brush.box(u - half, waist, u + half, bottom - 1.6 * unit, colour)
    brush.box(u - 3 * unit, bottom - 4.6 * unit, u + 3 * unit, bottom - 2.8 * unit, WHITE)
    for side in (-1, 1):
        draw_tail_lamp(brush, u + side * (half - 2.4 * unit), waist + 2.4 * unit, unit, braking)
    if braking:
        brush.shining().box(u - 4 * unit, top - .4 * unit, u + 4 * unit, top + 1.6 * unit, RED)


def draw_tail_lamp(brush: Brush, u: float, v: float, unit: float, braking: bool) -> None:
    if not braking:
        brush.disc(u, v, 1.5 * unit, DARK_RED)
        return
    radius = max(2.6 * unit, 3.6)
    brush.shining().disc(u, v, radius * 1.25, pale(RED))
    brush.shining().disc(u, v, radius, RED)


def trapezium(u: float, top: float, half_top: float, bottom: float, half_bottom: float) -> list[Point]:
    return [(u - half_top, top), (u + half_top, top), (u + half_bottom, bottom), (u - half_bottom, bottom)]


def draw_parked_car(brush: Brush, u: float, colour: Colour) -> None:
    """A car left in the lane: amber hazard lamps and a warning triangle behind it."""
    draw_car(brush, u, 88, 46, colour)
    for side in (-1, 1):
        brush.shining().disc(u + side * 18, 72, 5, YELLOW)
    brush.shining().polygon([(u, 79), (u - 13, 101), (u + 13, 101)], RED)
    brush.shining().polygon([(u, 86), (u - 7, 98), (u + 7, 98)], WHITE)


def draw_cone(brush: Brush, u: float, bottom: float) -> None:
    brush.box(u - 9, bottom - 3, u + 9, bottom, ORANGE)
    brush.polygon([(u - 7, bottom - 3), (u - 1.5, bottom - 25), (u + 1.5, bottom - 25), (u + 7, bottom - 3)], ORANGE)
    brush.polygon([(u - 5, bottom - 9), (u - 3.4, bottom - 15), (u + 3.4, bottom - 15), (u + 5, bottom - 9)], WHITE)


def draw_pedestrian(brush: Brush, u: float, bottom: float, walking: bool) -> None:
    """Waiting: legs together, a wide cyan coat. Walking: a magenta coat, legs and arms apart."""
    height = 50
    coat, chest = (MAGENTA, 5) if walking else (CYAN, 8)
    hip, neck, spread = bottom - height * .45, bottom - height * .8, 8 if walking else 3
    for side in (-1, 1):
        brush.line([(u + side, hip), (u + side * spread, bottom)], (36, 38, 52), 4)
        brush.line([(u, neck + 3), (u + side * (spread + 3), hip - 1)], coat, 3.4)
    brush.polygon(trapezium(u, neck, chest, hip + 2, chest + 1), coat)
    brush.disc(u, neck - height * .1, height * .115, SKIN)
