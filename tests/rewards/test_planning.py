"""The planning rewards: every mode by hand, and the released functions against what they return when executed."""

import itertools

import pytest

from rewards import Decision, planning_rewards
from rewards.planning import _official_f1, diversity_factors, f1_score

KEEP = Decision("KEEP", "STRAIGHT")
SLOW = Decision("DECELERATE", "STRAIGHT")


def answer(plan):
    return f"<think>why</think><answer>{plan}</answer>"


def near(rows):
    return [pytest.approx(row, abs=1e-9) for row in rows]


# ---------------------------------------------------------------- repaired, paper, set

def test_repaired_weights_and_format_by_hand():
    # four different answers: diversity 1.  KEEP right: 1 * .8; STRAIGHT right: 1 * .8; a wrong part earns 0
    group = [answer("KEEP, STRAIGHT"), answer("STOP, STRAIGHT"), answer("KEEP, LEFT_TURN"), answer("STOP, LEFT_TURN")]
    assert planning_rewards(group, KEEP) == near([(0.8, 0.8, 1), (0, 0.8, 1), (0.8, 0, 1), (0, 0, 1)])
    assert planning_rewards(group, Decision("STOP", "LEFT_TURN"))[3] == pytest.approx((1.0, 1.0, 1.0))
    assert planning_rewards([answer("ACCELERATE, RIGHT_CHANGE")], Decision("ACCELERATE", "RIGHT_CHANGE")) == near(
        [(0.9, 1.0, 1.0)])


@pytest.mark.parametrize(("plans", "repaired", "paper"), [
    ("AA", [0.8, 0.8], [0.8, 0.8]),                      # (2 - 1) / 2 = .5 and 2 / 2 = 1, both capped at .2
    ("AB", [1.0, 1.0], [0.8, 0.8]),                      # 0 and 1 / 2
    ("ABCDEFGH", [1.0] * 8, [0.875] * 8),                # 1 - 1 / 8
    ("AAAAAAAB", [0.8] * 7 + [1.0], [0.8] * 7 + [0.875]),
    ("AABCDEFG", [0.875] * 2 + [1.0] * 6, [0.8] * 2 + [0.875] * 6),  # (2 - 1) / 8 = .125; 2 / 8 = .25 capped
])
def test_diversity_by_hand(plans, repaired, paper):
    actions = dict(zip("ABCDEFGH", itertools.product(("KEEP", "STOP"), ("STRAIGHT", "LEFT_TURN", "LEFT_CHANGE",
                                                                        "RIGHT_TURN")), strict=True))
    answers = [((actions[p][0],), (actions[p][1],)) for p in plans]
    assert diversity_factors(answers) == pytest.approx(repaired)
    assert diversity_factors(answers, "paper") == pytest.approx(paper)


def test_diversity_multiplies_speed_and_path_and_can_be_left_out():
    # two equal right answers: .8 * .8 = .64 in both modes; two different ones: repaired .8 and .8, paper .64 and .64
    same, mixed = [answer("KEEP, STRAIGHT")] * 2, [answer("KEEP, STRAIGHT"), answer("KEEP, LEFT_TURN")]
    assert planning_rewards(same, KEEP) == planning_rewards(same, KEEP, mode="paper") == near([(0.64, 0.64, 1)] * 2)
    assert planning_rewards(mixed, KEEP) == near([(0.8, 0.8, 1), (0.8, 0, 1)])
    assert planning_rewards(mixed, KEEP, mode="paper") == near([(0.64, 0.64, 1), (0.64, 0, 1)])
    assert planning_rewards(same, KEEP, diversity=False) == near([(0.8, 0.8, 1)] * 2)


def test_f1_of_a_hedge_by_hand():
    # 1 right of 2 named: P = .5, R = 1, F1 = 2 * .5 / 1.5 = .6667.  Of 4: P = .25, F1 = .5 / 1.25 = .4
    assert f1_score(["KEEP", "STOP"], "KEEP") == pytest.approx(0.666667, abs=1e-6)
    assert f1_score(["KEEP", "ACCELERATE", "DECELERATE", "STOP"], "KEEP") == pytest.approx(0.4)
    assert f1_score(["STOP"], "KEEP") == 0 and f1_score([], "KEEP") == 0
    # weight of KEEP and STOP named: (.8 + 1) / 2 = .9, so .6667 * .9 = .6 < .8 of the plain answer; format is lost
    hedge = answer("KEEP, STOP, STRAIGHT")
    assert planning_rewards([hedge], KEEP) == near([(0.6, 0.8, 0)])
    assert planning_rewards([hedge], KEEP, accuracy="exact") == near([(0, 0.8, 0)])
    assert planning_rewards([answer("KEEP, STRAIGHT")], KEEP, accuracy="exact") == near([(0.8, 0.8, 1)])


def test_no_hedge_beats_the_plain_right_answer():
    speeds, paths = ("KEEP", "ACCELERATE", "DECELERATE", "STOP"), ("STRAIGHT", "LEFT_TURN", "RIGHT_CHANGE")
    hedges = [(*s, *p) for n in (0, 1, 2, 3, 4) for s in itertools.combinations(speeds, n)
              for m in (0, 1, 2, 3) for p in itertools.combinations(paths, m) if (n, m) != (1, 1)]
    for truth in itertools.product(speeds, paths):
        right = sum(planning_rewards([answer(", ".join(truth))], Decision(*truth))[0])
        assert all(sum(planning_rewards([answer(", ".join(h))], Decision(*truth))[0]) < right for h in hedges)


@pytest.mark.parametrize("mode", ["repaired", "paper", "set"])
@pytest.mark.parametrize("text", ["", "banana", "<answer> </answer>", "KEEP, STRAIGHT", "<think>KEEP, STRAIGHT</think>",
                                  "<think></think><answer></answer>", answer("no idea")])
def test_unreadable_answers_earn_nothing(mode, text):
    good = answer("STOP, LEFT_TURN")
    assert planning_rewards([good, text], KEEP, [KEEP], mode=mode)[1] == (0, 0, 0)
    assert planning_rewards([text] * 3, KEEP, [KEEP], mode=mode) == [(0, 0, 0)] * 3


@pytest.mark.parametrize("content", ["keep, straight", "KEEP,STRAIGHT", "KEEP and STRAIGHT", "\nKEEP,\nSTRAIGHT\n",
                                     "KEEP, STRAIGHT.", "STRAIGHT, KEEP"])
def test_wording_does_not_touch_accuracy(content):
    assert planning_rewards([answer(content)], KEEP)[0][:2] == pytest.approx((0.8, 0.8))


def test_format_reward_follows_the_reasoning_switch():
    bare = "<answer>KEEP, STRAIGHT</answer>"
    assert planning_rewards([bare], KEEP) == near([(0.8, 0.8, 0)])
    assert planning_rewards([bare], KEEP, reasoning=False) == near([(0.8, 0.8, 1)])
    assert planning_rewards([answer("KEEP, STRAIGHT") + "\n"], KEEP)[0][2] == 1


def test_set_mode_judges_both_parts_against_one_plan():
    acceptable = (Decision("STOP", "STRAIGHT"), Decision("ACCELERATE", "LEFT_TURN"))
    group = [answer("STOP, STRAIGHT"), answer("ACCELERATE, LEFT_TURN"), answer("STOP, LEFT_TURN"),
             answer("ACCELERATE, STRAIGHT"), answer("KEEP, RIGHT_TURN")]
    # the mixtures are right in one part only. STOP, LEFT_TURN: 1 for either part, the label (STOP, STRAIGHT) decides;
    # ACCELERATE, STRAIGHT: .9 of the one plan against .8 of the other
    want = [(1, 0.8, 1), (0.9, 1, 1), (1, 0, 1), (0.9, 0, 1), (0, 0, 1)]
    assert planning_rewards(group, acceptable[0], acceptable, mode="set") == near(want)
    assert planning_rewards(group, acceptable[0], acceptable[::-1], mode="set") == near(want)
    assert planning_rewards(group, acceptable[1], acceptable, mode="set")[2] == (0, 1, 1)
    # with a single acceptable plan the mode is `repaired`
    assert planning_rewards(group, acceptable[0], acceptable[:1], mode="set") == planning_rewards(group, acceptable[0])


def test_set_mode_shares_the_diversity_factor():
    group = [answer("KEEP, STRAIGHT")] * 2 + [answer("STOP, STRAIGHT")] * 6     # (2 - 1) / 8 = .125, (6 - 1) / 8 -> .2
    rewards = planning_rewards(group, KEEP, [KEEP, Decision("STOP", "STRAIGHT")], mode="set")
    assert rewards == near([(0.7, 0.7, 1)] * 2 + [(0.8, 0.64, 1)] * 6)


@pytest.mark.parametrize("mode", ["repaired", "paper", "set"])
@pytest.mark.parametrize("accuracy", ["f1", "exact"])
def test_permuting_the_group_permutes_the_rewards(mode, accuracy):
    group = [answer("KEEP, STRAIGHT"), answer("KEEP, STRAIGHT"), answer("STOP, STRAIGHT"), "banana",
             answer("KEEP, STOP, STRAIGHT")]
    acceptable = [KEEP, Decision("STOP", "LEFT_TURN")]
    rewards = planning_rewards(group, KEEP, acceptable, mode=mode, accuracy=accuracy)
    assert len(set(rewards)) >= 3
    for order in itertools.permutations(range(5)):
        shuffled = planning_rewards([group[i] for i in order], KEEP, acceptable, mode=mode, accuracy=accuracy)
        assert shuffled == [rewards[i] for i in order]


def test_weights_replace_the_defaults():
    rewards = planning_rewards([answer("KEEP, STRAIGHT")], KEEP, weights={"KEEP": 0.5})
    assert rewards == near([(0.5, 0.8, 1)])


@pytest.mark.parametrize(("settings", "message"), [
    ({"mode": "fixed"}, "'fixed'"), ({"accuracy": "f2"}, "'f2'"), ({"weights": {"SLOW": 1.0}}, "SLOW"),
    ({"mode": "set"}, "acceptable"), ({"mode": "set", "acceptable": ()}, "acceptable"),
])
def test_options_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        planning_rewards([answer("KEEP, STRAIGHT")], KEEP, **settings)


@pytest.mark.parametrize("mode", ["repaired", "paper", "official", "set"])
def test_empty_group(mode):
    assert planning_rewards([], KEEP, [KEEP], mode=mode) == []


# ---------------------------------------------------------------- official: the executed table
# A right answer named once earns F1 * weight + .4. F1: P = R = 1 / 1.000001 = .999999, 2 P R / (P + R + 1e-6)
# = 1.999996 / 1.999999 = .9999985; weight .8 / 1.000001. The table's values are rounded, hence the tolerance.

RIGHT, STOPS, SLOWS = answer("KEEP, STRAIGHT"), answer("STOP, STRAIGHT"), answer("DECELERATE, STRAIGHT")
EMPTY = [(0.4, 0.4, 1)]
ALL_ACTIONS = answer("KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN")


@pytest.mark.parametrize(("completions", "decision", "rewards"), [
    ([answer(" KEEP, STRAIGHT "), RIGHT], KEEP, [(1.2, 1.2, 1), (0.4, 0.4, 1)]),
    ([RIGHT, RIGHT, answer(" ")], KEEP, [(1.2, 1.2, 1), (0.4, 0.4, 1), *EMPTY]),
    ([RIGHT, RIGHT, answer("banana")], KEEP, [(1.2, 1.2, 1), (0.4, 0.4, 1), *EMPTY]),
    ([SLOWS] * 3 + [STOPS], SLOW, [(1.4, 1.2, 1), (0.6, 0.4, 1), (0.6, 0.4, 1), (0.4, 0.4, 1)]),
    ([STOPS] + [SLOWS] * 3, SLOW, [(0.4, 1.2, 1), (1.4, 0.4, 1), (0.6, 0.4, 1), (0.6, 0.4, 1)]),
    ([answer("KEEP,STRAIGHT")], KEEP, EMPTY), ([answer("keep, straight")], KEEP, EMPTY),
    ([answer("KEEP and STRAIGHT")], KEEP, EMPTY), ([answer("\nKEEP, STRAIGHT\n")], KEEP, EMPTY),
    ([answer("KEEP, STRAIGHT.")], KEEP, [(1.2, 0.4, 1)]),
    ([ALL_ACTIONS], KEEP, [(0.77, 0.72, 1)]),            # .4 * 3.7 / 4 + .4 and 1/3 * 4.8 / 5 + .4
    ([answer("STOP, DECELERATE")], SLOW, [(1.067, 0.4, 1)]),  # 2/3 + .4
    (["KEEP, STRAIGHT"], KEEP, [(1.2, 1.2, 0)]),
    (["<think></think><answer></answer>"], KEEP, EMPTY),
    (["<think>x</think><answer>x</answer> junk <answer>KEEP, STRAIGHT</answer>"], KEEP, EMPTY),
    ([RIGHT + "\n"], KEEP, [(1.2, 1.2, 0)]),
])
def test_official_mode_equals_the_executed_functions(completions, decision, rewards):
    got = planning_rewards(completions, decision, mode="official")
    for row, want in zip(got, rewards, strict=True):
        assert row == pytest.approx(want, abs=4e-4)


def test_official_epsilons_to_the_last_digit():
    # F1 .9999985 (above) times the weight 1 / 1.000001 = .999999 is .9999975; wrong answers keep +.4 exactly
    slow, = planning_rewards([SLOWS], Decision("DECELERATE", "LEFT_TURN"), mode="official", diversity=False)
    assert slow[0] == pytest.approx(0.9999975, abs=1e-10) and slow[1] == 0
    assert _official_f1(["KEEP"], "KEEP") == pytest.approx(0.9999985, abs=1e-10)


def test_official_advantage_of_two_equal_answers():
    # The table: sums 3.4 and 1.8. Two prompts in one call of the released code scored so too; here a call is one scene.
    first, second = (sum(row) for row in planning_rewards([RIGHT, RIGHT], KEEP, mode="official"))
    assert first == pytest.approx(3.4, abs=1e-5) and second == pytest.approx(1.8, abs=1e-5)
    for _ in range(2):
        assert planning_rewards([RIGHT], KEEP, mode="official")[0][0] == pytest.approx(1.2, abs=1e-5)


@pytest.mark.parametrize(("text", "score"), [
    (RIGHT, 1), ("<think>x</think> \n <answer>y</answer>", 1), ("<think>\n</think><answer>\n</answer>", 1),
    ("<think>x</think><answer>a</answer></think><answer>b</answer>", 1), (" " + RIGHT, 0), (RIGHT + " ", 0),
    ("<think>x</think>y<answer>z</answer>", 0), ("<answer>z</answer>", 0), ("<think>x</think><answer>", 0),
    ("<think></answer>", 0), ("<think>x<answer>z</answer></think>", 0),
    ("<think></think><answer></answer>", 1), ("", 0),
])
def test_official_format(text, score):
    assert planning_rewards([text], KEEP, mode="official")[0][2] == score


def test_official_answer_reader():
    def speed(text):
        return round(planning_rewards([text], KEEP, mode="official")[0][0], 3)
    assert speed("<answer>KEEP, STOP") == 1.0                                   # unclosed: tags dropped, 2/3 * .9 + .4
    assert speed("<answer>\nKEEP</answer> <answer>STOP</answer>") == 0.4        # first block on one line is STOP
    assert speed("<answer>x</answer> KEEP, KEEP") == 0.4
    assert speed(answer("KEEP, KEEP")) == 1.2                                   # a word counts once per answer


def test_rows_of_the_same_table_in_repaired_mode():
    for completions, decision in (([SLOWS] * 3 + [STOPS], SLOW), ([STOPS] + [SLOWS] * 3, SLOW)):
        for completion, row in zip(completions, planning_rewards(completions, decision), strict=True):
            # three of four equal: penalty min(.2, 2 / 4) = .2: DECELERATE 1 * .8, STRAIGHT .8 * .8; STOP alone: 0, .8
            assert row == pytest.approx((0.8, 0.64, 1) if completion == SLOWS else (0, 0.8, 1))
    assert planning_rewards([ALL_ACTIONS], KEEP) == near([(0.37, 0.32, 0)])     # .4 * .925, 1/3 * .96
