"""The shipped configs against the paper's numbers, and what the user gets wrong against one clear sentence."""

import pytest

from pirl_plugin.composition import config_names, expand_sweep
from pirl_plugin.config_check import check_machine
from pirl_plugin.launcher import compose
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


def test_every_shipped_config_composes():
    assert len(config_names()) >= 4
    for name in config_names():
        assert compose([f"config={name}"], check=False).LOSS.name


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
    from pirl_plugin.composition import quote

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
        ([SMALL, "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=/no/file"], "there is no such file"),
    ],
)
def test_what_this_machine_cannot_run_is_refused_before_it_starts(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_machine(compose(overrides, check=False))


TRANSFORM = "config.DATA.TRAIN.TRANSFORMS.0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
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
        (["config.MODEL.TRUNK.RESNETS.DEPTH=20"], "DEPTH is 20; it must be one of 18, 34, 50, 101"),
        (["config.DATA.TRAIN.INPUT_KEY_NAMES=[images]"], "INPUT_KEY_NAMES"),
        (["config.DATA.TRAIN.ENABLE_QUEUE_DATASET=True"], "no queue"),
        (["config.DATA.TRAIN.DATA_PATHS=/tmp"], "it must be a list"),
        (["config.TEST_MODEL=True"], "TEST_MODEL is true"),
        (["config.DATA.TRAIN.COLLATE_FUNCTION=default_collate"], "pirl_loss needs 'pirl_collator'"),
        (["config.DATA.TRAIN.TARGET_KEY_NAMES=[label]"], r"pirl_loss needs \['image_index'\]"),
        (["config.LOSS.pirl_loss.embedding_dim=64"], "must be equal"),
        ([f"{TRANSFORM}.grid_size=2", f"{TRANSFORM}.num_permutations=24"], "yields 4 patches"),
        (["config.MODEL.HEAD.PARAMS.1.1.branch=rotation"], "needs branch 'jigsaw'"),
        (["config.DATA.TRAIN.DATA_PATHS=[/no/such/folder]"], "no such folder"),
        (["config.SEED_VALUE"], "write key=value"),
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
    assert expand_sweep(["config=a", "config.L.n=[1,2]"]) == [["config=a", "config.L.n=[1,2]"]]
