"""AlphaDrive's claims as differences between two arms, with our expectation of each.

Written before the arms were scored on test; what had been seen on val is said in docs/results-full.md.

A claim names the arms, the score, and the sign that the paper says or implies. A family of claims is one table of
docs/results.md; its p-values are corrected together (Holm). The verdict follows from the numbers by one rule:

    reproduces           corrected p < 0.05, all seeds have the sign of the claim, at least three seeds
    does not reproduce   the 95 % interval excludes an effect of MATTERS on the claim's side, at least three seeds
    inconclusive         everything else
"""

from dataclasses import dataclass

MATTERS = {"cost": 0.0025}              # smallest effect that counts as one; of every other score 0.01, a point


@dataclass(frozen=True)
class Claim:
    """The difference `arm` minus `than` of a score; sign +1 if the paper's claim is that it is above 0."""

    family: str
    arm: str
    than: str
    score: str
    says: str                           # the paper, or what one would conclude from it
    expected: str                       # by us, before the run
    sign: int = 1


def both(family: str, arm: str, than: str, says: str, sampled: str, greedy: str, sign: int = 1) -> tuple[Claim, Claim]:
    """One claim about sampled and greedy answers, judged by the acceptable plans."""
    return (Claim(family, arm, than, "acceptable_sampled", says, sampled, sign),
            Claim(family, arm, than, "acceptable", says, greedy, sign))


ALL, BASE = "all rewards", "SFT"
CLAIMS = (
    # Table 2: each reward adds something
    *both("rewards", ALL, BASE, "RL with the four rewards improves on SFT", "+2 to +5 points, mostly sharpening",
          "-1 to +1 point"),
    *both("rewards", "exact, format", "exact match", "the format reward helps",
          "0: after SFT nearly every answer follows the format, and a constant cancels in the group", "0"),
    *both("rewards", "F1, format", "exact, format", "F1 beats exact match",
          "0: after SFT no answer names two speeds, where alone F1 differs", "0"),
    *both("rewards", "F1, format, weights", "F1, format", "action weights help",
          "less than a point either way: a factor cancels in the group, but for answers half right",
          "less than a point either way"),
    *both("rewards", ALL, "F1, format, weights", "the diversity reward helps",
          "below 0: it pays for less sharpening", "less than a point either way"),
    Claim("rewards", "F1, format, weights", "F1, format", "cost", "weights make driving safer: fewer missed brakes",
          "less than half a point", -1),
    # Table 3: the two stages
    *both("strategy", ALL, "RL alone", "SFT + RL beats RL alone", "+50 points or more: RL alone has hardly begun",
          "+50 points or more"),
    *both("strategy", "RL alone", BASE, "RL alone beats SFT (45.5 against 41.1 with 20,000 examples)",
          "-50 points or more: our base model describes scenes and has not seen a plan", "-50 points or more"),
    Claim("strategy", ALL, "RL alone", "faithful", "SFT + RL keeps better reasons than RL alone",
          "above 0: captions support no plan as reasons do"),
    Claim("strategy", ALL, BASE, "faithful", "RL improves the reasons too",
          "within two points of SFT: nothing pays for a reason"),
    # Table 3, its half without reasons
    *both("reasons", "SFT and RL without reasons", "SFT without reasons", "RL helps without reasons too",
          "+1 to +4 points", "-1 to +2 points"),
    *both("reasons", "SFT and RL without reasons", "RL alone without reasons", "SFT + RL beats RL alone",
          "+50 points or more", "+50 points or more"),
    *both("reasons", ALL, "SFT and RL without reasons", "reasons make better plans",
          "below 0: a plan alone is learnt sooner, and fewer tokens are drawn", "within three points of 0"),
    # the controls that the paper lacks
    *both("controls", ALL, "SFT continued", "the gain is the method's, not that of more training",
          "above 0, +1 to +3 points", "below 0: more SFT is the better use of the time, greedily"),
    Claim("controls", ALL, "SFT, T of GRPO's entropy", "acceptable_sampled",
          "the gain is more than sharpening", "0 to +1 point: most of the gain is sharpening"),
    *both("controls", ALL, "SFT on own best of 8", "the gain needs the policy gradient: imitating the best is worse",
          "above 0, less than +2 points", "less than a point either way"),
    Claim("controls", ALL, BASE, "cost", "RL makes driving safer: fewer missed brakes",
          "below 0 by up to one point, by sharpening", -1),
    Claim("controls", ALL, "SFT continued", "cost", "RL makes driving safer than more SFT does",
          "less than half a point either way", -1),
    # where RL should win
    *both("axes", "SFT, 100 steps, and RL", "SFT, 100 steps", "RL lifts an early start",
          "+2 to +8 points", "-2 to +3 points"),
    *both("axes", "SFT, 100 steps, and RL", "SFT, 100 steps, continued", "RL beats more SFT from an early start",
          "below 0 by five points or more: SFT still learns to see", "below 0 by five points or more"),
    *both("axes", "SFT and RL, 30 % label noise", "SFT continued, 30 % label noise",
          "RL beats more SFT where labels are wrong", "+4 points or more: sharpening removes what the noise spread",
          "within two points of 0"),
    *both("axes", "SFT and RL, 30 % label noise", "SFT, 30 % label noise", "RL lifts a start with wrong labels",
          "+4 points or more, by sharpening", "-1 to +2 points"),
    *both("axes", "SFT and RL, 15 % label noise", "SFT continued, 15 % label noise",
          "RL beats more SFT where fewer labels are wrong", "+2 points or more", "within two points of 0"),
    *both("axes", "SFT, 200 steps, and RL", "SFT, 200 steps, continued", "RL beats more SFT from a later start",
          "below 0 by up to six points: SFT still learns", "below 0 by up to six points"),
    *both("axes", "SFT, few reasons, and RL", "SFT, few reasons", "RL helps where only 200 examples have reasons",
          "+2 to +5 points", "-1 to +2 points"),
    *both("axes", f"{ALL}, long-tail test", "SFT, long-tail test", "RL helps on rare situations",
          "+2 to +5 points", "within two points of 0"),
    *both("axes", f"{ALL}, long-tail test", "SFT continued, long-tail test", "RL beats more SFT on rare situations",
          "within two points of 0", "within two points of 0"),
    # Table 4: the amount of data
    *(claim for share in ("1/5", "1/2") for claim in (
        *both("amount", f"SFT and RL, {share} of the data", f"SFT, {share} of the data",
              f"RL improves on SFT with {share} of the data", "+3 to +7 points: the RL scenes are new",
              "0 to +3 points"),
        *both("amount", f"RL alone, {share} of the data", f"SFT, {share} of the data",
              f"RL alone beats SFT with {share} of the data", "-40 points or more", "-40 points or more"))),
    *both("amount", "SFT, 1/5 of the data", BASE, "SFT suffers from little data",
          "-8 points or more: 32 epochs on 600 scenes are learnt by heart", "-8 points or more", -1),
    *both("amount", "SFT and RL, 1/5 of the data", ALL, "SFT + RL suffers from little data",
          "-6 points or more: less than SFT, by the new scenes", "-6 points or more", -1),
    # the paper's reward against rewards that know more or something else
    *both("paid", "set-valued reward", ALL, "paying for every acceptable plan beats paying for one label",
          "0 to +3 points", "within two points of 0"),
    Claim("paid", "set-valued reward", ALL, "covered", "it keeps more plans", "above 0, one to four points"),
    Claim("paid", "safety as reward", BASE, "cost", "RL lowers the cost that it is paid for",
          "below 0 by two points or more", -1),
    *both("paid", "safety as reward", BASE, "and the plans stay as good",
          "below 0 by ten points or more: who always stops never misses a brake", "below 0 by ten points or more"),
    *both("paid", ALL, "official rewards", "the repairs of the released rewards matter",
          "0 to +2 points", "within two points of 0"),
    # is it the data?
    *both("data", ALL, "SFT continued on the RL scenes", "the gain is not that of new scenes",
          "above 0, +1 to +3 points", "below 0 by up to two points"),
    # does the planner use both inputs?
    *both("inputs", "SFT without the picture", BASE, "the planner uses the picture",
          "-25 to -45 points: text and odds alone know a right plan in a third of the scenes",
          "-25 to -45 points", -1),
    *both("inputs", "SFT without the text", BASE, "the planner uses speed and navigation",
          "-10 to -30 points: the picture shows more than the text says", "-10 to -30 points", -1),
    # Figure 3: emergent multimodal planning
    Claim("modes", ALL, BASE, "covered", "RL creates more plans for a scene",
          "below 0: RL on one label closes plans"),
    Claim("modes", ALL, "F1, format, weights", "covered", "the diversity reward keeps plans open",
          "above 0, less than two points"),
    Claim("modes", ALL, "SFT, T of GRPO's entropy", "covered", "at equal entropy RL keeps more right plans",
          "less than a point either way"),
    # GRPO among the eight algorithms, two updates per rollout, all with the learning rate of GRPO's sweep
    *(claim for name, sampled, greedy in (
        ("reinforce", "0 to +3 points: without a baseline all answers are pushed up", "within two points of 0"),
        ("rloo", "within a point of 0: the same baseline, not divided by the deviation", "within two points of 0"),
        ("ppo", "above 0: its critic has hardly learnt in 40 steps", "0 to +2 points"),
        ("dapo", "below 0 by up to two points: it clips less and has no KL", "within two points of 0"),
        ("dr_grpo", "within a point of 0", "within two points of 0"),
        ("gspo", "above 0 by up to three points: a clip of one ratio for the whole answer acts often",
         "within two points of 0"),
        ("cispo", "below 0 by up to two points: no token loses its gradient", "within two points of 0"))
      for claim in both("algorithms", "grpo, 2 updates", f"{name}, 2 updates", f"GRPO beats {name.upper()}", sampled,
                        greedy)),
)
FAMILIES = tuple(dict.fromkeys(claim.family for claim in CLAIMS))
