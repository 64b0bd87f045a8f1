"""The pictures: deterministic, every signal visible, nothing of the text in them."""
from dataclasses import replace

import numpy as np
import pytest

from data.scenes import draw, sample_scene
from tests.data.scenes.test_scenes import FREE_ROAD

# ---------------------------------------------------------------- pictures

def test_same_scene_same_bytes():
    assert draw(sample_scene(5)).tobytes() == draw(sample_scene(5)).tobytes()
    assert draw(sample_scene(5)).tobytes() != draw(sample_scene(6)).tobytes()
    assert draw(sample_scene(5), (448, 224)).size == (448, 224)


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("base, changes, least", [
    ({}, {"road": "curve_left"}, 2000), ({"road": "curve_left"}, {"road": "curve_right"}, 2000),
    ({}, {"road": "junction_near"}, 2000), ({}, {"road": "junction_far"}, 900),
    ({"road": "junction_near"}, {"light": "red"}, 700),
    ({"road": "junction_near", "light": "red"}, {"light": "yellow"}, 200),
    ({"road": "junction_near", "light": "yellow"}, {"light": "green"}, 200),
    ({"road": "junction_far", "light": "red"}, {"light": "green"}, 120),
    ({}, {"lead": "far"}, 250), ({}, {"lead": "near"}, 1500), ({"lead": "near"}, {"braking": True}, 300),
    ({"lead": "far"}, {"braking": True}, 80), ({}, {"blockage": "cones"}, 500), ({}, {"blockage": "parked"}, 1000),
    ({}, {"pedestrian": "crossing"}, 350), ({}, {"pedestrian": "kerb"}, 400),
    ({}, {"left_lane": "free"}, 2000), ({"left_lane": "free"}, {"left_lane": "occupied"}, 1000),
    ({}, {"right_lane": "free"}, 2000), ({"right_lane": "free"}, {"right_lane": "occupied"}, 1000)])
def test_every_signal_changes_many_pixels(base, changes, least, night):
    """A fact of the scene must be visible: at least `least` of 25,088 pixels change by more than 20 of 255."""
    without = replace(FREE_ROAD, night=night, **base)
    before, after = (np.asarray(draw(scene), dtype=int) for scene in (without, replace(without, **changes)))
    assert before.shape == (112, 224, 3)
    assert (abs(before - after).max(axis=2) > 20).sum() >= least


def test_what_the_text_says_is_not_in_the_picture():
    shown = draw(FREE_ROAD).tobytes()
    assert draw(replace(FREE_ROAD, speed=0.0, turn_100="left", turn_200="right")).tobytes() == shown


# ---------------------------------------------------------------- kinds of leaders

LEADER_COLOURS = {"truck": ((222, 206, 160), (120, 104, 76)),           # the box and the seams of its doors
                  "cyclist": ((178, 246, 26), (245, 245, 240))}         # jacket and helmet


def count_near(picture, colours, window, light=1.0):
    """Pixels of a window (left, top, right, bottom) that are within 24 of one of these colours."""
    pixels = np.asarray(picture.crop(window), dtype=float)[:, :, None]
    wanted = np.array(colours) * light
    return int((abs(pixels - wanted).max(axis=3) <= 24).any(axis=2).sum())


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("lead, window, least", [("near", (78, 20, 146, 99), {"truck": 1600, "cyclist": 300}),
                                                 ("far", (96, 28, 128, 65), {"truck": 250, "cyclist": 80})])
def test_each_kind_of_leader_shows_its_own_colours(lead, window, least, night):
    # windows: 34 and 16 pixels beside the lane's middle, u = 112, from above a truck's roof to below its wheels
    pictures = {kind: draw(replace(FREE_ROAD, lead=lead, lead_kind=kind, night=night))
                for kind in ("car", "truck", "cyclist")}
    for kind, colours in LEADER_COLOURS.items():
        light = .85 if night else 1.0
        counts = {shown: count_near(picture, colours, window, light) for shown, picture in pictures.items()}
        own = counts.pop(kind)
        assert own >= least[kind] and own > 2.5 * max(counts.values()), (kind, own, counts)
    without = np.asarray(draw(replace(FREE_ROAD, night=night)), dtype=int)
    for kind, picture in pictures.items():
        changed = abs(np.asarray(picture, dtype=int) - without).max(axis=2) > 20
        assert changed.sum() >= {"near": 600, "far": 180}[lead], kind
    for one, other in (("car", "truck"), ("car", "cyclist"), ("truck", "cyclist")):
        differ = abs(np.asarray(pictures[one], dtype=int) - np.asarray(pictures[other])).max(axis=2) > 20
        assert differ.sum() >= {"near": 1500, "far": 250}[lead], (one, other)


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("lead, window, lamps, glove", [("near", (72, 10, 152, 99), 350, 70),
                                                        ("far", (86, 22, 138, 65), 60, 25)])
def test_a_leader_that_slows_down_shows_it(lead, window, lamps, glove, night):
    def coloured(kind, braking, colour, light):
        scene = replace(FREE_ROAD, lead=lead, lead_kind=kind, braking=braking, night=night)
        return count_near(draw(scene), [colour], window, light)
    for kind in ("car", "truck"):                                       # lamps shine by night as by day
        assert coloured(kind, True, (255, 40, 30), 1.0) >= lamps > 10 > coloured(kind, False, (255, 40, 30), 1.0)
    light = .85 if night else 1.0
    assert coloured("cyclist", True, (255, 112, 10), light) >= glove > 5 > coloured("cyclist", False, (255, 112, 10),
                                                                                    light)
    assert coloured("cyclist", True, (255, 40, 30), 1.0) < 5            # a bicycle has no brake lamps


def test_a_cyclist_is_not_a_pedestrian():
    # a crossing pedestrian wears magenta, a waiting one cyan; a cyclist neither, and lime is nobody else's
    cyclist = draw(replace(FREE_ROAD, lead="near", lead_kind="cyclist"))
    crossing = draw(replace(FREE_ROAD, pedestrian="crossing"))
    whole = (0, 0, 224, 112)
    assert count_near(cyclist, [(226, 36, 150), (0, 214, 236)], whole) == 0
    assert count_near(crossing, [(226, 36, 150)], whole) > 150 and count_near(crossing, [(178, 246, 26)], whole) == 0
