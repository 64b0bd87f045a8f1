"""The pictures of a scene from its fixed cameras. Signals are drawn far too large, so that a small model can see them.

Everything is drawn at twice the size and averaged down. At night the land is dark, head lamps light the objects on the
road, and lamps keep their full brightness.
"""
import random

from PIL import Image, ImageDraw

from data.example import PICTURE_EDGES, VIEWS
from data.scenes import paint
from data.scenes.brush import BEND, CENTRE, HEIGHT, HORIZON, WIDTH, Brush, Point, border, lane_half, outer_borders
from data.scenes.road_users import draw_objects
from data.scenes.side_view import draw_side_objects, draw_side_road, mirrored
from data.scenes.world import Scene

OVERSAMPLING = 2
GRASS_LIGHT, ROAD_LIGHT, OBJECT_LIGHT = 0.38, 0.60, 0.85        # brightness at night, as a share of the day's
BEAM = ((62, 62, 64), (74, 74, 74))                             # asphalt lit by the head lamps: edge, inside
# Colour of the air; its opacity at and above the horizon; its opacity at the car
AIR = {"overcast": ((150, 154, 162), .40, .22), "rain": ((110, 116, 128), .52, .25), "fog": ((196, 198, 200), .86, .22)}
NIGHT_AIR = 0.35                                                # the same of the air


def draw(scene: Scene, size: tuple[int, int] = (WIDTH, HEIGHT), view: str = "front") -> Image.Image:
    """A view (front, front_left, front_right) as an RGB picture of `size` (width, height), painted from far to near.

    The same scene gives the same bytes with the same version of Pillow. Every size is drawn directly, not resampled.
    The colours of sky, houses and cars come from the scene's seed and carry no information.

    Raises: ValueError for a size that cannot be drawn, or an unknown view.
    """
    if view not in VIEWS:
        raise ValueError(f"view {view!r:.80}: a built-in scene has {', '.join(VIEWS)}")
    low, high = PICTURE_EDGES
    if not all(low <= edge <= high for edge in size):
        raise ValueError(f"picture size {size[0]} x {size[1]}: width and height are {low} to {high} pixels")
    rng = random.Random(f"picture {scene.seed}" + ("" if view == "front" else f" {view}"))
    image = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    canvas, scale = ImageDraw.Draw(image), (image.width / WIDTH, image.height / HEIGHT)
    land, road, objects = (Brush(canvas, scale, light if scene.night else 1.0)
                           for light in (GRASS_LIGHT, ROAD_LIGHT, OBJECT_LIGHT))
    draw_background(land, rng, scene.night)
    if view != "front":
        side = view.removeprefix("front_")
        draw_side_road(road, scene, side)
        draw_weather(image, objects, scene)
        draw_side_objects(objects, scene, side, rng)
        return mirrored(image, side).reduce(OVERSAMPLING)
    draw_road(road, scene)
    if scene.road.startswith("junction"):
        draw_junction(road, scene)
    draw_weather(image, objects, scene)
    draw_signs(objects, scene)
    draw_objects(objects, scene, rng)
    return image.reduce(OVERSAMPLING)


# ---------------------------------------------------------------- ground

def draw_background(brush: Brush, rng: random.Random, night: bool) -> None:
    """Sky, houses, trees and grass. They carry no information."""
    shade = rng.randint(-10, 10)
    for step in range(21):
        light = 2 * step + shade
        brush.box(0, step * 2, WIDTH, step * 2 + 2, (112 + light, 168 + light, 224 + light // 2))
    u = -rng.randint(0, 20)
    while u < WIDTH:
        width = rng.randint(16, 34)
        draw_house(brush, u, width, rng.randint(5, 15), rng.randint(128, 168), night)
        u += width
    for _ in range(6):
        u, radius = rng.randint(0, WIDTH), rng.randint(3, 6)
        brush.disc(u, HORIZON - radius + 1, radius, (66 + shade, 112 + shade, 62 + shade))
    grass = rng.randint(-12, 12)
    for top, bottom, haze in ((HORIZON, 46, 26), (46, 54, 14), (54, 70, 5), (70, HEIGHT, 0)):
        haze = 0 if night else haze                             # at night far roads keep their contrast
        brush.box(0, top, WIDTH, bottom, (88 + grass + haze, 142 + grass + haze, 74 + grass + haze))


def draw_house(brush: Brush, u: float, width: int, height: int, grey: int, night: bool) -> None:
    """A block on the horizon with a few windows, lit at night."""
    brush.box(u, HORIZON - height, u + width, HORIZON, (grey, grey - 4, grey + 6))
    glass = (176, 150, 92) if night else (104, 112, 126)
    panes = brush.shining() if night else brush
    for place in range(3, width - 3, 6) if height > 7 else ():
        panes.box(u + place, HORIZON - height + 3, u + place + 2, HORIZON - height + 5.5, glass)


def stripe(brush: Brush, scene: Scene, lanes: float, half: float, rows: Point = (HORIZON, HEIGHT)) -> None:
    """A painted line `lanes` half lane widths beside the middle, from the first to the second of `rows`."""
    brush.polygon(border(scene, lanes - half, *rows) + border(scene, lanes + half, *rows)[::-1], paint.WHITE)


def draw_road(brush: Brush, scene: Scene) -> None:
    left, right = outer_borders(scene)
    brush.polygon(border(scene, left - .34) + border(scene, right + .34)[::-1], paint.PAVEMENT)
    brush.polygon(border(scene, left) + border(scene, right)[::-1], paint.ASPHALT)
    if scene.night:
        for half, top, colour in zip((1.6, 1.1), (58, 66), BEAM, strict=True):
            edges = max(left, -half), min(right, half)
            brush.shining().polygon(border(scene, edges[0], top) + border(scene, edges[1], top)[::-1], colour)
    for lanes in (left, right):
        stripe(brush, scene, lanes, .05)
    for lanes in {-1, 1} - {left, right}:
        for rows in ((46, 50), (55, 62), (70, 82), (94, 112)):
            stripe(brush, scene, lanes, .06, rows)


def draw_junction(brush: Brush, scene: Scene) -> None:
    """The crossing road. A near one also has a zebra crossing and a stop line."""
    near = scene.road == "junction_near"
    top, bottom = (49, 66) if near else (44, 50)
    brush.box(0, top - 1, WIDTH, bottom + 1, paint.PAVEMENT)
    brush.box(0, top, WIDTH, bottom, paint.ASPHALT)
    middle, thick = (top + bottom) / 2 - .5, (bottom - top) * .07
    for u in range(4, WIDTH, 22):
        brush.box(u, middle, u + 11, middle + thick, paint.WHITE)
    left, right = outer_borders(scene)
    rows = (top - 1, bottom + 1)                                # no kerb and no line inside the junction
    brush.polygon(border(scene, left, *rows) + border(scene, right, *rows)[::-1], paint.ASPHALT)
    if not near:
        return
    for bar in range(left * 2, right * 2):
        corners = ((bar / 2 + .1, 68), (bar / 2 + .4, 68), (bar / 2 + .4, 76), (bar / 2 + .1, 76))
        brush.polygon([(CENTRE + lanes * lane_half(v), v) for lanes, v in corners], paint.WHITE)
    brush.box(CENTRE - lane_half(80), 79, CENTRE + lane_half(80), 82, paint.WHITE)


# ---------------------------------------------------------------- weather

def draw_weather(image: Image.Image, brush: Brush, scene: Scene) -> None:
    """Grey air over land and road, densest at the horizon; drops in rain. Signs and road users come on top."""
    if scene.weather == "clear":
        return
    colour, far, near = AIR[scene.weather]
    grey = tuple(int(part * (NIGHT_AIR if scene.night else 1)) for part in colour)
    depths = [min(1, (HEIGHT - v) / (HEIGHT - HORIZON)) for v in range(HEIGHT)]       # 1 at the horizon and above
    column = Image.new("L", (1, HEIGHT))
    column.putdata([round(255 * (near + (far - near) * depth * depth)) for depth in depths])
    image.paste(grey, (0, 0), column.resize(image.size))
    drops = random.Random(f"drops {scene.seed}")
    for _ in range(90 if scene.weather == "rain" else 0):
        u, v = drops.uniform(0, WIDTH), drops.uniform(0, HEIGHT)
        brush.line([(u, v), (u - 2, v + 7)], (176, 186, 200), .8)


# ---------------------------------------------------------------- signs and lights

def draw_signs(brush: Brush, scene: Scene) -> None:
    if scene.road in BEND:
        draw_bend_boards(brush, BEND[scene.road])
    if scene.road == "junction_far":
        draw_junction_sign(brush, 42)
    if scene.light != "none":
        draw_light(brush, scene)


def draw_bend_boards(brush: Brush, side: int) -> None:
    """Two arrow boards on the outside of the bend that point along the road."""
    for offset in (48, 82):
        u = CENTRE - side * offset
        brush.box(u - 1.5, 50, u + 1.5, 64, paint.POLE)
        brush.box(u - 15, 22, u + 15, 52, paint.BLACK)
        brush.box(u - 13, 24, u + 13, 50, paint.YELLOW)
        tip, tail = u + side * 9, u - side * 5
        brush.polygon([(tail - side * 4, 26), (tail + side * 4, 26), (tip, 37), (tail + side * 4, 48),
                       (tail - side * 4, 48), (tip - side * 8, 37)], paint.BLACK)


def draw_junction_sign(brush: Brush, u: float) -> None:
    """A yellow diamond with a cross, the sign of a far junction."""
    brush.box(u - 1.5, 40, u + 1.5, 66, paint.POLE)
    for radius, colour in ((19, paint.BLACK), (16.5, paint.YELLOW)):
        brush.polygon([(u, 28 - radius), (u + radius, 28), (u, 28 + radius), (u - radius, 28)], colour)
    brush.box(u - 2, 19, u + 2, 37, paint.BLACK)
    brush.box(u - 9, 26, u + 9, 30, paint.BLACK)


def draw_light(brush: Brush, scene: Scene) -> None:
    """A traffic light on a mast beside the road, larger at a near junction."""
    near = scene.road == "junction_near"
    u, radius, base = (182, 6.6, 70) if near else (168, 5.2, 50)
    top, pitch = 2, radius * 2.3
    brush.box(u - 1.5, top, u + 1.5, base, paint.POLE)
    brush.box(u - radius - 3.5, top, u + radius + 3.5, top + 3 * pitch + 3, paint.BLACK)
    for row, (name, colour) in enumerate((("red", paint.RED), ("yellow", paint.YELLOW), ("green", paint.GREEN))):
        v = top + pitch * (row + .5) + 1.5
        if scene.light == name:
            brush.shining().disc(u, v, radius, colour)
            brush.shining().disc(u, v, radius * .4, paint.pale(colour))
        else:
            brush.disc(u, v, radius, paint.OFF)
