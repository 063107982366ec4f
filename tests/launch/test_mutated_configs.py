"""200 configs with one value changed at random: each is refused in one sentence, or is a correct config.

A hundred are tried by the fast tests, another hundred by the slow ones.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BASE = "config=pretrain/pirl/jigsaw_small_images_cpu"
VALUES = ["-1", "0", "1e9", "abc", "null", "[]", "{}", "True", "0.5", "[1,2]", "3"]


def leaves(node, path: tuple[str, ...] = ()):
    """Keys of a YAML tree, dotted."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(node, list) and node and isinstance(node[0], (dict, list)):
        for number, value in enumerate(node):
            yield from leaves(value, (*path, str(number)))
    else:
        yield ".".join(path)


def mutations(seed: int, count: int = 100) -> list[str]:
    """Overrides of keys that the base config has: wrong types, ranges and names, missing and misspelt keys."""
    text = (ROOT / "configs" / "config" / "pretrain" / "pirl" / "jigsaw.yaml").read_text(encoding="utf-8")
    keys, rng = list(leaves(yaml.safe_load(text))), random.Random(seed)
    drawn = []
    for number in range(count):
        key = rng.choice(keys)
        if number % 10 == 9:  # a key with a letter less: nobody knows it
            parts = key.split(".")
            parts[-1] = parts[-1][:-1] if len(parts[-1]) > 2 else parts[-1] + "x"
            drawn.append(f"{'.'.join(parts)}={rng.choice(VALUES)}")
        elif number % 10 == 8:
            drawn.append(f"~{key}")  # gone
        else:
            drawn.append(f"{key}={rng.choice(VALUES)}")
    return drawn


def accepted(photo_folder: Path, seed: int) -> list[str]:
    """The mutations that make a config which is accepted; all others were refused in one sentence."""
    fine = []
    for override in mutations(seed):
        sentence = ""
        try:
            compose([BASE, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", override])
        except ConfigError as error:
            sentence = str(error)
        assert "\n" not in sentence and (not sentence or len(sentence) > 20), override
        fine += [] if sentence else [override]
    assert 2 < len(fine) < 30, fine
    # What is plainly wrong was not among the accepted.
    assert not [override for override in fine if override.endswith(("=abc", "=[]", "={}", "=[1,2]"))], fine
    return fine


def test_each_mutated_config_is_refused_in_one_sentence_or_correct(photo_folder):
    accepted(photo_folder, seed=0)


@pytest.mark.slow
def test_mutated_configs_that_are_accepted_train(photo_folder, tmp_path):
    elsewhere = ("=1e9", "DISTRIBUTED.NUM")  # beyond a test, or beyond this machine
    quick = [
        override for override in accepted(photo_folder, seed=1) if not any(part in override for part in elsewhere)
    ][:4]
    for number, override in enumerate(quick):
        done = subprocess.run(
            [
                sys.executable, "-m", "pirl_plugin.launch.launcher", BASE,
             f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
             "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", "config.OPTIMIZER.num_epochs=2",
             f"config.CHECKPOINT.DIR={tmp_path}/run{number}", override],
            capture_output=True, text=True, timeout=500, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, override + done.stdout[-2000:] + done.stderr[-3000:]
