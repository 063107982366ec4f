"""Images per second that one core reads, in random order, from a folder, archives and tables; a million's index.

Tables only if pyarrow is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import random
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from input_pipeline import make_photos
from measuring import alternate, machine, print_table, write_json

from pirl_plugin.data import archives
from pirl_plugin.data.archive_index import Member, entries_dtype
from pirl_plugin.data.image_files import list_images, load_pixels
from pirl_plugin.training.progress import resident_bytes

MILLION = 1_281_167
PIECES = 20


def pack(photos: Path, target: Path) -> dict[str, Path]:
    """The same photos in every supported archive format."""
    forms = {"folder": photos, "tar": target / "all.tar", "tar of tars": target / "nested.tar",
             "zip, stored": target / "stored.zip", "zip, deflated": target / "deflated.zip"}  # fmt: skip
    with tarfile.open(forms["tar"], "w") as made:
        made.add(photos, ".")
    with tarfile.open(forms["tar of tars"], "w") as made:
        for folder in sorted(photos.iterdir()):
            with tarfile.open(target / "inner.tar", "w") as inner:
                inner.add(folder, ".")
            made.add(target / "inner.tar", f"{folder.name}.tar")
    for name, method in (("zip, stored", zipfile.ZIP_STORED), ("zip, deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(forms[name], "w", method) as made:
            for file in list_images(photos):
                made.write(file, os.path.relpath(file, photos))
    if importlib.util.find_spec("pyarrow"):
        forms |= write_tables(photos, target)
    return forms


def write_tables(photos: Path, target: Path) -> dict[str, Path]:
    """As `datasets` writes them: saved, Parquet of today (images uncompressed) and of before (100 images a group)."""
    import pyarrow
    from pyarrow import parquet

    forms = {"saved by datasets": target / "saved", "Parquet, images uncompressed": target / "uncompressed.parquet",
             "Parquet, compressed": target / "compressed.parquet"}  # fmt: skip
    table = pyarrow.table({"image": [{"bytes": Path(f).read_bytes(), "path": f} for f in list_images(photos)]})
    parquet.write_table(table, forms["Parquet, images uncompressed"], compression="none", use_dictionary=False)
    parquet.write_table(table, forms["Parquet, compressed"], row_group_size=100)
    forms["saved by datasets"].mkdir()
    with pyarrow.ipc.new_stream(forms["saved by datasets"] / "data.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    (forms["saved by datasets"] / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return forms


def in_turns(files: list[str]) -> Callable[[], None]:
    """Reads a piece of the files, each time the next: what slows the machine for a second then meets all forms."""
    pieces = itertools.cycle(np.array_split(np.array(files), PIECES))

    def read() -> None:
        for file in next(pieces).tolist():
            load_pixels(file)

    return read


def index_of_a_million(folder: Path) -> dict[str, float]:
    """Open a tar's index with ImageNet's names: bytes on disk, private memory, microseconds to find a name."""
    names = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number:07d}.JPEG".encode() for number in range(MILLION)]
    entries = np.zeros(MILLION, entries_dtype(max(map(len, names))))
    entries["name"] = sorted(names)
    entries["packed"], entries["by_name"] = Member(b"", 0, 0).packed, np.arange(MILLION)
    np.save(folder / "index.npy", entries)
    chosen = [names[place] for place in np.random.default_rng(0).integers(0, MILLION, 2000)]
    del entries, names
    before = resident_bytes()
    with mock.patch.object(archives, "index_of", return_value=np.load(folder / "index.npy", mmap_mode="r")):
        archive = archives.Archive(str(folder / "all.tar"), 0, 0)
    seconds = []
    for name in chosen:
        began = time.perf_counter()
        assert archive.place(name) is not None
        seconds.append(time.perf_counter() - began)
    return {
        "megabytes": (folder / "index.npy").stat().st_size / 1e6,
        "resident_megabytes": (resident_bytes() - before) / 1e6,
        "microseconds_to_find": 1e6 * statistics.median(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/archives.json"))
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        photos = Path(temporary, "photos")
        make_photos(photos / "all", options.photos)
        for number, file in enumerate(sorted((photos / "all").iterdir())):
            (photos / f"n{number % 10}").mkdir(exist_ok=True)
            file.rename(photos / f"n{number % 10}" / file.name)
        (photos / "all").rmdir()
        forms = pack(photos, Path(temporary))
        files = {name: list_images(path) for name, path in forms.items()}
        for names in files.values():
            random.Random(0).shuffle(names)
        if "Parquet, compressed" in files:
            files["Parquet, compressed, in order"] = list_images(forms["Parquet, compressed"])
        seconds = alternate({name: in_turns(names) for name, names in files.items()}, options.repeats * PIECES, PIECES)
        speeds = {name: options.photos / PIECES / statistics.median(values) for name, values in seconds.items()}
        ratios = {
            name: statistics.median(folder / form for folder, form in zip(seconds["folder"], values, strict=True))
            for name, values in seconds.items()
        }
        rows = [["form", "images/s per core", "of the folder's"]]
        rows += [[name, f"{speed:.0f}", f"{ratios[name]:.3f}"] for name, speed in speeds.items()]
        print_table(f"{options.photos} JPEGs of 500 x 375, fully decoded, in random order, warm cache", rows)
        million = index_of_a_million(Path(temporary))
        numbers = ", ".join(f"{key} {value:.1f}" for key, value in million.items())
        print(f"An index of {MILLION:,} images: {numbers}")
        write_json(
            options.output, {"images_per_second": speeds, "of_the_folder": ratios, "index_of_a_million": million}
        )


if __name__ == "__main__":
    main()
