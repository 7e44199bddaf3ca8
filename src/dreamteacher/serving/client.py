"""Clients of served models, sync and asyncio, over HTTP or gRPC.

How a picture is prepared comes from the server, so nothing else is needed here: numpy, Pillow and tritonclient, and no torch.

    with Client("127.0.0.1:8000", "dreamteacher") as client:
        answer = client.predict("picture.jpg")  # Segmentation, Classification, Detections ...

Each call has one deadline (`timeout`, seconds). A call that finds no server, or one without room, is tried again up to `retries` times
after pauses of 0.1, 0.2, 0.4, ... 5 s with jitter; all else is raised at once.
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
from dreamteacher.serving.contract import Contract
from dreamteacher.serving.requests import (
    CLOSE_SECONDS,
    GRPC_OPTIONS,
    RETRIES,
    TIMEOUT,
    Address,
    Attempts,
    DeadlineExceeded,
    Overloaded,
    Picture,
    Protocol,
    Refused,
    Request,
    Served,
    Unavailable,
    explain,
    is_foreseen,
    only_maps,
    read_config,
    to_answers,
    to_requests,
    unknown_model,
)
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
    """Asks one served model, and its backbone; may be used from several threads.

    Args:
        url: HOST:PORT, or with a scheme; https and grpcs mean TLS.
        model: its name on the server; its backbone is called MODEL-backbone. A MODEL-pictures is sent the files as they are, which are
            smaller than prepared pictures, and is answered alike.
        protocol: "http" or "grpc".
        timeout: seconds for each call, with all its tries.
        retries: further tries of a call that found no server, or one without room.
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
        """Close this thread's connections; those of other threads end with them."""
        for region in self._regions.empty():
            with suppress(Exception):  # the server may be gone
                self._call("unregister_system_shared_memory", CLOSE_SECONDS, region.name)
        if self._shared:
            self._shared.close()
        self._drop()

    @property
    def contract(self) -> Contract:
        """How the model's pictures are prepared, and its classes."""
        return self.served(self.model).contract

    def predict(self, picture: Picture) -> Prediction:
        """What the model says of a picture (a path, the bytes of a file, or uint8 RGB (H, W, 3)): the answer of its task, see `answers`.

        Raises:
            BadPicture: it is none, or it would become too large when it is prepared.
            OSError: the file cannot be read.
            Unavailable, DeadlineExceeded, Refused: see there; all are UserError.
            UserError: there is no such model, or it does not say how pictures are prepared.
        """
        return self.predict_batch([picture])[0]

    def predict_batch(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """`predict` for several pictures, which share requests where their prepared shapes allow; all are held in memory."""
        return cast(list[Prediction], self._batch(self.model, pictures))

    def features(self, picture: Picture, maps: Collection[str] | None = None) -> Features:
        """What MODEL-backbone sees in a picture; raises as `predict`.

        maps: the names of the maps that are wanted, such as ["stride16"]; []: only the embedding, which is a thousandth of the bytes; None:
        all.
        """
        return self.features_batch([picture], maps)[0]

    def features_batch(self, pictures: Sequence[Picture], maps: Collection[str] | None = None) -> list[Features]:
        """`features` for several pictures."""
        return cast(list[Features], self._batch(f"{self.model}-backbone", pictures, maps))

    def served(self, model: str) -> Served:
        """The server's description of a model, asked for once a minute, so that a client follows a rollout."""
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
        """Let the server open the passage's region; where it cannot, the request goes as bytes."""
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
            except (InferenceServerException, OSError):  # production servers close this part of the API
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
        """A method of tritonclient's client, at most `timeout` seconds long."""
        if self._shared:
            return getattr(self._shared, method)(*arguments, client_timeout=timeout, **options)
        import gevent  # of the HTTP client, whose own limits hold for each read from the socket, not for the call

        try:
            with gevent.Timeout(timeout):
                return getattr(self._own_client(), method)(*arguments, **options)
        except gevent.Timeout:
            self._drop()  # its connection still waits for the answer
            raise TimeoutError from None

    def _own_client(self) -> Any:
        """The HTTP client of this thread, which it must not leave."""
        if not hasattr(self._own, "client"):
            self._own.client = self._library.InferenceServerClient(
                self._address.place, ssl=self._address.is_tls, connection_timeout=None, network_timeout=None
            )
        return self._own.client

    def _drop(self) -> None:
        if hasattr(self._own, "client"):
            self._own.client.close()
            del self._own.client
