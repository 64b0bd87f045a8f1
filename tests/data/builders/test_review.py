"""The filter of a teacher's reasons, the pictures of the review sheet, and the file saved from it."""
import base64
import io
import re
import time

import pytest
from PIL import Image

from data import Example
from data.builders import review
from data.scenes import scene_examples
from rewards import Decision

GOOD = "The light ahead is red, so I stop and stay in my lane."
STOP = Decision("STOP", "STRAIGHT")


def test_picture_is_made_small_and_upright_without_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (300, 150), (200, 30, 30)).save(tmp_path / "a.jpg", exif=exif)
    asked = Example(id="a", image=str(tmp_path / "a.jpg"), prompt="?", decision=STOP)
    data = base64.b64decode(review.picture_urls(asked, 100)[0].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (100, 50) and b"taken at home" not in data
    data = base64.b64decode(review.picture_urls(asked, 1000)[0].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (300, 150)                    # never enlarged


@pytest.mark.parametrize(("reason", "verdict"), [
    (GOOD, None),
    ("", "empty"),
    ("<think> The light is red, so I stop. </think>", "holds tags"),
    ("The light is red, so I stop. < Answer>", "holds tags"),
    ("The light is red, so I stop here.<|im_end|>", "holds tags"),
    ("**The light is red**, so I stop at the line.", "holds Markdown or HTML"),
    ("- The light is red. - So I stop at the line.", "holds Markdown or HTML"),
    ("1. The light is red. 2. So I stop at the line.", "holds Markdown or HTML"),
    ("The light is <b>red</b>, so I stop at the line.", "holds Markdown or HTML"),
    ("The light is red &amp; the road is wet, so I stop.", "holds Markdown or HTML"),
    ("The road is wet.\n- So I stop at the line.", "holds Markdown or HTML"),
    ("The gap is <b and the speed is >3, the sign says 5*5 and 8 m/s*, so I stop.", None),
    ("It`s red at the R&D; car, so I stop at the line.", None),
    ("- 5 degrees and ice on the road, so I stop.", None),
    ("The gap is 2.5 m - too small - and the stop-line is near, so I stop (at 5 < 8 m/s).", None),
    ("I'm sorry, but I can't assist with this request.", "a refusal"),
    ("I\u2019m unable to view the image, so I stop to be safe.", "a refusal"),
    ("As an AI, I do not drive, and the light is red.", "a refusal"),
    ("I cannot change lanes because the left lane is taken, so I stop.", None),       # no refusal
    ("\u524d\u65b9\u662f\u7ea2\u706f\uff0c\u6240\u4ee5\u6211\u505c\u8f66\u3002", "not English"),
    ("The light is red and I stop: \u524d\u65b9\u662f\u7ea2\u706f.", "not English"),        # 5 of 26 letters
    ("Le feu est rouge, donc je m'arr\u00eate avant le passage.", "not English"),
    ("Die Ampel ist rot, deshalb halte ich an der Linie.", "not English"),
    ("The light is red.", "4 words, wanted are 6 to 80"),
    ("The light is red, so I stop. " * 12, "84 words, wanted are 6 to 80")])            # 12 * 7
def test_filter(reason, verdict):
    assert review.rejection(reason, STOP) == verdict


def test_filter_reads_the_finish_reason():
    assert review.rejection(GOOD, STOP, "length") == "cut off at the token limit"
    assert review.rejection(GOOD, STOP, "content_filter") == "a refusal"
    assert review.rejection(GOOD, STOP, None) is None


@pytest.mark.parametrize(("reason", "decision", "told"), [
    ("The light is green, so I accelerate and go straight.", "STOP, STRAIGHT", "says ACCELERATE, the decision is STOP"),
    ("The car ahead brakes and stops, so I keep my speed.", "KEEP, STRAIGHT", None),   # others brake, not I
    ("The car ahead brakes and stops, so I keep my speed.", "STOP, STRAIGHT", "says KEEP, the decision is STOP"),
    ("The red light requires the vehicle to slow down.", "ACCELERATE, STRAIGHT", "says DECELERATE"),
    ("There is no need to brake, the road is clear and I speed up.", "ACCELERATE, STRAIGHT", None),
    ("I do not stop, since the light ahead is green.", "KEEP, STRAIGHT", None),
    ("The stop sign is near, hence slowing down is right.", "DECELERATE, STRAIGHT", None),
    ("The light ahead is red, so I slow down.", "STOP, STRAIGHT", None),                # on the way to a stop
    ("The light ahead is red, so I stop.", "DECELERATE, STRAIGHT", "says STOP"),
    ("The route turns left, so I slow down and turn left.", "DECELERATE, RIGHT_TURN", "says LEFT_TURN"),
    ("A van blocks my lane, so I move over to the left lane.", "KEEP, LEFT_CHANGE", None),
    ("A van blocks my lane, so I move over to the left lane.", "KEEP, RIGHT_CHANGE", "says LEFT_CHANGE"),
    ("A cyclist is ahead and the lane is narrow.", "STOP, LEFT_TURN", None)])           # names no action
def test_contradiction(reason, decision, told):
    verdict = review.contradiction(reason, Decision(*decision.split(", ")))
    assert verdict is None if told is None else verdict.startswith(told)


def test_filter_on_the_built_in_sentences():
    """They bear out their own plan, and contradict one with another speed and another path."""
    opposite = {"STOP": "ACCELERATE", "DECELERATE": "KEEP", "KEEP": "STOP", "ACCELERATE": "DECELERATE"}
    examples = scene_examples("sft", 200, 0)
    assert [e.reasoning for e in examples if review.rejection(e.reasoning, e.decision)] == []
    wrong = [Decision(opposite[e.decision.speed], e.decision.path) for e in examples]
    found = [review.contradiction(e.reasoning, plan) for e, plan in zip(examples, wrong, strict=True)]
    assert None not in found


def test_filter_takes_linear_time():
    started = time.monotonic()
    for text in ("keep a " * 20_000, "i " * 50_000, "slow a a a " * 20_000, "a" * 200_000, "<" * 200_000):
        review.rejection(text, STOP)
        review.contradiction(text, STOP)
    assert time.monotonic() - started < 4


def test_sheet_shows_a_fixed_sample():
    rows = [review.Judged(example=Example(id=f"e{i}", scene=i, speed=1.0, navigation="Straight", decision=STOP),
                          reason=GOOD, rejected=None) for i in range(30)]
    some = [row.example.id for row in review.sample(rows, 5)]
    assert len(some) == 5 and some == [row.example.id for row in review.sample(rows[::-1], 5)][::-1]
    assert review.sample(rows[:3], 5) == rows[:3]


@pytest.mark.parametrize(("text", "message"), [
    ("{", "expected {"), ("[]", "expected {"), ('{"accept": []}', "expected {"), ('{"accepted": [1]}', "expected {"),
    ('{"accepted": 1}', "expected {"), ('{"accepted": {"a": 1}}', "expected {"), ('{"accepted": "ab"}', "expected {"),
    ('{"accepted": ["a"], "rejected": ["a"]}', "example 'a' is both accepted and rejected")])
def test_review_file_that_is_wrong(tmp_path, text, message):
    (tmp_path / "review.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        review.read_review(tmp_path / "review.json")
