import csv
import gc
import hashlib
import io
import json
import os
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pytest
import webdataset
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem

from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.data.decode import decode
from dreamteacher.data.shards import ShardSet
from dreamteacher.data.sources import find
from dreamteacher.errors import UserError
from dreamteacher.params import Params
from dreamteacher.stages import ingest

SAMPLE = Path(__file__).parents[2] / "samples" / "nuclei"


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def mask_of(value: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    values = np.zeros((size[1], size[0]), np.uint8)
    values[: size[1] // 2] = value
    return Image.fromarray(values)


def params(**settings) -> Params:
    return Params(ingest={"val_fraction": 0.0, **settings})


def run(source: Path | str, out: Path, **settings) -> dict[str, float]:
    return ingest.run(params(**settings), out=out, source=source)


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def facts(out: Path) -> dict:
    return json.loads((out / "dataset.json").read_text())


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def reasons(out: Path) -> dict[str, str]:
    with (out / "quarantine.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def bytes_of(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def nested(tmp_path) -> Path:
    source = tmp_path / "pictures"
    for i, name in enumerate(["b.png", "deep/er/c.JPG", "a.bmp", "deep/d.webp", ".hidden/e.png", ".f.png"]):
        save(picture(i), source / name)
    (source / "notes.txt").write_text("not a picture")
    return source


def test_a_folder_is_searched_recursively_and_in_order(nested, tmp_path):
    metrics = run(nested, tmp_path / "out")
    assert metrics == {"n_train": 4, "n_val": 0, "n_labelled": 0, "n_quarantined": 0, "n_duplicates": 0, "n_leaks": 0}
    assert [row["path"] for row in manifest(tmp_path / "out")] == ["a.bmp", "b.png", "deep/d.webp", "deep/er/c.JPG"]
    assert report(tmp_path / "out")["ignored_files"] == 1
    assert facts(tmp_path / "out")["task"] is None
    sizes = {(row["width"], row["height"], row["split"], row["label"]) for row in manifest(tmp_path / "out")}
    assert sizes == {("24", "20", "train", "")}


def test_two_runs_give_the_same_bytes_wherever_the_source_lies(nested, tmp_path):
    run(nested, tmp_path / "one", val_fraction=0.5)
    nested.rename(tmp_path / "elsewhere").rename(nested)
    run(str(nested), tmp_path / "two", val_fraction=0.5)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert "shards/train-000000.tar" in bytes_of(tmp_path / "one")


def test_a_finished_set_is_not_made_again(nested, tmp_path, monkeypatch):
    first = run(nested, tmp_path / "out")
    monkeypatch.setattr(ingest, "find", lambda *args, **settings: pytest.fail("looked again"))
    assert run(nested, tmp_path / "out") == first


def test_stored_bytes_are_the_originals_unless_they_had_to_change(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    kept = [save(picture(0), source / "kept.png"), save(picture(1), source / "kept.jpg", quality=70)]
    save(picture(2), source / "lossless.bmp")
    save(picture(3), source / "lossy.webp", quality=80)
    save(picture(4).convert("CMYK"), source / "cmyk.jpg")
    save(picture(5, (200, 100)), source / "large.png")
    save(picture(6, (100, 300)), source / "large.jpg")
    save(picture(7).convert("L"), source / "grey.tif")
    run(source, out, short_side=40)
    images = ImageSet(out, "train")
    stored = {row["path"]: (row, _stored(out, row)) for row in manifest(out)}
    for path in kept:
        assert stored[path.name][1] == path.read_bytes()
    formats = {name: Image.open(io.BytesIO(data)).format for name, (_, data) in stored.items()}
    assert formats == {
        "kept.png": "PNG",
        "kept.jpg": "JPEG",
        "lossless.bmp": "PNG",
        "lossy.webp": "JPEG",
        "cmyk.jpg": "JPEG",
        "large.png": "PNG",
        "large.jpg": "JPEG",
        "grey.tif": "PNG",
    }
    read = {images.names[i]: images.read(i).image for i in range(len(images))}
    assert np.array_equal(read["lossless.bmp"], np.asarray(picture(2)))
    assert (read["large.png"].shape, read["large.jpg"].shape) == ((40, 80, 3), (120, 40, 3))
    assert np.array_equal(read["large.png"], np.asarray(picture(5, (200, 100)).resize((80, 40), Image.Resampling.BILINEAR)))
    assert Image.open(io.BytesIO(stored["grey.tif"][1])).mode == "L"
    assert {name: row["mode"] for name, (row, _) in stored.items()}["cmyk.jpg"] == "CMYK"


def _stored(out: Path, row: dict[str, str], which: str = "") -> bytes:
    data = (out / "shards" / row["shard"]).read_bytes()
    start = int(row[f"{which}offset"])
    return data[start : start + int(row[f"{which}length"])]


def test_random_access_equals_what_tar_and_webdataset_read(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(30):
        save(picture(i, (400, 300)), source / "images" / f"{i}.png")
        save(mask_of(i % 2, (400, 300)), source / "masks" / f"{i}.png")
    (source / "classes.txt").write_text("ground\nthing\n")
    run(source, out, shard_mb=1, short_side=None)
    rows = manifest(out)
    shards = sorted((out / "shards").iterdir())
    assert len(shards) > 5
    members = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                members[shard.name, member.offset_data, member.size] = tar.extractfile(member).read()
                assert (member.mtime, member.uname) == (0, "dreamteacher")
    assert len(members) == 60
    for row in rows:
        for which in ("", "label_"):
            place = row["shard"], int(row[f"{which}offset"]), int(row[f"{which}length"])
            assert members[place] == _stored(out, row, which)
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [sample["png"] for sample in samples] == [_stored(out, row) for row in rows]
    assert [sample["mask.png"] for sample in samples] == [_stored(out, row, "label_") for row in rows]


def test_mean_and_std_are_those_of_the_train_pixels(nested, tmp_path):
    run(nested, tmp_path / "out", val_fraction=0.5)
    images = ImageSet(tmp_path / "out", "train")
    assert 0 < len(images) < 4
    pixels = np.concatenate([images.read(i).image.reshape(-1, 3) for i in range(len(images))]) / 255
    assert np.allclose(images.mean, pixels.mean(0), atol=0.002)
    assert np.allclose(images.std, pixels.std(0), atol=0.002)


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


def test_names_that_cannot_be_written_down_are_counted(nested):
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        (nested / os.fsdecode(name)).write_bytes((nested / "b.png").read_bytes())
    found = find(str(nested), "none", 10_000)
    assert len(list(found.items)) == 4
    assert found.counts["unprintable_names"] == 2


def test_nothing_to_train_on_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="is no text"):
        run(save(picture(0), tmp_path / "one.png"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in"):
        run(tmp_path / "empty", tmp_path / "out")
    save(picture(0), tmp_path / "val_only" / "val" / "a.png")
    with pytest.raises(UserError, match="no picture is left to train on"):
        run(tmp_path / "val_only", tmp_path / "out")


def write_shard(path: Path, samples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_local_shards_with_braces_and_classes(tmp_path):
    for shard in range(3):
        samples = [{"__key__": f"{shard}{i}", "png": png(picture(10 * shard + i)), "cls": str(i % 2).encode()} for i in range(4)]
        write_shard(tmp_path / f"train-{shard:06}.tar", samples)
    facts_of = [{"__key__": "a", "png": png(picture(50)), "json": b'{"label": "odd"}'}, {"__key__": "b", "txt": b"no picture"}]
    write_shard(tmp_path / "val-000000.tar", facts_of)
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    metrics = run(f"{tmp_path}/{{train-{{000000..000002}},val-000000}}.tar", tmp_path / "out")
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (12, 1, 13)
    assert facts(tmp_path / "out")["classes"] == ["even", "odd"]
    assert {row["path"]: row["label"] for row in manifest(tmp_path / "out")}["val-000000.tar/a.png"] == "1"
    assert manifest(tmp_path / "out")[1]["path"] == "train-000000.tar/00.png"
    with pytest.raises(UserError, match=r"there is no shard .*train-000003.tar"):
        run(f"{tmp_path}/train-{{000000..000003}}.tar", tmp_path / "missing")


def test_a_damaged_shard_is_quarantined_and_the_rest_is_kept(tmp_path):
    good = write_shard(tmp_path / "a.tar", [{"__key__": f"{i}", "png": png(picture(i))} for i in range(4)])
    (tmp_path / "b.tar").write_bytes(good.read_bytes()[:3000])
    run(f"{tmp_path}/*.tar", tmp_path / "out", max_bad_fraction=0.5)
    assert list(reasons(tmp_path / "out")) == ["b.tar"]
    assert len(manifest(tmp_path / "out")) == 4


@pytest.fixture
def bucket(monkeypatch):
    S3FileSystem.clear_instance_cache()  # it would ask the server of the test before
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="pool")
    yield client
    server.stop()


def test_shards_in_s3_give_the_same_set_as_local_ones(bucket, tmp_path):
    for shard in range(2):
        samples = [{"__key__": f"{shard}{i}", "png": png(picture(10 * shard + i)), "mask.png": png(mask_of(i % 2))} for i in range(4)]
        bucket.upload_file(str(write_shard(tmp_path / "s" / f"{shard:06}.tar", samples)), "pool", f"s/{shard:06}.tar")
    (tmp_path / "s" / "classes.txt").write_text("ground\nthing\n")
    bucket.upload_file(str(tmp_path / "s" / "classes.txt"), "pool", "s/classes.txt")
    run(f"{tmp_path}/s/{{000000..000001}}.tar", tmp_path / "local")
    run("s3://pool/s/{000000..000001}.tar", tmp_path / "remote")
    run("s3://pool/s/*.tar", tmp_path / "starred")
    for name in ("manifest.csv", "dataset.json", "shards/train-000000.tar"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
        assert (tmp_path / "starred" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert facts(tmp_path / "remote")["task"] == "segmentation"
    with pytest.raises(UserError, match=r"cannot open s3://pool/s/000009.tar: FileNotFoundError"):
        run("s3://pool/s/{000001..000009..8}.tar", tmp_path / "missing")


def test_a_prefix_in_s3_gives_the_same_set_as_a_folder(bucket, tmp_path):
    """With masks, a hidden file and a broken picture; 40 pictures are more than one request fetches."""
    source = tmp_path / "pictures"
    for i in range(40):
        split = "val" if i % 8 == 0 else "train"
        save(picture(i), source / "images" / split / f"{i:02}.png")
        save(mask_of(i % 2), source / "masks" / split / f"{i:02}.png")
    (source / "classes.txt").write_text("ground\nthing\n")
    (source / "images/train/broken.png").write_bytes(b"broken")
    (source / "images/.hidden.png").write_bytes(b"hidden")
    (source / "notes.md").write_text("not a picture")
    for path in source.rglob("*.*"):
        bucket.upload_file(str(path), "pool", f"raw/{path.relative_to(source)}")
    run(source, tmp_path / "local")
    run("s3://pool/raw/", tmp_path / "remote")
    for name in ("manifest.csv", "dataset.json", "quarantine.csv", "shards/train-000000.tar"):
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert report(tmp_path / "remote") == report(tmp_path / "local")
    assert facts(tmp_path / "remote")["counts"] == {"train": 35, "val": 5, "labelled_train": 35, "labelled_val": 5}


def test_a_prefix_or_folder_without_pictures_is_an_error_as_source_but_not_as_incoming(bucket, tmp_path):
    save(picture(0), tmp_path / "pictures" / "0.png")
    (tmp_path / "empty").mkdir()
    for place in ("s3://pool/none", str(tmp_path / "empty")):
        with pytest.raises(UserError, match=f"no pictures in {place}"):
            run(place, tmp_path / "out")
        metrics = ingest.run(params(), out=tmp_path / place[-5:] / "data", source=tmp_path / "pictures", incoming=place)
        assert metrics["n_train"] == 1
    with pytest.raises(UserError, match=r"cannot open s3://nobucket/none: .*bucket"):
        run("s3://nobucket/none", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        ingest.run(params(), out=tmp_path / "out", source=tmp_path / "pictures", incoming=tmp_path / "missing")


def test_what_comes_in_is_for_training_only_and_has_no_label(tmp_path):
    for i in range(12):
        save(picture(i), tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    for i in (*range(3), *range(100, 140)):
        save(picture(i), tmp_path / "incoming" / "val" / f"{i}.png")
    settings = params(val_fraction=0.5)
    ingest.run(settings, out=tmp_path / "before", source=tmp_path / "pictures")
    ingest.run(settings, out=tmp_path / "after", source=tmp_path / "pictures", incoming=tmp_path / "incoming")
    before, after = manifest(tmp_path / "before"), manifest(tmp_path / "after")
    assert {row["split"] for row in before} == {"train", "val"}
    came = [row for row in after if row["path"].startswith("incoming/")]
    assert len(came) == 40  # not those three that the source has, be it in train or val
    assert {(row["split"], row["label"]) for row in came} == {("train", "")}
    named = ("path", "sha256", "split", "label")
    assert [[row[n] for n in named] for row in after if row not in came] == [[row[n] for n in named] for row in before]
    assert report(tmp_path / "after")["incoming"] == 43


def test_too_many_broken_ones_among_the_incoming_stop_the_stage_however_many_old_ones_are_good(tmp_path):
    for i in range(60):
        save(picture(i), tmp_path / "pictures" / f"{i}.png")
    for i in range(10):
        save(picture(100 + i), tmp_path / "incoming" / f"{i}.png")
    for i in range(3):
        (tmp_path / "incoming" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"3 of 10 incoming pictures cannot be used, .*max_bad_fraction = 0.05: incoming/0.png: "):
        ingest.run(params(), out=tmp_path / "out", source=tmp_path / "pictures", incoming=tmp_path / "incoming")
    assert not (tmp_path / "out").exists()


def test_the_sample_has_no_validation_picture_among_the_unlabelled(tmp_path):
    metrics = ingest.run(Params(), out=tmp_path / "data", source=SAMPLE)
    assert metrics == {"n_train": 534, "n_val": 130, "n_labelled": 664, "n_quarantined": 0, "n_duplicates": 0, "n_leaks": 0}
    pixels: dict[str, set[str]] = {"train": set(), "val": set()}
    for shard in (tmp_path / "data" / "shards").iterdir():
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.name.endswith(".mask.png"):
                    image = decode(tar.extractfile(member).read()).image
                    pixels[shard.name.partition("-")[0]].add(hashlib.sha256(image.tobytes()).hexdigest())
    assert (len(pixels["train"]), len(pixels["val"])) == (534, 130)
    assert not pixels["train"] & pixels["val"]
    train = ImageSet(tmp_path / "data", "train")
    assert train.classes == ["background", "nucleus"]
    draws = [few_labelled(train, 20, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """Objects alive when the last picture has been written, for 50 and for 450 pictures: one for each more would show."""
    monkeypatch.setattr("dreamteacher.stage.digest_of", lambda path: "the same")  # only what ingest itself keeps is counted
    alive, close = [], ShardSet.close

    def count_and_close(shards: ShardSet) -> None:
        gc.collect()
        alive.append(sys.getallocatedblocks())
        close(shards)

    monkeypatch.setattr(ShardSet, "close", count_and_close)
    for i in range(500):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8))
        save(image, tmp_path / ("few" if i < 50 else "many") / f"{i}.bmp")
    counts = []
    for name, out in [("few", "first"), ("few", "small"), ("many", "large")]:  # the first makes what is made once
        run(tmp_path / name, tmp_path / out)
        counts.append(alive[-2])  # before train's shards are closed
    assert counts[2] - counts[1] < 300, counts


def test_looking_through_a_folder_does_not_hold_its_names(tmp_path):
    for i in range(3000):
        (tmp_path / ("few" if i < 300 else "many")).mkdir(exist_ok=True)
        (tmp_path / ("few" if i < 300 else "many") / f"{i}.png").touch()
    peaks = []
    for name in ("few", "few", "many"):
        tracemalloc.start()
        find(str(tmp_path / name), "auto", 1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 50_000, peaks
