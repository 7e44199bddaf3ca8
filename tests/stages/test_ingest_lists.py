"""Lists of paths as ingest.source: how paths may be written, and what is no list of paths."""

from __future__ import annotations

import unicodedata
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from ingest_sources import manifest, run, save_pictures

from dreamteacher.data import names
from dreamteacher.data.places import locate
from dreamteacher.errors import UserError


def names_read(source: Path, out: Path, **settings: Any) -> list[str]:
    run(source, out, **settings)
    return [row["path"] for row in manifest(out)]


def test_paths_in_quotes_and_names_that_begin_with_a_number_sign_are_read(tmp_path: Path) -> None:
    save_pictures(tmp_path, "#1.png", "my pictures/2.png", "3.png")
    (tmp_path / "list.txt").write_text("# of Monday\n#1.png\n\"my pictures/2.png\"\n'3.png'\n#3.png\n")
    assert names_read(tmp_path / "list.txt", tmp_path / "out") == ["#1.png", "3.png", "my pictures/2.png"]


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_written_either_way(on_disk: str, in_list: str, tmp_path: Path) -> None:
    there, listed = (unicodedata.normalize(form, "é.png") for form in (on_disk, in_list))
    save_pictures(tmp_path, there, "b.png")
    (tmp_path / "list.txt").write_text(f"{listed}\nb.png\n", encoding="utf-8")
    assert names_read(tmp_path / "list.txt", tmp_path / "out") == ["b.png", there]


@pytest.mark.parametrize(
    "lines", ["pictures/1.png 0\npictures/2.png 1\n", "1.png\n2.png\n", "pictures\n", "path,label\npictures/1.png,cat\n"]
)
def test_a_list_that_names_no_file_is_refused_with_what_a_line_is(lines: str, tmp_path: Path) -> None:
    save_pictures(tmp_path, "pictures/1.png", "pictures/2.png")
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(
        UserError,
        match=r"names a file that exists, such as .*; make .* and write one path on each line, absolute or from .*, and nothing else",
    ):
        run(tmp_path / "list.txt", tmp_path / "out")


def test_missing_files_at_the_start_of_a_list_cost_only_their_lines(tmp_path: Path) -> None:
    save_pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "list.txt").write_text("".join(f"gone/{i}.png\n" for i in range(30)) + "1.png\n2.png\n")
    assert names_read(tmp_path / "list.txt", tmp_path / "out", max_bad_fraction=1.0) == ["1.png", "2.png"]


def test_ascii_lines_are_not_looked_up_before_the_pictures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of 10^7 lines on a network disk would take an hour."""
    (tmp_path / "list.txt").write_text("# pictures\n/data/a/1.png\n/data/b/2.png\n")
    monkeypatch.setattr(names.os.path, "lexists", lambda path: "#" not in str(path) and pytest.fail(f"{path} is looked up"))
    assert [each.name for each in islice(names.read_list(tmp_path / "list.txt"), 2)] == ["/data/a/1.png", "/data/b/2.png"]


def test_folders_among_the_files_of_a_list_are_named(tmp_path: Path) -> None:
    save_pictures(tmp_path, *(f"{i}.png" for i in range(30)), "more/1.png")
    (tmp_path / "list.txt").write_text("".join(f"{i}.png\n" for i in range(30)) + "more\n")
    with pytest.raises(UserError, match="more: cannot be read: Is a directory"):
        run(tmp_path / "list.txt", tmp_path / "out", max_bad_fraction=0.0)


def test_an_empty_source_is_not_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.source is empty; name a folder"):
        locate("")
    with pytest.raises(UserError, match=r"ingest\.source is empty"):
        run("", tmp_path / "out")
