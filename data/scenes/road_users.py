"""Draws cars, trucks, cyclists, pedestrians, lane blockages and the rare events of the long tail."""
import random

from data.scenes import paint
from data.scenes.brush import BEND, CENTRE, Brush, lane_centre, lane_half, outer_borders, trapezium
from data.scenes.paint import Colour
from data.scenes.world import Scene

DARK_COAT, BROWN, BLUE = (58, 50, 66), (150, 96, 48), (30, 90, 255)
CARGO_BOX, SEAM, STEEL = (222, 206, 160), (120, 104, 76), (150, 152, 156)
HAIR = (74, 52, 40)


def draw_objects(brush: Brush, scene: Scene, rng: random.Random) -> None:
    colours = rng.sample(paint.CAR_COLOURS, 4)
    near_u = lane_centre(scene, 88)
    if scene.lead == "far":
        DRAW_LEAD[scene.lead_kind](brush, lane_centre(scene, 60), 62, 24, colours[0], scene.braking)
    if scene.pedestrian == "kerb":
        draw_pedestrian(brush, kerb_place(scene), 92, walking=False)
    for side, lane in ((-2, scene.left_lane), (2, scene.right_lane)):
        if lane == "occupied" and scene.side != f"beside_{'left' if side < 0 else 'right'}":    # seen from the side
            draw_car(brush, near_u + side * lane_half(88), 90, 50, colours[2 if side < 0 else 3])
    if scene.lead == "near" and scene.event != "cone_truck":
        DRAW_LEAD[scene.lead_kind](brush, near_u, 95, 56, colours[0], scene.braking)
    draw_blockage(brush, scene, colours[1])
    if scene.pedestrian == "crossing":
        coat = DARK_COAT if scene.event == "dark_pedestrian" else paint.MAGENTA
        draw_pedestrian(brush, near_u + rng.randint(-6, 6), 98, walking=True, coat=coat)
    if scene.event in DRAW_EVENT:
        DRAW_EVENT[scene.event](brush, scene, near_u, colours[1])


def kerb_place(scene: Scene) -> float:
    """u of a waiting pedestrian: the right pavement, or in a bend the far outside, clear of the arrow boards."""
    if scene.road in BEND:
        return CENTRE - BEND[scene.road] * 99
    return min(CENTRE + (outer_borders(scene)[1] + .32) * lane_half(92), CENTRE + 99)


def draw_blockage(brush: Brush, scene: Scene, colour: Colour) -> None:
    if scene.blockage == "parked":
        draw_parked_car(brush, lane_centre(scene, 80), colour)
    if scene.blockage == "cones":
        for lanes in (-.72, 0, .72):
            draw_cone(brush, lane_centre(scene, 88) + lanes * lane_half(88), 92)


def draw_car(brush: Brush, u: float, bottom: float, width: float, colour: Colour, braking: bool = False) -> None:
    """A car from behind. When it brakes, three large bright lamps are lit."""
    unit, half = width / 20, width / 2
    brush.shadow(u, bottom - .6 * unit, half * 1.08)
    top, waist = bottom - 15 * unit, bottom - 9.5 * unit
    for side in (-1, 1):
        wheel = u + side * (half - 2 * unit)
        brush.box(wheel - 2 * unit, bottom - 3 * unit, wheel + 2 * unit, bottom, paint.BLACK)
    brush.polygon(trapezium(u, top, half - 3.4 * unit, waist, half - .6 * unit), colour)
    brush.polygon(trapezium(u, top + unit, half - 4.6 * unit, waist, half - 2.6 * unit), paint.WINDOW)
    brush.box(u - half, waist, u + half, bottom - 1.6 * unit, colour)
    brush.box(u - half, bottom - 3.6 * unit, u + half, bottom - 1.6 * unit, paint.shaded(colour))
    brush.box(u - 3 * unit, bottom - 4.6 * unit, u + 3 * unit, bottom - 2.8 * unit, paint.WHITE)
    for side in (-1, 1):
        draw_tail_lamp(brush, u + side * (half - 2.4 * unit), waist + 2.4 * unit, unit, braking)
    if braking:
        brush.shining().box(u - 4 * unit, top - .4 * unit, u + 4 * unit, top + 1.6 * unit, paint.RED)


def draw_chassis(brush: Brush, u: float, bottom: float, width: float, braking: bool) -> None:
    """The lower end of a truck: twin wheels, the tail beam with its plate, lamps as large as a car's."""
    unit, half = width / 20, width / 2
    brush.shadow(u, bottom - .6 * unit, half * 1.06)
    for side in (-1, 1):
        wheel = u + side * (half - 3.2 * unit)
        brush.box(wheel - 2.2 * unit, bottom - 3.6 * unit, wheel + 2.2 * unit, bottom, paint.BLACK)
    brush.box(u - half, bottom - 6.8 * unit, u + half, bottom - 2.3 * unit, STEEL)
    brush.box(u - 2.6 * unit, bottom - 4.5 * unit, u + 2.6 * unit, bottom - 2.9 * unit, paint.WHITE)
    for side in (-1, 1):
        draw_tail_lamp(brush, u + side * (half - 1.7 * unit), bottom - 4.5 * unit, unit, braking)


def draw_truck(brush: Brush, u: float, bottom: float, width: float, colour: Colour, braking: bool = False) -> None:
    """A box lorry from behind, a little wider than a car at this distance and twice as high. Brake lamps as a car's."""
    unit, half = width * 1.12 / 20, width * 1.12 / 2
    top, sill = bottom - 24 * unit, bottom - 6.4 * unit
    draw_chassis(brush, u, bottom + unit, width * 1.12, braking)
    brush.box(u - half, top, u + half, sill, colour)
    brush.box(u - half + 1.2 * unit, top + 2.4 * unit, u + half - 1.2 * unit, sill - unit, CARGO_BOX)
    for place in (-5, 0, 5):                                        # hinge rods and the gap between the doors
        brush.box(u + (place - .35) * unit, top + 2.4 * unit, u + (place + .35) * unit, sill - unit, SEAM)
    if braking:
        brush.shining().box(u - 4.5 * unit, top - .6 * unit, u + 4.5 * unit, top + 1.7 * unit, paint.RED)


def draw_cyclist(brush: Brush, u: float, bottom: float, width: float, colour: Colour, braking: bool = False) -> None:
    """A cyclist from behind: lime jacket, white helmet. When braking, a raised arm with an orange glove."""
    unit = max(width / 20, 1.7)                                    # far ones are too large, to be visible
    hip, neck = bottom - 9.4 * unit, bottom - 16 * unit
    brush.shadow(u, bottom - .4 * unit, 4 * unit)
    brush.line([(u, bottom), (u, bottom - 7.4 * unit)], paint.BLACK, 1.7 * unit)
    for side, pedal in ((-1, 2.6), (1, 4.6)):
        brush.line([(u + side * 1.5 * unit, hip), (u + side * 2.5 * unit, hip + 3 * unit),
                    (u + side * 1.7 * unit, bottom - pedal * unit)], (36, 38, 52), 1.5 * unit)
    brush.line([(u - 5.4 * unit, hip - .6 * unit), (u + 5.4 * unit, hip - .6 * unit)], paint.BLACK, .9 * unit)
    brush.line([(u + 2.4 * unit, neck + unit), (u + 5 * unit, hip - unit)], paint.LIME, 1.4 * unit)
    if braking:
        brush.line([(u - 2.4 * unit, neck + unit), (u - 7 * unit, neck + .4 * unit), (u - 7 * unit, neck - 3 * unit)],
                   paint.LIME, 1.7 * unit)
        brush.disc(u - 7 * unit, neck - 4.6 * unit, max(2.3 * unit, 4.0), paint.ORANGE)
    else:
        brush.line([(u - 2.4 * unit, neck + unit), (u - 5 * unit, hip - unit)], paint.LIME, 1.4 * unit)
    brush.polygon(trapezium(u, neck, 2.9 * unit, hip + .8 * unit, 2.3 * unit), paint.LIME)
    brush.disc(u, neck - 1.6 * unit, 1.9 * unit, paint.SKIN)
    brush.box(u - 2.2 * unit, neck - 4 * unit, u + 2.2 * unit, neck - 1.7 * unit, paint.WHITE)


DRAW_LEAD = {"car": draw_car, "truck": draw_truck, "cyclist": draw_cyclist}


def draw_tail_lamp(brush: Brush, u: float, v: float, unit: float, braking: bool) -> None:
    if not braking:
        brush.disc(u, v, 1.5 * unit, paint.DARK_RED)
        return
    radius = max(2.6 * unit, 3.6)
    brush.shining().disc(u, v, radius * 1.25, paint.pale(paint.RED))
    brush.shining().disc(u, v, radius, paint.RED)


def draw_parked_car(brush: Brush, u: float, colour: Colour) -> None:
    """A car parked in the lane, with amber hazard lamps and a warning triangle behind it."""
    draw_car(brush, u, 88, 46, colour)
    for side in (-1, 1):
        brush.shining().disc(u + side * 18, 72, 5, paint.YELLOW)
    brush.shining().polygon([(u, 79), (u - 13, 101), (u + 13, 101)], paint.RED)
    brush.shining().polygon([(u, 86), (u - 7, 98), (u + 7, 98)], paint.WHITE)


def draw_cone(brush: Brush, u: float, bottom: float) -> None:
    brush.shadow(u, bottom - 1, 11)
    brush.box(u - 9, bottom - 3, u + 9, bottom, paint.ORANGE)
    brush.polygon([(u - 7, bottom - 3), (u - 1.5, bottom - 25), (u + 1.5, bottom - 25), (u + 7, bottom - 3)],
                  paint.ORANGE)
    brush.polygon([(u - 5, bottom - 9), (u - 3.4, bottom - 15), (u + 3.4, bottom - 15), (u + 5, bottom - 9)],
                  paint.WHITE)


def draw_pedestrian(brush: Brush, u: float, bottom: float, walking: bool, coat: Colour | None = None,
                    height: float = 50) -> None:
    """Waiting: a wide cyan coat, legs together. Walking: a magenta coat, arms and legs apart."""
    coat, chest = coat or (paint.MAGENTA if walking else paint.CYAN), 5 if walking else 8
    hip, neck, spread = bottom - height * .45, bottom - height * .8, 8 if walking else 3
    brush.shadow(u, bottom, spread + 5)
    for side in (-1, 1):
        brush.line([(u + side, hip), (u + side * spread, bottom)], (36, 38, 52), 4)
        brush.line([(u, neck + 3), (u + side * (spread + 3), hip - 1)], coat, 3.4)
    brush.polygon(trapezium(u, neck, chest, hip + 2, chest + 1), coat)
    brush.disc(u, neck - height * .115, height * .115, HAIR)
    brush.disc(u, neck - height * .09, height * .1, paint.SKIN)


# ---------------------------------------------------------------- rare events; u is the middle of the near lane

def draw_cone_truck(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A flatbed truck that carries cones."""
    draw_chassis(brush, u, 97, 62, braking=False)
    brush.box(u - 22, 44, u + 22, 72, colour)
    brush.box(u - 18, 48, u + 18, 62, paint.WINDOW)
    for offset in (-18, 0, 18):
        draw_cone(brush, u + offset, 79)
    brush.box(u - 31, 75, u + 31, 80, STEEL)                        # the bed's tailgate, in front of the cones


def draw_ball(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A red and white ball in the lane, and a child running after it."""
    draw_pedestrian(brush, u - 44, 94, walking=True, coat=paint.YELLOW, height=36)
    brush.shadow(u - 8, 101, 9)
    brush.disc(u - 8, 94, 8, paint.RED)
    brush.polygon([(u - 16, 93), (u, 91), (u, 96), (u - 16, 98)], paint.WHITE)


def draw_ambulance(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """An ambulance from the side, crossing the junction with its blue lamps on."""
    brush.shadow(u, 88, 42)
    for wheel in (-24, 22):
        brush.disc(u + wheel, 84, 6, paint.BLACK)
    brush.polygon([(u - 40, 82), (u - 40, 48), (u + 22, 48), (u + 24, 58), (u + 38, 66), (u + 38, 82)], paint.WHITE)
    brush.polygon([(u + 20, 52), (u + 23, 59), (u + 33, 65), (u + 20, 65)], paint.WINDOW)
    brush.box(u - 40, 68, u + 38, 74, paint.RED)
    brush.box(u - 20, 52, u - 15, 66, paint.RED)
    brush.box(u - 25, 56.5, u - 10, 61.5, paint.RED)
    for lamp in (-30, 12):
        brush.shining().disc(u + lamp, 45, 6.5, paint.pale(BLUE))
        brush.shining().disc(u + lamp, 45, 5, BLUE)


def draw_animal(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A deer standing across the lane."""
    brush.shadow(u, 98, 24)
    for leg in (-15, -9, 9, 15):
        brush.line([(u + leg, 78), (u + leg, 98)], BROWN, 3)
    brush.polygon([(u - 19, 66), (u + 18, 66), (u + 20, 82), (u - 18, 82)], BROWN)
    brush.line([(u + 16, 70), (u + 26, 52)], BROWN, 7)
    brush.polygon([(u + 21, 48), (u + 30, 48), (u + 39, 56), (u + 24, 57)], BROWN)
    for side in (-1, 1):
        brush.line([(u + 25, 48), (u + 25 + side * 6, 36)], (214, 190, 150), 2)
        brush.line([(u + 25 + side * 4, 41), (u + 25 + side * 9, 39)], (214, 190, 150), 2)
    brush.box(u - 21, 65, u - 17, 71, paint.WHITE)


def draw_wrong_way(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A car from the front with bright head lamps."""
    draw_car(brush, u, 95, 56, colour)
    brush.box(u - 16, 80, u + 16, 90, paint.BLACK)
    for side in (-1, 1):
        brush.shining().disc(u + side * 21, 77, 10, (255, 250, 190))
        brush.shining().disc(u + side * 21, 77, 7, (255, 255, 250))


def draw_officer(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """An officer beside the lane: yellow vest, white cap, a green baton in the outstretched arm."""
    spot = u - 46
    draw_pedestrian(brush, spot, 96, walking=False, coat=paint.YELLOW)
    brush.line([(spot + 4, 60), (spot + 20, 52)], paint.YELLOW, 5)
    brush.shining().line([(spot + 20, 52), (spot + 34, 45)], paint.GREEN, 5)
    brush.box(spot - 7, 43, spot + 7, 48, paint.WHITE)


def draw_closed_turn(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A striped barrier and cones across the crossing road, on the side of the route's turn."""
    side = -1 if scene.turn_100 == "left" else 1
    middle = CENTRE + side * 74
    for number in range(6):
        left = middle - 30 + number * 10
        brush.box(left, 54, left + 10, 63, paint.RED if number % 2 == 0 else paint.WHITE)
    for offset in (-22, 0, 22):
        draw_cone(brush, middle + offset, 76)


def draw_cut_in(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A car half in our lane and half in the left one, with its right indicator on."""
    spot = u - .8 * lane_half(88)
    draw_car(brush, spot, 94, 54, colour)
    brush.shining().disc(spot + 22, 76, 7, (255, 150, 0))


def draw_open_door(brush: Brush, scene: Scene, u: float, colour: Colour) -> None:
    """A car parked beside the lane with a door open into it."""
    spot = u + 1.55 * lane_half(88)
    draw_car(brush, spot, 93, 50, colour)
    brush.polygon([(spot - 24, 70), (spot - 46, 66), (spot - 46, 94), (spot - 24, 90)], colour)
    brush.polygon([(spot - 27, 71), (spot - 43, 68.5), (spot - 43, 79), (spot - 27, 79)], paint.WINDOW)
    brush.box(spot - 46, 86, spot - 42, 91, paint.ORANGE)


DRAW_EVENT = {"cone_truck": draw_cone_truck, "ball": draw_ball, "ambulance": draw_ambulance, "animal": draw_animal,
              "wrong_way": draw_wrong_way, "waved_through": draw_officer, "blocked_turn": draw_closed_turn,
              "cut_in": draw_cut_in, "door": draw_open_door}
