"""Reasons from a teacher model: `python -m data.distill --data FILE --output FILE --base-url URL --model NAME`.

For every example without a reason, an OpenAI-compatible chat endpoint is given the picture, speed, navigation and true
decision, and asked for one or two sentences why (AlphaDrive, arXiv:2503.07608, planning reasoning data). With
`--output teacher.jsonl` it writes teacher.jsonl (examples with accepted reasons), teacher.replies.jsonl (every reply)
and teacher.review.html (a page for checks by a person). The same command again asks only for what has no reply yet.
"""
import argparse
import email.utils
import hashlib
import http.client
import json
import math
import os
import queue
import random
import re
import signal
import ssl
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from data.builders.review import UNUSABLE, Judged, picture_urls, read_review, rejection, review_sheet
from data.dataset import check_images
from data.example import Example, named_views
from data.files import read_examples, write_examples
from rewards.action_file import read_actions
from rewards.actions import ALPHADRIVE, Actions
from storage import naming, write_text

VIEW, VIEWS = "The picture is the front view of a car", "The pictures are views of one moment from a car"
REQUEST = (
    "{view} that drives at {speed:.1f} m/s. Its navigation says: {navigation}. For the next three seconds its driver "
    "has decided to {decision}. Tell in one or two English sentences, at most 50 words, why this is right: first what "
    "you see that calls for it, such as lights, signs, other road users, lanes or obstacles, then what the speed and "
    "the route add, and end with the decision. Name only what can be seen. Write as the driver, in plain sentences, "
    "without heading, list or tags.")

REVIEWED = 200                           # most reasons of each kind on the review page
MAX_REPLY = 4 * 1024 * 1024              # bytes read of a reply; a usual one has a few thousand
MAX_WAIT = 600.0                         # seconds; after a longer Retry-After the run stops
MAX_FAILURES = 10                        # in a row; then the run stops
SECRET_LENGTH = 8                        # shorter keys are placeholders of local servers, such as "EMPTY"


class Unanswered(Exception):
    """A request failed. `again`: a retry may help, after `wait` seconds if known."""

    def __init__(self, message: str, again: bool = True, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait = again, wait


class Refused(Exception):
    """No request of this run can succeed: wrong key, address or model, or no credit left."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask; timeout in seconds. The key never appears in repr, messages or files."""
    url: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 5


class Question(NamedTuple):
    """One example as it is asked; `request` is a hash of everything that the reply depends on."""
    example: Example
    text: str
    request: str


class Answer(NamedTuple):
    """One line of the replies file."""
    id: str
    request: str
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


# ---------------------------------------------------------------- the question

def make_question(example: Example, model: str, side: int, folder: Path, actions: Actions = ALPHADRIVE) -> Question:
    """The question about one example. Raises: ValueError without speed or navigation."""
    if example.speed is None or example.navigation is None:
        raise ValueError(f"example {example.id!r} has no speed or no navigation, which the teacher needs; add the "
                         "fields 'speed' and 'navigation'")
    several = example.images or len(example.cameras or ()) > 1
    text = named_views(example) + REQUEST.format(
        view=VIEWS if several else VIEW, speed=example.speed, navigation=spoken(example.navigation),
        decision=" and ".join(map(actions.spoken, (example.decision.speed, example.decision.path))))
    files = ", ".join(os.path.relpath(picture, folder) for picture in example.pictures)
    picture = files or f"scene {example.scene}" + "".join(f", {view}" for view in example.cameras or ())
    digest = hashlib.sha256(json.dumps([model, text, picture, side]).encode()).hexdigest()
    return Question(example, text, digest[:16])


def spoken(navigation: dict[str, str] | str) -> str:
    if isinstance(navigation, str):
        return navigation.rstrip(".!? ")
    return ", ".join(f"{course} within {distance}" for distance, course in navigation.items())


def request_body(question: Question, model: str, side: int, extra: dict) -> bytes:
    """The JSON of a chat request, pictures before text. Fields of `extra` replace ours; null removes a field."""
    pictures = picture_urls(question.example, side)
    content = [*({"type": "image_url", "image_url": {"url": url}} for url in pictures),
               {"type": "text", "text": question.text}]
    fields = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 300, **extra}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


# ---------------------------------------------------------------- one request

def chat_url(base_url: str) -> str:
    """`https://host/v1` -> `https://host/v1/chat/completions`.

    Raises: ValueError, without the address, for another scheme, a user name, a query or a fragment.
    """
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d+)?(/[!-~]*)?", base_url) or set(base_url) & set("@?#"):
        raise ValueError("--base-url is not a bare address such as https://host/v1, without user name, query or "
                         "fragment; the key belongs in the environment")
    return base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def read_key(name: str) -> str:
    """The key from an environment variable, or "".

    Raises: ValueError, without the key, if it cannot be sent in a header.
    """
    key = os.environ.get(name, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"environment variable {name} holds blanks or other characters that no key has; set it again")
    return key


def post(endpoint: Endpoint, body: bytes) -> object:
    """Send one request and return the JSON of the reply.

    Redirects are not followed, because the key would be sent along. Proxies of the environment are used.

    Raises: Unanswered, Refused.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "drivegrpo"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.url, data=body, headers=headers, method="POST")
    opener = urllib.request.OpenerDirector()                # build_opener would follow redirects
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        with opener.open(request, timeout=endpoint.timeout) as response:
            reply = read_reply(response, time.monotonic() + endpoint.timeout)
    except (OSError, OverflowError, http.client.HTTPException) as error:    # refused, timed out, no such port, not HTTP
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise Refused("the endpoint's certificate is not valid; correct --base-url") from None
        raise Unanswered(f"no answer: {type(error).__name__} {one_line(masked(str(error), endpoint.key))}") from None
    reply = masked(reply, endpoint.key)
    if not 200 <= response.status < 300:
        raise failure(response.status, response.headers, reply)
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        raise Unanswered("the reply is not JSON") from None


def read_reply(response: http.client.HTTPResponse, deadline: float) -> str:
    """The body, by a total deadline: a socket's own time-out restarts with every byte."""
    reply = b""
    while len(reply) < MAX_REPLY and (piece := response.read1(65536)):
        reply += piece
        if time.monotonic() > deadline:
            raise TimeoutError("the reply arrives too slowly")
    return reply.decode("utf-8-sig", "replace")


def failure(status: int, headers: http.client.HTTPMessage, reply: str) -> Exception:
    """The exception for an HTTP status other than success, with the beginning of the reply."""
    said = one_line(reply)
    wait = retry_after(headers.get("Retry-After"), time.time())
    if 300 <= status < 400:
        return Refused(f"HTTP {status}: the endpoint redirects to another address, which would receive the key; if "
                       "that is right, give the final address as --base-url")
    if status in (401, 403):                                # the body may repeat a part of the key
        return Refused(f"HTTP {status}: the key is missing, wrong or not allowed to use this model; see --key-env")
    if status in (402, 404, 405) or "insufficient_quota" in reply:
        return Refused(f"HTTP {status}: {said}; check --base-url, --model and the account's credit")
    if wait is not None and wait > MAX_WAIT:
        return Refused(f"HTTP {status}: the endpoint asks to wait {wait:.0f} s; run the same command again later")
    return Unanswered(f"HTTP {status}: {said}", again=status in (408, 409, 425, 429) or status >= 500, wait=wait)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if it is neither.

    `now` is in seconds since 1970.
    """
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value or ""):
        return float(value)
    try:
        return max(email.utils.mktime_tz(email.utils.parsedate_tz(value)) - now, 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def masked(text: str, key: str) -> str:
    """Foreign text without the key, which an endpoint may repeat."""
    return text.replace(key, "[key]") if len(key) >= SECRET_LENGTH else text


def one_line(text: str) -> str:
    """At most 200 printable characters of foreign text for a message."""
    return re.sub(r"[^ -~]+|\s+", " ", text).strip()[:200]


def read_answer(document: object, question: Question) -> Answer:
    """The answer in a chat completion, with white space collapsed. Raises: Unanswered if there is none."""
    try:
        choice, usage = document["choices"][0], document.get("usage") or {}
        message = choice["message"]
        refusal = plain(message.get("refusal"))
        finish = "refusal" if refusal else choice.get("finish_reason")
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        counted = all(isinstance(count, int) for count in tokens)
        return Answer(question.example.id, question.request, plain(message.get("content")) or refusal,
                      finish, *(tokens if counted else (None, None)))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unanswered(f"the reply has no choice: {one_line(json.dumps(document))}") from None


def plain(content: object) -> str:
    """The text of a message or of its parts, as one clean line."""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    text = text.encode("utf-8", "replace").decode()         # a lone surrogate cannot be written to a file
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def ask(endpoint: Endpoint, question: Question, body: bytes, stop: threading.Event) -> Answer:
    """Post until there is an answer, at most 1 + retries times, with pauses that `stop` ends early.

    Raises: Unanswered, Refused.
    """
    for attempt in count():
        try:
            return read_answer(post(endpoint, body), question)
        except Unanswered as error:
            if not error.again or attempt == endpoint.retries or stop.wait(pause(attempt, error.wait, random.random())):
                raise


def pause(attempt: int, asked: float | None, chance: float) -> float:
    """Seconds before the next try: min(60, 2^attempt) * (1 + chance) / 2, with `chance` in [0, 1).

    If the endpoint asked for a pause, that pause plus `chance`, which spreads the threads.
    """
    return min(60.0, 2.0 ** attempt) * (1 + chance) / 2 if asked is None else asked + chance


# ---------------------------------------------------------------- many requests

def ask_all(questions: list[Question], answer: Callable[[Question], Answer], concurrency: int,
            stop: threading.Event) -> Iterator[tuple[Question, Answer | Exception]]:
    """Answers or errors as they arrive, `concurrency` requests at a time.

    After `stop` no request begins, but those in flight are waited for, because they are paid for.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    threads = range(min(concurrency, len(questions)))
    for item in (*questions, *(None for _ in threads)):     # each thread ends at a None
        waiting.put(item)

    def work() -> None:
        try:
            for question in iter(waiting.get, None):
                if stop.is_set():
                    break
                done.put((question, answer(question)))
        finally:
            done.put(None)

    for _ in threads:                                       # daemons, so that a second Ctrl-C does not wait for them
        threading.Thread(target=work, daemon=True).start()
    for _ in threads:
        yield from iter(done.get, None)


# ---------------------------------------------------------------- the replies file

def open_replies(path: Path) -> BinaryIO:
    """Open for appending, locked against a second run (not on Windows)."""
    file = open(path, "ab+")
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError:
        raise ValueError(f"{path}: another run is writing this file; wait until it ends") from None
    return file


def read_replies(file: BinaryIO, path: Path) -> dict[str, Answer]:
    """The answers by the ids of their examples. A last line that a crash cut off is removed.

    Raises: ValueError naming file, line and remedy.
    """
    file.seek(0)
    answers = {}
    for number, line in enumerate(file.readlines(), start=1):
        whole = line.endswith(b"\n")
        try:
            answer = Answer(**json.loads(line))
            valid = all(isinstance(value, str) for value in answer[:3])
        except (ValueError, TypeError, RecursionError):
            valid = False
        if valid:
            answers[answer.id] = answer
            file.write(b"" if whole else b"\n")
        elif whole:
            raise ValueError(f"{path}: line {number} is not a reply; remove the line, and its example is asked again")
        else:
            file.truncate(file.tell() - len(line))
    return answers


def append_reply(file: BinaryIO, answer: Answer) -> None:
    """Append one line and wait until it is on the disk."""
    file.write(json.dumps(answer._asdict(), ensure_ascii=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def open_questions(questions: list[Question], answers: dict[str, Answer], path: Path) -> list[Question]:
    """The questions without an answer. Raises: ValueError if the answer under an id is for another question."""
    for question in questions:
        answer = answers.get(question.example.id)
        if answer is not None and answer.request != question.request:
            raise ValueError(f"{path}: the reply for example {question.example.id!r} answers another request (model, "
                             "wording, picture, its size, speed, navigation or decision differ); choose another "
                             "--output, or remove the line to ask again")
    return [question for question in questions if question.example.id not in answers]


# ---------------------------------------------------------------- judging

def judge(questions: list[Question], answers: dict[str, Answer], review: dict[str, bool]) -> list[Judged]:
    """Every answered question with the verdict of the filter, or of a person where there is one.

    Raises: ValueError if the review names an example without a reply, or accepts an unusable reason.
    """
    answered = [question for question in questions if question.example.id in answers]
    if unknown := set(review) - {question.example.id for question in answered}:
        raise ValueError(f"--review names example {min(unknown)!r}, which has no reply here; give the file saved from "
                         "this output's sheet")
    judged = []
    for question in answered:
        example, answer = question.example, answers[question.example.id]
        rejected = rejection(answer.text, example.decision, answer.finish_reason)
        if review.get(example.id) and rejected in UNUSABLE:
            raise ValueError(f"--review accepts example {example.id!r}, whose reason is not usable: {rejected}")
        if example.id in review:
            rejected = None if review[example.id] else rejected or "by a person"
        judged.append(Judged(example, answer.text, rejected))
    return judged


def with_reasons(examples: list[Example], questions: list[Question], judged: list[Judged]) -> list[Example]:
    """The examples with an accepted reason, those with a reason of their own and those not asked, in their order."""
    accepted = {one.example.id: one.reason for one in judged if one.rejected is None}
    asked = {question.example.id for question in questions}
    return [replace(example, reasoning=accepted[example.id]) if example.id in accepted else example
            for example in examples if example.id in accepted or example.id not in asked or example.reasoning]


# ---------------------------------------------------------------- cost and progress

def tally_of(answer: Answer) -> Counter:
    """Counts of one answer, with the tokens that the endpoint reported."""
    return Counter(answered=1, prompt_tokens=answer.prompt_tokens or 0, uncounted=int(answer.prompt_tokens is None),
                   completion_tokens=answer.completion_tokens or 0)


def status_line(tally: Counter, total: int, flags: argparse.Namespace) -> str:
    """Progress and cost; prices are per million tokens."""
    prompt, completion = tally["prompt_tokens"], tally["completion_tokens"]
    cost = (prompt * flags.price_in + completion * flags.price_out) / 1e6
    line = f"{tally['answered']}/{total} answered, {tally['rejected']} rejected"
    line += f", {tally['failed']} failed" if tally["failed"] else ""
    line += f", {prompt:,} + {completion:,} tokens"
    line += f" ({tally['uncounted']} replies without a count)" if tally["uncounted"] else ""
    return line + (f", cost {cost:.4f}" if flags.price_in or flags.price_out else "")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


# ---------------------------------------------------------------- the command

def main(arguments: list[str] | None = None) -> None:
    """Exits with 0 if every question has its answer, else with a message."""
    stop = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)                # the second Ctrl-C interrupts
        os.write(2, b"\nstopping: waiting for the requests in flight (Ctrl-C again to quit now)\n")

    flags = read_flags(arguments)
    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        message = distill(flags, stop)
    except KeyboardInterrupt:
        message = "interrupted; run the same command again to continue"
    except (ValueError, OSError) as fault:
        message = f"error: {fault}"
    finally:
        signal.signal(signal.SIGINT, usual)
    if message:
        sys.exit(message)


def read_flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.distill", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", type=Path, required=True, help="examples file")
    flag("--image-root", type=Path, help="folder that holds all pictures (default: the examples' own folder)")
    flag("--actions", type=Path, help="lists of actions of your own; their `words` are told to the teacher")
    flag("--output", type=Path, required=True, help="examples file to write, with the accepted reasons")
    flag("--base-url", required=True, help="address of the endpoint without /chat/completions, such as https://host/v1")
    flag("--model", required=True, help="the teacher's name at that endpoint")
    flag("--key-env", default="OPENAI_API_KEY", help="environment variable that holds the key (%(default)s)")
    flag("--concurrency", type=number(int, 1), default=8, help="requests in parallel (%(default)s)")
    flag("--retries", type=number(int, 0), default=5, help="retries after a temporary fault (%(default)s)")
    flag("--timeout", type=number(float, 0.01), default=120.0, help="seconds for one reply (%(default)s)")
    flag("--image-side", type=number(int, 28), default=1024, help="longer side of the JPEG in pixels (%(default)s)")
    flag("--extra", type=json_object, default={}, help="JSON object of more request fields; null removes a field")
    flag("--limit", type=number(int, 1), help="ask about at most this many examples in this run")
    flag("--replace", action="store_true", help="ask about examples that have a reason, too")
    flag("--price-in", type=number(float, 0), default=0.0, help="price of a million prompt tokens, for the cost shown")
    flag("--price-out", type=number(float, 0), default=0.0, help="price of a million completion tokens")
    flag("--review", type=Path, help="review.json saved from the sheet; it overrules the filter")
    return parser.parse_args(arguments)


def number(kind: type, least: float) -> Callable[[str], float]:
    """A reader of numbers of at least `least`."""
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number ({kind.__name__}) of at least {least}")
        return value
    return read


def json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as {{\"temperature\": 0.2}}")
    return value


def distill(flags: argparse.Namespace, stop: threading.Event) -> str | None:
    """Ask, judge all answers, write examples and review sheet. Returns a message if answers are missing.

    Raises: ValueError, FileNotFoundError for wrong flags and files, before anything is asked.
    """
    endpoint = Endpoint(chat_url(flags.base_url), read_key(flags.key_env), flags.timeout, flags.retries)
    replies, sheet = (flags.output.with_suffix(ending) for ending in (".replies.jsonl", ".review.html"))
    if flags.data.resolve() in (flags.output.resolve(), replies.resolve()):
        raise ValueError(f"--output {flags.output} would overwrite --data; choose another name")
    if flags.output.exists() and not replies.exists():      # not what this command wrote
        raise ValueError(f"--output {flags.output} exists; choose another name")
    actions = read_actions(flags.actions) if flags.actions else ALPHADRIVE
    loaded = read_examples(flags.data, flags.image_root, actions=actions)
    for line in loaded.lines():
        tell(f"{flags.data}: {line}")
    examples = loaded.examples
    review = read_review(flags.review) if flags.review else {}
    questions = [make_question(example, flags.model, flags.image_side, flags.data.parent, actions)
                 for example in examples if flags.replace or example.reasoning is None]
    if not questions:
        raise ValueError(f"{flags.data}: every example has a reason already; use --replace to ask for new ones")
    check_images([question.example for question in questions])
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    with naming(replies), open_replies(replies) as file:
        answers = read_replies(file, replies)
        todo = open_questions(questions, answers, replies)[:flags.limit]
        judge(questions, answers, review)                   # a wrong review is found before money is spent
        warn_of_plain_http(endpoint)
        fault = collect(todo, answers, file, partial(answer_or_fault, endpoint, flags, stop), flags, stop)
    judged = judge(questions, answers, review)
    tally = sum((tally_of(answers[one.example.id]) for one in judged), Counter())
    tally["rejected"] = sum(one.rejected is not None for one in judged)
    tell(f"all runs: {status_line(tally, len(questions), flags)}")
    write_examples(kept := with_reasons(examples, questions, judged), flags.output)
    if stop.is_set():
        return fault or f"interrupted; {flags.output} holds the reasons so far; run the same command again to continue"
    write_text(sheet, review_sheet(judged, REVIEWED, flags.output.name))
    return fault or (None if kept else f"error: none of {len(judged)} reasons was accepted, so {flags.output} is "
                     f"empty; {sheet} says why, and --review overrules the filter")


def warn_of_plain_http(endpoint: Endpoint) -> None:
    parts = urlsplit(endpoint.url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if endpoint.key and parts.scheme == "http" and not local:
        tell(f"warning: http to {parts.hostname} sends key and pictures unencrypted")


def answer_or_fault(endpoint: Endpoint, flags: argparse.Namespace, stop: threading.Event,
                    question: Question) -> Answer | Exception:
    """One question's answer or its fault; after a Refused no thread begins another request."""
    try:
        body = request_body(question, flags.model, flags.image_side, flags.extra)
        return ask(endpoint, question, body, stop)
    except (Refused, Unanswered, ValueError, OSError) as error:                 # the last two: an unreadable picture
        if isinstance(error, Refused):
            stop.set()
        return error


def collect(todo: list[Question], answers: dict[str, Answer], file: BinaryIO, answer: Callable[[Question], Answer],
            flags: argparse.Namespace, stop: threading.Event) -> str | None:
    """Ask `todo`; add each answer to `answers` and the file as it arrives. Returns a message if some are missing."""
    tally, fault, in_a_row, shown = Counter(), None, 0, time.monotonic()
    for question, result in ask_all(todo, answer, flags.concurrency, stop):
        if isinstance(result, Answer):
            append_reply(file, result)
            answers[result.id], in_a_row = result, 0
            tally += tally_of(result)
            tally["rejected"] += rejection(result.text, question.example.decision, result.finish_reason) is not None
        else:
            tally["failed"], in_a_row = tally["failed"] + 1, in_a_row + isinstance(result, Unanswered)
            tell(f"example {question.example.id!r}: {result}")
            if isinstance(result, Refused) or in_a_row >= MAX_FAILURES and not stop.is_set():
                fault = fault or f"error: stopped at example {question.example.id!r}: {result}"
                stop.set()
        if time.monotonic() - shown > 5.0:
            tell(status_line(tally, len(todo), flags))
            shown = time.monotonic()
    missing = sum(question.example.id not in answers for question in todo)
    if fault is None and missing and not stop.is_set():
        fault = f"error: {missing} of {len(todo)} examples have no answer; run the same command again to ask for them"
    return fault


if __name__ == "__main__":
    main()
