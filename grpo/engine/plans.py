"""Plans for pictures without labels: `python eval.py --images PATH --samples 16 --json OUT.jsonl`.

Every request gets one JSON line, in the order of the requests; docs/running.md explains its fields. This is the seam
for a downstream planner: `--images -` answers records on standard input as they arrive.
"""

import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data.dataset import prepared_ahead
from data.example import Example, printable
from data.files import SHOWN, counted
from data.requests import Request, left_out, read_requests, requests_in
from evaluation.predictions import plan_name
from evaluation.text_metrics import think_text
from grpo.engine.flags import EvalConfig
from grpo.engine.progress import Progress
from grpo.fast.sampler import Sampler
from grpo.sampling import Rollout, uniform_table
from models.prompt import Prompt
from rewards.actions import ALPHADRIVE, Actions
from storage import append_json, finite

Encode = Callable[[Example], Prompt | str]          # the model's input, or why there is none
ENDED = object()


def plan_requests(sampler: Sampler, encode: Encode, config: EvalConfig, actions: Actions = ALPHADRIVE) -> None:
    """Answer every request of --images; write the lines to --json, or to standard output."""
    started, live, counts = time.monotonic(), config.images == "-", Counter()
    notes, known = Counter(), set()
    asked = (config.speed, config.navigation, config.image_root or None, notes)
    requests = [] if live else read_requests(config.images, *asked)
    tell(notes, len(requests))
    tell_left_out(Path(config.images), "**/*")
    batches = arriving(requests_in(sys.stdin.buffer, *asked), config.batch_size) if live else [
        requests[start:start + config.batch_size] for start in range(0, len(requests), config.batch_size)]
    progress = None if live else Progress("plan", len(requests))
    write = line_writer(config)
    try:
        for rows in answers(sampler, encode, batches, config, not live, actions):
            write(rows)
            counts.update("fault" in row for row in rows)
            if live:
                tell_new(notes, known)
            if progress:
                progress.show(counts.total())
    finally:
        if live:
            tell(notes, counts.total())
        print(told(counts, time.monotonic() - started, config.json), file=sys.stderr)
    if counts and not counts[False]:
        raise ValueError(f"none of {counts.total()} requests could be answered; each line names its fault")


def tell(notes: Counter[str], count: int) -> None:
    """Print what was assumed or dropped while reading; standard output is for the JSON lines."""
    for line in counted(notes, count, "requests"):
        print(f"note: {printable(line)}", file=sys.stderr)


def tell_new(notes: Counter[str], known: set[str]) -> None:
    """Print each kind of note of a stream when it comes first: the stream may never end."""
    for note in [note for note in notes if note not in known][:max(0, SHOWN - len(known))]:
        known.add(note)
        print(f"note, from now on counted: {printable(note)}", file=sys.stderr, flush=True)


def tell_left_out(folder: Path, pattern: str) -> None:
    if folder.is_dir() and (note := left_out(folder, pattern)):
        print(f"note: {folder}: {printable(note)}", file=sys.stderr)


def told(counts: Counter, seconds: float, place: str) -> str:
    """`planned 10 requests in 3.2 s (3.1 a second), 1 skipped; written to plans.jsonl`."""
    skipped = f", {counts[True]} skipped" if counts[True] else ""
    written = f"; written to {'standard output' if place == '-' else place}" if counts else ""
    return (f"planned {counts[False]} requests in {seconds:.1f} s ({counts[False] / seconds:.1f} a second)"
            f"{skipped}{written}")


def line_writer(config: EvalConfig) -> Callable[[Sequence[dict]], None]:
    """A function that writes rows. An earlier file is replaced when the first rows come.

    Raises: ValueError if it may not be replaced, or is what --images reads."""
    if config.json == "-":
        # escaped, because a terminal may lack letters and backslashes of another kind are no JSON
        return lambda rows: print("\n".join(json.dumps(finite(row)) for row in rows), flush=True)
    file, written = Path(config.json), []
    if file.is_dir():
        raise ValueError(f"--json {file} is a folder; name a file, such as {file / 'plans.jsonl'}")
    if file.exists() and config.images != "-" and file.samefile(config.images):
        raise ValueError(f"--json {file} is the file that --images reads; name another one")
    if file.exists() and file.stat().st_size and not config.overwrite:
        raise ValueError(f"--json {file} exists; name another file, or replace it with --overwrite")

    def write(rows: Sequence[dict]) -> None:
        if not written:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            written.append(file)
        append_json(file, *rows)
    return write


# ---------------------------------------------------------------- answers

def answers(sampler: Sampler, encode: Encode, batches: Iterable[Sequence[Request]], config: EvalConfig,
            ahead: bool, actions: Actions = ALPHADRIVE) -> Iterator[list[dict]]:
    """The rows of each batch, in order. With `ahead`, a thread prepares the pictures of the next batches.

    The samples depend on the seed and on the place of a request in the whole, not on the batch size."""
    def prepare(batch: Sequence[Request]) -> tuple[Sequence[Request], list[Prompt | str], float]:
        started = time.monotonic()
        prompts = [encode(one) if isinstance(one, Example) else one.fault for one in batch]
        return batch, prompts, time.monotonic() - started

    first = 0
    for batch, prompts, encoding in prepared_ahead(prepare, batches) if ahead else map(prepare, batches):
        started = time.monotonic()
        usable = [place for place, prompt in enumerate(prompts) if not isinstance(prompt, str)]
        faults = [prompt for prompt in prompts if isinstance(prompt, str)]
        if faults and config.on_bad_data == "stop":
            raise ValueError(f"{faults[0]}; --on-bad-data skip plans for the others")
        rows = [{"id": one.id, "fault": prompts[place]} for place, one in enumerate(batch)]
        if usable:
            size = max(config.samples, 1)
            rollout = sampler.sample([prompts[place] for place in usable], uniform_table(
                config.seed, 0, [first + place for place in usable], size, sampler.max_new_tokens))
            seconds = encoding + time.monotonic() - started
            for number, place in enumerate(usable):
                rows[place] = answer_row(batch[place], rollout.rows(number * size, (number + 1) * size), seconds,
                                         actions)
        first += len(batch)
        yield rows


def answer_row(example: Example, rollout: Rollout, seconds: float, actions: Actions = ALPHADRIVE) -> dict:
    """The line of one request from its K samples. The plan is the most frequent one; among its samples the likeliest is
    the text shown. Ties go to the plan with the likelier sample."""
    plans = [plan_name(text, actions) for text in rollout.texts]
    logprobs = (rollout.logprobs * rollout.completion_mask).sum(1).tolist()     # K log-probabilities of whole answers
    counts = Counter(plan for plan in plans if plan is not None)
    best = max(range(len(plans)), key=lambda k: (counts[plans[k]], logprobs[k]))        # an invalid answer counts 0
    text = rollout.texts[best]
    return {"id": example.id, "images": list(example.pictures), "speed": example.speed,
            "navigation": example.navigation, "plan": plans[best],
            "plans": {plan: count / len(plans) for plan, count in counts.most_common()},
            "invalid": 1 - counts.total() / len(plans), "reason": think_text(text) or None, "text": text,
            "logprob": round(logprobs[best], 4), "seconds": round(seconds, 4)}


def arriving(items: Iterable, most: int) -> Iterator[list]:
    """Lists of what has arrived by now: at least one item, at most `most`. A list is never waited for to be full."""
    waiting, faults = queue.Queue(maxsize=most), []

    def read() -> None:
        try:
            for item in items:
                waiting.put(item)
        except BaseException as fault:  # noqa: BLE001  raised below, in the thread that asks
            faults.append(fault)
        finally:
            waiting.put(ENDED)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        batch = [waiting.get()]
        while len(batch) < most and not waiting.empty():
            batch.append(waiting.get())
        ended = batch[-1] is ENDED
        if batch := batch[:-1] if ended else batch:
            yield batch
    if faults:
        raise faults[0]


# ---------------------------------------------------------------- --image

def plan_pictures(sampler: Sampler, encode: Encode, examples: Sequence[Example], config: EvalConfig,
                  actions: Actions = ALPHADRIVE) -> None:
    """Print the distinct plans of each question of --image, most frequent first."""
    folder = Path(config.image).is_dir()
    tell_left_out(Path(config.image), "*")
    for example in examples:
        prompt = encode(example)
        if folder:
            print(printable(example.image))
        if isinstance(prompt, str):
            if not folder or config.on_bad_data == "stop":
                raise ValueError(prompt + ("; --on-bad-data skip plans for the others" if folder else ""))
            print(printable(f"skipped: {prompt}"))
            continue
        numbers = uniform_table(config.seed, 0, [0], max(config.samples, 1), sampler.max_new_tokens)
        print_plans(sampler.sample([prompt], numbers).texts, actions)


def print_plans(texts: Sequence[str], actions: Actions = ALPHADRIVE) -> None:
    """The distinct plans of one picture's answers, with their counts and the text of one answer each."""
    for plan, count in Counter(plan_name(text, actions) for text in texts).most_common():
        reason = next(text for text in texts if plan_name(text, actions) == plan)
        print(f"{count}/{len(texts)}  {plan or 'no valid plan'}\n      {printable(reason)}")
