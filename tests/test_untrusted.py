"""A model directory, a data file or a completion from a stranger can fail, but cannot run code, leave its folder, fill
the memory unseen or drive the terminal. Every refusal is a ValueError that names the file and the value."""

import contextlib
import json
import os
import random
import re
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import train
from benchmarks import fuzz
from data import Example, load_examples
from data.builders.review import Judged, article
from data.dataset import open_image
from data.example import printable
from data.fields import parse_navigation
from data.files import MAX_EXAMPLE_BYTES, write_examples
from eval import main as evaluate
from evaluation.page.markup import details, join, tag
from grpo.engine.checkpoint import load_policy, save_policy
from grpo.engine.prompts import PromptSettings
from models import Qwen2VLConfig, load_model, load_processor, save_model
from models.config import PRESETS
from models.files import MAX_JSON_BYTES
from models.processor import Processor, fit_config, save_processor
from models.qwen2_vl import new_model
from models.tokenizer import MAX_TOKENIZER_BYTES
from models.weights import MAX_HEADER_BYTES, header_shapes, shard_names
from rewards import Decision, planning_rewards

ROOT = Path(__file__).resolve().parent.parent
OURS = {"id": "a", "image": "front.png", "speed": 4.2, "navigation": "Straight", "decision": "STOP, STRAIGHT"}
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>\x1b[2J'


def sparse(path, start, size):
    """A file that claims `size` bytes and takes up none."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)
    return path


# ---------------------------------------------------------------- completions

def test_no_string_raises_or_takes_more_than_linear_time():
    record = fuzz.fuzz(20_000, 25, seed=1)
    assert record["faults"] == 0, record["first_faults"]
    assert record["strings"] >= 20_000 and record["families"] == 25
    # the generator reaches every verdict: about 1 in 8 has a plan, 1 in 4 an action, 1 in 10 the whole format
    assert record["with_a_plan"] > 1500 and record["with_actions"] > 3000 and record["in_format"] > 1000
    assert record["with_waypoints"] > 100


@pytest.mark.parametrize(("name", "broken"), [
    ("parse_plan", lambda text: text.encode("ascii") and None),                 # raises outside of ASCII
    ("find_actions", lambda text: (("KEEP", "KEEP"), ())),
    ("follows_format", lambda text, reasoning=True: text.endswith(">")),
    ("parse_waypoints", lambda text: [(len(text), 0.0)] * 8 if "<trajectory>" in text else None),
    ("planning_rewards", lambda texts, *_: [(1.1, 0.0, 0.0)] * len(texts)),
    ("planning_rewards", lambda texts, *_: [(0.1 * i, 0.0, 0.0) for i in range(len(texts))]),
])
def test_the_fuzzer_notices(monkeypatch, name, broken):
    monkeypatch.setattr(fuzz, name, broken)
    assert fuzz.fuzz(200, 0, seed=0)["faults"] > 0


def test_the_fuzzer_notices_quadratic_time(monkeypatch):
    pattern = re.compile(r"(?s)<think>.*?</think>")                         # searches the rest from every tag
    monkeypatch.setattr(fuzz, "planning_rewards", lambda texts, *_, **__: [pattern.search(text) for text in texts])
    assert fuzz.growth("", "<think><answer>", "", "", size=500) > 60            # 16 times the length: 256 times as long
    monkeypatch.undo()
    assert fuzz.growth("", "<think><answer>", "", "") < 40


def test_printable_by_hand():
    assert printable("STOP\tnow\n") == "STOP\tnow\n"
    assert printable("\x1b[2J\r\x07") == "\\x1b[2J\\r\\x07"
    assert printable("\x9b31m\x7f\x00") == "\\x9b31m\\x7f\\x00"                 # 0x9b alone opens a sequence, too
    assert printable("a\u202eb\u2066") == "a\\u202eb\\u2066"                    # would show what follows backwards
    assert printable("\ud800") == "\\ud800"                                     # no terminal's encoding has it
    assert printable("Grün, 左, 🛑, שלום") == "Grün, 左, 🛑, שלום"


def test_what_a_model_wrote_is_text_in_the_pages():
    assert join(HOSTILE).startswith("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&lt;img src=x")
    assert "<script" not in tag("p", HOSTILE) + details(HOSTILE, HOSTILE) + tag("p", title=HOSTILE)
    assert tag("p", title='" onclick="x') == '<p title="&quot; onclick=&quot;x"></p>'
    example = Example(id=HOSTILE, scene=1, speed=1.0, navigation=HOSTILE, decision=Decision("STOP", "STRAIGHT"))
    # the id as attribute and as text, the navigation, the reason, the verdict
    shown = article(Judged(example=example, reason=HOSTILE, rejected=HOSTILE))
    assert "<script" not in shown and "<img src=x" not in shown and shown.count("&lt;script&gt;") == 5


# ---------------------------------------------------------------- data files

def write(folder, *records, name="data.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


@pytest.fixture
def places(tmp_path):
    """A stranger's folder with one picture of its own, and a private folder beside it."""
    for path in (tmp_path / "data/pics/front.png", tmp_path / "private/secret.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"picture")
    (tmp_path / "data/linked").symlink_to(tmp_path / "private")
    (tmp_path / "data/linked.png").symlink_to(tmp_path / "private/secret.png")
    return tmp_path


@pytest.mark.parametrize("image", [
    "../private/secret.png", "pics/../../private/secret.png", "ABSOLUTE", "linked/secret.png", "linked.png",
    "/etc/passwd", "../data-2/x.png", "..", ".", "linked/../../data/pics/../../private/secret.png"])
def test_a_picture_outside_needs_a_root(places, image):
    image = str(places / "private/secret.png") if image == "ABSOLUTE" else image
    path = write(places / "data", OURS | {"image": image})
    with pytest.raises(ValueError) as error:
        load_examples(path)
    assert str(error.value).startswith(f"{path}: line 1: field 'image': {image!r} lies outside {places / 'data'};")
    assert "--image-root DIR" in str(error.value)


@pytest.mark.parametrize("image", ["pics/front.png", "./pics/../pics/front.png", "not-there.png", "ABSOLUTE", "..png"])
def test_a_picture_inside_needs_none(places, image):
    image = str(places / "data/pics/front.png") if image == "ABSOLUTE" else image
    [example] = load_examples(write(places / "data", OURS | {"image": image}))
    assert example.image == os.path.abspath(places / "data" / image)


def test_the_root_is_the_users_word(places):
    private = str(places / "private/secret.png")
    path = write(places / "data", *(OURS | {"id": str(i), "image": image} for i, image in enumerate(
        (private, "../private/secret.png", "secret.png"))))
    assert [example.image for example in load_examples(path, root=places / "private")] == [private] * 3
    assert len(load_examples(path, root="/")) == 3
    with pytest.raises(ValueError, match=f"lies outside {places / 'data'}; if that is right"):
        load_examples(path, root=places / "data")
    with pytest.raises(ValueError, match="'../../x.png' lies outside"):
        load_examples(write(places / "data", OURS | {"image": "../../x.png"}), root=places / "private")


def test_written_examples_come_back_under_their_root(places):
    example = Example(id="a", image=str(places / "private/secret.png"), prompt="?",
                      decision=Decision("STOP", "STRAIGHT"))
    write_examples([example], places / "data/out.jsonl")
    assert json.loads((places / "data/out.jsonl").read_text())["image"] == "../private/secret.png"
    assert load_examples(places / "data/out.jsonl", root=places / "private") == [example]


def test_a_linked_data_folder_is_inside_itself(places):
    write(places / "data", OURS)
    (places / "alias").symlink_to(places / "data")
    assert load_examples(places / "alias/data.jsonl")[0].image == str(places / "alias/front.png")


@pytest.mark.parametrize(("start", "told"), [
    (b'{"id": "', "line 1: more than 1,048,576 bytes, which no example has; give one example per line"),
    (b"", "line 1: more than 1,048,576 bytes"), (b"\n\n7", "line 3: more than 1,048,576 bytes"),
    (b"\xef\xbb\xbf [", "1,073,741,824 bytes in one piece, at most 268,435,456 are read; give one example per line")])
def test_huge_files_are_refused_before_they_are_read(tmp_path, start, told):
    path = sparse(tmp_path / "huge.jsonl", start, 2**30)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        load_examples(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{path}: {told}" in str(error.value) and peak < 8 * 2**20


def test_the_limits_are_exact(tmp_path):
    def line(size):
        short = json.dumps(OURS | {"factors": {"x": ""}})
        return short.replace('""', '"' + "x" * (size - len(short) - 1) + '"') + "\n"

    path = tmp_path / "data.jsonl"
    path.write_text(line(MAX_EXAMPLE_BYTES))
    assert len(load_examples(path)) == 1
    path.write_text(line(MAX_EXAMPLE_BYTES + 1))
    with pytest.raises(ValueError, match="line 1: more than"):
        load_examples(path)
    path.write_text(json.dumps(OURS) + "\n" + '{"a":\n' + " " * MAX_EXAMPLE_BYTES + "1}")
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        load_examples(path)
    path.write_text('{"a":\n' + " " * MAX_EXAMPLE_BYTES + "1}")                 # one object over several lines
    with pytest.raises(ValueError, match="1,048,584 bytes in one piece, at most 1,048,576 are read"):
        load_examples(path)
    path.write_text(json.dumps([OURS | {"prompt": "x" * (MAX_EXAMPLE_BYTES + 1)}]))
    with pytest.raises(ValueError, match="item 0: field 'prompt': a text of 1,048,577 characters"):
        load_examples(path)


@pytest.mark.parametrize(("changes", "told"), [
    ({"id": "\x1b[2J"}, "field 'id': expected one line .* without control characters, got '.x1b"),
    ({"id": "a\nb"}, "field 'id': expected one line"),
    ({"id": "x" * 5000}, "field 'id': expected one line of at most 4,096 characters"),
    ({"split": "\u202etset"}, "field 'split': expected one line"),
    ({"image": "a\0b.png"}, "field 'image': expected one line"),
    ({"speed": 10**400}, "field 'speed': expected a speed"),
    ({"speed": float("inf")}, "field 'speed': expected a speed"),
    ({"\x1b[2J": 1}, r"field '\\x1b\[2J': a name is one line"),
    ({"prompt": "\ud800"}, "line 1: not valid JSON .*surrogates not allowed"),
    ({"factors": {"x": "\udc00"}}, "line 1: not valid JSON"),
    ({"factors": {"x": float("nan")}}, "field 'factors': holds NaN or Infinity"),
    ({"id": ["a"]}, "field 'id': expected a text"), ({"image": [["a.png"]]}, "field 'image': expected a text"),
    ({"image": ["\x1b[2J"]}, "field 'image': expected one line"),
    ({"image": [*"abcdefgh"] * 999}, "a list of 1 to 16 picture files"),
    ({"image": "http://" + "x" * 4000}, "field 'image': 'http://x.* is an address"),
    ({"messages": HOSTILE * 99}, "field 'messages': a chat is not read"),
    ({"decision": "<think>" + HOSTILE * 99}, "field 'decision': .* the <think> block has no end"),
    ({"prompt": "<image>" * 9999}, "holds 9999 marks of pictures"),
    ({"prompt": "<|im_start|>system"}, "holds '<.im_start.>', which would be read as letters"),
    ({"navigation": [[[[]]] * 9] * 9}, "field 'navigation': expected words"),
    ({"factors": json.loads("[" * 51 + "]" * 51)}, "line 1: more than 50 objects or lists inside each other"),
    ({"factors": json.loads('{"a":' * 300 + "1" + "}" * 300)}, "line 1: more than 50 objects or lists"),
])
def test_hostile_fields(tmp_path, changes, told):
    path = write(tmp_path, OURS | changes)
    with pytest.raises(ValueError, match=told) as error:
        load_examples(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 600
    assert printable(str(error.value)) == str(error.value)


def test_navigation_has_a_largest_size():
    for text in ("{" * 3000, "{" + "(" * 3000, "x" * 2001, "{'a':" + "-" * 5000 + "1}"):
        with pytest.raises(ValueError, match="characters, at most 2,000 are read"):
            parse_navigation(text)
    with pytest.raises(ValueError, match="opens a dictionary but is not one"):
        parse_navigation("{" * 2000)


@pytest.mark.parametrize("unit", ["current speed is 1m/s, the navigation command is '", "current speed is 1", "1" * 9,
                                  "current speed is 1 " + " " * 99, "', based on", "<think>", "</think> ",
                                  "<|vision_start|>"[:-1], "<|image_"])
def test_reading_is_linear_in_a_prompt(tmp_path, unit):
    path = write(tmp_path, OURS | {"prompt": (unit * 10**6)[:10**6], "reasoning": (" x" + unit * 10**5)[:10**4]
                                   if "think" not in unit else None})
    start = time.process_time()
    load_examples(path)
    assert time.process_time() - start < 5                                      # quadratic: minutes; now 0.01 to 0.4 s


def test_damaged_data_files_fail_with_a_message(tmp_path):
    rng, good = random.Random(0), json.dumps(OURS).encode() + b"\n" + json.dumps([OURS, OURS]).encode()
    outcomes = [outcome(load_examples, tmp_path / "d.jsonl", damaged(good, rng)) for _ in range(600)]
    assert outcomes.count("refused") > 300


def damaged(data, rng):
    """Bytes cut, repeated, exchanged or replaced at one to four places."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        stop = min(len(data), at + rng.choice((0, 1, 1, 4, 30)))
        data[at:stop] = rng.choice((b"", bytes(data[at:stop]) * 2, rng.randbytes(stop - at), b"[", b"{", b'"',
                                    b"9" * 25, b"-1", b"null", b"1e999", b"[]", b"\x00", b'"\\ud800"', b"\xff" * 8))
    return bytes(data)


def outcome(read, path, data):
    """`read`, or `refused` by a short ValueError that names the file and holds nothing a terminal obeys."""
    path.write_bytes(data)
    try:
        read(path if path.suffix == ".jsonl" else path.parent)
    except ValueError as error:
        assert str(path.parent) in str(error) and len(str(error)) < 3000 and printable(str(error)) == str(error)
        return "refused"
    return "read"


# ---------------------------------------------------------------- safetensors

def safetensors(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(offsets, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(("told", "header", "data", "length"), [
    ("header of 9,223,372,036,854,775,808 bytes, at most 16,777,216", {}, b"", 2**63),
    ("header of 16,777,217 bytes, at most 16,777,216", {}, b"", MAX_HEADER_BYTES + 1),
    ("invalid header length", {}, b"", MAX_HEADER_BYTES),
    ("not fully covered", {"a": entry((0, 400), (100,))}, bytes(4), None),      # offsets beyond the file
    ("invalid offset", {"a": entry((0, 4)), "b": entry((0, 4))}, bytes(4), None),       # the same bytes twice
    ("invalid offset", {"a": entry((0, 8), (2,)), "b": entry((4, 12), (2,))}, bytes(12), None),
    ("invalid offset", {"a": entry((0, 4)), "b": entry((8, 12))}, bytes(12), None),     # a hole
    ("not fully covered", {"a": entry((0, 4))}, bytes(400), None),
    ("invalid offset", {"a": entry((4, 0))}, bytes(4), None),
    ("expected usize", {"a": entry((0, 4), (-1,))}, bytes(4), None),
    ("overflow", {"a": entry((0, 0), (2**62, 4))}, b"", None),
    ("", {"a": entry((0, 8), (1,))}, bytes(8), None),                           # four bytes too many for its shape
    ("a has the dtype I64; weights are BF16, F16, F32", {"a": entry((0, 8), dtype="I64")}, bytes(8), None),
    ("a has the dtype F4", {"a": entry((0, 1), (2,), "F4")}, bytes(1), None),
    ("a has the dtype BOOL", {"a": entry((0, 1), dtype="BOOL")}, bytes(1), None),
    (r"unknown variant `\x1b[31m", {"a": entry((0, 4), dtype="\x1b[31m")}, bytes(4), None),
    (r"a tensor named '\x1b[2J'", {"\x1b[2J": entry((0, 4))}, bytes(4), None),
    ("a tensor named '../a'", {"../a": entry((0, 4))}, bytes(4), None),
    ("holds model.a under two names", {"model.a": entry((0, 4)), "model.language_model.a": entry((4, 8))}, bytes(8),
     None),
    ("", b"[" * 100_000, b"", None), ("invalid UTF-8", b"\xff\xfe", b"", None), ("", b"{", b"", None),
    ("", b"[]", b"", None),
    ("", {"__metadata__": {"a": 3}}, b"", None),
])
def test_headers_that_lie(tmp_path, told, header, data, length):
    path = safetensors(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError) as error:
        header_shapes(path)
    assert str(path) in str(error.value) and told in str(error.value) and len(str(error.value)) < 800
    assert printable(str(error.value)) == str(error.value)


@pytest.fixture(scope="module")
def small(processor):
    tiny = fit_config(PRESETS["tiny"], processor.tokenizer)
    return new_model(replace(tiny, vision=replace(tiny.vision, depth=0), text=replace(tiny.text, num_hidden_layers=0)),
                     torch.Generator().manual_seed(0))


def test_damaged_weights_are_read_or_refused(tmp_path, small):
    save_model(small, tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(0)
    good = path.read_bytes()
    head = 8 + struct.unpack("<Q", good[:8])[0]
    outcomes = [outcome(load_model, path, damaged(good[:head], rng) + good[head:]) for _ in range(150)]
    assert outcomes.count("refused") > 100
    for cut in (0, 1, 7, 8, 9, head - 1, head, head + 1, len(good) - 1):
        assert outcome(load_model, path, good[:cut]) == "refused"


def test_a_list_of_wrong_tensors_is_cut(tmp_path, small):
    save_model(small, tmp_path)
    save_file({f"x{i}": torch.zeros(1) for i in range(5000)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_model(tmp_path)
    lines = str(error.value).splitlines()
    # 5,000 surplus and 9 missing: embeddings, norm, patches and 6 of the merger; 20 are named
    assert len(lines) == 22 and lines[-1] == "  ... and 4989 more"


@pytest.mark.parametrize("name", [
    "../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "x.bin", ".safetensors",
    "..\\x.safetensors", "x\0.safetensors", "\x1b[2J.safetensors", 3, None, "a" * 300 + ".safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, small, name):
    (tmp_path / "model").mkdir()
    save_model(small, tmp_path / "model")
    os.replace(tmp_path / "model/model.safetensors", tmp_path / "outside.safetensors")
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ValueError) as error:
        load_model(tmp_path / "model")
    assert str(index) in str(error.value) and "only .safetensors files in its own folder" in str(error.value)
    assert printable(str(error.value)) == str(error.value)
    assert shard_names(write(tmp_path, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})) == [
        "model-00001-of-00002.safetensors"]


def test_pickled_weights_are_not_read(tmp_path, small):
    save_model(small, tmp_path)
    os.replace(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled .bin weights are not read"):
        load_model(tmp_path)


def test_no_source_file_can_execute_what_it_reads():
    wrong = re.compile(r"\b(torch|np|numpy)\.load\(|^\s*(import|from) (pickle|marshal|shelve|yaml|jinja2|importlib)\b"
                       r"|(?<![\w.])(eval|exec|__import__|compile)\(")
    assert wrong.search("    eval(text)") and wrong.search("x = torch.load(p)") and not wrong.search("model.eval()")
    files = [*ROOT.glob("*.py"), *(file for layer in ("rewards", "data", "models", "grpo", "page")
                                   for file in (ROOT / layer).rglob("*.py"))]
    assert len(files) > 40
    assert [f"{file.name}: {line}" for file in files for line in file.read_text(encoding="utf-8").splitlines()
            if wrong.search(line)] == ["own.py: import importlib.util"]      # --reward FILE.py:FUNCTION


# ---------------------------------------------------------------- config.json

def hub_config(**changes):
    return {**PRESETS["2b"].to_dict(), **changes}


@pytest.mark.parametrize(("changes", "told"), [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 must be a whole number from 0 to 1,000"),
    ({"hidden_size": 10**12}, "hidden_size 1000000000000 must be a whole number from 1 to 65,536"),
    ({"vocab_size": 2**40}, "vocab_size 1099511627776 must be"),
    ({"vocab_size": True}, "vocab_size True must be"),
    ({"intermediate_size": -1}, "intermediate_size -1 must be"),
    ({"intermediate_size": 1.5}, "intermediate_size 1.5 must"),
    ({"max_position_embeddings": 10**18}, "max_position_embeddings 1000000000000000000 must be"),
    ({"num_attention_heads": 0}, "num_attention_heads 0 must be"),
    ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
    ({"hidden_size": "1536"}, "hidden_size '1536' must be"),
    ({"hidden_size": [1536]}, r"hidden_size \[1536\] must be"),
    ({"hidden_size": "\x1b[2J" * 999}, r"hidden_size '\\x1b\[2J"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps 'x' must be a number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan must be"),
    ({"rope_theta": float("inf")}, "rope_theta inf must be"),
    ({"rope_theta": [1]}, "rope_theta"),
    ({"rope_scaling": {"mrope_section": 5}}, "mrope_section 5 must be three"),
    ({"rope_scaling": {"mrope_section": "abc"}}, "mrope_section 'abc' must be three"),
    ({"rope_scaling": {"mrope_section": [[1], 2, 3]}}, "mrope_section .* must be three"),
    ({"rope_scaling": {"mrope_section": [-64, 64, 64]}}, "mrope_section .* must be three"),
    ({"rope_scaling": 3}, "rope_scaling 3 must be an object"),
    ({"rope_parameters": "x"}, "rope_parameters 'x' must be"),
    ({"text_config": [1]}, r"text_config \[1\] must be an object"),
    ({"vision_config": "x"}, "vision_config 'x' must be"),
    ({"num_hidden_layers": None, "text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers 1000000000 must be"),
    ({"vision_config": {"depth": 10**9}}, "depth 1000000000 must be"),
    ({"vision_config": {"embed_dim": 0}}, "embed_dim 0"),
    ({"vision_config": {"patch_size": 10**6}}, "patch_size 1000000 must"),
    ({"vision_config": {"num_heads": 0}}, "num_heads 0"),
    ({"vision_config": {"mlp_ratio": 10**6}}, "mlp_ratio 1000000 must be a number from 0 to 64"),
    ({"image_token_id": -1}, "image_token_id -1 must be a whole number >= 0"),
    ({"eos_token_id": []}, r"eos_token_id \[\] must"),
    ({"bos_token_id": "x"}, "bos_token_id 'x' must"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no' must be"),
    ({"model_type": "x" * 10**6}, "model_type 'xxx"),
    ({"model_type": {}}, "model_type {} is not supported"),
])
def test_absurd_configs_are_refused_before_anything_is_built(tmp_path, changes, told):
    (tmp_path / "config.json").write_text(json.dumps(hub_config(**changes)))
    start = time.process_time()
    with pytest.raises(ValueError, match=told) as error:
        load_model(tmp_path)
    assert time.process_time() - start < 1 and len(str(error.value)) < 700
    assert str(tmp_path / "config.json") in str(error.value) and printable(str(error.value)) == str(error.value)


def test_the_largest_released_model_is_far_below_the_limits():
    # Qwen2-VL-72B: 80 layers of 8,192 with 29,568 inside, 64 heads, 8 of keys, 152,064 words
    config = hub_config(hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
                        num_key_value_heads=8, vocab_size=152064, vision_config={"hidden_size": 8192})
    assert Qwen2VLConfig.from_dict(config).text.num_hidden_layers == 80


@pytest.mark.parametrize("content", [
    b"[]", b"3", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"", b'{"vocab_size": ' + b"9" * 5000 + b"}"])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'config.json'} .*copy it again"):
        Qwen2VLConfig.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json",
                                  "preprocessor_config.json", "chat_template.json"])
def test_huge_json_is_not_read(tmp_path, processor, small, name):
    save_model(small, tmp_path, max_file_bytes=100_000)
    save_processor(processor, tmp_path)
    sparse(tmp_path / name, b"{", MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="16,777,217 bytes, at most 16,777,216 are read") as error:
        load_model(tmp_path)
        load_processor(tmp_path)
    assert str(tmp_path / name) in str(error.value)


def test_damaged_configs_are_read_or_refused(tmp_path):
    rng, good = random.Random(0), json.dumps(hub_config()).encode()
    outcomes = [outcome(Qwen2VLConfig.from_directory, tmp_path / "config.json", damaged(good, rng)) for _ in range(400)]
    assert outcomes.count("refused") > 250
    values = (None, True, -1, 0, 10**30, 1.5, "x", "", [], [1], {}, {"a": 1}, float("nan"), [[]], "\x1b[2J")
    for key in hub_config():
        for value in values:
            with contextlib.suppress(ValueError):                               # and nothing else
                Qwen2VLConfig.from_dict(hub_config(**{key: value}))


# ---------------------------------------------------------------- tokenizer and processor

@pytest.fixture
def directory(tmp_path, processor):
    save_processor(processor, tmp_path)
    return tmp_path


def split_by(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(("changes", "told"), [
    ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}}, "normalizer 'Replace'"),
    ({"normalizer": {"type": "Sequence", "normalizers": []}}, "normalizer 'Sequence'"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer 'Precompiled'"),    # a panic
    ({"pre_tokenizer": split_by("(a+)+$")}, r"pre_tokenizer splits by {'Regex': '\(a"),     # exponential
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split_by("(a+)+$")]}}, "pre_tokenizer splits by"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [split_by("x")]}]}},
     "pre_tokenizer"),
    ({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}}, "decoder 'Replace'"),
    ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}, "model type 'Unigram'"),
    ({"model": {"type": "\x1b[2J"}}, r"model type .*x1b\[2J"), ({"model": {"vocab": {}}}, "model type None"),
    ({"model": None}, "not a tokenizer of Qwen2's kind"), ({"normalizer": 3}, "not a tokenizer of Qwen2's kind"),
    ({"added_tokens": 3}, "not a complete tokenizer file"),
])
def test_tokenizers_that_do_something_else(directory, changes, told):
    good = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(good | changes))
    with pytest.raises(ValueError, match=told) as error:
        load_processor(directory)
    assert str(directory / "tokenizer.json") in str(error.value) and len(str(error.value)) < 900
    assert printable(str(error.value)) == str(error.value)


def test_tokenizers_of_absurd_size(directory):
    good = json.loads((directory / "tokenizer.json").read_text())
    good["model"]["vocab"]["zz"] = 2**20                                        # an embedding of a million rows
    (directory / "tokenizer.json").write_text(json.dumps(good))
    with pytest.raises(ValueError, match="tokenizer.json gives a token the id 1048576, at most 1048575 is read"):
        load_processor(directory)
    sparse(directory / "tokenizer.json", b"{", MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(ValueError, match="tokenizer.json has 67,108,865 bytes, at most 67,108,864 are read"):
        load_processor(directory)
    (directory / "tokenizer.json").unlink()
    for name in ("merges.txt", "vocab.json"):
        (directory / "merges.txt").write_text("")
        (directory / "vocab.json").write_text("{}")
        sparse(directory / name, b"{", MAX_TOKENIZER_BYTES + 1)
        with pytest.raises(ValueError, match=f"{name} has 67,108,865 bytes"):
            load_processor(directory)


def test_damaged_tokenizers_are_read_or_refused(directory):
    rng, good = random.Random(0), (directory / "tokenizer.json").read_bytes()
    compact = json.dumps(json.loads(good)).encode()
    ends = compact[:600] + compact[-600:]                                       # rules at the start, merges at the end
    outcomes = [outcome(load_processor, directory / "tokenizer.json",
                        damaged(rng.choice((compact, ends)), rng)) for _ in range(300)]
    assert outcomes.count("refused") > 200


@pytest.mark.parametrize(("name", "content", "told"), [
    ("vocab.json", "[]", "vocab.json and merges.txt are no byte-pair vocabulary"),
    ("vocab.json", '{"a": -1}', "vocab.json and merges.txt are no byte-pair vocabulary"),
    ("merges.txt", "a b c d\nx", "vocab.json and merges.txt are no byte-pair vocabulary"),
    ("tokenizer_config.json", '{"added_tokens_decoder": []}', "config.json: added_tokens_decoder cannot be read"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder cannot be read"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"content": 3, "special": true}}}', "cannot be read"),
    ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {"content": "\\u001b[2J", "special": true}}}',
     r"x1b\[2J' should be id 1, but vocab.json leaves it"),
    ("tokenizer_config.json", "[]", "tokenizer_config.json holds a JSON list, not an object"),
])
def test_three_file_tokenizers(directory, processor, name, content, told):
    processor.tokenizer.model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    (directory / name).write_text(content)
    with pytest.raises(ValueError, match=told) as error:
        load_processor(directory)
    assert str(directory) in str(error.value) and printable(str(error.value)) == str(error.value)


@pytest.mark.parametrize("content", [
    {"min_pixels": 10**12, "max_pixels": 10**12}, {"max_pixels": 2**24 + 1}, {"min_pixels": "3136"}, {"max_pixels": -1},
    {"min_pixels": 1.5}, {"max_pixels": True}, {"size": {"longest_edge": 10**12}}, {"size": [1]}, {"size": "x"}])
def test_pixel_budgets_have_a_limit(directory, content):
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="preprocessor_config.json: (min_pixels and max_pixels are|the settings)"):
        load_processor(directory)


def test_a_chat_template_is_compared_and_never_executed(directory):
    target = directory / "written"
    attack = ("{{ cycler.__init__.__globals__.os.system('touch " + str(target) + "') }}"
              "{% for i in range(10**12) %}x{% endfor %}")
    for content in ({"chat_template": attack}, {"chat_template": [{"name": "default", "template": attack}]},
                    {"chat_template": 7}):
        (directory / "chat_template.json").write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="its chat template is not that of Qwen2-VL-Instruct"):
            loaded = load_processor(directory)
        assert loaded.decode(loaded.encode_text("Straight")) == "Straight"
    (directory / "chat_template.jinja").write_bytes(attack.encode() + b"\xff")
    with pytest.warns(UserWarning, match="Qwen2-VL-Instruct"):
        assert isinstance(load_processor(directory), Processor)
    assert not target.exists()


def test_code_in_a_model_directory_is_not_imported(directory, small):
    save_model(small, directory)
    target = directory / "written"
    (directory / "modeling_qwen2_vl.py").write_text(f"open({str(target)!r}, 'w')")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_qwen2_vl.Qwen2VL", "AutoTokenizer": "modeling_qwen2_vl.T"}
    (directory / "config.json").write_text(json.dumps(config))
    load_model(directory), load_processor(directory)
    assert not target.exists()


# ---------------------------------------------------------------- the commands

@pytest.fixture
def policy_dir(tmp_path, make_model, processor):
    save_policy(make_model(stop=1.0), processor, PromptSettings("compact", max_new_tokens=4), {}, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("value", [10**12, 0, True, "9", 1.5])
def test_settings_have_limits(policy_dir, value):
    settings = json.loads((policy_dir / "drivegrpo.json").read_text())
    (policy_dir / "drivegrpo.json").write_text(json.dumps(settings | {"max_new_tokens": value}))
    with pytest.raises(ValueError, match="drivegrpo.json.*max_new_tokens is .* from 1 to 32,768"):
        load_policy(policy_dir, torch.float32, "cpu")
    (policy_dir / "drivegrpo.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="drivegrpo.json is not valid JSON"):
        load_policy(policy_dir, torch.float32, "cpu")


def test_a_tokenizer_larger_than_the_model_is_refused(policy_dir):
    rules = json.loads((policy_dir / "tokenizer.json").read_text())
    rules["added_tokens"].append(rules["added_tokens"][0] | {"id": 270, "content": "<|new|>"})
    (policy_dir / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ValueError, match="the tokenizer goes up to id 270, config.json has vocab_size 270; the files"):
        load_policy(policy_dir, torch.float32, "cpu")


def test_terminal_escapes_of_a_model_are_shown_not_obeyed(policy_dir, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (56, 56)).save(tmp_path / "front.png")
    monkeypatch.setattr(Processor, "decode", lambda *_: HOSTILE)
    evaluate(["--model", str(policy_dir), "--image", str(tmp_path / "front.png"), "--samples", "2", "--device", "cpu"])
    shown = capsys.readouterr()
    assert "\\x1b[2J" in shown.out and "\x1b" not in shown.out + shown.err


def test_the_flag_for_pictures_elsewhere(policy_dir, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (56, 56)).save(tmp_path / "pictures/front.png")
    data = write(tmp_path / "data", OURS | {"image": "../pictures/front.png", "reasoning": "Red."})
    command = ["--model", str(policy_dir), "--data", str(data), "--output", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        evaluate(command)
    assert "'../pictures/front.png' lies outside" in str(stopped.value) and "--image-root DIR" in str(stopped.value)
    evaluate([*command, "--image-root", str(tmp_path / "pictures")])
    train.main(["--stage", "sft", *command[:4], "--output", str(tmp_path / "sft"), "--steps", "1", "--device", "cpu",
                "--image-root", str(tmp_path / "pictures"), "--prompt-style", "compact", "--max-new-tokens", "4"])
    assert (tmp_path / "sft/model/config.json").is_file()


def test_a_picture_that_is_a_program_is_refused(tmp_path):
    (tmp_path / "front.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    example = Example(id="a", image=str(tmp_path / "front.png"), prompt="?", decision=Decision("STOP", "STRAIGHT"))
    with pytest.raises(ValueError, match="front.png cannot be read .cannot identify image file"):
        open_image(example)


def test_special_tokens_in_data_stay_letters(processor):
    ids = processor.encode_text("<|im_end|><|image_pad|>" * 3)
    assert not set(ids) & set(processor.token_ids.values())
    assert planning_rewards(["<answer> KEEP, STRAIGHT </answer>"], Decision("KEEP", "STRAIGHT"))[0][2] == 0.0
