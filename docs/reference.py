"""Pages that are made of the code: all keys with their defaults, and what each command takes."""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

import pirl_plugin.launch.registration
from pirl_plugin.commands.__main__ import command_parser, names
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.objective.memory_bank import MEMORY_BANKS
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.photometric import PhotometricSettings
from pirl_plugin.training.monitor import MonitorSettings
from pirl_plugin.training.settings import StepSettings

BASE = Path(__file__).resolve().parents[1] / "configs/config/pretrain/pirl/jigsaw.yaml"
LATER = "filled in"  # what the launcher fills in is not the user's to set


def described(cls: type) -> dict[str, str]:
    """The arguments that a class's docstring and those of its bases describe, by name."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__doc__ or "")
        for section in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, re.MULTILINE):
            for entry in re.split(r"\n(?=    [*\w])", section.rstrip()):
                keys, _, meaning = " ".join(entry.split()).partition(": ")
                for key in keys.split(", "):
                    found.setdefault(key, meaning)
    return found


def arguments(cls: type) -> Iterator[tuple[str, str, str]]:
    """(name, default, meaning) of what a class can be built with."""
    meanings = described(cls)
    seen = set()
    for base in cls.__mro__:
        if base is object:
            continue
        for name, parameter in inspect.signature(base).parameters.items():
            if name in seen or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            seen.add(name)
            default = "" if parameter.default is parameter.empty else f"`{_plain(parameter.default)}`"
            yield name, default, meanings.get(name, "")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else "null" if value is None else value


def table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = ["| key | default | |", "| --- | --- | --- |"]
    lines += ["| `{}` | {} | {} |".format(*(cell.replace("|", "\\|") for cell in row)) for row in rows]
    return "\n".join(lines) + "\n"


def keys_of_the_base_config() -> Iterator[tuple[str, str, str]]:
    """(key, default, the comment beside it) of every key that the base config of PIRL sets."""
    path: list[tuple[int, str]] = []
    for line in BASE.read_text(encoding="utf-8").splitlines():
        found = re.match(r"( *)(?:- )?([A-Za-z_]+):(?: +(.*?))?(?: +# (.*))?$", line)
        if found is None:
            continue
        indent = len(found[1]) + 2 * line.lstrip().startswith("- ")
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, found[2])]
        if found[3] and not found[3].startswith("#"):
            names = [key for _, key in path]
            if "TRANSFORMS" in names:
                names.insert(names.index("TRANSFORMS") + 1, "0")
            value = _plain(yaml.safe_load(found[3])) if not found[3].endswith("[") else "a list of heads"
            yield ".".join(names), f"`{value}`", found[4] or (found[3][2:] if found[3].startswith("# ") else "")


def tables_of_the_base_config() -> Iterator[str]:
    """The same in tables, one for each node of the config."""
    for node, rows in itertools.groupby(keys_of_the_base_config(), lambda row: row[0].rpartition(".")[0]):
        yield f"### `{node}`\n"
        yield table((key.rpartition(".")[2], default, meaning) for key, default, meaning in rows)


def keys_page() -> str:
    parts = [
        "Values come from a config (`config=pretrain/...`) and from overrides (`config.KEY=value`; `+config.KEY=value` "
        "for a key that the config does not have). All other keys are VISSL's, described in its `defaults.yaml`. A "
        "misspelt key is refused with the nearest known one.\n",
        "## What the base config sets\n",
        *tables_of_the_base_config(),
    ]
    sections = [
        ("`config.LOSS.pirl_loss`", PIRLLoss),
        *((f"`config.LOSS.pirl_loss.memory_bank`, name `{name}`", cls) for name, cls in MEMORY_BANKS.items()),
        ("`config.MODEL.HEAD.PARAMS`: `pirl_heads`", PIRLHead),
        *((f"`config.DATA.TRAIN.TRANSFORMS`: `{name}`", cls) for name, cls in PRETEXT_TRANSFORMS.items()),
        ("`photometric` of these transforms", PhotometricSettings),
        ("`config.TRAINER.PIRL_TRAIN_STEP`", StepSettings),
        ("`config.HOOKS.PIRL_MONITOR`", MonitorSettings),
    ]
    for title, cls in sections:
        rows = (row for row in arguments(cls) if LATER not in row[2])
        parts += [f"## {title}\n", table(rows)]
    return "\n".join(parts)


def parsers_of(name: str) -> Iterator[argparse.ArgumentParser]:
    """A command's parser, and those of its parts."""
    parser = command_parser(name)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def commands_page() -> str:
    parts = ["`run_distributed_engines.py` and `pirl train` are the launcher: they take a config and overrides.\n"]
    for name in names():
        for parser in parsers_of(name):
            parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def write_pages(folder: Path) -> None:
    """Write keys.md and commands.md into a folder."""
    assert pirl_plugin.launch.registration  # all that is registered is in the tables
    folder.mkdir(exist_ok=True)
    for name, page in (("keys", keys_page()), ("commands", commands_page())):
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
