"""Stems: NLTK's (golden/text_metrics.json), and Porter's own examples."""

import json
from pathlib import Path

import pytest

from evaluation.stemmer import stem

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/text_metrics.json").read_text())


def test_stems_equal_the_tools():
    assert {word: stem(word) for word in GOLDEN["stems"]} == GOLDEN["stems"]


@pytest.mark.parametrize(("word", "want"), [
    # Porter 1980's own examples of each step, and where the variant departs
    ("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("agreed", "agre"), ("plastered", "plaster"),
    ("motoring", "motor"), ("sing", "sing"), ("hopping", "hop"), ("falling", "fall"), ("filing", "file"),
    ("happy", "happi"), ("relational", "relat"), ("electrical", "electr"), ("replacement", "replac"),
    ("adoption", "adopt"), ("rate", "rate"), ("cease", "ceas"), ("controlled", "control"), ("roll", "roll"),
    ("dies", "die"), ("tied", "tie"), ("enjoy", "enjoy"), ("skies", "sky"), ("geology", "geolog"), ("is", "is"),
])
def test_stem(word, want):
    assert stem(word) == want
