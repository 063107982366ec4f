"""Detection with the real Detectron2 on small VOC trees of real JPEGs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pirl_plugin.detection import training
from pirl_plugin.detection.training import check_weights_fit, config_files, detection_config
from pirl_plugin.detection.voc_trees import check_split, make_tree
from pirl_plugin.experiments.benchmarks import BENCHMARKS
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NARROW = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.BASE_LR", "0.001"),
]


@pytest.mark.parametrize(
    ("name", "train", "iterations", "drop", "rate", "warm_up"),
    [
        ("voc0712_pirl", ("voc_2007_trainval", "voc_2012_trainval"), 25000, 17000, 0.003, 1000),
        ("voc0712_supervised", ("voc_2007_trainval", "voc_2012_trainval"), 25000, 17000, 0.02, 100),
        ("voc07_pirl", ("voc_2007_trainval",), 12500, 9500, 0.003, 1000),
        ("voc07_supervised", ("voc_2007_trainval",), 12500, 9500, 0.02, 100),
    ],
)
def test_the_configs_have_the_papers_settings(name, train, iterations, drop, rate, warm_up):
    config = detection_config(name, [])
    solver = config.SOLVER
    assert (solver.MAX_ITER, tuple(solver.STEPS), solver.BASE_LR, solver.GAMMA) == (iterations, (drop,), rate, 0.1)
    assert (warm_up, 16) == (solver.WARMUP_ITERS, solver.IMS_PER_BATCH)
    assert pytest.approx(1 / 3) == solver.WARMUP_FACTOR
    assert (tuple(config.DATASETS.TRAIN), tuple(config.DATASETS.TEST)) == (train, ("voc_2007_test",))
    model = config.MODEL
    assert (model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES) == ("Res5ROIHeads", 20)
    assert (model.RESNETS.DEPTH, model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1) == (50, "FrozenBN", False)
    assert set(config_files()) == {"voc0712_pirl", "voc0712_supervised", "voc07_pirl", "voc07_supervised"}


def save_trunk(path: Path, depth: int = 50, width: float = 1.0) -> Path:
    """A checkpoint with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    trunk = ResNetTrunk(depth, width)
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": trunk.state_dict()}}}}, path)
    return path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("weights") / "narrow.torch", width=0.25)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR, but the weights of .* need RGB"),
        (["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"], "MODEL.PIXEL_MEAN is"),
        (["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], "MODEL.PIXEL_STD is"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "True"], "STRIDE_IN_1X1 is True, but the weights of .* need False"),
        (["MODEL.RESNETS.DEPTH", "101"], "DEPTH is 101, but the weights of .* need 50"),
        (["MODEL.RESNETS.WIDTH_PER_GROUP", "64"], "WIDTH_PER_GROUP is 64, but the weights of .* need 16"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(narrow, overrides, message):
    check_weights_fit(detection_config("voc07_pirl", NARROW), narrow)
    with pytest.raises(ConfigError, match=message):
        check_weights_fit(detection_config("voc07_pirl", [*NARROW, *overrides]), narrow)


def test_unknown_configs_and_keys_are_refused():
    with pytest.raises(ConfigError, match="did you mean voc07_pirl"):
        detection_config("voc07_prl", [])
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LRR"):
        detection_config("voc07_pirl", ["SOLVER.BASE_LRR", "1"])


def test_without_detectron2_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pirl install-detectron2"):
        training.main(["--config-file", "voc07_pirl"])


def annotation(size, boxes, name="dog", leave_out=""):
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for box in boxes
    )
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
    return re.sub(f"<{leave_out}>.*?</{leave_out}>", "", text) if leave_out else text


@pytest.fixture
def voc_root(tmp_path, make_photo):
    """VOC2007 and VOC2012 below a folder for DETECTRON2_DATASETS, six photos each, a box or two each."""
    for year in (2007, 2012):
        folder = tmp_path / "voc" / f"VOC{year}"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        stems = [f"{year}_{number}" for number in range(6)]
        for number, stem in enumerate(stems):
            make_photo(number, 100, 80).save(folder / "JPEGImages" / f"{stem}.jpg")
            boxes = [(5 + number, 8, 60, 50 + number), (40, 30, 90, 75)][: 1 + number % 2]
            (folder / "Annotations" / f"{stem}.xml").write_text(annotation((100, 80), boxes))
        (folder / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(stems[:4]))
        (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems[2:]))
    return tmp_path / "voc"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("one line", r"test.txt names 1 image\(s\); Detectron2 needs at least two"),
        ("no list", "needs .*test.txt, which is not there"),
        ("no pose", "has no <pose>"),
        ("no box", "has no <bndbox/xmin>"),
        ("no image", "but there is no .*2007_3.jpg"),
        ("no xml", "is not XML"),
    ],
)
def test_a_tree_that_detectron2_would_stumble_over_is_refused(voc_root, damage, message):
    folder = voc_root / "VOC2007"
    listing, xml = folder / "ImageSets" / "Main" / "test.txt", folder / "Annotations" / "2007_3.xml"
    check_split(folder, "test", "voc_2007_test")
    if damage == "one line":
        listing.write_text("2007_2\n")
    elif damage == "no list":
        listing.unlink()
    elif damage == "no pose":
        xml.write_text(annotation((100, 80), [(1, 1, 9, 9)], leave_out="pose"))
    elif damage == "no box":
        xml.write_text(annotation((100, 80), [(1, 1, 9, 9)], leave_out="xmin"))
    elif damage == "no image":
        (folder / "JPEGImages" / "2007_3.jpg").unlink()
    else:
        xml.write_text("<annotation>")
    with pytest.raises(ConfigError, match=message):
        check_split(folder, "test", "voc_2007_test")


def test_a_tree_is_made_of_images_and_annotations(voc_root, tmp_path):
    images, annotations = voc_root / "VOC2007" / "JPEGImages", voc_root / "VOC2007" / "Annotations"
    (annotations / "2007_0.xml").write_text(annotation((100, 80), [(1, 1, 9, 9)], "cat", leave_out="pose"))
    made = make_tree(images, annotations, tmp_path / "own", test_share=0.4)
    assert made == {"train": 4, "test": 2, "classes": ["cat", "dog"]}
    for split in ("train", "test"):
        check_split(tmp_path / "own", split, "own")
    with pytest.raises(ConfigError, match="is there already"):
        make_tree(images, annotations, tmp_path / "own", test_share=0.4)
    (annotations / "2007_1.xml").unlink()
    with pytest.raises(ConfigError, match="has no annotation"):
        make_tree(images, annotations, tmp_path / "other", test_share=0.4)


def run(voc_root: Path, *arguments: object) -> str:
    code = "import sys; from pirl_plugin.detection.training import main\nif __name__ == '__main__': main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--num-gpus", "0", *map(str, arguments)],
        capture_output=True, text=True, timeout=500, cwd=voc_root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(voc_root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


PERFECT = """
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
evaluator = PascalVOCDetectionEvaluator("voc_2007_test")
evaluator.reset()
for image in DatasetCatalog.get("voc_2007_test"):
    found = Instances((image["height"], image["width"]))
    found.pred_boxes = Boxes(torch.tensor([box["bbox"] for box in image["annotations"]]))
    found.scores = torch.full((len(image["annotations"]),), 0.9)
    found.pred_classes = torch.tensor([box["category_id"] for box in image["annotations"]])
    evaluator.process([image], [{"instances": found}])
values = [float(ap) for name, ap in evaluator.evaluate()["bbox"].items()]
print("BEST", evaluator._class_names.index("dog"), values)
"""


def test_perfect_predictions_have_an_average_precision_of_100(voc_root):
    """Every photo gets an object of each class."""
    for path in (voc_root / "VOC2007" / "Annotations").glob("*.xml"):
        text = path.read_text()
        objects = "".join(
            re.search(r"<object>.*?</object>", text).group().replace("dog", name)
            for name in __import__("detectron2.data.datasets.pascal_voc", fromlist=["CLASS_NAMES"]).CLASS_NAMES
        )
        path.write_text(re.sub(r"<object>.*</object>", objects, text))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(voc_root)}
    done = subprocess.run([sys.executable, "-c", PERFECT], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(re.search(r"BEST \d+ (\[.*\])", done.stdout).group(1))
    assert values == pytest.approx([100.0, 100.0, 100.0])


def frozen(state: dict) -> dict:
    return {key: value for key, value in state.items() if ".norm." in key}


@pytest.mark.slow
def test_a_detector_trains_evaluates_and_resumes_with_batchnorm_bit_by_bit_as_it_was(narrow, voc_root):
    folder = voc_root / "run"
    common = ["--config-file", "voc0712_pirl", "--weights", narrow]
    options = [*NARROW, "OUTPUT_DIR", folder, "SOLVER.CHECKPOINT_PERIOD", "2"]
    printed = run(voc_root, *common, *options, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)")
    assert "features in detectron2 equal the trunk's" in printed and "AP50" in printed
    first = read_safely(folder / "model_final.pth")
    assert first["iteration"] == 1

    weights = read_safely(narrow)["classy_state_dict"]["base_model"]["model"]["trunk"]
    theirs = {
        "backbone.res2.0.conv2.norm.running_var": "layer1.0.bn2.running_var",
        "backbone.res4.5.conv3.norm.weight": "layer3.5.bn3.weight",
        "roi_heads.res5.0.shortcut.norm.running_mean": "layer4.0.downsample.1.running_mean",
        "roi_heads.res5.2.conv1.norm.bias": "layer4.2.bn1.bias",
        "backbone.stem.conv1.weight": "conv1.weight",  # FREEZE_AT 2
        "backbone.res2.1.conv1.weight": "layer1.1.conv1.weight",
    }
    for name, ours in theirs.items():
        assert torch.equal(first["model"][name], weights[f"_feature_blocks.{ours}"]), name
    learned, start = first["model"]["roi_heads.res5.1.conv1.weight"], weights["_feature_blocks.layer4.1.conv1.weight"]
    assert not torch.equal(learned, start) and (learned - start).abs().max() < 0.05

    run(voc_root, *common, "--resume", *options, "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(1,)")
    last = read_safely(folder / "model_final.pth")
    assert last["iteration"] == 3
    before, after = frozen(first["model"]), frozen(last["model"])
    assert len(before) == 53 * 4
    for key in before:
        assert torch.equal(before[key], after[key]), key
    printed = run(voc_root, "--config-file", "voc0712_pirl", "--eval-only", *options,
                  "MODEL.WEIGHTS", folder / "model_final.pth")  # fmt: skip
    assert "AP50" in printed


@pytest.mark.slow
def test_a_detector_trains_on_a_tree_of_ones_own(narrow, voc_root, tmp_path):
    make_tree(voc_root / "VOC2007" / "JPEGImages", voc_root / "VOC2007" / "Annotations", tmp_path / "own", 0.4)
    own = ["--data", tmp_path / "own", "--classes", "dog"]
    options = [*NARROW, "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
    printed = run(voc_root, "--config-file", "voc07_pirl", "--weights", narrow, *own, *options)
    assert "AP50" in printed
    assert list(BENCHMARKS["detection_voc07"].read(tmp_path / "run")) == ["AP", "AP50", "AP75"]
    model = read_safely(tmp_path / "run" / "model_final.pth")["model"]
    assert model["roi_heads.box_predictor.cls_score.weight"].shape[0] == 2  # dog and background
