import os

import numpy as np
import pytest
from PIL import Image

from pirl_plugin.data.file_lists import printable, read_list, write_list
from pirl_plugin.data.image_files import check_list, list_images
from pirl_plugin.validation import ConfigError

NAMES = [
    "plain.jpg", "two words.jpg", " blank at both ends .jpg ", 'quo"ted".jpg', '"all quoted"', "line\nbreak.jpg",
    "carriage\rreturn.jpg", "line\u2028separator.jpg", "next\x85line.jpg", "tab\tand\\backslash.jpg", "zażółć 写真.jpg",
    os.fsdecode(b"latin1-\xe9.jpg"), os.fsdecode(b"\xe9\n.jpg"), "\ufeffmark.jpg", "\u2028",
    "# hash.jpg", "'single'.jpg",
]  # fmt: skip


def test_any_name_comes_back_from_a_list_and_each_has_one_line(tmp_path):
    write_list(tmp_path / "list.txt", NAMES)
    assert list(read_list(tmp_path / "list.txt")) == NAMES
    assert (tmp_path / "list.txt").read_bytes().count(b"\n") == len(NAMES)
    assert os.listdir(tmp_path) == ["list.txt"]


def test_files_of_any_name_are_listed_the_same_by_folder_and_by_list(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [name if name.endswith(".jpg") else f"{name}.jpg" for name in NAMES]
    for name in names:
        Image.new("RGB", (8, 8)).save(os.fsencode(folder / name), "JPEG")
    files = list_images(folder)
    assert sorted(map(os.path.basename, files)) == sorted(names)
    write_list(folder / "list.txt", names)
    assert list_images(folder / "list.txt") == [os.path.join(folder, name) for name in names]
    check_list(folder / "list.txt", list_images(folder / "list.txt"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),  # an editor's mark and line ends
        (b"a.jpg\n\n  \n\tb.jpg", ["a.jpg", "b.jpg"]),
        (b'"a b.jpg"\n"\\u00e9.jpg"\n', ["a b.jpg", "\u00e9.jpg"]),
    ],
)
def test_what_editors_and_other_programs_write_is_understood(tmp_path, content, expected):
    (tmp_path / "list.txt").write_bytes(content)
    assert list(read_list(tmp_path / "list.txt")) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a.jpg\n".encode("utf-16"), "it is in UTF-16; save it as UTF-8"),
        (b"a\0.jpg\n", "line 1 has a zero byte"),
        (b'a.jpg\n"b.jpg\n', "Line 2 .* is not a quoted path"),
    ],
)
def test_what_is_no_list_is_refused_by_its_line(tmp_path, content, sentence):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        list(read_list(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{} 3", "its lines end in a label .'3'.: give one path a line"),
        ("'{}'", "write paths without single quotes"),
        ("nowhere/{}", "none of the 1 that were tried is there, the first .*nowhere/a.jpg. Relative"),
    ],
)
def test_a_list_of_which_no_file_is_there_is_refused_with_what_is_wrong(tmp_path, line, sentence):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    listed = tmp_path / "list.txt"
    for name in ("a.jpg",) if line.startswith("nowhere") else ("a.jpg", tmp_path / "a.jpg"):
        listed.write_text(line.format(name) + "\n")
        with pytest.raises(ConfigError, match=sentence):
            check_list(listed, list_images(listed))


def test_one_file_that_is_there_among_those_tried_is_enough(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "last.jpg")
    files = [*(f"gone{number}.jpg" for number in range(1000)), "last.jpg"]
    write_list(tmp_path / "list.txt", files)
    check_list(tmp_path / "list.txt", list_images(tmp_path / "list.txt"))


def test_an_array_of_something_else_than_paths_is_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.arange(3))
    with pytest.raises(ConfigError, match=r"an array of int64 of shape .3,.; it needs a row of paths"):
        list_images(tmp_path / "numbers.npy")


def test_a_name_is_shown_on_one_line_whatever_it_holds():
    shown = [printable(name) for name in NAMES]
    assert all(text.isprintable() for text in shown) and shown[0] == NAMES[0] and "写真" in shown[10]
    assert printable("a\nb") == "a\\nb"
