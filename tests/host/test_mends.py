"""The mends, each tried in a process of its own in which the feature that it supplies is missing."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={
            **{key: value for key, value in os.environ.items() if key != "TORCH_FORCE_WEIGHTS_ONLY_LOAD"},
            "PYTHONPATH": str(ROOT),
            **environment,
        },
    )


def test_vissl_imports_where_every_mended_feature_is_missing():
    result = python("""
        import sys, importlib.abc
        class NoPkgResources(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "pkg_resources":
                    raise ModuleNotFoundError(name)
        import collections, numpy, torchvision.datasets.kinetics as kinetics
        # What is not missing here is taken away.
        for owner, names in ((collections, ["MutableMapping"]), (numpy, ["float", "int"]), (kinetics, ["Kinetics400"])):
            for name in names:
                if hasattr(owner, name):
                    delattr(owner, name)
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "pkg_resources" else real(name, *a)
        sys.meta_path.insert(0, NoPkgResources())
        from pirl_plugin.host import mends  # importing the package mends
        assert numpy.float is float and collections.MutableMapping and kinetics.Kinetics400
        assert mends.mend() == []
        from vissl.trainer import SelfSupervisionTrainer
        from vissl.utils.collect_env import collect_env_info
        import vissl.losses, vissl.models, vissl.data, vissl.utils.svm_utils.svm_trainer
        import classy_vision.dataset.classy_kinetics400
        assert numpy.float is float and collections.MutableMapping and kinetics.Kinetics400
    """)
    assert result.returncode == 0, result.stderr


def test_mends_leave_a_stack_that_has_the_feature_alone():
    result = python("""
        import collections, sys, types
        mine, collections.MutableMapping = object(), "mine"
        sys.modules["pkg_resources"] = mine
        from pirl_plugin.host import mends
        mends.mend()
        assert collections.MutableMapping == "mine" and sys.modules["pkg_resources"] is mine
    """)
    assert result.returncode == 0, result.stderr


def test_without_vissl_one_sentence_says_how_to_install_it():
    result = python("""
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "vissl" else real(name, *a)
        import pirl_plugin.launch.registration
    """)
    assert result.returncode != 0
    assert (
        "needs VISSL, of which vissl is not installed here; install it with: pip install"
        in result.stderr.splitlines()[-1]
    )


def test_the_console_scripts_say_the_same_and_show_no_traceback():
    result = python("""
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "vissl" else real(name, *a)
        from pirl_plugin.launch import start
    """)
    assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("Error: pirl_plugin needs VISSL")


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo pwned",)


def test_loading_never_runs_code_even_where_a_caller_asks_for_it(tmp_path):
    torch.save({"classy_state_dict": RunsCode()}, tmp_path / "evil.torch")
    result = python(
        f"""
        from pirl_plugin.launch import registration
        import torch
        from classy_vision.generic.util import load_checkpoint
        for load in (load_checkpoint, lambda p: torch.load(p, weights_only=False)):
            try:
                load({str(tmp_path / "evil.torch")!r})
            except Exception as error:
                print(type(error).__name__)
            else:
                print("loaded")
        """
    )
    assert "pwned" not in result.stdout and "loaded" not in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("Error") == 2


def test_an_average_precision_of_one_number_fits_into_a_cell():
    import numpy as np
    from vissl.utils.svm_utils import svm_low_shot_trainer, svm_trainer

    targets, predictions = np.array([1, -1, 1, -1]), np.array([0.9, 0.1, 0.2, 0.4])
    for module in (svm_trainer, svm_low_shot_trainer):
        matrix = np.zeros((1, 1))
        matrix[0][0] = module.get_precision_recall(targets, predictions)[3]
        assert matrix[0][0] == pytest.approx(5 / 6, abs=0.05)


@pytest.mark.slow
def test_the_classy_vision_that_vissls_wheel_carries_works_too(tmp_path):
    # The tested environment has classy-vision 0.7.0 on top; this takes VISSL's wheel as it is.
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), "vissl==0.1.6"]
    subprocess.run(install, check=True, capture_output=True, text=True)
    result = python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import pirl_plugin.launch.registration
        import classy_vision, vissl
        from vissl.trainer import SelfSupervisionTrainer
        from pirl_plugin.launch.launcher import compose
        assert classy_vision.__file__.startswith({str(tmp_path)!r}), classy_vision.__file__
        print(classy_vision.__version__, compose(["config=pretrain/pirl/jigsaw_8node"]).LOSS.name)
        """
    )
    assert result.returncode == 0, result.stderr[-3000:]
    version, loss = result.stdout.split()[-2:]
    assert version != "0.7.0" and loss == "pirl_loss"
