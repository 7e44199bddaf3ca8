"""Sampling of served pictures for retraining: with a real tritonserver, to S3 and to a folder; off by default."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tritonclient.http
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem
from serving_samples import PARAMS

from dreamteacher.data.decode import decode
from dreamteacher.errors import UserError
from dreamteacher.serving import sampling
from dreamteacher.serving.sampling import FRACTION, PER_DAY, PLACE, Sampler
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.settings.schema import Params
from dreamteacher.stages import compare_data, ingest

CONFIG = {"instance_group": [{"count": 1}]}


def picture(seed: int, kind: str = "JPEG", **options: Any) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((60, 40)).save(file, kind, **options)
    return file.getvalue()


def with_place() -> bytes:
    """A JPEG whose EXIF has location, author and orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Somebody"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return picture(0, exif=exif, comment=b"Somewhere")


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def sampler(store: sampling.Store, **settings: Any) -> Sampler:
    return Sampler(store, **({"fraction": 1.0, "per_day": 1e6, "max_pixels": 1_000_000} | settings))


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path: Path):
    for environment in ({}, {PLACE: str(tmp_path)}, {PLACE: str(tmp_path), FRACTION: "0"}, {FRACTION: "1", PER_DAY: "0"}):
        assert Sampler.from_environment(environment, CONFIG, 1000) is None
    assert not list(tmp_path.iterdir())


def test_the_pixels_are_kept_and_nothing_else(tmp_path: Path):
    data = with_place()
    keeper = Sampler.from_environment({FRACTION: "1", PLACE: str(tmp_path / "kept")}, CONFIG, 1_000_000)
    assert keeper
    for file in (data, picture(0), data, picture(1, "WEBP"), picture(2, "PNG", pnginfo=None)):
        keeper.offer(file)
    keeper.close()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert all(name == f"{hashlib.sha256(content).hexdigest()}.png" for name, content in kept.items())
    assert len(kept) == 4
    turned = next(content for content in kept.values() if Image.open(io.BytesIO(content)).size == (40, 60))
    assert (decode(turned).image == decode(data).image).all()
    assert not any(word in content for content in kept.values() for word in (b"Some", b"eXIf", b"iCCP", b"tEXt"))
    assert not Image.open(io.BytesIO(turned)).getexif()


def test_equal_pixels_are_one_file_whatever_the_files_were(tmp_path: Path):
    pixels = Image.open(io.BytesIO(picture(0)))
    keeper = sampler(sampling._store_at(str(tmp_path)))
    for kind, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PNG", {"compress_level": 1})):
        file = io.BytesIO()
        pixels.save(file, kind, **options)
        keeper.offer(file.getvalue())
    keeper.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_fraction_is_kept_and_a_days_share_of_it_hour_by_hour():
    now, kept = [0.0], []
    keeper = sampler(lambda name, _: kept.append(name), per_day=48, clock=lambda: now[0])
    for hour in range(3):
        now[0] = hour * 3600.0
        for seed in range(5):
            keeper.offer(picture(10 * hour + seed))
        wait_until(lambda: not keeper._bytes)
        assert len(kept) == 2 * (hour + 1)
    dice = iter([0.1, 0.3, 0.19, 0.2])
    keeper = sampler(lambda name, _: kept.append(name), fraction=0.2, draw=lambda: next(dice))
    for seed in range(4):
        keeper.offer(picture(seed))
    keeper.close()
    assert len(kept) == 6 + 2


def test_no_answer_waits_for_a_slow_store_and_one_line_says_what_was_dropped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sampling, "WAITING", 3 * len(picture(0)))
    free, kept = threading.Event(), []

    def slow(name: str, content: bytes) -> None:
        free.wait()
        kept.append(name)

    keeper = sampler(slow)
    begin = time.monotonic()
    for seed in range(20):
        keeper.offer(picture(seed))
    assert time.monotonic() - begin < 1
    free.set()
    keeper.close()
    assert 2 <= len(kept) <= 4
    assert capfd.readouterr().err == f"sampling: {20 - len(kept)} pictures were not kept: the store is too slow\n"


def test_a_store_that_fails_is_said_once_and_the_next_picture_is_tried(capfd: pytest.CaptureFixture[str]):
    tries = []

    def broken(name: str, content: bytes) -> None:
        tries.append(name)
        raise OSError(28, "No space left on device")

    keeper = sampler(broken)
    for seed in range(3):
        keeper.offer(picture(seed))
    keeper.close()
    assert len(tries) == 3
    assert capfd.readouterr().err == "sampling: 1 pictures were not kept: OSError: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({FRACTION: "10%"}, r"DREAMTEACHER_SAMPLE_FRACTION = 10% is no number from 0 to 1$"),
        ({FRACTION: "1.5"}, "is no number from 0 to 1$"),
        ({FRACTION: "nan"}, "is no number from 0 to 1$"),
        ({FRACTION: "1", PER_DAY: "-1"}, "DREAMTEACHER_SAMPLE_PER_DAY = -1 is no number from 0 to"),
        ({FRACTION: "1"}, r"DREAMTEACHER_SAMPLE_TO = : name the folder or s3://bucket/prefix"),
        ({FRACTION: "1", PLACE: "gs://bucket/x"}, r"DREAMTEACHER_SAMPLE_TO = gs://bucket/x: name the folder or s3://bucket/prefix"),
        ({FRACTION: "1", PLACE: "/proc/here"}, "DREAMTEACHER_SAMPLE_TO = /proc/here cannot be written: No such file or directory"),
    ],
)
def test_what_is_set_wrongly_is_said_before_anything_is_served(environment: dict[str, str], why: str):
    with pytest.raises(ValueError, match=why):
        Sampler.from_environment(environment, CONFIG, 1000)


def test_s3_without_boto3_says_who_brings_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ValueError, match=r"needs boto3 in Triton's Python; docker/triton.Dockerfile installs it"):
        Sampler.from_environment({FRACTION: "1", PLACE: "s3://b/p"}, CONFIG, 1000)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    S3FileSystem.clear_instance_cache()  # it would ask the server of the test before
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="sampled")
    yield client
    server.stop()


def ask(triton: Any, data: bytes) -> None:
    with tritonclient.http.InferenceServerClient(triton.http_url) as client:
        tensor = tritonclient.http.InferInput("picture", [1, len(data)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
        client.infer("stages-pictures", [tensor])


def test_what_triton_was_asked_about_is_new_to_the_next_retraining(
    models: dict[str, Path], bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_repository({"stages": models["stages"]}, tmp_path / "local", backend="python", settings=PARAMS.publish)
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(20):
        (source / f"{seed}.png").write_bytes(picture(seed, "PNG"))
    params = Params.model_validate({"ingest": {"source": str(source), "min_side": 16, "short_side": None}})
    ingest.run(params, out=tmp_path / "before")
    monkeypatch.setenv(FRACTION, "1")
    monkeypatch.setenv(PLACE, "s3://sampled/incoming")
    with running_triton(tmp_path / "local") as triton:
        for data in (*(picture(seed) for seed in (100, 101, 101, 102)), picture(3, "PNG")):
            ask(triton, data)
    found = bucket.list_objects_v2(Bucket="sampled")["Contents"]
    assert len(found) == 4 and all(re.fullmatch(r"incoming/[0-9a-f]{64}\.png", each["Key"]) for each in found)
    figures = ingest.run(params, out=tmp_path / "after", incoming="s3://sampled/incoming")
    assert figures["n_duplicates"] + figures["n_leaks"] == 1  # picture 3
    assert compare_data.run(params, data=tmp_path / "after", before=tmp_path / "before", out=tmp_path / "compared")["n_new"] == 3


def test_a_server_that_cannot_sample_as_it_should_does_not_start(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_repository({"stages": models["stages"]}, tmp_path / "local", backend="python", settings=PARAMS.publish)
    monkeypatch.setenv(FRACTION, "1")
    with pytest.raises(UserError, match="DREAMTEACHER_SAMPLE_TO"), running_triton(tmp_path / "local"):
        pass
