"""Reasons from a teacher model: `python -m data.distill --data FILE --output FILE --base-url URL --model NAME`.

Every example without a reason is put to an OpenAI-compatible chat endpoint: picture, speed, navigation and the true
decision, with the request for one or two sentences why (AlphaDrive, arXiv:2503.07608, planning reasoning data). Beside
OUTPUT.jsonl, the examples with the reasons that passed, stand OUTPUT.replies.jsonl, every answer as it came, and
OUTPUT.review.html, the page for the check by a person. The same command again asks only what has no answer yet.
"""
import argparse
import contextlib
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
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from data.builders.review import UNUSABLE, Judged, picture_url, read_review, rejection, review_sheet
from data.dataset import check_images
from data.example import Example
from data.files import load_examples, write_examples

REQUEST = (
    "The picture is the front view of a car that drives at {speed:.1f} m/s. Its navigation says: {navigation}. For the "
    "next three seconds its driver has decided to {decision}. Tell in one or two English sentences, at most 50 words, "
    "why this is right: first what you see that calls for it, such as lights, signs, other road users, lanes or "
    "obstacles, then what the speed and the route add, and end with the decision. Name only what can be seen. Write as "
    "the driver, in plain sentences, without heading, list or tags.")
SPEED_REQUEST = {"KEEP": "keep the speed", "ACCELERATE": "accelerate", "DECELERATE": "slow down",
                 "STOP": "stop or stay stopped"}
PATH_REQUEST = {"STRAIGHT": "go straight on in the own lane", "LEFT_TURN": "turn left", "RIGHT_TURN": "turn right",
                "LEFT_CHANGE": "change to the lane on the left", "RIGHT_CHANGE": "change to the lane on the right"}

MAX_REPLY = 4 * 1024 * 1024              # bytes; a reply of a few sentences has a few thousand
MAX_WAIT = 600.0                         # seconds; an endpoint that wants more has run out for today
MAX_FAILURES = 10                        # in a row; after these no later example will fare better
SECRET_LENGTH = 8                        # shorter keys ("EMPTY", "none") are placeholders of local servers


class Unanswered(Exception):
    """One request brought no answer. `again`: asking once more may help, after `wait` seconds if that is known."""

    def __init__(self, message: str, again: bool = True, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait = again, wait


class Refused(Exception):
    """The endpoint will answer no request of this run: wrong key, address or model, or no credit left."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where and how to ask. Units: seconds. The key is left out of repr, and of every message and file."""
    url: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 5
    first_wait: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """One example as it is asked; `request` is a hash of all that decides what the answer is about."""
    example: Example
    text: str
    request: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of the replies file."""
    id: str
    request: str
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


# ---------------------------------------------------------------- the question

def make_question(example: Example, model: str, side: int, folder: Path) -> Question:
    """Raises: ValueError if speed or navigation is not known."""
    if example.speed is None or example.navigation is None:
        raise ValueError(f"example {example.id!r} has no speed or no navigation, and the teacher is told both; add the "
                         "fields 'speed' and 'navigation'")
    text = REQUEST.format(speed=example.speed, navigation=spoken(example.navigation),
                          decision=f"{SPEED_REQUEST[example.decision.speed]} and {PATH_REQUEST[example.decision.path]}")
    picture = f"scene {example.scene}" if example.image is None else os.path.relpath(example.image, folder)
    digest = hashlib.sha256(json.dumps([model, text, picture, side]).encode()).hexdigest()
    return Question(example=example, text=text, request=digest[:16])


def spoken(navigation: dict[str, str] | str) -> str:
    if isinstance(navigation, str):
        return navigation.rstrip(".!? ")
    return ", ".join(f"{course} within {distance}" for distance, course in navigation.items())


def request_body(question: Question, model: str, side: int, max_tokens: int, extra: dict) -> bytes:
    """The JSON of a chat request: picture before text. A field of `extra` replaces ours; null takes it out."""
    content = [{"type": "image_url", "image_url": {"url": picture_url(question.example, side)}},
               {"type": "text", "text": question.text}]
    fields = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, **extra}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


# ---------------------------------------------------------------- one request

def chat_url(base_url: str) -> str:
    """`https://host/v1` -> `https://host/v1/chat/completions`.

    Raises: ValueError for another scheme than http and https, and for an address that carries a secret.
    """
    try:
        parts = urlsplit(base_url)
        whole = parts.hostname and (parts.port is None or parts.port > 0) and re.fullmatch(r"[!-~]+", base_url)
    except ValueError:
        whole, parts = False, urlsplit("")
    if not whole or parts.scheme not in ("http", "https"):
        raise ValueError(f"--base-url of scheme {parts.scheme!r} is not an address of the form https://host/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("--base-url holds a user name, a query or a fragment: give the bare address; the key belongs "
                         "into the environment")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions"


def read_key(name: str) -> str:
    """The key in an environment variable, "" if there is none.

    Raises: ValueError, without the value, if it cannot stand in a header.
    """
    key = os.environ.get(name, "").strip()
    if key and not re.fullmatch(r"[!-~]+", key):
        raise ValueError(f"environment variable {name} holds blanks or signs that no key has; set it again")
    return key


def post(endpoint: Endpoint, body: bytes) -> object:
    """Send one request and read the JSON that comes back.

    Redirects are not followed: the key would travel along. Proxies of the environment are used.

    Raises: Unanswered, Refused.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "drivegrpo"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.url, data=body, headers=headers, method="POST")
    opener = urllib.request.OpenerDirector()                # not build_opener: that one follows redirects
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        opener.add_handler(handler())
    try:
        with opener.open(request, timeout=endpoint.timeout) as response:
            reply = read_reply(response, time.monotonic() + endpoint.timeout)
    except (OSError, http.client.HTTPException) as error:   # refused, timed out, closed half-way, not HTTP at all
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise Refused("the endpoint's certificate is not valid; correct --base-url") from None
        raise Unanswered(f"no answer: {one_line(f'{type(error).__name__} {error}', endpoint.key)}") from None
    if not 200 <= response.status < 300:
        raise failure(response.status, response.headers, one_line(reply.decode(errors="replace"), endpoint.key))
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        raise Unanswered("the reply is not JSON") from None


def read_reply(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body, as long as it comes in time: a socket's own limit begins anew with every byte."""
    reply = b""
    while piece := response.read1(65536):
        reply += piece
        if len(reply) > MAX_REPLY:
            raise Unanswered(f"the reply is longer than {MAX_REPLY} bytes", again=False)
        if time.monotonic() > deadline:
            raise TimeoutError("the reply comes too slowly")
    return reply


def failure(status: int, headers: http.client.HTTPMessage, said: str) -> Exception:
    """What an HTTP status other than success means for the run."""
    wait = retry_after(headers.get("Retry-After"), datetime.now(timezone.utc))
    if 300 <= status < 400:
        return Refused(f"HTTP {status}: the endpoint sends us to another address, and the key does not go there by "
                       "itself; give the final address as --base-url")
    if status in (401, 403):                                # what it says may repeat a part of the key
        return Refused(f"HTTP {status}: the key is missing, wrong or lacks the right to this model; see --key-env")
    if status in (402, 404, 405) or "insufficient_quota" in said:
        return Refused(f"HTTP {status}: {said}; check --base-url, --model and the account's credit")
    if wait is not None and wait > MAX_WAIT:
        return Refused(f"HTTP {status}: the endpoint asks to wait {wait:.0f} s; run the same command again later")
    return Unanswered(f"HTTP {status}: {said}", again=status in (408, 409, 425, 429) or status >= 500, wait=wait)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds asked for in a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if there is no sense."""
    if value is None:
        return None
    try:
        date = None if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", value) else email.utils.parsedate_to_datetime(value)
        if date is None:
            return float(value)
        return max((date.replace(tzinfo=date.tzinfo or timezone.utc) - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def one_line(text: str, key: str) -> str:
    """At most 200 plain characters of what somebody else wrote, for a message; the key is blotted out."""
    return re.sub(r"[^ -~]+|\s+", " ", blotted(text, key)).strip()[:200]


def blotted(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= SECRET_LENGTH else text


def read_answer(document: object, question: Question, key: str) -> Answer:
    """The answer in a chat completion, its white space joined to single blanks.

    Raises: Unanswered if there is none.
    """
    choices = document.get("choices") if isinstance(document, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        said = document.get("error", "") if isinstance(document, dict) else ""
        raise Unanswered(f"the reply holds no choice {one_line(str(said), key)}".strip())
    usage = document.get("usage") if isinstance(document.get("usage"), dict) else {}
    refusal, finish = plain(message.get("refusal")), choice.get("finish_reason")
    return Answer(id=question.example.id, request=question.request,
                  text=blotted(plain(message.get("content")) or refusal, key),
                  finish_reason="refusal" if refusal else finish if isinstance(finish, str) else None,
                  prompt_tokens=count_or_none(usage.get("prompt_tokens")),
                  completion_tokens=count_or_none(usage.get("completion_tokens")))


def plain(content: object) -> str:
    """A message's text, or that of its parts, as one clean line."""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    text = text.encode("utf-8", "replace").decode()         # half of a surrogate pair cannot be written to a file
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def count_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def ask(endpoint: Endpoint, question: Question, body: bytes, stop: threading.Event) -> Answer:
    """Post until there is an answer, at most 1 + retries times; waits between, which `stop` cuts short.

    Raises: Unanswered, Refused.
    """
    attempt = 0
    while True:
        try:
            return read_answer(post(endpoint, body), question, endpoint.key)
        except Unanswered as error:
            if not error.again or attempt == endpoint.retries:
                raise
            if stop.wait(pause(attempt, error.wait, endpoint.first_wait, random.random())):
                raise
        attempt += 1


def pause(attempt: int, asked: float | None, first_wait: float, chance: float) -> float:
    """Seconds before the next try: min(60, first_wait * 2^attempt) * (1/2 .. 1), where `chance` in [0, 1) says.

    The share by chance keeps the threads from coming back as one. What the endpoint asked for is never undercut, and
    up to `first_wait` seconds come on top of it.
    """
    if asked is not None:
        return asked + first_wait * chance
    return min(60.0, first_wait * 2 ** attempt) * (0.5 + chance / 2)


# ---------------------------------------------------------------- many requests

def ask_all(questions: list[Question], answer: Callable[[Question], Answer], concurrency: int,
            stop: threading.Event) -> Iterator[tuple[Question, Answer | Exception]]:
    """Answers or errors as they arrive, `concurrency` requests at a time.

    After `stop` no further request begins, and those under way are waited for: they are paid for.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for question in questions:
        waiting.put(question)
    threads = min(concurrency, len(questions))
    for _ in range(threads):                               # daemons: a second Ctrl-C need not wait for the network
        threading.Thread(target=work, args=(waiting, done, answer, stop), daemon=True).start()
    while threads:
        result = done.get()
        if result is None:
            threads -= 1
        else:
            yield result


def work(waiting: queue.SimpleQueue, done: queue.SimpleQueue, answer: Callable[[Question], Answer],
         stop: threading.Event) -> None:
    """One thread: take a question, put what came of it, until there are no more."""
    try:
        while not stop.is_set() and not waiting.empty():
            question = waiting.get_nowait()
            try:
                done.put((question, answer(question)))
            except Refused as error:
                stop.set()                                  # here, so that this thread begins no other request
                done.put((question, error))
            except (Unanswered, ValueError, OSError) as error:              # the last two: a picture cannot be read
                done.put((question, error))
    except queue.Empty:                                     # another thread took the last question
        pass
    finally:
        done.put(None)


# ---------------------------------------------------------------- the replies file

def open_replies(path: Path) -> BinaryIO:
    """Open for appending, repaired and locked against a second run.

    A last line that a crash cut off is taken out, so that its example is asked again.
    """
    file = open(path, "ab+")
    lock(file, path)
    file.seek(0)
    content = file.read()
    rest = content.rpartition(b"\n")[2]
    if rest:
        file.write(b"\n") if is_object(rest) else file.truncate(len(content) - len(rest))
        file.flush()
    return file


def lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:                                     # not on Windows: there the user takes care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path}: another run is writing this file; wait for its end") from None


def is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_replies(file: BinaryIO, path: Path) -> dict[str, Answer]:
    """Raises: ValueError naming file, line and remedy."""
    file.seek(0)
    answers = {}
    for number, line in enumerate(file, start=1):
        try:
            answer = Answer(**json.loads(line))
            known = all(isinstance(value, str) for value in (answer.id, answer.request, answer.text))
        except (ValueError, TypeError, RecursionError):
            known = False
        if not known:
            raise ValueError(f"{path}: line {number} is not a reply; remove the line, its example is then asked again")
        answers[answer.id] = answer
    return answers


def append_reply(file: BinaryIO, answer: Answer) -> None:
    """One line, on the disk before the next answer is looked at."""
    file.write(json.dumps(asdict(answer)).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def open_questions(questions: list[Question], answers: dict[str, Answer], path: Path) -> list[Question]:
    """Those without an answer.

    Raises: ValueError if an answer was given to another question under the same id.
    """
    for question in questions:
        answer = answers.get(question.example.id)
        if answer is not None and answer.request != question.request:
            raise ValueError(f"{path}: the reply for example {question.example.id!r} answers another request (model, "
                             "wording, picture, its size, speed, navigation or decision differ); choose another "
                             "--output, or remove the line to ask again")
    return [question for question in questions if question.example.id not in answers]


# ---------------------------------------------------------------- judging

def judge(questions: list[Question], answers: dict[str, Answer], review: dict[str, bool]) -> list[Judged]:
    """Every answered question with the filter's verdict, or a person's where there is one.

    Raises: ValueError if the review names an example without a reply, or accepts what no target can be made of.
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
        judged.append(Judged(example=example, reason=answer.text, rejected=rejected))
    return judged


def with_reasons(examples: list[Example], questions: list[Question], judged: list[Judged]) -> list[Example]:
    """In their order: the examples with an accepted reason, and those that were not to be asked."""
    accepted = {one.example.id: one.reason for one in judged if one.rejected is None}
    asked = {question.example.id for question in questions}
    return [replace(example, reasoning=accepted[example.id]) if example.id in accepted else example
            for example in examples if example.id in accepted or example.id not in asked]


# ---------------------------------------------------------------- cost and progress

def tally_of(answer: Answer) -> Counter:
    """Counts of one answer; tokens as far as the endpoint told them."""
    counted = answer.prompt_tokens is not None and answer.completion_tokens is not None
    return Counter(answered=1, prompt_tokens=answer.prompt_tokens or 0, uncounted=int(not counted),
                   completion_tokens=answer.completion_tokens or 0)


def status_line(tally: Counter, total: int, prices: tuple[float, float] | None) -> str:
    """Progress and cost; prices are for a million tokens of the prompt and of the completion."""
    prompt, completion, uncounted = (tally[name] for name in ("prompt_tokens", "completion_tokens", "uncounted"))
    line = f"{tally['answered']}/{total} answered, {tally['rejected']} rejected"
    line += f", {tally['failed']} failed" if tally["failed"] else ""
    line += f", {prompt:,} + {completion:,} tokens"
    if uncounted:
        line += f" ({uncounted} replies without a count)"
    if prices is not None:
        line += f", cost {(prompt * prices[0] + completion * prices[1]) / 1e6:.4f}"
    return line


def show(tally: Counter, total: int, prices: tuple[float, float] | None, started: float, shown: float) -> float:
    """The status on standard error, now and then, with the minutes left; returns when it was last shown."""
    now, done, terminal = time.monotonic(), tally["answered"] + tally["failed"], sys.stderr.isatty()
    if now - shown < (0.2 if terminal else 15.0) and done < total:
        return shown
    minutes = math.ceil((now - started) / done * (total - done) / 60)
    left = f", about {minutes} min left" if done < total else ""
    tell(("\r\033[K" if terminal else "") + status_line(tally, total, prices) + left,
         "" if terminal and done < total else "\n")
    return now


def tell(text: str, end: str = "\n") -> None:
    sys.stderr.write(text + end)
    sys.stderr.flush()


# ---------------------------------------------------------------- the command

def main(arguments: list[str] | None = None) -> None:
    """Exits with 0 when every example asked has its answer, else with a message."""
    stop = threading.Event()
    try:
        flags = read_flags(arguments)
        with soft_interrupt(stop):
            message = distill(flags, stop)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command again goes on from here")
    except (ValueError, OSError) as fault:
        sys.exit(f"error: {fault}")
    if message:
        sys.exit(message)


def read_flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.distill", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", type=Path, required=True, help="examples file")
    flag("--image-root", type=Path, help="folder that holds all pictures (default: the examples' own folder)")
    flag("--output", type=Path, required=True, help="examples file to write, those with a reason that passed")
    flag("--base-url", required=True, help="address of the endpoint without /chat/completions: https://host/v1")
    flag("--model", required=True, help="the teacher's name at that endpoint")
    flag("--key-env", default="OPENAI_API_KEY", help="environment variable that holds the key (%(default)s)")
    flag("--concurrency", type=whole(1), default=8, help="requests at a time (%(default)s)")
    flag("--retries", type=whole(0), default=5, help="further tries after a passing fault (%(default)s)")
    flag("--timeout", type=positive, default=120.0, help="seconds for one reply (%(default)s)")
    flag("--image-side", type=whole(28), default=1024, help="longer side of the JPEG in pixels (%(default)s)")
    flag("--max-tokens", type=whole(1), default=300, help="limit of one reply (%(default)s)")
    flag("--extra", type=json_object, default={}, help="JSON object of further request fields; null removes one")
    flag("--limit", type=whole(1), help="ask at most so many examples in this run")
    flag("--replace", action="store_true", help="ask also for examples that have a reason")
    flag("--price-in", type=positive, help="price of a million prompt tokens")
    flag("--price-out", type=positive, help="price of a million completion tokens")
    flag("--review", type=Path, help="review.json saved from the sheet: its choices overrule the filter")
    flag("--review-count", type=whole(1), default=200, help="rejected and accepted reasons each (%(default)s)")
    return parser.parse_args(arguments)


def whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
        return int(text)
    return number


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number > 0")
    return value


def json_object(text: str) -> dict:
    if not is_object(text.encode()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as {{\"temperature\": 0.2}}")
    return json.loads(text)


@contextlib.contextmanager
def soft_interrupt(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C sets `stop`, so that no line is left half-written; the second one interrupts."""
    def interrupt(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, b"\nstopping: waiting for the answers under way (Ctrl-C again: do not wait)\n")

    if threading.current_thread() is not threading.main_thread():
        yield                                               # Python allows signal handlers in the main thread alone
        return
    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def distill(flags: argparse.Namespace, stop: threading.Event) -> str | None:
    """Ask what is open, judge every answer, write examples and review sheet; what is left to say if not all went well.

    Raises: ValueError, FileNotFoundError for flags and files that do not fit, before anything is asked.
    """
    endpoint = Endpoint(url=chat_url(flags.base_url), key=read_key(flags.key_env), timeout=flags.timeout,
                        retries=flags.retries)
    replies, sheet = (flags.output.with_suffix(ending) for ending in (".replies.jsonl", ".review.html"))
    if flags.data.resolve() in (flags.output.resolve(), replies.resolve()):
        raise ValueError(f"--output {flags.output} would write over --data; choose another name")
    examples = load_examples(flags.data, flags.image_root)
    review = read_review(flags.review) if flags.review else {}
    questions = [make_question(example, flags.model, flags.image_side, flags.data.parent)
                 for example in examples if flags.replace or example.reasoning is None]
    if not questions:
        raise ValueError(f"{flags.data}: every example has a reason already; --replace asks for new ones")
    check_images([question.example for question in questions])
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    with open_replies(replies) as file:
        answers = read_replies(file, replies)
        todo = open_questions(questions, answers, replies)[:flags.limit]
        judge(questions, answers, review)                   # a review that does not fit shows before money is spent
        warn_of_plain_http(endpoint)
        fault = collect(todo, answers, file, endpoint, flags, stop)
    judged = judge(questions, answers, review)
    tally = sum((tally_of(answers[one.example.id]) for one in judged), Counter())
    tally["rejected"] = sum(one.rejected is not None for one in judged)
    tell(f"all runs: {status_line(tally, len(questions), prices_of(flags))}")
    write_examples(with_reasons(examples, questions, judged), flags.output)
    if stop.is_set():
        return fault or f"interrupted; {flags.output} holds what is there, the same command again goes on from here"
    sheet.write_text(review_sheet(judged, flags.review_count, flags.output.name), encoding="utf-8")
    return fault


def warn_of_plain_http(endpoint: Endpoint) -> None:
    parts = urlsplit(endpoint.url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if endpoint.key and parts.scheme == "http" and not local:
        tell(f"warning: http to {parts.hostname} sends key and pictures unencrypted")


def collect(todo: list[Question], answers: dict[str, Answer], file: BinaryIO, endpoint: Endpoint,
            flags: argparse.Namespace, stop: threading.Event) -> str | None:
    """Ask `todo`, keep each answer in `answers` and the file as it arrives; the message of what went wrong, or None."""
    def answer(question: Question) -> Answer:
        body = request_body(question, flags.model, flags.image_side, flags.max_tokens, flags.extra)
        return ask(endpoint, question, body, stop)

    tally, fault, in_a_row, prices = Counter(), None, 0, prices_of(flags)
    started = shown = time.monotonic()
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
        shown = show(tally, len(todo), prices, started, shown)
    missing = sum(question.example.id not in answers for question in todo)
    if fault is None and missing and not stop.is_set():
        fault = f"error: {missing} of {len(todo)} examples have no answer; the same command again asks them once more"
    return fault


def prices_of(flags: argparse.Namespace) -> tuple[float, float] | None:
    if flags.price_in is None and flags.price_out is None:
        return None
    return flags.price_in or 0.0, flags.price_out or 0.0


if __name__ == "__main__":
    main()
