"""Checks of settings; an error is one sentence that names the key, the value and what would be right."""

from __future__ import annotations

import contextlib
import difflib
import errno
import inspect
import numbers
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pirl_plugin import out_of_memory

# Errors of the operating system: full or read-only disks, files where folders should be, missing permissions.
USERS_TO_MEND = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EEXIST,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


class ConfigError(ValueError):
    """A setting, file or data set that the user can fix; the message is one sentence."""


class MissingPackageError(ConfigError, ModuleNotFoundError):
    """A package that is needed and not installed; the message says how to install it."""


def nearest(word: str, known: Collection[str]) -> str:
    """' (did you mean X?)' for the known word closest to `word`, or '' if none is close."""
    close = difflib.get_close_matches(word, [str(item) for item in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def check_keys(config: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise for keys of `config` that `where` does not know.

    Raises:
        ConfigError: naming the first unknown key, the nearest known one and all known ones.
    """
    for key in config:
        if key not in known:
            raise ConfigError(
                f"{where} has no key {key!r}{nearest(str(key), known)}; it knows {', '.join(sorted(known))}."
            )


def check_choice(value: Any, choices: Collection[Any], where: str) -> Any:
    """`value`, which must be one of `choices`.

    Raises:
        ConfigError: naming the choices.
    """
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices)
        raise ConfigError(f"{where} is {value!r}{nearest(str(value), choices)}; it must be one of {known}.")
    return value


def check_boolean(value: Any, where: str) -> bool:
    """`value`, which must be true or false; Hydra passes other words (no, off, None) on as text.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{where} is {value!r}; it must be true or false.")
    return value


def check_mapping(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, which must be a mapping.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be a mapping of keys to values.")
    return value


def check_integer(value: Any, where: str, minimum: int, maximum: int | None = None) -> int:
    """`value`, which must be a whole number in [minimum, maximum].

    Raises:
        ConfigError: naming the range.
    """
    bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # NumPy's, too
    if not whole or value < minimum or (maximum is not None and value > maximum):
        raise ConfigError(f"{where} is {value!r}; it must be a whole number {bounds}.")
    return int(value)


def check_seed(value: Any, where: str) -> int:
    """`value`, which must be a seed of PyTorch and NumPy: a whole number in [0, 2^32).

    Raises:
        ConfigError: naming the range.
    """
    return check_integer(value, where, 0, 2**32 - 1)


def check_other_file(output: str | os.PathLike, source: str | os.PathLike, where: str) -> None:
    """Refuse to write over the file that is read, also by another name or through a link.

    Raises:
        ConfigError: naming both.
    """
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
        raise ConfigError(f"{where} is {output}, which is the same file as {source}, which is read; give another name.")


def check_number(value: Any, where: str, minimum: float, maximum: float = float("inf"), above: bool = False) -> float:
    """`value`, which must be a number in [minimum, maximum], or in (minimum, maximum] if `above`.

    Raises:
        ConfigError: naming the range.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not minimum <= value <= maximum or (above and value == minimum):
        low = f"above {minimum}" if above else f"at least {minimum}"
        high = "" if maximum == float("inf") else f" and at most {maximum}"
        raise ConfigError(f"{where} is {value!r}; it must be a number {low}{high}.")
    return float(value)


def check_interval(value: Any, where: str, minimum: float, maximum: float) -> tuple[float, float]:
    """`value`, which must be a pair (low, high) with minimum <= low <= high <= maximum.

    Raises:
        ConfigError: naming the range.
    """
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    real = pair and all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in value)
    if not real or not minimum <= value[0] <= value[1] <= maximum:
        raise ConfigError(
            f"{where} is {value!r}; it must be two numbers [low, high] with {minimum} <= low <= high <= {maximum}."
        )
    return float(value[0]), float(value[1])


def keyword_arguments(cls: type) -> set[str]:
    """Names of the arguments of `cls`, including those that it passes on to its bases by **kwargs."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in base.__dict__ and base is not object:
            parameters = list(inspect.signature(base.__dict__["__init__"]).parameters.values())[1:]
            names.update(parameter.name for parameter in parameters if parameter.kind in named)
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with "Error: <sentence>" for errors that the user can fix.

    These are a ConfigError, raised here or in a rank started here, a file error of the operating system, and lack of
    memory.
    """
    try:
        yield
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not _nobody_reads_output():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(1)
    except Exception as error:
        heard = _hear_of_no_more_workers()
        sentence = _in_one_sentence(error)
        if sentence:
            sys.exit(f"Error: {sentence}")
        if heard is not None:
            signal.signal(signal.SIGCHLD, heard)
        raise


def _nobody_reads_output() -> bool:
    """Whether standard output is a pipe that its reader has left, as `head` does."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _in_one_sentence(error: Exception) -> str:
    """What happened, if the user can mend it, else ''."""
    if isinstance(error, OSError) and error.errno in USERS_TO_MEND:
        file = f"{error.filename} cannot be used" if error.filename else "A file could not be written"
        return f"{file}: {error.strerror}."
    # A ConfigError raised in a rank arrives as the text of its traceback.
    found = re.findall(r"^pirl_plugin\.validation\.\w+Error: (.*)$", str(error), flags=re.MULTILINE)
    return found[-1] if found else out_of_memory.in_words("".join(traceback.format_exception(error, chain=False)))


def _hear_of_no_more_workers() -> Any:
    """Remove PyTorch's handler of SIGCHLD, which would raise another error anywhere; returns it, or None."""
    if threading.current_thread() is not threading.main_thread():
        return None  # where no handler runs
    return signal.signal(signal.SIGCHLD, signal.SIG_DFL)
