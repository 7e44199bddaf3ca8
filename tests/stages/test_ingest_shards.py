"""Ingest from WebDataset shards, local and in S3."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import boto3
import pytest
import webdataset
from ingest_sources import facts, manifest, mask_of, params, picture, reasons, report, run, save
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem

from dreamteacher.data.sources import find
from dreamteacher.errors import UserError
from dreamteacher.stages import ingest


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


def test_a_folder_of_shards_is_a_source_and_so_is_a_bare_file_name(tmp_path, monkeypatch):
    for split in ("train", "val"):
        samples = [
            {"__key__": f"{split}{i}", "png": png(picture(i + 10 * (split == "val"))), "cls": b"ab"[i % 2 : i % 2 + 1]} for i in range(4)
        ]
        write_shard(tmp_path / "s" / f"{split}.tar", samples)
    (tmp_path / "s" / "classes.txt").write_text("a\nb\n")
    metrics = run(tmp_path / "s", tmp_path / "out")
    assert (metrics["n_train"], metrics["n_val"], metrics["n_labelled"]) == (4, 4, 8)
    monkeypatch.chdir(tmp_path / "s")
    assert run("train.tar", tmp_path / "one")["n_labelled"] == 4
    assert facts(tmp_path / "one")["classes"] == ["a", "b"]


def test_the_quota_counts_damaged_shards_too(tmp_path):
    """Nobody knows how many pictures were lost: each counts as one, which four of ten shards must not pass as."""
    for shard in range(10):
        path = write_shard(tmp_path / f"{shard}.tar", [{"__key__": f"{shard}{i}", "png": png(picture(100 * shard + i))} for i in range(30)])
        if shard < 4:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"4 of 10 shards are damaged, more than ingest.max_bad_fraction = 0.05: 0.tar: damaged shard"):
        run(f"{tmp_path}/*.tar", tmp_path / "out")


def test_a_name_that_is_twice_in_a_shard_costs_that_file_alone(tmp_path, capsys):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, seed in [("0.png", 0), ("1.png", 1), ("1.png", 2), ("2.png", 3), ("3.png", 4)]:
            data = png(picture(seed))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert run(tmp_path / "a.tar", tmp_path / "out")["n_train"] == 4
    assert report(tmp_path / "out")["repeated_names"] == 1
    assert "ingest: 1 files of shards were passed over, as one of that name came before\n" in capsys.readouterr().err


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_labels_away_from_their_picture_and_unread_files_of_shards_are_said(tmp_path):
    pictures = {f"{i}.png": png(picture(i)) for i in range(4)}
    classes = {f"{i}.cls": b"01"[i % 2 : i % 2 + 1] for i in range(4)}
    write_tar(tmp_path / "a.tar", pictures | classes)
    run(tmp_path / "a.tar", tmp_path / "away")
    assert any(
        line.startswith("4 labels in shards do not lie next to their picture, and were passed over; write KEY.jpg and KEY.cls")
        for line in report(tmp_path / "away")["summary"]
    )
    members = [(name, data) for i in range(4) for name, data in ((f"{i}.png", pictures[f"{i}.png"]), (f"{i}.json", b'{"caption": "a"}'))]
    write_tar(tmp_path / "b.tar", dict(members))
    run(tmp_path / "b.tar", tmp_path / "captions")
    assert "4 files were passed over: 4 .json (b.tar/0.json)" in report(tmp_path / "captions")["summary"]
    members = [(name, data.replace(b"caption", b"label")) for name, data in members]
    write_tar(tmp_path / "c.tar", dict(members) | {"4.png": png(picture(4)), "4.json": b'{"label": "b"}'})
    (tmp_path / "classes.txt").write_text("a\nb\n")
    run(tmp_path / "c.tar", tmp_path / "classes")
    assert not report(tmp_path / "classes")["passed_over"]


def test_names_in_shards_may_hold_dots(tmp_path):
    names = ["track2.0.png", "track2.1.png", "scan.v2.1.PNG", "plain.png", "._plain.png"]
    write_tar(tmp_path / "a.tar", {name: png(picture(i)) for i, name in enumerate(names)})
    run(tmp_path / "a.tar", tmp_path / "out")
    assert [row["path"] for row in manifest(tmp_path / "out")] == [
        f"a.tar/{name}" for name in ("track2.0.png", "track2.1.png", "scan.v2.1.png", "plain.png")
    ]


def test_labels_beside_pictures_in_shards_are_no_pictures(tmp_path):
    members = {}
    for i in range(2):
        members |= {
            f"a.{i}.jpg": png(picture(i)),
            f"a.{i}.seg.png": png(mask_of(1)),
            f"a.{i}.overlay.png": png(picture(9)),
            f"a.{i}.txt": b"x",
        }
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "classes.txt").write_text("ground\nthing\n")
    assert run(tmp_path / "a.tar", tmp_path / "out")["n_labelled"] == 2
    assert [row["path"] for row in manifest(tmp_path / "out")] == ["a.tar/a.0.jpg", "a.tar/a.1.jpg"]
    assert report(tmp_path / "out")["beside_masks"] == 2


@pytest.mark.parametrize(("folder", "what"), [("masks", "masks"), ("gt", "masks"), ("val", "a split")])
def test_folders_of_masks_or_splits_inside_a_shard_are_refused(folder, what, tmp_path):
    write_tar(tmp_path / "a.tar", {"images/0.png": png(picture(0)), f"{folder}/0.png": png(mask_of(1))})
    with pytest.raises(UserError, match=rf"a.tar: {folder}/0.png lies in a folder of {what}, which is not looked for in shards"):
        run(tmp_path / "a.tar", tmp_path / "out")


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": png(picture(0)), "1.png": bytes(40_000_000), "2.png": png(picture(2))})
    tracemalloc.start()
    found = find(str(tmp_path / "a.tar"), "auto", 1_000_000)
    problems = {item.name: item.problem for item in found.items}
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert problems == {
        "a.tar/0.png": None,
        "a.tar/1.png": "cannot be read: 40000000 bytes are more than a picture of ingest.max_pixels needs",
        "a.tar/2.png": None,
    }


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


def test_a_changed_object_in_s3_makes_the_set_anew(bucket, tmp_path):
    for i in range(2):
        bucket.upload_file(str(save(picture(i), tmp_path / f"{i}.png")), "pool", f"p/{i}.png")
    bucket.upload_file(str(write_shard(tmp_path / "a.tar", [{"__key__": "a", "png": png(picture(5))}])), "pool", "s/a.tar")
    for source, key, file in (("s3://pool/p", "p/0.png", "1.png"), ("s3://pool/s/a.tar", "s/a.tar", "b.tar")):
        out = tmp_path / key[0]
        run(source, out)
        run(source, out)
        write_shard(tmp_path / "b.tar", [{"__key__": "a", "png": png(picture(6))}])
        bucket.upload_file(str(tmp_path / file), "pool", key)
        with pytest.raises(UserError, match="holds the result of other settings or inputs"):
            run(source, out)


def test_what_arrives_after_the_listing_is_neither_in_the_digest_nor_in_the_set(bucket, tmp_path, monkeypatch):
    bucket.upload_file(str(save(picture(0), tmp_path / "0.png")), "pool", "late/0.png")
    look_through = ingest.find

    def arrive_first(*args, **options):
        bucket.upload_file(str(save(picture(1), tmp_path / "1.png")), "pool", "late/1.png")
        return look_through(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "find", arrive_first)
        assert run("s3://pool/late", tmp_path / "out")["n_train"] == 1
    with pytest.raises(UserError, match="holds the result of other settings or inputs"):
        run("s3://pool/late", tmp_path / "out")


def test_a_prefix_or_folder_without_pictures_is_an_error_as_source_but_not_as_incoming(bucket, tmp_path):
    save(picture(0), tmp_path / "pictures" / "0.png")
    (tmp_path / "empty").mkdir()
    for place in ("s3://pool/none", str(tmp_path / "empty")):
        with pytest.raises(UserError, match=f"no pictures in {place}"):
            run(place, tmp_path / "out")
        metrics = ingest.run(params(), out=tmp_path / place[-4:] / "data", source=tmp_path / "pictures", incoming=place)
        assert metrics["n_train"] == 1
    with pytest.raises(UserError, match=r"cannot open s3://nobucket/none: .*bucket"):
        run("s3://nobucket/none", tmp_path / "out")
    with pytest.raises(UserError, match=r"^retrain\.incoming: .*/missing does not exist; name a folder"):
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
    arrived = [row for row in after if row["path"].startswith("incoming/")]
    assert len(arrived) == 40  # not those three that the source has, be it in train or val
    assert {(row["split"], row["label"]) for row in arrived} == {("train", "")}
    named = ("path", "sha256", "split", "label")
    assert [[row[n] for n in named] for row in after if row not in arrived] == [[row[n] for n in named] for row in before]
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


@pytest.mark.parametrize(
    ("picture_name", "mask_name"),
    [
        ("{}.jpg", "{}_mask.png"),
        ("{}.input.png", "{}.target.png"),
        ("a/{}.jpg", "a/{}_gt.png"),
        ("img_{}.jpg", "mask_{}.png"),
        ("img{}.jpg", "mask{}.png"),
        ("{}/image.jpg", "{}/mask.png"),
    ],
)
def test_masks_of_other_names_in_shards_are_refused_and_not_trained_on(picture_name, mask_name, tmp_path):
    files = {name.format(i): png(image) for i in range(4) for name, image in ((picture_name, picture(i)), (mask_name, mask_of(1)))}
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError, match=r"a.tar: .*0.* looks like the mask of .*0; in shards masks are called KEY.mask.png"):
        run(tmp_path / "a.tar", tmp_path / "out")


def test_a_second_picture_of_one_name_in_a_shard_is_counted_as_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", {name: png(picture(i)) for i, name in enumerate(("0.jpg", "0.png", "1.jpg", "with_mask.png"))})
    assert run(tmp_path / "a.tar", tmp_path / "out")["n_train"] == 3
    assert report(tmp_path / "out")["passed_over"] == {".png": {"count": 1, "example": "a.tar/0.png"}}
