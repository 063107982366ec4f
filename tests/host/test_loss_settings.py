"""A subclass of PIRLLoss under another name is PIRL's loss to hooks, checks and summary: they ask for the class."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classy_vision.losses import LOSS_REGISTRY, ClassyLoss, build_loss, register_loss

from pirl_plugin.host.loss_settings import pirl_loss_class, pirl_loss_settings, sharded_bank_settings
from pirl_plugin.launch.launcher import compose
from pirl_plugin.launch.run_summary import summarise
from pirl_plugin.objective.loss import PIRL_LOSSES, PIRLLoss, register_pirl_loss
from pirl_plugin.training.hooks import BankAgreementHook, hook_generator
from pirl_plugin.training.monitor import MonitorHook
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
OWN = """
from pirl_plugin.objective.loss import PIRLLoss, register_pirl_loss

@register_pirl_loss("halved_loss")
class HalvedLoss(PIRLLoss):
    def __init__(self, *args, share=0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.share = share

    def forward(self, output, target):
        return self.share * super().forward(output, target)
"""
CONFIG = ["config=pretrain/pirl/jigsaw_small_images_cpu", "config.LOSS.name=halved_loss"]


@pytest.fixture
def halved_loss():
    namespace = {"__name__": __name__}
    exec(OWN, namespace)
    yield namespace["HalvedLoss"]
    PIRL_LOSSES._parts.pop("halved_loss")
    LOSS_REGISTRY.pop("halved_loss")


def own_config(photo_folder, *settings):
    settings = ", ".join(["num_negatives: 16", "memory_bank: {name: sharded_memory_bank}", *settings])
    data = f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"
    return compose([*CONFIG, data, f"+config.LOSS.halved_loss={{{settings}}}"])


def test_hooks_checks_and_summary_know_a_subclass_by_its_class(halved_loss, photo_folder, tmp_path):
    config = own_config(photo_folder, "share: 0.25")
    config.CHECKPOINT.DIR = str(tmp_path)
    assert issubclass(pirl_loss_class(config), halved_loss) and pirl_loss_settings(config).share == 0.25
    assert sharded_bank_settings(config) == {"name": "sharded_memory_bank"}
    assert pirl_loss_settings(config).seed == config.SEED_VALUE  # filled in
    kinds = {type(hook) for hook in hook_generator(config)}
    assert {BankAgreementHook, MonitorHook} <= kinds
    assert any("halved_loss, nce" in line and "sharded_memory_bank" in line for line in summarise(config))
    built = build_loss({**pirl_loss_settings(config), "name": "halved_loss", "num_train_samples": 48})
    assert isinstance(built, halved_loss) and isinstance(built, ClassyLoss) and built.share == 0.25


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [("shaer: 1", "no key 'shaer' .did you mean share"), ("lambda_: 2", "lambda_ is 2")],
)
def test_its_settings_are_checked(halved_loss, photo_folder, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        own_config(photo_folder, settings)


def test_a_subclass_registered_with_classy_vision_itself_is_known_too(photo_folder):
    @register_loss("direct_loss")
    class DirectLoss(PIRLLoss, ClassyLoss):
        pass

    try:
        assert pirl_loss_class({"LOSS": {"name": "direct_loss"}}) is DirectLoss
        assert pirl_loss_class({"LOSS": {"name": "cross_entropy_multiple_output_single_target"}}) is None
    finally:
        LOSS_REGISTRY.pop("direct_loss")


def test_a_name_that_vissl_has_is_refused():
    with pytest.raises(ConfigError, match="VISSL has its own 'simclr_info_nce_loss'"):
        register_pirl_loss("simclr_info_nce_loss")(type("Mine", (PIRLLoss,), {}))
    PIRL_LOSSES._parts.pop("simclr_info_nce_loss")


@pytest.mark.slow
def test_a_subclass_trains_with_monitor_progress_and_checkpoint(photo_folder, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIRL_PLUGIN_MODULES": str(tmp_path / "own.py")}
    done = subprocess.run(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", *CONFIG,
         "+config.LOSS.halved_loss={num_negatives: 16, memory_bank: {name: memory_bank}}",
         f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", "config.OPTIMIZER.num_epochs=1",
         "config.DATA.NUM_DATALOADER_WORKERS=1", f"config.CHECKPOINT.DIR={tmp_path}/run"],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Memory bank identical" in done.stdout + done.stderr
    assert {"progress.csv", "monitor.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}
    saved = torch.load(tmp_path / "run" / "model_final_checkpoint_phase0.torch", weights_only=True)
    assert int(saved["loss"]["memory_bank.updated"].sum()) == 32
