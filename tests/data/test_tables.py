"""Tables hold the images of the folder that they were made of: the same names, order, pixels and labels."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from pirl_plugin.data import archives, table_index, tables
from pirl_plugin.data.class_folders import class_folders, labelled_class_folders
from pirl_plugin.data.image_files import (
    ImageFiles,
    files_identity,
    list_images,
    load_pixels,
    load_rgb,
)
from pirl_plugin.evaluation.beside_untrained import labelled_split
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.launch.config_check import _check_folder
from pirl_plugin.network.embed_folder import embed_folder
from pirl_plugin.validation import ConfigError, MissingPackageError

pa = pytest.importorskip("pyarrow", reason="tables are read with pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="tables are read with pyarrow")

KINDS = ["saved", "parquet", "compressed", "folder", "split"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def photos(tmp_path, make_photo) -> Path:
    """Eleven images of three classes, JPEG and PNG, two of which have the same bytes."""
    folder = tmp_path / "photos"
    for number in range(11):
        path = folder / f"n{number % 3}" / (f"{number:02d}.png" if number == 4 else f"{number:02d}é.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        make_photo(min(number, 9), 40 + min(number, 9), 30).save(path)
    return folder


def rows_of(folder: Path, **columns: list) -> "pa.Table":
    """A table of a folder's images as `datasets` has it: image and label, and what it says of them."""
    files = [Path(file) for file in list_images(folder)]
    classes = sorted({file.parent.name for file in files})
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [classes.index(file.parent.name) for file in files]
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    columns = {"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64()), **columns}
    return told(pa.table({name: column for name, column in columns.items() if column is not None}), features)


def told(rows: "pa.Table", features: dict) -> "pa.Table":
    return rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def features_in(rows: "pa.Table") -> dict:
    return json.loads((rows.schema.metadata or {}).get(b"huggingface", b'{"info": {"features": {}}}'))["info"][
        "features"
    ]


def save(rows: "pa.Table", folder: Path, compression: str | None = None) -> Path:
    """As save_to_disk does: two streams, of batches of three rows."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (rows.slice(0, 6), rows.slice(6)), strict=True):
        with pa.ipc.new_stream(
            folder / name, rows.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
        ) as to:
            to.write_batch(pa.RecordBatch.from_pylist([], rows.schema))  # as where a shard ends
            for first in range(0, len(part), 3):
                to.write_table(part.slice(first, 3).combine_chunks())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features_in(rows)}))
    return folder


def write(rows: "pa.Table", target: Path, kind: str) -> Path:
    """The rows in one of KINDS; returns what DATA_PATHS names."""
    if kind == "saved":
        return save(rows, target / "all")
    own = {"use_dictionary": ["label"], "row_group_size": 4, "compression": {"image.bytes": "NONE", "label": "snappy"}}
    if kind in ("parquet", "compressed"):
        target.mkdir()
        pq.write_table(rows, target / "all.parquet", **({"row_group_size": 4} if kind == "compressed" else own))
        return target / "all.parquet"
    (target / "all" / "data").mkdir(parents=True)
    for number, part in enumerate((rows.slice(0, 7), rows.slice(7))):
        pq.write_table(part, target / "all" / "data" / f"train-{number:05d}-of-00002.parquet", **own)
    (target / "all" / "README.md").write_text("a data set")
    return target / "all" if kind == "folder" else target / "all" / "data" / "train"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_has_the_names_order_identity_pixels_and_classes_of_the_folder(photos, tmp_path, kind):
    path = write(rows_of(photos), tmp_path / "written", kind)
    expected, found = list_images(photos), list_images(path)
    assert [os.path.relpath(file, path) for file in found] == [os.path.relpath(file, photos) for file in expected]
    assert len(found) == 11 and files_identity(found) == files_identity(expected)
    for real, packed in zip(expected, found, strict=True):
        assert archives.is_there(packed) and not os.path.exists(packed)
        assert archives.read_file(packed) == Path(real).read_bytes()
        assert torch.equal(load_pixels(packed), load_pixels(real))
        assert load_rgb(packed).tobytes() == load_rgb(real).tobytes()
    assert [folder.name for folder in class_folders(path)] == ["n0", "n1", "n2"]
    assert list_images(class_folders(path)[1]) == [file for file in found if "/n1/" in file]
    files, labels = labelled_images(path)
    assert [os.path.relpath(file, path) for file in files] == [
        os.path.relpath(file, photos) for file in labelled_images(photos)[0]
    ]
    assert labels.tolist() == labelled_images(photos)[1].tolist()
    _check_folder("DATA.TRAIN.DATA_PATHS", str(path), "image_files")
    with pytest.raises(ConfigError, match="a table, which disk_folder does not read: use DATA_SOURCES"):
        _check_folder("DATA.TRAIN.DATA_PATHS", str(path), "disk_folder")


def test_bytes_in_one_piece_are_read_without_pyarrow(photos, tmp_path, monkeypatch):
    paths = [write(rows_of(photos), tmp_path / kind, kind) for kind in ("saved", "parquet")]
    files = [list_images(path) for path in paths]
    tables.opened.cache_clear()
    monkeypatch.setattr(tables, "entries_of", lambda *given: pytest.fail("listed again"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for some in files:
        assert [archives.read_file(f) for f in some] == [Path(f).read_bytes() for f in list_images(photos)]


def source(path: Path) -> ImageFiles:
    data = {"TRAIN": {"TRANSFORMS": [], "DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 2}}
    return ImageFiles({"DATA": data}, "image_files", str(path), "TRAIN", "photos")


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_source_gives_the_same_images_and_labels_from_a_table(photos, tmp_path, kind):
    folder, table = source(photos), source(write(rows_of(photos), tmp_path / "written", kind))
    assert table.get_labels() == folder.get_labels() == [0] * 4 + [1] * 4 + [2] * 3
    for number in range(len(folder)):
        (one, valid), (other, also) = folder[number], table[number]
        assert valid and also and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("kind", ["saved", "compressed"])
def test_workers_read_the_same_table_at_once(photos, tmp_path, kind, method):
    files = list_images(write(rows_of(photos), tmp_path / "written", kind))
    load_pixels(files[0])  # so that forked workers have it open, or unpacked
    loader = DataLoader(
        files * 20, batch_size=None, collate_fn=load_pixels, num_workers=2, multiprocessing_context=method
    )
    for found, real in zip(loader, list_images(photos) * 20, strict=True):
        assert torch.equal(found, load_pixels(real))


def test_few_row_groups_are_kept_unpacked(photos, tmp_path, monkeypatch):
    files = list_images(write(rows_of(photos), tmp_path / "written", "compressed"))
    monkeypatch.setattr(tables._groups, "kept", type(tables._groups.kept)())
    opened = []
    unpack = tables.images_of
    monkeypatch.setattr(tables, "images_of", lambda *given: opened.append(given[1]) or unpack(*given))
    for file in files:
        archives.read_file(file)
    assert opened == [0, 1, 2]  # each once, in order
    archives.read_file(files[0])
    assert opened == [0, 1, 2]
    monkeypatch.setattr(tables, "LARGEST_GROUP", 1)  # byte: one group at a time
    archives.read_file(files[4])
    archives.read_file(files[0])
    assert opened == [0, 1, 2, 0] and len(tables._groups.kept) == 1


def test_lists_name_images_and_embedding_reads_a_table(photos, tmp_path):
    path = write(rows_of(photos), tmp_path / "written", "saved")
    (path.parent / "list.txt").write_text("all/n2/05é.jpg\nall/n1/04.png\n")
    listed = list_images(path.parent / "list.txt")
    assert [load_rgb(file).size for file in listed] == [(45, 30), (44, 30)]
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    for target, images in (("one.npy", photos), ("other.npy", path)):
        assert embed_folder(weights, images, tmp_path / target, size=32)[0] == 11
    assert (np.load(tmp_path / "one.npy") == np.load(tmp_path / "other.npy")).all()


def test_the_end_of_a_run_votes_on_the_same_images_of_a_table(tmp_path, make_photo):
    for number in range(24):
        path = tmp_path / "photos" / f"n{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_photo(number).save(path)
    path = write(rows_of(tmp_path / "photos"), tmp_path / "written", "saved")
    for (real, labels), (files, also) in zip(
        labelled_split(tmp_path / "photos", 100), labelled_split(path, 100), strict=True
    ):
        assert [Path(file).name for file in files] == [Path(file).name for file in real]
        assert labels.tolist() == also.tolist()


def test_images_without_names_of_their_own_have_the_number_of_their_row(photos, tmp_path):
    rows = rows_of(photos)
    plain = told(pa.table({"image": rows["image"].combine_chunks().field("bytes")}), {})
    images = rows["image"].to_pylist()
    alike = rows_of(photos, image=pa.array([{**image, "path": "image.jpg"} for image in images], IMAGE))
    nameless = rows_of(photos, image=pa.array([{**images[0], "path": None}, *images[1:]], IMAGE))
    leading_out = rows_of(photos, image=pa.array([{**images[0], "path": "../a.jpg"}, *images[1:]], IMAGE))
    numbered = [f"n0/{n:02d}" for n in range(4)] + [f"n1/{n:02d}" for n in range(4, 8)] + ["n2/08", "n2/09", "n2/10"]
    for name, table, expected in (
        ("plain", plain, [f"{number:02d}" for number in range(11)]),
        ("alike", alike, numbered),
        ("nameless", nameless, numbered),
        ("leading out", leading_out, numbered),
    ):
        for kind in ("saved", "parquet"):
            path = write(table, tmp_path / f"{name} {kind}", kind)
            found = list_images(path)
            assert [os.path.relpath(file, path) for file in found] == expected
            assert [archives.read_file(f) for f in found] == [Path(f).read_bytes() for f in list_images(photos)]


def test_without_a_column_of_classes_paths_stand_as_they_are(photos, tmp_path):
    files = list_images(photos)
    images = [{"bytes": Path(file).read_bytes(), "path": os.path.relpath(file, photos)} for file in files]
    for name, image in (("relative", images), ("absolute", [{**i, "path": f"/x/{i['path']}"} for i in images])):
        path = write(pa.table({"photo": pa.array(image, IMAGE)}), tmp_path / name, "parquet")
        found = [os.path.relpath(file, path) for file in list_images(path)]
        assert found == [os.path.relpath(file, photos) if name == "relative" else Path(file).name for file in files]
    assert [folder.name for folder in class_folders(tmp_path / "relative" / "all.parquet")] == ["n0", "n1", "n2"]


def test_classes_are_folders_of_their_names_whatever_those_are(photos, tmp_path):
    names = ["b/c", "a%", "tench, Tinca tinca"]
    rows = told(rows_of(photos), {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}})
    path = write(rows, tmp_path / "written", "saved")
    assert [folder.name for folder in class_folders(path)] == ["a%25", "b%2Fc", "tench, Tinca tinca"]
    assert source(path).get_labels() == [1] * 4 + [0] * 4 + [2] * 3  # in the order of names, as folders have it
    assert len(list_images(class_folders(path)[1])) == 4


def test_the_index_is_written_once_and_anew_where_a_file_was_replaced(photos, tmp_path, monkeypatch):
    path = write(rows_of(photos), tmp_path / "written", "saved")
    before = list_images(path)
    (index,) = path.parent.glob(".all.table.*.npy")
    assert len(np.load(index, allow_pickle=False)) == 11
    monkeypatch.setattr(tables, "entries_of", lambda *given: pytest.fail("listed again"))
    tables.opened.cache_clear()
    assert list_images(path) == before
    monkeypatch.undo()
    shutil.rmtree(path)
    save(rows_of(photos).slice(1), path)
    with pytest.raises(OSError, match="replaced since it was listed"):
        archives.read_file(before[1])
    assert (
        list_images(path) == before[1:] and archives.read_file(before[1]) == Path(list_images(photos)[1]).read_bytes()
    )
    assert not index.exists() and len(list(path.parent.glob(".all.table.*.npy"))) == 1
    # Class names are beside the files.
    info = json.loads((path / "dataset_info.json").read_text())
    info["features"]["label"]["names"][0] = "cat"
    (path / "dataset_info.json").write_text(json.dumps(info))
    assert Path(list_images(path)[0]).parent.name == "cat"


def test_an_index_of_a_table_and_one_of_an_archive_of_the_name_leave_each_other(photos, tmp_path):
    path = write(rows_of(photos), tmp_path / "written", "saved")
    subprocess.run(["tar", "cf", f"{path}.tar", "-C", photos, "."], check=True)
    assert len(list_images(f"{path}.tar")) == len(list_images(path)) == 11
    assert len(list(path.parent.glob(".all.*.npy"))) == 2
    shutil.rmtree(path)
    save(rows_of(photos).slice(1), path)
    assert len(list_images(path)) == 10 and len(list(path.parent.glob(".all.tar.*.npy"))) == 1


def test_a_file_cut_after_it_was_listed_is_an_unreadable_image(photos, tmp_path):
    path = write(rows_of(photos), tmp_path / "written", "parquet")
    file = list_images(path)[-1]
    table, place = archives.find(file)
    state = path.stat()
    os.truncate(path, int(table.entries["offset"][place]) + 10)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(OSError, match="replaced"):
        archives.read_file(file)
    table.files = type(table.files)(table.files.paths, ((path.stat().st_size, state.st_mtime_ns),), False, {})
    with pytest.raises(OSError, match="ends before"):
        table.read(place)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        table.read(place)


def test_few_images_without_bytes_are_unreadable_and_many_are_refused(photos, tmp_path, caplog):
    images = rows_of(photos)["image"].to_pylist()
    for gap, missing in (("a path alone", {"bytes": None, "path": "x.jpg"}), ("null", None)):
        for kind in KINDS[:3]:
            few = rows_of(photos, image=pa.array([*images[:2], missing, *images[3:]], IMAGE))
            path = write(few, tmp_path / f"{gap} {kind}", kind)
            caplog.clear()
            files = list_images(path)
            assert "1 of the 11 images" in caplog.text and len(files) == 11
            with pytest.raises(OSError, match="no bytes of an image"):
                archives.read_file(files[2])
            assert [valid for _, valid in (source(path)[n] for n in range(11))] == [n != 2 for n in range(11)]
            many = rows_of(photos, image=pa.array([missing, missing, *images[2:]], IMAGE))
            with pytest.raises(ConfigError, match=r"^2 of the 11 images .* are not in it .*save it by save_to_disk"):
                list_images(write(many, tmp_path / f"many {gap} {kind}", kind))


def test_without_pyarrow_it_is_refused_in_a_sentence_with_the_command(photos, tmp_path, monkeypatch):
    paths = [write(rows_of(photos), tmp_path / kind, kind) for kind in ("saved", "folder")]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in paths:
        with pytest.raises(MissingPackageError, match=rf"^{re.escape(str(path))} .*: pip install pyarrow$"):
            list_images(path)


def refused(path: Path, *sentences: str) -> None:
    with pytest.raises(ConfigError, match=".*".join(sentences)) as error:
        list_images(path)
    assert "\n" not in str(error.value)


def test_columns_of_images_must_be_one(photos, tmp_path):
    rows, number = rows_of(photos), pa.array(range(11))
    two = told(rows.append_column("mask", rows["image"]), {name: {"_type": "Image"} for name in ("image", "mask")})
    none = told(rows.drop_columns(["image"]).append_column("text", number.cast("string")), {})
    wrong = told(pa.table({"image": number}), {"image": {"_type": "Image"}})
    for kind in ("saved", "parquet"):
        refused(write(two, tmp_path / f"two {kind}", kind), "several columns of images, image and mask")
        refused(write(none, tmp_path / f"none {kind}", kind), "no column of images", "label and text")
        refused(write(wrong, tmp_path / f"wrong {kind}", kind), "The column image", "is int64; images must be bytes")


def test_labels_need_one_column_of_classes_and_training_without_needs_none(photos, tmp_path):
    rows = rows_of(photos)
    plain = told(rows.rename_columns(["image", "text"]), {"image": {"_type": "Image"}})
    features = {**features_in(rows), "coarse": {"names": ["x", "y"], "_type": "ClassLabel"}}
    two = told(rows.append_column("coarse", pa.array([0] * 11)), features)
    some = rows_of(photos, label=pa.array([None, -1, *[0] * 5, *[1] * 4]))
    for name, table, sentence in (
        ("plain", plain, "no column of classes beside image .but text.: labels need one of type ClassLabel"),
        ("two", two, "several columns of classes, label and coarse: labels need one"),
        ("some", some, "have no class in the column label"),
    ):
        for kind in ("saved", "folder"):
            path = write(table, tmp_path / f"{name} {kind}", kind)
            data = source(path)
            assert len(data) == 11 and all(valid for _, valid in (data[number] for number in range(11)))
            with pytest.raises(ConfigError, match=sentence):
                data.get_labels()
            if name != "some":
                with pytest.raises(ConfigError, match=sentence):
                    labelled_class_folders(path)


def test_several_splits_are_refused_with_their_names(photos, tmp_path):
    rows = rows_of(photos)
    both = tmp_path / "both"
    for split in ("train", "test"):
        save(rows, both / split)
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    refused(both, "several splits", f"{both}/test, {both}/train")
    with pytest.raises(ConfigError, match="several splits"):
        labelled_class_folders(both)
    assert len(list_images(both / "train")) == 11
    hub = write(rows, tmp_path / "hub", "folder")
    pq.write_table(rows, hub / "data" / "test-00000-of-00001.parquet")
    refused(hub, "several splits", f"{hub}/data/test, {hub}/data/train")
    assert len(list_images(hub / "data" / "test")) == 11
    converted = tmp_path / "converted"
    for split in ("train", "validation"):
        (converted / "default" / split).mkdir(parents=True)
        pq.write_table(rows, converted / "default" / split / "0000.parquet")
    refused(converted, "several splits", f"{converted}/default/train, {converted}/default/validation")
    assert len(list_images(converted / "default" / "train")) == 11
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("train", "test"):
        pq.write_table(rows, flat / f"{name}.parquet")
    refused(flat, "several splits", f"{flat}/test.parquet, {flat}/train.parquet")
    # Words that only begin or end like a split's are none.
    many = tmp_path / "contest"
    many.mkdir()
    for name in ("b-trains", "a-latest"):
        pq.write_table(rows_of(photos), many / f"{name}.parquet")
    assert len(list_images(many)) == 22


def test_files_that_are_torn_missing_or_of_other_columns_are_refused(photos, tmp_path):
    rows = rows_of(photos)
    saved, again = (save(rows, tmp_path / name) for name in ("saved", "again"))
    stream = saved / "data-00001-of-00002.arrow"
    whole = stream.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 8):
        stream.write_bytes(whole[:length])
        refused(saved, re.escape(f"{stream} cannot be read to its end"), "copy it again")
    stream.unlink()
    refused(saved, "lacks its file", "data-00001-of-00002.arrow: copy the whole folder again")
    (again / "state.json").write_text('{"_data_files": [{"filename": "../saved/data-00000-of-00002.arrow"}]}')
    refused(again, "leads out of it")
    (again / "state.json").write_text('{"_data_files": [{"filename"')
    refused(again, "state.json cannot be read")
    (again / "state.json").write_text(
        '{"_data_files": [{"filename": "x"}], "_indices_data_files": [{"filename": "y"}]}'
    )
    refused(again, "list of the rows that count", "save it again")
    refused(save(rows, tmp_path / "packed", "zstd"), "is compressed: load it with datasets")

    parquet = write(rows, tmp_path / "one", "parquet")
    parquet.write_bytes(parquet.read_bytes()[:-100])
    refused(parquet, "cannot be read to its end")
    folder = write(rows, tmp_path / "two", "folder")
    last = folder / "data" / "train-00001-of-00002.parquet"
    pq.write_table(rows.rename_columns(["photo", "label"]).replace_schema_metadata(None), last)
    refused(folder, "has other columns than", "train-00000")
    last.unlink()
    refused(folder, "Of the 2 files", "1 are missing, the first number 1")
    for kind in ("saved", "parquet"):
        refused(write(rows.slice(0, 0), tmp_path / f"empty {kind}", kind), "holds no image")


def test_a_row_group_too_large_to_unpack_for_one_image_is_refused(photos, tmp_path, monkeypatch, caplog):
    path = write(rows_of(photos), tmp_path / "written", "compressed")
    known = pq.ParquetFile(path).metadata
    size = max(known.row_group(group).column(0).total_uncompressed_size for group in range(known.num_row_groups))
    monkeypatch.setattr(table_index, "LARGEST_GROUP", size - 1)
    refused(path, "row group with", "save_to_disk")
    monkeypatch.setattr(table_index, "LARGEST_GROUP", size)
    assert len(list_images(path)) == 11
    assert "is compressed: in random order, up to" in caplog.text


def test_class_names_that_no_folder_can_have_are_refused(photos, tmp_path):
    rows = told(rows_of(photos), {"image": {"_type": "Image"}, "label": {"names": ["..", "a"], "_type": "ClassLabel"}})
    refused(write(rows, tmp_path / "written", "saved"), "a class named '..', of which no folder can be")
    rows = told(rows, {"image": {"_type": "Image"}, "label": {"names": ["data", "a", "b"], "_type": "ClassLabel"}})
    refused(write(rows, tmp_path / "hub", "folder"), "has a folder data, and images of a class of that name")


def test_a_folder_of_images_stays_one_whatever_tables_lie_in_it(photos, tmp_path):
    expected = list_images(photos)
    pq.write_table(rows_of(photos).slice(0, 3), photos / "metadata.parquet")
    (photos / "state.json").write_text('{"step": 3}')
    assert list_images(photos) == expected
    assert [folder.name for folder in class_folders(photos)] == ["n0", "n1", "n2"]
    assert not tables.is_table(photos) and not tables.is_table(tmp_path / "nothing")


def test_what_datasets_itself_writes_is_read_alike(photos, tmp_path):
    datasets = pytest.importorskip("datasets", reason="tables are written with pyarrow alone in the other tests")
    cache = str(tmp_path / "cache")
    made = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=cache)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    saved.to_parquet(tmp_path / "all.parquet")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "both")
    expected = list_images(photos)
    for path in (tmp_path / "saved", tmp_path / "all.parquet", tmp_path / "both" / "test"):
        found = list_images(path)
        assert files_identity(found) == files_identity(expected)
        assert source(path).get_labels() == source(photos).get_labels()
        for real, packed, row in zip(expected, found, saved, strict=True):
            assert torch.equal(load_pixels(packed), load_pixels(real))
            assert load_rgb(packed).tobytes() == row["image"].convert("RGB").tobytes()
    assert (
        archives.find(list_images(tmp_path / "all.parquet")[3])[0].entries["group"] == table_index.IN_ONE_PIECE
    ).all()
    refused(tmp_path / "both", "several splits")
    made.to_parquet(tmp_path / "paths.parquet")  # of files beside
    refused(tmp_path / "paths.parquet", "11 of the 11 images", "are not in it")
