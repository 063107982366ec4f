"""The shape of the package: which room may import which, and what works without VISSL."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pirl_plugin"
GROUND = {
    "validation", "distributed", "figures", "registry", "early_stop", "safe_loading", "paths", "out_of_memory",
    "__init__",
}  # fmt: skip
ABOVE = {  # room -> rooms that it may import
    "pretext": set(),
    "data": {"pretext"},
    "objective": set(),
    "network": {"pretext", "data"},
    "evaluation": {"pretext", "data", "network", "objective"},
    "detection": {"pretext", "data", "network", "objective", "evaluation"},
}
BELOW = {
    "host": set(ABOVE),
    "training": {*ABOVE, "host"},
    "launch": {*ABOVE, "host", "training"},
    "experiments": {*ABOVE, "host", "training", "launch"},
    "commands": {*ABOVE, "host", "training", "launch", "experiments"},
}
FRAMEWORKS = {"vissl", "classy_vision", "hydra", "omegaconf", "fairscale", "hydra_plugins", "tools", "extra_scripts"}


def modules_of(room: str) -> Iterator[Path]:
    return (PACKAGE / room).rglob("*.py") if room else PACKAGE.glob("*.py")


def imported_by(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, by its full name; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported_by(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_by(path) if name.startswith("pirl_plugin."))
    return {name[1] for name in parts if (PACKAGE / name[1]).is_dir()}


def test_every_folder_is_a_room_and_the_ground_is_what_it_says():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {*ABOVE, *BELOW}
    assert {path.stem for path in modules_of("")} == GROUND


@pytest.mark.parametrize("room", [*ABOVE, *BELOW])
def test_a_room_imports_only_what_its_arrows_allow(room):
    allowed = {room, *({**ABOVE, **BELOW}[room])}
    for path in modules_of(room):
        assert rooms_imported_by(path) <= allowed, path


def test_the_ground_imports_no_room():
    for path in modules_of(""):
        own = {"network", "objective", "pretext"} if path.stem == "__init__" else set()  # the public names
        assert rooms_imported_by(path) <= own, path


@pytest.mark.parametrize("room", ["", *ABOVE])
def test_nothing_above_the_line_imports_a_framework_below_it(room):
    for path in modules_of(room):
        assert not {name.split(".")[0] for name in imported_by(path)} & FRAMEWORKS, path


def test_no_room_has_more_than_twenty_modules_but_the_commands():
    sizes = {room: sum(path.name != "__init__.py" for path in modules_of(room)) for room in (*ABOVE, *BELOW)}
    assert all(size <= 20 for room, size in sizes.items() if room != "commands"), sizes


def test_the_tests_mirror_the_rooms():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*ABOVE, *BELOW, "end_to_end"}


WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"vissl", "classy_vision", "hydra", "omegaconf", "fairscale"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
WITHOUT_VISSL = (
    WITHOUT
    + """
import importlib, pkgutil
import numpy as np, torch
from pathlib import Path
from PIL import Image

import pirl_plugin
above = %(above)r
for room in above:
    package = importlib.import_module(f"pirl_plugin.{room}")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in pirl_plugin.__all__:
    getattr(pirl_plugin, name)

# Pretext transform, trunk, heads, loss and bank: one step.
photos, generator = Path(%(photos)r), torch.Generator().manual_seed(0)
from pirl_plugin.data.image_files import list_images, load_rgb
transform = pirl_plugin.JigsawPatchTransform(image_crop_size=32, patch_crop_size=42, patch_size=12)
files = list_images(photos)
views = [transform.views(load_rgb(file), generator) for file in files[:8]]
images, patches = torch.stack([v[0] for v in views]), torch.cat([v[1] for v in views])
trunk = pirl_plugin.ResNetTrunk(18, 0.125, "small")
f, g = pirl_plugin.PIRLHead("image", 64, 16), pirl_plugin.PIRLHead("jigsaw", 64, 16)
loss = pirl_plugin.PIRLLoss(len(files), num_negatives=8, embedding_dim=16, memory_bank={"name": "sharded_memory_bank"})
value = loss([f(trunk(images)[0]), g(trunk(patches)[0])], torch.arange(8))
value.backward()
assert value.isfinite() and int(loss.memory_bank.updated.sum()) == 8

# Weights in and out, features, and every measure of them.
torch.save(trunk.state_dict(), "trunk.pth")
loaded = pirl_plugin.load_trunk("trunk.pth")
from pirl_plugin.network.features import center_view
features = pirl_plugin.embed(loaded.network, files, center_view(32))
assert np.allclose(features, pirl_plugin.embed(trunk.eval(), files, center_view(32)), atol=1e-5)
from pirl_plugin.evaluation import layers, measures, spread
labels = np.arange(len(files)) %% 4
everything = (features[::2], labels[::2], features[1::2], labels[1::2])
assert all(0 <= evaluation(*everything) <= 1 for evaluation in measures.EVALUATIONS.values())
by_layer = layers.embed_layers(loaded.network, files, center_view(32))
assert set(layers.layer_accuracies(by_layer, labels, by_layer, labels)) == {"conv1", "res2", "res3", "res4", "res5"}
assert spread.effective_rank(spread.Moments.of(torch.from_numpy(measures.unit(features)))) > 1
from pirl_plugin.evaluation.invariance import figures_of
assert figures_of(features, features)["mean"] == 0

from pirl_plugin.commands.__main__ import main
def pirl(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code, end.code
pirl("export", "trunk.pth", "--format", "safetensors", "--output", "trunk.safetensors")
pirl("embed", "trunk.safetensors", photos, "--output", "features.npy")
assert np.allclose(np.load("features.npy"), features, atol=1e-4)
pirl("analysis", "spread", "trunk.pth", "--images", photos, "--output", "spread")
pirl("show-pretext", files[0], "--output", "tasks.png")
try:
    main(["train", "config=pretrain/pirl/jigsaw_8node"])
except SystemExit as end:
    print(end.code)
"""
)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def test_all_that_is_pirls_own_works_with_vissl_and_its_companions_absent(photo_folder, tmp_path):
    done = run_python(WITHOUT_VISSL % {"above": list(ABOVE), "photos": str(photo_folder)}, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "needs VISSL, of which vissl and classy_vision" in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_help_comes_without_torch(tmp_path):
    code = """
import sys
from pirl_plugin.commands.__main__ import command_parser, main, names
for name in names():
    assert command_parser(name).format_help()
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
assert not {"torch", "numpy", "vissl", "hydra", "matplotlib"} & set(sys.modules), "something heavy was imported"
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train-detector" in done.stdout
