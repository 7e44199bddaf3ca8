"""Local requests use shared memory if possible, else bytes."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from client_samples import KINDS, connect, pixels
from tritonclient.utils import InferenceServerException

from dreamteacher.serving import shared_memory
from dreamteacher.serving.connection import Address
from dreamteacher.serving.requests import Served
from dreamteacher.serving.shared_memory import Passage, Regions


def leftovers():
    return list(Path("/dev/shm").glob(f"dreamteacher-{os.getpid()}-*"))  # other tests run beside these


def regions_of(triton):
    with tritonclient.http.InferenceServerClient(triton.http_url) as server:
        return server.get_system_shared_memory_status()


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_large_requests_to_this_machine_go_by_shared_memory(triton, kind, protocol, monkeypatch):
    pictures = [pixels(32, 64, i) for i in range(12)]
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "LEAST_BYTES", 1 << 40)
        with connect(kind, protocol, triton) as client:
            expected = client.predict_batch(pictures)
            assert regions_of(triton) == []
    with connect(kind, protocol, triton) as client:
        for count in (1, 2, 2):  # the second holds the answer, too, whose size is known then
            assert all((a.mask == b.mask).all() for a, b in zip(client.predict_batch(pictures), expected, strict=True))
            assert len(regions_of(triton)) == count
        with tritonclient.http.InferenceServerClient(triton.http_url) as server:
            server.unregister_system_shared_memory()  # as if it had been restarted
        assert all((a.mask == b.mask).all() for a, b in zip(client.predict_batch(pictures), expected, strict=True))
        client.predict_batch(pictures)
        assert len(regions_of(triton)) == 1
        assert leftovers() == []
    assert regions_of(triton) == []


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_without_shared_memory_requests_hold_their_bytes(triton, kind, protocol, monkeypatch):
    pictures = [pixels(32, 64, i) for i in range(12)]
    other = tritonclient.http if protocol == "http" else tritonclient.grpc

    def refused(*_, **__):
        raise InferenceServerException("Unable to open shared memory region", status="400")

    async def refused_later(*_, **__):
        refused()

    library = f"{other.__name__}.aio" if kind == "async" else other.__name__
    cls = sys.modules[library].InferenceServerClient if library in sys.modules else other.InferenceServerClient
    monkeypatch.setattr(cls, "register_system_shared_memory", refused_later if kind == "async" else refused)
    with connect(kind, protocol, triton) as client:
        assert len(client.predict_batch(pictures)) == 12
    monkeypatch.setattr(shared_memory.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with connect(kind, protocol, triton) as client:
        assert len(client.predict_batch(pictures)) == 12
    assert regions_of(triton) == [] and leftovers() == []


def test_shared_memory_is_for_this_machine_only():
    assert [Regions(Address.parse(url, "http")).is_on for url in ("127.0.0.1:1", "localhost:1", "[::1]:1", "10.0.0.1:1", "a.b:1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "protocol"), KINDS)
def test_answers_come_by_shared_memory_once_their_size_is_known(triton, kind, protocol):
    pictures = [pixels(48, 200, i) for i in range(8)]
    with connect(kind, protocol, triton) as client:
        sync_client = client.client if kind == "async" else client
        first = client.features_batch(pictures)
        lengths = sync_client._regions.answers["cells-backbone", (64, 224)]
        assert lengths == {name: array.nbytes for name, array in first[0].maps.items()} | {"embedding": first[0].embedding.nbytes}
        for _ in range(2):
            for again, before in zip(client.features_batch(pictures), first, strict=True):
                assert all(np.abs(again.maps[name] - before.maps[name]).max() < 1e-5 for name in before.maps)
                assert np.abs(again.embedding - before.embedding).max() < 1e-5
        kept = client.features(pictures[0])
        client.features(pictures[1])  # in the same region
        assert np.abs(kept.maps["stride8"] - first[0].maps["stride8"]).max() < 1e-5
        sync_client._regions.answers["cells-backbone", (64, 224)] = dict.fromkeys(lengths, 4)  # as of a version with shorter answers
        assert np.abs(client.features(pictures[0]).embedding - first[0].embedding).max() < 1e-5
        assert sync_client._regions.answers["cells-backbone", (64, 224)] == lengths and sync_client._regions.is_on
    assert regions_of(triton) == [] and leftovers() == []


def test_a_region_that_a_server_may_still_write_to_is_not_used_again():
    regions = Regions(Address.parse("127.0.0.1:1", "http"))
    served = Served("m", None, "images", ("logits",), 8, False, 0.0)
    images = np.zeros((1, 3, 512, 512), np.float32)
    busy = InferenceServerException("Exceeds maximum queue size", status="503")
    wrong = InferenceServerException("unexpected shape", status="400")
    for error, is_kept in (
        (busy, True),
        (wrong, True),
        (TimeoutError(), False),
        (ConnectionResetError(104, "reset"), False),
        (KeyboardInterrupt(), False),
        (InferenceServerException("Socket closed", status="StatusCode.UNAVAILABLE"), False),
        (InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED"), False),
        (InferenceServerException("bad gateway", status="502"), False),
    ):
        passage = Passage(tritonclient.http, served, images, regions)
        region = passage.region
        region.remove_name()
        assert not passage.goes_as_bytes(error)
        passage.end()
        assert [each is region for each in regions.empty()] == [True] * is_kept, error
    assert leftovers() == []
