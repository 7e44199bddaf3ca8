"""Instance labels: a file per object, numbers in one mask, outlines of YOLO, labelme and Supervisely; and invalid ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ingest_sources import facts, manifest, picture, reasons, report, run, save
from PIL import Image

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.instances import unpack
from dreamteacher.errors import UserError

SQUARES = ((2, 3, 7, 9), (10, 1, 16, 6), (4, 14, 12, 21))  # y1, x1, y2, x2 in pictures of 24 x 20
AREAS = sorted((y2 - y1) * (x2 - x1) for y1, x1, y2, x2 in SQUARES)


def one_object(square: tuple[int, int, int, int], value: int = 255) -> np.ndarray:
    mask = np.zeros((20, 24), np.uint8)
    mask[square[0] : square[2], square[1] : square[3]] = value
    return mask


def numbered(of: Callable[[int], int] = lambda i: i + 1, dtype: type = np.uint16) -> np.ndarray:
    mask = np.zeros((20, 24), dtype)
    for i, (y1, x1, y2, x2) in enumerate(SQUARES):
        mask[y1:y2, x1:x2] = of(i)
    return mask


def areas(out: Path) -> list[int]:
    """Of the objects of the first picture of train."""
    numbers, classes, _ = unpack(ImageSet(out, "train").full_size_label(0))
    return sorted(int((numbers == 1 + i).sum()) for i in range(len(classes)))


LAYOUTS = {  # of picture i and object k
    "Data Science Bowl 2018": ("stage1_train/id{i}/images/id{i}.png", "stage1_train/id{i}/masks/{i}f{k}a.png"),
    "a folder for each picture": ("images/{i}.png", "masks/{i}/{k}.png"),
    "a number behind the name": ("images/a-{i}.png", "masks/a-{i}_{k}.png"),
    "words behind the name": ("images/{i}.png", "label/{i}_mask_{k}.png"),
    "beside the picture": ("train/{i}.png", "train/{i}_mask_{k}.png"),
    "instances beside the picture": ("train/{i}.png", "train/{i}_instance_{k}.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_mask_for_each_object_is_an_object(name: str, tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / "s" / LAYOUTS[name][0].format(i=i))
        for k, square in enumerate(SQUARES):
            save(Image.fromarray(one_object(square)), tmp_path / "s" / LAYOUTS[name][1].format(i=i, k=k))
    run(tmp_path / "s", tmp_path / "out", task="instances")
    assert report(tmp_path / "out")["labels_per_class"] == {"object": 12}
    assert areas(tmp_path / "out") == AREAS
    assert len(manifest(tmp_path / "out")) == 4
    assert any("a file for each object" in line for line in report(tmp_path / "out")["summary"])


def test_masks_of_pictures_that_are_missing_are_no_objects_of_another(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(picture(split == "val"), tmp_path / f"s/images/{split}/a.png")
        for name in "abc":
            save(Image.fromarray(numbered()), tmp_path / f"s/masks/{split}/{name}.png")
    run(tmp_path / "s", tmp_path / "out", task="instances")
    assert areas(tmp_path / "out") == AREAS
    assert report(tmp_path / "out")["masks_without_picture"] == 4


def test_without_a_task_masks_of_objects_are_refused_with_the_setting_that_reads_them(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / "s" / LAYOUTS["Data Science Bowl 2018"][0].format(i=i))
        for k, square in enumerate(SQUARES):
            save(Image.fromarray(one_object(square)), tmp_path / "s" / LAYOUTS["Data Science Bowl 2018"][1].format(i=i, k=k))
    with pytest.raises(UserError, match=r"if each shows one object, set ingest.task to instances"):
        run(tmp_path / "s", tmp_path / "out")
    (tmp_path / "s/classes.txt").write_text("background\nround\nlong\n")
    with pytest.raises(UserError, match=r"masks show one object each and no class, and classes.txt names 2 of objects"):
        run(tmp_path / "s", tmp_path / "out", task="instances")


def test_a_mask_of_one_object_that_holds_more_costs_its_picture(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
        for k, square in enumerate(SQUARES):
            mask = one_object(square)
            mask[0, 0] = 90 * (i == 1 and k == 2)
            save(Image.fromarray(mask if i != 2 or k else mask[:9]), tmp_path / f"s/masks/{i}_{k}.png")
    run(tmp_path / "s", tmp_path / "out", task="instances", max_bad_fraction=0.5)
    assert reasons(tmp_path / "out") == {
        "images/1.png": "of several masks each shows one object, and one of them holds several values besides 0",
        "images/2.png": "a mask is 24 x 9, its picture 24 x 20",
    }


@pytest.mark.parametrize("mask", ["instances/{}.png", "images/{}_instances.png"])
def test_numbers_of_objects_are_labels_where_there_are_no_others(mask: str, tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
        save(Image.fromarray(numbered()), tmp_path / "s" / mask.format(i))
    run(tmp_path / "s", tmp_path / "out")
    assert (facts(tmp_path / "out")["task"], areas(tmp_path / "out")) == ("instances", AREAS)
    for i in range(4):
        save(Image.fromarray((numbered() > 0).astype(np.uint8)), tmp_path / f"s/masks/{i}.png")
    (tmp_path / "s/classes.txt").write_text("background\nthing\n")
    run(tmp_path / "s", tmp_path / "two")
    assert facts(tmp_path / "two")["task"] == "segmentation"


def test_depth_beside_pictures_is_named_with_the_setting_that_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
        save(Image.fromarray(numbered()), tmp_path / f"s/depth/{i}.png")
    run(tmp_path / "s", tmp_path / "out")
    assert "4 files, such as depth/0.png, are passed over; if they are labels of depth, set ingest.task to depth" in capsys.readouterr().err


def test_classes_below_1000_are_no_objects_of_cityscapes(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/leftImg8bit/train/x_{i}_leftImg8bit.png")
        mask = np.where(numbered() > 0, numbered(lambda k: 26001 + k), 7).astype(np.uint16)
        save(Image.fromarray(mask), tmp_path / f"s/gtFine/train/x_{i}_gtFine_instanceIds.png")
    with pytest.raises(
        UserError, match=r"x_0_gtFine_instanceIds.png holds values below 1000, which are classes, and 26003, .* classes.txt"
    ):
        run(tmp_path / "s", tmp_path / "out", task="instances")
    (tmp_path / "s/classes.txt").write_text("".join(f"class {i}\n" for i in range(34)))
    run(tmp_path / "s", tmp_path / "out", task="instances")
    assert areas(tmp_path / "out") == AREAS


def test_what_numbers_no_objects_is_refused(tmp_path: Path) -> None:
    smooth = Image.fromarray(numbered(lambda k: 250, np.uint8)).resize((9, 9), Image.Resampling.BICUBIC).resize((24, 20), 2)
    for name, mask in {"two": Image.fromarray(numbered(lambda k: 255, np.uint8)), "smooth": smooth, "photo": picture(50)}.items():
        for i in range(4):
            save(picture(i), tmp_path / name / f"images/{i}.png")
            save(mask, tmp_path / name / f"instances/{i}.png")
    with pytest.raises(
        UserError, match=r"4 of 4 masks hold one number in several pieces, so they do not tell objects apart: .*segmentation"
    ):
        run(tmp_path / "two", tmp_path / "out", task="instances")
    for name in ("smooth", "photo"):
        with pytest.raises(UserError, match=r"mask holds \d+ numbers, and \d+ of them form no area, as in a picture or at smoothed edges"):
            run(tmp_path / name, tmp_path / "out", task="instances")


def corners(square: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    y1, x1, y2, x2 = square
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def yolo(folder: Path, i: int) -> None:
    save(picture(i), folder / f"images/{i}.png")
    (folder / "labels").mkdir(exist_ok=True)
    lines = (f"{k % 2} " + " ".join(f"{x / 24} {y / 20}" for x, y in corners(square)) for k, square in enumerate(SQUARES))
    (folder / f"labels/{i}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("names: {'0': yes, '1': 1.0}\n")


def labelme(folder: Path, i: int) -> None:
    save(picture(i), folder / f"{i}.png")
    shapes = [
        {"label": ["yes", "1.0"][k % 2], "shape_type": kind, "points": corners(square) if kind == "polygon" else corners(square)[::2]}
        for k, (square, kind) in enumerate(zip(SQUARES, ("polygon", "rectangle", "polygon"), strict=True))
    ]
    stored = {"version": "5.5", "imagePath": f"{i}.png", "imageWidth": 24, "imageHeight": 20, "imageData": None, "shapes": shapes}
    (folder / f"{i}.json").write_text(json.dumps(stored))


def supervisely(folder: Path, i: int) -> None:
    save(picture(i), folder / f"ds/img/{i}.png")
    (folder / "ds/ann").mkdir(exist_ok=True)
    objects = [
        {"classTitle": ["yes", "1.0"][k % 2], "geometryType": "polygon", "points": {"exterior": corners(square), "interior": []}}
        for k, square in enumerate(SQUARES)
    ]
    (folder / f"ds/ann/{i}.png.json").write_text(json.dumps({"size": {"width": 24, "height": 20}, "objects": objects}))


@pytest.mark.parametrize("form", [yolo, labelme, supervisely])
def test_outlines_of_a_file_for_each_picture_are_objects_or_boxes(form: Callable[[Path, int], None], tmp_path: Path) -> None:
    for i in range(4):
        form(tmp_path / "s", i)
    run(tmp_path / "s", tmp_path / "boxes")
    run(tmp_path / "s", tmp_path / "objects", task="instances")
    assert [facts(tmp_path / out)["task"] for out in ("boxes", "objects")] == ["detection", "instances"]
    assert areas(tmp_path / "objects") == AREAS
    of_class = {"yes": 8, "1.0": 4}  # names that YAML would take for a truth value and a number
    assert report(tmp_path / "boxes")["labels_per_class"] == report(tmp_path / "objects")["labels_per_class"] == of_class
    found = ImageSet(tmp_path / "boxes", "train").label(0).corners.round(2).tolist()
    assert sorted(found) == sorted([x1, y1, x2, y2] for y1, x1, y2, x2 in SQUARES)


def test_shapes_of_one_group_are_one_object(tmp_path: Path) -> None:
    for i in range(4):
        labelme(tmp_path / "s", i)
        stored = json.loads((tmp_path / f"s/{i}.json").read_text())
        for shape in stored["shapes"]:
            shape["group_id"] = 7
        (tmp_path / f"s/{i}.json").write_text(json.dumps(stored))
    run(tmp_path / "s", tmp_path / "boxes")
    run(tmp_path / "s", tmp_path / "objects", task="instances")
    # the first and the third have one label
    assert report(tmp_path / "boxes")["labels_per_class"] == report(tmp_path / "objects")["labels_per_class"] == {"1.0": 4, "yes": 4}
    of_group = np.array([SQUARES[0], SQUARES[2]])
    y1, x1, y2, x2 = (*of_group[:, :2].min(0), *of_group[:, 2:].max(0))
    assert [x1, y1, x2, y2] in ImageSet(tmp_path / "boxes", "train").label(0).corners.round(2).tolist()


def test_shapes_without_an_area_cost_their_picture(tmp_path: Path) -> None:
    for i in range(4):
        labelme(tmp_path / "s", i)
    text = (tmp_path / "s/0.json").read_text()
    (tmp_path / "s/0.json").write_text(text.replace('"rectangle"', '"line"'))
    (tmp_path / "s/1.json").write_text(text[:-9])
    run(tmp_path / "s", tmp_path / "out", task="detection", max_bad_fraction=0.5)
    found = reasons(tmp_path / "out")
    assert found["0.png"] == "its .json (labelme) holds a line of 2 points; polygons, rectangles and circles are read"
    assert found["1.png"].startswith("its .json is no file of labelme (JSONDecodeError")


TOOLS = {
    "Open Images": ("train-annotations-bbox.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n0,x,/m/01,1,.1,.2,.3,.4\n"),
    "VisDrone": ("annotations/0.txt", "10,10,20,20,1,4,0,0\n"),
    "roLabelImg": (
        "0.xml",
        "<annotation><object><type>robndbox</type><name>ship</name><robndbox><cx>9</cx><angle>1</angle></robndbox></object></annotation>",
    ),
    "CVAT": (
        "annotations.xml",
        '<?xml version="1.0"?><annotations><version>1.1</version><image id="0" name="0.png"><box/></image></annotations>',
    ),
    "Label Studio": ("project.json", '[{"id": 1, "data": {"image": "0.png"}, "annotations": [{"result": [{"type": "brushlabels"}]}]}]'),
    "VGG Image Annotator": ("via.json", '{"0.png12": {"filename": "0.png", "regions": [{"shape_attributes": {"name": "rect"}}]}}'),
    "Create ML": ("_annotations.createml.json", '[{"image": "0.png", "annotations": [{"label": "a", "coordinates": {"x": 1}}]}]'),
    "BDD100K (Scalabel)": ("labels/train.json", '[{"name": "0.png", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]'),
    "KITTI": ("label_2/0.txt", "Car 0.00 0 -1.58 10.01 12.0 30.0 40.0 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"),
    "DOTA": ("labelTxt/0.txt", "imagesource:GoogleEarth\ngsd:0.1\n1.0 1.0 9.0 1.0 9.0 9.0 1.0 9.0 plane 0\n"),
    "TensorFlow or Keras": ("_annotations.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n0.png,24,20,a,1,2,9,9\n"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_labels_of_other_tools_are_named(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/images/{i}.png")
    name, text = TOOLS[tool]
    (tmp_path / "s" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "s" / name).write_text(text)
    run(tmp_path / "s", tmp_path / "out")
    assert f"ingest: {name} is of {tool}, and is not read: export it as COCO" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{name} is of {tool}".replace("(", r"\(").replace(")", r"\)")):
        run(tmp_path / "s", tmp_path / "two", task="detection")


def of_voc(i: int, *, by_object: bool) -> Image.Image:
    """A mask of Pascal VOC with two objects of one class and their border."""
    values = np.zeros((20, 24), np.uint8)
    values[2:8, 2:9], values[10:18, 12 + i : 22] = 1, 2 if by_object else 1
    values[9], values[19] = 255, 255
    mask = Image.fromarray(values, "P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[0] * 756, 224, 224, 192])
    return mask


def test_of_pascal_voc_the_objects_count_and_not_the_classes(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / f"s/JPEGImages/{i}.jpg")
        save(of_voc(i, by_object=True), tmp_path / f"s/SegmentationObject/{i}.png")
    run(tmp_path / "s", tmp_path / "alone")
    assert facts(tmp_path / "alone")["task"] == "instances"
    for i in range(4):
        save(of_voc(i, by_object=False), tmp_path / f"s/SegmentationClass/{i}.png")
    run(tmp_path / "s", tmp_path / "out", task="instances")
    packed = ImageSet(tmp_path / "out", "train").label(0)
    numbers, classes, _ = unpack(packed)
    assert [int((numbers == n).sum()) for n in (1, 2)] == [6 * 7, 8 * 10] and list(classes) == [0, 0]
    assert (packed == 255).sum() == 2 * 24  # the border is unknown


def test_masks_of_several_classes_number_no_objects(tmp_path: Path) -> None:
    for i in range(4):
        values = np.zeros((20, 24), np.uint8)
        values[1:5, 1:5], values[10:15, 1:5], values[1:5, 12:20], values[10:18, 12 : 20 + i] = 1, 1, 2, 2
        save(picture(i), tmp_path / f"s/images/{i}.png")
        save(Image.fromarray(values), tmp_path / f"s/masks/{i}.png")
    with pytest.raises(UserError, match="4 of 4 masks hold one number in several pieces"):
        run(tmp_path / "s", tmp_path / "out", task="instances")


def test_crumbs_beside_an_object_are_no_second_piece(tmp_path: Path) -> None:
    for i in range(4):
        values = np.zeros((20, 24), np.uint8)
        values[4:14, 4 : 14 + i], values[18, 1 + i] = 1, 1
        save(picture(i), tmp_path / f"s/images/{i}.png")
        save(Image.fromarray(values), tmp_path / f"s/masks/{i}.png")
    assert run(tmp_path / "s", tmp_path / "out", task="instances")["n_labelled"] == 4
