import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from pirl_plugin.commands.__main__ import main as pirl
from pirl_plugin.data.image_files import list_images
from pirl_plugin.data.subsets import class_balanced_subset, sample_images
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write_list(path, names):
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_a_sample_depends_on_names_and_seed_alone_and_smaller_ones_are_parts_of_larger_ones(tmp_path):
    names = [f"{n // 50}/{n}.jpg" for n in range(1000)]
    first = write_list(tmp_path / "a.txt", names)
    second = write_list(tmp_path / "b.txt", [*reversed(names), "3/150.jpg"])  # another order, a name twice
    sample = sample_images(first, 100, seed=5, progress=False)
    assert sample == sample_images(second, 100, seed=5, progress=False)
    assert len(set(sample)) == 100 and sample == sorted(sample)
    assert set(sample_images(first, 30, seed=5, progress=False)) < set(sample)
    assert sample != sample_images(first, 100, seed=6, progress=False)
    assert sample_images(first, 1000, progress=False) == sorted(str(tmp_path / name) for name in names)


def test_every_image_is_as_likely_as_any_other(tmp_path):
    source = write_list(tmp_path / "a.txt", [f"{n}.jpg" for n in range(40)])
    counts = np.zeros(40)
    for seed in range(600):
        for path in sample_images(source, 8, seed, progress=False):
            counts[int(Path(path).stem)] += 1
    assert chisquare(counts).pvalue > 1e-3


def test_the_script_writes_a_list_that_the_data_source_reads(photo_folder, tmp_path):
    command = [sys.executable, ROOT / "extra_scripts" / "sample_images.py", photo_folder, "--count", "10"]
    done = subprocess.run([*command, "--output", tmp_path / "ten.txt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "10 of the images" in done.stdout
    listed = list_images(tmp_path / "ten.txt")
    assert len(listed) == 10 and set(listed) <= set(list_images(photo_folder))
    done = subprocess.run([*command[:-1], "100", "--output", tmp_path / "x.txt"], capture_output=True, text=True)
    assert done.returncode == 1 and "has 48 different images, fewer than the 100" in done.stderr
    done = subprocess.run([*command, "--output", tmp_path / "x.csv"], capture_output=True, text=True)
    assert done.returncode == 1 and "it must end in .txt" in done.stderr


def test_names_that_are_not_utf8_are_sampled_like_others(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"1.jpg\n\xff.jpg\n")
    sampled = sample_images(tmp_path / "b.txt", 2, progress=False)
    assert [os.path.basename(os.fsencode(path)) for path in sampled] == [b"1.jpg", b"\xff.jpg"]


def test_a_list_is_not_sampled_over_itself_and_an_archive_is_no_folder_of_classes(photo_folder, tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"{file}\n" for file in list_images(photo_folder)))
    with pytest.raises(SystemExit) as end:
        pirl(["sample-images", str(tmp_path / "all.txt"), "--count", "2", "--output", str(tmp_path / "all.txt")])
    assert "is the same file as" in end.value.code and len(list_images(tmp_path / "all.txt")) == 48
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photo_folder, "photos")
    with pytest.raises(ConfigError, match=r"a.tar is not a folder; give one with a sub-folder per class"):
        class_balanced_subset(tmp_path / "a.tar", 50)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There are no images at"):
        sample_images(tmp_path / "no", 1, progress=False)
