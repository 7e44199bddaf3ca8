"""Clients of served models, sync and asyncio, over HTTP or gRPC.

The preprocessing contract comes from the server, so the client needs only numpy, Pillow and tritonclient, no torch.

    with Client("127.0.0.1:8000", "dreamteacher") as client:
        answer = client.predict("picture.jpg")  # Segmentation, Classification, Detections ...

Each call has one deadline (`timeout`, seconds). If there is no server, or its queue is full, the call is retried up to `retries` times
after pauses of 0.1, 0.2, 0.4, ... 5 s with jitter; other errors are raised at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar, cast

from tritonclient.utils import InferenceServerException

from dreamteacher.data.formats import BadPicture
from dreamteacher.serving.answers import (
    Answer,
    Classification,
    Depth,
    Detections,
    Features,
    Instances,
    Keypoints,
    MultiLabel,
    Prediction,
    Raw,
    Segmentation,
)
from dreamteacher.serving.async_client import AsyncClient
from dreamteacher.serving.connection import (
    CLOSE_SECONDS,
    GRPC_OPTIONS,
    RETRIES,
    TIMEOUT,
    Address,
    Attempts,
    DeadlineExceeded,
    Overloaded,
    Protocol,
    Refused,
    Unavailable,
    explain,
    is_foreseen,
)
from dreamteacher.serving.contract import Contract
from dreamteacher.serving.requests import Picture, Request, Served, only_maps, read_config, to_answers, to_requests, unknown_model
from dreamteacher.serving.shared_memory import Passage, Regions

__all__ = [
    "AsyncClient",
    "BadPicture",
    "Classification",
    "Client",
    "Contract",
    "DeadlineExceeded",
    "Depth",
    "Detections",
    "Features",
    "Instances",
    "Keypoints",
    "MultiLabel",
    "Overloaded",
    "Raw",
    "Refused",
    "Segmentation",
    "Unavailable",
]

_T = TypeVar("_T")


class Client:
    """Client of one served model and its backbone; thread-safe.

    Args:
        url: HOST:PORT, or with a scheme; https and grpcs mean TLS.
        model: its name on the server; its backbone is MODEL-backbone. For MODEL-pictures, files are sent unchanged, which are smaller than
            preprocessed pictures; results are the same.
        protocol: "http" or "grpc".
        timeout: deadline of each call including retries, seconds.
        retries: maximum retries of a call if there is no server or its queue is full.
    """

    def __init__(
        self, url: str, model: str = "dreamteacher", *, protocol: Protocol = "http", timeout: float = TIMEOUT, retries: int = RETRIES
    ):
        self.model, self.timeout, self.retries = model, timeout, retries
        self._address = Address.parse(url, protocol)
        self._library = self._address.library()
        self._own = threading.local()
        self._regions = Regions(self._address)
        self._shared: Any = None
        if protocol == "grpc":
            self._shared = self._library.InferenceServerClient(self._address.place, ssl=self._address.is_tls, channel_args=GRPC_OPTIONS)
        self._served: dict[str, Served] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this thread's connections; those of other threads close when the threads end."""
        for region in self._regions.empty():
            with suppress(Exception):  # the server may be gone
                self._call("unregister_system_shared_memory", CLOSE_SECONDS, region.name)
        if self._shared:
            self._shared.close()
        self._drop()

    @property
    def contract(self) -> Contract:
        """The model's preprocessing contract and classes."""
        return self.served(self.model).contract

    def predict(self, picture: Picture) -> Prediction:
        """The prediction for a picture (a path, the bytes of a file, or uint8 RGB (H, W, 3)), of the task's type in `answers`.

        Raises:
            BadPicture: it cannot be decoded, or would be too large after preprocessing.
            OSError: the file cannot be read.
            Unavailable, DeadlineExceeded, Refused: see there; all are UserError.
            UserError: there is no such model, or it has no preprocessing contract.
        """
        return self.predict_batch([picture])[0]

    def predict_batch(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """`predict` for several pictures; those of equal preprocessed shape share requests. All are held in memory."""
        return cast(list[Prediction], self._batch(self.model, pictures))

    def features(self, picture: Picture, maps: Collection[str] | None = None) -> Features:
        """Features of a picture from MODEL-backbone; raises as `predict`.

        maps: names of the requested maps, such as ["stride16"]; []: only the embedding, a thousandth of the bytes; None: all.
        """
        return self.features_batch([picture], maps)[0]

    def features_batch(self, pictures: Sequence[Picture], maps: Collection[str] | None = None) -> list[Features]:
        """`features` for several pictures."""
        return cast(list[Features], self._batch(f"{self.model}-backbone", pictures, maps))

    def served(self, model: str) -> Served:
        """The server's description of a model, refreshed once a minute, so that a client follows rollouts."""
        return self._describe(model, Attempts(self.timeout, self.retries))

    def _batch(self, model: str, pictures: Sequence[Picture], maps: Collection[str] | None = None) -> list[Answer]:
        attempts = Attempts(self.timeout, self.retries)
        served = only_maps(self._describe(model, attempts), maps)
        answers: dict[int, Answer] = {}
        for request in to_requests(pictures, served):
            answers |= self._infer(served, request, attempts.fresh())
        return [answers[index] for index in range(len(pictures))]

    def _infer(self, served: Served, request: Request, attempts: Attempts) -> dict[int, Answer]:
        passage = Passage(self._library, served, request.images, self._regions)
        self._register(passage, attempts)
        try:
            result = self._retrying(lambda left: self._try(passage, left), served.model, attempts)
            return to_answers(served, request, passage.outputs(result))
        finally:
            passage.end()

    def _try(self, passage: Passage, left: float) -> Any:
        try:
            return self._call("infer", left, **passage.arguments())
        except BaseException as error:
            if not passage.goes_as_bytes(error):
                raise
        return self._call("infer", left, **passage.arguments())

    def _register(self, passage: Passage, attempts: Attempts) -> None:
        """Register the passage's shared memory region with the server; if that fails, the request is sent as bytes."""
        region = passage.region
        if region and not region.is_registered:
            try:
                self._call("register_system_shared_memory", attempts.left(), region.name, f"/{region.name}", region.length)
                region.is_registered = True
            except Exception as error:
                if not is_foreseen(error):
                    raise
                self._regions.registration_failed(error)
                passage.region = None
            finally:
                region.remove_name()

    def _describe(self, model: str, attempts: Attempts) -> Served:
        if model in self._served and self._served[model].is_fresh:
            return self._served[model]
        as_json = {"as_json": True} if self._shared else {}
        try:
            config = self._retrying(lambda left: self._call("get_model_config", left, model, **as_json), model, attempts)
        except Refused as refused:
            try:
                index = self._call("get_model_repository_index", attempts.left(), **as_json)
            except (InferenceServerException, OSError):  # production servers disable this part of the API
                raise refused from None
            raise unknown_model(self._address, model, index) or refused from None
        served = self._served[model] = read_config(self._address, model, config)
        return served

    def _retrying(self, call: Callable[[float], _T], model: str, attempts: Attempts) -> _T:
        while True:
            try:
                return call(attempts.left())
            except Exception as error:
                if not is_foreseen(error):
                    raise
                pause = attempts.pause_after(error)
                if pause is None:
                    raise explain(error, self._address, model, attempts.timeout) from error
            time.sleep(pause)

    def _call(self, method: str, timeout: float, *arguments: Any, **options: Any) -> Any:
        """Call a method of tritonclient's client with a limit of `timeout` seconds."""
        if self._shared:
            return getattr(self._shared, method)(*arguments, client_timeout=timeout, **options)
        import gevent  # for the HTTP client, whose own timeouts apply to each socket read, not to the call

        try:
            with gevent.Timeout(timeout):
                return getattr(self._own_client(), method)(*arguments, **options)
        except gevent.Timeout:
            self._drop()  # its connection still waits for the answer
            raise TimeoutError from None

    def _own_client(self) -> Any:
        """The HTTP client of this thread; it must not be used in another one."""
        if not hasattr(self._own, "client"):
            self._own.client = self._library.InferenceServerClient(
                self._address.place, ssl=self._address.is_tls, connection_timeout=None, network_timeout=None
            )
        return self._own.client

    def _drop(self) -> None:
        if hasattr(self._own, "client"):
            self._own.client.close()
            del self._own.client
