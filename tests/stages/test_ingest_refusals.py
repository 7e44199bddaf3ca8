"""Pictures that ingest leaves out (bad, duplicates, leaks), and sources that it refuses."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from ingest_sources import manifest, picture, reasons, report, run, save, save_pictures
from PIL import Image

from dreamteacher.errors import UserError


def test_unusable_files_are_quarantined_and_too_many_stop_the_stage(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(16):
        save(picture(i), source / f"{i:02}.png")
    (source / "empty.png").write_bytes(b"")
    (source / "text.jpg").write_text("sorry")
    (source / "half.png").write_bytes((source / "00.png").read_bytes()[:500])
    save(picture(30, (24, 8)), source / "small.png")
    save(picture(31, (300, 300)), source / "bomb.png")
    metrics = run(source, out, max_bad_fraction=0.3, max_pixels=80_000)
    assert (metrics["n_train"], metrics["n_quarantined"]) == (16, 5)
    assert set(reasons(out)) == {"empty.png", "text.jpg", "half.png", "small.png", "bomb.png"}
    assert reasons(out)["bomb.png"] == "too large: 300 x 300 is more than 80000 pixels"
    with pytest.raises(UserError, match=r"5 of 21 pictures cannot be used.*max_bad_fraction = 0.05: bomb.png: too large") as caught:
        run(source, tmp_path / "strict", max_pixels=80_000)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "strict").exists()


def test_a_link_to_nowhere_is_quarantined_and_a_pipe_passed_over(tmp_path):
    source = tmp_path / "in"
    for i in range(3):
        save(picture(i), source / f"{i}.png")
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(source / "pipe.png")
    assert run(source, tmp_path / "out", max_bad_fraction=0.5)["n_train"] == 3
    assert reasons(tmp_path / "out") == {"gone.png": "cannot be read: No such file or directory"}


def test_duplicates_are_dropped_and_validation_pictures_leave_train(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    same = save(picture(0), source / "train" / "a.png")
    (source / "train" / "b.png").write_bytes(same.read_bytes())  # the same file
    save(picture(0), source / "train" / "c.bmp")  # the same pixels
    save(picture(1), source / "train" / "d.png")
    save(picture(1), source / "val" / "z.bmp")  # comes after d.png by name, and yet d.png goes
    save(picture(2), source / "val" / "y.png")
    metrics = run(source, out)
    assert metrics == {"n_train": 1, "n_val": 2, "n_labelled": 0, "n_quarantined": 0, "n_duplicates": 2, "n_leaks": 1}
    assert {row["path"] for row in manifest(out)} == {"train/a.png", "val/z.bmp", "val/y.png"}
    assert report(out)["examples"] == {
        "duplicates": [{"path": f"train/{name}", "same_as": "train/a.png", "labelled": False} for name in ("b.png", "c.bmp")],
        "leaks": [{"path": "train/d.png", "same_as": "val/z.bmp", "labelled": False}],
        "near_copies": [],
    }


def test_pictures_that_become_equal_when_reduced_are_not_on_both_sides(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(12):
        save(Image.new("RGB", (100 + i, 100 + i), "black"), source / f"{i}.png")
        save(picture(i), source / f"other{i}.png")
    metrics = run(source, out, short_side=50, val_fraction=0.5)
    assert metrics["n_train"] + metrics["n_val"] == 13
    assert metrics["n_duplicates"] + metrics["n_leaks"] == 11


def test_the_validation_split_stays_when_data_is_added(tmp_path):
    source = tmp_path / "in"
    for i in range(60):
        save(picture(i), source / f"{i:02}.png")
    run(source, tmp_path / "before", val_fraction=0.3)
    before = {row["path"]: row["split"] for row in manifest(tmp_path / "before")}
    assert 8 <= Counter(before.values())["val"] <= 28
    for i in range(60, 90):
        save(picture(i), source / f"0{i}.bmp")
    run(source, tmp_path / "after", val_fraction=0.3, short_side=18)
    after = {row["path"]: row["split"] for row in manifest(tmp_path / "after")}
    assert {name: after[name] for name in before} == before


def test_results_do_not_lie_among_the_pictures(tmp_path):
    save_pictures(tmp_path / "in", "0.png", "1.png")
    with pytest.raises(UserError, match=r"in/data/set lies in .*in, among the pictures; name a folder outside"):
        run(tmp_path / "in", tmp_path / "in/data/set")
    assert sorted(path.name for path in (tmp_path / "in").rglob("*")) == ["0.png", "1.png"]


def test_nothing_to_train_on_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="is a picture; name the folder that it lies in"):
        run(save(picture(0), tmp_path / "one.png"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in"):
        run(tmp_path / "empty", tmp_path / "out")
    save(picture(0), tmp_path / "val_only" / "val" / "a.png")
    with pytest.raises(UserError, match="no picture is left to train on"):
        run(tmp_path / "val_only", tmp_path / "out")


def test_labels_that_could_not_be_measured_are_refused_before_anything_is_trained(tmp_path):
    source = tmp_path / "in"
    for i in range(40):
        save(picture(i), source / f"{i:02}.png")
    run(source, tmp_path / "first", val_fraction=0.5)
    splits = {row["path"]: row["split"] for row in manifest(tmp_path / "first")}
    for split, other, word in (("train", "val", "measured"), ("val", "train", "trained")):
        lines = [f"{name},{i % 2}\n" for i, name in enumerate(sorted(name for name in splits if splits[name] == split))]
        (source / "labels.csv").write_text("path,label\n" + "".join(lines))
        with pytest.raises(
            UserError, match=f"{len(lines)} labels, and none in {other}: nothing could be {word} by them; .*ingest.val_fraction"
        ):
            run(source, tmp_path / split, val_fraction=0.5)
    run(source, tmp_path / "no_labels", val_fraction=0.5, labels="none")


def test_pictures_of_kinds_that_are_not_read_cannot_be_used(tmp_path):
    for i in range(4):
        save(picture(i), tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "scan.DCM").write_bytes(b"DICM")
    run(tmp_path / "in", tmp_path / "out", max_bad_fraction=0.2)
    assert reasons(tmp_path / "out")["scan.DCM"].startswith("pictures of this kind (.dcm) are not read: ")
    with pytest.raises(UserError, match=r"1 of 5 pictures cannot be used, .*: scan.DCM: pictures of this kind"):
        run(tmp_path / "in", tmp_path / "strict")


def test_what_may_not_be_read_does_not_stop_the_stage(tmp_path, monkeypatch, capsys):
    """Root may read all, so that the refusal of the system is imitated."""
    for name in ("0.png", "1.png", "locked/2.png", "lost+found/3.png", "@eaDir/4.png/SYNO.jpg"):
        save(picture(len(name)), tmp_path / "in" / name)
    scandir, open_file = os.scandir, open

    def scan(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    def read(file, *args, **options):
        if str(file).endswith("1.png"):
            raise PermissionError(13, "Permission denied", file)
        return open_file(file, *args, **options)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr("builtins.open", read)
    assert run(tmp_path / "in", tmp_path / "out", max_bad_fraction=0.5)["n_train"] == 1
    monkeypatch.undo()
    assert reasons(tmp_path / "out") == {"1.png": "cannot be read: Permission denied"}
    assert report(tmp_path / "out")["folders_passed_over"] == {
        "system": {"count": 2, "example": "@eaDir"},
        "unreadable": {"count": 1, "example": "locked"},
    }
    assert "ingest: 1 folders were not entered, as they may not be read (such as locked)\n" in capsys.readouterr().err


def test_a_set_is_made_anew_when_what_it_was_made_of_has_changed(tmp_path):
    """Also where the source names it only: through a list or a link."""
    save(picture(0), tmp_path / "pictures" / "a.png")
    (tmp_path / "list.txt").write_text("pictures/a.png\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "all").symlink_to(tmp_path / "pictures")
    for i, source in enumerate((tmp_path / "list.txt", tmp_path / "linked")):
        run(source, tmp_path / f"out{i}")
        run(source, tmp_path / f"out{i}")
        save(picture(1 + i), tmp_path / "pictures" / "a.png")
        with pytest.raises(UserError, match="holds the result of other settings or inputs"):
            run(source, tmp_path / f"out{i}")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk, which only root could fill up."""
    for i in range(4):
        save(picture(i, (400, 400)), tmp_path / "in" / f"{i}.png")
    body = (
        "import resource, signal, sys; from dreamteacher import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "sys.exit(cli.main(['ingest', '--source', 'in', '--out', 'data']))\n"
    )
    done = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["error: File too large; name a folder on a file system that takes larger files"]
    assert not (tmp_path / "data").exists()


def test_memory_that_is_too_small_for_a_picture_is_one_line_and_loses_no_picture(tmp_path, monkeypatch):
    save_pictures(tmp_path / "in", "0.png", "1.png")

    def fail(*args, **options):
        raise OSError("out of memory error when reading image file")

    monkeypatch.setattr("dreamteacher.data.decode.load", fail)
    monkeypatch.setattr("dreamteacher.data.load.np.empty", fail_to_allocate)
    with pytest.raises(UserError, match=r"main memory is too small; lower ingest\.max_pixels"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def fail_to_allocate(*_):
    raise MemoryError
