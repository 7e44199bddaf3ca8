"""metadata.csv and metadata.jsonl of HuggingFace's imagefolder give classes and boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ingest_sources import facts, manifest, report, run, save_pictures
from test_ingest_boxes import stored

from dreamteacher.errors import UserError


def jsonl(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def csv(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def labels(out: Path) -> dict[str, str]:
    """Of each picture the name of its class."""
    names = facts(out)["classes"]
    return {row["path"]: names[int(row["label"])] if row["label"] else "" for row in manifest(out)}


def split_set(source: Path) -> None:
    save_pictures(source, *(f"{split}/{i}.png" for split in ("train", "validation", "test") for i in range(3)))


def test_file_names_begin_in_the_folder_of_the_file(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    csv(source / "train/metadata.csv", "file_name,label,text", "0.png,cat,a", "1.png,dog,b", "2.png,,c")
    jsonl(source / "validation/metadata.jsonl", {"file_name": "0.png", "label": "dog"}, {"file_name": "./1.png", "label": None})
    csv(source / "test/metadata.csv", "file_name,label", "0.png,cat")
    run(source, out)
    assert labels(out) == {
        "train/0.png": "cat",
        "train/1.png": "dog",
        "train/2.png": "",
        "validation/0.png": "dog",
        "validation/1.png": "",
        "validation/2.png": "",
    }
    assert (facts(out)["task"], facts(out)["counts"]["labelled_val"]) == ("classification", 1)


def test_one_file_at_the_root_names_pictures_of_all_folders(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    rows = [f"{split}/{i}.png;{i}" for split in ("train", "validation") for i in range(2)]
    csv(source / "metadata.csv", "image_file_name;label", *rows, "train/gone.png;1")
    run(source, out)
    assert [labels(out)[f"train/{i}.png"] for i in range(3)] == ["0", "1", ""]
    assert report(out)["labels_without_picture"] == 1


def test_numbers_are_classes_in_their_order_or_lines_of_classes_txt(tmp_path):
    source = tmp_path / "in"
    split_set(source)
    of_train = ({"file_name": "0.png", "label": 10}, {"file_name": "1.png", "label": 9.0}, {"file_name": "2.png", "label": -1})
    jsonl(source / "train/metadata.jsonl", *of_train)
    jsonl(source / "validation/metadata.jsonl", {"file_name": "0.png", "label": 9})
    run(source, tmp_path / "numbers")
    assert facts(tmp_path / "numbers")["classes"] == ["9", "10"]
    assert [labels(tmp_path / "numbers")[f"train/{i}.png"] for i in range(3)] == ["10", "9", ""]
    (source / "classes.txt").write_text("".join(f"c{i}\n" for i in range(11)))
    run(source, tmp_path / "named")
    assert [labels(tmp_path / "named")[f"train/{i}.png"] for i in range(3)] == ["c10", "c9", ""]


def test_a_list_of_labels_is_several(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    of_train = ({"file_name": "0.png", "label": ["sky", "sea"]}, {"file_name": "1.png", "label": []}, {"file_name": "2.png"})
    jsonl(source / "train/metadata.jsonl", *of_train)
    jsonl(source / "validation/metadata.jsonl", {"file_name": "0.png", "label": ["sea"]})
    run(source, out)
    assert (facts(out)["task"], facts(out)["classes"]) == ("multilabel", ["sea", "sky"])
    assert facts(out)["counts"]["labelled_train"] == 2
    with pytest.raises(UserError, match=r"line 1: its label is a list, .*; for several labels of a picture set ingest.task to multilabel"):
        run(source, tmp_path / "one", task="classification")


def test_objects_are_boxes_of_corner_width_and_height(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    jsonl(
        source / "train/metadata.jsonl",
        {"file_name": "0.png", "objects": {"bbox": [[4, 5, 10, 4], [0, 0, 24, 20]], "categories": ["zebra", "car"]}},
        {"file_name": "1.png", "objects": [{"bbox": [1, 2, 3.5, 4], "category": "car"}]},
        {"file_name": "2.png", "objects": {"bbox": [], "categories": []}},
    )
    csv(
        source / "validation/metadata.csv",
        "file_name,objects",
        '0.png,"{""bbox"": [4, 5, 10, 4], ""category"": ""zebra""}"',
        "1.png,\"{'bbox': [[4, 5, 10, 4]], 'category': ['car']}\"",
        "2.png,",
    )
    run(source, out)
    assert (facts(out)["task"], facts(out)["classes"]) == ("detection", ["car", "zebra"])
    assert stored(out) == {
        "train/0.png": [[4, 5, 14, 9, 1, 0], [0, 0, 24, 20, 0, 0]],
        "train/1.png": [[1, 2, 4.5, 6, 0, 0]],
        "train/2.png": [],
    }
    assert stored(out, "val") == {"validation/0.png": [[4, 5, 14, 9, 1, 0]], "validation/1.png": [[4, 5, 14, 9, 0, 0]]}


def test_categories_may_be_numbers(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    for split in ("train", "validation"):
        jsonl(source / split / "metadata.jsonl", {"file_name": "0.png", "objects": {"bbox": [[1, 2, 3, 4]] * 2, "category": [10, 2]}})
    run(source, out)
    assert facts(out)["classes"] == ["2", "10"]
    assert [row[4] for row in stored(out)["train/0.png"]] == [1, 0]
    (source / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"names the category '10', which classes.txt lacks"):
        run(source, tmp_path / "named")


def test_boxes_that_are_corners_are_refused(tmp_path):
    source = tmp_path / "in"
    split_set(source)
    corners = [[4, 5, 14, 9], [10, 8, 22, 18], [1, 12, 9, 20]]
    for split in ("train", "validation"):
        objects = {"bbox": corners, "categories": [0, 1, 0]}
        jsonl(source / split / "metadata.jsonl", {"file_name": "0.png", "objects": objects})
    with pytest.raises(UserError, match="4 of 6 boxes leave their pictures as x, y, w, h, and 6 would not as x1, y1, x2, y2; write the"):
        run(source, tmp_path / "out")


def test_labels_that_contradict_class_folders_are_refused_unless_one_is_chosen(tmp_path):
    source = tmp_path / "in"
    save_pictures(source, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
    csv(source / "metadata.csv", "file_name,label", "train/cat/1.png,dog", "train/dog/2.png,dog", "val/cat/3.png,cat", "val/dog/4.png,dog")
    with pytest.raises(UserError, match=r"says that train/cat/1.png is 'dog', and it lies in the folder of the class 'cat'; correct one"):
        run(source, tmp_path / "auto")
    csv(source / "metadata.csv", "file_name,label", "train/cat/1.png,cat", "train/dog/2.png,dog", "val/cat/3.png,dog", "val/dog/4.png,cat")
    run(source, tmp_path / "csv", labels="csv")
    assert labels(tmp_path / "csv")["val/cat/3.png"] == "dog"
    run(source, tmp_path / "folders", labels="folders")
    assert labels(tmp_path / "folders")["val/cat/3.png"] == "cat"


def test_a_file_without_labels_leaves_class_folders_and_is_named(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    save_pictures(source, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    csv(source / "metadata.csv", "file_name,text", "train/cat/1.png,a cat")
    run(source, out)
    assert labels(out)["train/cat/1.png"] == "cat"
    line = "metadata.csv gives no labels: it needs the columns file_name and label (or objects), and has file_name, text"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"label": "cat"}, "line 1: there is a label without a file_name|it has no column file_name"),
        ({"file_name": "0.png", "label": {"a": 1}}, "line 1: its label is .*; give the name or the number of a class"),
        ({"file_name": "x.png", "label": "cat"}, "names none of the pictures: it says 'train/x.png', and a picture is '0.png'"),
        ({"file_name": "0.png", "objects": {"categories": [1]}}, "its objects have no list bbox"),
        ({"file_name": "0.png", "objects": {"bbox": [[1, 2, 3, 4]]}}, "have boxes and no categories"),
        ({"file_name": "0.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [1, 2]}}, "1 boxes and 2 categories"),
        ({"file_name": "0.png", "objects": {"bbox": [[1, 2, 3]], "categories": [1]}}, "is not of four numbers"),
        ({"file_name": "0.png", "label": 1, "objects": {"bbox": []}}, "boxes and .* classes; set ingest.task to detection or class"),
        ({"file_name": "0.png", "label": 1, "split": "val"}, "column split is not read"),
    ],
)
def test_what_cannot_be_understood_is_one_line(line, words, tmp_path):
    split_set(tmp_path / "in")
    save_pictures(tmp_path / "in", "0.png")
    other = {"file_name": "../0.png", "label": 0} if "split" not in line else {"file_name": "../0.png", "label": 0, "split": "val"}
    lines = [line] if "objects" in line or "x.png" in str(line) else [line, other]
    jsonl(tmp_path / "in" / "train/metadata.jsonl", *lines)
    with pytest.raises(UserError, match=words):
        run(tmp_path / "in", tmp_path / "out")


def test_a_damaged_line_is_named_and_a_table_of_something_else_is_not_read(tmp_path, capsys):
    source = tmp_path / "in"
    split_set(source)
    (source / "metadata.jsonl").write_text('{"file_name": "train/0.png", "label": 1}\n{"file_name": \n')
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2: it is no JSON .*; write one object on each line"):
        run(source, tmp_path / "out")
    (source / "metadata.jsonl").unlink()
    (source / "metadata.csv").write_bytes(b"Gr\xf6\xdfe,Ort\n1,2\n")
    assert run(source, tmp_path / "other")["n_labelled"] == 0
    assert "metadata.csv is not UTF-8 text; save it as UTF-8; it is not read" in capsys.readouterr().err


def test_two_lines_may_not_differ_about_a_picture(tmp_path):
    source = tmp_path / "in"
    split_set(source)
    csv(source / "metadata.csv", "file_name,label", "train/0.png,cat", "validation/0.png,dog")
    csv(source / "train/metadata.csv", "file_name,label", "0.png,dog")
    with pytest.raises(UserError, match=r"line 2: train/0.png has another label than in a line before; keep one"):
        run(source, tmp_path / "out")


def test_labels_csv_counts_before_metadata_and_a_line_says_so(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    split_set(source)
    csv(source / "train/metadata.csv", "file_name,label", "0.png,cat", "1.png,dog")
    csv(source / "labels.csv", "path,label", "train/0.png,x", "train/1.png,y", "validation/0.png,x")
    run(source, out)
    assert facts(out)["classes"] == ["x", "y"]
    assert "train/metadata.csv is not read, as there are labels of the kind csv" in capsys.readouterr().err
