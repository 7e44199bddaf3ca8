"""Where ingest finds labels."""

import numpy as np
import pytest
from ingest_sources import facts, manifest, mask_of, picture, reasons, report, run, save
from PIL import Image

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError


def test_a_list_file_names_pictures_and_their_labels_lie_beside_it(tmp_path):
    outside = save(picture(0), tmp_path / "elsewhere" / "a.png")
    save(picture(1), tmp_path / "set" / "images" / "val" / "b.png")
    save(mask_of(1), tmp_path / "set" / "masks" / "val" / "b.png")
    save(picture(2), tmp_path / "set" / "images" / "train" / "c.png")
    save(picture(3), tmp_path / "set" / "images" / "train" / "not_listed.png")
    (tmp_path / "set" / "classes.txt").write_text("ground\nthing\n")
    listing = tmp_path / "set" / "list.txt"
    listing.write_text(f"# mine\nimages/val/b.png\n\n{outside}\nimages/train/c.png\nimages/train/gone.png\n")
    metrics = run(listing, tmp_path / "out", max_bad_fraction=0.5)
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (2, 1, 1)
    assert reasons(tmp_path / "out") == {"images/train/gone.png": "cannot be read: No such file or directory"}
    assert facts(tmp_path / "out")["counts"] == {"train": 2, "val": 1, "labelled_train": 0, "labelled_val": 1}


def test_class_folders_name_the_classes(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i, name in enumerate(["train/dog/1.png", "train/cat/2.png", "val/cat/3.png", "train/unlabelled/4.png", "test/cat/5.png"]):
        save(picture(i), source / name)
    metrics = run(source, out)
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (3, 1, 3)
    assert facts(out)["task"] == "classification"
    assert facts(out)["classes"] == ["cat", "dog"]
    assert {row["path"]: row["label"] for row in manifest(out)} == {
        "train/dog/1.png": "1",
        "train/cat/2.png": "0",
        "val/cat/3.png": "0",
        "train/unlabelled/4.png": "",
    }
    assert report(out)["left_out_as_test"] == 1
    assert report(out)["labels_per_class"] == {"cat": 2, "dog": 1}
    (source / "classes.txt").write_text("dog\ncat\nbird\n")
    run(source, tmp_path / "named")
    assert facts(tmp_path / "named")["classes"] == ["dog", "cat", "bird"]
    assert manifest(tmp_path / "named")[0]["label"] == "1"
    run(source, tmp_path / "none", labels="none")
    assert facts(tmp_path / "none")["task"] is None


def test_csv_labels_pictures_by_path(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(4):
        save(picture(i), source / "all" / f"{i}.png")
    (source / "labels.csv").write_text("path,label\nall/0.png,10\nall/1.png,9\n./all/2.png,9\nall/gone.png,9\n")
    metrics = run(source, out)
    assert metrics["n_labelled"] == 3
    assert facts(out)["classes"] == ["9", "10"]
    assert [row["label"] for row in manifest(out)] == ["1", "0", "0", ""]
    assert report(out)["labels_without_picture"] == 1
    (source / "classes.txt").write_text("eight\nnine\n")
    run(source, tmp_path / "named", max_bad_fraction=1)
    assert "class '10' is not one of the 2 classes" in reasons(tmp_path / "named")["all/0.png"]
    (source / "labels.csv").write_text("file,class\na,b\n")
    with pytest.raises(UserError, match="must name the columns path and label"):
        run(source, tmp_path / "wrong")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/train/a.jpg", "masks/train/a.png"),
        ("train/images/a.jpg", "train/masks/a.tif"),
        ("train/a.jpg", "masks/train/a.png"),
        ("train/a.jpg", "train/a_mask.png"),
        ("a.jpg", "a.mask.png"),
    ],
)
def test_masks_are_found_where_people_put_them(image, mask, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    save(picture(0), source / image)
    save(picture(1), source / "other_mask.png")  # no picture "other": a picture whose name ends so
    save(mask_of(2), source / mask)
    (source / "classes.txt").write_text("ground\nthing\nother\n")
    metrics = run(source, out)
    assert (metrics["n_train"], metrics["n_labelled"]) == (2, 1)
    images = ImageSet(out, "train")
    (labelled,) = images.labelled()
    assert images.names[labelled] == image
    assert np.array_equal(images.read(labelled).label, np.asarray(mask_of(2)))
    assert report(out)["labels_per_class"] == {"ground": 240, "thing": 0, "other": 240}


def test_wrong_masks_are_quarantined_with_file_and_value(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(4):
        save(picture(i), source / "images" / f"{i}.png")
    save(mask_of(7), source / "masks" / "0.png")
    save(mask_of(1, (24, 21)), source / "masks" / "1.png")
    save(picture(9), source / "masks" / "2.png")
    save(mask_of(1), source / "masks" / "3.png")
    save(mask_of(1), source / "masks" / "nobody.png")
    (source / "classes.txt").write_text("ground\nthing\n")
    run(source, out, max_bad_fraction=0.75)
    assert reasons(out) == {
        "images/0.png": "mask holds the value 7; classes are 0 to 1, and 255 for unknown",
        "images/1.png": "mask is 24 x 21, its picture 24 x 20",
        "images/2.png": "mask is a picture of mode RGB; one channel of class ids is needed (grey, palette or one bit)",
    }
    assert report(out)["masks_without_picture"] == 1


def test_masks_need_class_names_and_ids(tmp_path):
    source = tmp_path / "in"
    save(picture(0), source / "images" / "a.png")
    save(mask_of(255), source / "masks" / "a.png")
    with pytest.raises(UserError, match=r"no classes\.txt"):
        run(source, tmp_path / "out")
    (source / "classes.txt").write_text("ground\nthing\n")
    with pytest.raises(UserError, match="only 0 and 255"):
        run(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"ingest\.labels = csv, but .* has no labels\.csv"):
        run(source, tmp_path / "out", labels="csv")
    assert not (tmp_path / "out").exists()


def test_reduced_masks_keep_their_ids_and_follow_their_picture(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    values = np.kron(np.random.default_rng(0).integers(0, 3, (4, 6)), np.ones((20, 20))).astype(np.uint8)
    save(Image.fromarray(np.stack([values * 100] * 3, axis=2)), source / "images" / "a.png")
    save(Image.fromarray(values), source / "masks" / "a.png")
    (source / "classes.txt").write_text("a\nb\nc\n")
    run(source, out, short_side=40)
    sample = ImageSet(out, "train").read(0)
    assert sample.label.shape == sample.image.shape[:2] == (40, 60)
    assert set(np.unique(sample.label)) <= {0, 1, 2}
    assert np.mean(np.abs(sample.image[..., 0] / 100 - sample.label) < 0.2) > 0.7
