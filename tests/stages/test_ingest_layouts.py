"""Masks, splits and classes in the layouts of well-known data sets and tools are found or refused; a mask is never a training picture."""

from pathlib import Path

import numpy as np
import pytest
from ingest_sources import facts, manifest, mask_of, picture, report, run, save, save_pictures
from PIL import Image

from dreamteacher.data.layout import meaning
from dreamteacher.errors import UserError

# Each: where the picture, its mask, and what else lies beside it; {i} of 0 to 3 are train, 4 and 5 val.
LAYOUTS = {
    "ours": ("images/{s}/{i}.jpg", "masks/{s}/{i}.png"),
    "Cityscapes": (
        "leftImg8bit/{s}/aachen/a_{i}_leftImg8bit.png",
        "gtFine/{s}/aachen/a_{i}_gtFine_labelTrainIds.png",
        "gtFine/{s}/aachen/a_{i}_gtFine_labelIds.png",
        "gtFine/{s}/aachen/a_{i}_gtFine_instanceIds.png",
        "gtFine/{s}/aachen/a_{i}_gtFine_color.png",
    ),
    "ADE20K": ("images/{training}/ADE_{i}.jpg", "annotations/{training}/ADE_{i}.png"),
    "CamVid, SegNet's": ("{s}/{i}.png", "{s}annot/{i}.png"),
    "CamVid": ("{s}/images/0001TP_{i}.png", "{s}/LabeledApproved_full/0001TP_{i}_L.png"),
    "mmsegmentation": ("img_dir/{s}/{i}.jpg", "ann_dir/{s}/{i}.png"),
    "BDD100K": ("images/10k/{s}/{i}.jpg", "labels/sem_seg/masks/{s}/{i}.png", "labels/sem_seg/colormaps/{s}/{i}.png"),
    "KITTI": (
        "data_semantics/{training}/image_2/{i}_10.png",
        "data_semantics/{training}/semantic/{i}_10.png",
        "data_semantics/{training}/semantic_rgb/{i}_10.png",
        "data_semantics/{training}/instance/{i}_10.png",
    ),
    "Mapillary": ("{training}/images/{i}.jpg", "{training}/v1.2/labels/{i}.png", "{training}/v1.2/instances/{i}.png"),
    "Kvasir": ("{s}/images/{i}.jpg", "{s}/masks/{i}.jpg.png"),
    "ISIC": ("ISIC_{training}_Input/I_{i}.jpg", "ISIC_{training}_GroundTruth/I_{i}_segmentation.png"),
    "COCO-stuff": ("images/{s}2017/{i}.jpg", "stuffthingmaps/{s}2017/{i}.png"),
    "LoveDA": ("{s}/Rural/images_png/{i}.png", "{s}/Rural/masks_png/{i}.png"),
    "Potsdam": (
        "{s}/2_Ortho_RGB/p_{i}_RGB.tif",
        "{s}/5_Labels_all/p_{i}_label.tif",
        "{s}/5_Labels_all_noBoundary/p_{i}_label_noBoundary.tif",
    ),
    "DeepGlobe": ("{s}/{i}_sat.jpg", "{s}/{i}_mask.png"),
    "labelme": (
        "{s}/JPEGImages/{i}.jpg",
        "{s}/SegmentationClassPNG/{i}.png",
        "{s}/SegmentationClassVisualization/{i}.png",
        "{s}/SegmentationObjectPNG/{i}.png",
    ),
    "Supervisely": ("{s}/img/{i}.jpg", "{s}/masks_machine/{i}.png", "{s}/masks_human/{i}.png"),
    "nnU-Net": ("{s}/images{tr}/c_{i}_0000.png", "{s}/labels{tr}/c_{i}.png"),
    "JPG and MASK": ("{s}/JPG/{i}.jpg", "{s}/MASK/{i}.png"),
    "img and mask": ("{s}/img/{i}.jpg", "{s}/mask/{i}.png"),
    "imgs": ("imgs/{s}/{i}.jpg", "annotations/{s}/{i}.png"),
    "input and target": ("input/{s}/{i}.png", "target/{s}/{i}.png"),
    "rgb and gt": ("{s}/rgb/{i}.png", "{s}/gt/{i}.png"),
    "train_images": ("{s}_images/{i}.jpg", "{s}_masks/{i}.png"),
    "Image and Label": ("{s}/Image/{i}.jpg", "{s}/Label/{i}.png"),
    "beside each other": ("{s}/{i}.jpg", "{s}/{i}_seg.png", "{s}/{i}_overlay.png", "{s}/{i}_color.png"),
    "LIP": ("TrainVal_images/{s}_images/{i}.jpg", "TrainVal_parsing_annotations/{s}_segmentations/{i}.png"),
    "first words": ("{s}/img_{i}.jpg", "{s}/mask_{i}.png"),
    "first words in folders": ("{s}/images/image_{i}.jpg", "{s}/masks/label_{i}.png"),
    "FloodNet": ("{s}/{s}-org-img/{i}.jpg", "{s}/{s}-label-img/{i}_lab.png"),
    "UAVid": ("uavid_{s}/seq{i}/Images/000.png", "uavid_{s}/seq{i}/Labels/000.png"),
    "with depth": ("rgb/{s}/{i}.png", "labels/{s}/{i}.png", "depth/{s}/{i}.png"),
    "with overlays": ("images/{s}/{i}.jpg", "masks/{s}/{i}.png", "overlays/{s}/{i}.png", "masks/{s}/{i}_vis.png", "vis/{s}/{i}.png"),
}


def lay_out(source: Path, places: tuple[str, ...], classes: str | None = "ground\nthing\n") -> Path:
    for i in range(6):
        split = "train" if i < 4 else "val"
        words = {"s": split, "training": {"train": "training", "val": "validation"}[split], "tr": {"train": "Tr", "val": ""}[split], "i": i}
        for place, image in zip(places, [picture(i), mask_of(1), *[mask_of(200 + i).convert("RGB")] * 4], strict=False):
            save(image, source / place.format(**words))
    if classes:
        source.mkdir(exist_ok=True)
        (source / "classes.txt").write_text(classes)
    return source


@pytest.mark.parametrize("name", LAYOUTS)
def test_masks_of_well_known_layouts_are_found(name, tmp_path):
    source, out = lay_out(tmp_path / "in", LAYOUTS[name]), tmp_path / "out"
    assert run(source, out) == {"n_train": 4, "n_val": 2, "n_labelled": 6, "n_quarantined": 0, "n_duplicates": 0, "n_leaks": 0}
    suffix = Path(LAYOUTS[name][0]).suffix
    assert all(row["path"].endswith(suffix) and "mask" not in row["path"].lower() for row in manifest(out))
    assert report(out)["labels_per_class"] == {"ground": 6 * 240, "thing": 6 * 240}
    assert report(out)["masks_without_picture"] == 0


def test_the_lists_of_pascal_voc_give_the_splits(tmp_path):
    root = tmp_path / "in" / "VOCdevkit" / "VOC2012"
    for i in range(8):
        save(picture(i), root / "JPEGImages" / f"2007_{i}.jpg")
        if i < 6:
            save(mask_of(1), root / "SegmentationClass" / f"2007_{i}.png")
            save(mask_of(1), root / "SegmentationClassAug" / f"2007_{i}.png")
            save(mask_of(3), root / "SegmentationObject" / f"2007_{i}.png")
    for task, val in (("Main", range(8)), ("Segmentation", range(4, 6))):
        (root / "ImageSets" / task).mkdir(parents=True)
        (root / "ImageSets" / task / "val.txt").write_text("".join(f"2007_{i}\n" for i in val))
        (root / "ImageSets" / task / "trainval.txt").write_text("".join(f"2007_{i}\n" for i in range(6)))
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    metrics = run(tmp_path / "in", tmp_path / "out", val_fraction=0.5)
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (6, 2, 6)
    assert {row["path"][-10:] for row in manifest(tmp_path / "out") if row["split"] == "val"} == {"2007_4.jpg", "2007_5.jpg"}
    assert report(tmp_path / "out")["beside_masks"] == 6


UNKNOWN = {
    "folders": (
        "{s}/Frames3/{i}.jpg",
        "{s}/Zones/{i}.png",
        r"Zones/ looks like masks of the pictures in \w+/Frames3/; call the folders masks/",
    ),
    "above": ("pics_a/{s}/{i}.png", "zones/{s}/{i}.png", "zones/ looks like masks of the pictures in pics_a/"),
    "an ending": ("{s}/{i}.jpg", "{s}/{i}_zones.png", "files whose names end in '_zones' look like masks of the pictures beside them"),
    "an ending with a digit": (
        "{s}/{i}.jpg",
        "{s}/{i}_1stHO.png",
        "files whose names end in '_1stHO' look like masks of the pictures beside",
    ),
    "several of a picture": (
        "ISIC_{training}_Input/I_{i}.jpg",
        "ISIC_{training}_GroundTruth/I_{i}_attribute_globules.png",
        r"I_0_attribute_globules.png and others are named and look like masks, but not one has the name of a picture; .*merge several",
    ),
    "of numbered pictures": (
        "CelebA-HQ-img/{i}.jpg",
        "CelebAMask-HQ-mask-anno/0/0000{i}_hair.png",
        r"00000_hair.png and others are named and look like masks",
    ),
    "both": ("a/{i}.jpg", "b/{i}_zones.png", "b/ looks like masks of the pictures in a/"),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("labels", ["auto", "none"])
def test_masks_in_an_unknown_layout_are_refused_and_not_trained_on(name, labels, tmp_path):
    *places, problem = UNKNOWN[name]
    with pytest.raises(UserError, match=problem):
        run(lay_out(tmp_path / "in", tuple(places), classes=None), tmp_path / "out", labels=labels)


def test_colours_of_known_masks_are_not_trained_on_whatever_their_folder_is_called(tmp_path):
    with pytest.raises(UserError, match=r"pretty/ looks like masks of the pictures in images/"):
        run(lay_out(tmp_path / "in", ("images/{i}.jpg", "masks/{i}.png", "pretty/{i}.png")), tmp_path / "out")


def digit(seed: int, strokes: int) -> Image.Image:
    """Grey strokes with soft edges on black, as MNIST's."""
    values = np.zeros((28, 28))
    generator = np.random.default_rng(seed)
    for _ in range(strokes):
        x = generator.integers(4, 22)
        values[4:24, x : x + 3] = generator.integers(40, 256, (20, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("kind", ["photographs", "digits", "drawings", "drawings of one class"])
def test_classes_with_equal_file_names_stay_classes(kind, tmp_path):
    for i in range(12):
        shapes = {
            "photographs": (picture(i), picture(100 + i)),
            "digits": (digit(i, 1), digit(100 + i, 4)),
            "drawings": (mask_of(255 - i), mask_of(100 - i)),
            "drawings of one class": (picture(i), picture(i, (20, 24)).quantize(4)),
        }[kind]
        for cls, image in zip(("cat", "dog"), shapes, strict=True):
            save(image, tmp_path / "in" / cls / f"{i}.png")
    assert run(tmp_path / "in", tmp_path / "out")["n_labelled"] == 24
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "dev"),
        ("Train", "development"),
        ("training", "validate"),
        ("train2017", "val2017"),
        ("train_images", "val_images"),
        ("train-split", "val_set"),
        ("trainset", "evaluation"),
        ("TRAIN", "held-out"),
        ("trainval", "holdout"),
        ("images_train", "Eval"),
    ],
)
def test_folders_that_mean_a_split_are_that_split(train, val, tmp_path):
    for i in range(4):
        for j, cls in enumerate(("cat", "dog")):
            save(picture(10 * i + j), tmp_path / "in" / train / cls / f"{i}.png")
            save(picture(10 * i + j + 5), tmp_path / "in" / val / cls / f"{i}.png")
    assert run(tmp_path / "in", tmp_path / "out")["n_val"] == 8
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_dev_and_eval_are_left_out_where_val_is_there(tmp_path):
    save_pictures(tmp_path / "in", *(f"{split}/{i}.png" for i, split in enumerate(("train", "train", "val", "dev", "eval", "test2017"))))
    assert run(tmp_path / "in", tmp_path / "out")["n_val"] == 1
    assert report(tmp_path / "out")["left_out_as_test"] == 3


@pytest.mark.parametrize(
    "places",
    [
        ("{s}2017/{i}.jpg", "annotations/panoptic_{s}2017/{i}.png"),
        ("{s}2017/{i}.jpg", "panoptic_{s}2017/{i}.png"),
        ("images/{s}/{i}.jpg", "instances/{s}/{i}.png"),
        ("rgb/{s}/{i}.png", "depth/{s}/{i}.png"),
    ],
)
def test_what_belongs_to_pictures_and_is_no_mask_is_not_trained_on(places, tmp_path):
    """Of panoptic pictures each has colours of its own, so that they do not look like masks."""
    for i in range(6):
        for place in places:
            save(picture(10 * i + places.index(place)), tmp_path / "in" / place.format(s="val" if i > 3 else "train", i=i))
    assert run(tmp_path / "in", tmp_path / "out")["n_train"] == 4
    assert report(tmp_path / "out")["beside_masks"] == 6


def test_of_two_masks_the_one_in_the_nearer_folder_counts(tmp_path):
    for i in range(4):
        for form, suffix in (("PNG", "png"), ("TIF", "tif")):
            save(picture(i), tmp_path / "in" / form / "Original" / f"{i}.{suffix}")
            save(mask_of(1), tmp_path / "in" / form / "Ground Truth" / f"{i}.{suffix}")
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    metrics = run(tmp_path / "in", tmp_path / "out")
    assert (metrics["n_labelled"], metrics["n_duplicates"]) == (4, 4)


def test_vessels_count_and_not_the_field_of_view_beside_them(tmp_path):
    """DRIVE: mask/ is where the eye is, 1st_manual/ and 2nd_manual/ are two observers."""
    for i in range(21, 25):
        save(picture(i), tmp_path / "in" / "training" / "images" / f"{i}_training.tif")
        save(mask_of(1), tmp_path / "in" / "training" / "1st_manual" / f"{i}_manual1.gif")
        for k, place in enumerate(("2nd_manual/{i}_manual2.gif", "mask/{i}_training_mask.gif")):
            save(mask_of(2 + k), tmp_path / "in" / "training" / place.format(i=i))
    (tmp_path / "in" / "classes.txt").write_text("ground\nvessel\nother\nview\n")
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["labels_per_class"] == {"ground": 960, "vessel": 960, "other": 0, "view": 0}


def test_a_mask_that_has_its_picture_is_not_taken_for_another_of_a_like_name(tmp_path):
    for i, name in enumerate(("a", "a_raw", "b_raw")):
        save(picture(i), tmp_path / "in" / "images" / f"{name}.png")
    for name in ("a", "b"):
        save(mask_of(1), tmp_path / "in" / "masks" / f"{name}.png")
    (tmp_path / "in" / "classes.txt").write_text("ground\nthing\n")
    run(tmp_path / "in", tmp_path / "out")
    labels = {row["path"]: row["label"] for row in manifest(tmp_path / "out")}
    assert labels == {"images/a.png": "mask", "images/a_raw.png": "", "images/b_raw.png": "mask"}


def test_folders_that_an_archive_was_unpacked_into_twice_are_no_classes(tmp_path):
    for i, split in enumerate(("train", "val")):
        for j in range(4):
            save(picture(10 * i + j), tmp_path / "flat" / split / split / f"{j}.png")
            save(picture(10 * i + j), tmp_path / "classes" / split / split / ("cat" if j % 2 else "dog") / f"{j}.png")
    metrics = run(tmp_path / "flat", tmp_path / "a")
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (4, 4, 0)
    assert run(tmp_path / "classes", tmp_path / "b")["n_labelled"] == 8
    assert facts(tmp_path / "b")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("name", ["class_dict.csv", "label_colors.txt", "labelmap.txt", "train/_classes.csv"])
def test_a_list_of_classes_of_another_tool_is_named_where_classes_txt_is_missing(name, tmp_path):
    source = lay_out(tmp_path / "in", ("images/{s}/{i}.png", "masks/{s}/{i}.png"), classes=None)
    (source / "train").mkdir(exist_ok=True)
    (source / name).write_text("background\nthing\n")
    with pytest.raises(UserError, match=f"no classes.txt in .*; if {name} there lists the classes, copy it to classes.txt"):
        run(source, tmp_path / "out")


def test_folders_of_labelled_and_unlabelled_pictures(tmp_path):
    for i in range(8):
        save(picture(i), tmp_path / "in" / "labeled" / ("cat" if i % 2 else "dog") / f"{i}.png")
        save(picture(10 + i), tmp_path / "in" / "unlabeled" / f"{i}.png")
    metrics = run(tmp_path / "in", tmp_path / "out")
    assert (metrics["n_train"], metrics["n_labelled"]) == (16, 8)
    assert facts(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_classes_around_splits_are_said(tmp_path):
    for i in range(8):
        save(picture(i), tmp_path / "in" / ("cat" if i % 2 else "dog") / ("val" if i > 5 else "train") / f"{i}.png")
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["summary"][-1] == "if cat and dog are classes, put them inside train/ and val/, not around them"


def test_a_list_that_names_no_folder_is_said(tmp_path):
    for i in range(4):
        save(picture(i), tmp_path / "in" / "images" / ("001.cat" if i % 2 else "002.dog") / f"{i}.png")
    (tmp_path / "in" / "classes.txt").write_text("1 001.cat\n2 002.dog\n")
    run(tmp_path / "in", tmp_path / "out")
    line = "no folder has the name of a class: classes.txt says '1 001.cat', and a folder is '001.cat'"
    assert report(tmp_path / "out")["summary"][-1] == line


def test_a_source_without_pictures_says_what_is_there(tmp_path):
    for name in ("pathmnist.npz", "train.parquet"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    save(mask_of(1), tmp_path / "in" / "masks" / "0.png")
    with pytest.raises(UserError, match=r"there are 1 pictures in folders of masks, 1 .npz \(pathmnist.npz\), 1 .parquet .*unpack tables"):
        run(tmp_path / "in", tmp_path / "out")


def test_two_sets_of_masks_are_not_mixed(tmp_path):
    source = lay_out(tmp_path / "in", ("{s}/images/{i}.png", "{s}/v1.2/labels/{i}.png"))
    for path in list(source.rglob("v1.2/labels/*.png")):
        save(mask_of(0), Path(str(path).replace("v1.2", "v2.0")))
    with pytest.raises(UserError, match=r"2 masks belong to it \(one is val/v1.2/labels/4.png\); keep the folder of one set of masks"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (("fold1", "fold2", "fold3"), "the folders fold1, fold2, fold3 look like parts of one set, not like classes"),
        (("HAM_images_part_1", "HAM_images_part_2"), "look like parts of one set"),
        (
            ("first/cat", "first/dog", "second/cat", "second/dog"),
            r"the folders first, second hold the same folders \(cat, dog\), as splits do",
        ),
        (("train/cat", "train/dog", "quiz/cat"), "train/cat/0.png is read as a picture of that split, but beside it lies the class 'quiz'"),
    ],
)
def test_folders_that_may_be_splits_under_another_name_are_refused(folders, problem, tmp_path):
    save_pictures(tmp_path / "in", *(f"{folder}/{i}.png" for i, folder in enumerate(folders)))
    with pytest.raises(UserError, match=problem) as refusal:
        run(tmp_path / "in", tmp_path / "out")
    assert "list all classes in classes.txt" in str(refusal.value)


def test_classes_that_are_named_as_splits_are_listed_in_classes_txt(tmp_path):
    save_pictures(tmp_path / "in", "plane/0.png", "train/1.png", "masks/2.png")
    (tmp_path / "in" / "classes.txt").write_text("plane\ntrain\nmasks\n")
    assert run(tmp_path / "in", tmp_path / "out")["n_labelled"] == 3
    assert report(tmp_path / "out")["labels_per_class"] == {"plane": 1, "train": 1, "masks": 1}


@pytest.mark.parametrize("name", ["cat", "pregnancy_test", "with_mask", "valtra", "VOCdevkit", "seal", "fold1", "imagination"])
def test_other_names_mean_no_split_and_no_pictures(name):
    assert (meaning(name).split, meaning(name).role in ("", "mask?")) == (None, True)
