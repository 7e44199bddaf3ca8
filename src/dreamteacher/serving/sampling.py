"""Store a sample of the pictures that NAME-pictures receives, for retraining; off unless enabled in the server's environment.

Only the pixels that the model saw are stored, as an upright RGB PNG, without EXIF (places, cameras, names), thumbnails, colour profiles and
request metadata. Files are named by sha256, so equal pictures are stored once, and `ingest` can read the folder (retrain.incoming).

Runs in the server's Python beside a copy of `data.decode`. Needs boto3 there for s3:// only.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dreamteacher.data.decode import decode

FRACTION, PLACE, PER_DAY = (f"DREAMTEACHER_SAMPLE_{each}" for each in ("FRACTION", "TO", "PER_DAY"))  # environment variables
DAY, HOUR = 86400.0, 3600.0
WAITING = 64_000_000  # maximum bytes of queued pictures; further ones are dropped
REMEMBERED = 10_000  # number of recent pictures checked for duplicates
WARN_EVERY = 600.0  # seconds

Store = Callable[[str, bytes], None]  # (name, content) -> None; the same name again has the same content


class Sampler:
    """Stores some of the offered pictures in a background thread: `offer` neither blocks nor fails."""

    def __init__(
        self,
        store: Store,
        *,
        fraction: float,
        per_day: float,
        max_pixels: int,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fraction` (0..1) of the offered pictures is stored, at most `per_day`, in bursts of at most an hour's share."""
        self._store, self._fraction, self._max_pixels, self._draw, self._clock = store, fraction, max_pixels, draw, clock
        self._rate, self._most = per_day / DAY, max(1.0, per_day / DAY * HOUR)
        self._allowed, self._counted = self._most, clock()
        self._waiting: deque[bytes] = deque()
        self._bytes, self._lost, self._warned, self._closed = 0, 0, -WARN_EVERY, False
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], config: dict[str, Any], max_pixels: int) -> Sampler | None:
        """The sampler configured by the server's environment; None if it is off.

        DREAMTEACHER_SAMPLE_FRACTION: from 0 (off) to 1. DREAMTEACHER_SAMPLE_TO: a folder or s3://bucket/prefix.
        DREAMTEACHER_SAMPLE_PER_DAY: pictures a day and server, 1000 by default, which the instances of the model share.

        Args:
            environment: of the server.
            config: of the model, as Triton gives it.
            max_pixels: larger pictures are not kept.

        Raises:
            ValueError: a variable is not what it should be, or the folder cannot be written.
        """
        fraction, per_day = _number(environment, FRACTION, "0", most=1.0), _number(environment, PER_DAY, "1000", most=1e9)
        if not fraction or not per_day:
            return None
        instances = sum(group["count"] for group in config["instance_group"])
        return cls(_store_at(environment.get(PLACE, "")), fraction=fraction, per_day=per_day / instances, max_pixels=max_pixels)

    def offer(self, data: bytes) -> None:
        """Sample `data`, the file of a decodable picture, at random; drop it if the queue is full."""
        if self._draw() >= self._fraction:
            return
        with self._changed:
            if self._bytes + len(data) > WAITING:
                self._lost += 1
            else:
                self._waiting.append(data)
                self._bytes += len(data)
                self._changed.notify()

    def close(self, seconds: float = 5.0) -> None:
        """Store the queued pictures, for at most `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            why = ""
            try:
                self._keep(data)
            except Exception as error:  # storage errors must not affect the server
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            with self._changed:
                self._bytes -= len(data)
                self._lost += bool(why)
                lost = self._lost if self._clock() - self._warned >= WARN_EVERY else 0
                self._lost -= lost
            if lost:
                print(f"sampling: {lost} pictures were not kept: {why or 'the store is too slow'}", file=sys.stderr, flush=True)
                self._warned = self._clock()

    def _keep(self, data: bytes) -> None:
        received = hashlib.sha256(data).digest()
        if received in self._recent:
            self._recent.move_to_end(received)
            return
        now = self._clock()
        self._allowed, self._counted = min(self._most, self._allowed + (now - self._counted) * self._rate), now
        if self._allowed < 1:
            return
        file = io.BytesIO()
        Image.fromarray(decode(data, max_pixels=self._max_pixels).image).save(file, "PNG", compress_level=3)
        content = file.getvalue()
        self._store(f"{hashlib.sha256(content).hexdigest()}.png", content)
        self._allowed -= 1
        self._recent[received] = None
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)


def _number(environment: Mapping[str, str], name: str, default: str, *, most: float) -> float:
    text = environment.get(name) or default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise ValueError(f"{name} = {text} is no number from 0 to {most:g}")
    return number


def _store_at(address: str) -> Store:
    """What writes into the folder, or below the prefix of S3, that `address` names."""
    if address.startswith("s3://"):
        return _bucket(*address.removeprefix("s3://").partition("/")[::2])
    if not address or "://" in address:
        raise ValueError(f"{PLACE} = {address}: name the folder or s3://bucket/prefix for sampled pictures ({FRACTION} is set)")
    return _folder(Path(address))


def _folder(folder: Path) -> Store:
    def store(name: str, content: bytes) -> None:
        if (folder / name).exists():
            return
        part = folder / f".{name}.{os.getpid()}"
        part.write_bytes(content)
        part.replace(folder / name)  # so that readers of the folder see only complete pictures

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{PLACE} = {folder} cannot be written: {error.strerror}") from error
    return store


def _bucket(bucket: str, prefix: str) -> Store:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ValueError(
            f"{PLACE} = s3://{bucket}/{prefix} needs boto3 in Triton's Python; docker/triton.Dockerfile installs it"
        ) from error
    client = boto3.client("s3", config=Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "max_attempts": 3}))
    folder = f"{prefix.strip('/')}/".lstrip("/")
    return lambda name, content: client.put_object(Bucket=bucket, Key=folder + name, Body=content, ContentType="image/png") and None
