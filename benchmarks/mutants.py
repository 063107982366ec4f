"""Mutation testing: plants small faults in the plugin's code, one at a time, and checks that a test notices each.

    python benchmarks/mutants.py --count 200 --jobs 2 --output mutants.json

Faults are drawn over all modules: another comparison, sign, constant, order of arguments, or a deleted statement. For
each, the fast tests that run the line run until the first failure; pytest-cov first records which tests these are
(--map, in one and a half times the time of the fast tests). If there are none, for lines that run on import, and for
faults that survive unless --lines-only is given, all tests of the module's room (folder) run. A test that also fails
without the fault does not count. The table at the end has the kill rate by room; the JSON has every fault, and a
restarted run resumes. A survivor is a fault that no test notices, or no fault at all: look at it.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import functools
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Further tests of a room's behaviour, besides its own folder of tests.
MORE_TESTS = {
    "ground": ["tests/test_registry.py", "tests/test_rooms.py", "tests/launch/test_config_check.py", "tests/evaluation",
               "tests/network", "tests/objective/test_distributed.py", "tests/test_out_of_memory.py"],
    "commands": ["tests/network/test_export.py", "tests/evaluation/test_quick.py", "tests/data"],
    "data": ["tests/training/test_faults.py", "tests/training/test_resume.py", "tests/evaluation"],
    "evaluation": ["tests/experiments/test_study.py", "tests/training/test_monitor.py", "tests/network"],
    "network": ["tests/evaluation", "tests/host"],
    "host": ["tests/launch/test_launcher.py", "tests/launch/test_config_check.py"],
    "training": ["tests/launch/test_launcher.py"],
    "launch": ["tests/network/test_preprocessing.py", "tests/training/test_train_step.py",
               "tests/training/test_monitor.py"],
}  # fmt: skip
# Functions, or their last names, of two arguments whose order does not matter, or nearly.
SYMMETRIC = ("max", "min", "maximum", "minimum", "equal", "array_equal", "hypot", "transpose")
MOST_TESTS = 40
MOST_CASES = 3  # of a parametrized test
TIME_LIMIT = 900  # seconds for the tests of a fault: one that hangs is noticed
CHILDREN = "PIRL_COVERAGE_OF_CHILDREN"  # in the environment: settings of coverage.py
HANGS, DIES = NO_TEST = "it hangs", "pytest ends without a failed test"
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "pirl_plugin").parts
    return parts[0] if len(parts) > 1 else "ground"


def modules() -> list[Path]:
    """All modules in which to plant faults."""
    found = sorted((ROOT / "pirl_plugin").rglob("*.py"))
    return [path for path in found if path.name != "__init__.py" and not path.parent.is_symlink()]


def _replaced(node: ast.AST) -> ast.AST | None:
    """A faulty replacement of a node; None if there is none for it."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        return ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(SWAPS[type(node.op)](), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        return ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return ast.Constant(node.value + 1)
    if isinstance(node, ast.Constant) and type(node.value) is float:
        return ast.Constant(node.value * 2 + 0.5)
    if isinstance(node, ast.Call) and len(node.args) == 2 and ast.unparse(node.func).split(".")[-1] not in SYMMETRIC:
        return ast.Call(node.func, node.args[::-1], node.keywords)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.Pass()
    return None


def _sites(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes for faults, except in messages, types and code that only prints."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.Raise, ast.JoinedStr, ast.ImportFrom, ast.Import)):
            continue
        if isinstance(child, ast.keyword) and child.arg in ("indent", "flush"):  # how a file looks
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        call = child.value if isinstance(child, ast.Expr) else child
        called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if called in ("print", "TypeVar") or called.startswith(("logging.", "warnings.", "parser.add_argument")):
            continue
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            child.decorator_list = []
        if isinstance(child, ast.FunctionDef):
            child.returns = None
            for argument in (*child.args.args, *child.args.kwonlyargs):
                argument.annotation = None
        if isinstance(child, ast.AnnAssign):
            child.annotation = ast.Constant(None)
        if hasattr(child, "lineno") and _replaced(child) is not None:
            yield child
        yield from _sites(child)


def faults(path: Path) -> list[tuple[str, str, str]]:
    """(name, the module's text with the fault, what was changed) of every fault in a module."""
    text = path.read_text(encoding="utf-8")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    data, found = text.encode(), []
    for node in _sites(ast.parse(text)):
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        fault = ast.unparse(ast.fix_missing_locations(_replaced(node)))
        if isinstance(node, (ast.Compare, ast.BinOp, ast.BoolOp, ast.UnaryOp)):
            fault = f"({fault})"
        before = data[begin:end].decode()
        changed = (data[:begin] + fault.encode() + data[end:]).decode()
        try:
            ast.parse(changed)
        except SyntaxError:  # inside an f-string, where quotes and braces have another meaning
            continue
        name = f"{path.relative_to(ROOT)}:{node.lineno}:{node.col_offset}"
        found.append((name, changed, f"{' '.join(before.split())[:90]}  ->  {' '.join(fault.split())[:90]}"))
    return found


def tests_of(path: Path) -> list[str]:
    """Test files of a module's room; those that name the module come first."""
    room = room_of(path)
    places = ([f"tests/{room}"] if room != "ground" else []) + MORE_TESTS.get(room, [])
    files = list(dict.fromkeys(
        file for place in places
        for file in (sorted((ROOT / place).rglob("test_*.py")) if (ROOT / place).is_dir() else [ROOT / place])
    ))  # fmt: skip
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    files.sort(key=lambda file: name not in file.read_text(encoding="utf-8"))
    return [str(file.relative_to(ROOT)) for file in files]


def make_map(file: Path, jobs: int) -> None:
    """Run all fast tests once with pytest-cov, which records the tests that run each line, in their processes too."""
    own, children, together = (file.with_suffix(end) for end in (".coverage", ".children", ".together"))
    settings = {data: file.with_name(f"{data.suffix[1:]}_of_{file.stem}.ini") for data in (own, children)}
    for data, path in settings.items():
        more = "parallel = true\npatch = _exit\ncontext = ${PYTEST_CURRENT_TEST-}\n" if data == children else ""
        path.write_text(
            f"[run]\ndata_file = {data}\nsource_pkgs = pirl_plugin\nsigterm = true\n{more}"
            f"[json]\nshow_contexts = true\n"
        )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": "1",
                   CHILDREN: str(settings[children])}  # fmt: skip
    run = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--numprocesses", str(jobs), "--dist", "loadfile",
           "-p", "mutants", "--cov=pirl_plugin", f"--cov-config={settings[own]}", "--cov-context=test", "--cov-report=",
           ]  # fmt: skip
    subprocess.run(run, cwd=ROOT, env=environment, check=False)
    coverage = [sys.executable, "-m", "coverage"]
    common = [f"--data-file={together}", f"--rcfile={settings[own]}", "-q"]
    parts = [own, *file.parent.glob(f"{children.name}.*")]
    subprocess.run([*coverage, "combine", *common, *parts], cwd=ROOT, check=True)
    subprocess.run([*coverage, "json", *common, "-o", file], cwd=ROOT, check=True)


def pytest_sessionstart(session: object) -> None:
    """As pytest's plugin: have the processes that tests start measured, by their own settings."""
    if "PYTEST_XDIST_WORKER" in os.environ and CHILDREN in os.environ:
        os.environ["COVERAGE_PROCESS_START"] = os.environ[CHILDREN]


def tests_by_line(file: Path) -> dict[tuple[str, int], list[str]]:
    """(file, line) -> ids of the tests that run it; those that run the fewest lines come first."""

    def test(context: str) -> str:  # "<test>|run" in the test's own process, "<test> (call)" in those that it started
        return re.sub(r"[ |]\(?(setup|run|call|teardown)\)?$", "", context)

    lines = {(name, int(line)): list(dict.fromkeys(test(context) for context in contexts if context))
             for name, one in json.loads(file.read_text())["files"].items()
             for line, contexts in one["contexts"].items()}  # fmt: skip
    sizes = collections.Counter(test for tests in lines.values() for test in tests)
    return {place: sorted(tests, key=lambda test: sizes[test]) for place, tests in lines.items()}


def runs_on_import(path: Path, line: int) -> bool:
    """Whether a line is outside of all functions."""
    functions = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, (ast.FunctionDef, ast.Lambda)))  # fmt: skip
    return not any(node.lineno <= line <= (node.end_lineno or 0) for node in functions)


def tests_for(name: str, by_line: dict[tuple[str, int], list[str]]) -> list[str]:
    """At most MOST_TESTS of the tests that run the line of a fault, and MOST_CASES of each test's cases."""
    file, line, _ = name.split(":")
    if runs_on_import(ROOT / file, int(line)):
        return []  # only the test that imports the module first is known to run it
    for above in range(4):  # of a multi-line statement, the first line is recorded
        if found := by_line.get((file, int(line) - above)):
            cases: dict[str, list[str]] = collections.defaultdict(list)
            for test in found:
                cases[test.partition("[")[0]].append(test)
            return [test for some in cases.values() for test in some[:MOST_CASES]][:MOST_TESTS]
    return []


def is_noticed(path: Path, changed: str, chosen: list[str], lines_only: bool) -> tuple[bool, str]:
    """Whether a test fails with the fault, and which: first of the chosen tests, then of all tests of the room."""
    noticed, by = fails(path, changed, chosen) if chosen else (False, "")
    return (noticed, by) if noticed or (chosen and lines_only) else fails(path, changed, tests_of(path))


def fails(path: Path, changed: str, tests: list[str]) -> tuple[bool, str]:
    """Whether one of some tests fails with a module's text changed though it passes without, and which."""
    left_out: list[str] = []
    while True:
        failed = first_failure({path: changed}, tests, left_out)
        if not failed or failed in NO_TEST or passes_without_a_fault(failed):
            return bool(failed), failed
        print(f"left out, as it fails without a fault too: {failed}", flush=True)
        left_out.append(failed)


@functools.cache
def passes_without_a_fault(test: str) -> bool:
    return not first_failure({}, [test], [])


def first_failure(texts: dict[Path, str], tests: list[str], left_out: list[str]) -> str:
    """The first test that fails in a copy of the project in which some modules have other texts; "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        ignored = shutil.ignore_patterns(".git", ".venv", "*.pyc", "__pycache__", "demo_output", "runs", "_build")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        for path, text in texts.items():
            (copy / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-rfE"]
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*command, f"--basetemp={folder}/tmp", *(f"--deselect={test}" for test in left_out), *tests],
                cwd=copy, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return HANGS
        if done.returncode in (0, 5):  # 5: no test is left
            return ""
        found = re.search(r"^(?:FAILED|ERROR) (tests/\S+?\.py(?:::.*?)?)(?: - .*)?$", done.stdout, re.MULTILINE)
        return found[1] if found else DIES


def drawn(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Faults over all modules: `count` in all, in proportion to each room's number, at least 8 per room."""
    by_room: dict[str, list[tuple[str, str, str]]] = {}
    for path in modules():
        by_room.setdefault(room_of(path), []).extend(faults(path))
    total = sum(map(len, by_room.values()))
    rng, chosen = random.Random(seed), []
    for room in sorted(by_room):
        chosen += rng.sample(by_room[room], min(len(by_room[room]), max(8, round(count * len(by_room[room]) / total))))
    rng.shuffle(chosen)
    return chosen


def table(results: dict[str, dict]) -> str:
    rows = ["| room | faults | noticed | |", "| --- | --- | --- | --- |"]
    rooms = sorted({one["room"] for one in results.values()})
    for room in [*rooms, "all"]:
        some = [one for one in results.values() if room in (one["room"], "all")]
        noticed = sum(one["noticed"] for one in some)
        rows.append(f"| {room} | {len(some)} | {noticed} | {100 * noticed / max(1, len(some)):.0f}% |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rooms", nargs="+", help="only these rooms")
    parser.add_argument("--map", type=Path, default=Path("covered_lines.json"), help="which tests run which line")
    parser.add_argument("--lines-only", action="store_true", help="a quick lower bound: not all tests of the room")
    parser.add_argument("--output", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    chosen = [one for one in drawn(options.count, options.seed)
              if not options.rooms or room_of(ROOT / one[0].split(":")[0]) in options.rooms]  # fmt: skip
    if not options.map.is_file():
        if importlib.util.find_spec("pytest_cov") is None:
            sys.exit("Error: pytest-cov is needed to find which tests run which line: pip install pytest-cov")
        make_map(options.map.absolute(), options.jobs)
    by_line = tests_by_line(options.map)
    started, done = time.monotonic(), 0

    def key(name: str, changed: str) -> str:
        return f"{name}#{hashlib.blake2b(changed.encode(), digest_size=6).hexdigest()}"

    todo = [one for one in chosen if key(*one[:2]) not in results]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {}
        for name, changed, what in todo:
            path = ROOT / name.split(":")[0]
            running[pool.submit(is_noticed, path, changed, tests_for(name, by_line), options.lines_only)] = (
                key(name, changed),
                name,
                what,
                path,
            )
        for future in concurrent.futures.as_completed(running):
            (noticed, by), (identity, name, what, path) = future.result(), running[future]
            results[identity] = {"room": room_of(path), "where": name, "what": what, "noticed": noticed, "by": by}
            options.output.write_text(json.dumps(results, indent=1) + "\n")
            done += 1
            left = (time.monotonic() - started) / done * (len(todo) - done) / 60
            state = "noticed " if noticed else "SURVIVES"
            print(f"{done}/{len(todo)}, {left:.0f} min left: {state} {name} {what}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
