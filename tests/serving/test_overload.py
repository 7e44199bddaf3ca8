"""Overload: the server answers what it can, and refuses other requests at once."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from client_samples import pixels
from serving_samples import PARAMS

from dreamteacher.serving.client import AsyncClient, Client, Overloaded
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton

SECONDS, QUEUE = 0.05, 16  # for one picture; requests that may wait


@pytest.fixture(scope="module")
def slow(models, tmp_path_factory):
    """A server whose capacity is known: two instances, each takes SECONDS for a picture."""
    folder = tmp_path_factory.mktemp("slow")
    settings = PARAMS.publish.model_copy(update={"instances": 2, "max_queue": QUEUE, "pictures": False})
    write_repository({"stages": models["stages"]}, folder / "local", backend="python", settings=settings)
    code = folder / "local/stages/1/model.py"
    run = "            results = self.session"
    text = code.read_text().replace(run, f"            __import__('time').sleep({SECONDS} * sum(map(len, images)))\n{run}")
    assert "sleep" in text
    code.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with running_triton(folder / "local") as triton:
            yield triton


async def offered(url, rate, seconds):
    """(seconds of accepted requests, seconds of refused ones) at `rate` requests a second that wait for nobody."""
    accepted, refused = [], []

    async def ask(client):
        begun = time.perf_counter()
        try:
            await client.predict(pixels(32, 32))
            accepted.append(time.perf_counter() - begun)
        except Overloaded as error:
            assert "is too busy (model 'stages': " in str(error) and "maximum queue size" in str(error)
            refused.append(time.perf_counter() - begun)

    async with AsyncClient(url, "stages", protocol="grpc", retries=0) as client, asyncio.TaskGroup() as tasks:
        await client.predict(pixels(32, 32))
        due = time.perf_counter()
        for _ in range(int(rate * seconds)):
            due += 1 / rate
            await asyncio.sleep(max(0, due - time.perf_counter()))
            tasks.create_task(ask(client))
    return accepted, refused


def test_at_four_times_the_capacity_it_answers_as_many_within_the_time_of_its_queue_and_refuses_the_others_at_once(slow):
    capacity = 2 / (SECONDS * 1.1)
    accepted, _ = asyncio.run(offered(slow.grpc_url, capacity, 3))
    begun = time.perf_counter()
    overloaded, refused = asyncio.run(offered(slow.grpc_url, 4 * capacity, 3))
    each = (time.perf_counter() - begun) / len(overloaded)  # seconds, on a machine that may be busy
    assert len(refused) > len(overloaded) > 0.7 * len(accepted)
    assert np.percentile(overloaded, 99) < 3 * (QUEUE + 8) * each
    assert np.median(refused) < QUEUE * each / 3


def test_a_client_that_tries_again_gets_through(slow):
    with Client(slow.http_url, "stages", retries=30, timeout=60) as client, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: client.predict(pixels(32, 32)).best, range(60)))
    assert len(set(answers)) == 1
