"""Locations of labels that ingest finds."""

import io
import unicodedata

import numpy as np
import pytest
from ingest_sources import facts, manifest, mask_of, picture, reasons, report, run, save, save_pictures, stored
from PIL import Image, ImageOps

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError


def test_a_list_file_names_pictures_and_their_labels_lie_beside_it(tmp_path):
    outside = save(picture(0), tmp_path / "elsewhere" / "a.png")
    save(picture(1), tmp_path / "set" / "images" / "val" / "b.png")
    save(mask_of(1), tmp_path / "set" / "masks" / "val" / "b.png")
    save(picture(2), tmp_path / "set" / "images" / "train" / "c.png")
    save(mask_of(1), tmp_path / "set" / "masks" / "train" / "c.png")
    save(picture(3), tmp_path / "set" / "images" / "train" / "not_listed.png")
    (tmp_path / "set" / "classes.txt").write_text("ground\nthing\n")
    listing = tmp_path / "set" / "list.txt"
    listing.write_text(f"# mine\nimages/val/b.png\n\n{outside}\nimages/train/c.png\nimages/train/gone.png\n")
    metrics = run(listing, tmp_path / "out", max_bad_fraction=0.5)
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (2, 1, 2)
    assert reasons(tmp_path / "out") == {"images/train/gone.png": "cannot be read: No such file or directory"}
    assert facts(tmp_path / "out")["counts"] == {"train": 2, "val": 1, "labelled_train": 1, "labelled_val": 1}


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
    (source / "labels.csv").write_text("path,label\n")
    assert run(source, tmp_path / "no_lines")["n_labelled"] == 0


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/train/a.jpg", "masks/train/a.png"),
        ("train/images/a.jpg", "train/masks/a.tif"),
        ("train/a.jpg", "masks/train/a.png"),
        ("train/a.jpg", "train/a_mask.png"),
        ("a.jpg", "a.mask.png"),
        ("Images/train/a.jpg", "Masks/train/a.png"),
        ("images/train/a.jpg", "labels/train/a.png"),
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


def test_labels_may_be_the_name_of_a_class(tmp_path):
    save_pictures(tmp_path / "in", "labels/0.png", "parcels/1.png")
    run(tmp_path / "in", tmp_path / "out")
    assert facts(tmp_path / "out")["classes"] == ["labels", "parcels"]


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
    assert reasons(out).keys() == {"images/0.png", "images/1.png", "images/2.png"}
    assert reasons(out)["images/0.png"] == "mask holds the value 7; classes are 0 to 1, and 255 for unknown"
    assert reasons(out)["images/1.png"] == "mask is 24 x 21, its picture 24 x 20; make them equal (masks with nearest neighbour)"
    assert reasons(out)["images/2.png"].startswith("mask is in colours; write the colour of each class behind its name in classes.txt")
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


def test_a_list_may_begin_with_a_mark_and_lie_below_a_folder_named_test(tmp_path):
    source = tmp_path / "test" / "masks" / "set"
    for i, name in enumerate(("train/a.png", "val/b.png", "train/c.png")):
        save(picture(i), source / "Images" / name)
        save(mask_of(1), source / "Masks" / name)
    (source / "classes.txt").write_text("ground\nthing\n")
    names = [str(source / "Images" / name) for name in ("train/a.png", "val/b.png", "train/c.png")]
    for listing, lines in (("absolute.txt", names), ("relative.txt", [name.removeprefix(f"{source}/") for name in names])):
        (source / listing).write_text("\ufeff" + "\n".join(lines))
        metrics = run(source / listing, tmp_path / listing)
        assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (2, 1, 3)


def test_of_copies_one_with_a_label_is_kept_and_other_labels_are_reported(tmp_path, capsys):
    for i in range(4):
        for folder in ("all", "labelled"):
            save(picture(i), tmp_path / "masks_" / "images" / folder / f"{i}.png")
        save(mask_of(1), tmp_path / "masks_" / "masks" / "labelled" / f"{i}.png")
        save(picture(i), tmp_path / "folders" / "cat" / f"{i}.png")
        save(picture(i + (i > 1)), tmp_path / "folders" / "dog" / f"{i}.png")
    (tmp_path / "masks_" / "classes.txt").write_text("ground\nthing\n")
    assert run(tmp_path / "masks_", tmp_path / "a")["n_labelled"] == 4
    assert {row["path"].split("/")[1] for row in manifest(tmp_path / "a")} == {"labelled"}
    assert "copy" not in capsys.readouterr().err
    run(tmp_path / "folders", tmp_path / "b")
    assert report(tmp_path / "b")["label_conflicts"] == 3
    assert "ingest: 3 copies have another label than the picture that was kept\n" in capsys.readouterr().err
    assert report(tmp_path / "b")["examples"]["duplicates"][0] == {
        "path": "dog/0.png",
        "same_as": "cat/0.png",
        "labelled": True,
        "label_lost": True,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"label,path\n1,a/0.png\n2\n", r"line 3: there is a label without a path"),
        (b"path,label\na/0.png,1\na/0.png,2\n", r"line 3: a/0.png is '2', and '1' in a line before; keep one"),
        ("path,label\na/0.png,grün\n".encode("latin-1"), r"labels.csv is not UTF-8 text; save it as UTF-8"),
        ("path,label\na/0.png,1\n".encode("utf-16"), r"labels.csv is not UTF-8 text"),
        (b"path,label,split\na/0.png,1,val\n", r"its column split is not read; lay the pictures into train/, val/ and test/"),
        (b"path|label\na/0.png|1\n", r"must name the columns path and label, with a comma"),
        (b"path,label\n0.png,1\n1.png,2\n", r"names none of the pictures: it says '0.png', and a picture is 'a/0.png'; write paths so"),
    ],
)
def test_what_is_wrong_in_a_table_is_one_line(text, problem, tmp_path):
    save(picture(0), tmp_path / "in" / "a" / "0.png")
    (tmp_path / "in" / "labels.csv").write_bytes(text)
    with pytest.raises(UserError, match=problem):
        run(tmp_path / "in", tmp_path / "out")


def test_class_names_that_are_not_utf8_are_one_line(tmp_path):
    save(picture(0), tmp_path / "in" / "a" / "0.png")
    (tmp_path / "in" / "classes.txt").write_bytes("grün\nblau\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"classes.txt is not UTF-8 text"):
        run(tmp_path / "in", tmp_path / "out")


def test_accents_may_be_written_either_way(tmp_path):
    for i, form in enumerate(("NFC", "NFD")):
        save(picture(i), tmp_path / "in" / unicodedata.normalize(form, f"caf\u00e9{i}.png"))
    names = [unicodedata.normalize("NFC", f"caf\u00e9{i}.png") for i in range(2)]
    (tmp_path / "in" / "labels.csv").write_text("".join(f"{line}\n" for line in ["path,label", f"{names[0]},1", f"{names[1]},2"]))
    assert run(tmp_path / "in", tmp_path / "out")["n_labelled"] == 2


def test_a_class_in_two_unicode_spellings_or_with_odd_spaces_is_one(tmp_path):
    for i, (split, form) in enumerate((("train", "NFC"), ("val", "NFD"))):
        for j, cls in enumerate(("\u00e9pi", "bl\u00e9")):
            save(picture(2 * i + j), tmp_path / "in" / split / unicodedata.normalize(form, cls) / "0.png")
    run(tmp_path / "in", tmp_path / "folders")
    assert report(tmp_path / "folders")["labels_per_class"] == {"bl\u00e9": 2, "\u00e9pi": 2}
    names = sorted(path.relative_to(tmp_path / "in").as_posix() for path in (tmp_path / "in").rglob("*.png"))
    values = [unicodedata.normalize("NFD", "\u00e9pi"), "bl\u00e9\u00a0", "\u00e9pi", "\ufeff bl\u00e9 "]
    (tmp_path / "in" / "labels.csv").write_text("path,label\n" + "".join(f"{n},{v}\n" for n, v in zip(names, values, strict=True)))
    (tmp_path / "in" / "classes.txt").write_text(unicodedata.normalize("NFD", " \u00e9pi\nbl\u00e9\n"))
    run(tmp_path / "in", tmp_path / "table")
    assert report(tmp_path / "table")["labels_per_class"] == {"\u00e9pi": 2, "bl\u00e9": 2}


def test_classes_that_differ_in_capitals_only_are_reported(tmp_path, capsys):
    save_pictures(tmp_path / "in", *(f"{cls}/{i}.png" for i, cls in enumerate(("Cat", "cat", "dog"))))
    run(tmp_path / "in", tmp_path / "out")
    assert "ingest: classes 'Cat' and 'cat' differ in capitals only; are they one?\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "folders", "masks"])
def test_labels_of_one_class_are_refused(kind, tmp_path):
    for i in range(4):
        save(picture(i), tmp_path / "in" / "train" / "cat" / f"{i}.png")
        if kind == "masks":
            save(mask_of(0), tmp_path / "in" / "train" / "cat" / f"{i}_mask.png")
    (tmp_path / "in" / "classes.txt").write_text("cat\ndog\n")
    if kind == "csv":
        (tmp_path / "in" / "labels.csv").write_text("path,label\n" + "".join(f"train/cat/{i}.png,cat\n" for i in range(4)))
    with pytest.raises(UserError, match="all labels are of one class, 'cat': nothing can be learnt from them"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_without_a_known_pixel_are_no_labels(tmp_path):
    for i in range(6):
        split = "val" if i > 3 else "train"
        save(picture(i), tmp_path / "in" / "images" / split / f"{i}.png")
        save(mask_of(1) if split == "train" else Image.new("L", (24, 20), 255), tmp_path / "in" / "masks" / split / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    with pytest.raises(UserError, match=r"there are 4 labels, and none in val \(masks that are 255, unknown, everywhere are none: 2\)"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "lines", ["ground #000000\nroad #804080\n", "0 0 0\tground\n128 64 128\troad\n", "name,r,g,b\nground,0,0,0\nroad,128,64,128\n"]
)
def test_masks_may_hold_the_colours_of_classes_txt(lines, tmp_path):
    colours = np.zeros((20, 24, 3), np.uint8)
    colours[:5] = (128, 64, 128)
    for i in range(2):
        save(picture(i), tmp_path / "in" / "images" / f"{i}.png")
        save(Image.fromarray(colours), tmp_path / "in" / "masks" / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text(lines)
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["labels_per_class"] == {"ground": 2 * 15 * 24, "road": 2 * 5 * 24}


def test_void_is_no_class_of_masks_and_one_of_folders(tmp_path):
    for i in range(4):
        save(picture(i), tmp_path / "masks_" / "images" / f"{i}.png")
        save(mask_of(1 + i % 2), tmp_path / "masks_" / "masks" / f"{i}.png")
        save(picture(i), tmp_path / "folders" / ("unknown" if i % 2 else "cat") / f"{i}.png")
    (tmp_path / "masks_" / "classes.txt").write_text("Void\nroad\nsky\n")
    run(tmp_path / "masks_", tmp_path / "a")
    assert facts(tmp_path / "a")["classes"] == ["road", "sky"]
    assert report(tmp_path / "a")["labels_per_class"] == {"road": 480, "sky": 480}
    assert set(np.unique(ImageSet(tmp_path / "a", "train").read(0).label)) == {0, 255}
    run(tmp_path / "folders", tmp_path / "b")
    assert facts(tmp_path / "b")["classes"] == ["cat", "unknown"]


def test_numbers_in_a_table_and_a_list_that_is_numbered_from_1_do_not_go_together(tmp_path):
    save(picture(0), tmp_path / "in" / "a.png")
    (tmp_path / "in" / "labels.csv").write_text("path,label\na.png,1\n")
    (tmp_path / "in" / "classes.txt").write_text("1 cat\n2 dog\n")
    with pytest.raises(UserError, match=r"is numbered from 1, and the numbers in labels\.csv count from 0; write names in both"):
        run(tmp_path / "in", tmp_path / "out")


def test_masks_of_val_that_vanish_when_they_are_reduced_are_refused(tmp_path):
    """Scoring at the stored size would divide by no pixel."""
    thin = np.full((200, 200), 255, np.uint8)
    thin[0, 0] = 1
    for i in range(6):
        split = "val" if i > 3 else "train"
        save(picture(i, (200, 200)), tmp_path / "in" / "images" / split / f"{i}.png")
        save(Image.fromarray(thin) if split == "val" else mask_of(1, (200, 200)), tmp_path / "in" / "masks" / split / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    with pytest.raises(
        UserError, match=r"none in val \(masks that are 255.* are none: 2, some once they were reduced to ingest.short_side\)"
    ):
        run(tmp_path / "in", tmp_path / "out", short_side=20)


def test_what_is_measured_by_keeps_its_own_size(tmp_path):
    """Val masks are stored as they are, train masks as large as their pictures."""
    for split in ("train", "val"):
        save(picture(len(split), (80, 60)), tmp_path / "in" / "images" / split / "0.png")
        save(mask_of(1, (80, 60)), tmp_path / "in" / "masks" / split / "0.png")
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    run(tmp_path / "in", tmp_path / "out", short_side=30)
    sizes = {}
    for row in manifest(tmp_path / "out"):
        sizes[row["split"]] = [Image.open(io.BytesIO(stored(tmp_path / "out", row, which))).size for which in ("", "label_")]
    assert sizes == {"train": [(40, 30), (40, 30)], "val": [(40, 30), (80, 60)]}


def test_masks_that_belong_to_no_picture_are_not_trained_on(tmp_path):
    save(picture(0), tmp_path / "in" / "images" / "deep" / "a.png")
    save(mask_of(1), tmp_path / "in" / "masks" / "b.png")
    with pytest.raises(
        UserError, match=r"no mask is named as a picture is \(such as masks/b.png\); call the mask of images/A.jpg masks/A.png .*, or set"
    ):
        run(tmp_path / "in", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out", labels="none")["n_train"] == 1


def test_a_class_named_as_a_split_is_not_taken_for_one(tmp_path):
    save_pictures(tmp_path / "in", "plane/0.png", "car/1.png", "train/2.png")
    with pytest.raises(UserError, match=r"train/2.png is read as a picture of that split, but beside it lies the class '(car|plane)'"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_mask_drawn_on_the_file_is_turned_with_its_picture(orientation, tmp_path):
    """Left third of the file's pixels is the thing and is white; after turning, white and thing are still the same pixels."""
    lies = np.zeros((20, 30), np.uint8)
    lies[:, :10] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(Image.fromarray(lies * 255).convert("RGB"), tmp_path / "in" / "images" / "a.png", exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "in" / "images" / "a.png")).convert("L")) // 255
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    for drawn, mask in (("file", lies), ("shown", turned)):
        save(Image.fromarray(mask), tmp_path / "in" / "masks" / "a.png")
        if drawn == "file" and 1 < orientation < 5:
            continue  # the sizes do not tell, so it is taken as shown
        run(tmp_path / "in", tmp_path / drawn)
        sample = ImageSet(tmp_path / drawn, "train").read(0)
        assert np.array_equal(sample.image[..., 0] // 255, sample.label)
