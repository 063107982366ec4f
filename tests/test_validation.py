"""Values that are taken, and those that are refused in a sentence with key, value and what would be right."""

import errno
import shlex
import subprocess
import sys

import numpy as np
import pytest

from pirl_plugin.validation import (
    ConfigError,
    check_boolean,
    check_choice,
    check_integer,
    check_interval,
    check_keys,
    check_mapping,
    check_number,
    keyword_arguments,
    nearest,
    one_sentence_errors,
)


@pytest.mark.parametrize("value", [[0.2, 0.9], (0.2, 0.2), [0, 1]])
def test_an_interval_is_a_pair_of_numbers(value):
    assert check_interval(value, "scale", 0, 1) == tuple(map(float, value))


@pytest.mark.parametrize(
    "value",
    [[0.9, 0.2], [0.1, 0.5, 0.9], [0.1], "ab", {0: 1, 1: 2}, [-0.1, 0.5], [0.1, 1.5], [True, 1], ["0", "1"], 0.5],
)
def test_anything_else_is_no_interval(value):
    with pytest.raises(
        ConfigError, match=r"scale is .*; it must be two numbers \[low, high\] with 0 <= low <= high <= 1"
    ):
        check_interval(value, "scale", 0, 1)


@pytest.mark.parametrize(
    ("value", "minimum", "maximum", "sentence"),
    [
        (0, 1, None, "n is 0; it must be a whole number at least 1."),
        (5, 1, 4, "n is 5; it must be a whole number between 1 and 4."),
        (True, 0, None, "n is True; it must be a whole number at least 0."),
        (2.0, 1, None, "n is 2.0; it must be a whole number at least 1."),
        ("2", 1, None, "n is '2'; it must be a whole number at least 1."),
    ],
)
def test_a_whole_number_in_its_range(value, minimum, maximum, sentence):
    assert check_integer(minimum, "n", minimum, maximum) == minimum and check_integer(4, "n", 1, 4) == 4
    assert type(check_integer(np.int64(4), "n", 1, 4)) is int
    with pytest.raises(ConfigError) as refused:
        check_integer(value, "n", minimum, maximum)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("value", "above", "sentence"),
    [
        (0.0, True, "rate is 0.0; it must be a number above 0 and at most 2."),
        (2.5, False, "rate is 2.5; it must be a number at least 0 and at most 2."),
        (-1, False, "rate is -1; it must be a number at least 0 and at most 2."),
        (float("nan"), False, "rate is nan; it must be a number at least 0 and at most 2."),
        (False, False, "rate is False; it must be a number at least 0 and at most 2."),
        ("1", False, "rate is '1'; it must be a number at least 0 and at most 2."),
    ],
)
def test_a_number_in_its_range(value, above, sentence):
    assert check_number(2, "rate", 0, 2) == 2.0 and check_number(0, "rate", 0) == 0.0
    assert isinstance(check_number(2, "rate", 0), float)
    with pytest.raises(ConfigError) as refused:
        check_number(value, "rate", 0, 2, above=above)
    assert str(refused.value) == sentence


def test_keys_choices_booleans_and_mappings():
    check_keys({"a": 1}, {"a", "b"}, "loss")
    with pytest.raises(
        ConfigError, match=r"loss has no key 'temprature' \(did you mean temperature\?\); it knows a, temp"
    ):
        check_keys({"a": 1, "temprature": 2}, {"temperature", "a"}, "loss")
    assert check_choice("a", ["a", "b"], "kind") == "a" and check_boolean(False, "on") is False
    with pytest.raises(ConfigError, match="kind is 'c'; it must be one of a, b"):
        check_choice("c", ["a", "b"], "kind")
    for wrong in (1, "True", None):
        with pytest.raises(ConfigError, match=r"on is .*; it must be true or false"):
            check_boolean(wrong, "on")
    assert check_mapping({1: 2}, "loss") == {1: 2}
    with pytest.raises(ConfigError, match=r"loss is \[\]; it must be a mapping of keys to values"):
        check_mapping([], "loss")
    assert nearest("jigsw", ["rotation", "jigsaw"]) == " (did you mean jigsaw?)" and nearest("xyz", ["jigsaw"]) == ""


def test_keyword_arguments_are_those_of_a_class_and_of_the_bases_that_get_the_rest():
    class Base:
        def __init__(self, rows, *, seed=0):
            pass

    class Middle(Base):
        def __init__(self, momentum, **others):
            super().__init__(**others)

    class Closed(Middle):
        def __init__(self, own):
            super().__init__(1)

    class Plain(Middle):
        pass

    assert keyword_arguments(Middle) == keyword_arguments(Plain) == {"rows", "seed", "momentum"}
    assert keyword_arguments(Closed) == {"own"}


TEXT = (
    "Traceback ...\npirl_plugin.validation.ConfigError: first.\n\npirl_plugin.validation.MissingPackageError: last.\n"
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("a is 1."), "Error: a is 1."),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "Error: /x cannot be used: No space left on device."),
        (OSError(errno.EROFS, "Read-only file system"), "Error: A file could not be written: Read-only file system."),
        (RuntimeError(TEXT), "Error: last."),
    ],
)
def test_errors_that_a_user_can_mend_end_the_program_in_one_sentence(error, sentence):
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise error
    assert end.value.code == sentence


@pytest.mark.parametrize("error", [OSError(errno.EPIPE, "Broken pipe"), RuntimeError("a bug"), KeyError("x")])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), one_sentence_errors():
        raise error


PIPED = """
from pirl_plugin.validation import one_sentence_errors
with one_sentence_errors():
    for number in range(100_000):
        print(number)
"""


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_reader_that_stops_early_and_ctrl_c_end_a_command_quietly():
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(PIPED)} | head -1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    code = "import os, signal\n" + PIPED.replace("print(number)", "os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
