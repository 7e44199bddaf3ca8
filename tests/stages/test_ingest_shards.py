"""Ingest from WebDataset shards, local and in S3."""

import io
from pathlib import Path

import boto3
import pytest
import webdataset
from ingest_sources import facts, manifest, mask_of, picture, reasons, run
from moto.server import ThreadedMotoServer
from PIL import Image

from dreamteacher.errors import UserError


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
