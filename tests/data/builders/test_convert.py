"""Data of other programs become examples: every form, labels, tables, splits, and what is said about bad records."""
import json

import pytest
from PIL import Image

from data.builders.convert import main, read_labels, read_shares, table_rows, with_splits
from data.builders.foreign import as_record, with_plan
from data.example import Example
from data.files import load_examples
from data.splits import clip_of
from rewards import Decision
from rewards.action_file import read_actions
from rewards.actions import ALPHADRIVE

ANSWER = "<think> The light is red. </think> <answer> STOP, STRAIGHT </answer>"
OURS = {"image": "a.png", "problem": "<image>\nYour plan?", "solution": ANSWER}


def picture(path, colour="grey"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 28), colour).save(path)


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def example(name, image=None, **changes):
    facts = {"scene": None if image else int(name), "prompt": "?", "decision": Decision("KEEP", "STRAIGHT")} | changes
    return Example(id=name, image=image, **facts)


# ---------------------------------------------------------------- forms

TURNS = [{"role": "user", "content": "<image>\nYour plan?"}, {"role": "assistant", "content": ANSWER}]


@pytest.mark.parametrize("foreign", [
    OURS,
    {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nYour plan?"},     # LLaVA, ShareGPT
                                         {"from": "gpt", "value": ANSWER}]},
    {"images": ["a.png"], "messages": TURNS},                                   # ms-swift, LLaMA-Factory
    {"images": "a.png", "messages": TURNS},
    {"images": [{"bytes": None, "path": "a.png"}], "messages": TURNS, "history": []},           # ms-swift
    {"images": ["a.png"], "messages": TURNS[:1], "solution": ANSWER},           # ms-swift for GRPO
    {"images": ["a.png"], "query": "<image>\nYour plan?", "response": ANSWER, "history": None},
    {"images": ["a.png"], "conversation": [{"human": "<image>\nYour plan?", "assistant": ANSWER}]},
    {"images": ["a.png"], "instruction": "<image>", "input": "Your plan?", "output": ANSWER},   # LLaMA-Factory
    OURS | {"conversations": [], "messages": [], "videos": [], "video": ""},
    {"image": "a.png", "question": "<image>\nYour plan?", "answer": ANSWER + "<|im_end|>"},
])
def test_every_form_is_the_same_record(foreign):
    assert as_record(foreign, "here", {}, {}) == (OURS, [])


def test_parts_of_openai_and_the_marks_of_qwen_vl():
    parts = [{"type": "image_url", "image_url": {"url": "file:///x/a.png"}}, {"type": "text", "text": "Your plan?"}]
    chat = [{"role": "system", "content": "Drive."}, {"role": "user", "content": parts}, TURNS[1]]
    record, notes = as_record({"messages": chat}, "here", {}, {})
    assert record == {**OURS, "image": "/x/a.png", "problem": "Your plan?"}
    assert notes == ["a system prompt was left out; the model is given its own"]
    marked = {"query": "Picture 1: <img>a.png</img>\nYour plan?", "response": ANSWER}
    assert as_record(marked, "here", {}, {}) == (OURS, [])


def test_own_fields_stay_and_renamed_ones_are_ours():
    foreign = {"img": "a.png", "q": "Your plan?", "label": "keep, straight", "output": {"a": 1}, "speed": 4}
    foreign |= {"answer": "Keep, straight.", "solution": None}      # it says the same, so it is a field of the user's
    record, _ = as_record(foreign, "here", {"img": "image", "q": "prompt", "label": "decision"}, {})
    assert record == {"image": "a.png", "prompt": "Your plan?", "decision": "keep, straight", "output": {"a": 1},
                      "speed": 4, "answer": "Keep, straight."}


@pytest.mark.parametrize(("foreign", "told"), [
    ([1], r"here: expected an object with named fields, got \[1\]"),
    ({"messages": [*TURNS, *TURNS]}, "field 'messages': its turns are user, assistant, user, assistant; an example is"),
    ({"messages": "Go"}, "field 'messages': expected a list of turns"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "turn 0: who speaks is 'tool'; known in 'role' or 'from' are"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of a turn is {'type': 'audio'}; known"),
    ({"query": "x", "response": ANSWER, "history": [["a", "b"]]}, "field 'history': earlier rounds, "),
    ({"data": [OURS]}, "field 'data' holds whole records; write them as a list"),
    ({"messages": TURNS, "decision": "STOP, STRAIGHT"}, "the chat and the field 'decision' both give the solution"),
    ({"messages": TURNS, "conversations": TURNS}, "'conversations' and 'messages' are two chats; keep one of them"),
    ({"image": {"0": "a"}, "label": {"0": "Go"}}, "a table by columns; .*orient='records', lines=True"),
    ({"scene1": {"key_frames": {}}}, "field 'scene1' holds a whole scene; write one record per question"),
    ({"question": "Plan?", "answer": "Go", "decision": "STOP, STRAIGHT"},
     "the fields 'decision' and 'answer' both give the solution; keep one, or --rename answer=other_answer"),
    ({"question": "Plan?", "response": "Go", "answer": "Stop"}, "'response' and 'answer' both give the solution"),
    ({"question": "Plan?", "query": "Where?", "answer": "Go"}, "'query' and 'question' both give the problem"),
    ({"question": "Plan?", "prompt": "Where?", "answer": "Go"}, "'prompt' and 'question' both give the problem"),
    ({"messages": [TURNS[0], TURNS[1] | {"thinking": "a", "reasoning": "b"}]}, "two reasons, 'a' and 'b'; keep one"),
    ({"messages": [TURNS[0], TURNS[1] | {"reasoning": "a"}], "thinking": "b"}, "'thinking' both give the thinking"),
    ({"file_name": "a.png", "text": "STOP, STRAIGHT"},
     "field 'decision', the plan, is missing; the record has 'file_name', 'text'; if one .* --rename THEIRS=decision"),
    ({"file_name": "a.png", "decision": "STOP, STRAIGHT"}, "'image', the picture, is missing; .*--rename THEIRS=image"),
    ({"image": "a.png", "scene": "scene-0061", "decision": "STOP, STRAIGHT"}, "--rename scene=scene_name"),
])
def test_what_is_no_question_with_its_answer(foreign, told):
    with pytest.raises(ValueError, match=told):
        as_record(foreign, "here", {}, {})


def test_reasons_beside_an_answer_and_other_keys_of_a_turn():
    for name in ("reasoning_content", "reasoning", "thinking"):
        turn = {"role": "Assistant", "content": "STOP, STRAIGHT", name: "Red.", "loss": True, "tool_calls": None}
        developer = {"role": "developer", "content": "Drive."}
        record, notes = as_record({"image": "a.png", "messages": [developer, TURNS[0], turn]}, "here", {}, {})
        assert record == OURS | {"solution": "STOP, STRAIGHT", "thinking": "Red."}
        assert notes == ["a system prompt was left out; the model is given its own", "'loss' of a turn was left out"]


def part(picture=None, **more):
    return {"type": "image", **({"image": picture} if picture else {}), **more}


def text(words):
    return {"type": "text", "text": words, "index": None}


def chat(*parts, answer=ANSWER):
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("foreign", [
    {"image": "a.png", "messages": chat(part("a.png"), text("Your plan?"))},
    {"image": "a.png", "messages": chat(text("Your plan?"), part())},           # the part is a mark without a path
    {"image": "a.png", "messages": chat(part(index=0), text("Your plan?"), text(" "))},
    {"image": {"path": "a.png", "bytes": None}, "problem": "Your plan?", "solution": ANSWER},
    {"images": {"image": "a.png"}, "problem": "Your plan?", "solution": ANSWER},
    {"image": "a.png", "query": "Picture 1: <img>a.png</img>\nYour plan?", "response": ANSWER}])
def test_the_one_picture_of_a_record(foreign):
    record, notes = as_record(foreign, "here", {}, {})
    assert record | {"problem": "Your plan?"} == OURS | {"problem": "Your plan?"} and notes == []


@pytest.mark.parametrize(("foreign", "told"), [
    ({"image": "a.png", "messages": chat(part("b.png"), text("Plan?"))},
     r"the record's pictures are \['a.png'\] and those of the chat \['b.png'\]; give them once, in one order"),
    ({"images": ["b.png", "a.png"], "messages": chat(part("a.png"), part("b.png"), text("Plan?"))}, "in one order"),
    ({"image": "a.png", "query": "<img>b.png</img>Plan?", "response": ANSWER}, "and those of the question"),
    ({"images": ["a", "b"], "messages": chat(part(index=1), part(index=0), text("Plan?"))},
     "field 'messages': picture 0 of a turn has the index 1; list the pictures in the order of the turn"),
    ({"messages": chat(part("a.png"), text("Plan?"), answer=[part("b.png"), text(ANSWER)])},
     "a picture in the turn of the assistant; an answer is text alone"),
    ({"images": ["a", "b"], "messages": chat(text("front:"), part(), text("left:"), part(), text("Plan?"))},
     "a picture between texts; move all pictures before the question"),
    ({"images": ["a", "b"], "messages": chat(part(), text("and"), part())}, "a picture between texts")])
def test_pictures_that_would_be_lost_or_swapped(foreign, told):
    with pytest.raises(ValueError, match=told):
        as_record(foreign, "here", {}, {})


def test_cameras_may_have_any_name():
    foreign = {"images": {"image": "a.png", "image2": "b.png"}, "problem": "Your plan?", "solution": ANSWER}
    record, _ = as_record(foreign, "here", {}, {})
    assert (record["images"], record["cameras"]) == (["a.png", "b.png"], ["image", "image2"])


@pytest.mark.parametrize("given", [
    {"image": {"bytes": "iVBO", "path": "a.png"}}, {"images": [{"bytes": "iVBO", "path": "a.png"}, "b.png"]},
    {"image": {"image": "a.png", "image2": "b.png"}}])
def test_a_picture_inside_a_record_is_refused(tmp_path, given, capsys):
    source = write(tmp_path / "in.json", [given | {"problem": "Plan?", "solution": ANSWER}])
    with pytest.raises(SystemExit, match="nothing was written"):
        main([str(source), str(tmp_path / "out.jsonl")])
    assert "expected one path, got {" in capsys.readouterr().out


@pytest.mark.parametrize(("path", "plain"), [
    ("file:///x/my%20pic.png", "/x/my pic.png"), ("file://localhost/x.png", "/x.png"), ("100%25.png", "100%25.png")])
def test_addresses_of_files_are_paths(path, plain):
    assert as_record(OURS | {"image": path}, "here", {}, {})[0]["image"] == plain


@pytest.mark.parametrize(("name", "divisor"), [("speed_kmh", "3.6"), ("speed (km/h)", "3.6"), ("KPH", "3.6"),
                                               ("speed_mph", "2.237"), ("speed_km_per_hour", "3.6"),
                                               ("speedKmPerHour", "3.6"), ("speed_kn", "1.944"), ("speed_kts", "1.944"),
                                               ("speedKts", "1.944"), ("speed_fps", "3.281"), ("speed_cm_s", "100")])
def test_a_unit_in_the_name_of_the_speed_is_not_ignored(name, divisor):
    with pytest.raises(ValueError, match=f"'speed.*' is in m/s; divide .* by {divisor}"):
        as_record({**OURS, name: 36}, "here", {name: "speed"}, {})
    for own in ("v_ms", "left_speed", "speed_mps", "knob_speed"):
        assert as_record({**OURS, own: 10}, "here", {own: "speed"}, {})[0]["speed"] == 10


# ---------------------------------------------------------------- labels

@pytest.mark.parametrize(("answer", "wanted"), [
    ("Go  straight.", "KEEP, STRAIGHT"),
    ("<answer> go straight </answer>", "<answer> KEEP, STRAIGHT </answer>"),
    ("<ANSWER> go straight </ANSWER>", "<answer> KEEP, STRAIGHT </answer>"),
    ("<think> Free. </think> Go straight", "<think> Free. </think> KEEP, STRAIGHT"),
    ("<thinking> Free. </thinking> Go straight", "<think> Free. </think> KEEP, STRAIGHT"),
    ("<think> I go straight </think><answer>GO STRAIGHT</answer><|im_end|>",
     "<think> I go straight </think><answer> KEEP, STRAIGHT </answer>"),
    ("STOP, STRAIGHT", "STOP, STRAIGHT"),
])
def test_labels_become_plans(answer, wanted):
    assert with_plan(answer, "here", {"go straight": "KEEP, STRAIGHT"}) == wanted


@pytest.mark.parametrize("given", [
    {"images": {"front": "a.png", "left": "b.png"}}, {"images": ["a.png", "b.png"], "cameras": ["front", "left"]}])
def test_several_cameras_stay(tmp_path, given):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    main([str(write(tmp_path / "in.json", [given | {"problem": "Your plan?", "solution": ANSWER}])),
          str(tmp_path / "out.jsonl")])
    (example,) = load_examples(tmp_path / "out.jsonl")
    assert example.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert example.cameras == ("front", "left")


def test_unknown_labels_are_counted_and_nothing_is_written(tmp_path, capsys):
    picture(tmp_path / "a.png")
    source = write(tmp_path / "in.json", [{**OURS, "solution": label} for label in ("Halt", "Wait", "Halt", ANSWER)])
    with pytest.raises(SystemExit, match="nothing was written: 3 of 4 records .* cannot be used; --on-bad-data skip"):
        main([str(source), str(tmp_path / "out.jsonl")])
    told = capsys.readouterr().out
    assert "labels that are not plans: 2, in 3 records" in told and "- 2 times: --map 'Halt=SPEED, PATH'" in told
    assert "in.json: item 0: field 'solution': 'Halt' is not a plan" in told
    assert not (tmp_path / "out.jsonl").exists()
    main([str(source), str(tmp_path / "out.jsonl"), "--map", "halt=stop, straight", "--on-bad-data", "skip"])
    assert [str(one.decision) for one in load_examples(tmp_path / "out.jsonl")] == ["STOP, STRAIGHT"] * 3
    with pytest.raises(SystemExit, match="--map 'Halt': 'WAIT' is not a plan"):
        main([str(source), str(tmp_path / "out.jsonl"), "--map", "Halt=WAIT"])


def test_labels_may_be_numbers():
    foreign = {"image": "a.png", "problem": "?", "label": 1, "acceptable": [1, 0]}
    record, _ = as_record(foreign, "here", {"label": "decision"}, {"1": "KEEP, STRAIGHT", "0": "STOP, STRAIGHT"})
    assert (record["decision"], record["acceptable"]) == ("KEEP, STRAIGHT", ["KEEP, STRAIGHT", "STOP, STRAIGHT"])
    with pytest.raises(ValueError, match="'1' is not a plan; say what it means: --map '1=SPEED, PATH'"):
        as_record(foreign, "here", {"label": "decision"}, {})


def test_accents_in_either_form_of_unicode_are_one(tmp_path):
    """macOS writes an accent as a character of its own (e, then U+0301), other systems one character (U+00E9)."""
    for whole, apart in (("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")):
        source = write(tmp_path / "in.csv", f"sc{whole}ne,image,prompt\narr{whole}t,a.png,?\n")
        main([str(source), str(tmp_path / "out.jsonl"), "--rename", f"sc{apart}ne=decision", "--map",
              f"Arr{apart}t=STOP, STRAIGHT", "--overwrite", "--no-pictures"])
        assert str(load_examples(tmp_path / "out.jsonl")[0].decision) == "STOP, STRAIGHT"
        source = write(tmp_path / "in.json", [OURS | {f"s{whole}q": str(i)} for i in range(6)])
        main([str(source), str(tmp_path / "out.jsonl"), "--split", "0.5/0.25/0.25", "--clip", f"s{apart}q",
              "--overwrite", "--no-pictures"])
    record, _ = as_record({"sce\u0301ne": "Go", "scene": 1}, "x", {"sc\u00e9ne": "decision"}, {"go": "KEEP, STRAIGHT"})
    assert record["decision"] == "KEEP, STRAIGHT"


def test_an_empty_label_is_not_offered_to_map(tmp_path, capsys):
    source = write(tmp_path / "in.json", [OURS | {"solution": "<think> Red. </think> <answer> </answer>"}])
    with pytest.raises(SystemExit, match="nothing was written"):
        main([str(source), str(tmp_path / "out.jsonl")])
    told = capsys.readouterr().out
    assert "'' is not a plan; give the plan in an <answer> block" in told and "\n- 1 times: ''" in told
    assert "--map" not in told.replace("label for --map", "")


@pytest.mark.parametrize("flag", [["--clip", "drive"], ["--seed", "0"]])
def test_flags_of_a_division_need_one(tmp_path, flag):
    source = write(tmp_path / "in.json", [OURS])
    with pytest.raises(SystemExit, match="--clip and --seed are of --split: add --split"):
        main([str(source), str(tmp_path / "out.jsonl"), *flag])


def test_two_meanings_of_one_label_are_refused(tmp_path):
    flags = ["--map", "Go=KEEP, STRAIGHT", "--map", "go.=STOP, STRAIGHT"]
    with pytest.raises(SystemExit, match="--map 'go.' and --map 'Go' are one label, with the meanings STOP, STRAIGHT "
                                         "and KEEP, STRAIGHT; keep one"):
        main([str(write(tmp_path / "in.json", [OURS])), str(tmp_path / "out.jsonl"), *flags])
    assert read_labels(["Go=KEEP, STRAIGHT", "go.=keep, straight"], ALPHADRIVE) == {"go": "KEEP, STRAIGHT"}


def test_labels_become_plans_of_own_actions(tmp_path, capsys):
    picture(tmp_path / "a.png")
    lists = write(tmp_path / "mine.json", {"speeds": ["GO", "HALT"], "paths": ["AHEAD", "BACK"]})
    source = write(tmp_path / "in.json", [{**OURS, "solution": label} for label in ("halt, ahead", "reverse")])
    main([str(source), str(tmp_path / "out.jsonl"), "--actions", str(lists), "--map", "Reverse=GO, BACK"])
    own = read_actions(lists)
    assert [str(one.decision) for one in load_examples(tmp_path / "out.jsonl", actions=own)] == [
        "HALT, AHEAD", "GO, BACK"]
    assert capsys.readouterr().out.rstrip().endswith(f"--actions {lists} --reasoning off")


# ---------------------------------------------------------------- tables

def test_a_table(tmp_path):
    picture(tmp_path / "a.png")
    source = write(tmp_path / "in.csv", "\ufeffid;image;speed;navigation;label;limit;acceptable\r\n"
                   "007;a.png;4.2;{'100m': 'Straight'};\"Go, straight\";13.9;\r\n\r\n"
                   "008;a.png;0;Turn left;stop, straight;;\"[\"\"STOP, STRAIGHT\"\"]\"\r\n")
    main([str(source), str(tmp_path / "out.jsonl"), "--rename", "label=decision",
          "--map", "Go, straight=KEEP, STRAIGHT"])
    first, second = load_examples(tmp_path / "out.jsonl")
    assert (first.id, first.speed, first.navigation) == ("007", 4.2, {"100m": "Straight"})
    assert (str(first.decision), first.extra) == ("KEEP, STRAIGHT", {"limit": 13.9})
    assert (second.id, second.extra, second.acceptable) == ("008", {}, (Decision("STOP", "STRAIGHT"),))


def rows_of(tmp_path, text):
    (tmp_path / "in.csv").write_bytes(text.encode())
    return [(where.rpartition(" ")[2], record) for where, record in table_rows(tmp_path / "in.csv", {})]


@pytest.mark.parametrize("blank", ["\u2028", "\x85", "\v", "\f", "\x1c"])
def test_only_line_feeds_end_a_line_of_a_table(tmp_path, blank):
    assert rows_of(tmp_path, f"image,note\na.png,so{blank}far\n") == [
        ("2", {"image": "a.png", "note": f"so{blank}far"})]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_is_named_by_its_first_line(tmp_path, end):
    found = rows_of(tmp_path, end.join(["image,note", 'a,"one', 'two"', "", "b,three", ""]))
    assert found == [("2", {"image": "a", "note": f"one{end}two"}), ("5", {"image": "b", "note": "three"})]


def test_a_plan_without_quotes_is_not_two_cells(tmp_path):
    """Its path would be read as the reason, and the label offered for --map would be the speed alone."""
    ((_, found),) = rows_of(tmp_path, "image,decision,reasoning\na.jpg,STOP, LEFT_TURN\n")
    assert isinstance(found, ValueError) and "STOP and LEFT_TURN stand in two cells" in str(found)
    ((_, found),) = table_rows(tmp_path / "in.csv", {}, labels={"STOP": "STOP, STRAIGHT"})
    assert found == {"image": "a.jpg", "decision": "STOP", "reasoning": "LEFT_TURN"}
    ((_, found),) = rows_of(tmp_path, "image,label,way\na.jpg,STOP,LEFT_TURN\n")                 # not the plan's column
    assert found == {"image": "a.jpg", "label": "STOP", "way": "LEFT_TURN"}


@pytest.mark.parametrize("empty", ["nan", "NaN", "None", "NULL", "null", " "])
def test_empty_cells_as_pandas_and_others_write_them(tmp_path, empty):
    assert rows_of(tmp_path, f"image,reasoning,weather\na,{empty},{empty}\n") == [("2", {"image": "a"})]


@pytest.mark.parametrize(("text", "record"), [
    (",image\n0,a\n", {"column 1": 0, "image": "a"}),                           # the index that pandas writes
    ("image,decision,\na,Go,\n", {"image": "a", "decision": "Go"}),
    ('image, decision\na, "Go, now"\n', {"image": "a", "decision": "Go, now"})])
def test_tables_as_other_programs_write_them(tmp_path, text, record):
    assert rows_of(tmp_path, text) == [("2", record)]


@pytest.mark.parametrize(("cell", "value"), [
    ("True", True), ("FALSE", False), (" true ", True), ("None of them", "None of them"), ("1_000", "1_000"),
    ("\"['a', 'b']\"", ["a", "b"]), ("\"{'x': (1, None)}\"", {"x": [1, None]}), ("\"{1, 2}\"", "{1, 2}"),
    ("['a'", "['a'"), ("'a'", "'a'"), ("[" * 3000, "[" * 3000), (f"['{'a' * 3000}']", f"['{'a' * 3000}']")])
def test_values_as_python_and_excel_write_them(tmp_path, cell, value):
    ((_, found),) = rows_of(tmp_path, f"image,own\na,{cell}\n")
    assert found == {"image": "a", "own": value} and type(found["own"]) is type(value)


def test_lists_of_pictures_and_plans_as_pandas_writes_them(tmp_path):
    ((_, found),) = rows_of(tmp_path, "images,acceptable,id\n\"['p/0.jpg', 'p/1.jpg']\",['STOP STRAIGHT'],True\n")
    assert found == {"images": ["p/0.jpg", "p/1.jpg"], "acceptable": ["STOP STRAIGHT"], "id": "True"}


def test_the_separator_that_excel_names(tmp_path):
    assert rows_of(tmp_path, "sep=;\r\nimage;note\r\na;x,y\r\n") == [("3", {"image": "a", "note": "x,y"})]
    assert rows_of(tmp_path, "sep=,\nimage,note\na;b;c,x\n") == [("3", {"image": "a;b;c", "note": "x"})]


def test_the_separator_is_the_most_frequent_one_of_the_names(tmp_path):
    assert rows_of(tmp_path, "image|note\na|x,y\n") == [("2", {"image": "a", "note": "x,y"})]


def test_a_cell_may_be_as_long_as_an_example(tmp_path):
    assert rows_of(tmp_path, f"image,note\na,{'x' * 200_000}\n")[0][1]["note"] == "x" * 200_000


@pytest.mark.parametrize(("text", "told"), [
    ("image,image\na,b\n", "line 1: expected a different name for every column"),
    (",,\na,b,c\n", "line 1: expected the names of the columns"),
    ("image,label\na,b\n\"a,b\n", "line 3: not valid CSV"),
    ("sep=;\nimage;label\n\"a;b\n", "line 3: not valid CSV"),
    ("image,label\na.png,\"" + "x" * 1_100_000 + "\"\n", "line 2: not valid CSV .field larger than field limit"),
])
def test_tables_that_cannot_be_read(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        list(table_rows(write(tmp_path / "in.csv", text), {}))


@pytest.mark.parametrize(("row", "told"), [
    ("a.png,STOP, STRAIGHT", "in.csv: line 2: 3 cells under 2 names; quote cells"),
    ("a.png,{'100m'", "in.csv: line 2: navigation \"{'100m'\" opens a dictionary but is not one")])
def test_a_row_that_cannot_be_read_is_named(tmp_path, row, told):
    (_, fault), (where, record) = table_rows(write(tmp_path / "in.csv", f"image,navigation\n{row}\nb.png,left"), {})
    assert isinstance(fault, ValueError) and told in str(fault)
    assert (where[-6:], record) == ("line 3", {"image": "b.png", "navigation": "left"})


# ---------------------------------------------------------------- splits

def test_division_keeps_pictures_and_clips_together(tmp_path):
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue"), ("d", "green")):
        picture(tmp_path / f"{name}.png", colour)
    clips = {"a": 1, "b": 2, "c": 2, "d": 3}                # a and b are one picture, b and c one clip
    examples = [example(name, str(tmp_path / f"{name}.png"), extra={"clip_id": clip}) for name, clip in clips.items()]
    for seed in range(5):
        a, b, c, d = with_splits(examples, {"train": 3, "val": 1}, "", seed)
        assert (a.split, b.split, c.split, d.split) == ("train", "train", "train", "val")


def test_division_by_ratio_and_seed():
    examples = [example(str(number)) for number in range(20)]
    divided = [[one.split for one in with_splits(examples, read_shares("80/10/10"), "", seed)] for seed in (0, 0, 1)]
    assert [divided[0].count(name) for name in ("train", "val", "test")] == [16, 2, 2]
    assert divided[0] == divided[1] != divided[2]
    with pytest.raises(ValueError, match="--clip drive: no record has this field"):
        with_splits(examples, {"train": 1, "val": 1}, "drive", 0)


def test_clips_that_look_like_numbers_keep_their_names(tmp_path):
    source = write(tmp_path / "in.csv", "clip,drive,limit,image\n1e5,3e7,1e2,a\n100000,30000000,2.5,a\nabc,1,007,a\n")
    rows = [record for _, record in table_rows(source, {})]
    assert [row["clip"] for row in rows] == ["1e5", "100000", "abc"]
    assert [row["drive"] for row in rows] == ["3e7", "30000000", "1"]
    assert [row["limit"] for row in rows] == ["1e2", 2.5, "007"]                # only plain numbers are numbers


def test_a_clip_is_one_as_whole_number_and_as_float():
    """pandas writes 1 as 1.0 in a column with gaps."""
    found = [clip_of(example("0", extra={"clip": clip})) for clip in (1, 1.0, 1.5, "1", float("1e22"))]
    assert found == ["clip=1", "clip=1", "clip=1.5", "clip=1", "clip=10000000000000000000000"]
    assert clip_of(example("0", extra={"clip": None, "log": 2.0})) == "log=2"


@pytest.mark.parametrize("text", ["1", "0.8/x", "0.8/-0.2", "1/1/1/1", "nan/1"])
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match="give shares above 0 of train and val"):
        read_shares(text)


# ---------------------------------------------------------------- places and files

def test_pictures_stay_and_the_command_says_where(tmp_path, capsys):
    picture(tmp_path / "data/a.png")
    source = write(tmp_path / "data/in.json", [OURS])
    main([str(source), str(tmp_path / "other/out.jsonl")])
    assert json.loads((tmp_path / "other/out.jsonl").read_text())["image"] == "../data/a.png"
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == (f"To train on it:  python train.py --stage sft --data {tmp_path}/other/out.jsonl "
                    f"--image-root {tmp_path}/data")
    assert load_examples(tmp_path / "other/out.jsonl", tmp_path / "data")[0].image == str(tmp_path / "data/a.png")


def test_the_division_says_what_a_clip_is(tmp_path, capsys):
    picture(tmp_path / "a.png")
    source, out = write(tmp_path / "in.json", [{**OURS, "sequence": 7, "split": "dev"}, OURS]), tmp_path / "out.jsonl"
    main([str(source), str(out), "--split", "1/1"])
    told = capsys.readouterr().out
    assert "1 clips in 1 of 2 examples, such as sequence=7" in told and "1 records named a split, which" in told
    assert "warning: the split val is empty" in told        # both examples have one picture
    assert "warning: 1 of 2 examples name no clip, so pictures of one recording may be in two splits" in told
    main([str(source), str(out), "--split", "1/1", "--clip", "folder", "--overwrite"])
    assert f"1 clips in 2 of 2 examples, such as {tmp_path}" in capsys.readouterr().out
    write(source, [OURS])
    main([str(source), str(out), "--split", "1/1", "--overwrite"])
    assert "no field names the clip of a picture" in capsys.readouterr().out


@pytest.mark.parametrize(("splits", "told"), [
    (("testing", "training"), "out.jsonl"), (("Test", "Train"), "out.jsonl"), (("test", "Validation"), "--split NAME"),
    (("sft", "test"), "--split NAME")])
def test_the_command_trains_on_no_test_split(tmp_path, capsys, splits, told):
    picture(tmp_path / "a.png")
    source = write(tmp_path / "in.json", [OURS | {"split": name} for name in splits])
    main([str(source), str(tmp_path / "out.jsonl")])
    *_, before, last = capsys.readouterr().out.splitlines()
    assert last.endswith(told)
    named = f"no split is called train; put the one to train on in place of NAME: {', '.join(sorted(splits))}"
    assert (before == named) == last.endswith("NAME")


def test_splits_that_only_some_records_name(tmp_path):
    picture(tmp_path / "a.png")
    source, out = write(tmp_path / "in.json", [OURS | {"split": " train "}, OURS | {"id": "b"}]), tmp_path / "out.jsonl"
    with pytest.raises(SystemExit, match="nothing was written: 1 of 2 records name no split, first 'b', .* --split 0"):
        main([str(source), str(out)])
    assert not out.exists()
    main([str(source), str(out), "--split", "1/1"])
    main([str(write(source, [OURS | {"split": " train "}])), str(out), "--overwrite"])
    assert load_examples(out)[0].split == "train"


def test_broken_pictures_are_told_after_writing(tmp_path, capsys):
    write(tmp_path / "a.png", "no picture")
    with pytest.raises(SystemExit) as ended:
        main([str(write(tmp_path / "in.json", [OURS])), str(tmp_path / "out.jsonl")])
    told = capsys.readouterr().out
    assert ended.value.code == 1 and "broken pictures: 1" in told and told.endswith("out.jsonl --on-bad-data skip\n")


def test_renamed_fields_and_translated_labels_are_counted(tmp_path, capsys):
    picture(tmp_path / "a.png")
    flags = ["--rename", "img=image", "--rename", "problem=prompt", "--map", "Go=KEEP, STRAIGHT", "--map", "Halt=STOP, "
             "STRAIGHT"]
    records = [OURS | {"solution": "go.", "acceptable": ["Go", "STOP, STRAIGHT"]}, OURS]
    main([str(write(tmp_path / "in.json", records)), str(tmp_path / "out.jsonl"), *flags])
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "0 records: field 'img' was read as 'image'", "2 records: field 'problem' was read as 'prompt'",
        "1 records: label 'go' was read as 'KEEP, STRAIGHT'", "0 records: label 'halt' was read as 'STOP, STRAIGHT'"]


def test_an_existing_output_is_kept(tmp_path):
    source = write(tmp_path / "in.json", [OURS])
    with pytest.raises(SystemExit, match="is IN itself"):
        main([str(source), str(source), "--overwrite"])
    write(tmp_path / "out.jsonl", "mine")
    with pytest.raises(SystemExit, match="exists; give another name for OUT, or --overwrite"):
        main([str(source), str(tmp_path / "out.jsonl")])
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_a_picture_that_is_named_twice_is_one():
    record, _ = as_record({"image": "a.png", "images": ["a.png"], "messages": TURNS}, "here", {}, {})
    assert record == OURS
    record, _ = as_record({"image": "b.png", "images": ["a.png"], "messages": TURNS}, "here", {}, {})
    assert record["images"] == ["a.png", "b.png"]


def test_renaming_ignores_nulls_and_loses_nothing():
    chat = {"messages": TURNS}
    assert as_record({**chat, "img": "a.png", "image": None}, "here", {"img": "image"}, {})[0] == OURS
    swapped = {"picture": "a.png", "image": "own"}          # image is a field of theirs, which makes room
    record, _ = as_record({**chat, **swapped}, "here", {"picture": "image", "image": "note"}, {})
    assert record == {**OURS, "note": "own"}
    with pytest.raises(ValueError, match="--rename would write 'image' twice"):
        as_record({**chat, "front": "a.png", "left": "b.png"}, "here", {"front": "image", "left": "image"}, {})
