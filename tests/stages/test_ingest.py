"""Outputs of ingest: stored bytes, manifest, shards; constant memory."""

import gc
import hashlib
import io
import os
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
from ingest_sources import facts, manifest, mask_of, picture, report, run, save, stored
from PIL import Image

from dreamteacher.data.dataset import ImageSet, few_labelled
from dreamteacher.data.decode import decode
from dreamteacher.data.shards import ShardSet
from dreamteacher.data.sources import find
from dreamteacher.settings.schema import Params
from dreamteacher.stage import digest_of
from dreamteacher.stages import ingest
from helpers import PROJECT

SAMPLE = PROJECT / "samples" / "nuclei"


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
    kept_as = {row["path"]: (row, stored(out, row)) for row in manifest(out)}
    for path in kept:
        assert kept_as[path.name][1] == path.read_bytes()
    formats = {name: Image.open(io.BytesIO(data)).format for name, (_, data) in kept_as.items()}
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
    assert Image.open(io.BytesIO(kept_as["grey.tif"][1])).mode == "L"
    assert {name: row["mode"] for name, (row, _) in kept_as.items()}["cmyk.jpg"] == "CMYK"


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
            assert members[place] == stored(out, row, which)
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert [sample["png"] for sample in samples] == [stored(out, row) for row in rows]
    assert [sample["mask.png"] for sample in samples] == [stored(out, row, "label_") for row in rows]


def test_mean_and_std_are_those_of_the_train_pixels(nested, tmp_path):
    run(nested, tmp_path / "out", val_fraction=0.5)
    images = ImageSet(tmp_path / "out", "train")
    assert 0 < len(images) < 4
    pixels = np.concatenate([images.read(i).image.reshape(-1, 3) for i in range(len(images))]) / 255
    assert np.allclose(images.mean, pixels.mean(0), atol=0.002)
    assert np.allclose(images.std, pixels.std(0), atol=0.002)


def test_names_that_cannot_be_written_down_are_counted(nested):
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        (nested / os.fsdecode(name)).write_bytes((nested / "b.png").read_bytes())
    for name in (
        "10.11.12\u202fPM.png",
        "no\u00a0break.png",
        "wide\u3000space.png",
        "joined\U0001f469\u200d\U0001f52c.png",
    ):  # as macOS names them
        (nested / name).write_bytes((nested / "b.png").read_bytes())
    found = find(str(nested), "none", 10_000)
    assert len(list(found.items)) == 8
    assert found.counts["unprintable_names"] == 2


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
        digest_of(tmp_path / name)
        find(str(tmp_path / name), "auto", 1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 50_000, peaks
