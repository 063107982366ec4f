"""The list of a large folder is kept, and never when it no longer holds."""

import os
import time
from pathlib import Path

import pytest

from pirl_plugin.data import listing_cache
from pirl_plugin.data.image_files import list_images, walk_images


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of eight names that changed long ago, and a cache of its own."""
    monkeypatch.setattr(listing_cache, "MANY", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    for name in ("b/1.jpg", "b/2.jpg", "a/deep/3.jpg", "a/4.jpg", "5.jpg", "b/\udce9.jpg", "b/x\ny.jpg", "b/no.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    """As if all that happened to it happened a minute earlier than before."""
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        when = path.stat().st_mtime - 60
        os.utime(path, (when, when))


def walks(monkeypatch) -> list[str]:
    walked, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top, **more: walked.append(top) or walk(top, **more))
    return walked


def test_a_large_folder_is_walked_once_and_its_list_is_the_same(photos, monkeypatch):
    walked = walks(monkeypatch)
    first = list_images(photos)
    assert len(first) == 7 and walked == [str(photos)]
    assert list_images(photos) == first and list_images(f"{photos}/") == [
        f"{photos}/" + os.path.relpath(path, photos) for path in first
    ]
    assert len(walked) == 1
    link = photos.parent / "link"
    link.symlink_to(photos)
    assert [os.path.relpath(path, link) for path in list_images(link)] == [os.path.relpath(p, photos) for p in first]
    assert len(walked) == 1


@pytest.mark.parametrize("change", ["add", "remove", "rename", "replace a folder", "in a linked folder"])
def test_a_change_anywhere_in_it_is_seen(photos, change, monkeypatch):
    outside = photos.parent / "outside"
    outside.mkdir()
    (outside / "9.jpg").touch()
    settle(outside)
    (photos / "linked").symlink_to(outside)
    settle(photos)
    before = list_images(photos)
    walked = walks(monkeypatch)
    assert list_images(photos) == before and not walked
    deep = photos / "a" / "deep"
    if change == "add":
        (deep / "new.jpg").touch()
    elif change == "remove":
        (deep / "3.jpg").unlink()
    elif change == "rename":
        (deep / "3.jpg").rename(deep / "0.jpg")
    elif change == "replace a folder":
        (photos / "b").rename(photos.parent / "old")
        (photos / "b").mkdir()
    else:
        (outside / "8.jpg").touch()
    found = list_images(photos)
    assert found != before and len(walked) == 1
    walked.clear()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "nowhere"))
    assert found == list(walk_images(photos))


def test_a_folder_that_is_still_being_filled_is_not_remembered(photos, monkeypatch):
    (photos / "b" / "new.jpg").touch()  # just now
    walked = walks(monkeypatch)
    assert len(list_images(photos)) == len(list_images(photos)) == 8 and len(walked) == 2


def test_small_folders_are_not_kept_and_a_torn_list_is_none(photos, monkeypatch):
    list_images(photos / "b")
    assert not (photos.parent / "cache").exists()
    first = list_images(photos)
    (kept,) = (photos.parent / "cache" / "pirl_plugin").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert list_images(photos) == first
    kept.write_bytes(b"")
    assert list_images(photos) == first


def test_a_cache_that_cannot_be_written_does_no_harm(photos, monkeypatch):
    (photos.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "file"))
    assert list_images(photos) == list_images(photos)


@pytest.mark.slow
def test_a_list_of_a_million_names_comes_within_three_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number:07d}.JPEG" for number in range(1_281_167)]
    for name in {os.path.dirname(name) for name in names}:
        (tmp_path / "photos" / name).mkdir(parents=True)
    settle(tmp_path / "photos")
    folders = {"": listing_cache.changed(str(tmp_path / "photos"))}
    folders.update({path.name: listing_cache.changed(str(path)) for path in (tmp_path / "photos").iterdir()})
    listing_cache.write(str(tmp_path / "photos"), sorted(names), folders, time.time())
    began = time.monotonic()
    assert len(list_images(tmp_path / "photos")) == 1_281_167
    seconds = time.monotonic() - began
    print(f"1,281,167 names from the kept list in {seconds:.2f} s")
    assert seconds < 10  # of a busy machine
