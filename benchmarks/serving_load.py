"""Load for the serving benchmarks: requests of a served model, or of onnxruntime in this process, and what they cost."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import psutil

from dreamteacher.data.decode import decode
from dreamteacher.onnx_files import read_metadata
from dreamteacher.serving.answers import Answer, to_answer
from dreamteacher.serving.client import AsyncClient, DeadlineExceeded, Overloaded
from dreamteacher.serving.contract import Contract, prepare
from dreamteacher.serving.triton_server import Triton


@dataclass
class Measured:
    """Of a stretch of load. latencies: seconds of each request. cpu: seconds of this process, asking: those of the threads that ask.
    server_cpu: of the server's processes."""

    seconds: float
    latencies: list[float]
    cpu: float
    asking: float
    server_cpu: float = 0.0

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def figures(self) -> dict[str, float]:
        """For the record: milliseconds of latency, and of CPU for each answer."""
        count = max(1, len(self.latencies))
        return {
            "throughput": round(self.throughput, 2),
            **percentiles(self.latencies),
            "cpu_ms": round(1000 * self.cpu / count, 2),
            "asking_cpu_ms": round(1000 * self.asking / count, 2),
            "server_cpu_ms": round(1000 * self.server_cpu / count, 2),
        }


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50_ms, p95_ms, p99_ms; empty without any."""
    return {f"p{q}_ms": round(1000 * float(np.percentile(latencies, q)), 2) for q in (50, 95, 99)} if latencies else {}


def closed_loop(ask: Callable[[Any], object], items: list[Any], clients: int, seconds: float, triton: Triton | None = None) -> Measured:
    """`clients` threads that each ask again as soon as they are answered."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    asking = [0.0] * clients
    server, own, start = server_cpu(triton), time.process_time(), time.perf_counter()
    end = start + seconds

    def work(client: int) -> None:
        index, before = client * len(items) // clients, time.thread_time()
        while (begun := time.perf_counter()) < end:
            ask(items[index % len(items)])
            latencies[client].append(time.perf_counter() - begun)
            index += 1
        asking[client] = time.thread_time() - before

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work, client) for client in range(clients)]:
            done.result()
    took = time.perf_counter() - start
    answered = [each for one in latencies for each in one]
    return Measured(took, answered, time.process_time() - own, sum(asking), server_cpu(triton) - server)


@dataclass
class Offered:
    """Of requests at a rate that does not wait for answers. accepted, refused: seconds until each was known."""

    rate: float
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: int = 0
    words: str = ""

    def figures(self) -> dict[str, Any]:
        """For the record."""
        return {
            "offered": round(self.rate, 2),
            "accepted": len(self.accepted),
            "refused": len(self.refused),
            "late": self.late,
            "accepted_latency": percentiles(self.accepted),
            "refused_latency": percentiles(self.refused),
            "error": self.words,
        }


def open_loop(triton: Triton, model: str, items: list[Any], rate: float, seconds: float) -> Offered:
    """Requests of an AsyncClient at random moments, `rate` a second on average; none is tried again."""
    return asyncio.run(_open_loop(triton, model, items, rate, seconds))


async def _open_loop(triton: Triton, model: str, items: list[Any], rate: float, seconds: float) -> Offered:
    offered, moments = Offered(rate), random.Random(0)

    async def ask(client: AsyncClient, item: Any) -> None:
        begun = time.perf_counter()
        try:
            await client.predict(item)
            offered.accepted.append(time.perf_counter() - begun)
        except Overloaded as error:
            offered.refused.append(time.perf_counter() - begun)
            offered.words = str(error)
        except DeadlineExceeded:
            offered.late += 1

    async with AsyncClient(triton.grpc_url, model, protocol="grpc", retries=0, timeout=30) as client, asyncio.TaskGroup() as tasks:
        await client.predict(items[0])
        due = time.perf_counter()
        for index in range(int(rate * seconds)):
            due += moments.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(ask(client, items[index % len(items)]))
    return offered


class Cores(NamedTuple):
    """Those of the server (and of raw in its place), and those of the clients."""

    server: set[int]
    clients: set[int]

    @classmethod
    def split(cls, of_server: int | None) -> Cores:
        """All cores for both, or `of_server` for the server and the others for the clients."""
        every = sorted(os.sched_getaffinity(0))
        if of_server is None:
            return cls(set(every), set(every))
        if not 0 < of_server < len(every):
            sys.exit(f"--server-cores {of_server}: this machine has {len(every)} cores, and one must be left for the clients")
        return cls(set(every[:of_server]), set(every[of_server:]))


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """This thread, and the processes and threads that it starts, run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def server_cpu(triton: Triton | None) -> float:
    """Seconds that the server's processes have computed."""
    if not triton:
        return 0.0
    total, server = 0.0, psutil.Process(triton.process.pid)
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def server_memory(triton: Triton) -> int:
    """Bytes of the server's processes; what they share is divided among them."""
    total, server = 0, psutil.Process(triton.process.pid)
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


class Raw:
    """onnxruntime in this process, preparing pictures and reading outputs as the client or NAME-pictures does.

    `instances` threads with a session each take the pictures that wait: one by one, or those of one prepared shape together, up to
    `batch`.
    """

    def __init__(self, path: Path, instances: int, threads: int, batch: int):
        self._contract, self._batch = Contract.from_metadata(read_metadata(path), str(path)), batch
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._waiting: list[tuple[np.ndarray, Future[list[np.ndarray]]]] = []
        self._changed, self._is_ended = threading.Condition(), False
        sessions = [onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for _ in range(instances)]
        self._names = [output.name for output in sessions[0].get_outputs()]
        self._threads = [threading.Thread(target=self._run, args=(session,), daemon=True) for session in sessions]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def ask(self, picture: np.ndarray | bytes) -> Answer:
        """The model's answer for a picture, or for the bytes of one."""
        pixels = picture if isinstance(picture, np.ndarray) else decode(picture).image
        images, prepared = prepare(pixels, self._contract)
        future: Future[list[np.ndarray]] = Future()
        with self._changed:
            self._waiting.append((images, future))
            self._changed.notify()
        outputs = dict(zip(self._names, future.result(), strict=True))
        return to_answer(self._contract, outputs, prepared, pixels.shape[:2])

    def _run(self, session: onnxruntime.InferenceSession) -> None:
        while taken := self._take():
            results = session.run(None, {"images": np.concatenate([images for images, _ in taken])})
            for i, (_, future) in enumerate(taken):
                future.set_result([result[i] for result in results])

    def _take(self) -> list[tuple[np.ndarray, Future[list[np.ndarray]]]]:
        with self._changed:
            while not self._waiting and not self._is_ended:
                self._changed.wait()
            if self._is_ended:
                return []
            shape = self._waiting[0][0].shape
            taken = [each for each in self._waiting if each[0].shape == shape][: self._batch]
            self._waiting = [each for each in self._waiting if all(each is not other for other in taken)]
            return taken
