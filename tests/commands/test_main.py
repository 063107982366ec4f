import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pirl_plugin import commands
from pirl_plugin.commands.__main__ import command_parser, main, module_of, names, summaries


def test_every_command_has_a_summary_arguments_and_a_run():
    for name, summary in summaries():
        module = module_of(name)
        assert summary and module.__doc__.startswith(summary), name
        assert callable(module.add_arguments) and callable(module.run), name
    assert {"train", "embed", "export", "demo", "doctor", "study", "benchmark", "train-detector"} <= set(names())


def options_of(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from options_of(part)
        else:
            yield action


@pytest.mark.parametrize("name", names())
def test_every_option_says_what_it_does_and_examples_are_indented_alike(name):
    parser = command_parser(name)
    assert [option.dest for option in options_of(parser) if not option.help] == []
    examples = re.findall(r"^( *)(?:pirl|run_distributed_engines\.py) [a-z-]+[ =]", parser.epilog or "", re.MULTILINE)
    assert set(examples) <= {"    "}, parser.epilog


def test_the_launcher_has_a_help(capfd):
    subprocess.run([Path(sys.executable).parent / "run_distributed_engines.py", "--help"], check=True)
    assert "config=pretrain/pirl/jigsaw_small_images_cpu" in capfd.readouterr().out


def test_the_help_comes_in_half_a_second():
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "pirl_plugin.commands", "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - start)
    assert min(times) < 0.5, times


BEFORE_THEY_TRAIN = """
import importlib, os, signal, time
from pirl_plugin.commands.__main__ import main
for arguments, module, name in (
    (["train", "config=pretrain/pirl/jigsaw_small_images_cpu"], "pirl_plugin.launch.launcher", "run"),
    (["pretrain", "photos"], "pirl_plugin.experiments.recipe", "pretrain"),
    (["finetune", "a.torch", "--train", "a", "--test", "b"], "pirl_plugin.experiments.finetune", "finetune"),
):
    ask = lambda *_: os.kill(os.getpid(), signal.SIGUSR1) or time.sleep(5)
    setattr(importlib.import_module(module), name, ask)
    child = os.fork()
    if child == 0:
        main(arguments)
        os._exit(0)
    print(arguments[0], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_commands_that_train_end_with_the_code_for_asked_to_stop_before_they_train():
    done = subprocess.run([sys.executable, "-c", BEFORE_THEY_TRAIN], capture_output=True, text=True, timeout=100)
    assert done.stdout.split("\n")[:-1] == ["train 75", "pretrain 75", "finetune 75"], done.stderr
    assert done.stderr.count("Asked to stop; the same command resumes") == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["emmbed"], r"has no command 'emmbed' \(did you mean embed\?\)"),
        (["export", "nowhere.torch"], "There is no checkpoint file at nowhere.torch"),
        (["export", "nowhere.torch", "--format", "timm"], "--output is missing"),
        (["benchmark", "--gather"], "Give a checkpoint and --output"),
        (["train", "config=pretrain/pirl/jigsaw_8nod"], "did you mean pretrain/pirl/jigsaw_8node"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence):
    with pytest.raises(SystemExit, match=sentence) as end:
        main(arguments)
    assert str(end.value.code).startswith("Error: ") and "\n" not in str(end.value.code)


def test_nothing_given_shows_the_help_and_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "commands:" in capsys.readouterr().out


def test_the_shell_completes_commands_and_their_options(tmp_path):
    pytest.importorskip("argcomplete", reason="shell completion needs argcomplete")
    for line, expected in (("pirl em", {"embed"}), ("pirl embed a b --wor", {"--workers"})):
        answer = tmp_path / "answer"
        environment = {
            **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line, "COMP_POINT": str(len(line)),
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "pirl_plugin.commands"], env=environment, check=True)
        assert {word.strip() for word in answer.read_text().split("\n")} == expected, line


def test_a_new_file_in_the_folder_is_a_new_command(monkeypatch, tmp_path, capsys):
    (tmp_path / "say_hello.py").write_text(
        '"""Say hello."""\n\ndef add_arguments(parser):\n    parser.add_argument("name")\n\n'
        "def run(options):\n    print('hello', options.name)\n    return 3\n"
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main(["say-hello", "PIRL"])
    assert end.value.code == 3 and capsys.readouterr().out == "hello PIRL\n"


@pytest.mark.parametrize(
    ("given", "turns"), [({}, "2000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_spin_briefly_where_nobody_asked_for_anything_else(given, turns, monkeypatch):
    for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(key, raising=False)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    commands.spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == turns
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_both_entry_points_spin_briefly_before_torch_is_imported():
    code = (
        "import sys, os\nfrom pirl_plugin.commands import __main__ as main, spin_briefly\n"
        "assert 'torch' not in sys.modules\ntry:\n    main.main(['--version'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and os.environ['GOMP_SPINCOUNT'] == '2000'\n"
        "del os.environ['GOMP_SPINCOUNT']\nimport pirl_plugin.commands.__launcher__\n"
        "assert os.environ['GOMP_SPINCOUNT'] == '2000'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
