"""The client of served models for asyncio; see `client`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar, cast

from tritonclient.utils import InferenceServerException

from dreamteacher.serving.answers import Answer, Features, Prediction
from dreamteacher.serving.connection import (
    AT_ONCE,
    CLOSE_SECONDS,
    GRPC_OPTIONS,
    RETRIES,
    TIMEOUT,
    Address,
    Attempts,
    Protocol,
    Refused,
    explain,
    is_foreseen,
)
from dreamteacher.serving.requests import Picture, Request, Served, only_maps, read_config, to_answers, to_requests, unknown_model
from dreamteacher.serving.shared_memory import Passage, Regions

_T = TypeVar("_T")


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, which are awaited; used in one event loop.

    A batch's requests run concurrently. Pictures are decoded and preprocessed in threads, so that the event loop is not blocked.
    """

    def __init__(
        self, url: str, model: str = "dreamteacher", *, protocol: Protocol = "http", timeout: float = TIMEOUT, retries: int = RETRIES
    ):
        self.model, self.timeout, self.retries = model, timeout, retries
        self._address = Address.parse(url, protocol)
        self._library = self._address.library(aio=True)
        self._client: Any = None
        self._regions = Regions(self._address)
        self._served: dict[str, Served] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            for region in self._regions.empty():
                with suppress(Exception):  # the server may be gone
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._client.unregister_system_shared_memory(region.name)
            await self._client.close()
            self._client = None

    async def predict(self, picture: Picture) -> Prediction:
        """As `Client.predict`."""
        return (await self.predict_batch([picture]))[0]

    async def predict_batch(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """As `Client.predict_batch`."""
        return cast(list[Prediction], await self._batch(self.model, pictures))

    async def features(self, picture: Picture, maps: Collection[str] | None = None) -> Features:
        """As `Client.features`."""
        return (await self.features_batch([picture], maps))[0]

    async def features_batch(self, pictures: Sequence[Picture], maps: Collection[str] | None = None) -> list[Features]:
        """As `Client.features_batch`."""
        return cast(list[Features], await self._batch(f"{self.model}-backbone", pictures, maps))

    async def served(self, model: str) -> Served:
        """As `Client.served`."""
        return await self._describe(model, Attempts(self.timeout, self.retries))

    async def _batch(self, model: str, pictures: Sequence[Picture], maps: Collection[str] | None = None) -> list[Answer]:
        attempts = Attempts(self.timeout, self.retries)
        served = only_maps(await self._describe(model, attempts), maps)
        requests = await asyncio.to_thread(to_requests, pictures, served)

        at_once = asyncio.Semaphore(AT_ONCE)

        async def answer(request: Request) -> dict[int, Answer]:
            async with at_once:
                return await self._infer(served, request, attempts.fresh())

        answers: dict[int, Answer] = {}
        for part in await asyncio.gather(*map(answer, requests)):
            answers |= part
        return [answers[index] for index in range(len(pictures))]

    async def _infer(self, served: Served, request: Request, attempts: Attempts) -> dict[int, Answer]:
        passage = Passage(self._library, served, request.images, self._regions)
        await self._register(passage, attempts)
        try:
            result = await self._retrying(lambda: self._try(passage), served.model, attempts)
            return await asyncio.to_thread(to_answers, served, request, passage.outputs(result))
        finally:
            passage.end()

    async def _try(self, passage: Passage) -> Any:
        try:
            return await self._tritonclient().infer(**passage.arguments())
        except BaseException as error:  # also where the deadline cancels it
            if not passage.goes_as_bytes(error):
                raise
        return await self._tritonclient().infer(**passage.arguments())

    async def _register(self, passage: Passage, attempts: Attempts) -> None:
        region = passage.region
        if region and not region.is_registered:
            try:
                async with asyncio.timeout(attempts.left()):
                    await self._tritonclient().register_system_shared_memory(region.name, f"/{region.name}", region.length)
                region.is_registered = True
            except Exception as error:
                if not is_foreseen(error):
                    raise
                self._regions.registration_failed(error)
                passage.region = None
            finally:
                region.remove_name()

    async def _describe(self, model: str, attempts: Attempts) -> Served:
        if model in self._served and self._served[model].is_fresh:
            return self._served[model]
        as_json = {"as_json": True} if self._address.protocol == "grpc" else {}
        try:
            config = await self._retrying(lambda: self._tritonclient().get_model_config(model, **as_json), model, attempts)
        except Refused as refused:
            try:
                async with asyncio.timeout(attempts.left()):
                    index = await self._tritonclient().get_model_repository_index(**as_json)
            except (InferenceServerException, OSError):
                raise refused from None
            raise unknown_model(self._address, model, index) or refused from None
        self._served[model] = read_config(self._address, model, config)
        return self._served[model]

    async def _retrying(self, call: Callable[[], Awaitable[_T]], model: str, attempts: Attempts) -> _T:
        while True:
            try:
                async with asyncio.timeout(attempts.left()):
                    return await call()
            except Exception as error:
                if not is_foreseen(error):
                    raise
                pause = attempts.pause_after(error)
                if pause is None:
                    raise explain(error, self._address, model, attempts.timeout) from error
            await asyncio.sleep(pause)

    def _tritonclient(self) -> Any:
        """Made in the event loop, to which it belongs."""
        if self._client is None:
            options = {"conn_timeout": None} if self._address.protocol == "http" else {"channel_args": GRPC_OPTIONS}
            self._client = self._library.InferenceServerClient(self._address.place, ssl=self._address.is_tls, **options)
        return self._client
