"""The expert's odds of style and noise, by hand."""

import pytest

from data.scenes import label_distribution
from data.scenes.expert import STYLES, neighbours, plan_odds
from rewards import Decision
from tests.data.scenes.test_rollout import OPEN_ROAD


def test_odds_of_two_plans():
    # ACCELERATE 1 and KEEP .94752, apart by .05248; ACCELERATE gains -.08, 0 and .08 with the style; over T = .05:
    #   cautious -.5504 -> .3658    normal 1.0496 -> .7407    assertive 2.6496 -> .9340     (1 / (1 + exp(-d)))
    # .3 * .3658 + .5 * .7407 + .2 * .9340 = .6669
    odds = plan_odds(OPEN_ROAD)
    fast, same = Decision("ACCELERATE", "STRAIGHT"), Decision("KEEP", "STRAIGHT")
    assert odds == pytest.approx({fast: .6669, same: .3331}, abs=1e-4) and list(odds) == [fast, same]
    # each is the other's neighbour in speed: ACCELERATE .95 * .6669 + .04 * .5 * .3331 + .0005 = .6407, KEEP .3303;
    # changes: .04 * .5 * .5 * .6669 + .0005 = .00717 beside ACCELERATE, .00383 beside KEEP; all else .01 / 20
    q = label_distribution(OPEN_ROAD)
    assert (q[fast], q[same]) == (pytest.approx(.6407, abs=1e-4), pytest.approx(.3303, abs=1e-4))
    assert q[Decision("ACCELERATE", "LEFT_CHANGE")] == pytest.approx(.00717, abs=1e-5)
    assert q[Decision("KEEP", "RIGHT_CHANGE")] == pytest.approx(.00383, abs=1e-5)
    assert q[Decision("STOP", "STRAIGHT")] == q[Decision("KEEP", "LEFT_TURN")] == pytest.approx(.0005)
    assert sum(share for share, _ in STYLES.values()) == pytest.approx(1.0)


def test_neighbours():
    assert neighbours(Decision("STOP", "LEFT_CHANGE")) == {Decision("DECELERATE", "LEFT_CHANGE"): .5,
                                                           Decision("STOP", "STRAIGHT"): .5}
    assert neighbours(Decision("KEEP", "LEFT_TURN")) == {Decision("ACCELERATE", "LEFT_TURN"): 1.0}
