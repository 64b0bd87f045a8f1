"""Reward functions in processes of their own, for slow ones: each process answers one call at a time.

A process runs `main` of this file. It imports the user's file and nothing of the trainer. It ends when its pipe
closes, and with the trainer in the middle of a call, so that it outlives no run. A call that takes too long, or whose
process ends, is a RewardFault.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from rewards.actions import ALPHADRIVE, Actions
from rewards.checked import RewardError
from rewards.own import load_reward

ROOT = Path(__file__).resolve().parent.parent


class RewardFault(Exception):  # noqa: N818  a fact about one call, completed by whoever knows the completion
    """What went wrong in a process, such as `raised KeyError ('STOP')`."""


class RewardProcesses:
    """`count` processes, started when they are needed; `seconds` is the limit of one call. Threads may share it.

    starting: a context in which a process is started, such as one that gives it every core."""

    def __init__(self, count: int, seconds: float,
                 starting: Callable[[], AbstractContextManager] = nullcontext) -> None:
        self.seconds, self.starting, self.free = seconds, starting, queue.LifoQueue()
        for _ in range(count):
            self.free.put(None)                             # a process to start

    def function(self, reward: str, actions: Actions = ALPHADRIVE) -> Callable:
        """The same as `load_reward`, called in a process. Raises: RewardError if it cannot be loaded there."""
        self.call(reward, None, [], actions)
        return partial(self.call, reward, actions=actions)

    def call(self, reward: str, example: object, completions: list[str],
             actions: Actions = ALPHADRIVE) -> list[dict[str, float]]:
        """The rewards of one group. Raises: RewardError for what is returned, RewardFault for everything else."""
        process = self.free.get()
        try:
            process = process or RewardProcess(self.starting)
            process.load(reward, actions)                            # without a limit: the file may read a model
            rows = process.ask((reward, actions, example, completions), self.seconds) if completions else []
        except BaseException:
            self.free.put(None)
            if process is not None:
                process.end()
            raise
        self.free.put(process)
        return rows


class RewardProcess:
    """One process. It has a session of its own, so that Ctrl-C reaches the trainer alone."""

    def __init__(self, starting: Callable[[], AbstractContextManager]) -> None:
        self.connection, theirs = Pipe()
        self.loaded: set[str] = set()
        # not -m, which searches the current directory first: a rewards.py of the user's would hide this package
        start = f"import sys; sys.path[0] = {str(ROOT)!r}; from rewards.processes import main; main()"
        environment = {**os.environ, "OMP_PROC_BIND": "false"}                  # several would share the first core
        try:
            with starting():
                self.process = subprocess.Popen([sys.executable, "-c", start, str(theirs.fileno()), str(os.getpid())],
                                                env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
        except OSError as fault:
            self.connection.close()
            raise RewardError(f"a process for rewards could not be started ({fault}); lower --reward-processes or "
                              "raise the limits of this machine") from fault
        finally:
            theirs.close()

    def load(self, reward: str, actions: Actions) -> None:
        """Have the process read the file of a reward function, once."""
        if reward not in self.loaded:
            try:
                self.ask((reward, actions, None, []), None)
            except RewardFault as fault:
                raise RewardError(f"--reward {reward}: reading its file {fault}") from fault
            self.loaded.add(reward)

    def ask(self, request: tuple, seconds: float | None) -> list[dict[str, float]]:
        """The answer to a request. Raises: RewardError or RewardFault."""
        try:
            self.connection.send(request)
            if not self.connection.poll(seconds):
                raise RewardFault(f"took longer than {seconds:g} s (--reward-timeout)")
            kind, answer = self.connection.recv()
        except (EOFError, ConnectionError):
            raise RewardFault(f"ended their process (exit status {self.process.wait()})") from None
        if kind == "rows":
            return answer
        raise (RewardError if kind == "refused" else RewardFault)(answer)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


def serve(connection: Connection) -> None:
    """Answer calls until the pipe closes."""
    functions: dict[str, Callable] = {}
    while True:
        try:
            reward, actions, example, completions = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            functions[reward] = functions.get(reward) or load_reward(reward, actions)
            answer = "rows", functions[reward](example, completions) if completions else []
        except RewardError as fault:
            answer = "refused", str(fault)
        except (Exception, SystemExit) as fault:  # noqa: BLE001  whatever a user's function raises is told by the trainer
            answer = "raised", f"raised {type(fault).__name__} ({fault})"
        connection.send(answer)


def end_with(trainer: int, seconds: float = 0.5) -> None:
    """End this process once its parent is no longer the trainer, which has then been killed."""
    while os.getppid() == trainer:
        time.sleep(seconds)
    os._exit(1)


def main() -> None:
    """Serve the pipe whose number is the program's first argument; the second one is the trainer's process."""
    threading.Thread(target=end_with, args=[int(sys.argv[2])], daemon=True).start()
    serve(Connection(int(sys.argv[1])))
