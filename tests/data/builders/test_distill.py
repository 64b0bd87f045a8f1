"""Reasons from a teacher: a local endpoint that misbehaves, answers that survive, and the command as a whole."""
import json
import os
import re
import signal
import ssl
import threading
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from data import Example, load_examples
from data.builders import distill
from data.files import write_examples
from rewards import Decision

KEY = "sk-very-secret-0123456789"
GOOD = "The light ahead is red, so I stop and stay in my lane."
STOP = Decision("STOP", "STRAIGHT")


def completion(text=GOOD, **changes):
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 20}, **changes}


class Teacher(ThreadingHTTPServer):
    """An endpoint on a free port. `replies`: what to do with request 0, 1, ...; after these it answers well."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests, self.lock = [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass                                                  # a client that hangs up is part of the tests


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((self.path, dict(self.headers), body))
        act = self.server.replies[number] if number < len(self.server.replies) else send()
        act(self)

    def log_message(self, *arguments):
        pass


def send(document=None, status=200, body=None, headers=()):
    """The behaviour: answer with a JSON document, or with raw bytes."""
    def act(handler):
        data = json.dumps(completion() if document is None else document).encode() if body is None else body
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
    return act


def say(text, **changes):
    return send(completion(text, **changes))


def fail(status, message="try later", **headers):
    return send({"error": {"message": message}}, status, headers=[(k.replace("_", "-"), v) for k, v in headers.items()])


def hang_up(handler):
    handler.connection.close()


def repeat_the_key(handler):
    handler.wfile.write(f"key {KEY}\r\n".encode())              # no status line


def half_a_reply(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def silence(handler):
    time.sleep(5.0)


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.fixture
def teacher(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Teacher() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def pauses(monkeypatch):
    """Waits between tries take no time; what they were asked for is kept."""
    asked = []

    def pause(attempt, wait, chance):
        asked.append((attempt, wait))
        return 0.0
    monkeypatch.setattr(distill, "pause", pause)
    return asked


@pytest.fixture
def run(teacher, tmp_path):
    """run(*flags) -> exit message or None; the data has four examples without reasons unless written before."""
    write_data(tmp_path, 4)

    def call(*flags, output="out.jsonl"):
        try:
            distill.main(["--data", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output), "--base-url",
                          teacher.url, "--model", "teacher-1", "--concurrency", "1", "--timeout", "5", *flags])
        except SystemExit as stop:
            return stop.code
        return None
    return call


def write_data(folder, count, **changes):
    examples = [Example(**{"id": f"e{i}", "scene": i, "speed": 4.2, "navigation": {"100m": "Straight"},
                           "decision": STOP, **changes}) for i in range(count)]
    write_examples(examples, folder / "in.jsonl")


def replies_of(folder):
    return [json.loads(line) for line in (folder / "out.replies.jsonl").read_text().splitlines()]


def reasons_of(folder):
    return {example.id: example.reasoning for example in load_examples(folder / "out.jsonl")}


# ---------------------------------------------------------------- the request

def test_request_and_result(run, teacher, tmp_path, capsys):
    assert run("--concurrency", "2", "--price-in", "2.5", "--price-out", "10") is None
    assert reasons_of(tmp_path) == {f"e{i}": GOOD for i in range(4)}
    path, headers, body = teacher.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], len(body["messages"])) == ("teacher-1", 300, 1)
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    for words in ("4.2 m/s", "Straight within 100m", "stop or stay stopped and go straight on", "one or two English"):
        assert words in text["text"]
    # 4 replies of 900 + 20 tokens: (3600 * 2.5 + 80 * 10) / 1e6 = 0.0098
    assert "all runs: 4/4 answered, 0 rejected, 3,600 + 80 tokens, cost 0.0098" in capsys.readouterr().err


@pytest.mark.parametrize(("cameras", "begins"), [
    (None, "The picture is the front view of a car that drives at 4.2 m/s."),
    (["front", "front_left"], "The pictures show, in this order: front, front left. The pictures are views of one "
                              "moment from a car that drives at 4.2 m/s.")])
def test_the_request_speaks_of_the_pictures_that_are_sent(run, teacher, tmp_path, cameras, begins):
    write_data(tmp_path, 1, cameras=cameras)
    assert run() is None
    *pictures, text = teacher.requests[0][2]["messages"][0]["content"]
    assert len(pictures) == len(cameras or ["front"]) and text["text"].startswith(begins)


def test_extra_fields_replace_and_remove(run, teacher):
    assert run("--limit", "1", "--extra", '{"max_tokens": null, "max_completion_tokens": 50, "temperature": 0}') is None
    body = teacher.requests[0][2]
    assert "max_tokens" not in body and body["max_completion_tokens"] == 50 and body["temperature"] == 0


def test_without_a_key_no_header(run, teacher, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run() is None
    assert "Authorization" not in teacher.requests[0][1]


def test_requests_at_a_time(run, teacher, tmp_path):
    waiting, most = [], []

    def slow(handler):
        waiting.append(handler)
        time.sleep(0.1)
        most.append(len(waiting))
        waiting.remove(handler)             # before the reply, after which the next request may come at once
        send()(handler)
    write_data(tmp_path, 9)
    teacher.replies = [slow] * 9
    assert run("--concurrency", "3") is None
    assert max(most) == 3 and len(teacher.requests) == 9


# ---------------------------------------------------------------- an endpoint that misbehaves

@pytest.mark.parametrize("fault", [
    fail(429), fail(500), fail(503), fail(408), hang_up, half_a_reply, send(body=b"<html>busy</html>"),
    send(body=b"\xff\xfe"), send(body=b"[" * 100_000), send({"choices": []}), send({"choices": [{"message": None}]}),
    send({"error": {"message": "overloaded"}}), send([1])])
def test_passing_faults_are_tried_again(run, teacher, tmp_path, pauses, fault):
    teacher.replies = [send(), fault, fault]
    assert run("--retries", "2") is None
    assert len(teacher.requests) == 6 and len(replies_of(tmp_path)) == 4       # 4 examples and 2 more tries
    assert [attempt for attempt, _ in pauses] == [0, 1]


@pytest.mark.parametrize("fault", [silence, drip])
def test_slow_replies_time_out(run, teacher, tmp_path, pauses, fault):
    write_data(tmp_path, 1)
    teacher.replies = [fault]
    started = time.monotonic()
    assert run("--timeout", "0.3") is None
    assert len(teacher.requests) == 2 and time.monotonic() - started < 4       # silence and drip last 5 s


def test_tries_run_out_and_the_rest_goes_on(run, teacher, tmp_path, pauses, capsys):
    teacher.replies = [fail(500, "boom")] * 3
    assert run("--retries", "2") == (
        "error: 1 of 4 examples have no answer; run the same command again to ask for them")
    assert "example 'e0': HTTP 500: {\"error\": {\"message\": \"boom\"}}" in capsys.readouterr().err
    assert set(reasons_of(tmp_path)) == {"e1", "e2", "e3"}
    assert run() is None                                                       # asks e0 alone
    assert len(teacher.requests) == 3 + 3 + 1 and list(reasons_of(tmp_path)) == ["e0", "e1", "e2", "e3"]


def test_a_request_that_is_wrong_is_not_tried_again(run, teacher, pauses):
    teacher.replies = [fail(400, "bad picture")]
    assert run().startswith("error: 1 of 4 examples")
    assert len(teacher.requests) == 4 and not pauses


def test_retry_after_is_kept(run, teacher, pauses):
    teacher.replies = [fail(429, Retry_After="7"), fail(503, Retry_After="soon")]
    assert run() is None
    assert pauses == [(0, 7.0), (1, None)]


def test_retry_after_takes_its_time(run, teacher, tmp_path):
    write_data(tmp_path, 1)
    teacher.replies = [fail(429, Retry_After="1")]
    started = time.monotonic()
    assert run() is None
    assert 1.0 <= time.monotonic() - started < 3.5                             # 1 s, and up to 1 s more by chance


@pytest.mark.parametrize(("status", "headers", "message"), [
    (401, {}, "the key is missing, wrong"), (403, {}, "the key is missing, wrong"), (404, {}, "check --base-url"),
    (429, {"Retry_After": "3601"}, "asks to wait 3601 s"), (302, {"Location": "http://127.0.0.1:9/"}, "final address")])
def test_faults_of_every_request_stop_the_run(run, teacher, tmp_path, status, headers, message):
    teacher.replies = [send(), fail(status, **headers)]
    stopped = run()
    assert stopped.startswith(f"error: stopped at example 'e1': HTTP {status}: ") and message in stopped
    assert len(teacher.requests) == 2 and set(reasons_of(tmp_path)) == {"e0"}


def test_wrong_certificate_stops_the_run(run, teacher, monkeypatch):
    def refuse(self, request, timeout):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    assert run() == "error: stopped at example 'e0': the endpoint's certificate is not valid; correct --base-url"


def test_no_credit_left_stops_the_run(run, teacher):
    error = {"message": "You exceeded your current quota, please check your plan and billing details. For more "
             "information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/"
             "api-errors.", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    teacher.replies = [send({"error": error}, 429)]
    assert "exceeded your current quota" in run() and len(teacher.requests) == 1


def test_ten_failures_in_a_row_stop_the_run(run, teacher, tmp_path):
    def slow(handler):
        time.sleep(0.5)
        send()(handler)
    write_data(tmp_path, 40)
    teacher.replies = [fail(400)] * 9 + [send()] + [fail(400)] * 10 + [slow] * 20
    assert run().startswith("error: stopped at example 'e19': HTTP 400")       # 9 failures, e9 well, 10 failures
    assert len(teacher.requests) in (20, 21, 22)                               # the next one is under way by then


def test_redirects_do_not_carry_the_key(run, teacher):
    with Teacher() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for status in (301, 302, 303, 307, 308):
            teacher.requests.clear()
            teacher.replies = [fail(status, Location=other.url + "/chat/completions")]
            assert "final address" in run()
        other.shutdown()
        assert other.requests == []


def test_key_is_nowhere(run, teacher, tmp_path, pauses, capsys):
    echo = f"Incorrect key {KEY} in 'Bearer {KEY}'"
    write_data(tmp_path, 6)
    teacher.replies = [fail(400, echo), fail(500, echo), send({"error": echo}), repeat_the_key,
                       say(f"My key is {KEY}, so I stop."), fail(401, echo)]
    message = run("--retries", "0")
    output = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "HTTP 401" in message and "[key]" in output.err and "[key]" in written
    assert KEY not in message + output.out + output.err + written
    assert KEY not in repr(distill.Endpoint(url="http://x", key=KEY))


def test_broken_picture_costs_its_example_only(run, teacher, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.new("RGB", (40, 40)).save(tmp_path / "good.jpg")
    write_examples([Example(id=name, image=str(tmp_path / f"{name}.jpg"), speed=1.0, navigation="Straight",
                            decision=STOP) for name in ("bad", "good")], tmp_path / "in.jsonl")
    assert run().startswith("error: 1 of 2 examples have no answer")
    assert "bad.jpg cannot be read" in capsys.readouterr().err and reasons_of(tmp_path) == {"good": GOOD}


@pytest.mark.parametrize(("header", "seconds"), [
    ("7", 7.0), (" 2.5 ", 2.5), ("Thu, 20 Nov 2025 16:00:30 GMT", 30.0), ("Thu, 20 Nov 2025 15:00:00 GMT", 0.0),
    ("Thu, 20 Nov 99999999999999999999 16:00:30 GMT", None),
    (None, None), ("", None), ("soon", None), ("-5", None), ("99999999999", 99999999999.0)])
def test_retry_after_header(header, seconds):
    assert distill.retry_after(header, 1763654400) == seconds              # 2025-11-20 16:00:00 UTC


def test_pause_doubles_with_a_share_of_chance():
    # 1 s * 2^3 = 8, half of it sure: 4 + 4 * 0.5 = 6.  2^10 is cut to 60: 30 at chance 0.  Asked for 7: 7 + 0.25
    assert distill.pause(3, None, 0.5) == 6.0
    assert distill.pause(10, None, 0.0) == 30.0
    assert distill.pause(0, 7.0, 0.25) == 7.25


# ---------------------------------------------------------------- resuming

def test_no_example_is_asked_twice(run, teacher, tmp_path):
    assert run("--limit", "3") is None
    assert set(reasons_of(tmp_path)) == {"e0", "e1", "e2"}
    assert run() is None and run() is None
    assert len(teacher.requests) == 4 and len(replies_of(tmp_path)) == 4


def test_half_written_line_is_taken_out(run, teacher, tmp_path):
    assert run() is None
    path = tmp_path / "out.replies.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])                              # e3 has lost its end
    assert run() is None
    assert len(teacher.requests) == 5 and path.read_bytes() == whole
    path.write_bytes(whole[:-1])                               # only the line's end is lost: nothing is asked
    assert run() is None
    assert len(teacher.requests) == 5 and path.read_bytes() == whole


def test_damaged_line_in_the_middle(run, teacher, tmp_path):
    assert run() is None
    path = tmp_path / "out.replies.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"id": "e1"}', *lines[2:]]) + "\n")
    assert re.search(r"replies.jsonl: line 2 is not a reply; remove the line", run())
    assert len(teacher.requests) == 4


def test_reply_to_another_request_is_not_taken(run, teacher, tmp_path):
    assert run() is None
    for changes in ({"decision": Decision("KEEP", "STRAIGHT")}, {"speed": 4.3}, {"scene": 77}):
        write_data(tmp_path, 4, **changes)
        assert "the reply for example 'e0' answers another request" in run()
    write_data(tmp_path, 4)
    assert "answers another request" in run("--model", "teacher-2")
    assert "answers another request" in run("--image-side", "512")
    assert len(teacher.requests) == 4 and run() is None


def test_interrupt_keeps_what_is_under_way(run, teacher, tmp_path, capfd):
    def interrupt(handler):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        send()(handler)
    write_data(tmp_path, 8)
    teacher.replies = [send(), send(), interrupt, fail(429, Retry_After="60")]
    started = time.monotonic()
    assert run("--concurrency", "2").startswith("interrupted;")
    assert time.monotonic() - started < 5                                      # the wait of 60 s is cut short
    asked, kept = len(teacher.requests), len(replies_of(tmp_path))
    assert kept in (asked - 1, asked) and kept == len(reasons_of(tmp_path)) and kept >= 3     # all but a 429
    assert "waiting for the requests in flight" in capfd.readouterr().err
    teacher.replies = []
    assert run() is None and len(teacher.requests) == asked + 8 - kept and len(reasons_of(tmp_path)) == 8


def test_second_interrupt_does_not_wait(run, teacher, tmp_path):
    def interrupt(handler):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(8)
    teacher.replies = [send(), interrupt]
    started, before = time.monotonic(), signal.getsignal(signal.SIGINT)     # a job in the background ignores it
    assert run() == "interrupted; run the same command again to continue"
    assert time.monotonic() - started < 5 and [reply["id"] for reply in replies_of(tmp_path)] == ["e0"]
    assert signal.getsignal(signal.SIGINT) is before                           # given back


def test_two_runs_at_once_on_one_file(run, teacher, tmp_path):
    pytest.importorskip("fcntl")
    with distill.open_replies(tmp_path / "out.replies.jsonl"):
        assert "another run is writing this file" in run()
    assert teacher.requests == []


# ---------------------------------------------------------------- flags and files

@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "ftp://host/v1", "host/v1", "http://", "http://host:many/v1", "http://ho st/v1",
    "http://me:pass@host/v1", "https://host/v1?key=pass", "https://host/v1#pass", "https://host/v1@pass"])
def test_base_url_that_is_refused(url):
    with pytest.raises(ValueError, match="--base-url is not a bare address such as https://host/v1") as error:
        distill.chat_url(url)
    assert "pass" not in str(error.value)


@pytest.mark.parametrize("url", ["https://host/v1", "https://host/v1/", "https://host/v1/chat/completions"])
def test_base_url(url):
    assert distill.chat_url(url) == "https://host/v1/chat/completions"


def test_key_with_a_line_break_is_not_echoed(run, teacher, monkeypatch):
    monkeypatch.setenv("TEACHER", f"{KEY}\nX: {KEY}")
    message = run("--key-env", "TEACHER")
    assert message.startswith("error: environment variable TEACHER holds blanks") and KEY not in message


def test_faults_in_the_data_show_before_anything_is_asked(run, teacher, tmp_path):
    write_data(tmp_path, 2, speed=None, prompt="What now?")
    assert "example 'e0' has no speed or no navigation" in run()
    write_data(tmp_path, 2, scene=None, image=str(tmp_path / "gone.jpg"))
    assert "2 of 2 pictures do not exist" in run()
    write_data(tmp_path, 2, reasoning="because")
    assert "every example has a reason already; use --replace" in run()
    assert "would overwrite --data" in run(output="in.jsonl")
    assert "no such file; save it" in run("--review", str(tmp_path / "gone.json"))
    assert teacher.requests == []


def test_what_was_assumed_of_the_data_is_told(run, teacher, tmp_path, capsys):
    lines = (tmp_path / "in.jsonl").read_text().replace('"speed": 4.2', '"speed": -0.1', 1)
    (tmp_path / "in.jsonl").write_text(lines)
    assert run() is None
    assert "in.jsonl: 1 of 4 examples: a speed from -0.5 to 0 m/s was read as 0\n" in capsys.readouterr().err


def test_replies_stay_readable(run, teacher, tmp_path):
    write_data(tmp_path, 1, id="Grün 左")
    teacher.replies = [say("The light on Königstraße is red, so I stop here.")]
    assert run().startswith("error: none of 1 reasons was accepted")           # two foreign letters are too many
    text = (tmp_path / "out.replies.jsonl").read_text(encoding="utf-8")
    assert "Königstraße" in text and "Grün 左" in text


def test_reasons_that_were_there_stay(run, teacher, tmp_path):
    write_examples([Example(id=str(i), scene=i, speed=1.0, navigation="Straight", decision=STOP,
                            reasoning="old" if i == 1 else None) for i in range(3)], tmp_path / "in.jsonl")
    teacher.replies = [say("Sorry, I cannot help with that.")]
    assert run() is None
    assert reasons_of(tmp_path) == {"1": "old", "2": GOOD} and len(teacher.requests) == 2
    teacher.replies = [say("Too short.")] * 4               # of the next three requests the first two
    assert run("--replace", output="new.jsonl") is None and len(teacher.requests) == 5
    kept = {example.id: example.reasoning for example in load_examples(tmp_path / "new.jsonl")}
    assert kept == {"1": "old", "2": GOOD}


@pytest.mark.parametrize(("flag", "value"), [("--concurrency", "0"), ("--retries", "-1"), ("--timeout", "nan"),
                                             ("--extra", "[1]"), ("--image-side", "1e3"), ("--limit", "0")])
def test_flags_out_of_range(run, teacher, flag, value, capsys):
    assert run(flag, value) == 2 and flag in capsys.readouterr().err and teacher.requests == []


def test_nothing_that_is_accepted_is_an_error(run, teacher, tmp_path):
    teacher.replies = [say("**Stop**: the light is red, so I stop.")] * 4
    told = run()
    assert told.startswith("error: none of 4 reasons was accepted, so ") and "out.review.html says why" in told
    assert (tmp_path / "out.review.html").is_file() and (tmp_path / "out.jsonl").read_text() == ""


def test_plain_http_to_another_machine_is_warned_of(capsys):
    distill.warn_of_plain_http(distill.Endpoint(url="http://teacher.lan/v1/chat/completions", key=KEY))
    assert capsys.readouterr().err == "warning: http to teacher.lan sends key and pictures unencrypted\n"
    distill.warn_of_plain_http(distill.Endpoint(url="https://teacher.lan/v1/chat/completions", key=KEY))
    distill.warn_of_plain_http(distill.Endpoint(url="http://127.0.0.1:8000/v1/chat/completions", key=KEY))
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- answers and the filter

def test_odd_answers_are_kept_as_one_clean_line(run, teacher, tmp_path):
    teacher.replies = [say("  The light\n is\u0007 red\ud800, so\tI stop. "),
                       say([{"type": "text", "text": part} for part in ("The light is red,", "so I stop here.")]),
                       send(completion(usage=None)), send({"choices": [{"message": {"refusal": "No."}}]})]
    assert run() is None
    assert [reply["text"] for reply in replies_of(tmp_path)] == [
        "The light is red?, so I stop.", "The light is red, so I stop here.", GOOD, "No."]
    assert [reply["prompt_tokens"] for reply in replies_of(tmp_path)] == [900, 900, None, None]
    assert replies_of(tmp_path)[3]["finish_reason"] == "refusal" and set(reasons_of(tmp_path)) == {"e0", "e1", "e2"}


# ---------------------------------------------------------------- the review sheet

class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_sheet_shows_all_and_escapes(run, teacher, tmp_path):
    evil = "<script>alert(1)</script> the light is red and so I stop & wait"
    teacher.replies = [say(evil), say("too short"), say("<answer> STOP </answer>")]
    write_data(tmp_path, 4, navigation='"><img src=x onerror=alert(2)>')
    assert run() is None
    text = (tmp_path / "out.review.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1                  # our own
    assert [a["src"][:15] for tag, a in page.tags if tag == "img"] == ["data:image/jpeg"] * 4
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "onerror=alert(2)&gt;" in text
    assert [a["data-id"] for tag, a in page.tags if tag == "article"] == ["e0", "e1", "e2", "e3"]
    # accept and reject for each but e2, of which no target can be made
    assert sum(tag == "input" and a["type"] == "radio" for tag, a in page.tags) == 2 * 3
    assert "3 rejected, 1 accepted" in text and "script-src 'sha256-" in text


def test_review_of_a_person_overrules_the_filter(run, teacher, tmp_path):
    teacher.replies = [say("too short"), send(), say("<answer> STOP </answer>")]
    assert run() is None and set(reasons_of(tmp_path)) == {"e1", "e3"}
    choices = tmp_path / "review.json"
    choices.write_text('{"accepted": ["e0"], "rejected": ["e1"]}')
    assert run("--review", str(choices)) is None
    assert reasons_of(tmp_path) == {"e0": "too short", "e3": GOOD} and len(teacher.requests) == 4
    choices.write_text('{"accepted": ["e2"]}')
    assert "--review accepts example 'e2', whose reason is not usable: holds tags" in run("--review", str(choices))
    choices.write_text('{"rejected": ["gone"]}')
    assert "--review names example 'gone', which has no reply here" in run("--review", str(choices))


def test_a_full_disk_names_the_file(run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(distill, "append_reply", full)
    assert f"{tmp_path / 'out.replies.jsonl'} could not be written (No space left on device): free some space" in run()
