"""A study in pieces: which runs are asked for, and that it goes on from study.json alone, with the same runs only."""

import copy
import json

import pytest

from pirl_plugin.experiments.study import read_study
from pirl_plugin.experiments.study_command import in_bfloat16
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
from pirl_plugin.experiments.study_runs import Run, runs_of
from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError

DATA = "60 images of a, measured on 50 of b"


def test_a_piece_is_of_methods_and_whole_sweeps():
    study = read_study()
    assert names_of(study, None) == {*study.methods, *study.points}
    assert names_of(study, ["pirl_jigsaw", "random"]) == {"pirl_jigsaw", "random"}
    of_sweep = names_of(study, ["lambda"])
    points = {"lambda_pirl_0.25", "lambda_pirl_0.75", "lambda_pirl_1.0"}
    assert of_sweep == {"npid_plus_plus", "pirl_jigsaw", *points}
    with pytest.raises(ConfigError, match=r"--only is 'pirl_jigsa' .did you mean pirl_jigsaw.*random, lambda"):
        names_of(study, ["pirl_jigsa"])


def test_a_learning_rate_is_chosen_for_the_methods_of_which_a_piece_has_variants():
    study = read_study()
    assert methods_of(study, {"random", "lambda_pirl_0.25"}) == {"random", "pirl_jigsaw"}
    assert methods_of(study, {"permutations_jigsaw_2000"}) == {"jigsaw"}
    assert methods_of(study, names_of(study, None)) == set(study.methods)


def runs_at(output, epochs=3, rate=0.03):
    overrides = [f"config.DATA.TRAIN.DATA_PATHS=[{output}/data]", f"config.OPTIMIZER.num_epochs={epochs}"]
    return runs_of(read_study(rates={"pirl_jigsaw": rate}), output, [0, 1], [0], overrides)


@pytest.fixture
def before(tmp_path):
    """The study.json of a study of which two runs are done, in another folder."""
    done = [run for run in runs_at(tmp_path / "there") if run.name in ("pirl_jigsaw", "lambda_pirl_1.0")][:2]
    results = [{"name": run.name, "seed": run.seed, "overrides": run.settings(), "knn": 0.5} for run in done]
    (tmp_path / "study.json").write_text(json.dumps({"settings": {"data": DATA}, "runs": results}))
    return content_before(tmp_path / "study.json")


def test_a_study_goes_on_from_its_json_alone(before, tmp_path):
    assert [(one["name"], one["seed"]) for one in before["runs"]] == [("pirl_jigsaw", 0), ("pirl_jigsaw", 1)]
    output = tmp_path / "here"
    runs = runs_at(output)
    restore(before, runs)
    found = sorted(output.glob("runs/*/*/result.json"))
    assert [path.parent.relative_to(output / "runs").as_posix() for path in found] == [
        "pirl_jigsaw/seed0", "pirl_jigsaw/seed1",
    ]  # fmt: skip
    assert [json.loads(path.read_text()) for path in found] == before["runs"]

    def measure():
        raise AssertionError("a run that was restored is measured again")

    runs[0].complete(measure)
    changed = copy.deepcopy(before)
    changed["runs"][0]["knn"] = 0.1  # the folder's own result counts
    restore(changed, runs)
    assert json.loads(found[0].read_text())["knn"] == 0.5
    with pytest.raises(ConfigError, match=r"seed0 has pirl_jigsaw, seed 0, with other settings .*num_epochs=3"):
        restore({"runs": []}, runs_at(output, epochs=4))  # which --only may not name


def test_figures_that_a_result_lacks_are_measured_and_the_others_kept(before, tmp_path, monkeypatch):
    runs, trained = runs_at(tmp_path / "here"), []
    restore(before, runs)
    monkeypatch.setattr(Run, "pretrain", lambda run: trained.append(run.name))
    runs[0].complete(dict, ["knn"])
    assert not trained
    runs[0].complete(lambda: {"finetuned": 0.7}, ["finetuned"])
    figures = json.loads(runs[0].result.read_text())
    assert trained == ["pirl_jigsaw"] and (figures["knn"], figures["finetuned"]) == (0.5, 0.7)


def test_a_study_of_other_images_or_settings_is_not_mixed_in(before, tmp_path):
    path, settings = tmp_path / "study.json", {"data": DATA, "epochs": 3}
    before["settings"] = settings
    check_same_settings(before, settings, path)
    check_same_settings({**before, "runs": []}, {"data": "other images"}, path)  # it has no runs yet
    for other, told in (
        ({"data": "70 images of a, measured on 50 of b"}, "data 60 images of a, measured on 50 of b, not 70 images"),
        ({"epochs": 40}, "epochs 3, not 40; give that, or another --output"),
        ({"overrides": "config.LOSS.pirl_loss.temperature=0.2"}, "overrides none, not config.LOSS"),
    ):
        with pytest.raises(ConfigError, match=f"The runs of .*study.json have the {told}"):
            check_same_settings(before, {**settings, **other}, path)
    for other in ({"epochs": 4}, {"rate": 0.015}):
        with pytest.raises(ConfigError, match=r"has pirl_jigsaw, seed 0, with other settings .*num_epochs=3"):
            restore(before, runs_at(tmp_path / "here", **other))
    del before["runs"][0]["overrides"]
    with pytest.raises(ConfigError, match=r"seed 0, with other settings .of an older version, which"):
        restore(before, runs_at(tmp_path / "here"))
    assert not list((tmp_path / "here").glob("runs/*/*/result.json"))


def test_a_result_that_this_study_would_not_have_is_not_lost(before, tmp_path):
    output = tmp_path / "here"
    first = [run for run in runs_at(output) if run.seed == 0]
    with pytest.raises(ConfigError, match=r"has pirl_jigsaw, seed 1, which is not of this study and would be lost"):
        check_none_is_lost(before, first)
    restore(before, runs_at(output))
    restore(before, first)  # the folder has it


def test_without_a_study_json_nothing_is_known(tmp_path):
    assert content_before(tmp_path / "study.json") == {"runs": [], "settings": {}}
    restore(content_before(tmp_path / "study.json"), runs_at(tmp_path))


def test_bfloat16_is_for_the_methods_with_pirls_train_step_alone():
    study, precision = read_study(), "config.TRAINER.PIRL_TRAIN_STEP.precision=bfloat16"
    changed = in_bfloat16(study)
    own = {name for name, one in {**changed.methods, **changed.points}.items() if precision in one.overrides}
    others = {"jigsaw", "rotation", "supervised", "random", "permutations_jigsaw_2000", "permutations_jigsaw_10000"}
    assert own == names_of(study, None) - others
    point = changed.points["lambda_pirl_0.25"]
    config = compose([f"config={point.config}", *point.all_overrides()], check=False)
    assert (config.TRAINER.PIRL_TRAIN_STEP.precision, config.LOSS.pirl_loss.lambda_) == ("bfloat16", 0.25)


def test_rates_that_were_tried_in_another_way_are_not_known():
    before = {"settings": {"data": DATA, "epochs": 9}, "rates": {"jigsaw": {"rate": 0.1}}}
    assert known_rates(before, {"data": DATA, "epochs": 9}) == before["rates"]
    for other in ({"epochs": 10}, {"data": "b"}, {"precision": "bfloat16"}, {"overrides": "a=1"}):
        assert known_rates(before, {"data": DATA, "epochs": 9, **other}) == {}


def test_figures_of_one_learning_rate_are_never_shown_under_another(before, tmp_path):
    before["rates"] = {"pirl_jigsaw": {"rate": 0.03}, "jigsaw": {"rate": 0.1}}
    study, path = read_study(), tmp_path / "study.json"
    check_same_rates(
        before, study, {"pirl_jigsaw": {"rate": 0.03}, "jigsaw": {"rate": 0.2}}, path
    )  # it has no runs yet
    with pytest.raises(
        ConfigError, match=r"study.json has runs of pirl_jigsaw with the learning rate 0.03, but .* 0.06:"
    ):
        check_same_rates(before, study, {"pirl_jigsaw": {"rate": 0.06}}, path)
    before["runs"] = [{"name": "lambda_pirl_0.25"}]  # a variant
    with pytest.raises(ConfigError, match=r"has runs of pirl_jigsaw"):
        check_same_rates(before, study, {"pirl_jigsaw": {"rate": 0.06}}, path)
