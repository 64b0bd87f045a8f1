"""Reading and writing files of examples; every fault names its place and remedy."""
import json
import os

import pytest

from data import Example, load_examples
from data.dataset import data_sign
from data.datasheet import datasheet
from data.example import prompt_text
from data.fields import parse_navigation
from data.files import MAX_EXAMPLE_BYTES, read_examples, write_examples
from rewards import Decision
from tests.data.test_example import PROBLEM, example

RELEASED = {"image": "front.jpg", "problem": PROBLEM, "solution": "<answer> ACCELERATE, STRAIGHT </answer>",
            "thinking": "<think> The light is green. </think>"}
OURS = {"id": "a", "scene": 7, "speed": 4.2, "navigation": {"100m": "Straight"}, "decision": "STOP, LEFT_TURN"}


def write(tmp_path, text, name="some.jsonl"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


# ---------------------------------------------------------------- reading

def test_released_format_as_object_list_and_lines(tmp_path):
    for name, text in (("one.json", json.dumps(RELEASED, indent=4)), ("list.json", json.dumps([RELEASED], indent=1)),
                       ("lines.jsonl", json.dumps(RELEASED) + "\n\n")):
        [read] = load_examples(write(tmp_path, text, name))
        assert read.decision == Decision("ACCELERATE", "STRAIGHT")
        assert read.reasoning == "The light is green."
        assert read.image == str(tmp_path / "front.jpg")
        assert prompt_text(read, "alphadrive") == PROBLEM
        # the prompt says speed and route, so the compact style can word them
        assert prompt_text(read, "compact") == "speed 4.2 m/s. straight, then left."
        assert read.id == name.split(".")[0] + "-000000"


def test_pictures_may_start_at_another_folder(tmp_path):
    path = write(tmp_path, json.dumps(RELEASED))
    assert load_examples(path, root="/photos")[0].image == "/photos/front.jpg"


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "win.jsonl"
    lines = [json.dumps(OURS | {"id": name}).encode() + b"\r\n" for name in ("a", "b")]
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    assert [read.id for read in load_examples(path)] == ["a", "b"]


def test_unicode_line_separator_inside_a_text_does_not_split_the_line(tmp_path):
    path = write(tmp_path, json.dumps(OURS | {"reasoning": "one\u2028two"}, ensure_ascii=False))
    assert load_examples(path)[0].reasoning == "one\u2028two"


def test_round_trip(tmp_path):
    examples = [
        example(acceptable=(Decision("STOP", "LEFT_TURN"), Decision("KEEP", "STRAIGHT")), split="val",
                factors={"light": "red", "night": True, "gap": 12.5},
                trajectory=tuple((2.0 * k, -0.125 * k) for k in range(1, 9))),
        Example(id="b", image=str(tmp_path / "pics" / "ü.png"), prompt="Wohin? →",
                decision=Decision("KEEP", "STRAIGHT")),
        example(id="c", navigation="Turn right", reasoning=None)]
    path = tmp_path / "out.jsonl"
    write_examples(examples, path)
    assert load_examples(path) == examples
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1])["image"] == "pics/ü.png"   # the folder can move


def test_writing_onto_a_link_writes_what_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "disk/a.jsonl")
    write_examples([], tmp_path / "train.jsonl")
    assert (tmp_path / "train.jsonl").is_symlink() and os.listdir(tmp_path / "disk") == ["a.jsonl"]


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.jsonl"
    write_examples([example()], path)
    with pytest.raises(TypeError):
        write_examples([example(), example(id="b", factors={"bad": object()})], path)
    assert load_examples(path) == [example()]
    with pytest.raises(ValueError, match="example 'b' holds NaN or Infinity"):
        write_examples([example(), example(id="b", factors={"gap": float("nan")})], path)
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_parse_navigation():
    assert parse_navigation(" Go straight, then left ") == "Go straight, then left"
    assert parse_navigation("{'100m': 'Straight', '200m': 'Turn left'}") == {"100m": "Straight", "200m": "Turn left"}
    assert parse_navigation('{"100m": "Straight"}') == {"100m": "Straight"}
    for wrong in ("", "  ", "{'100m'", "{'100m': 1}", "{}", "{1, 2}", "{open('x')}"):
        with pytest.raises(ValueError, match="navigation"):
            parse_navigation(wrong)


# ---------------------------------------------------------------- faults

@pytest.mark.parametrize("changes, field, told", [
    ({"decision": "GO, STRAIGHT"}, "decision", "'GO, STRAIGHT' is not one plan 'SPEED, PATH'; SPEED is one of KEEP,"),
    ({"decision": "STOP, KEEP, STRAIGHT"}, "decision", "is not one plan"),
    ({"decision": ["STOP", "STRAIGHT"]}, "decision", "a plan is one text 'SPEED, PATH', got ['STOP', 'STRAIGHT']"),
    ({"acceptable": [{"speed": "STOP"}]}, "acceptable", "a plan is one text 'SPEED, PATH', got {'speed': 'STOP'}"),
    ({"speed": "fast"}, "speed", "a number >= 0, got 'fast'"),
    ({"speed": True}, "speed", "got True"),
    ({"speed": -1}, "speed", "got -1"),
    ({"speed": float("nan")}, "speed", "got nan"),
    ({"scene": "7"}, "scene", "a whole number >= 0, got '7'"),
    ({"scene": True}, "scene", "got True"),
    ({"navigation": {}}, "navigation", "got {}"),
    ({"navigation": {"100m": 3}}, "navigation", "got {'100m': 3}"),
    ({"navigation": " "}, "navigation", "not empty, got ' '"),
    ({"id": [5]}, "id", "expected a text that is not empty, got [5]"),
    ({"id": True}, "id", "expected a text that is not empty, got True"),
    ({"id": float("nan")}, "id", "expected a text that is not empty, got nan"),
    ({"reasoning": "<answer> STOP </answer>"}, "reasoning", "remove inner <think> and <answer> tags"),
    ({"acceptable": "KEEP, STRAIGHT"}, "acceptable", "expected a list of plans"),
    ({"acceptable": []}, "acceptable", "expected a list of plans"),
    ({"acceptable": ["KEEP, SIDEWAYS"]}, "acceptable", "PATH one of STRAIGHT, RIGHT_CHANGE"),
    ({"acceptable": ["KEEP, STRAIGHT", "keep straight"]}, "acceptable", "a plan is listed twice"),
    ({"trajectory": [[2, 0]] * 7}, "trajectory", "expected 8 way-points [x, y] in metres, at 0.5 to 4 s, got [[2, 0]"),
    ({"trajectory": [[2, 0]] * 7 + [[2, 0, 0]]}, "trajectory", "leave the field out where fewer are known"),
    ({"trajectory": [[2, 0]] * 7 + [[2, True]]}, "trajectory", "expected 8 way-points"),
    ({"trajectory": [[2, 0]] * 7 + [[2, "0"]]}, "trajectory", "expected 8 way-points"),
    ({"trajectory": [[2, 0]] * 7 + [[2, float("nan")]]}, "trajectory", "expected 8 way-points"),
    ({"trajectory": [[2, 0]] * 7 + [[1001, 0]]}, "trajectory", "at most 1000 m are read"),
    ({"trajectory": {"0.5": [2, 0]}}, "trajectory", "expected 8 way-points"),
    ({"factors": [1]}, "factors", "expected an object of named facts, got [1]"),
    ({"reasonning": "typo"}, "reasonning", "is nearly 'reasoning'; write 'reasoning'"),
    ({"solution": "KEEP, STRAIGHT"}, "solution", "says the same as 'decision'; keep one of them"),
    ({"decision": None}, "decision", "(AlphaDrive: 'solution') is missing; add the plan"),
    ({"speed": None}, "speed", "is missing; give 'prompt'"),
    ({"navigation": None}, "navigation", "is missing; give 'prompt'"),
])
def test_fault_names_file_line_field_value_and_remedy(tmp_path, changes, field, told):
    path = write(tmp_path, json.dumps(OURS) + "\n\n" + json.dumps(OURS | {"id": "b"} | changes) + "\n")
    with pytest.raises(ValueError) as error:
        load_examples(path)
    assert str(error.value).startswith(f"{path}: line 3: field '{field}'")
    assert told in str(error.value)


@pytest.mark.parametrize("changes, told", [
    ({"scene": None}, "both are missing"), ({"image": "x.png"}, "both are given")])
def test_exactly_one_of_picture_and_scene(tmp_path, changes, told):
    with pytest.raises(ValueError, match=f"line 1: fields 'image' and 'scene': {told}"):
        load_examples(write(tmp_path, json.dumps(OURS | changes)))


def test_duplicate_id_names_both_places(tmp_path):
    path = write(tmp_path, json.dumps(OURS) + "\n" + json.dumps(OURS))
    with pytest.raises(ValueError, match=r"line 2: field 'id': 'a' was already used at .*line 1; give every example"):
        load_examples(path)


def test_list_faults_name_the_item(tmp_path):
    with pytest.raises(ValueError, match="some.json: item 1: field 'speed'"):
        load_examples(write(tmp_path, json.dumps([OURS, OURS | {"id": "b", "speed": -2}]), "some.json"))
    with pytest.raises(ValueError, match="item 0: expected an object with named fields, got 3"):
        load_examples(write(tmp_path, "[3]"))


@pytest.mark.parametrize("text, told", [
    ('{"id": "a",\n "speed": 4.2,,\n}', "line 2: not valid JSON"),              # one object over several lines
    (json.dumps(OURS) + '\n{"id": "b", ', "line 2: not valid JSON"),           # a cut-off line
    (json.dumps(OURS) + "\n[1]", "line 2: expected an object with named fields, got \\[1\\]"),
    ("hello", "line 1: not valid JSON"),
    ("[" * 100_000, "line 1: not valid JSON"),
    ('{"speed": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
    ("[]", "the list holds no example"),
    ("  \n ", "the file is empty"),
    ("7", "line 1: expected an object"),
])
def test_malformed_files(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        load_examples(write(tmp_path, text))


def test_bad_records_can_be_left_out(tmp_path):
    """Good ones on lines 2, 7 and 9; ids that come from the place in the file stay what they were."""
    good = {name: value for name, value in OURS.items() if name != "id"}
    lines = ['{"image": "x.png", ', json.dumps(good), "[1]", "", '{"x": "' + "y" * MAX_EXAMPLE_BYTES + '"}', "\udcff",
             json.dumps(good), json.dumps(good | {"speed": -2}), json.dumps(good)]
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    loaded = read_examples(path, leave_out_bad=True)
    examples, faults = loaded.examples, loaded.faults
    assert [read.id for read in examples] == ["some-000001", "some-000005", "some-000007"]       # line 4 is blank
    for fault, words in zip(faults, ["line 1: not valid JSON", "line 3: expected an object", "line 5: more than",
                                     "is not UTF-8", "line 8: field 'speed'"], strict=True):
        assert words in fault
    with pytest.raises(ValueError, match="line 1: not valid JSON"):
        load_examples(path)


def test_items_of_a_list_can_be_left_out(tmp_path):
    path = write(tmp_path, json.dumps([OURS, OURS | {"id": "b", "speed": -2}, OURS | {"id": "c"}]), "some.json")
    loaded = read_examples(path, leave_out_bad=True)
    examples, (fault,) = loaded.examples, loaded.faults
    assert [read.id for read in examples] == [OURS["id"], "c"] and "item 1: field 'speed'" in fault


@pytest.mark.parametrize("text, told", [
    ("[{]", "line 1: not valid JSON"),                       # a broken list cannot be told apart into items
    ('{"id": "a",\n "speed": 4.2,,\n}', "line 1: not valid JSON"), ("7", "line 1: expected an object"),
    ("  \n ", "the file is empty"), ("[]", "the list holds no example")])
def test_a_file_without_a_usable_record_is_refused(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        read_examples(write(tmp_path, text), leave_out_bad=True)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json: no such file"):
        load_examples(tmp_path / "nowhere.json")
    (tmp_path / "latin.json").write_bytes(b'{"id": "\xfc"}')
    with pytest.raises(ValueError, match="latin.json: byte 8 is not UTF-8"):
        load_examples(tmp_path / "latin.json")


@pytest.mark.parametrize("thinking", ["", "  ", "<think> </think>", None])
def test_an_empty_reason_is_no_reason(tmp_path, thinking):
    path = write(tmp_path, json.dumps(OURS | {"reasoning": thinking}) + "\n")
    assert load_examples(path)[0].reasoning is None


@pytest.mark.parametrize(("content", "told"), [
    (b'{"scene": 1, "scene": 2}', "line 1: not valid JSON (the field 'scene' is given twice)"),
    ('{"scene": 1}'.encode("utf-16-le"), "so it is no text, or UTF-16 text without its mark (`iconv -f UTF-16LE"),
    (b"\x80\0\0\xff", "byte 0 is not UTF-8 (line 1); the file holds zero bytes, so it is no text"),
    (b'{"scene": 1,\n"id": "\xfc"}', "byte 20 is not UTF-8 (line 2); save the file as UTF-8"),
    (b'{"data": [{"scene": 1, "solution": "KEEP, STRAIGHT"}]}', "field 'data' holds whole records; write them as a"),
    (b'{"e1": {"scene": 1, "decision": "KEEP, STRAIGHT"}}', "field 'e1' holds whole records; write them as a list")])
def test_files_that_nearly_fit(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_examples(tmp_path / "a.json")
    assert f"{tmp_path / 'a.json'}: " in str(error.value) and told in str(error.value)


def test_a_model_directory_is_no_file_of_examples(tmp_path):
    write(tmp_path, "{}", "config.json")
    with pytest.raises(ValueError, match=r"is a model directory \(--model\); give a file of examples"):
        load_examples(tmp_path)


def test_own_fields_are_kept_and_written_again(tmp_path):
    path = write(tmp_path, json.dumps(OURS | {"limit": 30, "lanes": {"left": None}}) + "\n")
    loaded = read_examples(path)
    (example,) = loaded.examples
    assert example.extra == {"limit": 30, "lanes": {"left": None}}
    assert "1 of 1 examples: field 'limit' is unknown and kept for rewards (extra)" in loaded.lines()
    write_examples([example], tmp_path / "again.jsonl")
    assert load_examples(tmp_path / "again.jsonl") == [example]
    assert "other fields, kept for rewards (extra): limit 1 (100.0 %); lanes 1 (100.0 %)" in datasheet([example])


def test_own_fields_belong_to_the_data_of_a_run(tmp_path):
    one, two, plain = (load_examples(write(tmp_path, json.dumps(OURS | more) + "\n"))
                       for more in ({"limit": 30}, {"limit": 50}, {}))
    assert len({data_sign(examples) for examples in (one, two, plain)}) == 3
    assert plain[0].extra == {}


@pytest.mark.parametrize(("name", "told"), [
    ("Speed", "is nearly 'speed'"), ("reasonings", "is nearly 'reasoning'"), ("", "a name is one line"),
    ("a\nb", "a name is one line"), ("n" * 5000, "at most 4,096 characters")])
def test_own_fields_have_safe_names_of_their_own(tmp_path, name, told):
    with pytest.raises(ValueError, match=told):
        load_examples(write(tmp_path, json.dumps(OURS | {name: 1}) + "\n"))


def test_kinds_of_notes_are_cut(tmp_path):
    loaded = read_examples(write(tmp_path, json.dumps(OURS | {f"own_{i}": i for i in range(30)}) + "\n"))
    assert len(loaded.lines()) == 21 and loaded.lines()[-1] == "10 more kinds of notes"


def test_files_that_were_joined(tmp_path):
    """The mark of UTF-8 stands at the start of each of them."""
    line = json.dumps({"scene": 1, "prompt": "?", "decision": "KEEP, STRAIGHT"})
    (tmp_path / "all.jsonl").write_text(f"\ufeff{line}\n\ufeff{line}\n\ufeff\n", encoding="utf-8")
    assert len(load_examples(tmp_path / "all.jsonl")) == 2
