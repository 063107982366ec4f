"""`pirl study`: plan, run, evaluate and report, skipping what is already done."""

from __future__ import annotations

import dataclasses
import functools
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pirl_plugin.data.class_folders import check_splits
from pirl_plugin.data.image_files import list_images
from pirl_plugin.experiments.study import Method, Study, read_study
from pirl_plugin.experiments.study_evaluation import Evaluation, complete
from pirl_plugin.experiments.study_images import lay_out_images
from pirl_plugin.experiments.study_pieces import (
    check_none_is_lost,
    check_same_rates,
    check_same_settings,
    content_before,
    known_rates,
    methods_of,
    names_of,
    restore,
)
from pirl_plugin.experiments.study_rates import Trials, choose_rates, rates_in_words
from pirl_plugin.experiments.study_report import collect, write
from pirl_plugin.experiments.study_runs import RATE_EPOCHS, Plan, check_seeds, machine, make_plan, run_all, runs_of
from pirl_plugin.launch.composition import quote
from pirl_plugin.launch.launcher import compose
from pirl_plugin.paths import write_json
from pirl_plugin.validation import ConfigError, check_integer


def run(options: Namespace) -> int:
    """Run a study with the options of `pirl study`; returns the exit code.

    Raises:
        ConfigError: for options that contradict each other, or unusable data.
    """
    output = options.output.resolve()
    stored = output / "study.json"
    if options.report_only:
        if not stored.is_file():
            raise ConfigError(f"There is no {stored}: run the study first.")
        print(write(json.loads(stored.read_text()), output).read_text())
        return 0
    if not options.train or not options.test:
        raise ConfigError("--train and --test must each name a folder with one sub-folder per class.")
    study = study_of(options)
    names = names_of(study, options.only)
    for option, numbers in (("--seeds", options.seeds), ("--sweep-seeds", options.sweep_seeds)):
        check_seeds(numbers, option)
    check_splits(options.train, options.test)
    plan = choose_plan(options, study)
    train, test = output / "data" / "train", output / "data" / "test"
    images = lay_out_images(options.train, train, plan.images)
    tested = lay_out_images(options.test, test)
    overrides = [
        f"config.DATA.TRAIN.DATA_PATHS=[{quote(train)}]",
        f"config.OPTIMIZER.num_epochs={plan.epochs}",
        f"config.CHECKPOINT.CHECKPOINT_FREQUENCY={max(1, plan.epochs // 4)}",
        *options.overrides,
    ]
    before = content_before(stored)
    data = f"{images} images of {options.train}, measured on {tested} of {options.test}"
    settings = settings_of(options, plan, data)
    check_same_settings(before, settings, stored)
    check_none_is_lost(before, runs_of(study, output, options.seeds, options.sweep_seeds, overrides))
    trials = Trials(train, output / "rates", max(4, plan.epochs // RATE_EPOCHS), options.jobs, options.overrides)
    rates = choose_rates(study, methods_of(study, names), trials, known_rates(before, settings))
    rates = {name: one for name, one in rates.items() if name in study.methods and study.methods[name].has_choice}
    if rates:
        settings["learning rates"] = rates_in_words(rates)
    check_same_rates(before, study, rates, stored)
    study = study_of(options, {name: one["rate"] for name, one in rates.items()})
    runs = runs_of(study, output, options.seeds, options.sweep_seeds, overrides)
    restore(before, runs)
    runs = [run for run in runs if run.name in names]
    print(f"{len(runs)} runs of {images} images, {plan.epochs} epochs, {options.jobs} at a time", flush=True)
    pirl = next(method.config for method in study.methods.values() if method.config)
    layers_of = ("pirl_jigsaw", "npid_plus_plus", "jigsaw", "random")
    evaluation = Evaluation(train, test, pirl, layers_of, not options.no_finetuning)

    def keep() -> None:
        write_json(stored, collect(study, output, settings, rates=rates))

    keep()  # an interrupted study has a report, too, and the rates that were chosen
    seconds = None if options.only else plan.seconds  # expected, of all
    failed = run_all(runs, options.jobs, functools.partial(complete, evaluation=evaluation), seconds, keep)
    path = write(collect(study, output, settings, failed, rates), output)
    print(f"\n{path.read_text()}\nWritten: {path}")
    return 1 if failed else 0


def settings_of(options: Namespace, plan: Plan, data: str) -> dict[str, Any]:
    """What the report says of all runs."""
    given = f"{options.budget_minutes:g} minutes" if options.budget_minutes else "--images and --epochs, as given"
    return {
        "data": data,
        "epochs": plan.epochs,
        "budget": f"{given}; {options.jobs} run{'s' * (options.jobs > 1)} at a time",
        **({"precision": "bfloat16 in pre-training with PIRL's train step"} if options.bfloat16 else {}),
        **({"overrides": " ".join(options.overrides)} if options.overrides else {}),
        **machine(),
    }


def study_of(options: Namespace, rates: Mapping[str, float] | None = None) -> Study:
    """The study that is asked for, with `--bfloat16` in its methods that can."""
    study = read_study(options.study, rates)
    return in_bfloat16(study) if options.bfloat16 else study


@functools.cache  # sweeps have many runs of one config
def train_step_of(config: str) -> str:
    """The train step of a config, by name."""
    return str(compose([f"config={config}"], check=False).TRAINER.TRAIN_STEP_NAME)


def in_bfloat16(study: Study) -> Study:
    """A study whose pre-training computes in bfloat16, except of methods that use VISSL's train step."""

    def changed(method: Method) -> Method:
        if method.config is None or train_step_of(method.config) != "pirl_train_step":
            return method
        return replace(method, overrides=("config.TRAINER.PIRL_TRAIN_STEP.precision=bfloat16", *method.overrides))

    methods, points = ({name: changed(one) for name, one in of.items()} for of in (study.methods, study.points))
    return replace(study, methods=methods, points=points)


def choose_plan(options: Namespace, study: Study) -> Plan:
    """Images and epochs as given, or what the budget allows; a resumed study keeps its own."""
    if (options.images is None) != (options.epochs is None) or bool(options.images) == bool(options.budget_minutes):
        raise ConfigError("give either --budget-minutes, or --images and --epochs together.")
    if options.images:
        check_integer(options.images, "--images", 1)
        check_integer(options.epochs, "--epochs", 1)
        return Plan(options.images, options.epochs, None)
    remembered = options.output / "plan.json"
    if remembered.is_file():
        before = json.loads(remembered.read_text())
        if before.pop("budget_minutes") != options.budget_minutes:
            raise ConfigError(
                f"--budget-minutes is {options.budget_minutes:g}, but {options.output} was started "
                f"with another budget; give that, or another --output."
            )
        return Plan(**before)
    available, tested = len(list_images(options.train)), len(list_images(options.test))
    seeds = len(options.seeds), len(options.sweep_seeds)
    plan = make_plan(study, *seeds, options.budget_minutes, options.jobs, available, tested)
    options.output.mkdir(parents=True, exist_ok=True)
    remembered.write_text(json.dumps({"budget_minutes": options.budget_minutes, **dataclasses.asdict(plan)}))
    return plan
