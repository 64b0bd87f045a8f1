"""What the tests of evaluation/ share: lines of predictions.jsonl."""

import pytest

from evaluation.predictions import plan_name


@pytest.fixture
def answer():
    """answer(plan, think) -> a completion."""
    def make(plan, think="Because."):
        return f"<think> {think} </think> <answer> {plan} </answer>"
    return make


@pytest.fixture
def line():
    """line(id, truth, text, samples, **more) -> a line of predictions.jsonl."""
    def make(id, truth, text, samples=(), **more):
        return {"id": id, "image": "x.png", "scene": None, "prompt": "?", "truth": truth, "acceptable": None,
                "factors": None, "reason": None, "text": text, "truncated": False, "decision": plan_name(text),
                "samples": list(samples), "sample_decisions": [plan_name(sample) for sample in samples], **more}
    return make


@pytest.fixture
def predictions(line, answer):
    """predictions(right, offset) -> lines whose label is STOP, each answered right (1) or KEEP (0)."""
    def make(right, offset=0):
        texts = [answer("STOP, STRAIGHT" if good else "KEEP, STRAIGHT") for good in right]
        return [line(f"s{i + offset}", "STOP, STRAIGHT", text, [text]) for i, text in enumerate(texts)]
    return make
