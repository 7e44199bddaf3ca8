"""The client library against a real tritonserver: answers and dependencies."""

import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from client_samples import KINDS, by_torch, connect, pixels
from PIL import Image
from serving_samples import make_model

from dreamteacher.errors import UserError
from dreamteacher.serving import requests
from dreamteacher.serving.client import (
    BadPicture,
    Classification,
    Refused,
    Segmentation,
)
from dreamteacher.serving.connection import Address
from dreamteacher.serving.contract import VERSION, VERSION_KEY
from dreamteacher.serving.requests import read_config
from dreamteacher.serving.shared_memory import Passage
from helpers import PROJECT


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_answers_are_typed_and_those_of_the_model(triton, tmp_path, kind, protocol):
    picture = pixels(40, 45)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with connect(kind, protocol, triton) as client:
        for given in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
            answer = client.predict(given)
            assert isinstance(answer, Segmentation) and answer.classes == ("background", "cell", "debris")
            assert (answer.mask == by_torch("segmentation", picture)).all() and answer.mask.dtype == np.uint8
            assert np.allclose(answer.shares, np.bincount(answer.mask.ravel(), minlength=3) / answer.mask.size)
        features = client.features(picture)
        assert list(features.maps) == ["stride4", "stride8", "stride16", "stride32"] and features.size == (40, 45)
        assert features.maps["stride8"].shape[1:] == (8, 8)
        assert np.allclose(features.embedding, features.maps["stride32"].mean((1, 2)), atol=1e-5)
    with connect(kind, protocol, triton, "stages") as client:
        answer = client.predict(pixels(32, 32))
        expected = by_torch("classification", pixels(32, 32))
        assert isinstance(answer, Classification) and np.abs(answer.probabilities - expected).max() < 1e-5
        assert answer.best == answer.classes[expected.argmax()]


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_only_the_maps_that_are_wanted_are_sent(triton, kind, protocol):
    picture = pixels(40, 300)
    with connect(kind, protocol, triton) as client:
        for maps in (["stride32", "stride8"], [], None, ["stride8"], []):  # by shared memory, too, once their sizes are known
            features = client.features(picture, maps)
            whole = client.features(picture)
            assert list(features.maps) == [name for name in whole.maps if maps is None or name in maps]
            assert all(np.abs(features.maps[name] - whole.maps[name]).max() < 1e-5 for name in features.maps)
            assert np.abs(features.embedding - whole.embedding).max() < 1e-5
        with pytest.raises(UserError, match=r"'cells-backbone' has no map 'stride64'; it has stride4, stride8, stride16, stride32$"):
            client.features(picture, ["stride64"])


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_model_that_takes_files_is_sent_the_files(triton, tmp_path, kind, protocol):
    picture = pixels(130, 200)
    Image.fromarray(picture).save(tmp_path / "a.webp", quality=50)
    for name in ("cells", "stages"):
        with connect(kind, protocol, triton, name) as plain, connect(kind, protocol, triton, f"{name}-pictures") as files:
            given = [picture, tmp_path / "a.webp", (tmp_path / "a.webp").read_bytes()]
            for expected, answer in zip(plain.predict_batch(given), files.predict_batch(given), strict=True):
                assert type(answer) is type(expected) and answer.classes == expected.classes
                if name == "cells":
                    assert (answer.mask == expected.mask).all() and np.allclose(answer.shares, expected.shares)
                else:
                    assert np.allclose(answer.probabilities, expected.probabilities, atol=1e-5)
            with pytest.raises(Refused, match=r"refuses .*picture is a text"):
                files.predict(b"no picture")


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_batch_is_answered_in_order_by_few_requests(triton, kind, protocol, monkeypatch):
    sent = []
    original = Passage.__init__
    monkeypatch.setattr(Passage, "__init__", lambda *given: sent.append(len(given[3])) or original(*given))
    pictures = [pixels(32, 32 + 32 * (i % 4 == 0), i) for i in range(52)]
    with connect(kind, protocol, triton) as client:
        answers = client.predict_batch(pictures)
        assert client.predict_batch([]) == []
    assert sorted(sent) == [7, 13, 32]  # publish.max_batch_size is 32, and 13 pictures are wider
    for picture, answer in zip(pictures, answers, strict=True):
        assert answer.mask.shape == picture.shape[:2]
        assert (answer.mask == by_torch("segmentation", picture)).mean() > 0.999


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_what_is_no_picture_is_named(triton, tmp_path, kind, protocol):
    with connect(kind, protocol, triton) as client:
        with pytest.raises(BadPicture, match="empty"):
            client.predict(b"")
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "missing.png")
        with pytest.raises(UserError, match=r"a picture is uint8 RGB \(H, W, 3\), not float64 \(32, 32, 3\); convert it"):
            client.predict(np.zeros((32, 32, 3)))


def test_a_model_with_a_later_contract_is_refused(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as server:
        config = server.get_model_config("cells")
    config["parameters"][VERSION_KEY]["string_value"] = str(VERSION + 1)
    with pytest.raises(UserError, match=r"model 'cells' at 127.0.0.1:1 has version 2 of the preprocessing contract.*update"):
        read_config(Address.parse("127.0.0.1:1", "http"), "cells", config)
    del config["parameters"]["mean"], config["parameters"][VERSION_KEY]
    with pytest.raises(UserError, match="does not say how pictures are prepared"):
        read_config(Address.parse("127.0.0.1:1", "http"), "cells", config)


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_a_client_that_goes_on_follows_a_rollout(triton, kind, protocol, monkeypatch):
    described = []
    original = requests.read_config
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"dreamteacher.serving.{module}.read_config", lambda *given: described.append(given[1]) or original(*given))
    with connect(kind, protocol, triton) as client:
        client.predict(pixels(32, 32))
        client.predict(pixels(32, 32))
        assert described == ["cells"]
        monkeypatch.setattr(requests, "FRESH_SECONDS", 0)
        client.predict(pixels(32, 32))
        assert described == ["cells", "cells"]


LIGHT = """
import asyncio, sys
for name in ("torch", "torchvision", "mlflow", "onnx", "onnxruntime", "timm", "diffusers", "pydantic", "yaml", "webdataset"):
    sys.modules[name] = None
from dreamteacher.serving.client import AsyncClient, Client
http, grpc, picture = sys.argv[1:]
for url, protocol in ((http, "http"), (grpc, "grpc")):
    with Client(url, "stages", protocol=protocol) as client:
        print(client.predict(picture).best)
    async def main():
        async with AsyncClient(url, "stages", protocol=protocol) as client:
            print((await client.predict(picture)).best)
    asyncio.run(main())
"""


def test_the_client_works_where_nothing_of_training_is_installed(triton, tmp_path):
    Image.fromarray(pixels(32, 32)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", LIGHT, triton.http_url, triton.grpc_url, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = make_model("classification").classes[by_torch("classification", pixels(32, 32)).argmax()]
    assert done.stdout.split() == [expected] * 4
    assert done.stderr == ""


def test_the_extra_names_all_that_the_client_imports():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[\[>=<]", each)[0] for each in project["optional-dependencies"]["client"]}
    assert extra == {"numpy", "pillow", "tritonclient"}
    assert {each for each in project["dependencies"] if re.split(r"[\[>=<]", each)[0] in ("numpy", "pillow")} <= set(
        project["optional-dependencies"]["client"]
    )
