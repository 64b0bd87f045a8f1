"""What a reward function may return, and the message for each thing that it may not."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from rewards.checked import check_paid, checked_rewards

TEXTS = ["first", "second"]
WEIGHTS = {"speed": 1.0, "path": 1.0, "format": 0.0}


def smoothness(example, completions):
    """Stands for a user's reward function."""


def test_numbers_of_every_kind_become_floats():
    returned = ({"a": True, "b": 2, "c": np.float32(0.5), "d": np.int64(3), "e": torch.tensor(0.25)},
                {"e": np.bool_(False), "d": np.array(4), "c": torch.tensor(True), "b": 0, "a": -1.5})
    rows = checked_rewards(smoothness, "x", TEXTS, returned)
    assert rows == [{"a": 1.0, "b": 2.0, "c": 0.5, "d": 3.0, "e": 0.25},
                    {"a": -1.5, "b": 0.0, "c": 1.0, "d": 4.0, "e": 0.0}]
    assert {type(value) for row in rows for value in row.values()} == {float}


@pytest.mark.parametrize(("returned", "message"), [
    (None, r"returned None \(NoneType\); expected a list of 2 dicts, one per completion"),
    (iter([{"a": 1.0}] * 2), "returned .*iterator.*; expected a list of 2 dicts"),
    ({"a": [1.0, 1.0]}, "returned .*dict.*; expected a list of 2 dicts"),
    (np.ones(2), "returned .*ndarray.*; expected a list of 2 dicts"),
    ([{"a": 1.0}], "returned 1 dicts for 2 completions; expected one per completion"),
    ([{"a": 1.0}, 1.0], r"completion 1 'second': got 1.0 \(float\); expected a dict from component name to number"),
    ([{"a": 1.0}, {}], r"completion 1 'second': got {} \(dict\)"),
    ([{"a": 1.0}, {1: 1.0}], r"completion 1 'second': got {1: 1.0} \(dict\)"),
    ([{"a": None}, {"a": 1.0}], r"completion 0 'first': component 'a' is None \(NoneType\); expected a finite number"),
    ([{"a": 1.0}, {"a": "1"}], r"completion 1 'second': component 'a' is '1' \(str\)"),
    ([{"a": 1.0}, {"a": math.nan}], r"component 'a' is nan \(float\)"),
    ([{"a": 1.0}, {"a": -math.inf}], r"component 'a' is -inf \(float\)"),
    ([{"a": 1.0}, {"a": 10 ** 400}], r"component 'a' is 1000000.* \(int\)"),
    ([{"a": 1.0}, {"a": 1e39}], r"component 'a' is 1e\+39 \(float\); expected a finite number that float32 can hold"),
    ([{"a": 1.0}, {"a": 1j}], r"component 'a' is 1j \(complex\)"),
    ([{"a": 1.0}, {"a": torch.ones(2)}], "component 'a' is tensor"),
    ([{"a": 1.0}, {"a": 1.0, "b": 1.0}], "completion 1 has the components a, b, completion 0 has a; expected the same"),
    ([{"a": 1.0}, {"b": 1.0}], "completion 1 has the components b, completion 0 has a"),
])
def test_everything_else_is_refused_in_one_line(returned, message):
    with pytest.raises(ValueError, match=message) as fault:
        checked_rewards(smoothness, "scene-7", TEXTS, returned)
    assert str(fault.value).startswith("reward function smoothness, example 'scene-7'") and "\n" not in str(fault.value)


def test_functions_without_a_name_are_named_by_their_type():
    with pytest.raises(ValueError, match="^reward function partial, example 'x'"):
        checked_rewards(partial(smoothness, "x"), "x", TEXTS, None)


def test_long_completions_are_cut_in_the_message():
    with pytest.raises(ValueError, match=f"completion 0 '{'a' * 60}': got 1"):
        checked_rewards(smoothness, "x", ["a" * 500], [1])


def test_components_and_weights_must_match():
    check_paid(smoothness, ["format", "path", "speed", "accuracy"], WEIGHTS)    # accuracy is logged, never paid
    with pytest.raises(ValueError, match="smoothness: no weight pays comfort; the weights are for speed, path, format"):
        check_paid(smoothness, [*WEIGHTS, "comfort"], WEIGHTS)
    with pytest.raises(ValueError, match="smoothness: path, format missing among its components speed, accuracy"):
        check_paid(smoothness, ["speed", "accuracy"], WEIGHTS)
