"""One record at a time: what people's files hold beside the documented form, read as meant or refused with a remedy."""
import json
import os

import pytest

from data.fields import LABEL_NOTE, PICTURE_NOTE, REASON_NOTE, SPEED_NOTE
from data.files import load_examples, read_examples, write_examples
from rewards import Decision

OURS = {"id": "a", "scene": 7, "speed": 4.2, "navigation": {"100m": "Straight"}, "decision": "KEEP, STRAIGHT"}
PHOTO = {"image": "frames/0.png", "speed": 4.2, "navigation": "Straight", "decision": "KEEP, STRAIGHT"}
ASKED = {"scene": 7, "problem": "Your plan?", "solution": "<answer> KEEP, STRAIGHT </answer>"}


def write(folder, *records):
    (folder / "some.json").write_text(json.dumps(records))
    return folder / "some.json"


def read(folder, record, root=None):
    """The only example of a file, and its notes."""
    loaded = read_examples(write(folder, record), root)
    return loaded.examples[0], list(loaded.notes)


def fault(folder, record, root=None):
    with pytest.raises(ValueError) as error:
        read_examples(write(folder, record), root)
    assert str(error.value).startswith(f"{folder / 'some.json'}: item 0: field ")
    return str(error.value)


def fault_of_fields(folder, record):
    """Of several fields together."""
    with pytest.raises(ValueError) as error:
        read_examples(write(folder, record))
    return str(error.value)


# ---------------------------------------------------------------- plain values

@pytest.mark.parametrize("unit", ["m/s", "mps", "M/S", "m s-1", "m.s-1", "meters per second", "metres/s", "m_per_s",
                                  "metersPerSecond", "[m/s]", "m·s⁻¹", "m/second", ""])
def test_metres_a_second_in_words(tmp_path, unit):
    assert read(tmp_path, OURS | {"speed_unit": unit})[0].extra == {"speed_unit": unit}


@pytest.mark.parametrize(("given", "read_as"), [
    ({"200m": "Turn left", "100m": "Straight"}, {"100m": "Straight", "200m": "Turn left"}),
    ({"1000m": "Turn left", "50m": "Straight"}, {"50m": "Straight", "1000m": "Turn left"}),
    ({"soon": "Turn left", "50m": "Straight"}, {"soon": "Turn left", "50m": "Straight"}),
    ("{'200m': 'Turn left', '100m': 'Straight'}", {"100m": "Straight", "200m": "Turn left"}),
    ({"500 m": "Straight", "1.5 km": "Turn left"}, {"500 m": "Straight", "1.5 km": "Turn left"}),
    ({"500m": "Straight", "1,000m": "Turn left"}, {"500m": "Straight", "1,000m": "Turn left"}),
    ({"100m": "Straight", "200m": None}, {"100m": "Straight"}),
    ('{"200m": null, "100m": "Straight"}', {"100m": "Straight"}),
    ("{'200m': None, '100m': 'Straight'}", {"100m": "Straight"})])
def test_courses_are_read_in_the_order_of_their_distances(tmp_path, given, read_as):
    found = read(tmp_path, OURS | {"navigation": given})[0].navigation
    assert found == read_as and list(found) == list(read_as)


@pytest.mark.parametrize(("given", "told"), [
    ("{'100m'", "opens a dictionary but is not one"), ({"100m": "Turn left<|im_end|>"}, "holds '<|im_end|>'"),
    ({"100m": "nan"}, "how tables write an empty cell"), ({"100m": "Left\x1b[2J"}, "without control characters"),
    ({"100m": None}, "expected words or a dictionary")])
def test_courses_that_are_none(tmp_path, given, told):
    assert told in fault(tmp_path, OURS | {"navigation": given})


@pytest.mark.parametrize("own", [{"units": {"speed": "m/s", "angular_velocity": "rad/s"}}, {"wind_speed_unit": "knots"},
                                 {"units": {"wheel_speed": "rpm"}}, {"speed_limit_unit": "km/h"}])
def test_units_of_something_else(tmp_path, own):
    assert read(tmp_path, OURS | own)[0].extra == own


def test_a_label_that_is_not_acceptable_is_noted(tmp_path):
    others = {"acceptable": ["STOP, STRAIGHT"]}
    assert read(tmp_path, PHOTO | others)[1] == [LABEL_NOTE]
    assert read(tmp_path, PHOTO | {"acceptable": ["STOP, STRAIGHT", "KEEP, STRAIGHT"]})[1] == []
    assert read(tmp_path, OURS | others)[1] == []           # the label of a built-in scene may be noise


def test_nulls_inside_a_record(tmp_path):
    """Arrow gives every record of a column the same keys."""
    views = {"images": {"front": "a.png", "rear": None, "left": "b.png"}}
    assert read(tmp_path, {**PHOTO, "image": None} | views)[0].cameras == ("front", "left")
    found = read(tmp_path, PHOTO | {"image": {"bytes": None, "path": "a.png"}, "images": []})[0]
    assert found.image == str(tmp_path / "a.png")
    assert "save a picture inside the record" in fault(tmp_path, PHOTO | {"image": {"bytes": "x", "path": "a.png"}})


@pytest.mark.parametrize(("given", "name"), [(17, "17"), (0, "0"), (1.5, "1.5"), ("ü 左", "ü 左")])
def test_an_id_may_be_a_number(tmp_path, given, name):
    assert read(tmp_path, OURS | {"id": given})[0].id == name


def test_a_number_and_its_text_are_one_id(tmp_path):
    with pytest.raises(ValueError, match="item 1: field 'id': '17' was already used"):
        load_examples(write(tmp_path, OURS | {"id": 17}, OURS | {"id": "17"}))


@pytest.mark.parametrize(("given", "speed", "notes"), [
    ("4.2", 4.2, []), (" 12 ", 12.0, []), ("1e-05", 1e-05, []), (-0.02, 0.0, [SPEED_NOTE]), (-0.5, 0.0, [SPEED_NOTE]),
    ("-0.3", 0.0, [SPEED_NOTE]), (-0.0, 0.0, []), ("12.5 m/s", 12.5, []), ("3mps", 3.0, []),
    ("4.2 M/S", 4.2, []), ("4.2 meters per second", 4.2, [])])
def test_speeds(tmp_path, given, speed, notes):
    example, said = read(tmp_path, OURS | {"speed": given})
    assert (example.speed, str(example.speed), said) == (speed, str(speed), notes)          # 0.0 and not -0.0


def test_a_negative_speed_inside_a_question(tmp_path):
    question = "Your current speed is {}m/s, the navigation command is 'Go straight', based on this: what now?"
    example, said = read(tmp_path, ASKED | {"problem": question.format("-0.1")})
    assert (example.speed, example.navigation, said) == (0.0, "Go straight", [SPEED_NOTE])
    assert read(tmp_path, ASKED | {"problem": question.format("-3")})[0].speed is None


@pytest.mark.parametrize(("changes", "told"), [
    ({"speed": "36 km/h"}, "field 'speed': '36 km/h' is not in m/s; divide it by 3.6"),
    ({"speed": "20mph"}, "field 'speed': '20mph' is not in m/s; divide it by 2.237"),
    ({"speed_unit": "km/h"}, "field 'speed_unit' says 'km/h', and 'speed' is in m/s; divide it by 3.6, and leave"),
    ({"units": "MPH"}, "field 'units' says 'MPH', and 'speed' is in m/s; divide it by 2.237, and leave"),
    ({"unit_of_speed": "kph"}, "divide it by 3.6"),
    ({"speed": 50, "units": {"speed": "km/h"}}, "field 'units' says 'km/h', and 'speed' is in m/s; divide it by 3.6"),
    ({"speed_unit": "kilometers per hour"}, "divide it by 3.6"), ({"speed_unit": "km.h-1"}, "divide it by 3.6"),
    *(({name: unit}, f"says '{unit}', and 'speed' is in m/s; divide it by {divisor}, and") for unit, divisor in (
        ("km per hour", "3.6"), ("kts", "1.944"), ("kt", "1.944"), ("ft/s", "3.281"), ("feet per second", "3.281"),
        ("cm/s", "100"), ("imperial", "2.237"), ("miles per hour", "2.237"), ("mi per h", "2.237"))
      for name in ("unit", "Units", "speed_unit")),
    ({"meta": {"speed_unit": "km/h"}}, "field 'meta' says 'km/h', and 'speed' is in m/s; divide it by 3.6, and leave"),
    ({"speed": "4.2 m"}, "field 'speed': expected a speed in m/s, got '4.2 m', whose unit is unknown; write 4.2 if"),
    ({"speed": "4,2"}, "expected a speed in m/s, got '4,2'; write it with a point: 4.2"),
    ({"speed": "14 ft/s"}, "'14 ft/s' is not in m/s; divide it by 3.281"),
    ({"speed_unit": "knots"}, "divide it by 1.944"), ({"velocity_unit": "furlongs"}, "says 'furlongs'")])
def test_a_unit_that_the_file_states_is_not_ignored(tmp_path, changes, told):
    assert told in fault(tmp_path, OURS | changes)


def test_other_units_are_fields_of_theirs(tmp_path):
    own = {"speed_unit": "m/s", "limit_unit": "km/h", "unit": 7, "limit": {"unit": "km/h", "value": 50},
           "units": "left side", "meta": {"speed_unit": "m/s", "gap_unit": "ft"}}
    assert read(tmp_path, OURS | own)[0].extra == own
    assert read(tmp_path, ASKED | {"unit": "km/h"})[0].extra == {"unit": "km/h"}        # there is no speed


@pytest.mark.parametrize("given", [-0.51, "-1", "4.2 m", "4,2", "nan", "1e99", "1_0", "."])
def test_other_speeds_are_refused(tmp_path, given):
    assert "expected a speed in m/s" in fault(tmp_path, OURS | {"speed": given})


def test_a_long_text_as_speed_or_unit_is_refused_at_once(tmp_path):
    assert "expected a speed in m/s" in fault(tmp_path, OURS | {"speed": "km" + " " * 1_000_000 + "x"})
    assert read(tmp_path, OURS | {"unit": "kilomet" * 100_000})[0].speed == 4.2


def test_notes_are_counted(tmp_path):
    path = write(tmp_path, *(OURS | {"id": i, "speed": speed} for i, speed in enumerate((-0.1, 3, -0.2, -9))))
    loaded = read_examples(path, leave_out_bad=True)
    assert loaded.lines() == [
        f"1 of 4 records were left out, first: {loaded.faults[0]}", "2 of 3 examples: a speed from -0.5 to 0 m/s was "
        "read as 0"]
    assert read_examples(write(tmp_path, OURS)).lines() == []


@pytest.mark.parametrize("value", [float("nan"), [1, float("inf")]])
def test_nan_in_factors(tmp_path, value):
    assert "field 'factors': holds NaN or Infinity" in fault(tmp_path, OURS | {"factors": {"gap": value}})


# ---------------------------------------------------------------- a whole answer as the plan

@pytest.mark.parametrize("solution", [
    "<think> The road is free. </think> <answer> KEEP, STRAIGHT </answer>",
    "<think>The road is free.</think>\n<answer>KEEP, STRAIGHT</answer><|im_end|>\n",
    "<think>The road is free.</think>KEEP, STRAIGHT"])
def test_the_reason_inside_a_solution_is_used(tmp_path, solution):
    example, said = read(tmp_path, ASKED | {"solution": solution})
    assert (example.reasoning, example.decision) == ("The road is free.", Decision("KEEP", "STRAIGHT"))
    assert said == [REASON_NOTE]
    # the same reason in both fields is no conflict, and nothing was assumed
    assert read(tmp_path, ASKED | {"solution": solution, "thinking": "The road  is free."})[1] == []


def test_an_empty_think_block_is_no_reason(tmp_path):
    example, said = read(tmp_path, ASKED | {"solution": "<think> </think> <answer> KEEP, STRAIGHT </answer>"})
    assert (example.reasoning, said) == (None, [])


@pytest.mark.parametrize(("changes", "told"), [
    ({"solution": "<think> Free. </think> <answer> KEEP, STRAIGHT </answer>", "thinking": "Red."},
     "its <think> block says 'Free.' and the field for the reason says 'Red.'; keep one of them"),
    ({"solution": "It is free. <answer> KEEP, STRAIGHT </answer>"}, "holds text outside its <think> and <answer>"),
    ({"solution": "<answer> KEEP, STRAIGHT </answer> since it is free"}, "holds text outside its <think> and <answer>"),
    ({"solution": "<think> Free. <answer> KEEP, STRAIGHT </answer>"}, "the <think> block has no end; add </think>"),
    ({"solution": "<think> Free. </think> <answer> GO </answer>"}, "is not one plan"),
    ({"solution": "<think> <think> a </think> </think> KEEP, STRAIGHT"}, "field 'solution'"),
    ({"acceptable": ["<think> Free. </think> <answer> KEEP, STRAIGHT </answer>"]}, "field 'acceptable'")])
def test_answers_that_cannot_be_read_as_meant(tmp_path, changes, told):
    assert told in fault(tmp_path, ASKED | changes)


@pytest.mark.parametrize("reason", ["<THINK>Free.</THINK>", "<thinking> Free. </thinking>", "<Reasoning>Free."])
def test_other_tags_around_a_reason_are_taken_off(tmp_path, reason):
    assert read(tmp_path, ASKED | {"thinking": reason})[0].reasoning == "Free."
    assert "remove inner <think>" in fault(tmp_path, ASKED | {"thinking": f"So: {reason} Yes."})


@pytest.mark.parametrize("tag", ["ANSWER", "Answer", "answer"])
def test_the_tags_of_an_answer_in_any_case(tmp_path, tag):
    answer = f"<{tag}> KEEP, STRAIGHT </{tag}>"
    for given in (answer, f"<THINK> Free. </THINK> {answer}<|im_end|>"):
        assert read(tmp_path, ASKED | {"solution": given})[0].decision == Decision("KEEP", "STRAIGHT")
    assert read(tmp_path, ASKED | {"acceptable": [answer]})[0].acceptable == (Decision("KEEP", "STRAIGHT"),)
    assert "remove inner <think> and <answer> tags" in fault(tmp_path, ASKED | {"thinking": f"So: {answer}"})


def test_other_tags_inside_a_solution(tmp_path):
    solution = "<thinking> Free. </thinking> <answer> KEEP, STRAIGHT </answer>"
    assert read(tmp_path, ASKED | {"solution": solution})[0].reasoning == "Free."


@pytest.mark.parametrize("field", ["navigation", "reasoning"])
@pytest.mark.parametrize("value", ["nan", "None", " NULL "])
def test_an_empty_cell_as_text_is_no_text(tmp_path, field, value):
    told = fault(tmp_path, OURS | {field: value})
    assert f"field '{field}': {value!r} is how tables write an empty cell; give null, or leave the field out" in told


QUESTION = "Your current speed is {}m/s, the navigation command is '{}', based on this: what now?"


@pytest.mark.parametrize(("given", "told"), [
    ({"speed": 10}, "field 'problem': the question says 4.2 m/s and the field 'speed' says 10.0; keep one"),
    ({"navigation": "Turn left"}, "the question says 'Straight' and the field 'navigation' says 'Turn left'; keep one"),
    ({"navigation": {"100m": "Straight"}}, "'navigation'")])
def test_a_question_and_fields_that_contradict(tmp_path, given, told):
    assert told in fault(tmp_path, ASKED | {"problem": QUESTION.format("4.2", "Straight")} | given)


@pytest.mark.parametrize("given", [
    {"speed": 4.16}, {"navigation": "straight "}, {"speed": 4.2, "navigation": "Straight"}, {}])
def test_a_question_and_fields_that_agree(tmp_path, given):
    example, _ = read(tmp_path, ASKED | {"problem": QUESTION.format("4.2", "Straight")} | given)
    assert example.speed == given.get("speed", 4.2)
    courses = {"100m": "Straight"}
    asked = ASKED | {"problem": QUESTION.format("4", courses)}
    assert read(tmp_path, asked | {"navigation": str(courses), "speed": 4.4})[0].speed == 4.4
    assert read(tmp_path, asked | {"navigation": courses})[0].navigation == courses


# ---------------------------------------------------------------- marks of pictures and of chats

@pytest.mark.parametrize("question", [
    "<image>Your plan?", "<image>\nYour plan?", "Your plan?\n<image>", "<|image_pad|>Your plan?",
    "<|vision_start|><|image_pad|><|vision_end|>Your plan?"])
def test_the_mark_of_the_picture_is_removed(tmp_path, question):
    example, said = read(tmp_path, ASKED | {"problem": question})
    assert (example.prompt, said) == ("Your plan?", [PICTURE_NOTE])


def test_words_and_tags_of_theirs_are_no_marks(tmp_path):
    question = "[The image] <b>video 1</b>: is x <image y> z, |image|?"
    assert read(tmp_path, ASKED | {"problem": question})[0].prompt == question


@pytest.mark.parametrize(("changes", "told"), [
    ({"problem": "<image><image>Plan?"}, "holds 2 marks of pictures, first '<image>', and the example has 1"),
    ({"problem": "In <image>, what now?"}, "'<image>' is inside the question; remove it or move it to the start"),
    ({"problem": "<image>"}, "expected a text that is not empty"),
    *(({"problem": f"{mark}Plan?"}, f"holds {mark!r}, which would be read as letters") for mark in (
        "<video>", "<image_1>", "<image 1>", "<IMAGE>", "<ImageHere>", "<|image|>", "<start_of_image>", "[IMG]",
        "<image_placeholder>", "<IMG_CONTEXT>")),
    ({"problem": "<img><IMG_CONTEXT></img>Plan?"}, "holds '<img>', which would be read as letters"),
    ({"problem": "<|im_start|>user\nPlan?<|im_end|>"}, "holds '<|im_start|>', which would be read as letters"),
    ({"thinking": "See <image>."}, "field 'thinking': holds '<image>'"),
    ({"navigation": "left<|endoftext|>"}, "field 'navigation': holds '<|endoftext|>'"),
    ({"messages": [{}], "images": []}, "field 'messages': a chat is not read; write it as examples with `python -m"),
    ({"conversations": ["a"]}, "field 'conversations': a chat is not read"),
    ({"videos": ["a.mp4"]}, "extract a frame")])
def test_what_is_not_one_question_about_one_picture(tmp_path, changes, told):
    assert told in fault(tmp_path, ASKED | changes)


# ---------------------------------------------------------------- pictures

def test_a_list_of_one_picture_is_the_picture(tmp_path):
    assert read(tmp_path, PHOTO | {"image": ["frames/0.png"]})[0].image == str(tmp_path / "frames/0.png")
    assert "save a picture inside the record as a file" in fault(tmp_path, PHOTO | {"image": {"bytes": "iVBO"}})
    assert "expected a list of 1 to 16 picture files" in fault(tmp_path, PHOTO | {"image": []})


@pytest.mark.parametrize(("image", "told"), [
    ("https://host/a.png", "is an address, and nothing is downloaded"), ("s3://bucket/a.png", "is an address"),
    ("file:///data/a.png", "write the plain path, without file://"), ("~/a.png", "~ is not expanded"),
    ("data:image/png;base64,iVBO", "is a picture in text form; save it as a file"),
    ("frames\\0.png", "separate folders by / and not by backslashes"), ("C:\\a.png", "backslashes"),
    ("drive.MP4", "is a video; extract a frame")])
def test_what_is_no_path_of_a_picture(tmp_path, image, told):
    assert told in fault(tmp_path, PHOTO | {"image": image})


@pytest.mark.parametrize("start", ["data:image/jpeg;base64,", "DATA:image/png;base64,\n", "/9j/", "iVBORw0KGgo",
                                   "R0lGOD", "UklGR"])
@pytest.mark.parametrize("length", [40, 5000, 2_000_000])
def test_a_picture_in_text_form_of_any_length(tmp_path, start, length):
    for given in ({"image": start + "A/" * length}, {"images": ["a.png", start + "A\n" * length]}):
        told = fault(tmp_path, CAMERAS | given)
        assert "is a picture in text form; save it as a file and give its path" in told and len(told) < 400
    assert read(tmp_path, PHOTO | {"image": "UklGR/" + "a" * 30 + ".jpg"})[0].image == (
        str(tmp_path / f"UklGR/{'a' * 30}.jpg"))


@pytest.fixture
def linked(tmp_path):
    """A folder `data` whose `frames` is a link to a store elsewhere, as on a cluster."""
    for path in (tmp_path / "store/0.png", tmp_path / "data/own.png"):
        path.parent.mkdir()
        path.write_bytes(b"picture")
    (tmp_path / "data/frames").symlink_to(tmp_path / "store")
    return tmp_path / "data"


def test_links_are_followed_where_the_user_names_the_folder(linked):
    told = fault(linked, PHOTO)
    assert f"'frames/0.png' lies outside {linked}; a link leads there" in told and "--image-root DIR" in told
    for root in (linked, linked.parent, "/"):                                    # the remedy, and folders above it
        assert read(linked, PHOTO, root)[0].image == str(linked / "frames/0.png")
    assert "'../../x.png' lies outside" in fault(linked, PHOTO | {"image": "../../x.png"}, linked)


def test_a_relative_path_starts_at_the_root_first(linked):
    (linked.parent / "own.png").write_bytes(b"picture")
    assert read(linked, PHOTO | {"image": "own.png"}, linked.parent)[0].image == str(linked.parent / "own.png")
    assert read(linked, PHOTO | {"image": "gone.png"}, linked.parent)[0].image == str(linked.parent / "gone.png")
    example = read(linked, PHOTO, linked)[0]
    os.remove(linked / "some.json")
    write_examples([example], linked / "out.jsonl")
    assert load_examples(linked / "out.jsonl", linked)[0].image == example.image


# ---------------------------------------------------------------- several cameras

CAMERAS = {key: value for key, value in PHOTO.items() if key != "image"}


@pytest.mark.parametrize(("given", "names"), [
    ({"images": ["a.png", "b.png"]}, None), ({"image": ["a.png", "b.png"]}, None),
    ({"images": {"front": "a.png", "front_left": "b.png"}}, ("front", "front_left")),
    ({"images": ["a.png", "b.png"], "cameras": ["CAM_FRONT", "rear left"]}, ("CAM_FRONT", "rear left"))])
def test_several_pictures_stay_in_order_and_are_written_as_they_were(tmp_path, given, names):
    example, said = read(tmp_path, CAMERAS | given)
    assert (example.image, example.cameras, said) == (None, names, [])
    assert example.images == example.pictures == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    write_examples([example], tmp_path / "again.jsonl")
    record = json.loads((tmp_path / "again.jsonl").read_text())
    assert record["images"] == (dict(zip(names, ("a.png", "b.png"), strict=True)) if names else ["a.png", "b.png"])
    assert load_examples(tmp_path / "again.jsonl") == [example]


@pytest.mark.parametrize("extra", [
    {"img": "frames/1.heic"}, {"view": "a.avif"}, {"photo": "frames/000017"}, {"img": "https://b/a.jpg?sig=1"},
    {"picture": {"bytes": "abc", "path": None}}, {"data": "/9j/" + "A" * 60}, {"view": "a.JPG "}])
def test_a_picture_of_any_form_beside_a_scene_is_refused(tmp_path, extra):
    assert "field 'scene' asks for a built-in drawing" in fault(tmp_path, OURS | extra)


@pytest.mark.parametrize(("said", "speed"), [("36 km/h", 36), ("4 km/h", 3.6), ("20 mph", 20.0),
                                             ("30 kilometers per hour", 30)])
def test_a_question_in_another_unit_must_agree(tmp_path, said, speed):
    asked = {"problem": f"Your current speed is {said}, the navigation command is 'Straight', based on the view"}
    assert f"the question says {said}, and the field 'speed' says {float(speed)} m/s" in fault(
        tmp_path, PHOTO | asked | {"speed": speed})
    assert read(tmp_path, PHOTO | {"problem": "Your speed is 36 km/h. Plan?", "speed": 10})[0].speed == 10


@pytest.mark.parametrize("unit", [{"v_unit": "km/h"}, {"vel_unit": "kmh"}, {"unit_system": "imperial"},
                                  {"meta": {"units": {"speed": "km/h"}}}])
def test_more_names_of_a_unit(tmp_path, unit):
    assert "says" in fault(tmp_path, OURS | {"speed": 30} | unit)
    others = {"unit_system": "metric", "meta": {"units": {"range": "km"}}}
    assert read(tmp_path, OURS | others)[0].speed == OURS["speed"]


@pytest.mark.parametrize("said", ["<think> nan </think>", "<think>None</think>", "NA", "n/a", "#N/A"])
def test_an_empty_cell_inside_tags_is_no_reason(tmp_path, said):
    assert "is how tables write an empty cell" in fault(tmp_path, OURS | {"reasoning": said})


@pytest.mark.parametrize(("navigation", "told"), [
    ("['Turn left', 'Straight']", "expected words or a dictionary"), ("[]", "expected words or a dictionary"),
    ("{'100m': 'Straight', '100m': 'Turn left'}", "opens a dictionary but is not one"),
    ('{"100m": "Straight", "100m": "Turn left"}', "opens a dictionary but is not one")])
def test_a_navigation_in_text_form_is_read_as_strictly(tmp_path, navigation, told):
    assert told in fault(tmp_path, OURS | {"navigation": navigation})


def test_one_of_several_is_a_picture_and_a_scene_may_have_views(tmp_path):
    example = read(tmp_path, CAMERAS | {"images": {"front": "a.png"}})[0]
    assert (example.image, example.images, example.cameras) == (str(tmp_path / "a.png"), None, None)
    assert read(tmp_path, OURS | {"cameras": ["front", "front_left"]})[0].cameras == ("front", "front_left")
    assert read(tmp_path, OURS | {"cameras": ["front"]})[0].cameras is None
    assert read(tmp_path, OURS | {"camera": "CAM_FRONT"})[0].extra == {"camera": "CAM_FRONT"}       # a field of theirs


@pytest.mark.parametrize(("given", "told"), [
    ({"images": []}, "expected a list of 1 to 16 picture files"), ({"images": "a.png"}, "expected a list of 1 to 16"),
    ({"images": ["a.png"] * 17}, "expected a list of 1 to 16"), ({"images": ["a.png", 3]}, "field 'images'"),
    ({"images": ["a.png", "../b.png"]}, "'../b.png' lies outside"),
    ({"images": ["a.png", "b.png"], "cameras": ["front"]}, "1 names for 2 pictures"),
    ({"images": ["a.png", "b.png"], "cameras": ["front", "front"]}, "a camera is named twice"),
    ({"images": {"<image>": "a.png", "b": "b.png"}}, "expected names of cameras"),
    ({"scene": 7, "cameras": ["front", "rear"]}, "a built-in scene has no camera 'rear'")])
def test_what_is_not_several_pictures(tmp_path, given, told):
    assert told in fault(tmp_path, CAMERAS | given)


@pytest.mark.parametrize("other", [{"image": "a.png"}, {"scene": 7}])
def test_pictures_are_given_in_one_way(tmp_path, other):
    with pytest.raises(ValueError, match="item 0: fields 'image.*: both are given; give a picture file, several as"):
        read_examples(write(tmp_path, CAMERAS | {"images": ["a.png", "b.png"]} | other))


@pytest.mark.parametrize("named", ["p/0.jpg", ["p/0.JPG"], {"path": "p/0.png"}])
def test_a_picture_under_another_name_is_no_drawing(tmp_path, named):
    told = fault(tmp_path, OURS | {"scene": 17, "image_path": named})
    assert "field 'scene' asks for a built-in drawing, and field 'image_path' names a picture" in told
    assert "--rename image_path=image" in told and "--rename scene=scene_name" in told
    assert "--rename scene=scene_name" in fault_of_fields(tmp_path, PHOTO | {"scene": 17})
    assert read(tmp_path, OURS | {"image_width": 1600, "note": "no jpg"})[0].scene == 7


def test_several_marks_stand_for_as_many_pictures(tmp_path):
    asked = {"images": ["a.png", "b.png"], "solution": ASKED["solution"]}
    assert read(tmp_path, asked | {"problem": "<image>\n<image>Plan?"})[0].prompt == "Plan?"
    assert "holds 1 marks of pictures" in fault(tmp_path, asked | {"problem": "<image>Plan?"})
    assert "is inside the question" in fault(tmp_path, asked | {"problem": "Left <image>, front <image>: plan?"})


def test_null_means_absent(tmp_path):
    """As pandas and others write a field that a record lacks; `prompt` and `problem` are one field."""
    nulls = {"video": None, "prompt": None, "speed": None, "image": None}
    example, notes = read(tmp_path, ASKED | nulls)
    assert example.prompt == "Your plan?" and example.speed is None and not notes


@pytest.mark.parametrize("empty", [{"videos": []}, {"video": ""}, {"messages": []}, {"conversations": []}])
def test_an_empty_chat_or_video_is_absent(tmp_path, empty):
    example, notes = read(tmp_path, ASKED | empty)
    assert (example.extra, notes) == ({}, [])


@pytest.mark.parametrize("own", ["seed", "resolution", "Resolution", "trajectory_id", "image_id", "split_id"])
def test_ordinary_names_are_no_misspellings(tmp_path, own):
    assert read(tmp_path, OURS | {own: 3})[0].extra == {own: 3}


def test_a_misspelling_names_the_field_that_is_near(tmp_path):
    told = fault(tmp_path, OURS | {"sped": 3})
    assert "field 'sped' is nearly 'speed'; write 'speed', or rename it if it means something else" in told


def test_an_id_of_hundreds_of_digits_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="field 'id': expected one line of at most"):
        read(tmp_path, OURS | {"id": 10**4200})
