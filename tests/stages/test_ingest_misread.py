"""Sources that could be misread silently are refused in one line, or noted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_sources import facts, manifest, mask_of, picture, reasons, report, run, save, save_pictures
from PIL import Image

from dreamteacher.data import tally
from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.places import locate
from dreamteacher.data.signs import thin_between
from dreamteacher.errors import UserError


def table(folder: Path, text: str) -> Path:
    save_pictures(folder, "a/1.png", "a/2.png", "b/3.png")
    (folder / "labels.csv").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "path;label\na/1.png;cat\na/2.png;dog\nb/3.png;cat\n",
        "Path\tLabel\na/1.png\tcat\na/2.png\tdog\nb/3.png\tcat\n",
        "path, label\na/1.png, cat\na/2.png, dog\nb/3.png, cat\n",
        "path,label,\na\\1.png,cat,\na\\2.png,dog,\nb\\3.png,cat,\n",
    ],
)
def test_tables_of_other_programs_are_read(text: str, tmp_path: Path) -> None:
    run(table(tmp_path / "s", text), tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]
    assert {row["path"]: row["label"] for row in manifest(tmp_path / "out")} == {"a/1.png": "0", "a/2.png": "1", "b/3.png": "0"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na/1.png,cat,dog\n", "line 2: it has more cells than the first line names columns"),
        ("path,label\na/1.png,cat\0\n", r"line 2: 'cat\\x00' holds a control character"),
        ("path,label\n" + "".join(f"{i}.png,{i / 7:.3f}\n" for i in range(12)), "each of its 12 labels is another, such as '0.000'"),
        (
            "path,label\n" + "".join(f"{i}.png,{20 + i % 7}\n" for i in range(12)),
            "its 12 labels are 7 different numbers, such as 20",
        ),
        ("file,class\na/1.png,cat\n", "must name the columns path and label, with a comma between them; it is 'file,class'"),
    ],
)
def test_tables_that_would_be_misread_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        run(table(tmp_path / "s", text), tmp_path / "out")


def test_what_is_doubtful_in_a_table_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "path,label\na/1.png,1\na/2.png,1.0\nb/3.png,nan\nB/3.png,nan\n"
    run(table(tmp_path / "s", text), tmp_path / "out")
    stderr = capsys.readouterr().err
    assert "classes '1' and '1.0' are the same number; are they one?" in stderr
    assert "labels.csv names 'B/3.png', for one, and there is no such picture (capitals count)" in stderr
    assert "'nan' in labels.csv was taken as a class; leave the label of pictures without one empty" in stderr


def test_a_table_without_labels_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(table(tmp_path / "s", "path,label\na/1.png,\n"), tmp_path / "out")
    assert "labels.csv has no line with a label" in capsys.readouterr().err


def test_lists_in_cells_are_several_labels(tmp_path: Path) -> None:
    text = "path,label\na/1.png,\"{'cat', 'dog'}\"\na/2.png,['dog']\nb/3.png,\"('cat',)\"\n"
    run(table(tmp_path / "s", text), tmp_path / "out", task="multilabel")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\nbackground\ncar\n", "line 1 is empty, and lines count as ids from 0; remove it, or name the class of id 0 in it"),
        ("background\n\ncar\n", "line 2 is empty"),
        ("# made by hand\nbackground\ncar\n", "line 1, '# made by hand', looks like a comment, and would be the class of id 0"),
        ("class_name\nbackground\ncar\n", "line 1, 'class_name', looks like the head of a table"),
        ("background, car", "has one line, 'background, car'; write each class on a line of its own"),
        ("background\ncar\ncar\n", "names the class 'car' twice"),
    ],
)
def test_lines_that_are_no_classes_would_move_the_ids_of_others(text: str, problem: str, tmp_path: Path) -> None:
    save(picture(0), tmp_path / "s/images/1.png")
    save(mask_of(1), tmp_path / "s/masks/1.png")
    (tmp_path / "s/classes.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "s", tmp_path / "out")


def masks(folder: Path, mask: Image.Image, suffix: str = "png", n: int = 4) -> Path:
    for i in range(n):
        save(picture(i), folder / f"images/{i}.png")
        save(mask, folder / f"masks/{i}.{suffix}")
    (folder / "classes.txt").write_text("background\nroad\ncar\n")
    return folder


def test_masks_in_jpeg_are_refused_though_their_values_are_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mask is in a lossy format, such as JPEG, which changes ids; store masks as PNG"):
        run(masks(tmp_path / "s", mask_of(0), "jpg"), tmp_path / "out")


def test_of_a_palette_in_another_order_the_dark_greys_are_the_ids(tmp_path: Path) -> None:
    ids = np.zeros((20, 24), np.uint8)
    ids[:5], ids[5:9] = 1, 2
    order = Image.fromarray(np.array([2, 0, 1], np.uint8)[ids])
    order.putpalette([1, 1, 1, 2, 2, 2, 0, 0, 0])
    run(masks(tmp_path / "dark", order), tmp_path / "dark-out")
    assert np.array_equal(ImageSet(tmp_path / "dark-out", "train").label(0), ids)
    order.putpalette([128, 0, 0, 0, 128, 0, 0, 0, 0])  # of colours the numbers count
    run(masks(tmp_path / "colours", order), tmp_path / "colours-out")
    assert np.array_equal(ImageSet(tmp_path / "colours-out", "train").label(0), np.array([2, 0, 1])[ids])


def test_palettes_that_a_tool_has_put_in_order_do_not_number_classes(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    source = masks(tmp_path / "s", mask_of(0))
    for i, order in enumerate(([0, 1, 2], [0, 2, 1], [2, 0, 1], [0, 1, 2])):
        ids = np.zeros((20, 24), np.uint8)
        ids[:5], ids[5:9] = 1, 2
        mask = Image.fromarray(np.argsort(order).astype(np.uint8)[ids])
        mask.putpalette(colours[order].ravel().tolist())
        save(mask, source / f"masks/{i}.png")
    with pytest.raises(UserError, match=r"2 masks give a colour of their palette another number than masks before do"):
        run(source, tmp_path / "out")
    (source / "classes.txt").write_text("background #000000\nroad #800000\ncar #008000\n")
    run(source, tmp_path / "out")
    assert all(np.array_equal(ImageSet(tmp_path / "out", "train").label(i), ids) for i in range(4))


def test_a_class_that_is_only_the_smoothed_edge_of_another_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.zeros((96, 96), np.uint8)
    values[20:60, 30:70] = 2
    smooth = Image.fromarray(values).resize((48, 48), Image.Resampling.BILINEAR).resize((96, 96), Image.Resampling.BILINEAR)
    for i in range(4):
        save(picture(i, (96, 96)), tmp_path / f"s/images/{i}.png")
        save(smooth, tmp_path / f"s/masks/{i}.png")
    (tmp_path / "s/classes.txt").write_text("background\nroad\ncar\n")
    run(tmp_path / "s", tmp_path / "out")
    assert "class 'road' is nearly everywhere a thin line between a lower and a higher number" in capsys.readouterr().err
    values[5:15] = 1
    assert not thin_between(values).any()


def test_frames_of_a_video_on_both_sides_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)).resize((160, 64), 3))
    for i in range(40):
        save(Image.fromarray(scene[:, i : i + 96]), tmp_path / f"video/frame{i:04d}.png")
        save(picture(i, (96, 64)), tmp_path / f"photos/{i}.png")
    line = "that follow each other by name look alike, as frames of a video do"
    run(tmp_path / "video", tmp_path / "out", val_fraction=0.3)
    assert line in capsys.readouterr().err
    run(tmp_path / "photos", tmp_path / "two", val_fraction=0.3)
    assert line not in capsys.readouterr().err


def test_copies_that_were_saved_or_resized_again_are_said(tmp_path: Path) -> None:
    """Whatever the folders say; and no other pictures, though all have the same ground."""
    rows, columns = np.mgrid[:96, :96] / 96
    ground = 200 * np.exp(-6 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2))
    for i in range(40):
        detail = np.kron(np.random.default_rng(i).normal(0, 12, (12, 12)), np.ones((8, 8)))
        image = Image.fromarray((ground + detail).clip(0, 255).astype(np.uint8))
        save(image, tmp_path / "in" / ("train" if i < 30 else "val") / f"{i:02}.png")
        if i in (0, 20):
            save(image.resize((48, 48), Image.Resampling.BILINEAR), tmp_path / "in/val" / f"small{i}.jpg", quality=80)
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["near_copies"] == 2
    pairs = [{"path": f"val/small{i}.jpg", "same_as": f"train/{i:02}.png"} for i in (0, 20)]
    assert report(tmp_path / "out")["examples"]["near_copies"] == pairs
    (line,) = (line for line in report(tmp_path / "out")["summary"] if line.startswith("2 pictures of val look the same as one of train"))
    assert "val/small0.jpg and train/00.png; report.json names 2" in line


def test_of_many_copies_the_line_says_how_many_the_report_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "EXAMPLES", 1)
    for i in range(10):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 12), np.uint8)).resize((64, 64))
        save(image, tmp_path / "in/train" / f"{i}.png")
        save(image, tmp_path / "in/val" / f"{i}.jpg", quality=90)
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["near_copies"] == 10
    assert any("report.json names 1)" in line for line in report(tmp_path / "out")["summary"])


@pytest.mark.parametrize(
    ("name", "words"),
    [("set.zip", "an archive; unpack it"), ("a.jpg", "a picture; name the folder"), ("b.json", "a table or labels; name the folder")],
)
def test_a_file_that_is_no_list_is_refused_by_what_it_is(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=words):
        locate(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a folder nor a file, but a pipe"):
        locate(str(tmp_path / "pipe"))


def test_the_home_folder_is_not_replaced_and_that_is_said() -> None:
    with pytest.raises(UserError, match=r"~/pictures does not exist \(~ is not replaced by the home folder here; write it out\); name"):
        locate("~/pictures")


def test_a_list_may_hold_paths_of_windows(tmp_path: Path) -> None:
    save_pictures(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "list.txt").write_bytes(b"a\\1.png\r\na\\2.png\r\n")
    assert run(tmp_path / "list.txt", tmp_path / "out")["n_train"] == 2


def test_a_link_to_a_class_is_no_class(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "dog/1.png", "cat/2.png")
    (tmp_path / "s/ant").symlink_to(tmp_path / "s/dog")
    (tmp_path / "s/zoo").symlink_to(tmp_path / "s/cat")
    run(tmp_path / "s", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_masks_of_single_objects_beside_pictures_are_not_trained_on(tmp_path: Path) -> None:
    for i in range(6):
        save(picture(i, (48, 40)), tmp_path / f"s/{i}.png")
        for k in range(2):
            save(mask_of(255, (48, 40)).transpose(k), tmp_path / f"s/{i}_cell_{k}.png")
    with pytest.raises(UserError, match=r"files whose names end in '_cell_0' look like masks of the pictures beside them"):
        run(tmp_path / "s", tmp_path / "out")


def coco(folder: Path, **change: Any) -> Path:
    save_pictures(folder, *(f"{i}.png" for i in range(4)))
    boxes = [{"image_id": i, "category_id": 3, "bbox": [2, 3, 9, 8]} | change for i in range(4)]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    (folder / "all.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "a"}]}))
    return folder


def test_boxes_in_fractions_where_pixels_are_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its boxes lie within one pixel, as fractions would; write them in pixels"):
        run(coco(tmp_path / "s", bbox=[0.1, 0.2, 0.3, 0.4]), tmp_path / "out")


def test_boxes_of_no_listed_picture_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coco(tmp_path / "s")
    stored = json.loads((source / "all.json").read_text())
    stored["annotations"][0]["image_id"] = 77
    (source / "all.json").write_text(json.dumps(stored))
    run(source, tmp_path / "out")
    assert report(tmp_path / "out")["boxes_of_no_entry"] == 1
    assert "1 boxes name an image_id that `images` lacks, and were dropped" in capsys.readouterr().err


def test_a_name_without_a_picture_and_a_class_named_twice_are_said(tmp_path: Path) -> None:
    source = coco(tmp_path / "s")
    stored = json.loads((source / "all.json").read_text())
    stored["images"][0]["file_name"] = "0.PNG"  # capitals count
    stored["categories"].append({"id": 7, "name": " a"})
    (source / "all.json").write_text(json.dumps(stored))
    run(source, tmp_path / "out")
    summary = report(tmp_path / "out")["summary"]
    assert "1 pictures with boxes, or files of boxes, have no picture here (such as 0.PNG)" in summary
    assert "1 categories of COCO files have the name of another in the same file, and are one class with it" in summary


@pytest.mark.parametrize(
    ("line", "names", "problem"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", "names: [a]", r"labels/0.txt is no label of YOLO: its .txt, line 1 has 6 numbers"),
        ("0 12 12 9 9", "names: [a]", r"line 1 holds 12; numbers are fractions of the picture"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 0.2 0.2", "kpt_shape: [2, 2]\nnames: [a]", "has kpt_shape: its labels are YOLO's poses"),
        ("0 0.5 0.5 0.2 0.2", "nc: 2\nnames: [a]", r"nc is 2, and 1 are named"),
    ],
)
def test_other_texts_of_yolo_are_refused_with_their_reason(line: str, names: str, problem: str, tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
        (tmp_path / "s/labels").mkdir(exist_ok=True)
        (tmp_path / f"s/labels/{i}.txt").write_text(line + "\n")
    (tmp_path / "s/data.yaml").write_text(names)
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "s", tmp_path / "out", task="detection")


def test_a_copy_that_was_not_finished_is_no_picture(tmp_path: Path) -> None:
    for i in range(6):
        path = save(picture(i, (96, 96)), tmp_path / f"s/{i}.jpg")
        data = path.read_bytes()
        if i == 0:
            path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
        if i == 1:
            path.write_bytes(data + bytes(500))  # whole, in blocks
    run(tmp_path / "s", tmp_path / "out", max_bad_fraction=0.5)
    assert reasons(tmp_path / "out") == {"0.jpg": "its end is zero bytes, as of a copy that was not finished; copy it again"}


def test_depth_that_sensors_do_not_measure_is_unknown_and_colours_are_no_depth(tmp_path: Path) -> None:
    depth = np.full((20, 24), 1500, np.uint16)
    depth[:5] = 65535
    colours = Image.fromarray(depth.astype(np.uint8))
    colours.putpalette(list(range(255, -1, -1)) * 3)
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
        save(Image.fromarray(depth) if i else colours, tmp_path / f"s/depth/{i}.png")
    run(tmp_path / "s", tmp_path / "out", task="depth", max_bad_fraction=0.5)
    assert reasons(tmp_path / "out") == {"images/0.png": "its depth is in colours; store it in one channel of 16 bits or floats"}
    assert np.array_equal(ImageSet(tmp_path / "out", "train").label(0), np.where(depth == 65535, 0, 1500))


def test_labels_in_files_that_are_not_read_are_named_where_a_task_wants_them(tmp_path: Path) -> None:
    save_pictures(tmp_path / "s", "images/0.png")
    (tmp_path / "s/depth").mkdir()
    (tmp_path / "s/depth/0.exr").write_bytes(b"v/1\x01")
    with pytest.raises(
        UserError, match=r"ingest.task = depth, but .* has no map of depth \(16-bit PNG.*passed over: 1 .exr \(depth/0.exr\)"
    ):
        run(tmp_path / "s", tmp_path / "out", task="depth")


def test_objects_of_coco_without_a_box_have_that_of_their_outline(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "in/0.png")
    runs = {"size": [20, 24], "counts": [43, 4, 16, 4, 413]}  # columns 2 and 3, rows 3 to 6
    shapes: list[dict[str, Any]] = [
        {"segmentation": runs},
        {"segmentation": runs | {"counts": "[14`00]<"}, "bbox": []},
        {"segmentation": [[5, 5, 9, 5, 9, 8]], "bbox": [0, 0, 0, 0]},
        {"bbox": [1, 2, 3, 4]},
        {"segmentation": [], "bbox": []},
    ]
    annotations = [{"id": i, "image_id": 1, "category_id": 1, **shape} for i, shape in enumerate(shapes)]
    coco = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "in/coco.json").write_text(json.dumps(coco))
    run(tmp_path / "in", tmp_path / "out")
    boxes = ImageSet(tmp_path / "out", "train").label(0).corners.tolist()  # type: ignore[union-attr]
    assert boxes == [[2, 3, 4, 7], [5, 5, 9, 8], [1, 2, 4, 6]]  # the second is the first once more
    assert report(tmp_path / "out")["annotations_without_box"] == 1


def test_boxes_of_pascal_voc_may_be_written_from_the_other_corner(tmp_path: Path) -> None:
    corners = {"xmin": 14, "ymin": 9, "xmax": 5, "ymax": 6}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
    for i, name in enumerate(("car", "Car")):
        save(picture(i), tmp_path / "in" / f"{i}.png")
        xml = f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / "in" / f"{i}.xml").write_text(xml)
    run(tmp_path / "in", tmp_path / "out")
    assert ImageSet(tmp_path / "out", "train").label(0).corners.tolist() == [[4, 5, 14, 9]]  # type: ignore[union-attr]
    assert report(tmp_path / "out")["warnings"] == {"boxes_turned": 2}
    assert "classes 'Car' and 'car' differ in capitals only; are they one?" in report(tmp_path / "out")["summary"]
