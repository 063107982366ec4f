"""Detection with the real Detectron2 on small VOC trees of real JPEGs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances, register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import Boxes, Instances
from PIL import Image

from pirl_plugin.detection import training
from pirl_plugin.detection.make_voc_tree import classes_of, make_tree
from pirl_plugin.detection.training import check_weights_fit, config_files, detection_config
from pirl_plugin.detection.voc_trees import check_split
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
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR, but the weights need RGB"),
        (["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"], "MODEL.PIXEL_MEAN is"),
        (["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], "MODEL.PIXEL_STD is"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "True"], "STRIDE_IN_1X1 is True, but the weights need False"),
        (["MODEL.RESNETS.DEPTH", "101"], "DEPTH is 101, but the weights need 50"),
        (["MODEL.RESNETS.WIDTH_PER_GROUP", "64"], "WIDTH_PER_GROUP is 64, but the weights need 16"),
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
            text = annotation((100, 80), boxes)
            if number == 2:  # an object of each class, for the test split
                others = "".join(annotation((100, 80), [(10, 10, 20, 20)], name) for name in CLASS_NAMES)
                text = text.replace(
                    "</annotation>", "".join(re.findall("<object>.*?</object>", others)) + "</annotation>"
                )
            (folder / "Annotations" / f"{stem}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(stems[:4]))
        (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems[2:]))
    return tmp_path / "voc"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("one line", r"test.txt names 1 image\(s\); Detectron2 needs at least two"),
        ("no list", "needs .*test.txt, which does not exist"),
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
        check_split(folder, "test", "voc_2007_test", tested=True)


BOX = re.search("<object>.*</object>", annotation((100, 80), [(5, 8, 60, 50)])).group()
XML = annotation((100, 80), [(5, 8, 60, 50)])


@pytest.fixture
def own(tmp_path, make_photo) -> Path:
    """A tree of six photos with a dog each: i0 to i2 to train on, i3 to i5 to test on."""
    folder = tmp_path / "own"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for number in range(6):
        make_photo(number, 100, 80).save(folder / "JPEGImages" / f"i{number}.jpg")
        (folder / "Annotations" / f"i{number}.xml").write_text(XML)
    (folder / "ImageSets/Main/train.txt").write_text("i0\ni1\ni2\n")
    (folder / "ImageSets/Main/test.txt").write_text("i3\ni4\ni5\n")
    return folder


def edit(old: str, new: str, number: int):
    return lambda folder: (folder / f"Annotations/i{number}.xml").write_text(XML.replace(old, new))


def test_list(text: str):
    return lambda folder: (folder / "ImageSets/Main/test.txt").write_text(text)


test_list.__test__ = False


def turned(folder: Path) -> None:
    tags = Image.Exif()
    tags[274] = 6
    Image.open(folder / "JPEGImages/i0.jpg").save(folder / "JPEGImages/i1.jpg", exif=tags)


def torn(folder: Path) -> None:
    path = folder / "JPEGImages" / "i1.jpg"
    path.write_bytes(path.read_bytes()[:400])


def renamed(name: str):
    def rename(folder: Path) -> None:
        for part, end in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (folder / part / f"i4.{end}").rename(folder / part / f"{name}.{end}")
        test_list(f"i3\n{name}\ni5\n")(folder)

    return rename


# What is wrong, where, and what the check says; the last: whether Detectron2 itself stumbles, or counts silently.
DAMAGE = {
    "box of 5.5": (edit("<xmin>5<", "<xmin>5.5<", 4), r"i4.xml has <bndbox/xmin> '5.5'; .* a whole number"),
    "truncated 0.06": (edit("<truncated>0<", "<truncated>.06<", 4), r"<truncated> '.06'"),
    "truncated in words": (edit("<truncated>0<", "<truncated>Unspecified<", 4), "<truncated> 'Unspecified'"),
    "empty difficult": (edit("<difficult>0</difficult>", "<difficult/>", 4), "<difficult> ''"),
    "blank last line": (test_list("i3\ni4\ni5\n\n"), "Line 4 of .*test.txt is ''"),
    "blank in a name": (renamed("IMG (4)"), r"Line 2 of .* is 'IMG \(4\)'"),
    "# in a name": (renamed("#4"), "Line 2 of .* is '#4'"),
    "named twice": (test_list("i3\ni4\ni3\n"), "names 'i3' more than once"),
    "other class": (edit("dog", "Dog", 4), r"an object 'Dog', not one of the classes \(did you mean dog\?\)"),
    "swapped size": (edit("<width>100</width><height>80<", "<width>80</width><height>100<", 1), "are swapped"),
    "no size": (edit("<width>100</width><height>80<", "<width>0</width><height>0<", 1), "put the true size there"),
    "turned by EXIF": (turned, "with 80 x 100: it turns the photo as its EXIF orientation says"),
    "torn photo": (torn, r"The photo .*i1.jpg cannot be read"),
    "empty box": (edit("<xmax>60<", "<xmax>5<", 1), r"has the box \[5.0, 8.0, 5.0, 50.0\]"),
    "not UTF-8": (lambda f: (f / "Annotations/i1.xml").write_bytes(XML.replace("dog", "D\xf6g").encode("latin-1")),
                  "is not XML: .*; save it as UTF-8"),
    "no name": (edit("<name>dog</name>", "", 1), "has no <name>"),
}  # fmt: skip


def check_own(folder: Path, classes: list[str]) -> None:
    for split in ("train", "test"):
        check_split(folder, split, "own", classes, tested=split == "test")


def detectron2_takes(folder: Path, classes: list[str], name: str) -> float:
    """Load the tree as Detectron2 does and evaluate the true boxes: their AP50."""
    for split in ("train", "test"):
        for record in load_voc_instances(str(folder), split, classes):
            detection_utils.check_image_size(record, detection_utils.read_image(record["file_name"], "RGB"))
    parse_rec.cache_clear()  # by file name, which tests use again
    register_pascal_voc(name, str(folder), "test", 2007, class_names=classes)
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for record in load_voc_instances(str(folder), "test", classes):
        boxes = torch.tensor([one["bbox"] for one in record["annotations"]])
        found = Instances((record["height"], record["width"]))
        found.pred_boxes, found.scores = Boxes(boxes), torch.full((len(boxes),), 0.9)
        found.pred_classes = torch.tensor([one["category_id"] for one in record["annotations"]])
        evaluator.process([record], [{"instances": found}])
    return float(evaluator.evaluate()["bbox"]["AP50"])


@pytest.mark.parametrize("name", DAMAGE)
def test_what_detectron2_would_stumble_over_late_or_count_wrongly_is_refused_before(own, name):
    check_own(own, ["dog"])
    damage, message = DAMAGE[name]
    damage(own)
    with pytest.raises(ConfigError, match=message) as caught:
        check_own(own, ["dog"])
    assert "\n" not in str(caught.value)


def test_a_class_without_an_object_in_the_test_split_is_refused_as_its_ap_would_be_0(own):
    edit("dog", "cat", 0)(own)
    with pytest.raises(ConfigError, match=r"has no object .* of cat, which would count as an average precision of 0"):
        check_own(own, ["dog", "cat"])
    assert detectron2_takes(own, ["dog", "cat"], "own_without_cats") == pytest.approx(50)
    edit("<name>dog</name>", "<name>cat</name>", 4)(own)
    check_own(own, ["dog", "cat"])
    assert detectron2_takes(own, ["dog", "cat"], "own_with_cats") == pytest.approx(100)
    edit("<name>dog</name><pose>Left</pose><truncated>0</truncated><difficult>0", "<name>cat</name><pose>Left</pose>"
         "<truncated>0</truncated><difficult>1", 4)(own)  # fmt: skip
    with pytest.raises(ConfigError, match="not marked difficult"):
        check_own(own, ["dog", "cat"])


def test_boxes_of_fractions_are_trained_on_as_in_voc2012(own):
    edit("<xmin>5<", "<xmin>5.5<", 1)(own)
    check_own(own, ["dog"])
    assert load_voc_instances(str(own), "train", ["dog"])[1]["annotations"][0]["bbox"][0] == 4.5


def raw(folder: Path, files: dict[str, str], make_photo) -> tuple[Path, Path]:
    """Images and annotations as a tool writes them, by file name."""
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for number, (name, text) in enumerate(files.items()):
        make_photo(number, 100, 80).save(folder / "images" / name)
        (folder / "annotations" / f"{Path(name).stem}.xml").write_text(text)
    return folder / "images", folder / "annotations"


def test_what_annotation_tools_write_becomes_a_tree_that_detectron2_reads(tmp_path, make_photo):
    """Blanks and # in names, any ending, fractions, words for flags, missing tags and sizes, a comma in a class."""
    loose = XML.replace("<xmin>5<", "<xmin>5.4<").replace("<truncated>0<", "<truncated>0.06<")
    loose = loose.replace("<difficult>0</difficult>", "<difficult/>").replace("dog", "dog, big")
    loose = loose.replace("<pose>Left</pose>", "").replace("<width>100</width><height>80</height>", "")
    names = ["IMG (1).jpg", "IMG_(1).jpg", "b.JPG", "c.jpeg", "d.png", "#e.jpg", "\u00e4.jpg", "h.webp"]
    images, annotations = raw(tmp_path, dict.fromkeys(names, loose), make_photo)
    (images / ".hidden.jpg").write_bytes(b"")
    made = make_tree(images, annotations, tmp_path / "tree", 0.25)
    assert made == {"train": 6, "test": 2, "classes": ["dog, big"]} and classes_of(tmp_path / "tree") == ["dog, big"]
    linked = {path.resolve().name: path.name for path in (tmp_path / "tree" / "JPEGImages").iterdir()}
    assert set(linked) == set(names) and len(set(linked.values())) == 8
    assert linked["IMG (1).jpg"] != linked["IMG_(1).jpg"] == "IMG_(1).jpg" and linked["b.JPG"] == "b.jpg"
    for record in load_voc_instances(str(tmp_path / "tree"), "train", ["dog, big"]):
        image = detection_utils.read_image(record["file_name"], "RGB")
        original = next(name for name, new in linked.items() if new == Path(record["file_name"]).name)
        np.testing.assert_array_equal(image, np.asarray(Image.open(images / original).convert("RGB")))
    assert detectron2_takes(tmp_path / "tree", ["dog, big"], "loose") == pytest.approx(100)


def test_each_class_is_in_both_splits_in_about_its_share(tmp_path, make_photo):
    files = {f"i{n:02d}.jpg": XML.replace("dog", "rare" if n in (3, 7) else "dog") for n in range(20)}
    images, annotations = raw(tmp_path, files, make_photo)
    made = make_tree(images, annotations, tmp_path / "tree", 0.2, seed=1)
    assert made == {"train": 15, "test": 5, "classes": ["dog", "rare"]}  # 1 of 2 and 4 of 18
    lists = {s: (tmp_path / "tree/ImageSets/Main" / f"{s}.txt").read_text().split() for s in ("train", "test")}
    assert len({"i03", "i07"} & set(lists["test"])) == 1 and not set(lists["train"]) & set(lists["test"])
    assert len(lists["train"] + lists["test"]) == 20
    again = make_tree(images, annotations, tmp_path / "again", 0.2, seed=1)
    assert again == made and (tmp_path / "again/ImageSets/Main/test.txt").read_text().split() == lists["test"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, a: (a / "x0.xml").write_bytes(XML.replace("dog", "D\xf6g").encode("latin-1")), "save it as UTF-8"),
        (lambda i, a: (a / "x0.xml").write_text(XML.replace("<name>dog</name>", "")), "has the name ''"),
        (lambda i, a: (a / "x0.xml").write_text(XML.replace("dog", "cat")), "'cat' has objects .* in 1 image"),
        (lambda i, a: (a / "x0.xml").unlink(), "has no annotation"),
        (lambda i, a: (i / "x0.png").write_bytes((i / "x0.jpg").read_bytes()), "several images named x0"),
        (lambda i, a: (i / "x0.jpg").write_bytes(b"no image"), "The photo .* cannot be read"),
        (lambda i, a: (a / "x0.xml").write_text(XML.replace("<xmin>5<", "<xmin>five<")), "'five'; it must be a number"),
        (lambda i, a: [(i / f"x{n}.jpg").unlink() for n in range(4)], "has 2 images"),
    ],
)
def test_what_cannot_become_a_tree_is_refused_and_nothing_is_written(tmp_path, make_photo, change, message):
    images, annotations = raw(tmp_path, {f"x{n}.jpg": XML for n in range(6)}, make_photo)
    change(images, annotations)
    with pytest.raises(ConfigError, match=message):
        make_tree(images, annotations, tmp_path / "tree", 0.4)
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"test_share": 1}, "which leaves nothing to train on"), ({"seed": -1}, "--seed is -1; it must")],
)
def test_a_share_and_a_seed_are_in_their_ranges(given, message, tmp_path, make_photo):
    images, annotations = raw(tmp_path, {f"x{n}.jpg": XML for n in range(6)}, make_photo)
    with pytest.raises(ConfigError, match=message):
        make_tree(images, annotations, tmp_path / "tree", **{"test_share": 0.5, **given})


def test_a_config_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("MODEL: [1\n")
    with pytest.raises(ConfigError, match=r"The detection config .*own.yaml is not YAML: .*line 2"):
        detection_config(str(tmp_path / "own.yaml"), [])


def test_a_tree_is_not_written_over_another(voc_root, tmp_path):
    images, annotations = voc_root / "VOC2007" / "JPEGImages", voc_root / "VOC2007" / "Annotations"
    (annotations / "2007_2.xml").write_text(annotation((100, 80), [(1, 1, 9, 9)]))
    assert make_tree(images, annotations, tmp_path / "own", test_share=0.4)["classes"] == ["dog"]
    with pytest.raises(ConfigError, match="exists already"):
        make_tree(images, annotations, tmp_path / "own", test_share=0.4)


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
        objects = "".join(re.search(r"<object>.*?</object>", text).group().replace("dog", name) for name in CLASS_NAMES)
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
    (voc_root / "VOC2007" / "Annotations" / "2007_2.xml").write_text(annotation((100, 80), [(1, 1, 9, 9)]))
    make_tree(voc_root / "VOC2007" / "JPEGImages", voc_root / "VOC2007" / "Annotations", tmp_path / "own", 0.4)
    own = ["--data", tmp_path / "own"]
    options = [*NARROW, "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
    printed = run(voc_root, "--config-file", "voc07_pirl", "--weights", narrow, *own, *options)
    assert "AP50" in printed
    assert list(BENCHMARKS["detection_voc07"].read(tmp_path / "run")) == ["AP", "AP50", "AP75"]
    model = read_safely(tmp_path / "run" / "model_final.pth")["model"]
    assert model["roi_heads.box_predictor.cls_score.weight"].shape[0] == 2  # dog and background


def test_a_run_is_prepared_only_with_weights_and_data_that_fit(narrow, own, tmp_path):
    def prepared(*opts: str, classes: str = "dog"):
        arguments = ["--config-file", "voc07_pirl", "--weights", str(narrow), "--data", str(own), "--classes", classes]
        options = training.parser().parse_args([*arguments, *NARROW, "OUTPUT_DIR", str(tmp_path / "out"), *opts])
        return training.prepare(options)

    with pytest.raises(ConfigError, match=r"INPUT.FORMAT is BGR"):
        prepared("INPUT.FORMAT", "BGR")
    with pytest.raises(ConfigError, match="not one of the classes"):
        prepared(classes="cat")
    assert not (tmp_path / "out").exists()
    config = prepared()
    assert config.MODEL.ROI_HEADS.NUM_CLASSES == 1 and tuple(config.DATASETS.TEST) == ("voc_own_test",)
    assert Path(config.MODEL.WEIGHTS).is_file() and config.is_frozen()
