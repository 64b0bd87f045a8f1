"""The documents are true: their code runs, their commands parse, what they name exists."""

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch

import train
from benchmarks import figures, reading, tables
from benchmarks.results import GROUPS
from benchmarks.trajectories import table_lines
from data.files import load_examples
from grpo.engine.checkpoint import save_policy
from grpo.engine.flags import STAGES, EvalConfig, parse_flags
from grpo.engine.prompts import PromptSettings
from models.qwen2_vl import new_model

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PAGES = sorted((ROOT / "docs").glob("*.md"))
WIDEST = 120                                                 # characters of a line
FOREIGN = ("hf ", "pip ")                                    # commands of other programs have flags of their own


def name_of(file):
    return str(file.relative_to(ROOT))


def blocks(text, language):
    """Contents of the fenced blocks of one language; "" stands for blocks without a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in fenced if name == language]


def prose(text):
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text):
    """Every `python X.py ...` of a text, as (script, arguments): from plain blocks, Makefile lines and inline code."""
    lines = [line for block in blocks(text, "") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *inline_code(text)]:
        match = re.match(r"\s*python (\S+\.py)(.*)", line)
        if match:
            found.append((match[1], shlex.split(match[2], comments=True)))
    return found


def config_for(script, arguments):
    """The configuration whose flags a command takes, and the rest of the command."""
    if script == "eval.py":
        return EvalConfig, arguments
    assert arguments[:1] == ["--stage"], f"{script} {arguments}: the stage comes first"
    return STAGES[arguments[1]], arguments[2:]


def check_command(script, arguments):
    """Raise if a documented command would not be understood."""
    assert (ROOT / script).is_file(), f"{script} does not exist"
    flags = [word for word in arguments if word.startswith("--")]
    if script == "eval.py" and arguments[:1] == ["--compare"]:
        assert len(arguments) > 2 and flags == ["--compare"], f"{script} {arguments}: two runs, and no other flag"
        return
    if script in ("train.py", "eval.py"):
        config_class, rest = config_for(script, arguments)
        if "--help" in rest:
            return
        try:
            config_class(**parse_flags(config_class, "", rest))
        except SystemExit:
            raise AssertionError(f"python {script} {' '.join(arguments)}: flags are not understood") from None
    else:
        text = (ROOT / script).read_text()
        if "common_flags" in text:                          # benchmarks that share flags
            text += (ROOT / "benchmarks/rollout.py").read_text()
        missing = [flag for flag in flags if f'"{flag}"' not in text]
        assert not missing, f"{script} has no {missing}"


@cache
def functions_of(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def anchor(heading):
    """How GitHub turns a heading into the target of a link: lower case, signs dropped, blanks to dashes."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def documented_fields(text):
    """Names in the first column of the table below the heading `metrics.jsonl`, with their stage."""
    section = re.search(r"^## [^\n]*metrics\.jsonl\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    rows = re.findall(r"^\| (`[^|]*`) \| (both|sft|grpo) \|", section, re.MULTILINE)
    return {(name, stage) for cell, stage in rows for name in re.findall(r"`(\w+)`", cell)}


# ---------------------------------------------------------------- the documents

@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_python_blocks_run(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    for number, block in enumerate(blocks(file.read_text(), "python"), 1):
        exec(compile(block, f"{file.name}, python block {number}", "exec"), names)  # noqa: S102  our own documents


def test_json_blocks_are_examples(tmp_path):
    found = blocks((ROOT / "docs/data.md").read_text(), "json")
    assert len(found) == 2                                   # AlphaDrive's form, ours
    for number, block in enumerate(found):
        file = tmp_path / f"{number}.json"
        file.write_text(block)
        (example,) = load_examples(file)
        assert str(example.decision) == "DECELERATE, STRAIGHT" and example.speed == 4.2
        assert example.reasoning == "The car ahead brakes, so I slow down."


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_commands_name_flags_that_exist(file):
    for script, arguments in commands(file.read_text()):
        check_command(script, arguments)


def test_makefile_commands_name_flags_that_exist():
    recipe = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("$(CONDITION)", "--condition facts")
    values = dict(re.findall(r"^(\w+) [?:]?= (.*)$", recipe, re.MULTILINE)) | {"PY": "python"}
    while (spelt := re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], name[0]), recipe)) != recipe:
        recipe = spelt
    found = [line.split("python ", 1)[1].split() for line in recipe.splitlines() if line.startswith("\tpython ")]
    scripts = [(words[0], words[1:]) for words in found if words[0].endswith(".py")]
    assert {"train.py", "eval.py", "report.py"} <= {script for script, _ in scripts}
    for script, arguments in scripts:
        check_command(script, arguments)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_flags_named_in_passing_exist(file):
    sources = "".join(path.read_text() for path in (ROOT / "train.py", ROOT / "eval.py", *ROOT.glob("benchmarks/*.py"),
                                                    ROOT / "data/scenes/__main__.py", ROOT / "data/datasheet.py",
                                                    *ROOT.glob("data/builders/*.py")))
    known = {f"--{name.replace('_', '-')}" for config in (*STAGES.values(), EvalConfig)
             for name in config.__dataclass_fields__} | set(re.findall(r'"(--[\w-]+)"', sources)) | {"--help"}
    for code in inline_code(file.read_text()):
        named = [] if code.startswith(FOREIGN) else re.findall(r"(?<!\S)--[\w-]+", code)
        assert set(named) <= known, f"{file.name}: `{code}` names a flag that no command has"


def test_map_of_the_files_is_the_code():
    text = (ROOT / "docs/code.md").read_text()
    assert reading.file_map() in text, "docs/code.md's map is old: run python benchmarks/reading.py"
    listed = {line.split()[0] for line in reading.file_map().splitlines() if re.match(r"[\w/]+\.py ", line)}
    here = {name_of(path) for path in ROOT.glob("*.py")}
    here |= {name_of(path) for layer in ("rewards", "data", "models", "grpo", "evaluation")
             for path in (ROOT / layer).rglob("*.py") if path.name != "__init__.py"}
    assert here <= listed, f"benchmarks/reading.py has no room for {sorted(here - listed)}"


def test_every_page_of_docs_is_linked_from_readme():
    text = README.read_text()
    assert all(f"](docs/{page.name}" in text for page in PAGES)


def test_readme_is_a_door():
    lines = README.read_text().splitlines()
    top = "\n".join(lines[:25])
    assert len(lines) <= 150 and len(README.read_text().split()) <= 1200
    assert "](docs/scene.svg)" in top and "](docs/results.svg)" in top
    assert re.search(r"^make test", "\n".join(lines[:20]), re.MULTILINE)
    assert re.search(r"^make demo", "\n".join(lines[:20]), re.MULTILINE)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_lines_are_at_most_120_characters(file):
    long = [number for number, line in enumerate(file.read_text().splitlines(), 1) if len(line) > WIDEST]
    assert not long, f"{file.name}: lines {long} are longer than {WIDEST} characters"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_first_says_who_reads_it(page):
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ") and not blank and first.startswith("For anyone who "), f"{page.name}: {first}"


def test_figures_are_drawn_from_the_committed_records():
    answer, results = (json.loads((figures.RECORDS / name).read_text()) for name in ("answer.json", "tables.json"))
    assert (ROOT / "docs/results.svg").read_text() == figures.results_figure(results, answer)
    curves = figures.curves_figure(results)
    assert curves is None or (ROOT / "docs/curves.svg").read_text() == curves
    phases, sweep = (json.loads((figures.RECORDS / f"{name}.json").read_text())
                     for name in ("step_small_phases", "sweep_small_1x64_amp"))
    assert (ROOT / "docs/speed.svg").read_text() == figures.speed_figure(phases, sweep)
    noise, study = (json.loads((figures.RECORDS / name).read_text()) for name in ("noise.json", "trajectories.json"))
    assert (ROOT / "docs/noise.svg").read_text() == figures.noise_figure(noise)
    assert (ROOT / "docs/tension.svg").read_text() == figures.tension_figure(study)
    without_picture = re.compile(r"base64,[^\"]*")           # its bytes may differ between versions of Pillow
    drawn, kept = figures.scene_figure(answer), (ROOT / "docs/scene.svg").read_text()
    assert without_picture.sub("", kept) == without_picture.sub("", drawn)
    assert answer["plan"] in kept and answer["expert_plan"] in kept


def test_the_tables_of_the_trajectory_study_are_its_record():
    record = json.loads((figures.RECORDS / "trajectories.json").read_text())
    page = (ROOT / "docs/trajectories.md").read_text()
    assert "\n".join(table_lines(record)) in page


def test_the_tables_of_the_results_are_their_record():
    record, pages = json.loads(tables.RECORD.read_text()), [page.read_text() for page in tables.PAGES]
    sections = tables.sections(record, GROUPS, *(json.loads(file.read_text()) for file in (tables.FIRST, tables.DEMO)))
    for page in pages:
        assert tables.with_tables(page, sections) == page, "run python benchmarks/results.py --table"
    assert sorted(re.findall(r"<!-- (\w+): begin -->", "".join(pages))) == sorted(sections)
    assert len(pages[0].split()) <= 1800


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_named_functions_exist(file):
    for place, function in re.findall(r"`([\w/.]+\.py): (\w+)`", file.read_text()):
        assert function in functions_of(ROOT / place), f"{file.name} names {function}, which {place} does not define"


@pytest.mark.parametrize("file", [README, *PAGES], ids=name_of)
def test_named_files_exist(file):                            # CHANGELOG.md also names those that are gone
    rooms = "tests|benchmarks|data|grpo|models|rewards|evaluation|docs"
    named = re.findall(rf"`((?:{rooms})/[\w/.-]+\.(?:py|json|md|svg))\b", file.read_text())
    missing = [path for path in named if "NAME" not in path and not (ROOT / path).is_file()]
    assert not missing, f"{file.name} names {missing}, which do not exist"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_tables_hold_no_stray_bars(file):
    """A | inside code ends the cell on GitHub: a row must have as many cells as its header."""
    for rows in re.findall(r"(?:^\|.*\|\n)+", prose(file.read_text()), re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()]
        assert len(set(bars)) == 1, f"{file.name}: {rows.splitlines()[0]} has rows of another length"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(file.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        goal = file.parent / path if path else file
        assert goal.exists(), f"{file.name} links to {target}, which does not exist"
        headings = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in map(anchor, headings), f"{file.name} links to {target}: no such heading"


def documented_path(text):
    """File: its documented lines, from the table of the measured path."""
    table = text.split("<!-- path:")[1].split("<!-- end of path -->")[0]
    return {name: int(lines) for name, lines in re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", table, re.MULTILINE)}


def test_the_path_of_a_step_is_the_documented_one(processor, micro_config, tmp_path, capsys):
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    save_policy(model, processor, PromptSettings(prompt_style="compact", max_new_tokens=8), {}, tmp_path / "micro")
    measured = reading.step_path(lambda: reading.one_step(str(tmp_path / "micro"), str(tmp_path / "grpo")))
    documented = documented_path((ROOT / "docs/code.md").read_text())
    remedy = "docs/code.md's path of a step is old: run python benchmarks/reading.py"
    assert set(documented) == set(measured), remedy
    for name, (lines, _) in measured.items():                # the table may lag behind small edits
        assert abs(documented[name] - lines) <= max(5, lines / 10), f"{name} has {lines} lines; {remedy}"


def test_metrics_table_names_what_is_written(processor, micro_config, tmp_path, capsys):
    model = new_model(micro_config, torch.Generator().manual_seed(0))
    save_policy(model, processor, PromptSettings(prompt_style="compact", max_new_tokens=8), {}, tmp_path / "micro")
    written = {"sft": set(), "grpo": set()}
    group = ["--group-size", "2", "--prompts-per-step", "1"]
    for stage, own in (("sft", []), ("grpo", group), ("grpo", [*group, "--algorithm", "ppo", "--bc-coef", "1"])):
        train.main(["--stage", stage, "--model", str(tmp_path / "micro"), "--output", str(tmp_path / stage), "--scenes",
                    "2", "--eval-examples", "1", "--steps", "1", "--device", "cpu", "--overwrite", *own])
        line, = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        written[stage] |= set(json.loads(line))
    stages = {name: "both" if name in written["sft"] & written["grpo"] else stage
              for stage in written for name in written[stage]}
    assert documented_fields((ROOT / "docs/metrics.md").read_text()) == set(stages.items())


# ---------------------------------------------------------------- the checks themselves

@pytest.mark.parametrize("command", [
    "eval.py --sampels 3", "train.py --stage grpo --batch-size 4", "train.py --stage sft --lr-schedule step",
    "train.py --stage grpo --group-size many", "benchmarks/results.py --job 2", "evaluate.py", "report.py --wide",
    "eval.py --compare runs/sft", "eval.py --compare runs/sft runs/grpo --limit 3"])
def test_wrong_commands_are_found(command, capsys):
    ((script, arguments),) = commands(f"Say `python {command}`.")
    with pytest.raises(AssertionError):
        check_command(script, arguments)


def test_commands_are_found_in_blocks_and_prose():
    text = "Run `python eval.py --limit 3`.\n\n```\npython train.py --stage sft \\\n  --steps 2   # two\n```\n"
    assert commands(text) == [("train.py", ["--stage", "sft", "--steps", "2"]), ("eval.py", ["--limit", "3"])]
    assert len(commands(README.read_text())) >= 8
    assert len(commands((ROOT / "docs/running.md").read_text())) >= 10


def test_blocks_are_told_apart_by_language():
    text = "```text\na\n```\nbetween\n```\nb\n```\n"          # the end of one block is no beginning of another
    assert blocks(text, "") == ["b\n"] and blocks(text, "text") == ["a\n"]


def test_names_of_moved_functions_are_mended():
    text, lost = reading.moved_names("`train.py: group_advantages`, `train.py: main`, `train.py: no_such_function`")
    assert text == "`grpo/losses.py: group_advantages`, `train.py: main`, `train.py: no_such_function`"
    assert lost == ["train.py: no_such_function -> nowhere"]


def test_only_calls_within_the_named_function_are_found():
    def inner():
        return 1

    def outer():
        return inner()

    with reading.calls_within("outer") as found:
        inner()
        assert not found
        outer()
    assert {code.co_name for code in found} == {"outer", "inner"}
