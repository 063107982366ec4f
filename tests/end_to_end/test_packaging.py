"""Installing and uninstalling the project beside VISSL, in a scratch environment: as a wheel and editable.

The scratch environment borrows the heavy packages of the running one through a .pth file, and has its own
copy of VISSL: the plugin is installed into the same site-packages folder as VISSL, as on a user's machine,
and the running environment stays as it is.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HOST_DISTRIBUTIONS = ("classy-vision", "vissl")
# Whatever the calling shell points Python or pip at must not reach the scratch environment.
LEAKS = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONSTRAINT"}
PIP_OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
LOSS_OF_CONFIG = {
    "pretrain/pirl/jigsaw_8node": "pirl_loss",  # ours
    "pretrain/simclr/simclr_8node_resnet": "simclr_info_nce_loss",  # VISSL's own
}
PRINT_LOSS_NAMES = """
import sys
from pirl_plugin.launch.launcher import compose
print("loss names:", *(compose([f"config={name}"]).LOSS.name for name in sys.argv[1:]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command and returns what it printed; where it fails, the test shows all of that."""
    environment = {name: value for name, value in os.environ.items() if name not in LEAKS}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def copy_checkout(target: Path) -> None:
    """Copies what git tracks or would track, so that no stale build folder comes along."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a tracked file may have been deleted in the working tree
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def files_of_hosts() -> list[str]:
    """The files of VISSL and classy-vision in the running environment, relative to its site-packages."""
    hosts = [each for each in metadata.distributions() if each.metadata["Name"] in HOST_DISTRIBUTIONS]
    files = {str(file) for host in hosts for file in host.files or ()}
    return sorted(name for name in files if not name.startswith("..") and "__pycache__" not in name)


class ScratchEnvironment:
    """A virtual environment with its own VISSL and, through a .pth file, all else of the running one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.scripts = folder / "bin"
        self.elsewhere = folder / "elsewhere"  # a working folder that has nothing to do with the checkout
        self.elsewhere.mkdir()
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site_packages = folder / "lib" / version / "site-packages"
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # Plain folders: the .pth files inside them are not read, so an editable install there stays unseen.
        (self.site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
        source = Path(str(metadata.distribution("vissl").locate_file("")))
        for name in files_of_hosts():
            (self.site_packages / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, self.site_packages / name)

    def pip(self, command: str, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", command, *arguments, cwd=self.elsewhere)

    def install(self, *arguments: str | Path) -> None:
        self.pip("install", *PIP_OFFLINE, *arguments)

    def loss_names(self, configs: Sequence[str]) -> list[str]:
        """Composes each config in a fresh process and returns the name of its loss."""
        printed = run(self.python, "-c", PRINT_LOSS_NAMES, *configs, cwd=self.elsewhere)
        last = next(line for line in reversed(printed.splitlines()) if line.startswith("loss names: "))
        return last.removeprefix("loss names: ").split()

    def location(self, module: str) -> Path:
        """Where a module is found, without running it."""
        code = f"import importlib.util as u; print(u.find_spec({module!r}).origin)"
        return Path(run(self.python, "-c", code, cwd=self.elsewhere).strip())

    def files(self) -> set[str]:
        """All installed files, but for compiled ones, which come and go as modules are imported."""
        found = (path for path in self.site_packages.rglob("*") if path.is_file())
        return {str(path.relative_to(self.site_packages)) for path in found if path.suffix != ".pyc"}


@pytest.fixture
def scratch(tmp_path: Path) -> ScratchEnvironment:
    environment = ScratchEnvironment(tmp_path / "venv")
    assert environment.site_packages in environment.location("vissl").parents
    return environment


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built where an earlier build has left a module that is deleted by now."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(checkout, source)
    stale = source / "build" / "lib" / "pirl_plugin" / "deleted_long_ago.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    run(sys.executable, "-m", "pip", "wheel", *PIP_OFFLINE, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def check_installed(environment: ScratchEnvironment) -> None:
    """From an unrelated folder: the command lines exist, our configs compose, and so do VISSL's own."""
    assert os.access(environment.scripts / "run_distributed_engines.py", os.X_OK)
    assert environment.loss_names(list(LOSS_OF_CONFIG)) == list(LOSS_OF_CONFIG.values())
    for folder in ("configs", "extra_scripts", "tools"):  # the top-level names are still VISSL's
        assert environment.site_packages in environment.location(folder).parents


def check_uninstalls_cleanly(environment: ScratchEnvironment, files_before: set[str]) -> None:
    """After uninstalling, VISSL has all of its files: its configs, tools and extra_scripts among them."""
    environment.pip("uninstall", "--yes", "pirl_plugin")
    assert environment.files() == files_before
    for folder in ("configs", "extra_scripts", "tools", "vissl"):
        assert any(name.startswith(f"{folder}/") for name in files_before)
    assert not (environment.scripts / "run_distributed_engines.py").exists()
    imports = "import configs, extra_scripts, tools, vissl.config; print(vissl.config.__file__)"
    printed = run(environment.python, "-c", imports, cwd=environment.elsewhere)
    assert str(environment.site_packages) in printed


def test_wheel_installs_beside_vissl_and_uninstalls(scratch: ScratchEnvironment, wheel: Path) -> None:
    before = scratch.files()
    scratch.install(wheel)
    assert scratch.site_packages in scratch.location("pirl_plugin").parents
    check_installed(scratch)
    check_uninstalls_cleanly(scratch, before)


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_beside_vissl_and_uninstalls(
    scratch: ScratchEnvironment, checkout: Path, tmp_path: Path, mode: str
) -> None:
    source = tmp_path / "source"  # a strict install writes a build folder into its checkout
    shutil.copytree(checkout, source)
    before = scratch.files()
    scratch.install("--config-settings", f"editable_mode={mode}", "--editable", source)
    assert source in scratch.location("pirl_plugin").parents
    check_installed(scratch)
    check_uninstalls_cleanly(scratch, before)


def test_wheel_carries_every_module_config_and_script(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path, format="zip")
    packed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    expected = {"pirl_plugin/py.typed", "hydra_plugins/pirl_plugin_path/__init__.py"}
    expected |= {str(path.relative_to(checkout)) for path in (checkout / "pirl_plugin").rglob("*.py")}
    for pattern in ("extra_scripts/*.py", "configs/**/*.yaml"):
        expected |= {f"pirl_plugin/{path.relative_to(checkout)}" for path in checkout.glob(pattern)}
    assert {name for name in packed if ".dist-info/" not in name} == expected


class BareEnvironment:
    """A virtual environment with the wheel and, as links, all packages of the running one but VISSL and its kind."""

    LEFT_OUT = (
        "vissl", "classy_vision", "fairscale", "hydra", "omegaconf", "tools", "configs", "extra_scripts", "dev",
        "tests", "pirl_plugin", "__editable__",
    )  # fmt: skip

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False)
        self.scripts, self.elsewhere = folder / "bin", folder / "elsewhere"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "lib" / version / "site-packages"
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        self.elsewhere.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(self.LEFT_OUT) and path.suffix != ".pth":
                (borrowed / path.name).symlink_to(path)
        (site / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
        run(self.scripts / "python", "-m", "pip", "install", *PIP_OFFLINE, wheel, cwd=self.elsewhere)

    def run(self, *command: str | Path) -> str:
        return run(self.scripts / command[0], *command[1:], cwd=self.elsewhere)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    return BareEnvironment(tmp_path_factory.mktemp("bare") / "venv", wheel)


def test_the_wheel_serves_weights_and_both_examples_where_vissl_is_not_installed(
    bare: BareEnvironment, photo_folder: Path
) -> None:
    code = (
        "import importlib.util as u; print([u.find_spec(n) for n in ('vissl', 'classy_vision', 'hydra', 'omegaconf')])"
    )
    assert bare.run("python", "-c", code).strip() == "[None, None, None, None]"
    assert "train-detector" in bare.run("pirl", "--help")
    for number, example in enumerate(("plain_pytorch", "lightning_module")):
        script, trunk = ROOT / "examples" / f"{example}.py", f"trunk{number}.pth"
        bare.run("python", script, photo_folder, "--epochs", "1", "--batch-size", "16", "--output", trunk)
        assert "ResNet-18 of 0.5 times the width with a 3x3 stem" in bare.run("pirl", "export", trunk)
        exported = f"trunk{number}.safetensors"
        assert "equal the trunk's" in bare.run("pirl", "export", trunk, "--format", "safetensors", "--output", exported)
        printed = bare.run("pirl", "embed", exported, photo_folder, "--output", f"features{number}.npy")
        assert "features of 48 images; 0 could not be read" in printed
