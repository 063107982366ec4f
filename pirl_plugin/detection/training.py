"""Detection fine-tuning in Detectron2: Faster R-CNN R50-C4 on VOC07+12 and VOC07 (Tables 1 and 6).

Detectron2 trains, resumes and evaluates; this module supplies the weights, checks that the config prepares images as
they need, and checks the data before it is read. Detectron2 is optional: pirl install-detectron2 installs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pirl_plugin.detection.make_voc_tree import classes_of
from pirl_plugin.detection.voc_trees import check_split
from pirl_plugin.network.export import export, preprocessing_notes
from pirl_plugin.network.timm_trunk import TimmArchitecture
from pirl_plugin.network.weights import load_trunk
from pirl_plugin.paths import config_folder
from pirl_plugin.validation import ConfigError, nearest, one_sentence_errors


def require_detectron2() -> None:
    """Raise ConfigError, naming the command that installs it, if Detectron2 is not installed."""
    if importlib.util.find_spec("detectron2") is None:
        raise ConfigError("Detectron2 is not installed: run `pirl install-detectron2` in this environment.")


def config_files() -> dict[str, Path]:
    """The configs of the plugin by name, e.g. voc0712_pirl."""
    return {path.stem: path for path in sorted((config_folder() / "detection").glob("voc*.yaml"))}


def config_path(config_file: str) -> Path:
    """The file for a name in `config_files`, or for a path."""
    return config_files().get(config_file, Path(config_file))


def detection_config(config_file: str, overrides: list[str]) -> Any:
    """Detectron2's config of a run.

    Args:
        config_file: a name of `config_files`, or the path of a Detectron2 YAML.
        overrides: KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: for an unknown file or key.
    """
    from detectron2.config import get_cfg

    config = get_cfg()
    path = config_path(config_file)
    if not path.is_file():
        raise ConfigError(f"There is no detection config {config_file!r}{nearest(config_file, config_files())}.")
    try:
        config.merge_from_file(str(path))
        config.merge_from_list(overrides)
    except yaml.YAMLError as error:
        raise ConfigError(f"The detection config {path} is not YAML: {' '.join(str(error).split())}") from error
    except (KeyError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"The overrides {' '.join(overrides)} do not fit: {' '.join(map(str, error.args))}"
        ) from error
    return config


def check_weights_fit(config: Any, weights: str | Path) -> None:
    """Raise if a config builds another network than the weights', or prepares images differently than they need.

    A wrong channel order, mean, deviation or stride changes no shape, so it would go unnoticed.

    Raises:
        ConfigError: naming each wrong key, its value and the right one, in a form to add to the command.
    """
    trunk = load_trunk(weights)
    if isinstance(trunk.architecture, TimmArchitecture):
        raise ConfigError(f"{weights} holds {trunk.architecture}; the detector's backbone is a ResNet.")
    wanted, wrong = preprocessing_notes(trunk.architecture, "detectron2", trunk.preprocessing), {}
    for key, value in wanted.items():
        if "." not in key:
            continue
        found: Any = config
        for part in key.split("."):
            found = found[part]
        same = np.allclose(found, value, atol=0.01) if isinstance(value, list) else found == value
        if not same:
            wrong[key] = (found, value)
    if wrong:
        listed = "; ".join(f"{key} is {found}, but the weights need {value}" for key, (found, value) in wrong.items())
        added = " ".join(f"{key} {str(value).replace(' ', '')}" for key, (_, value) in wrong.items())
        raise ConfigError(f"{weights} does not fit the config: {listed}. Add to the command: {added}")


def check_data(config: Any) -> None:
    """Raise for data sets that Detectron2 would fail on, before anything is built.

    Raises:
        ConfigError: as `pirl_plugin.detection.voc_trees.check_split`.
    """
    from detectron2.data import MetadataCatalog

    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    for name in dict.fromkeys([*config.DATASETS.TRAIN, *config.DATASETS.TEST]):
        data = MetadataCatalog.get(name)
        if "dirname" in data.as_dict():  # a VOC tree
            hint = f"; DETECTRON2_DATASETS is {root!r}" if data.dirname.startswith(root) else ""
            tested = name in config.DATASETS.TEST
            check_split(data.dirname, data.split, f"{name}{hint}", list(data.thing_classes), tested)


def register_own_data(folder: str, classes: list[str]) -> None:
    """Register your own VOC tree as voc_own_train and voc_own_test.

    Args:
        folder: with JPEGImages, Annotations and ImageSets/Main/train.txt and test.txt.
        classes: names of the objects in the annotations.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets.pascal_voc import register_pascal_voc

    for split in ("train", "test"):
        name = f"voc_own_{split}"
        if name in DatasetCatalog:  # from an earlier run in this process
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name)
        register_pascal_voc(name, folder, split, 2007, class_names=classes)


def _trainer() -> Any:
    from detectron2.engine import DefaultTrainer
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    class VOCTrainer(DefaultTrainer):
        """Detectron2's trainer with the VOC evaluator."""

        @classmethod
        def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
            return PascalVOCDetectionEvaluator(dataset_name)

    return VOCTrainer


def worker(options: argparse.Namespace, config: Any) -> dict:
    """One process of a run: train (or only evaluate), and return the last evaluation's AP, AP50 and AP75."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import default_setup

    if options.data:
        register_own_data(options.data, options.classes)
    default_setup(config, options)
    trainer_class = _trainer()
    if options.eval_only:
        model = trainer_class.build_model(config)
        checkpointer = DetectionCheckpointer(model, save_dir=config.OUTPUT_DIR)
        checkpointer.resume_or_load(config.MODEL.WEIGHTS, resume=options.resume)
        return trainer_class.test(config, model)
    trainer = trainer_class(config)
    trainer.resume_or_load(resume=options.resume)
    return trainer.train()


def parser() -> argparse.ArgumentParser:
    """Parser of Detectron2's arguments and the plugin's."""
    from detectron2.engine import default_argument_parser

    arguments = default_argument_parser()
    arguments.prog = "pirl train-detector"
    arguments.description = (
        f"Faster R-CNN from a PIRL checkpoint; --config-file is a path or one of {', '.join(config_files())}."
    )
    arguments.epilog = None
    arguments.add_argument("--weights", help="a checkpoint of this plugin, VISSL ...; it is converted and checked")
    arguments.add_argument("--data", help="your own VOC tree, with ImageSets/Main/train.txt and test.txt")
    names = {
        "type": lambda text: text.split(","),
        "help": "with --data: the objects' names, separated by commas; default: its classes.txt",
    }
    arguments.add_argument("--classes", **names)
    return arguments


def prepare(options: argparse.Namespace) -> Any:
    """The checked, frozen config of a run, with the weights converted into its OUTPUT_DIR.

    Raises:
        ConfigError: in one sentence.
    """
    if options.data and not options.classes:
        options.classes = classes_of(options.data)
    config = detection_config(options.config_file or "", [value for value in options.opts if value != "--"])
    options.config_file = str(config_path(options.config_file))
    if options.data:
        register_own_data(options.data, options.classes)
        config.DATASETS.TRAIN, config.DATASETS.TEST = ("voc_own_train",), ("voc_own_test",)
        config.MODEL.ROI_HEADS.NUM_CLASSES = len(options.classes)
    if options.weights:
        check_weights_fit(config, options.weights)
    check_data(config)
    os.makedirs(config.OUTPUT_DIR, exist_ok=True)
    if options.weights:
        converted = Path(config.OUTPUT_DIR, "converted_weights.pth")
        print(export(options.weights, "detectron2", converted))
        config.MODEL.WEIGHTS = str(converted)
    config.freeze()
    return config


def main(arguments: list[str] | None = None) -> dict | None:
    """`pirl train-detector --config-file voc0712_pirl --weights CHECKPOINT --num-gpus 8 [KEY VALUE ...]`."""
    with one_sentence_errors():
        require_detectron2()
        from detectron2.engine import launch

        options = parser().parse_args(arguments)
        config = prepare(options)
        return launch(
            worker,
            options.num_gpus,
            num_machines=options.num_machines,
            machine_rank=options.machine_rank,
            dist_url=options.dist_url,
            args=(options, config),
        )
