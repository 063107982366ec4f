"""Archives hold the images of the folder that they were packed from: the same names, order, pixels and labels."""

import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from pirl_plugin.data import archive_index, archives, kept_index
from pirl_plugin.data.archive_index import walk_order
from pirl_plugin.data.class_folders import class_folders
from pirl_plugin.data.image_files import (
    ImageFiles,
    files_identity,
    list_images,
    load_pixels,
    load_rgb,
    walk_images,
)
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.embed_folder import embed_folder
from pirl_plugin.validation import ConfigError
from runs import same

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["tar", "pax", "tar of tars", "zip", "deflated", "folder of tars", "folder of zips", "links"]


@pytest.fixture
def photos(tmp_path, make_photo) -> Path:
    """Folders with names whose order depends on what stands between; JPEG, PNG, a name that is not UTF-8."""
    folder = tmp_path / "photos"
    names = ["n1/b.jpg", "n1/a.jpg", "n1-x/c.jpg", "n1.5/d.png", "n2/e.jpg", "n2/deep/f.jpg", "n2/\udce9t\udce9.jpg"]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = io.BytesIO()
        make_photo(number, 40 + number, 30).save(made, "png" if name.endswith("png") else "jpeg")
        path.write_bytes(made.getvalue())
    (folder / "n2" / "readme.txt").write_text("no image")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.jpg").write_bytes(b"x")
    return folder


def pack(folder: Path, target: Path, kind: str) -> Path:
    """An archive of a folder's content, or a folder of archives of its folders."""
    target.mkdir()
    if kind.startswith("folder of"):
        ending = "tar" if kind.endswith("tars") else "zip"
        for part in folder.iterdir():
            if part.is_dir() and not part.name.startswith("."):
                pack(part, target / "made", ending).rename(target / f"{part.name}.{ending}")
                (target / "made").rmdir()
        return target
    if kind in ("zip", "deflated"):
        path = target / "all.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as made:
            for file in sorted(folder.rglob("*"), reverse=True):
                name = str(file.relative_to(folder)).encode(errors="surrogateescape").decode(errors="replace")
                made.write(file, name)
        return path
    path = target / "all.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT) as made:
        if kind == "tar of tars":
            for part in sorted(folder.iterdir(), reverse=True):
                inner = pack(part, target / part.name, "tar")
                made.add(inner, f"{part.name}.tar")
                inner.unlink()
                inner.parent.rmdir()
        else:
            for file in sorted(folder.rglob("*"), reverse=True):
                if file.is_file():
                    made.add(file, f"./{file.relative_to(folder)}")
        if kind == "links":
            hard = tarfile.TarInfo("./n1/z.jpg")
            hard.type, hard.linkname = tarfile.LNKTYPE, "./n1/a.jpg"
            made.addfile(hard)
            soft = tarfile.TarInfo("n2/z.jpg")
            soft.type, soft.linkname = tarfile.SYMTYPE, "../n1/b.jpg"
            made.addfile(soft)
    return path


def readable_names(photos: Path) -> None:
    """Zip has no way to hold a name that is not UTF-8 as it is."""
    (photos / "n2" / "\udce9t\udce9.jpg").rename(photos / "n2" / "\ufffdt\ufffd.jpg")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_has_the_names_order_identity_and_pixels_of_the_unpacked_folder(photos, tmp_path, kind):
    if kind in ("zip", "deflated", "folder of zips"):
        readable_names(photos)
    if kind == "links":
        os.link(photos / "n1" / "a.jpg", photos / "n1" / "z.jpg")
        (photos / "n2" / "z.jpg").symlink_to("../n1/b.jpg")
    path = pack(photos, tmp_path / "packed", kind)
    expected, found = list_images(photos), list_images(path)
    assert [os.path.relpath(file, path) for file in found] == [os.path.relpath(file, photos) for file in expected]
    assert len(found) == 9 if kind == "links" else len(found) == 7
    assert files_identity(found) == files_identity(expected)
    for real, packed in zip(expected, found, strict=True):
        assert archives.is_there(packed) and not os.path.exists(packed)
        assert torch.equal(load_pixels(packed), load_pixels(real))
        assert load_rgb(packed).tobytes() == load_rgb(real).tobytes()
    assert [folder.name for folder in class_folders(path)] == ["n1", "n1-x", "n1.5", "n2"]
    assert [Path(file).name for file in list_images(class_folders(path)[0])] == ["a.jpg", "b.jpg"] + ["z.jpg"] * (
        kind == "links"
    )


def source(path: Path) -> ImageFiles:
    data = {"TRAIN": {"TRANSFORMS": [], "DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 2}}
    return ImageFiles({"DATA": data}, "image_files", str(path), "TRAIN", "photos")


@pytest.mark.parametrize("kind", ["tar", "folder of tars"])
def test_a_data_source_gives_the_same_images_and_labels_from_an_archive(photos, tmp_path, kind):
    path = pack(photos, tmp_path / "packed", kind)
    folder, packed = source(photos), source(path)
    assert packed.get_labels() == folder.get_labels() == [0, 0, 1, 2, 3, 3, 3]
    for number in range(len(folder)):
        (one, valid), (other, also) = folder[number], packed[number]
        assert valid and also and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_read_the_same_archive_at_once(photos, tmp_path, method):
    files = list_images(pack(photos, tmp_path / "packed", "tar"))
    load_pixels(files[0])  # so that forked workers have it open
    loader = DataLoader(
        files * 20, batch_size=None, collate_fn=load_pixels, num_workers=2, multiprocessing_context=method
    )
    for found, real in zip(loader, list_images(photos) * 20, strict=True):
        assert torch.equal(found, load_pixels(real))


def test_lists_name_members_and_embedding_reads_an_archive(photos, tmp_path):
    path = pack(photos, tmp_path / "packed", "tar")
    (tmp_path / "packed" / "list.txt").write_text("all.tar/n2/e.jpg\nall.tar/n1/a.jpg\n")
    listed = list_images(tmp_path / "packed" / "list.txt")
    assert [load_rgb(file).size for file in listed] == [(44, 30), (41, 30)]
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    for target, images in (("one.npy", photos), ("other.npy", path)):
        assert embed_folder(weights, images, tmp_path / target, size=32)[0] == 7
    assert (np.load(tmp_path / "one.npy") == np.load(tmp_path / "other.npy")).all()


def test_the_index_is_written_once_and_anew_where_the_archive_was_replaced(photos, tmp_path, monkeypatch):
    path = pack(photos, tmp_path / "packed", "tar")
    list_images(path)
    (index,) = path.parent.glob(".all.tar.*.npy")
    entries = np.load(index, allow_pickle=False)
    assert len(entries) == 7 and list(walk_images(path.parent)) == []
    monkeypatch.setattr(archive_index, "_entries", lambda path: pytest.fail("listed again"))
    archives._opened.cache_clear()
    assert len(list_images(path)) == 7
    monkeypatch.undo()
    path.unlink()
    (photos / "n1" / "b.jpg").unlink()
    pack(photos, tmp_path / "again", "tar").rename(path)
    assert len(list_images(path)) == 6 and not index.exists() and len(list(path.parent.glob(".all.tar.*.npy"))) == 1
    # A torn index is made anew.
    (index,) = path.parent.glob(".all.tar.*.npy")
    for left in (200, 0):
        index.write_bytes(index.read_bytes()[:left])
        archives._opened.cache_clear()
        assert len(list_images(path)) == 6 and index.stat().st_size > 200


def test_beside_a_read_only_archive_the_index_is_in_the_cache_folder(photos, tmp_path, monkeypatch):
    path = pack(photos, tmp_path / "packed", "tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = kept_index.write_index

    def refused(file, *rest):  # root may write anywhere
        if file.parent == path.parent:
            raise PermissionError(13, "Permission denied", str(file))
        write(file, *rest)

    monkeypatch.setattr(kept_index, "write_index", refused)
    assert len(list_images(path)) == 7
    (index,) = (tmp_path / "cache" / "pirl_plugin").iterdir()
    assert isinstance(archive_index.index_of(str(path)), np.memmap) and index.suffix == ".npy"


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as made:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def test_what_cannot_be_read_as_an_archive_is_refused_in_a_sentence(photos, tmp_path):
    jpeg = (photos / "n1" / "a.jpg").read_bytes()
    whole = tar_of(tmp_path / "whole.tar", ("a.jpg", jpeg * 20), ("b.jpg", jpeg * 20))
    torn = tmp_path / "torn.tar"
    torn.write_bytes(whole.read_bytes()[: len(jpeg) * 30])
    torn_zip = pack(photos, tmp_path / "packed", "zip")
    torn_zip.write_bytes(torn_zip.read_bytes()[:2000])
    gz = tmp_path / "made.tar.gz"
    with tarfile.open(gz, "w:gz") as made:
        made.add(photos, "photos")
    disguised = tmp_path / "disguised.tar"
    disguised.write_bytes(gz.read_bytes())
    nested = tar_of(tmp_path / "nested.tar", ("n1.tar", torn.read_bytes()))
    html = tmp_path / "page.tar"
    html.write_text("<html>not found</html>" * 100)
    for path, sentence in {
        torn: "cannot be read to its end .*copy it again",
        nested: "cannot be read to its end",
        torn_zip: "cannot be read to its end",
        html: "cannot be read to its end",
        gz: "compressed as a whole.*gunzip",
        disguised: "compressed as a whole.*gunzip",
        tar_of(tmp_path / "empty.tar", ("a.txt", b"text")): "holds no image",
        tar_of(tmp_path / "out.tar", ("../../a.jpg", jpeg)): "member '../../a.jpg', which leads out of it",
    }.items():
        with pytest.raises(ConfigError, match=sentence) as refused:
            list_images(path)
        assert path.name in str(refused.value) and "\n" not in str(refused.value)


def damaged(data: bytes, second: int) -> dict[str, bytes]:
    """A tar whose second member's header is at `second`, in which tarfile sees nothing after the first."""
    return {
        "flipped": data[:second] + bytes([data[second] ^ 1]) + data[second + 1 :],
        "hole": data[:second] + bytes(1024) + data[second + 1024 :],
        "cut in a header": data[: second + 100],
        "cut at a header": data[:second],
    }


@pytest.mark.parametrize("damage", ["flipped", "hole", "cut in a header", "cut at a header"])
def test_a_tar_of_which_a_part_would_be_taken_for_the_whole_is_refused(damage, photos, tmp_path):
    jpeg = (photos / "n1" / "a.jpg").read_bytes()
    whole = tar_of(tmp_path / "whole.tar", *((f"{number}.jpg", jpeg) for number in range(4)))
    second = 512 + -(-len(jpeg) // 512) * 512
    data = damaged(whole.read_bytes(), second)[damage]
    (tmp_path / "torn.tar").write_bytes(data)
    outer = tar_of(tmp_path / "outer.tar", ("n1.tar", data), ("n2.tar", whole.read_bytes()))
    for path in (tmp_path / "torn.tar", outer):
        with pytest.raises(ConfigError, match=rf"{path.name} cannot be read to its end \(.*\); copy it again"):
            list_images(path)
    assert len(list_images(whole)) == 4


def test_archives_beside_images_are_said_not_to_be_read(photos, tmp_path, caplog):
    folder = pack(photos, tmp_path / "packed", "folder of tars")
    (folder / "n1.tar").unlink()
    (folder / "n1").symlink_to(photos / "n1")
    assert len(list_images(folder)) == 2
    assert re.search(r"packed has 2 images, which are used, and \d archives beside them \(.*tar, ...\)", caplog.text)


def test_absolute_names_stay_in_the_archive_and_of_a_name_that_comes_twice_the_last_counts(photos, tmp_path, caplog):
    first, last = ((photos / "n1" / name).read_bytes() for name in ("a.jpg", "b.jpg"))
    path = tar_of(tmp_path / "all.tar", ("/etc/a.jpg", first), ("b.jpg", first), ("b.jpg", last))
    assert list_images(path) == [f"{path}/b.jpg", f"{path}/etc/a.jpg"]
    assert archives.read_file(f"{path}/b.jpg") == last and archives.read_file(f"{path}/etc/a.jpg") == first
    assert "1 members under names that others have" in caplog.text


def test_a_folder_and_an_archive_that_stand_for_the_same_are_refused(photos, tmp_path):
    path = pack(photos, tmp_path / "packed", "folder of tars")
    (path / "n1").mkdir()
    with pytest.raises(ConfigError, match=re.escape("n1.tar and n1, which stand for the same folder")):
        list_images(path)


def test_an_archive_cut_after_it_was_listed_is_an_unreadable_image_and_no_grey_one(photos, tmp_path):
    path = pack(photos, tmp_path / "packed", "tar")
    file = list_images(path)[0]
    found, place = archives.find(file)
    os.truncate(path, int(found.entries["offset"][place]) + 10)
    with pytest.raises(OSError, match="ends before"):
        found.read(place)


def test_members_come_in_the_order_of_a_walk_for_any_names(tmp_path):
    rng = np.random.default_rng(0)
    names = {"/".join(rng.choice(list("ab-.Z0é"), rng.integers(1, 4))) + f"{number}.jpg" for number in range(200)}
    names = {name for name in names if not any(part.startswith(".") for part in name.split("/"))}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sorted(names, key=walk_order) == [os.path.relpath(path, tmp_path) for path in walk_images(tmp_path)]


@pytest.mark.slow
def test_a_run_on_an_archive_or_table_ends_with_the_checkpoint_of_the_run_on_the_folder(photos, tmp_path):
    readable_names(photos)  # nor has Arrow a way
    path = pack(photos, tmp_path / "packed", "tar of tars")
    runs = [(photos, 0), (path, 2)]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        rows = [{"bytes": Path(f).read_bytes(), "path": os.path.relpath(f, photos)} for f in list_images(photos)]
        pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "all.parquet", row_group_size=3)
        runs.append((tmp_path / "all.parquet", 2))
    ended = []
    for number, (data, workers) in enumerate(runs):
        folder = tmp_path / f"run{number}"
        done = subprocess.run(
            [sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
             "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", "config.LOSS.pirl_loss.negatives=per_image",
             "config.LOSS.pirl_loss.num_negatives=4", "config.OPTIMIZER.num_epochs=2",
             "config.DISTRIBUTED.NUM_PROC_PER_NODE=1", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=3",
             f"config.DATA.NUM_DATALOADER_WORKERS={workers}", f"config.DATA.TRAIN.DATA_PATHS=[{data}]",
             f"config.CHECKPOINT.DIR={folder}"],
            capture_output=True, text=True, timeout=200, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        ended.append(load_checkpoint(folder / "model_final_checkpoint_phase1.torch"))
    assert all(same(ended[0], other) for other in ended[1:])
