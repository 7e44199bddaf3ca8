"""Malformed requests: each is answered or refused with a message, the server stays up, and its memory does not grow.

`python benchmarks/hostile.py` does it with 1,000 mutations and draws the memory.
"""

import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
from client_samples import pixels
from hostile_requests import Caller, Sent, as_binary, as_grpc, as_json, good_requests, memory_of, mutated
from PIL import Image
from serving_samples import PARAMS, SIZE

from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton

MUTATIONS = 250
MOST_GROWTH = 60e6  # bytes, of some 250 MB


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """A server of its own, with NAME, NAME-backbone and NAME-pictures."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ours = {name: path for name, path in models.items() if name.startswith("cells")}
        write_repository(ours, folder / "local", backend="python", settings=PARAMS.publish)
        with running_triton(folder / "local") as triton:
            yield triton


@pytest.fixture(scope="module")
def caller(server):
    made = Caller(server.http_url, server.grpc_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "a.jpg"
    Image.fromarray(pixels(40, 45)).save(file)
    return good_requests(file.read_bytes(), SIZE)


def assert_alive(server, caller, good):
    assert server.process.poll() is None
    assert [caller.send(each).status for each in good] == ["OK" if each.protocol == "grpc" else "200" for each in good]
    assert "Stub" not in server.log.read_text()


IMAGES = np.zeros((1, 3, SIZE, SIZE), np.float32)
FORMS = (as_json, as_binary, as_grpc)


@pytest.mark.parametrize("model", ["cells", "cells-backbone"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 4, 32, 32), "FP32"), ((3, 32, 32), "FP32"), ((1, 3, 32), "FP32"), ((1, 3, 32, 32), "FP64"), ((1, 3, 0, 0), "FP32"),
     ((1, 3, 32, 32), "UINT8"), ((40, 3, 8, 8), "FP32")],
)  # fmt: skip
def test_wrong_shapes_and_types_are_refused_in_words(server, caller, model, form, shape, kind):
    array = np.zeros(shape, {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}[kind])
    response = caller.send(form(model, array, kind, outputs=[]))
    assert response.is_clean and not response.is_answer, response


def test_not_a_number_stays_in_its_picture(server):
    """What is not finite is computed with, as everywhere in arithmetic; pictures beside it do not change."""
    images = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:

        def logits(images):
            tensor = tritonclient.grpc.InferInput("images", images.shape, "FP32")
            tensor.set_data_from_numpy(images)
            return client.infer("cells", [tensor]).as_numpy("logits")

        expected = logits(images)
        for value in (np.nan, np.inf):
            images[0, 0, 5, 5] = value
            found = logits(images)
            assert np.isnan(found[0]).any() and np.abs(found[1] - expected[1]).max() < 1e-5


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bodies_of_nothing_and_of_100_mb_are_refused(server, caller, good, protocol):
    large = np.zeros((1, 3, 2880, 2880), np.float32)
    form = as_grpc if protocol == "grpc" else as_binary
    for model in ("cells", "cells-backbone", "cells-pictures"):
        response = caller.send(Sent(protocol, model, b""))
        assert response.is_clean and not response.is_answer, response
    response = caller.send(form("cells", large, "FP32", outputs=[]))
    assert "1 x 2880 x 2880 pixels in a request are more than 5000000; send less" in response.words, response
    response = caller.send(form("cells-pictures", np.zeros((1, 100_000_000), np.uint8), "UINT8", outputs=[]))
    assert "picture is" in response.words, response
    assert_alive(server, caller, good)


def png_of(width, height, pixels_of=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels_of) + chunk(b"IEND", b"")


def test_pictures_that_grow_are_refused_before_they_do(server, caller, good):
    black = zlib.compressobj(9)
    row = bytes(30_001)
    bomb = png_of(30_000, 30_000, b"".join(black.compress(row) for _ in range(300)) + black.flush())
    assert len(bomb) < 20_000
    before = memory_of(server.process.pid)
    for data, words in (
        (bomb, "30000 x 30000 is more than 50000000 pixels"),
        (png_of(6_000_000, 1, zlib.compress(bytes(6_000_001))), "too thin or too large"),
        (png_of(2**31 - 1, 2**31 - 1), "is more than 50000000 pixels|cannot be read|damaged"),
    ):
        array = np.frombuffer(data, np.uint8)[None]
        for form in FORMS:
            response = caller.send(form("cells-pictures", array, "UINT8", outputs=["mask"]))
            assert not response.is_answer and any(word in response.words for word in words.split("|")), response
    assert memory_of(server.process.pid) < before + MOST_GROWTH
    assert_alive(server, caller, good)


def test_mutated_requests_are_answered_or_refused_in_words_and_memory_stays(server, caller, good):
    chance = random.Random(1)
    requests = [mutated(chance.choice(good), chance) for _ in range(MUTATIONS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(caller.send, requests[: MUTATIONS // 2]))
        before = memory_of(server.process.pid)
        response = list(zip(requests, pool.map(caller.send, requests), strict=True))
    assert [(sent, answer) for sent, answer in response if not answer.is_clean] == []
    assert 0 < sum(answer.is_answer for _, answer in response) < MUTATIONS / 2
    assert memory_of(server.process.pid) < before + MOST_GROWTH
    assert_alive(server, caller, good)
