"""Reward functions of the user's own: read from a file, called with what they ask for, in processes where slow."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from data.example import Example
from rewards import Decision
from rewards import processes as served
from rewards.checked import RewardError
from rewards.own import load_reward, source_sign
from rewards.processes import RewardFault, RewardProcesses

STOP = Decision("STOP", "STRAIGHT")
EXAMPLE = Example(id="7", scene=1, speed=3.0, navigation="Straight", decision=STOP, extra={"limit": 4})
TEXTS = ["<answer> STOP, STRAIGHT </answer>", "no plan"]
FILE = """
import os, time

def words(example, completions):
    return [{"words": len(text.split()) - example.extra["limit"]} for text in completions]

def planned(example, completions, plans):
    return [{"planned": plan == example.decision} for plan in plans]

def broken(example, completions):
    return [{"a": {}["STOP"]} for _ in completions]

def ended(example, completions):
    os._exit(3)

def endless(example, completions):
    while True:
        time.sleep(0.01)

def none(example, completions):
    return None

def one(example):
    return []
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_functions_get_what_they_ask_for(file):
    # 4 words and 2 words, the record's limit is 4
    assert load_reward(f"{file}:words")(EXAMPLE, TEXTS) == [{"words": 0.0}, {"words": -2.0}]
    assert load_reward(f"{file}:planned")(EXAMPLE, TEXTS) == [{"planned": 1.0}, {"planned": 0.0}]
    assert load_reward(f"{file}:words").__name__ == "words"


@pytest.mark.parametrize(("name", "told"), [
    ("absent", "mine.py has no function absent; it has words, planned, broken, ended, endless, none, one"),
    ("one", r"its parameters are \(example\); they must be \(example, completions\)"),
    ("time", "has no function time")])
def test_a_function_that_cannot_be_called_is_told(file, name, told):
    with pytest.raises(RewardError, match=told):
        load_reward(f"{file}:{name}")


def test_a_file_that_cannot_be_run_is_told(file):
    with pytest.raises(RewardError, match="--reward no.py:f: no.py cannot be read"):
        load_reward("no.py:f")
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(RewardError, match="mine.py cannot be run: ModuleNotFoundError: No module named 'nothing_of"):
        load_reward(f"{file}:words")


def test_an_edited_file_is_another_reward(file):
    before = source_sign(file, "")
    assert len(before) == 16 and before == source_sign(file, "")
    file.write_text(FILE.replace("- example", "+ example"))
    assert source_sign(file, "") != before
    assert load_reward(f"{file}:words")(EXAMPLE, TEXTS) == [{"words": 8.0}, {"words": 6.0}]


def test_a_file_runs_once_and_may_import_its_neighbours(file):
    (file.parent / "neighbour_of_mine.py").write_text("calls = []\n")
    file.write_text("import neighbour_of_mine\nneighbour_of_mine.calls.append(1)\n"
                    "def a(example, completions):\n"
                    "    return [{'a': len(neighbour_of_mine.calls)}] * len(completions)\n")
    load_reward(f"{file}:a")
    assert load_reward(f"{file}:a")(EXAMPLE, TEXTS) == [{"a": 1.0}, {"a": 1.0}]
    sys.path.remove(str(file.parent.resolve()))


# ---------------------------------------------------------------- in processes

def test_processes_return_the_same_and_tell_every_fault(file):
    processes = RewardProcesses(1, seconds=0.5)
    words = processes.function(f"{file}:words")
    assert words(EXAMPLE, TEXTS) == [{"words": 0.0}, {"words": -2.0}]
    for name, fault, told in (("broken", RewardFault, r"^raised KeyError \('STOP'\)$"),
                              ("ended", RewardFault, r"^ended their process \(exit status 3\)$"),
                              ("endless", RewardFault, r"^took longer than 0.5 s \(--reward-timeout\)$"),
                              ("none", RewardError, "^reward function none, example '7': returned None"),
                              ("absent", RewardError, "has no function absent")):
        with pytest.raises(fault, match=told):
            processes.call(f"{file}:{name}", EXAMPLE, TEXTS)
    assert words(EXAMPLE, TEXTS) == [{"words": 0.0}, {"words": -2.0}]           # by a process started anew
    processes.free.get().end()


def test_a_process_that_cannot_be_started_is_told_and_tried_again(file, monkeypatch):
    processes = RewardProcesses(1, seconds=9.0)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Mock(side_effect=OSError(12, "Cannot allocate memory")))
        for _ in range(2):                                   # a lost place would wait for ever
            with pytest.raises(RewardError, match="could not be started .*memory.*; lower --reward-processes"):
                processes.call(f"{file}:words", EXAMPLE, TEXTS)
    assert processes.call(f"{file}:words", EXAMPLE, TEXTS) == [{"words": 0.0}, {"words": -2.0}]
    processes.free.get().end()


def test_a_process_ends_with_the_trainer_in_the_middle_of_a_call(monkeypatch):
    ended, parents = threading.Event(), iter([7])            # 7 is the trainer; after it the system is the parent
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(sys, "argv", ["-c", "3", "7"])
    monkeypatch.setattr(served, "Connection", Mock())
    monkeypatch.setattr(served, "serve", lambda connection: connection.hangs(ended.wait(9)))
    served.main()
    served.Connection.assert_called_once_with(3)
    served.Connection().hangs.assert_called_once_with(True)


def test_two_threads_use_two_processes(file):
    file.write_text("import os, time\ndef f(example, completions):\n    time.sleep(0.3)\n"
                    "    return [{'process': os.getpid()}] * len(completions)\n")
    processes, found = RewardProcesses(2, seconds=9.0), []
    threads = [threading.Thread(target=lambda: found.append(processes.call(f"{file}:f", EXAMPLE, ["a"])))
               for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found[0] != found[1]
    processes.free.get().end()
    processes.free.get().end()


# ---------------------------------------------------------------- the examples of docs/rewards.md

class Judge(BaseHTTPRequestHandler):
    """Gives 1 for an answer that names a cause, else 0.25; refuses other questions."""

    def do_POST(self):  # noqa: N802  the name that the server calls
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if asked["question"] == "3.0 m/s, Straight" else 500)
        self.end_headers()
        self.wfile.write(json.dumps({"score": 1 if "because" in asked["answer"] else 0.25}).encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def judge():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_documented_rewards_can_be_named_by_the_flag(tmp_path, judge):
    page = (Path(__file__).parents[2] / "docs/rewards.md").read_text().partition("### Three examples")[2]
    first_three = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:3]
    (file := tmp_path / "three.py").write_text("\n".join(first_three).replace(":8000/", f":{judge.server_port}/"))
    texts = [f"because of red {TEXTS[0]}", TEXTS[0], TEXTS[1]]
    # STOP at 3 m/s costs .3; two equal answers are not alone
    for name, expected in (("comfort", [{"comfort": -0.3}] * 2 + [{"comfort": -1.0}]),
                           ("acceptable", [{"set": 1.0, "alone": 0.0}] * 2 + [{"set": 0.0, "alone": 0.0}]),
                           ("judged", [{"reason": 1.0}, {"reason": 0.25}, {"reason": 0.0}])):
        assert load_reward(f"{file}:{name}")(EXAMPLE, texts) == expected
    with pytest.raises(OSError, match="500"):
        load_reward(f"{file}:judged")(Example(id="8", scene=1, prompt="?", decision=STOP), texts)


def test_a_file_that_ends_its_program_is_told(file):
    file.write_text(FILE + "\nraise SystemExit(0)\n")
    for load in (load_reward, RewardProcesses(1, seconds=9.0).function):
        with pytest.raises(RewardError, match="cannot be run: SystemExit"):
            load(f"{file}:words")
    file.write_text(FILE + "\nos._exit(3)\n")
    with pytest.raises(RewardError, match=r"reading its file ended their process \(exit status 3\)"):
        RewardProcesses(1, seconds=9.0).function(f"{file}:words")


def test_a_file_may_have_the_name_of_our_package(file, monkeypatch):
    (file.parent / "rewards.py").write_text(FILE)
    monkeypatch.chdir(file.parent)
    processes = RewardProcesses(1, seconds=9.0)
    assert processes.function("rewards.py:words")(EXAMPLE, TEXTS) == [{"words": 0.0}, {"words": -2.0}]
    processes.free.get().end()


@pytest.mark.parametrize("parameters", ["completions, example", "completions, **kwargs", "example, *texts",
                                        "example, *, completions"])
def test_parameters_in_another_order_or_of_another_kind_are_told(file, parameters):
    file.write_text(f"def f({parameters}):\n    return []\n")
    with pytest.raises(RewardError, match=r"its parameters are \(.*; they must be \(example, completions\) or"):
        load_reward(f"{file}:f")


def test_settings_of_torch_are_the_file_s_alone(file):
    file.write_text("import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
                    "def own(example, completions):\n    torch.set_grad_enabled(False)\n"
                    "    torch.set_default_dtype(torch.float64)\n    return [{'one': 1.0} for _ in completions]\n")
    reward = load_reward(f"{file}:own")
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert reward(EXAMPLE, TEXTS) == [{"one": 1.0}] * 2
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_a_function_that_changes_the_folder_leaves_us_where_we_were(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file.write_text("import os\ndef f(example, completions):\n    os.chdir('/')\n    return [{'a': 1}]\n")
    assert load_reward(f"{file}:f")(EXAMPLE, ["x"]) == [{"a": 1.0}]
    assert Path.cwd() == tmp_path
