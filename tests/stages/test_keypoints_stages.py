"""Keypoints through the stages: from COCO's files to export; and unsupported combinations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ingest_sources import facts, manifest, reasons, report, run
from PIL import Image
from tiny_chain import brief_params, scratch_metrics

from dreamteacher.data.dataset import ImageSet
from dreamteacher.data.keypoints import Keypoints
from dreamteacher.errors import UserError
from dreamteacher.serving.contract import Contract
from dreamteacher.stages import export_onnx, finetune, ingest, train_interpreter

ONLY: dict[str, Any] = {"compare": {"inits": ["scratch"]}, "export": {"init": "scratch", "size": 32}}
NAMES = ["head", "left_hand", "right_hand"]
PERSON = {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}


def draw(folder: Path, name: str = "person_keypoints_{}.json", **change: Any) -> Path:
    """12 train pictures and 3 for validation, with one to three squares whose upper left corner is red and upper right corner green."""
    generator = np.random.default_rng(5)
    for split, count in (("train", 12), ("val", 3)):
        images, annotations = [], []
        for number in range(count):
            pixels = generator.integers(0, 30, (48, 64, 3))
            for kind in range(1 + number % 3):
                y, x = int(generator.integers(2, 30)), int(generator.integers(2, 5)) + 19 * kind
                pixels[y : y + 14, x : x + 14] += 100
                pixels[y : y + 4, x : x + 4, 0] += 120
                pixels[y : y + 4, x + 10 : x + 14, 1] += 120
                points = [x + 7, y + 7, 2, x + 2, y + 2, 1, x + 12, y + 2, 2]
                entry = {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x, y, 14, 14], "area": 196, "iscrowd": 0}
                annotations.append(entry | {"keypoints": points, "num_keypoints": 3} | change)
            (folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{split}/{number}.png", "width": 64, "height": 48})
        (folder / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": [PERSON]}  # the categories last, as COCO has them
        (folder / "annotations" / name.format(split)).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("people"))


def change_file(source: Path, **changes: Any) -> Path:
    """Both files with other categories, or each annotation with other entries."""
    for path in (source / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] = changes.get("categories", content["categories"])
        for annotation in content["annotations"]:
            annotation.update(changes.get("annotations", {}))
        path.write_text(json.dumps(content))
    return source


def test_keypoints_go_through_the_chain(source: Path, tmp_path: Path) -> None:
    params = brief_params(source, ingest={"task": "keypoints", "short_side": 32}, finetune={"accumulate": 2, "augment": "overhead"}, **ONLY)
    figures, model = scratch_metrics(params, source, tmp_path), tmp_path / "finetuned/scratch/0"
    expected = ["ap", "ap50", "ap75", "pck", *(f"pck_{name}" for name in NAMES)]
    assert [name for name in figures if name.endswith("_mean")] == [f"{name}_mean" for name in expected]
    assert [path.name for path in (tmp_path / "out/overlays").iterdir()] == ["0.png"]
    exported = export_onnx.run(params, data=tmp_path / "data", finetuned=model, out=tmp_path / "onnx")
    assert exported["dynamic_size"] == 1
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "onnx/model.onnx").metadata_props}
    contract = Contract.from_metadata(metadata, "it")
    assert (contract.task, contract.classes, contract.skeleton) == ("keypoints", tuple(NAMES), ((0, 1), (0, 2)))
    with pytest.raises(UserError, match=r"keypoints predicts no classes that an interpreter could read; drop label_recipes"):
        train_interpreter.run(params, data=tmp_path / "data", teacher=tmp_path, seed=0, out=tmp_path / "interpreter")


def test_what_coco_says_of_keypoints_is_kept_and_follows_the_reduced_picture(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", task="keypoints", short_side=24)
    assert {key: facts(tmp_path / "out")[key] for key in ("task", "classes", "skeleton")} == {
        "task": "keypoints",
        "classes": NAMES,
        "skeleton": [[0, 1], [0, 2]],
    }
    assert {row["label"] for row in manifest(tmp_path / "out")} == {"keypoints"}
    val = ImageSet(tmp_path / "out", "val")
    for index in range(3):
        label = val.label(index)
        assert isinstance(label, Keypoints)
        assert label.points[:, :, 2].tolist() == [[2, 1, 2]] * len(label.points)
        assert np.allclose(label.points[:, 1, :2] - label.corners[:, :2], 1)
        assert np.allclose(label.points[:, 2, :2] - label.corners[:, :2], [6, 1])
        assert label.areas.tolist() == [49] * len(label.points)
    summary = report(tmp_path / "out")["summary"]
    assert "class head: 24 keypoints in 12 pictures of train, 6 keypoints in 3 pictures of val" in summary
    assert summary[0].endswith("by keypoints of COCO (such as annotations/person_keypoints_val.json)")


def test_without_the_task_such_files_are_boxes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "auto")
    assert (facts(tmp_path / "auto")["task"], facts(tmp_path / "auto")["classes"]) == ("detection", ["person"])
    assert "skeleton" not in facts(tmp_path / "auto")
    line = "30 objects have keypoints, and their boxes are read; to learn the keypoints, set ingest.task to keypoints"
    assert line in report(tmp_path / "auto")["summary"]
    run(source, tmp_path / "wanted", task="detection")
    assert line not in report(tmp_path / "wanted")["summary"]


def test_shards_that_ingest_wrote_are_read_again(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", task="keypoints")
    with pytest.raises(UserError, match=r"ingest.task = keypoints needs the names of the keypoints, a line each, in classes.txt beside"):
        run(tmp_path / "one/shards", tmp_path / "two", task="keypoints")
    (tmp_path / "one/shards/classes.txt").write_text("\n".join(NAMES) + "\n")
    run(tmp_path / "one/shards", tmp_path / "two", task="keypoints")
    one, two = (ImageSet(tmp_path / name, "train") for name in ("one", "two"))
    place = {two.sha256(index): index for index in range(len(two))}
    for index in range(len(one)):
        assert one.label(index).to_json() == two.label(place[one.sha256(index)]).to_json()  # type: ignore[union-attr]
    assert two.classes == NAMES


def test_objects_without_keypoints_and_of_other_categories(tmp_path: Path) -> None:
    """A dog among the people is none of them; a crowd is ignored; one whose keypoints nobody marked is an object all the same."""
    source = draw(tmp_path / "source")
    path = source / "annotations/person_keypoints_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 7, "name": "dog"})
    for image, category, more in ((0, 7, {}), (1, 1, {"iscrowd": 1}), (2, 1, {"keypoints": [0] * 9, "num_keypoints": 0})):
        content["annotations"].append({"id": 100 + image, "image_id": image, "category_id": category, "bbox": [1, 1, 40, 40], **more})
    path.write_text(json.dumps(content))
    run(source, tmp_path / "out", task="keypoints")
    val = ImageSet(tmp_path / "out", "val")
    labels = {Path(name).stem: val.label(index) for index, name in enumerate(val.names)}
    assert {name: len(label.points) for name, label in labels.items()} == {"0": 1, "1": 3, "2": 4}  # type: ignore[union-attr]
    assert labels["1"].ignored.tolist() == [False, False, True]  # type: ignore[union-attr]
    assert labels["2"].labelled().any(1).tolist() == [True, True, True, False]  # type: ignore[union-attr]


def test_animals_of_several_kinds_with_the_same_keypoints_are_of_one_kind(tmp_path: Path) -> None:
    source = change_file(draw(tmp_path / "source"), categories=[PERSON, PERSON | {"id": 2, "name": "ape"}])
    run(source, tmp_path / "out", task="keypoints")
    assert facts(tmp_path / "out")["classes"] == NAMES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": [{"id": 1, "name": "person"}]}, r"person_keypoints_val.json: no category names its `keypoints`; add them"),
        ({"categories": [PERSON, PERSON | {"id": 2, "name": "dog", "keypoints": ["tail"], "skeleton": []}]}, "have different keypoints"),
        ({"categories": [PERSON | {"keypoints": ["a", "a", "b"]}]}, "names a keypoint twice"),
        ({"categories": [PERSON | {"skeleton": [[0, 4]]}]}, "the skeleton of 'person' has a number beyond 1 to 3"),
        ({"annotations": {"keypoints": []}}, r"has boxes and no `keypoints` of an object; add them, or set ingest.task to detection"),
        ({"annotations": {"keypoints": [1, 1, 2]}}, "an object has 3 numbers of keypoints, and 3 keypoints are 9"),
        ({"annotations": {"keypoints": [1, 1, 7] * 3}}, "a keypoint's third number is none of 0 "),
        ({"annotations": {"keypoints": [1, "x", 2] * 3}}, "its keypoints are no numbers|is no COCO file"),
        ({"annotations": {"keypoints": [1, float("nan"), 2] * 3}}, "a box or keypoint holds a number that is not finite"),
    ],
)
def test_what_is_no_file_of_keypoints_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    source = change_file(draw(tmp_path / "source"), **changes)
    with pytest.raises(UserError, match=words) as caught:
        run(source, tmp_path / "out", task="keypoints")
    assert "\n" not in str(caught.value)


def test_a_keypoint_that_is_wrong_costs_its_picture_alone(tmp_path: Path) -> None:
    source = draw(tmp_path / "source")
    path = source / "annotations/person_keypoints_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["keypoints"][2] = 5
    content["annotations"][1]["keypoints"][:2] = [300, 10]
    path.write_text(json.dumps(content))
    run(source, tmp_path / "out", task="keypoints", max_bad_fraction=0.5)
    assert list(reasons(tmp_path / "out")) == ["train/0.png"]
    assert any(
        line.startswith("1 pictures have keypoints more than 2 pixels beyond the border") for line in report(tmp_path / "out")["summary"]
    )


def test_keypoints_as_fractions_are_refused(tmp_path: Path) -> None:
    """As boxes are; else all would lie in the upper left corner."""
    source = change_file(draw(tmp_path / "source"), annotations={"keypoints": [0.3, 0.3, 2, 0.2, 0.2, 2, 0.4, 0.2, 2]})
    with pytest.raises(UserError, match="its keypoints or boxes lie within one pixel, as fractions would; write them in pixels"):
        run(source, tmp_path / "out", task="keypoints")


def test_boxes_without_area_are_no_fractions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no labelled picture of train has a keypoint"):  # objects without a box are dropped
        run(change_file(draw(tmp_path / "source"), annotations={"bbox": [0, 0, 0, 0]}), tmp_path / "out", task="keypoints")


def test_keypoints_away_from_their_box_are_said(source: Path, tmp_path: Path) -> None:
    line = "pictures have an object whose keypoints lie mostly outside its box"
    run(source, tmp_path / "good", task="keypoints")
    assert not any(line in each for each in report(tmp_path / "good")["summary"])
    swapped = draw(tmp_path / "swapped")
    for path in (swapped / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            points = np.reshape(annotation["keypoints"], (-1, 3))[:, [1, 0, 2]]
            annotation["keypoints"] = points.ravel().tolist()
        path.write_text(json.dumps(content))
    run(swapped, tmp_path / "out", task="keypoints")
    assert any(line in each for each in report(tmp_path / "out")["summary"])


def test_keypoints_at_the_corner_are_said(source: Path, tmp_path: Path) -> None:
    """Some tools write 0, 0 for missing keypoints, and 2 for all."""
    corner = change_file(draw(tmp_path / "corner"), annotations={"keypoints": [0, 0, 2, 12, 12, 2, 0, 0, 0]})
    for name, is_said in ((source, False), (corner, True)):
        run(name, tmp_path / f"out {is_said}", task="keypoints")
        assert ("keypoints_at_origin" in report(tmp_path / f"out {is_said}")["warnings"]) == is_said


def test_poses_of_yolo_are_refused_and_not_read_as_polygons(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for split in ("train", "val"):
        for place in ("images", "labels"):
            (source / place / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(source / f"images/{split}/{split}.png")
        (source / f"labels/{split}/{split}.txt").write_text("0 .5 .5 .4 .4 " + ".5 .5 " * 4)
    (source / "data.yaml").write_text("names: [plate]\nkpt_shape: [4, 2]\n")
    with pytest.raises(UserError, match=r"data.yaml has kpt_shape: its labels are YOLO's poses, which are not read; convert them"):
        run(source, tmp_path / "out")


def test_flips_of_keypoints_without_their_other_side_are_refused_before_training(tmp_path: Path) -> None:
    source = change_file(draw(tmp_path / "source"), categories=[PERSON | {"keypoints": ["head", "left_hand", "hand"]}])
    settings: dict[str, Any] = {"ingest": {"task": "keypoints"}, **ONLY}
    params = brief_params(source, **settings)
    ingest.run(params, source=source, out=tmp_path / "data")
    refused = r"keypoint 'left_hand' has no left or right counterpart .*; rename it, or set finetune.augment to no-flip"
    with pytest.raises(UserError, match=refused):
        finetune.run(params, data=tmp_path / "data", init="scratch", seed=0, out=tmp_path / "model")
    unflipped = brief_params(source, finetune={"augment": "no-flip"}, interpreter={"mirror": False}, **settings)
    finetune.run(unflipped, data=tmp_path / "data", init="scratch", seed=0, out=tmp_path / "model")
