"""A plugin of pytest: which lines of the plugin each test runs, in its own process.

    python -m pytest -p covered_lines -m "not slow"        # with COVERED_LINES naming a folder for the result

Lines that only a process runs which a test starts are not seen.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

PACKAGE = str(Path.cwd() / "pirl_plugin") + os.sep
_lines: dict[str, set[int]] = defaultdict(set)  # of the test that is running, by file
_tests: dict[str, dict[str, list[int]]] = {}


def _lines_of_a_call(frame: FrameType, event: str, _: Any) -> Any:
    if event == "line":
        _lines[frame.f_code.co_filename].add(frame.f_lineno)
    return _lines_of_a_call


def _calls(frame: FrameType, event: str, _: Any) -> Any:
    if not frame.f_code.co_filename.startswith(PACKAGE):
        return None
    _lines[frame.f_code.co_filename].add(frame.f_lineno)
    return _lines_of_a_call


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Of set-up, test and tear-down, so that what a fixture shared by several tests runs counts for the first."""
    _lines.clear()
    sys.settrace(_calls)
    yield
    sys.settrace(None)
    _tests[item.nodeid] = {file.removeprefix(PACKAGE): sorted(found) for file, found in _lines.items()}


def pytest_sessionfinish() -> None:
    """One file for each process of pytest-xdist."""
    if _tests:
        folder = Path(os.environ["COVERED_LINES"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{os.getpid()}.json").write_text(json.dumps(_tests))
