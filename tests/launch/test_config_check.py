"""The shipped configs against the paper's numbers, and what the user gets wrong against one clear sentence."""

import os
import shutil
from pathlib import Path

import pytest

from pirl_plugin.launch.composition import config_names, expand_sweep
from pirl_plugin.launch.launcher import compose
from pirl_plugin.launch.machine_check import check_machine
from pirl_plugin.validation import ConfigError

SMALL = "config=pretrain/pirl/jigsaw_small_images_cpu"


def test_the_main_config_is_the_papers_setting():
    config = compose(["config=pretrain/pirl/jigsaw_8node"])
    train, optimizer, loss = config.DATA.TRAIN, config.OPTIMIZER, config.LOSS.pirl_loss
    distributed = config.DISTRIBUTED
    assert train.BATCHSIZE_PER_REPLICA * distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE == 1024
    assert (distributed.NUM_NODES, distributed.NUM_PROC_PER_NODE) == (8, 8)
    # After VISSL's own scaling of the learning rate.
    schedule = optimizer.param_schedulers.lr
    assert schedule.name == "cosine" and schedule.update_interval == "epoch"
    assert schedule.start_value == pytest.approx(0.12) and schedule.end_value == pytest.approx(1.2e-4)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert optimizer.num_epochs == 800 and not optimizer.nesterov
    assert loss.contrast == "nce" and loss.num_negatives == 32000 and loss.temperature == 0.07
    assert loss.lambda_ == 0.5 and loss.memory_bank.momentum == 0.5 and loss.embedding_dim == 128
    (transform,) = train.TRANSFORMS
    assert transform["name"] == "jigsaw_patch_transform"
    assert transform["image_crop_size"] == 224 and transform["image_crop_scale"] == [0.08, 1.0]
    assert transform["patch_crop_size"] == 255 and transform["patch_crop_scale"] == [0.6, 1.0]
    assert transform["grid_size"] == 3 and transform["patch_size"] == 64
    assert transform["num_permutations"] == 362_880
    assert config.MODEL.TRUNK.NAME == "resnet" and config.MODEL.TRUNK.RESNETS.DEPTH == 50
    heads = {head[1]["branch"]: head[1] for head in config.MODEL.HEAD.PARAMS}
    assert set(heads) == {"image", "jigsaw"}
    assert all(h["in_channels"] == 2048 and h["embedding_dim"] == 128 for h in heads.values())
    assert not any(h.get("use_mlp", False) for h in heads.values())
    assert heads["jigsaw"]["num_patches"] == 9
    assert loss.batch_size_per_replica == 16


def test_one_gpu_keeps_the_linear_scaling_rule():
    config = compose(["config=pretrain/pirl/jigsaw_1gpu"])
    assert config.DATA.TRAIN.BATCHSIZE_PER_REPLICA == 256
    assert (config.DISTRIBUTED.NUM_NODES, config.DISTRIBUTED.NUM_PROC_PER_NODE) == (1, 1)
    assert config.OPTIMIZER.param_schedulers.lr.start_value == pytest.approx(0.03)
    assert config.OPTIMIZER.num_epochs == 800 and config.LOSS.pirl_loss.num_negatives == 32000


# The paper's settings of each config: pretext transform, |T|, epochs, N, lambda, branches, width; what is not given is
# that of the main result.
MAIN = {
    "task": "jigsaw_patch_transform",
    "epochs": 800,
    "num_negatives": 32000,
    "lambda_": 0.5,
    "branches": ["image", "jigsaw"],
    "width": 1,
    "batch": 1024,
    "contrast": "nce",
    "temperature": 0.07,
    "mlp": False,
}
ROTATION = {"task": "rotation_transform", "branches": ["image", "rotation"]}
BOTH = {"task": "rotation_jigsaw_transform"}
VIEW = {"branches": ["image", "view"]}
ANALYSIS = {"epochs": 400, "num_negatives": 4096}
MLP = {"mlp": True, "contrast": "infonce", "temperature": 0.1}
NO_TASK = {"task": "image_view_transform", "branches": ["image"], "lambda_": 0}
PIRL_CONFIGS = {
    "pirl/jigsaw": {},
    "pirl/jigsaw_8node": {},
    "pirl/jigsaw_1gpu": {"batch": 256},
    "pirl/rotation": ROTATION,
    "pirl/rotation_8node": ROTATION,
    "pirl/rotation_jigsaw": BOTH,
    "pirl/rotation_jigsaw_8node": BOTH,
    "pirl/jigsaw_analysis_8node": ANALYSIS,
    "pirl/rotation_analysis_8node": {**ROTATION, **ANALYSIS},
    "pirl/rotation_jigsaw_analysis_8node": {**BOTH, **ANALYSIS},
    "pirl/jigsaw_wide_8node": {"width": 2},
    "pirl/jigsaw_second_8node": {},
    "pirl/jigsaw_yfcc1m_8node": {},
    "pirl/jigsaw_mlp_8node": MLP,
    "pirl/jigsaw_mlp_blur_8node": MLP,
    "pirl/jigsaw_wide_mlp_8node": {**MLP, "width": 2},
    "pirl/jigsaw_wide4_mlp_8node": {**MLP, "width": 4},
    "pirl/affine_8node": {"task": "affine_transform", **VIEW},
    "pirl/channel_shuffle_8node": {"task": "channel_shuffle_transform", **VIEW},
    "pirl/cutout_8node": {"task": "cutout_transform", **VIEW},
    "npid/npid_plus_plus_8node": NO_TASK,
    "npid/npid_1node": {**NO_TASK, "epochs": 200, "num_negatives": 4096, "batch": 256, "contrast": "npid"},
}
BASELINES = ("jigsaw/covariant_100", "jigsaw/covariant_2000", "jigsaw/covariant_10000", "rotnet/covariant")
TIMM = ("pirl/jigsaw_vit_1gpu", "pirl/jigsaw_regnet_1gpu")  # tests/network/test_timm_trunk.py
SUPERVISED = ("pretrain/supervised/resnet50", "pretrain/supervised/small_images_cpu")
OPTIONS = ("pirl/analysis", "pirl/nodes/1node", "pirl/nodes/4node", "pirl/nodes/8node")
BENCHMARKS = [  # tests/end_to_end/test_benchmarks.py
    *(f"benchmark/linear/{name}" for name in ("imagenet", "imagenet_wide", "places205", "inaturalist18")),
    *(f"benchmark/semi_supervised/imagenet_{percent}percent" for percent in (1, 10)),
    *("benchmark/svm/voc07", "benchmark/svm/voc07_low_shot", "benchmark/nearest_neighbor/imagenet"),
]
SMALL_PRETRAINING = (
    "pretrain/pirl/jigsaw_small_images_cpu",
    "pretrain/pirl/rotation_small_images_cpu",
    "pretrain/pirl/rotation_jigsaw_small_images_cpu",
    "pretrain/npid/npid_plus_plus_small_images_cpu",
    "pretrain/jigsaw/covariant_small_images_cpu",
    "pretrain/rotnet/covariant_small_images_cpu",
    "pretrain/supervised/small_images_cpu",
)
SMALL_CONFIGS = (
    *SMALL_PRETRAINING,
    "pretrain/pirl/jigsaw_cifar10_1gpu",
    "benchmark/nearest_neighbor/small_images_cpu",
    "benchmark/linear/small_images_cpu",
    "benchmark/semi_supervised/small_images_cpu",
)


def test_every_shipped_config_is_in_these_tests():
    known = {f"pretrain/{name}" for name in (*PIRL_CONFIGS, *BASELINES, *TIMM, *OPTIONS, "supervised/resnet50")}
    assert set(config_names()) == known | set(SMALL_CONFIGS) | set(BENCHMARKS)
    for name in SMALL_CONFIGS:
        assert compose([f"config={name}"], check=False).LOSS.name


@pytest.mark.parametrize("name", SMALL_PRETRAINING)
def test_what_is_compared_on_small_images_differs_in_task_and_rate_alone(name, photo_folder):
    def shared(name: str) -> list:
        config = compose([f"config={name}", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"])
        resnets, optimizer = config.MODEL.TRUNK.RESNETS, config.OPTIMIZER
        network = [config.MODEL.TRUNK.NAME, resnets.DEPTH, resnets.WIDTH_MULTIPLIER, resnets.STEM]
        schedule = optimizer.param_schedulers.lr  # each method has a rate of its own, and all fall to 1% of it
        rates = [schedule.name, schedule.end_value / schedule.start_value, schedule.update_interval]
        steps = [optimizer.num_epochs, config.DATA.TRAIN.BATCHSIZE_PER_REPLICA, config.DISTRIBUTED.NUM_PROC_PER_NODE]
        keys = ("name", "momentum", "weight_decay", "nesterov", "regularize_bn", "regularize_bias")
        return [*network, *rates, *steps, *(optimizer[key] for key in keys)]

    assert shared(name) == pytest.approx(shared(SMALL_PRETRAINING[0]))
    config = compose([f"config={name}", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"])
    if config.LOSS.name == "pirl_loss":  # without it, small data sets end with features worse than untrained ones
        assert all(head["batch_norm"] for _, head in config.MODEL.HEAD.PARAMS)
        assert config.OPTIMIZER.param_schedulers.lr.start_value == 0.015


@pytest.mark.parametrize("name", PIRL_CONFIGS)
def test_every_pirl_and_npid_config_has_the_papers_settings(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yfcc1m.txt").write_text("a.jpg\n")
    (tmp_path / "a.jpg").touch()
    config, expected = compose([f"config=pretrain/{name}"]), {**MAIN, **PIRL_CONFIGS[name]}
    loss, optimizer, distributed = config.LOSS.pirl_loss, config.OPTIMIZER, config.DISTRIBUTED
    (transform,) = config.DATA.TRAIN.TRANSFORMS
    heads = [head[1] for head in config.MODEL.HEAD.PARAMS]
    batch = config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
    assert {
        "task": transform["name"],
        "epochs": optimizer.num_epochs,
        "num_negatives": loss.num_negatives,
        "lambda_": loss.lambda_,
        "branches": [head["branch"] for head in heads],
        "width": config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER,
        "batch": batch,
        "contrast": loss.contrast,
        "temperature": loss.temperature,
        "mlp": all(head.get("use_mlp", False) for head in heads),
    } == expected
    assert any(head.get("use_mlp", False) for head in heads) == expected["mlp"]  # in all heads or in none
    assert {head["in_channels"] for head in heads} == {2048 * expected["width"]}
    assert (loss.negatives, loss.memory_bank.momentum, loss.embedding_dim) == ("per_image", 0.5, 128)
    assert transform["image_crop_size"] == 224 and transform["image_crop_scale"] == [0.08, 1.0]
    if "jigsaw" in transform["name"]:
        keys = ("patch_crop_size", "patch_crop_scale", "grid_size", "patch_size", "num_permutations")
        assert [transform[key] for key in keys] == [255, [0.6, 1.0], 3, 64, 362_880]
    if "rotation" in transform["name"]:
        assert transform["num_rotations"] == 4
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    schedule = optimizer.param_schedulers.lr
    if name == "npid/npid_1node":
        assert (schedule["values"], schedule["milestones"]) == ([0.03, 0.003, 0.0003], [120, 160])
    else:
        assert schedule.name == "cosine" and schedule.start_value == pytest.approx(0.12 * batch / 1024)
        assert schedule.end_value == pytest.approx(1.2e-4 * batch / 1024)


def test_the_second_network_of_the_ensemble_differs_in_its_seed_alone():
    names = ("jigsaw_8node", "jigsaw_second_8node")
    first, second = (compose([f"config=pretrain/pirl/{name}", "config.CHECKPOINT.DIR=run"]) for name in names)
    assert first.SEED_VALUE + 64 <= second.SEED_VALUE and second.LOSS.pirl_loss.seed == second.SEED_VALUE
    for config in (first, second):
        assert config.DATA.TRAIN.TRANSFORMS[0].pop("seed") == config.SEED_VALUE
    second.SEED_VALUE = second.LOSS.pirl_loss.seed = second.MODEL._MODEL_INIT_SEED = first.SEED_VALUE
    assert first == second


@pytest.mark.parametrize("size", [100, 2000, 10000])
def test_the_jigsaw_baselines_head_has_a_class_for_each_permutation(size):
    config = compose([f"config=pretrain/jigsaw/covariant_{size}"])
    assert config.DATA.TRAIN.TRANSFORMS[-1] == {
        "name": "shuffle_patches_transform", "num_patches": 9, "num_permutations": size, "permutation_seed": 0
    }  # fmt: skip
    assert config.MODEL.HEAD.PARAMS[-1] == ["mlp", {"dims": [9000, size]}]
    assert config.OPTIMIZER.num_epochs == 105 and config.LOSS.name == "cross_entropy_multiple_output_single_target"


@pytest.mark.parametrize(("name", "classes"), [("rotnet/covariant", 4), ("supervised/resnet50", 1000)])
def test_the_other_baselines_are_vissls(name, classes):
    config = compose([f"config=pretrain/{name}"])
    assert [["mlp", {"dims": [2048, classes]}]] == config.MODEL.HEAD.PARAMS
    assert config.OPTIMIZER.num_epochs == 105 and config.OPTIMIZER.param_schedulers.lr["values"][0] == 0.1


@pytest.mark.parametrize("nodes", [1, 4, 8])
@pytest.mark.parametrize("task", ["jigsaw_8node", "rotation_analysis_8node"])
def test_any_number_of_nodes_keeps_batch_and_learning_rate(task, nodes):
    config = compose([f"config=pretrain/pirl/{task}", f"+config/pretrain/pirl/nodes={nodes}node"])
    assert nodes == config.DISTRIBUTED.NUM_NODES
    assert config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * nodes * config.DISTRIBUTED.NUM_PROC_PER_NODE == 1024
    assert config.OPTIMIZER.param_schedulers.lr.start_value == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["config=pretrain/pirl/jigsaw_8node"], None),
        (["config=pretrain/pirl/jigsaw_8node", "config.DISTRIBUTED.NUM_NODES=1"], None),  # VISSL scales
        (
            ["config=pretrain/pirl/jigsaw_8node", "config.OPTIMIZER.param_schedulers.lr.start_value=0.3"],
            "has no effect: VISSL scales the learning rate for the global batch and uses 0.12",
        ),
        (
            [
                "config=pretrain/pirl/jigsaw_8node",
                "config.DISTRIBUTED.NUM_NODES=1",
                "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.auto_scale=false",
            ],
            "starts at 0.12, but for the global batch of 128 images the linear scaling rule (0.03 for 256) gives 0.015",
        ),
    ],
)
def test_an_override_that_breaks_the_linear_scaling_rule_is_warned_of(caplog, overrides, message):
    compose(overrides)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (message is None and not warnings) or any(message in warning for warning in warnings), warnings


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("config.LOSS.pirl_loss.lambda_", [0, 0.25, 0.5, 0.75, 1]),
        ("config.DATA.TRAIN.TRANSFORMS.0.num_permutations", [100, 2000, 10000, 362880]),
        ("config.LOSS.pirl_loss.num_negatives", [1024, 4096, 16384, 32000]),
    ],
    ids=["Figure 6", "Figure 7", "Figure 8"],
)
def test_the_sweeps_of_the_documents_compose(key, values):
    page = (Path(__file__).parents[2] / "docs" / "which_config.md").read_text()
    sweep = f"{key}={','.join(map(str, values))}"
    assert sweep in page
    runs = expand_sweep(["config=pretrain/pirl/jigsaw_analysis_8node", sweep, "config.CHECKPOINT.DIR=runs"])
    assert len(runs) == len(values) and len({run[-1] for run in runs}) == len(values)
    for run, value in zip(runs, values, strict=True):
        config = compose(run)
        found = config.DATA.TRAIN.TRANSFORMS[0] if "TRANSFORMS" in key else config.LOSS.pirl_loss
        assert found[key.split(".")[-1]] == value


def test_heads_follow_the_width_of_the_trunk(photo_folder):
    config = compose(
        [
            "config=pretrain/pirl/jigsaw_small_images_cpu",
            f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
            "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.375",
        ]
    )
    assert [head[1]["in_channels"] for head in config.MODEL.HEAD.PARAMS] == [192, 192]


def test_the_seed_reaches_the_loss_unless_it_has_its_own():
    main = "config=pretrain/pirl/jigsaw_8node"
    assert compose([main, "config.SEED_VALUE=7"]).LOSS.pirl_loss.seed == 7
    assert compose([main, "config.SEED_VALUE=7", "config.LOSS.pirl_loss.seed=9"]).LOSS.pirl_loss.seed == 9


@pytest.mark.parametrize("folder", ["with space", "müller", "a(b)", "it's", "100%,{x}"])
def test_any_folder_name_can_be_quoted_in_an_override(tmp_path, make_photo, folder):
    from pirl_plugin.launch.composition import quote

    path = tmp_path / folder
    path.mkdir()
    make_photo(1).save(path / "x.jpg")
    config = compose([SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{quote(path)}]"])
    assert [str(path)] == config.DATA.TRAIN.DATA_PATHS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["config=pretrain/pirl/jigsaw_8node"], "8 nodes must be told where to meet"),
        (["config=pretrain/pirl/jigsaw_1gpu", "config.DISTRIBUTED.NUM_PROC_PER_NODE=999"], "NUM_PROC_PER_NODE is 999"),
        ([SMALL, "config.OPTIMIZER.use_larc=True"], "use_larc is true, which needs NVIDIA's apex"),
        ([SMALL, "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=/no/file"], "There is no checkpoint file at /no/file"),
    ],
)
def test_what_this_machine_cannot_run_is_refused_before_it_starts(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_machine(compose(overrides, check=False))


TRANSFORM = "config.DATA.TRAIN.TRANSFORMS.0"
STEPS = [
    "config.OPTIMIZER.param_schedulers.lr.name=multistep",
    "config.OPTIMIZER.param_schedulers.lr.values=[0.1,0.01]",
]


def parts(*schedulers: str, lengths: str = "[0.1,0.9]", scaling: str = "rescaled") -> list[str]:
    where = "config.OPTIMIZER.param_schedulers.lr"
    given = [f"{where}.name=composite", f"{where}.schedulers=[{','.join(schedulers)}]", f"{where}.lengths={lengths}"]
    return [*given, f"{where}.interval_scaling=[{','.join([scaling] * len(schedulers))}]"]


RISE, FALL = "{name:linear,start_value:0.001,end_value:0.1}", "{name:cosine,start_value:0.1,end_value:0.001}"
VIT = ["config.MODEL.TRUNK.NAME=vision_transformer", f"{TRANSFORM}.patch_size=16", f"{TRANSFORM}.patch_crop_size=60"]
UNNAMED = "config.MODEL.MULTI_INPUT_HEAD_MAPPING=[[images,[]],[pretext,[]]]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["config.DATA.TRAIN.DATA_LIMIT=49"], "DATA_LIMIT is 49; .* holds 48 images: give at most that"),
        (["config.DATA.TRAIN.DATA_LIMIT=0"], "DATA_LIMIT is 0"),
        (["config.DATA.TRAIN.DATA_LIMIT=40", "config.DATA.TRAIN.DATA_LIMIT_SAMPLING.SKIP_NUM_SAMPLES=9"], "less the 9"),
        (["config.DATA.TRAIN.DATA_LIMIT=31"], "DATA_LIMIT is 31, fewer than one global batch of 32"),
        ([*STEPS, "config.OPTIMIZER.param_schedulers.lr.milestones=[30]"], "lie below OPTIMIZER.num_epochs 12"),
        ([*STEPS, "config.OPTIMIZER.param_schedulers.lr.milestones=[7,5]"], "they must rise"),
        (
            [*STEPS, "config.OPTIMIZER.param_schedulers.lr.milestones=[5,7]"],
            "values has 2 entries; 2 milestones need 3",
        ),
        (parts(lengths="[]"), r"lr.lengths is \[\], for 0 schedulers: a composite schedule needs at least one"),
        (parts(RISE, FALL, lengths="[0.1,0.8]"), r"lr.lengths is \[0.1, 0.8\], for 2 schedulers.*add up to 1"),
        (parts(RISE, FALL, lengths="[1.5,-0.5]"), r"lr.lengths.0 is 1.5; it must be a number above 0 and at most 1"),
        (parts(RISE, FALL, lengths="[a,b]"), r"lr.lengths.0 is 'a'; it must be a number above 0"),
        (parts(RISE, FALL)[:-1], r"lr.interval_scaling is \[\]; it must say rescaled or fixed for each of the 2"),
        (parts(RISE, FALL, scaling="scaled"), r"lr.interval_scaling is \['scaled', 'scaled'\]; it must say rescaled"),
        (parts(RISE, "cosine"), r"lr.schedulers.1 is 'cosine'; it must be a mapping"),
        (parts(RISE, FALL, lengths="[1.0]"), r"lr.lengths is \[1.0\], for 2 schedulers"),
        (parts(RISE, "{name:cosine,start_value:0.1}"), "lr.schedulers.1.end_value is None; it must be a number"),
        (parts(RISE.replace("0.001", "a"), FALL), "lr.schedulers.0.start_value is 'a'"),
        (parts(RISE, "{start_value:0.1}"), "lr.schedulers.1.name is None"),
        (parts(RISE, FALL.replace("0.1", "0.0001")), "schedulers.1.start_value is 0.0001, below end_value 0.001"),
        (parts(RISE, "{name:multistep,values:[0.1]}", lengths="[0.5,0.6]"), "add up to 1"),
        (["config.MODEL.TRUNK.NAME=regnet"], "'regnet', which VISSL cannot build .* 'depth' is missing"),
        (["config.MODEL.TRUNK.NAME=efficientnet"], "Please specify EfficientNet version"),
        (["config.MODEL.TRUNK.NAME=xcit"], "whose SyncBatchNorm PyTorch has on GPUs only"),
        (["config.MODEL.TRUNK.NAME=convit"], "cannot take views of 12 pixels, as jigsaw_patch_transform makes"),
        ([*VIT], r"has no layers \['flatten'\]; if it has one output, name none"),
        ([*VIT, UNNAMED], "but the trunk vision_transformer gives 768 features per view; give in_channels: 768"),
        (["config.OPTIMIZER.num_epoch=3"], r"There is no key 'config.OPTIMIZER.num_epoch': .*did you mean num_epochs"),
        (["config.LOSS.pirl_loss.lamda_=0"], r"did you mean lambda_\?"),
        ([f"{TRANSFORM}.patch_crop_size=43"], "a grid of 3 x 3 does not divide"),
        ([f"{TRANSFORM}.num_permutations=362881"], "between 1 and 362880"),
        ([f"+{TRANSFORM}.patch_sise=3"], "did you mean patch_size"),
        ([f"{TRANSFORM}.patch_sise=3"], r"did you mean patch_size\?"),
        (["config.LOSS.pirl_loss.temperature=-1"], "must be a number at least 0.025"),
        (["config.LOSS.pirl_loss.contrast=ncee"], r"did you mean nce\?"),
        (["config.LOSS.pirl_loss.lambda_=abc"], "lambda_ is 'abc'; it must be a number"),
        (["+config.LOSS.pirl_loss.memory_bank.foo=1"], "memory_bank has no key 'foo'"),
        (["+config.MODEL.HEAD.PARAMS.0.1.foo=1"], "pirl_heads has no key 'foo'"),
        (["config.MODEL.TRUNK.NAME=resnett"], r"TRUNK.NAME is 'resnett' \(did you mean resnet\?\)"),
        (["config.MODEL.TRUNK.RESNETS.DEPTH=20"], "DEPTH is 20 .*must be one of 18, 34, 50, 101"),
        (
            ["config.SEED_VALUE=5000000000"],
            "SEED_VALUE is 5000000000; it must be a whole number between 0 and 4294967295",
        ),
        (["config.LOSS.name=pirl_los"], r"LOSS.name is 'pirl_los' \(did you mean pirl_loss\?\)"),
        (["config.TRAINER.TRAIN_STEP_NAME=foo"], "TRAINER.TRAIN_STEP_NAME is 'foo'; it must be one of pirl_train_step"),
        (
            ["config.DATA.TRAIN.DATA_SOURCES=[image_file]"],
            r"DATA.TRAIN.DATA_SOURCES is 'image_file' \(did you mean image_files",
        ),
        (
            ["config.TRAINER.PIRL_TRAIN_STEP.accumulation_steps=32"],
            r"REPLICA 32 in 32 parts \(TRAINER.PIRL_TRAIN_STEP.accumulation_steps\) has no variance: give at least 64",
        ),
        (["config.DATA.TRAIN.INPUT_KEY_NAMES=[images]"], "INPUT_KEY_NAMES"),
        (["config.DATA.TRAIN.ENABLE_QUEUE_DATASET=True"], "no queue"),
        (["config.DATA.TRAIN.DATA_PATHS=/tmp"], "it must be a list"),
        (["config.TEST_MODEL=True"], "TEST_MODEL is true"),
        (["config.DATA.TRAIN.COLLATE_FUNCTION=default_collate"], "pirl_loss needs 'pirl_collator'"),
        (["config.DATA.TRAIN.TARGET_KEY_NAMES=[label]"], r"pirl_loss needs \['image_index'\]"),
        (["config.LOSS.pirl_loss.embedding_dim=64"], "must be equal"),
        ([f"{TRANSFORM}.grid_size=2", f"{TRANSFORM}.num_permutations=24"], "yields 4 patches"),
        (["config.MODEL.HEAD.PARAMS.1.1.branch=rotation"], "needs branch 'jigsaw'"),
        (
            [
                "config.MODEL.MULTI_INPUT_HEAD_MAPPING=[[images,[flatten]]]",
                "config.DATA.TRAIN.INPUT_KEY_NAMES=[images]",
            ],
            r"maps \['images'\]; pirl_loss needs",
        ),
        (
            ["config.DATA.TRAIN.TRANSFORMS=[{name: image_view_transform}]"],
            "image_view_transform yields 0 pretext views",
        ),
        (
            [
                "config.LOSS.pirl_loss.lambda_=0",
                "config.MODEL.MULTI_INPUT_HEAD_MAPPING=[]",
                "config.DATA.TRAIN.INPUT_KEY_NAMES=[images]",
            ],
            "yields 9 pretext views",
        ),
        ([f"{TRANSFORM}.name=rotation_transfrm"], r"one of affine_transform, .*rotation_transform"),
        (["+config.MODEL.HEAD.PARAMS.0.1.in_channels=100"], "is 100, but the trunk gives 128 features"),
        (["config.DATA.TRAIN.LABEL_TYPE=standard", "config.DATA.TRAIN.TARGET_KEY_NAMES=[label]"], "image_index"),
        (["config.DATA.TRAIN.DATA_PATHS=[/no/such/folder]"], "no such folder"),
        (["config.SEED_VALUE"], "write key=value"),
        (["config.LOSS.pirl_loss=null"], r"config.LOSS.pirl_loss is None; it must be a mapping\.$"),
        (
            ["config.LOSS.name=pirl_loss", "~config.LOSS.pirl_loss"],
            "config.LOSS.pirl_loss is None; it must be a mapping",
        ),
        (["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=0"], "must be a whole number at least 1"),
        (["config.MODEL.HEAD.PARAMS=[]"], "has 0 heads, of which 0 pirl_heads"),
        ([f"{TRANSFORM}.mean=0.5"], r"mean is 0.5; it must be a list, as \[0.485, 0.456, 0.406\]"),
        (["+config.MODEL.HEAD.PARAMS.0.1.use_mlp=no"], "use_mlp is 'no'; it must be true or false"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(photo_folder, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", *overrides])
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no image"):
        compose([SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}]"])


def test_a_misspelt_config_and_no_config_are_refused():
    with pytest.raises(ConfigError, match="did you mean pretrain/pirl/jigsaw_8node"):
        compose(["config=pretrain/pirl/jigsaw_8nodes"])
    with pytest.raises(ConfigError, match="No config is chosen"):
        compose([])


def test_a_sweep_is_all_combinations_each_in_its_own_folder():
    runs = expand_sweep(["-m", "config=a", "config.CHECKPOINT.DIR=/x", "config.L.n=1,2", "config.L.m=0.5,1"])
    assert len(runs) == 4
    assert runs[0] == ["config=a", "config.L.n=1", "config.L.m=0.5", "config.CHECKPOINT.DIR='/x/n-1_m-0.5'"]
    new = expand_sweep(["config=a", "+config.L.n=1,2", "+config/nodes=1node,4node"])
    assert new[3][1:3] == ["+config.L.n=2", "+config/nodes=4node"]
    assert expand_sweep(["config=a", "config.L.n=[1,2]"]) == [["config=a", "config.L.n=[1,2]"]]


def test_a_run_that_names_no_folder_gets_one_of_its_configs_name(tmp_path, monkeypatch, photo_folder):
    monkeypatch.chdir(tmp_path)
    data = f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"
    folder = compose([SMALL, data]).CHECKPOINT.DIR
    assert folder == f"{tmp_path}/runs/pretrain/pirl/jigsaw_small_images_cpu"
    folder = compose([SMALL, data, "config.CHECKPOINT.DIR=."]).CHECKPOINT.DIR
    assert folder == str(tmp_path)
    evaluation = compose(["config=benchmark/linear/imagenet"], check=False)  # VISSL's default, which says nothing
    folder = evaluation.CHECKPOINT.DIR
    assert folder == f"{tmp_path}/runs/benchmark/linear/imagenet"
    for name in (*SUPERVISED, "benchmark/semi_supervised/small_images_cpu"):
        assert f"{tmp_path}/runs/{name}" == compose([f"config={name}"], check=False).CHECKPOINT.DIR
    (one, _) = expand_sweep([SMALL, "config.OPTIMIZER.num_epochs=1,2"])
    assert one[-1] == "config.CHECKPOINT.DIR='runs/pretrain/pirl/jigsaw_small_images_cpu/num_epochs-1'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("pretrain") and "cpu" in name])
def test_the_configs_for_a_laptop_keep_the_last_few_checkpoints_only(name):
    assert compose([f"config={name}"], check=False).CHECKPOINT.KEEP_LAST == 3


def test_a_config_that_is_edited_is_read_again_in_the_same_process(tmp_path, monkeypatch, photo_folder):
    path = tmp_path / "configs" / "config" / "own.yaml"
    path.parent.mkdir(parents=True)
    head = "# @package _global_\ndefaults:\n  - /config/pretrain/pirl/jigsaw_small_images_cpu\n  - _self_\n"
    path.write_text(f"{head}config:\n  MINE: 5\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["config=own", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", "config.MINE=[1]"]
    with pytest.raises(ConfigError, match=r"config\.MINE is \[1\]; it must be a whole number"):
        compose(arguments)
    path.write_text(f"{head}config:\n  MINE: [2]\n")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 5))
    assert list(compose(arguments).MINE) == [1]


@pytest.mark.parametrize("key", ["start_value", "end_value"])
def test_a_learning_rate_with_which_nothing_could_learn_is_refused(key):
    setting = f"config.OPTIMIZER.param_schedulers.lr.{key}"
    with pytest.raises(ConfigError, match=rf"lr.{key} is 1500000.0; it must be a number at least 0 and at most 1"):
        compose(["config=pretrain/pirl/jigsaw_small_images_cpu", f"{setting}=1.5e6"])


@pytest.mark.parametrize("source", ["image_files", "disk_folder"])
@pytest.mark.parametrize("config", ["linear", "semi_supervised", "nearest_neighbor"])
def test_splits_that_would_number_their_classes_differently_are_refused(config, source, photo_folder, tmp_path):
    held_out = tmp_path / "held_out"
    shutil.copytree(photo_folder, held_out)
    labels = "disk_folder" if source == "disk_folder" else "torchvision_dataset"
    overrides = [f"config=benchmark/{config}/small_images_cpu"] + [
        f"config.DATA.{split}.{key}=[{value}]" for split, path in (("TRAIN", photo_folder), ("TEST", held_out))
        for key, value in (("DATA_PATHS", path), ("DATA_SOURCES", source), ("LABEL_SOURCES", labels))
    ]  # fmt: skip
    compose(overrides)
    missing = sorted(held_out.iterdir())[1]
    shutil.rmtree(missing)
    with pytest.raises(ConfigError, match=f"must have the same class folders; only one has {missing.name}"):
        compose(overrides)
    (tmp_path / "list.txt").write_text("\n".join(map(str, held_out.rglob("*.jpg"))))
    if source == "image_files":
        overrides = [one.replace(f"[{held_out}]", f"[{tmp_path}/list.txt]") for one in overrides]
        with pytest.raises(ConfigError, match=f"list.txt must have .* only one has {missing.name}"):
            compose(overrides)
