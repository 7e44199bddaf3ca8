"""The summary of ingest, also in report.json."""

import numpy as np
from ingest_sources import mask_of, params, picture, report, run, save
from PIL import Image

from dreamteacher.data.items import MAX_SUFFIXES, Skipped
from dreamteacher.stages import ingest


def printed_lines(capsys) -> list[str]:
    return [line.removeprefix("ingest: ") for line in capsys.readouterr().err.splitlines()]


def test_task_classes_and_counts_are_said(tmp_path, capsys):
    for i in range(12):
        save(picture(i), tmp_path / "in" / "images" / ("val" if i > 8 else "train") / f"{i}.png")
        if i not in (0, 1):
            save(mask_of(2 if i > 10 else 1), tmp_path / "in" / "masks" / ("val" if i > 8 else "train") / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("ground\ncell\ndebris\nnever\n")
    run(tmp_path / "in", tmp_path / "out")
    lines = printed_lines(capsys)
    assert lines == [
        "segmentation: 7 of 9 train pictures and 3 of 3 val pictures are labelled, "
        "by masks (such as masks/train/2.png of images/train/2.png)",
        "class ground: 7 pictures of train with 50.00% of the pixels, 3 pictures of val with 50.00% of the pixels",
        "class cell: 7 pictures of train with 50.00% of the pixels, 2 pictures of val with 33.33% of the pixels",
        "class debris: 0 pictures of train, 1 pictures of val with 16.67% of the pixels",
        "class never: 0 pictures of train, 0 pictures of val",
        "classes with labels in val and none in train, so measured and never learnt: debris",
        "classes with no label at all, so never learnt: never",
    ]
    assert report(tmp_path / "out")["summary"] == lines
    assert report(tmp_path / "out")["pictures_per_class_and_split"]["val"] == {"ground": 3, "cell": 2, "debris": 1, "never": 0}


def test_many_classes_take_a_few_lines(tmp_path, capsys):
    for i in range(30):
        save(picture(i), tmp_path / "in" / "train" / f"c{i // 2:02}" / f"{i}.png")
    run(tmp_path / "in", tmp_path / "out")
    lines = printed_lines(capsys)
    assert len(lines) == 9
    assert lines[-1] == "8 more classes, of which c14 has least: 2 pictures of train"


def test_a_class_that_is_lost_by_reducing_is_named(tmp_path, capsys):
    values = np.zeros((200, 200), np.uint8)
    values[:, 100:] = 1
    values[21:23, 10:190] = 2
    for i in range(4):
        save(picture(i, (200, 200)), tmp_path / "in" / "images" / f"{i}.png")
        save(Image.fromarray(values), tmp_path / "in" / "masks" / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("asphalt\nconcrete\ncrack\n")
    run(tmp_path / "in", tmp_path / "out", short_side=20)
    lines = printed_lines(capsys)
    assert "4 of 4 pictures were reduced to a short side of 20 px (ingest.short_side), most often from 200 x 200" in lines
    (lost,) = [line for line in lines if "lost" in line]
    assert lost.startswith(
        "class 'crack' lost 100% of its share of the pixels and is gone from 4 of 4 masks by this; raise ingest.short_side"
    )
    assert report(tmp_path / "out")["reduced"] == 4


def test_few_labels_drawn_for_val_are_said(tmp_path, capsys):
    for i in range(60):
        save(picture(i), tmp_path / "in" / ("cat" if i % 2 else "dog") / f"{i}.png")
    run(tmp_path / "in", tmp_path / "out", val_fraction=0.2)
    (line,) = [line for line in printed_lines(capsys) if "drawn for val" in line]
    assert line.endswith("raise ingest.val_fraction (0.2) or put labelled pictures of each class into a folder val/")


def test_labels_of_other_tools_are_mentioned(tmp_path, capsys):
    save(picture(0), tmp_path / "in" / "images" / "0.jpg")
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "labels" / "0.txt").write_text("two cells\n")
    (tmp_path / "in" / "instances.json").write_text("{}")
    (tmp_path / "in" / "setup.exe").touch()
    (tmp_path / "in" / "two\nlines.png").touch()
    run(tmp_path / "in", tmp_path / "out")
    first, *rest = printed_lines(capsys)
    assert first.startswith(
        "no label was found (1 .json (instances.json), 1 .txt (labels/0.txt) may be labels in a form that is not read: text that is no "
        "YOLO label of a picture, labelme, or COCO without boxes); labels are read from masks"
    )
    assert rest == [
        "3 files were passed over: 1 .exe (setup.exe), 1 .json (instances.json), 1 .txt (labels/0.txt)",
        "1 files were passed over, as their names hold control characters or are not UTF-8",
    ]
    assert report(tmp_path / "out")["passed_over"][".txt"] == {"count": 1, "example": "labels/0.txt"}


def test_what_is_left_out_of_the_second_place_is_said(tmp_path, capsys):
    for i in range(4):
        save(picture(i), tmp_path / "in" / f"{i}.png")
        save(picture(9 + i), tmp_path / "new" / ("test" if i == 3 else "day") / f"{i}.png")
    (tmp_path / "new" / "clip.mp4").touch()
    ingest.run(params(), out=tmp_path / "out", source=tmp_path / "in", incoming=tmp_path / "new")
    assert printed_lines(capsys)[1:] == [
        "1 incoming files were passed over: 1 .mp4 (clip.mp4)",
        "1 incoming pictures of the test split were left out",
    ]
    assert report(tmp_path / "out")["incoming_passed_over"] == {".mp4": {"count": 1, "example": "clip.mp4"}}


def test_a_table_in_another_folder_is_said(tmp_path, capsys):
    save(picture(0), tmp_path / "in" / "train" / "0.png")
    (tmp_path / "in" / "train" / "labels.csv").write_text("path,label\n0.png,cat\n")
    run(tmp_path / "in", tmp_path / "out")
    assert printed_lines(capsys)[0].startswith(
        "no label was found (1 .csv (train/labels.csv) may be labels in a form that is not read: a table of "
    )


def test_files_of_many_pictures_are_said(tmp_path, capsys):
    pages = [picture(i) for i in range(5)]
    save(pages[0], tmp_path / "in" / "a.tif", save_all=True, append_images=pages[1:])
    save(picture(9), tmp_path / "in" / "b.png")
    run(tmp_path / "in", tmp_path / "out")
    assert [
        line for line in printed_lines(capsys) if line.startswith("1 files hold 5 frames or pages, and only the first of each was taken")
    ]
    assert (report(tmp_path / "out")["files_of_many"], report(tmp_path / "out")["pictures_in_them"]) == (1, 5)


def test_a_wrapping_folder_is_no_class(tmp_path, capsys):
    for i, cls in enumerate(("cat", "dog")):
        save(picture(i), tmp_path / "in" / "wrapper" / cls / f"{i}.png")
    run(tmp_path / "in", tmp_path / "out")
    assert printed_lines(capsys)[-1] == "all pictures lie below wrapper/; if the folders in it are classes, set ingest.source to it"


def test_what_is_passed_over_is_counted_alike_in_any_order_of_files_and_in_bounded_memory():
    names = [f"{i}.{i % 90:03}" for i in range(900)]
    counts = []
    for order in (names, names[::-1], sorted(names, key=lambda name: name[::-1])):
        skipped = Skipped()
        for name in order:
            skipped.add(name)
        counts.append(skipped.by_suffix)
    assert counts[0] == counts[1] == counts[2]
    assert len(counts[0]) == MAX_SUFFIXES + 1
    assert sum(count for count, _ in counts[0].values()) == 900
