"""Every command in the README and docs/ is one that this version takes, and is run here or listed with the reason."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pirl_plugin.commands.__main__ import command_parser, main, module_of, names
from pirl_plugin.launch.composition import expand_sweep
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.export import SUFFIXES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHERS = {"run_distributed_engines.py", "pirl train", "pirl train-svm", "pirl train-svm-low-shot",
             "pirl nearest-neighbors", "pirl extract-features"}  # fmt: skip

# Run by the walk below, in this order, in a folder with photos/, held_out/, labelled/ and photo.jpg.
WALK = [
    "pirl pretrain photos",
    "pirl pretrain photos --heads paper --output runs/photos_paper",
    "pirl embed runs/photos/checkpoint.torch photos --output features.npy",
    "pirl evaluate runs/photos/checkpoint.torch --train photos --test held_out",
    "pirl sample-images photos --count 40 --seed 0 --output some.txt",
    "pirl curves runs/photos",
    "pirl recompute-batchnorm runs/photos/checkpoint.torch photos",
    "pirl analysis invariance runs/photos/checkpoint.torch --images photos --output invariance",
    "pirl analysis layers runs/photos/checkpoint.torch --train photos --test held_out --output layers",
    "pirl analysis neighbors runs/photos/checkpoint.torch --images photos --output neighbors",
    "pirl analysis spread runs/photos/checkpoint.torch --images photos --output spread",
    "pirl finetune runs/photos/checkpoint.torch --train labelled --test held_out",
    "pirl show-pretext photo.jpg",
    "pirl benchmark --list",
    "pirl doctor",
    "pirl --help",
]
SHORTER = {  # what the walk adds, to end in seconds
    "pirl pretrain": ["--epochs", "2"],
    "pirl finetune": ["--epochs", "1"],
}

# Not run by the walk: where it is run, or why it is not.
ELSEWHERE = {
    r"make (demo|install|test|test-slow|lint|docs|bench).*": "by CI, or by hand: they are what CI calls",
    r"make links": "it asks other sites, and CI reaches none",
    r"git clone .*|cd pirl_plugin": "no repository to name in a test",
    r"(python3\.12 -m venv|\.venv/bin/pip|pip|uv) .*": "installation; extra_scripts/install.sh does the same in CI",
    r"\.venv/bin/(pirl (demo|install-detectron2)|python -m pytest .*|pytest .*)": "as in make demo and make test",
    r"export PIRL_PLUGIN_MODULES=.*": "tests/end_to_end/test_docs.py",
    r"run_distributed_engines.py config=pretrain/pirl/(hinge|settling|mirror)_.*": "tests/end_to_end/test_docs.py",
    r"run_distributed_engines.py .*CHECKPOINT.DIR=runs/pirl .*": "tests/end_to_end/test_docs.py",
    r"run_distributed_engines.py .*CHECKPOINT.DIR=runs/watched": "tests/training/test_monitor.py",
    r"pirl evaluate .* --evaluations knn class_means": "tests/end_to_end/test_docs.py",
    r"pirl show-pretext photo.jpg --tasks mirror_transform": "tests/end_to_end/test_docs.py",
    r"tar cf .*|pirl pretrain photos.tar .*|pirl embed runs/archive/.*": "tests/end_to_end/test_docs.py",
    r"(export|trap|code=|exit|if \[|srun).*": "tests/end_to_end/cluster/test_slurm_jobs.py",
    r"PIRL_SLURM_JOBS=20 pytest .*": "needs Debian's SLURM packages and root",
    r"torchrun .*": "tests/training/test_resume.py, on a CPU",
    r"run_distributed_engines.py .*(_8node|_1gpu).*": "needs GPUs; tests/end_to_end/test_all_configs.py, on a CPU",
    r"pirl train .*vit_tiny.*": "twenty minutes; tests/network/test_timm_trunk.py trains smaller ones",
    r"pirl train config=pretrain/pirl/jigsaw_1gpu .*convnext.*": "needs a GPU; tests/network/test_timm_trunk.py",
    r"(run_distributed_engines.py|pirl [a-z-]+) config=benchmark/.* \$W": "tests/end_to_end/test_benchmarks.py, small",
    r"pirl benchmark (checkpoint.torch|--output) .*": "tests/experiments/test_benchmarking.py, small",
    r"pirl class-subset .*": "tests/data/test_subsets.py",
    r"pirl sample-images /data/.*": "a hundred million photos; the walk has another folder",
    r"pirl pretrain some.txt .*": "the walk has another; lists: tests/data/test_file_lists.py",
    r"pirl join-features .*": "tests/evaluation/test_joined_features.py",
    r"pirl convert-vissl .*": "tests/host/test_warm_start.py",
    r"pirl export .*": "tests/network/test_export.py",
    r"pirl (install-detectron2|make-voc-tree|train-detector).*": "tests/detection",
    r"pirl study .*": "hours; tests/experiments/test_study.py at a small size",
    r"python benchmarks/.*|python extra_scripts/other_versions.py .*": "minutes to hours, by hand",
    r"tensorboard .*": "a server; tests/training/test_progress.py reads what it shows",
    r"(mkdir -p imagenet100|while read .*)": "needs ImageNet",
}  # fmt: skip


def lines_of(block: str) -> Iterator[str]:
    """The commands of a shell block, each on one line, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"(^|\s+)#.*", "", line).split())
        for command in line.split(" && "):
            if command:
                yield command


def commands_of(page: Path) -> list[str]:
    """All commands of a page: of its shell blocks, and those with arguments in its text and tables."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    begins = (
        r"(?:pirl [a-z-]+|pirl(?= --)|run_distributed_engines\.py|torchrun|tensorboard|python [a-z_/]+\.py|make|"
        r"PIRL_SLURM_JOBS=\d+)"
    )
    inline = [" ".join(found.split()) for found in re.findall(rf"`({begins} [^`]+)`", rest)]
    return [command for block in blocks for command in lines_of(block)] + [
        command
        for command in inline
        if not re.search(r"\b[A-Z]{3,}$|<", command)  # `pirl curves RUN` is no command
    ]


COMMANDS = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands_of(page))]


def check_is_taken(command: str) -> None:
    """Fail where this version would not take a command: names, options, configs and keys."""
    words = shlex.split(command.replace("$W", "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=checkpoint.torch"))
    if words[0].endswith("bin/pirl"):
        words[0] = "pirl"
    program = " ".join(words[:2]) if words[0] == "pirl" else words[0]
    if program in LAUNCHERS:
        arguments = words[2 if words[0] == "pirl" else 1 :]
        for run in expand_sweep(arguments):
            if "_small_images_cpu" in run[0] and re.search(r"/(hinge|settling|mirror)_", run[0]):
                continue  # the page's own config
            compose(run, check=False)
    elif words[0] == "pirl" and words[1].startswith("-"):
        assert words[1] == "--help"
    elif words[0] == "pirl":
        assert words[1] in names(), f"pirl has no command {words[1]}"
        if not getattr(module_of(words[1]), "OWN_PARSER", False):
            parser = command_parser(words[1])
            parser.exit_on_error = False
            options = parser.parse_args(words[2:])
            if words[1] == "export":
                assert Path(options.output).suffix == SUFFIXES[options.format]
    elif words[0] == "python" and words[1] != "-m":
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        missing = [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in script]
        assert not missing, f"{words[1]} has no {missing}"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets


def test_commands_that_are_only_named_exist():
    named = {name for page in PAGES for name in re.findall(r"`pirl ([a-z][a-z-]+)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 10 and named <= set(names())


def test_there_are_commands_on_the_pages():
    assert len(COMMANDS) > 90 and {"README.md", "cluster.md", "measuring.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command[:60]}" for page, command in COMMANDS])
def test_every_command_is_one_that_this_version_takes(page, command):
    check_is_taken(command)


@pytest.mark.parametrize(
    "command",
    ["pirl embbed x y", "pirl embed x y --outputs z", "run_distributed_engines.py config=pretrain/pirl/jigsaw_9node",
     "run_distributed_engines.py config=pretrain/pirl/jigsaw_8node config.LOSS.pirl_loss.lamda=1",
     "python benchmarks/run.py --no-such-option", "make nothing"],
)  # fmt: skip
def test_a_command_that_this_version_does_not_take_is_noticed(command):
    with pytest.raises((Exception, SystemExit)):
        check_is_taken(command)


def test_every_command_is_run_by_the_walk_or_listed_with_where_or_why_not():
    left = {command for _, command in COMMANDS} - set(WALK)
    unlisted = [command for command in sorted(left) if not any(re.fullmatch(one, command) for one in ELSEWHERE)]
    assert not unlisted
    stale = [one for one in ELSEWHERE if not any(re.fullmatch(one, command) for command in left)]
    assert not stale
    for where in re.findall(r"tests/[\w/]+(?:\.py)?", " ".join(ELSEWHERE.values())):
        assert (ROOT / where).exists(), where


@pytest.mark.slow
def test_a_newcomers_commands_work_one_after_the_other(tmp_path, monkeypatch, photo_folder, make_photo, capfd):
    (tmp_path / "photos").symlink_to(photo_folder)
    (tmp_path / "labelled").symlink_to(photo_folder)
    make_photo(7, 300, 240).save(tmp_path / "photo.jpg")
    for number in range(16):
        folder = tmp_path / "held_out" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        make_photo(100 + number, 48, 40).save(folder / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    for command in WALK:
        words = shlex.split(command)
        more = SHORTER.get(" ".join(words[:2]), [])
        if more:  # it trains: a process of its own
            program = [sys.executable, "-m", "pirl_plugin.commands"]
            done = subprocess.run([*program, *words[1:], *more], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
        else:
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            assert not ended.value.code, command
    assert np.load("features.npy").shape == (48, 128) and len(Path("some.txt").read_text().splitlines()) == 40
    made = ["curves.png", "runs/photos/checkpoint_batchnorm.torch", "runs/finetune_photos/metrics.json"]
    made += [f"{name}.png" for name in ("invariance", "layers", "neighbors", "spread")]
    assert [name for name in made if not Path(name).is_file()] == []
    assert "linear" in capfd.readouterr().out
