"""`pirl`: finds the command, reads its arguments and runs it; `python -m pirl_plugin.commands` does the same."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pirl_plugin
from pirl_plugin import commands
from pirl_plugin.early_stop import end_with_starter
from pirl_plugin.validation import nearest, one_sentence_errors


def names() -> list[str]:
    """The names of all commands, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("__"))


def module_of(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"pirl_plugin.commands.{name.replace('-', '_')}")


def summaries() -> Iterator[tuple[str, str]]:
    """(command, the first line of its docstring), without importing it."""
    for name in names():
        path = Path(commands.__path__[0], f"{name.replace('-', '_')}.py")
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield name, docstring.partition("\n")[0].rstrip(".")


def overview() -> argparse.ArgumentParser:
    """The parser of `pirl` itself, for its help and for completing a command's name."""
    width = max(map(len, names()))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries())
    parser = argparse.ArgumentParser(
        prog="pirl",
        description="PIRL: self-supervised learning of pretext-invariant representations.",
        epilog=f"commands:\n{listed}\n\n`pirl COMMAND --help` lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pirl_plugin {pirl_plugin.__version__}")
    parser.add_argument("command", choices=names(), metavar="COMMAND", help="one of the commands below")
    return parser


def command_parser(name: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command; its help is the module's docstring, dedented as Python itself does from 3.13 on."""
    summary, _, details = inspect.cleandoc(module_of(name).__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=prog or f"pirl {name}",
        description=summary,
        epilog=details.strip("\n") or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module_of(name).add_arguments(parser)
    return parser


def complete_in_the_shell() -> None:
    """If a shell asks for completions of a command line (argcomplete), answer and exit; else do nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    parser = argparse.ArgumentParser(prog="pirl")
    subparsers = parser.add_subparsers(dest="command")
    for name in names():
        module_of(name).add_arguments(subparsers.add_parser(name))
    argcomplete.autocomplete(parser)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script `pirl`."""
    end_with_starter()
    complete_in_the_shell()
    commands.spin_briefly()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        parser = overview()
        if not given:
            parser.print_help()
            sys.exit(2)
        parser.parse_args(given)
    name, rest = given[0], given[1:]
    if name not in names():
        sys.exit(f"Error: pirl has no command {name!r}{nearest(name, names())}; it has {', '.join(names())}.")
    with one_sentence_errors():
        module = module_of(name)
        if getattr(module, "OWN_PARSER", False):
            code = module.run(argparse.Namespace(arguments=rest))
        else:
            options = command_parser(name).parse_args(rest)
            if getattr(options, "output", None):
                Path(options.output).absolute().parent.mkdir(parents=True, exist_ok=True)
            code = module.run(options)
    sys.exit(code)


if __name__ == "__main__":
    main()
