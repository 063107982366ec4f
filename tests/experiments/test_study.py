"""The study: what it plans, that it goes on, and that its report says what its numbers say."""

import dataclasses
import itertools
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.evaluation.figures import draw_lines
from pirl_plugin.evaluation.layers import embed_layers
from pirl_plugin.evaluation.measures import linear_probe, weighted_knn
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.experiments import study_command, study_finetuning, study_rates, study_runs
from pirl_plugin.experiments.study import Method, Study, read_study
from pirl_plugin.experiments.study_command import choose_plan
from pirl_plugin.experiments.study_evaluation import (
    Evaluation,
    evaluate,
    evaluate_layers_recomputed,
    few_label_accuracy,
)
from pirl_plugin.experiments.study_findings import (
    findings,
)
from pirl_plugin.experiments.study_finetuning import finetune_run
from pirl_plugin.experiments.study_images import lay_out_share
from pirl_plugin.experiments.study_rates import Trials, choose_rates
from pirl_plugin.experiments.study_report import draw, report, table
from pirl_plugin.experiments.study_runs import Plan, Run, check_seeds, make_plan, run_all, runs_of
from pirl_plugin.figures import new_figure
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.batchnorm_averages import recompute_averages
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.validation import ConfigError
from study_results import result

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_study_has_the_papers_methods_and_sweeps():
    study = read_study()
    assert list(study.methods) == [
        "pirl_jigsaw", "pirl_rotation", "pirl_rotation_jigsaw", "npid_plus_plus", "jigsaw", "rotation", "supervised",
        "random",
    ]  # fmt: skip
    assert set(study.sweeps) == {"lambda", "permutations", "negatives"}
    assert study.sweeps["lambda"].series["PIRL"]["0.5"] == "pirl_jigsaw"
    assert list(study.sweeps["permutations"].series["PIRL"]) == ["100", "2000", "10000", "362880"]


def test_every_run_of_the_shipped_study_composes_and_has_what_its_name_says(photo_folder, tmp_path):
    photos = tmp_path / "list.txt"
    photos.write_text("\n".join(str(path) for path in sorted(photo_folder.rglob("*.jpg")) * 25))
    rates = {"pirl_jigsaw": 0.03, "rotation": 0.12}
    runs = runs_of(read_study(rates=rates), tmp_path, [3], [3], [])
    configs = {}
    for run in runs:
        if run.method.config is not None:
            folder = (
                photo_folder
                if run.name.startswith(("jigsaw", "rotation", "supervised", "permutations_jigsaw"))
                else photos
            )
            configs[run.name] = compose([*run.launcher_overrides(), f"config.DATA.TRAIN.DATA_PATHS=[{folder}]"])
    assert all(config.SEED_VALUE == 3 for config in configs.values())
    assert configs["lambda_pirl_0.25"].LOSS.pirl_loss.lambda_ == 0.25
    assert configs["permutations_pirl_2000"].DATA.TRAIN.TRANSFORMS[0]["num_permutations"] == 2000
    for name, permutations in (("jigsaw", 100), ("permutations_jigsaw_10000", 10000)):
        assert configs[name].MODEL.HEAD.PARAMS[2][1]["dims"] == [576, permutations]
        assert configs[name].DATA.TRAIN.TRANSFORMS[6]["num_permutations"] == permutations
    schedules = {name: config.OPTIMIZER.param_schedulers.lr for name, config in configs.items()}
    ends = {name: (schedule.start_value, schedule.end_value) for name, schedule in schedules.items()}
    assert ends["pirl_jigsaw"] == ends["lambda_pirl_0.25"] == (0.03, 0.0003) and ends["rotation"] == (0.12, 0.0012)
    assert ends["npid_plus_plus"] == (0.015, 0.00015)  # its config's
    loss = configs["negatives_pirl_128"].LOSS.pirl_loss
    assert (loss.negatives, loss.num_negatives) == ("per_image", 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [", "is not YAML"),
        ("", "it must be a mapping"),
        ("sweeps: {}", "methods of .* is None"),
        ("methods: {a: {title: A, confg: x}}", "has no key 'confg' .did you mean config"),
        ("methods: {a: {config: x, cost: 1}}", "methods.a of .* has no title"),
        ("methods: {a: {title: A, config: x}}", "methods.a of .* has no cost"),
        ("methods: {a: {title: A, config: x, cost: 0}}", "cost of methods.a of .* is 0"),
        ("methods: {a: {title: A, config: x, cost: 1, learning_rates: 1}}", "is 1; it must be a list of different"),
        ("methods: {a: {title: A, config: x, cost: 1, learning_rates: [1, 1]}}", "must be a list of different numbers"),
        (
            "methods: {a: {title: A, config: x, cost: 1, learning_rates: [1, -2]}}",
            "learning_rates of methods.a .* is -2",
        ),
        ("methods: {a: {title: A}}", "has none with a config"),
        ("methods: {a: {title: A, config: x, cost: 1, overrides: b=1}}", "it must be a list of strings"),
        (
            "{methods: {a: {title: A, config: x, cost: 1}}, sweeps: {s: {title: S, label: s, log: 1, series: {}}}}",
            "sweeps.s of .* has no key 'log'; it knows label, logarithmic",
        ),
        (
            "{methods: {a: {title: A, config: x, cost: 1}}, sweeps: {s: {title: S, label: s, series: {l: {1: {}}}}}}",
            "series.l.1 of sweeps.s of .* has no method",
        ),
        (
            "{methods: {a: {title: A, config: x, cost: 1}}, "
            "sweeps: {s: {title: S, label: s, series: {l: {1: {method: b}}}}}}",
            "method of series.l.1 of sweeps.s of .* is 'b'",
        ),
    ],
)
def test_a_study_that_cannot_be_right_is_refused(text, message, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "study.yaml")


def test_a_plan_keeps_the_budget_and_takes_epochs_then_images_then_more_epochs(monkeypatch):
    monkeypatch.setattr(study_runs, "seconds_per_image", lambda processes: 0.004)
    study = read_study()
    plans = [make_plan(study, 3, 1, minutes, 2, 5000, 5000) for minutes in (60, 120, 600)]
    for plan, minutes in zip(plans, (60, 120, 600), strict=True):
        assert 0.9 * minutes * 120 < plan.seconds <= minutes * 120
    assert plans[0].epochs == 12 and plans[0].images < plans[1].images
    assert plans[2].images == 5000 and plans[2].epochs > 12
    with pytest.raises(ConfigError, match=r"--budget-minutes is 5; 35 runs of 12 epochs of 1000 images need \d+ here"):
        make_plan(study, 3, 1, 5, 2, 5000, 5000)
    with pytest.raises(ConfigError, match="--jobs is 0"):
        make_plan(study, 3, 1, 500, 0, 5000, 5000)
    with pytest.raises(ConfigError, match="--seeds names a seed twice: 0 0"):
        check_seeds([0, 0], "--seeds")
    with pytest.raises(ConfigError, match="--seeds is -1; it must be a whole number between 0 and"):
        check_seeds([0, -1], "--seeds")


def test_a_studys_size_is_given_or_follows_from_its_budget_which_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "seconds_per_image", lambda processes: 0.004)
    photos = tmp_path / "photos.txt"
    photos.write_text("\n".join(f"/photos/{number}.jpg" for number in range(5000)))

    def plan(budget=None, images=None, epochs=None):
        options = Namespace(budget_minutes=budget, images=images, epochs=epochs, seeds=[0, 1, 2], sweep_seeds=[0],
                            jobs=2, train=photos, test=photos, output=tmp_path / "out")  # fmt: skip
        return choose_plan(options, read_study())

    assert plan(images=100, epochs=7) == Plan(100, 7, None) and not (tmp_path / "out").exists()
    for wrong in ({}, {"images": 100}, {"epochs": 7}, {"budget": 60, "images": 100, "epochs": 7}):
        with pytest.raises(ConfigError, match="give either --budget-minutes, or --images and --epochs together"):
            plan(**wrong)
    for wrong in ({"images": 100, "epochs": 0}, {"images": 100, "epochs": -1}, {"images": -5, "epochs": 7}):
        with pytest.raises(ConfigError, match="it must be a whole number at least 1"):
            plan(**wrong)
    first = plan(budget=60)
    assert first == make_plan(read_study(), 3, 1, 60, 2, 5000, 5000)
    monkeypatch.setattr(study_runs, "seconds_per_image", lambda processes: 0.04)  # the machine is busy
    assert plan(budget=60) == first
    with pytest.raises(ConfigError, match=r"--budget-minutes is 90, but .* was started with another budget"):
        plan(budget=90)


def test_a_pretraining_that_fails_says_its_last_line_and_counts_its_time(photo_folder, tmp_path):
    method = Method("PIRL", "pretrain/pirl/jigsaw_small_images_cpu", 1.0)
    overrides = (f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", "config.LOSS.pirl_loss.temperature=-1")
    run = Run("pirl", 0, method, tmp_path, overrides, method.config)
    run.begin()
    run.begin()  # the same again is no other run
    with pytest.raises(RuntimeError, match=r"failed: Error: .*temperature .* is -1; .*\(see .*output.txt\)"):
        run.pretrain()
    assert 0 < float((run.folder / "minutes.txt").read_text()) < 5
    with pytest.raises(ConfigError, match=r"was made with other settings \(.*temperature=-1\); give another --output"):
        dataclasses.replace(run, overrides=()).begin()


def test_a_run_whose_process_is_killed_is_named_and_the_others_go_on():
    runs = [a_run(number, job=f"print({number})") for number in range(5)]
    runs[1].job = "__import__('os').kill(__import__('os').getpid(), 9)"
    (failed,) = run_all(runs, 2, job_of)
    assert failed.startswith("run1, seed 0: its process was killed ") and "memory" in failed


def a_run(number, is_done=False, work=1.0, **more) -> SimpleNamespace:
    return SimpleNamespace(name=f"run{number}", seed=0, is_done=is_done, work=work, **more)


def job_of(run) -> None:
    exec(run.job)


def test_a_run_that_fails_is_named_and_the_others_go_on(capsys):
    runs = [a_run(number, value=number) for number in range(4)]
    runs[2].value = None
    failed = run_all(runs, 2, operator.attrgetter("value.real"))  # importable in any process
    assert failed == ["run2, seed 0: 'NoneType' object has no attribute 'real'"]
    counts = [int(number) for number in re.findall(r"^(\S+) of 4 runs done", capsys.readouterr().out, re.MULTILINE)]
    assert counts[-1] == 4 and counts == sorted(counts) and counts[0] >= 0


def test_the_time_left_counts_the_work_of_this_call_and_the_line_names_what_runs_now(capsys):
    runs = [a_run(number, is_done=number % 2 == 1, work=0.5 + number, job="") for number in range(6)]
    runs[4].job = "__import__('time').sleep(4)"
    runs[2].job = "__import__('time').sleep(2)"
    runs[0].job = "1 / 0"  # has done no work
    assert run_all(runs, 1, job_of) == ["run0, seed 0: division by zero"]
    lines = re.findall(r"^\d.*", capsys.readouterr().out, re.MULTILINE)
    assert [line.partition("; now ")[2] for line in lines] == [*(f"run{n} seed 0" for n in (3, 5, 0, 2, 4)), ""]
    left = [re.search(r"about (\S+) left", line) for line in lines]
    assert left[:4] == [None] * 4 and all(left[4:])  # unknown until a run of this call has ended
    assert left[-1].group(1) == "0"


RUNNING = """
import os, sys, time
from types import SimpleNamespace

def complete(run):
    os.write(1, b"%d\\n" % os.getpid())  # in one piece, also where Python does not buffer
    time.sleep(600)

if __name__ == "__main__":
    import running
    from pirl_plugin.experiments.study_runs import run_all
    runs = [SimpleNamespace(name="run", seed=seed, is_done=False, work=1.0) for seed in range(5)]
    run_all(runs, 2, running.complete)
"""


def test_the_runs_of_a_study_that_is_killed_end_and_none_of_its_queue_begins(tmp_path):
    (tmp_path / "running.py").write_text(RUNNING)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    study = subprocess.Popen(
        [sys.executable, tmp_path / "running.py"], stdout=subprocess.PIPE, text=True, env=environment
    )
    list(itertools.islice((line for line in study.stdout if line.strip().isdigit()), 2))  # two have begun
    study.kill()
    after, _ = study.communicate(timeout=30)  # until the last process that could write has ended
    assert after == ""


def test_lines_are_drawn_from_zero_with_room_above_the_highest_point():
    axes = new_figure(5, 3).subplots()
    draw_lines(axes, {"a": {"1": [0.41, 0.43], "2": [0.452]}}, "title", "label")
    bottom, top = axes.get_ylim()
    assert bottom == 0 and top > 1.03 * 45.2


def test_the_report_has_the_table_the_findings_and_the_pictures(tmp_path):
    layers = {"layers": {"conv1": 0.3, "res5": 0.4}}
    content = {
        "settings": {"epochs": 3, "budget": "none"},
        "methods": {"pirl_jigsaw": {"title": "PIRL (jigsaw)", "paper": {"linear": 62.2}},
                    "npid_plus_plus": {"title": "NPID++", "paper": {}}},
        "sweeps": {"lambda": {"title": "Figure 6, weight", "label": "lambda", "logarithmic": False,
                              "series": {"PIRL": {"0.0": "npid_plus_plus", "0.5": "pirl_jigsaw"}}}},
        "runs": [result("pirl_jigsaw", 0, 0.5, **layers), result("pirl_jigsaw", 1, 0.504, **layers),
                 result("npid_plus_plus", 0, 0.4, **layers)],
    }  # fmt: skip
    assert "| PIRL (jigsaw) | 2 | 48.2 +- 0.3 | 50.2 +- 0.3 |" in table(content)
    assert len({line.count("|") for line in table(content).splitlines()}) == 1  # as many cells in every row
    assert {finding.claim for finding in findings(content)} >= {
        "PIRL (jigsaw) > NPID++", "lambda = 0.5 is best (Figure 6)", "res5 is PIRL's best layer (Figure 5)",
    }  # fmt: skip
    pictures = draw(content, tmp_path)
    assert {path.name for path in pictures} == {"figure4.png", "figure5.png", "figure6.png", "study.png"}
    assert all(path.stat().st_size > 5000 for path in pictures)
    both = {"lambda": content["sweeps"]["lambda"], "other": content["sweeps"]["lambda"]}
    assert {"figure6.png", "figure6_other.png"} <= {path.name for path in draw({**content, "sweeps": both}, tmp_path)}
    text = report(content, pictures)
    assert "failed" not in text
    assert "- failed: a, seed 0: why" in report({**content, "failed": ["a, seed 0: why"]}, pictures)
    assert "- epochs: 3" in text and "![study](study.png)" in text and "| PIRL (jigsaw) > NPID++ | held |" in text
    assert "none: findings need runs with the names" in report({**content, "runs": []}, [])
    assert "| Figure 6, weight: kNN / linear | 0.0 | 0.5 |" in text
    assert "| PIRL | 38.0 / 40.0 | 48.2 +- 0.3 / 50.2 +- 0.3 |" in text
    assert "fine-tuned" not in text.split("## The paper's findings")[0].replace("(the paper fine-tunes", "")
    for number, one in enumerate(content["runs"][:2]):
        one |= {"knn_recomputed": 0.61, "linear_recomputed": 0.62, "finetuned_1percent": 0.2 + number / 10}
        one["finetuned_10percent"] = 0.5
        one["layers_recomputed"] = {"conv1": 0.45, "res5": 0.41 + number / 100}
    assert "figure5_recomputed.png" in {path.name for path in draw(content, tmp_path)}
    measured = report(content, pictures)
    best = "| res5 is PIRL's best layer (Figure 5){} | {} | conv1 {}, res5 {} |"
    for numbers in (("", "held", "30.0", "40.0"), (", averages recomputed", "not held", "45.0", "41.5")):
        assert best.format(*numbers) in measured, numbers
    assert "| PIRL (jigsaw) | 61.0 +- 0.0 | 62.0 +- 0.0 | 25.0 +- 7.1 | 50.0 +- 0.0 |" in measured
    assert "| NPID++ |" not in measured.split("averages recomputed |")[1].split("Points of the sweeps")[0]


STUDY = """
methods:
  pirl_jigsaw: {title: PIRL, config: pretrain/pirl/jigsaw_small_images_cpu, cost: 1, learning_rates: [0.01, 0.02]}
  jigsaw:
    {title: Jigsaw, config: pretrain/jigsaw/covariant_small_images_cpu, cost: 1,
     overrides: ["config.MODEL.HEAD.PARAMS.0.1.dims=[64,64]"]}
  random: {title: random}
sweeps:
  lambda:
    title: Figure 6, weight
    label: lambda
    series:
      PIRL:
        0.5: {method: pirl_jigsaw}
        1.0: {method: pirl_jigsaw, overrides: [config.LOSS.pirl_loss.lambda_=1.0]}
"""


@pytest.mark.slow
def test_a_study_runs_goes_on_and_is_drawn_again_from_its_json(photo_folder, held_out_folder, tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(STUDY)
    output = tmp_path / "out"

    def run(*options: str) -> subprocess.CompletedProcess:
        script = ROOT / "extra_scripts" / "study.py"
        return subprocess.run(
            [sys.executable, script, "--output", str(output), *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=500,
        )  # fmt: skip

    def study(*options: str) -> subprocess.CompletedProcess:
        data = ["--train", str(photo_folder), "--test", str(held_out_folder), "--study", str(tmp_path / "study.yaml")]
        size = ["--images", "40", "--epochs", "1", "--seeds", "0", "--jobs", "2", "--no-finetuning"]
        return run(*data, *size, *options, "--", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125")

    first = study()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 of 4 runs done" in first.stdout
    content = json.loads((output / "study.json").read_text())
    assert {one["name"] for one in content["runs"]} == {"pirl_jigsaw", "jigsaw", "random", "lambda_pirl_1.0"}
    for one in content["runs"]:
        assert 0 <= one["knn"] <= 1 and 0 <= one["labels_1percent"] <= 1
        assert 0 <= one["linear_recomputed"] <= 1 and "finetuned_10percent" not in one
        assert ("heads, batch statistics" in one["invariance"]) == (one["name"] != "jigsaw")
        assert (one["minutes"] > 0) == (one["name"] != "random")
    rates = re.search(
        r"on a fifth of the training images: pirl_jigsaw (0.0[12]), the (?:low|high)est \(0.01: ",
        content["settings"]["learning rates"],
    )
    overrides = json.loads((output / "runs" / "lambda_pirl_1.0" / "seed0" / "overrides.json").read_text())
    assert f"config.OPTIMIZER.param_schedulers.lr.start_value={rates[1]}" in overrides
    study_of_one = read_study(tmp_path / "study.yaml", {"pirl_jigsaw": float(rates[1])})
    narrow = "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125"
    (one, *_) = runs_of(study_of_one, output, [0], [0], [narrow])
    monkeypatch.setattr(study_finetuning, "SHARES", {"finetuned_10percent": 0.1})
    monkeypatch.setattr(study_finetuning, "MOST_EPOCHS", 2)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    figures = finetune_run(one, output / "data" / "train", output / "data" / "test")
    assert set(figures) == {"finetuned_10percent"} and 0 <= figures["finetuned_10percent"] <= 1
    text, picture = (output / "report.md").read_text(), (output / "study.png").read_bytes()
    assert "| PIRL (jigsaw) > Jigsaw |" in text and "lambda = 0.5 is best" in text
    # Of a run that is lost only its evaluation is done again; the rest is as it was.
    made = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/model_final*.torch")}
    (output / "runs" / "jigsaw" / "seed0" / "result.json").unlink()
    again = study()
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/model_final*.torch")} == made
    assert json.loads((output / "study.json").read_text())["runs"] == content["runs"]
    # The report from the JSON alone.
    for name in ("report.md", "study.png"):
        (output / name).unlink()
    assert run("--report-only").returncode == 0
    assert (output / "report.md").read_text() == text and (output / "study.png").read_bytes() == picture
    # Another size in the same folder is refused.
    other = study("--epochs", "2")
    assert other.returncode == 1 and "have the epochs 1, not 2" in other.stderr
    assert "give either --budget-minutes, or --images and --epochs" in study("--budget-minutes", "3").stderr


@pytest.fixture(scope="module")
def noisy_classes(tmp_path_factory) -> dict[str, Path]:
    """Different photos of three classes to learn from and to measure on; colours overlap."""
    folders = {}
    for split, seed, count in (("train", 0, 30), ("test", 1, 20)):
        folders[split], rng = tmp_path_factory.mktemp(split), np.random.default_rng(seed)
        for label in range(3):
            (folders[split] / f"class{label}").mkdir()
            for number in range(count):
                pixels = rng.integers(0, 200, (36, 36, 3))
                pixels[..., label] += rng.integers(0, 50)
                path = folders[split] / f"class{label}" / f"{number:02d}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folders


def test_a_run_is_evaluated_by_the_measures_that_its_result_names(noisy_classes, tmp_path):
    """On the random network, against each measure computed plainly, and with test labels that are all wrong."""
    config = "pretrain/pirl/jigsaw_small_images_cpu"
    data = (f"config.DATA.TRAIN.DATA_PATHS=[{noisy_classes['train']}]",)
    run = Run("random", 2, Method("random"), tmp_path, data, config)
    train, test = (noisy_classes[split] for split in ("train", "test"))
    result = evaluate(run, Evaluation(train, test, config, ("random",)))
    trunk = build_trunk(compose([f"config={config}", "config.SEED_VALUE=2"], check=False), None, seed=2)
    (train_files, train_labels), (test_files, test_labels) = labelled_images(train), labelled_images(test)
    features = [embed(trunk, files, center_view(32)) for files in (train_files, test_files)]
    assert result["knn"] == pytest.approx(weighted_knn(features[0], train_labels, features[1], test_labels), abs=0.02)
    assert result["linear"] == pytest.approx(
        linear_probe(features[0], train_labels, features[1], test_labels), abs=0.02
    )
    assert result["knn"] != result["linear"] and result["labels_1percent"] < result["linear"]
    recompute_averages(trunk, train_files, center_view(32))
    features = [embed(trunk, files, center_view(32)) for files in (train_files, test_files)]
    for measure, accuracy in (("knn_recomputed", weighted_knn), ("linear_recomputed", linear_probe)):
        expected = accuracy(features[0], train_labels, features[1], test_labels)
        assert result[measure] == pytest.approx(expected, abs=0.02)
    assert any(result[f"{measure}_recomputed"] != result[measure] for measure in ("knn", "linear"))
    layers = evaluate_layers_recomputed(run, Evaluation(train, test, config, ("random",)))["layers_recomputed"]
    conv1 = [embed_layers(trunk, files, center_view(32), ["conv1"])["conv1"] for files in (train_files, test_files)]
    expected = linear_probe(conv1[0], train_labels, conv1[1], test_labels)
    assert layers["conv1"] == pytest.approx(expected, abs=0.02) and layers.keys() == result["layers"].keys()
    assert layers != result["layers"]
    wrong = tmp_path / "wrong"
    for label in range(3):
        shutil.copytree(test / f"class{label}", wrong / f"class{(label + 1) % 3}")
    turned = evaluate(run, Evaluation(train, wrong, config, ("random",)))
    measures = {"knn", "linear", "labels_10percent", "conv1", "res5", "knn_recomputed", "linear_recomputed"}
    layers_turned = evaluate_layers_recomputed(run, Evaluation(train, wrong, config, ()))["layers_recomputed"]
    for right, other in ((result, turned), (result["layers"], turned["layers"]), (layers, layers_turned)):
        for measure in set(right) & measures:
            assert right[measure] > 0.45 > 0.4 > other[measure], measure


@pytest.mark.parametrize("failed", [[], ["jigsaw, seed 4: why"]])
def test_a_study_says_what_it_ran_on_and_reports_what_ended_and_what_failed(
    noisy_classes, tmp_path, monkeypatch, capsys, failed
):
    seen = {}

    def run_all(runs, jobs, complete, seconds, keep):  # each run: test_a_run_is_evaluated_by_the_measures_that_...
        seen.update(runs=runs, jobs=jobs, seconds=seconds, evaluation=complete.keywords["evaluation"])
        for run in runs:
            run.folder.mkdir(parents=True)
            (run.folder / "result.json").write_text(json.dumps(result(run.name, run.seed, 0.5)))
            keep()
            content = json.loads((tmp_path / "out" / "study.json").read_text())  # what an interrupted study has
            assert (run.name, run.seed) in {(one["name"], one["seed"]) for one in content["runs"]}
            assert content["rates"]["pirl_jigsaw"]["rate"] == 0.02
        return failed

    def choose_rates(study, *given):  # its own tests are below
        seen.update(choice=given)
        before = {"jigsaw": {"rate": 0.5, "tried": {"0.5": 0.3}}}  # which has no choice any more
        return {**before, "pirl_jigsaw": {"rate": 0.02, "tried": {"0.01": 0.3, "0.02": 0.4}}}

    monkeypatch.setattr(study_command, "run_all", run_all)
    monkeypatch.setattr(study_command, "choose_rates", choose_rates)
    (tmp_path / "study.yaml").write_text(STUDY)
    train, test = (str(noisy_classes[split]) for split in ("train", "test"))
    given = {"output": tmp_path / "out", "study": str(tmp_path / "study.yaml"), "train": train, "test": test,
             "images": 60, "epochs": 9, "seeds": [3, 4], "sweep_seeds": [3], "jobs": 2, "budget_minutes": None,
             "report_only": False, "no_finetuning": False, "only": None, "bfloat16": False,
             "overrides": ["config.SEED=1"]}  # fmt: skip
    assert study_command.run(Namespace(**given)) == len(failed)
    assert [(run.name, run.seed) for run in seen["runs"]] == [
        ("pirl_jigsaw", 3), ("jigsaw", 3), ("random", 3), ("pirl_jigsaw", 4), ("jigsaw", 4), ("random", 4),
        ("lambda_pirl_1.0", 3),
    ]  # fmt: skip
    assert seen["runs"][0].overrides == (
        f"config.DATA.TRAIN.DATA_PATHS=['{tmp_path}/out/data/train']", "config.OPTIMIZER.num_epochs=9",
        "config.CHECKPOINT.CHECKPOINT_FREQUENCY=2", "config.SEED=1",
    )  # fmt: skip
    assert (seen["jobs"], seen["seconds"]) == (2, None)
    assert seen["choice"][0] == {"pirl_jigsaw", "jigsaw", "random"}
    trials = Trials(tmp_path / "out/data/train", tmp_path / "out/rates", 4, 2, ["config.SEED=1"])
    assert seen["choice"][1:] == (trials, {})
    rates = {run.name: run.method.learning_rates for run in seen["runs"]}
    assert rates == {"pirl_jigsaw": (0.02,), "lambda_pirl_1.0": (0.02,), "jigsaw": (), "random": ()}
    data = tmp_path / "out" / "data"
    evaluation = seen["evaluation"]
    assert (evaluation.train, evaluation.test) == (data / "train", data / "test")
    assert evaluation.pretext_config == "pretrain/pirl/jigsaw_small_images_cpu" and "random" in evaluation.layers_of
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    settings = content["settings"]
    assert settings["data"] == f"60 images of {train}, measured on 60 of {test}" and settings["epochs"] == 9
    assert settings["budget"] == "--images and --epochs, as given; 2 runs at a time"
    assert settings["learning rates"].endswith(
        "of the training images: pirl_jigsaw 0.02, the highest (0.01: 30.0%, 0.02: 40.0%)"
    )
    assert len(content["runs"]) == 7 and content["failed"] == failed
    printed = capsys.readouterr().out
    assert printed.startswith("7 runs of 60 images, 9 epochs, 2 at a time\n")
    assert printed.endswith(f"Written: {tmp_path}/out/report.md\n") and "| PIRL | 2 | 48.0 +- 0.0 | 50.0" in printed
    (tmp_path / "out" / "report.md").unlink()
    assert study_command.run(Namespace(**{**given, "report_only": True, "train": None})) == 0
    assert "| PIRL | 2 | 48.0 +- 0.0 | 50.0" in capsys.readouterr().out and (tmp_path / "out" / "report.md").is_file()


def test_a_study_without_images_or_results_is_refused(tmp_path):
    given = {"output": tmp_path / "out", "report_only": False, "train": None, "test": "a"}
    with pytest.raises(ConfigError, match="--train and --test must each name a folder with one sub-folder per class"):
        study_command.run(Namespace(**given))
    with pytest.raises(ConfigError, match=r"There is no .*study.json: run the study first"):
        study_command.run(Namespace(**{**given, "report_only": True}))


def study_run(folder: Path, name: str, method: Method, *overrides: str, seed: int = 2) -> Run:
    config = "pretrain/pirl/jigsaw_small_images_cpu"
    run = Run(name, seed, method, folder, ("config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", *overrides), config)
    run.begin()
    return run


def test_shares_of_the_labels_are_the_same_for_all_methods_of_a_seed(noisy_classes, tmp_path):
    names = {}
    for seed in (0, 0, 1):  # a second call finds the links of the first
        assert lay_out_share(noisy_classes["train"], tmp_path / f"seed{seed}", 0.1, seed) == 9
        files = sorted((tmp_path / f"seed{seed}").rglob("*.png"))
        assert [file.parent.name for file in files] == [f"class{label}" for label in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
        assert all(file.resolve().parent.name == file.parent.name for file in files)
        names[seed] = [str(file.relative_to(tmp_path / f"seed{seed}")) for file in files]
    assert names[0] != names[1]


@pytest.mark.parametrize(("images", "epochs"), [(3, 100), (100, 75), (250, 38), (1000, 20), (5000, 20)])
def test_few_labels_are_seen_for_more_epochs(images, epochs, monkeypatch, tmp_path, noisy_classes):
    asked = []
    monkeypatch.setattr(study_finetuning, "SHARES", {"finetuned": 0.5})
    monkeypatch.setattr(study_finetuning, "lay_out_share", lambda *given: images)
    monkeypatch.setattr(study_finetuning, "finetuning", lambda *given: asked.append(given[6]) or [])
    monkeypatch.setattr(study_runs.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(study_finetuning, "last_test", lambda *given: {"res5": 40.0})
    run = study_run(tmp_path, "random", Method("random"))
    assert finetune_run(run, noisy_classes["train"], noisy_classes["test"]) == {"finetuned": 0.4} and asked == [epochs]


def test_a_run_is_finetuned_on_its_shares_from_its_weights_and_measured_after_the_last_epoch(
    noisy_classes, tmp_path, monkeypatch
):
    trained = []

    def finetune(command, **given):  # the fine-tuning itself: tests/experiments/test_finetune.py
        config = compose(command[3:], check=False)
        share = len(list(Path(config.DATA.TRAIN.DATA_PATHS[0]).rglob("*.png")))
        trained.append((config, share))
        folder = Path(config.CHECKPOINT.DIR)
        rows = [{"test_accuracy_list_meter": {"top_1": {"res5": accuracy}}} for accuracy in (90.0, 10.0 * share)]
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
        (folder / "model_final_checkpoint_phase1.torch").touch()
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(study_runs.subprocess, "run", finetune)
    code = 0
    train, test = tmp_path / "data" / "train", noisy_classes["test"]
    shutil.copytree(noisy_classes["train"], train)
    run = study_run(tmp_path, "pirl", Method("PIRL", "pretrain/pirl/jigsaw_small_images_cpu", 1.0))
    checkpoint = run.folder / "model_final_checkpoint_phase0.torch"
    torch.save({"iteration": 1, "classy_state_dict": {}}, checkpoint)
    assert finetune_run(run, train, test) == {"finetuned_1percent": 0.3, "finetuned_10percent": 0.9}
    for (config, images), epochs in zip(trained, (100, 100), strict=True):
        assert [config.MODEL.WEIGHTS_INIT.PARAMS_FILE, *config.DATA.TEST.DATA_PATHS] == [str(checkpoint), str(test)]
        assert config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER == 0.125 and config.MODEL.HEAD.PARAMS[0][1]["dims"] == [
            64,
            3,
        ]
        assert (config.OPTIMIZER.num_epochs, config.SEED_VALUE, config.TEST_EVERY_NUM_EPOCH) == (epochs, 2, epochs)
        assert images == (9 if "10percent" in config.CHECKPOINT.DIR else 3)
        assert not list(Path(config.CHECKPOINT.DIR).glob("*.torch"))
    assert checkpoint.exists()
    trained.clear()
    finetune_run(study_run(tmp_path, "random", Method("random")), train, test)
    assert [config.MODEL.WEIGHTS_INIT.PARAMS_FILE for config, _ in trained] == ["", ""]
    code = 1
    with pytest.raises(
        RuntimeError, match=r"fine-tuning failed: no output yet \(see .*finetuned_1percent/output.txt\)"
    ):
        finetune_run(run, train, test)


def test_each_method_gets_the_rate_that_is_best_on_a_part_of_the_training_images(
    noisy_classes, tmp_path, monkeypatch, capsys
):
    accuracies, seen = {"a_0.1": 0.5, "a_0.2": 0.7, "a_0.4": 0.8, "a_0.8": 0.6, "b_0.1": 0.4, "b_0.3": 0.3}, {}

    def run_all(runs, jobs, complete):
        seen.update({run.name: run for run in runs}, evaluation=complete.keywords["evaluation"])
        for run in runs:
            run.begin()
            (run.folder / "result.json").write_text(json.dumps({"linear": accuracies[run.name]}))
        return []

    monkeypatch.setattr(study_rates, "run_all", run_all)
    config = "pretrain/pirl/jigsaw_small_images_cpu"
    methods = {"a": Method("A", config, 1.0, learning_rates=(0.1, 0.2)), "c": Method("C", config, 1.0),
               "b": Method("B", config, 1.0, learning_rates=(0.1, 0.3)), "random": Method("random")}  # fmt: skip
    study, train = Study(methods, {}, {}), noisy_classes["train"]
    chosen = choose_rates(study, methods, Trials(train, tmp_path / "rates", 5, 2, ["config.X=1"]), {})
    assert chosen == {"a": {"rate": 0.2, "tried": {"0.1": 0.5, "0.2": 0.7}, "made_with": [config]},
                      "b": {"rate": 0.1, "tried": {"0.1": 0.4, "0.3": 0.3}, "made_with": [config]}}  # fmt: skip
    parts = {name: sorted((tmp_path / "rates" / "data" / name).rglob("*.png")) for name in ("train", "validation")}
    assert {name: len(files) for name, files in parts.items()} == {"train": 72, "validation": 18}
    assert {file.resolve() for files in parts.values() for file in files} == set(noisy_classes["train"].rglob("*.png"))
    assert all(file.resolve().parent.name == file.parent.name for files in parts.values() for file in files)
    evaluation = seen.pop("evaluation")
    assert (evaluation.train, evaluation.test) == tuple(tmp_path / "rates" / "data" / name for name in parts)
    composed = compose([one for one in seen["a_0.2"].launcher_overrides() if "config.X" not in one], check=False)
    assert (composed.OPTIMIZER.param_schedulers.lr.start_value, composed.OPTIMIZER.num_epochs) == (0.2, 5)
    assert list(composed.DATA.TRAIN.DATA_PATHS) == [str(evaluation.train)] and composed.SEED_VALUE == study_rates.SEED
    assert seen["a_0.2"].overrides[0] == "config.X=1"
    assert (
        "a 0.2, the highest (0.1: 50.0%, 0.2: 70.0%); b 0.1, the lowest (0.1: 40.0%, 0.3: 30.0%)"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(study_rates, "run_all", lambda *given: ["a_0.1, seed 1000: why"])
    with pytest.raises(ConfigError, match=r"A learning rate could not be tried: a_0.1, seed 1000: why"):
        choose_rates(study, ["a"], Trials(train, tmp_path / "rates", 5, 2, []), {})
    assert choose_rates(study, ["c", "random"], Trials(train, tmp_path / "none", 5, 2, []), {}) == {}
    assert choose_rates(study, [], Trials(train, tmp_path / "none", 5, 2, []), chosen) == chosen
    monkeypatch.setattr(study_rates, "run_all", run_all)
    methods["a"] = Method("A", config, 1.0, learning_rates=(0.1, 0.2, 0.4, 0.8))  # the best was the highest
    seen.clear()
    wider = choose_rates(study, methods, Trials(train, tmp_path / "elsewhere", 5, 2, []), chosen)
    assert set(seen) == {"a_0.4", "a_0.8", "evaluation"} and wider["b"] == chosen["b"]
    assert (wider["a"]["rate"], wider["a"]["tried"]) == (0.4, {"0.1": 0.5, "0.2": 0.7, "0.4": 0.8, "0.8": 0.6})
    methods["a"] = Method("A", config, 1.0, learning_rates=(0.1, 0.8))  # a narrower list is chosen from as it is
    assert choose_rates(study, ["a"], Trials(train, tmp_path / "none", 5, 2, []), wider)["a"] == {
        **wider["a"],
        "rate": 0.8,
    }
    methods["b"] = dataclasses.replace(
        methods["b"], overrides=("config.Y=1",)
    )  # what was tried without it says nothing
    seen.clear()
    again = choose_rates(study, ["a", "b"], Trials(train, tmp_path / "others", 5, 2, []), wider)
    assert set(seen) == {"b_0.1", "b_0.3", "evaluation"} and again["b"]["made_with"] == [config, "config.Y=1"]
    equal = {"a": {"rate": 0.1, "tried": {"0.1": 0.5, "0.2": 0.4, "0.3": 0.5}}}
    assert "a 0.1, no better than the highest, the lowest (0.1: 50.0%" in study_rates.rates_in_words(equal)
    assert "a 0.4 (0.1: 50.0%, 0.2: 70.0%, 0.4: 80.0%, 0.8: 60.0%); b" in capsys.readouterr().out


def test_a_rate_is_judged_by_the_validation_images(noisy_classes, tmp_path):
    """On the random network, whose accuracy with right labels is high, and with wrong ones low."""
    wrong = tmp_path / "wrong"
    for label in range(3):
        shutil.copytree(noisy_classes["test"] / f"class{label}", wrong / f"class{(label + 1) % 3}")
    found = {}
    for name, validation in (("right", noisy_classes["test"]), ("wrong", wrong)):
        run = study_run(tmp_path, name, Method("random"), f"config.DATA.TRAIN.DATA_PATHS=[{noisy_classes['train']}]")
        evaluation = Evaluation(noisy_classes["train"], validation, run.base_config, ())
        study_rates.try_rate(run, evaluation)
        found[name] = json.loads((run.folder / "result.json").read_text())["linear"]
        before = (run.folder / "result.json").stat().st_mtime_ns
        study_rates.try_rate(run, evaluation)
        assert (run.folder / "result.json").stat().st_mtime_ns == before
    assert found["right"] > 0.45 > 0.4 > found["wrong"]


def test_few_labels_are_those_of_the_training_images():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    train, test = (labels[:, None] + 0.1 * rng.normal(size=(100, 4)) for _ in range(2))
    assert few_label_accuracy(train, labels, test, labels, 0.1) > 0.95
    assert few_label_accuracy(train, 1 - labels, test, labels, 0.1) < 0.05
