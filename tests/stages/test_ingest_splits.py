"""Splits from files: lists of pictures, YOLO's data.yaml; and class lists beside labels."""

from itertools import permutations
from pathlib import Path

import pytest
from ingest_sources import facts, manifest, picture, report, run, save, save_pictures

from dreamteacher.errors import UserError


def splits(out: Path) -> dict[str, list[str]]:
    rows = manifest(out)
    return {split: sorted(row["path"] for row in rows if row["split"] == split) for split in ("train", "val")}


def in_class_folders(source: Path) -> Path:
    for i in range(16):
        save(picture(i), source / "images" / f"{'cat' if i < 8 else 'dog'}/{i}.jpg")
    return source


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("", "images/{cls}/{i}.jpg"),
        ("", "./images/{cls}/{i}.jpg"),
        ("", "/home/me/data/pets/images/{cls}/{i}.jpg"),
        ("", "data\\pets\\images\\{cls}\\{i}.jpg"),
        ("", "{cls}/{i}"),
        ("", "images/{cls}/{i}.jpg 3"),
        ("meta", "{cls}/{i}"),
        ("images", "{cls}/{i}.jpg"),
        ("lists", "images/{cls}/{i}.jpg,1,2.5"),
    ],
)
@pytest.mark.parametrize("ending", ["", "_list"])
def test_lists_of_pictures_give_the_splits_however_they_name_them(folder: str, line: str, ending: str, tmp_path: Path) -> None:
    source = in_class_folders(tmp_path / "in")
    lines = {i: line.format(cls="cat" if i < 8 else "dog", i=i) for i in range(16)}
    parts = {"train": range(1, 16, 2), "val": (0, 8), "test": (2, 10)}
    (source / folder).mkdir(exist_ok=True)
    for split, chosen in parts.items():
        (source / folder / f"{split}{ending}.txt").write_text("".join(lines[i] + "\n" for i in chosen))
    run(source, tmp_path / "out", val_fraction=0.5)
    assert splits(tmp_path / "out")["val"] == ["images/cat/0.jpg", "images/dog/8.jpg"]
    assert len(splits(tmp_path / "out")["train"]) == 12  # also those that no list names
    assert report(tmp_path / "out")["left_out_as_test"] == 2
    assert report(tmp_path / "out")["outside_of_splits"] == 4


def test_numbers_behind_the_names_in_a_list_are_said_where_there_are_no_labels(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / "in/images" / f"{i}.jpg")
    (tmp_path / "in/val.txt").write_text("images/0.jpg 7\nimages/3.jpg 2\n")
    run(tmp_path / "in", tmp_path / "out")
    note = "the numbers in val.txt (images/0.jpg 7) are not read; if they are classes, write labels.csv (columns path, label)"
    assert note in report(tmp_path / "out")["summary"]
    (tmp_path / "in/val.txt").write_text("images/0.jpg\nimages/3.jpg\n")
    run(tmp_path / "in", tmp_path / "plain")
    assert not any("the numbers in" in line for line in report(tmp_path / "plain")["summary"])


def in_numbered_lists(source: Path, numbers: str = "{}", start: int = 0) -> Path:
    """Pictures in one folder, and Caffe's lists, which give each the number of its class."""
    for i in range(16):
        save(picture(i), source / "images" / f"{i}.jpg")
    for split, chosen in {"train": range(4, 16), "val": range(4)}.items():
        (source / f"{split}.txt").write_text("".join(f"images/{i}.jpg {numbers.format(i % 3 + start)}\n" for i in chosen))
    return source


@pytest.mark.parametrize("names", [["0", "1", "2"], ["cat", "dog", "cow"]])
def test_numbers_behind_the_names_in_lists_of_train_and_val_are_classes(names: list[str], tmp_path: Path) -> None:
    source = in_numbered_lists(tmp_path / "in")
    if names[0] == "cat":
        (source / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    save(picture(16), source / "images" / "unlisted.jpg")
    run(source, tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == names
    assert facts(tmp_path / "out")["task"] == "classification"
    assert splits(tmp_path / "out")["val"] == [f"images/{i}.jpg" for i in range(4)]
    found = report(tmp_path / "out")
    assert found["labels_found_in"] == "train.txt and val.txt"
    assert f"class {names[0]}: 4 pictures of train, 2 pictures of val" in found["summary"]


@pytest.mark.parametrize(
    ("lists", "classes", "said"),
    [
        ({"start": 1}, "cat\ndog\ncow\n", r"train.txt has the number 3, and classes.txt names 3 classes, from 0; correct one"),
        ({}, "1 cat\n2 dog\n3 cow\n", r"classes.txt is numbered from 1, and the numbers in .*txt count from 0; number both from 0"),
    ],
)
def test_numbers_in_lists_that_classes_txt_contradicts_are_refused(lists: dict, classes: str, said: str, tmp_path: Path) -> None:
    source = in_numbered_lists(tmp_path / "in", **lists)
    (source / "classes.txt").write_text(classes)
    with pytest.raises(UserError, match=said):
        run(source, tmp_path / "out")


def test_a_picture_of_two_numbers_is_refused(tmp_path: Path) -> None:
    source = in_numbered_lists(tmp_path / "in")
    with (source / "val.txt").open("a") as file:
        file.write("images/5.jpg 1\n")
    with pytest.raises(UserError, match=r"val.txt: images/5.jpg is of class '1', and of '2' in a line or list before; keep one"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("numbers", ["-{}", "{}.5", "{} 1"])
def test_other_numbers_in_lists_are_no_classes(numbers: str, tmp_path: Path) -> None:
    run(in_numbered_lists(tmp_path / "in", numbers), tmp_path / "out")
    assert any(line.startswith("the numbers in train.txt (images/4.jpg") for line in report(tmp_path / "out")["summary"])


def in_lists_of_values(source: Path, *values: int) -> Path:
    """Pictures and a list of train and val, with one of `values` behind each in turn."""
    save_pictures(source, *(f"images/{i}.jpg" for i in range(16)))
    lines = [f"images/{i}.jpg {values[i % len(values)]}\n" for i in range(16)]
    (source / "train.txt").write_text("".join(lines[4:]))
    (source / "val.txt").write_text("".join(lines[:4]))
    return source


def test_ages_or_ids_in_lists_are_no_classes(tmp_path: Path) -> None:
    """They would silently become a class of one or two pictures each."""
    source = in_lists_of_values(tmp_path / "in", 18, 25, 31, 37, 40, 42, 55, 63, 70)
    with pytest.raises(UserError, match=r"train.txt and val.txt: its 16 labels are 9 different numbers, such as 18, as ages"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(source, tmp_path / "out", labels="none")
    (source / "classes.txt").write_text("".join(f"{age}\n" for age in range(71)))
    run(source, tmp_path / "named")
    assert report(tmp_path / "named")["labels_per_class"]["18"] == 2


@pytest.mark.parametrize("first", [0, 1])
def test_ten_digits_on_sixteen_pictures_are_classes(first: int, tmp_path: Path) -> None:
    """Few labels, but without gaps."""
    run(in_lists_of_values(tmp_path / "in", *range(first, first + 10)), tmp_path / "out")
    assert len(facts(tmp_path / "out")["classes"]) == 10


@pytest.mark.parametrize(("values", "is_said"), [((1990, 1991, 1994), True), ((0, 1, 9), True), ((1, 2, 3), False), ((0, 2, 3), False)])
def test_numbers_that_do_not_count_classes_are_said(values: tuple[int, ...], is_said: bool, tmp_path: Path) -> None:
    run(in_lists_of_values(tmp_path / "in", *values), tmp_path / "out")
    line = f"the numbers in train.txt and val.txt, from {values[0]} to {values[-1]}, are taken as 3 classes; values such as ages or counts"
    assert any(each.startswith(line) for each in report(tmp_path / "out")["summary"]) == is_said


def test_a_list_may_name_pictures_with_blanks_in_their_names(tmp_path: Path) -> None:
    for i in range(4):
        save(picture(i), tmp_path / "in" / f"my picture {i}.jpg")
    (tmp_path / "in/val.txt").write_text("my picture 0.jpg\nmy picture 3.jpg\n")
    run(tmp_path / "in", tmp_path / "out")
    assert splits(tmp_path / "out")["val"] == ["my picture 0.jpg", "my picture 3.jpg"]


def test_a_list_of_other_pictures_is_said_and_several_divisions_are_not_mixed(tmp_path: Path) -> None:
    source = in_class_folders(tmp_path / "in")
    (source / "val.txt").write_text("elsewhere/1.jpg\n")
    run(source, tmp_path / "out", val_fraction=0.5)
    note = "val.txt seems to list pictures, and names none that is here (such as 'elsewhere/1.jpg'), so it is not followed"
    assert note in report(tmp_path / "out")["summary"]
    (source / "val.txt").unlink()
    for fold in (1, 2):
        (source / f"test{fold}.txt").write_text(f"cat/{fold}\n")
    run(source, tmp_path / "folds", val_fraction=0.5)
    note = "test1.txt and test2.txt divide the pictures differently, and none such is followed; keep one of each"
    assert note in report(tmp_path / "folds")["summary"]
    assert report(tmp_path / "folds")["left_out_as_test"] == 0


def yolo_set(source: Path, *folders: str) -> Path:
    """Six pictures in each folder below images/, with a box each."""
    for k, folder in enumerate(folders):
        for i in range(6):
            save(picture(10 * k + i), source / "images" / folder / f"{i}.jpg")
            label = source / "labels" / folder / f"{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 .5 .5 .2 .2\n")
    return source


@pytest.mark.parametrize("place", ["images/{}", "../images/{}", "/home/me/set/images/{}", "./images/{}/"])
def test_data_yaml_gives_the_splits_that_folders_do_not(place: str, tmp_path: Path) -> None:
    source = yolo_set(tmp_path / "in", "day", "night")
    (source / "data.yaml").write_text(f"train: {place.format('day')}\nval: [{place.format('night')}]\nnames: [car]\n")
    run(source, tmp_path / "out", val_fraction=0.5)
    assert {len(names) for names in splits(tmp_path / "out").values()} == {6}
    assert all(name.startswith("images/night/") for name in splits(tmp_path / "out")["val"])


def test_of_folders_of_data_yaml_that_hold_each_other_the_inner_one_keeps_its_split(tmp_path: Path) -> None:
    source = yolo_set(tmp_path / "in", "day", "day/dark")
    (source / "data.yaml").write_text("train: images/day\nval: images/day/dark\nnames: [car]\n")
    run(source, tmp_path / "out", val_fraction=0.5)
    assert splits(tmp_path / "out")["val"] == [f"images/day/dark/{i}.jpg" for i in range(6)]


def test_data_yaml_that_trains_on_what_it_measures_is_not_followed(tmp_path: Path) -> None:
    source = yolo_set(tmp_path / "in", "day")
    (source / "data.yaml").write_text("train: images\nval: images\nnames: [car]\n")
    run(source, tmp_path / "out", val_fraction=0.5)
    assert "data.yaml names the same pictures for train and val, so it is not followed" in report(tmp_path / "out")["summary"]
    assert splits(tmp_path / "out")["train"]


def test_a_label_of_a_picture_is_no_list(tmp_path: Path) -> None:
    for i in range(8):
        save(picture(i), tmp_path / "in" / f"val_{i}.jpg")
        (tmp_path / "in" / f"val_{i}.txt").write_text("0 .5 .5 .2 .2\n")
    assert run(tmp_path / "in", tmp_path / "out", val_fraction=0.5)["n_labelled"] == 8


def test_lists_of_classes_that_number_them_differently_are_refused(tmp_path: Path) -> None:
    source = yolo_set(tmp_path / "in", "train", "val")
    (source / "labels/train/classes.txt").write_text("car\nbus\n")
    (source / "labels/val/classes.txt").write_text("car\nbus\nbike\n")  # more classes, numbered alike
    run(source, tmp_path / "out")
    assert list(report(tmp_path / "out")["labels_per_class"]) == ["car", "bus", "bike"]
    assert not report(tmp_path / "out")["passed_over"], "they were read"
    (source / "labels/val/classes.txt").write_text("bus\ncar\n")
    with pytest.raises(UserError, match=r"labels/val/classes\.txt names class 0 'bus', and labels/train/classes\.txt 'car'; keep the list"):
        run(source, tmp_path / "differ")
    (source / "labels/val/classes.txt").write_text("car\n\nbus\n")
    with pytest.raises(UserError, match="line 2 is empty, and lines count as ids from 0"):
        run(source, tmp_path / "empty")


def test_lists_of_classes_in_several_places_number_them_alike(tmp_path: Path) -> None:
    texts = {"data.yaml": "names: [car, bus]\n", "classes.txt": "car\nbus\n", "labels/train/classes.txt": "car\nbus\n"}
    swapped = {"data.yaml": "names: [bus, car]\n", "classes.txt": "bus\ncar\n", "labels/train/classes.txt": "bus\ncar\n"}
    for number, (one, other) in enumerate(permutations(texts, 2)):
        source = yolo_set(tmp_path / f"{number}", "train", "val")
        (source / one).write_text(texts[one])
        (source / other).write_text(texts[other])
        run(source, tmp_path / f"of {number}")
        assert facts(tmp_path / f"of {number}")["classes"] == ["car", "bus"]
        (source / other).write_text(swapped[other])
        with pytest.raises(UserError, match=r"names class 0 .*; keep the list that numbers the classes in the texts"):
            run(source, tmp_path / "differ")


@pytest.mark.parametrize("numbers", ["data.yaml", "classes.txt", "labels/train/classes.txt"])
def test_lists_that_only_number_the_classes_disagree_with_none(numbers: str, tmp_path: Path) -> None:
    texts = {"data.yaml": "names: [Car, bus]\n", "classes.txt": "Car\nbus\n", "labels/train/classes.txt": "car\nbus\n"}
    source = yolo_set(tmp_path / "in", "train", "val")
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / numbers).write_text("names: ['0', '1']\n" if numbers == "data.yaml" else "0\n1\n")
    run(source, tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["Car", "bus"]


@pytest.mark.parametrize("points", [".45 .45 .55 .6 .5 .5 0 0", ".45 .45 1 .55 .6 0 .5 .5 1 .4 .4 1"])
def test_poses_without_a_data_yaml_are_not_taken_for_polygons(points: str, tmp_path: Path) -> None:
    source = yolo_set(tmp_path / "in", "train", "val")
    for path in (source / "labels").rglob("*.txt"):
        path.write_text(f"0 .5 .5 .4 .4 {points}\n")
    with pytest.raises(UserError, match="hold a box and keypoints in each line: YOLO's poses, which are not read"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["fold{}", "Fold_{}", "cv{}", "5-fold{}"])
def test_folds_of_cross_validation_are_not_mixed(name: str, tmp_path: Path) -> None:
    for i in range(8):
        save(picture(i // 2), tmp_path / "in" / name.format(i % 2) / ("train" if i // 2 % 2 == i % 2 else "val") / f"{i}.png")
    with pytest.raises(UserError, match=r"divide pictures into train and val, each in another way; set ingest.source to one"):
        run(tmp_path / "in", tmp_path / "out")
