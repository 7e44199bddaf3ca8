"""What `dreamteacher init` finds out about a source of pictures."""

import subprocess
from pathlib import Path

import pytest
from project_pictures import classification, draw, segmentation, unlabelled

from dreamteacher import cli
from dreamteacher.project import create, survey


def test_the_layout_that_was_understood_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    segmentation(tmp_path / "pictures")
    cli.main(["init", "mine", "--source", "pictures"])
    output = capsys.readouterr().out
    assert "pictures: 12 in pictures\n" in output
    assert "short side 128 to 128 px, median 128 px" in output
    assert "task: segmentation, 2 classes: road, car" in output
    assert "labels: 8 pictures, by masks (such as masks/train/0.png of images/train/0.png)" in output
    assert "validation: the source's own, 6 pictures" in output
    assert "machine: 2 CPU cores, 8 GB, fp32" in output


def test_files_that_are_left_out_are_listed(tmp_path: Path) -> None:
    pictures = segmentation(tmp_path / "pictures")
    draw(pictures / "images/test/0.png")
    (pictures / "notes.md").touch()
    lines = survey.survey(str(pictures)).lines()
    assert "test split: 1 pictures, which are left out" in lines
    assert "files that are no pictures: 1 .md (notes.md)" in lines
    boxes = unlabelled(tmp_path / "boxes")
    (boxes / "0.xml").touch()
    (line,) = (line for line in survey.survey(str(boxes)).lines() if "form that is not read" in line)
    assert line.startswith("may be labels in a form that is not read: 1 .xml (0.xml); labels are read from masks")


def test_shards_that_were_read_in_part_may_have_labels(tmp_path: Path) -> None:
    pictures = unlabelled(tmp_path / "pictures")
    (pictures / "4.cls").write_text("cat")
    subprocess.run(["tar", "-C", pictures, "-cf", tmp_path / "train.tar", "0.jpg", "4.jpg", "4.cls"], check=True)
    part, whole = (survey.survey(str(tmp_path / "train.tar"), seconds) for seconds in (0, 20))
    assert (part.complete, part.labels, part.task) == (False, None, None)
    assert (whole.complete, whole.labels, whole.task) == (True, "shards", "classification")


def test_a_huge_source_is_sampled_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = classification(tmp_path / "pictures", 20)
    for i in range(1000):
        (pictures / f"cat/empty{i}.jpg").touch()
    monkeypatch.setattr(survey, "_examine", lambda *_: pytest.fail("all of it would be read"))
    found = survey.survey(str(pictures), seconds=0)
    assert (found.pictures, found.complete, found.labels) == (1000, False, None)
    assert found.short_side == 32
    assert found.lines()[0] == f"pictures: more than 1,000 in {pictures}"
    assert "dvc repro ingest" in create._next(found)[0], "there may be labels"


def test_a_large_source_is_examined_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = classification(tmp_path / "pictures")
    found = survey.survey(str(pictures), seconds=0)
    assert (found.pictures, found.complete, found.task) == (1, False, "classification")
    assert found.classes == ["cat", "dog", "owl"]


def test_a_url_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    pictures = classification(tmp_path / "pictures")
    fsspec.filesystem("memory").put(f"{pictures}/", "/bucket/pictures/", recursive=True)
    found = survey.survey("memory://bucket/pictures")
    assert (found.pictures, found.labelled, found.task) == (15, 15, "classification")
    assert create._place(Path("mine"), "memory://bucket/pictures") == "memory://bucket/pictures"
    for i in range(1000):
        fsspec.filesystem("memory").pipe(f"/bucket/pictures/cat/empty{i}.jpg", b"")
    found = survey.survey("memory://bucket/pictures", seconds=0)
    assert (found.complete, found.labels, found.short_side) == (False, None, 32)
