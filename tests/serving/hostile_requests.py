"""Malformed requests to a real tritonserver: over HTTP and gRPC, as JSON and as bytes, valid and mutated."""

from __future__ import annotations

import http.client
import json
import random
import re
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc
import numpy as np
import psutil
from tritonclient.grpc.service_pb2 import ModelInferRequest

SECONDS = 60  # for an answer
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Triton 24.10 claims as much memory as the shape of a tensor in JSON says, all of the machine's: large numbers are left out there.
LARGE = ["9999999999999999999", "1e999", "2147483648", "-9223372036854775808"]
NUMBERS = ["-1", "0", "NaN", "null", '"1"', "[]", "{}", "0.5", "77"]  # in place of a number


@dataclass(frozen=True)
class Sent:
    """A request. model: for HTTP, of the path. header: Inference-Header-Content-Length, if there is one."""

    protocol: str
    model: str
    body: bytes
    header: str | None = None


@dataclass(frozen=True)
class Came:
    """An answer. status: HTTP's, or the name of gRPC's. words: the error's; of an answer its beginning."""

    status: str
    words: str

    @property
    def is_answer(self) -> bool:
        """Whether the request was answered, not refused."""
        return self.status in ("200", "OK")

    @property
    def is_clean(self) -> bool:
        """Whether it is an answer or an error with a message."""
        return self.is_answer or (bool(self.words) and self.status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"))


class Caller:
    """Sends requests, each of which gets an answer or fails the test."""

    def __init__(self, http_url: str, grpc_url: str):
        self._http_url = http_url
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(grpc_url, options=options)
        self._infer = self._channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)

    def close(self) -> None:
        """End the connections."""
        self._channel.close()

    def send(self, sent: Sent) -> Came:
        """Send a request; returns the answer or the error."""
        return self._grpc(sent) if sent.protocol == "grpc" else self._http(sent)

    def _grpc(self, sent: Sent) -> Came:
        try:
            return Came("OK", str(self._infer(sent.body, timeout=SECONDS))[:100])
        except grpc.RpcError as error:
            return Came(error.code().name, error.details())

    def _http(self, sent: Sent) -> Came:
        connection = http.client.HTTPConnection(self._http_url, timeout=SECONDS)
        headers = {"Content-Type": "application/octet-stream"}
        if sent.header is not None:
            headers["Inference-Header-Content-Length"] = sent.header
        with suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has read all
            connection.request("POST", f"/v2/models/{sent.model}/infer", sent.body, headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        with suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]
        return Came(str(response.status), text[:300])


def as_json(model: str, array: np.ndarray, kind: str, *, outputs: list[str]) -> Sent:
    """All numbers in the JSON."""
    tensor = {"name": "picture" if kind == "UINT8" else "images", "shape": list(array.shape), "datatype": kind, "data": array.tolist()}
    return Sent("http", model, json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in outputs]}).encode())


def as_binary(model: str, array: np.ndarray, kind: str, *, outputs: list[str]) -> Sent:
    """JSON, then the bytes."""
    tensor = {"name": "picture" if kind == "UINT8" else "images", "shape": list(array.shape), "datatype": kind}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    named = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = json.dumps({"id": "1", "inputs": [tensor], "outputs": named}).encode()
    return Sent("http", model, header + array.tobytes(), str(len(header)))


def as_grpc(model: str, array: np.ndarray, kind: str, *, outputs: list[str], typed: bool = False) -> Sent:
    """A protobuf message; typed: with its numbers in the tensor rather than as bytes."""
    message = ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name="picture" if kind == "UINT8" else "images", datatype=kind, shape=array.shape)
    for name in outputs:
        message.outputs.add(name=name)
    if typed:
        (tensor.contents.uint_contents if kind == "UINT8" else tensor.contents.fp32_contents).extend(array.ravel().tolist())
    else:
        message.raw_input_contents.append(array.tobytes())
    return Sent("grpc", model, message.SerializeToString())


def good_requests(picture: bytes, size: int) -> list[Sent]:
    """One in each form to each kind of model."""
    images = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32).round(3)
    file = np.frombuffer(picture, np.uint8)[None]
    found = []
    for model, array, kind, outputs in (
        ("cells", images, "FP32", ["logits"]),
        ("cells-backbone", images, "FP32", ["stride8", "embedding"]),
        ("cells-pictures", file, "UINT8", ["mask", "shares", "embedding"]),
    ):
        found += [form(model, array, kind, outputs=outputs) for form in (as_json, as_binary, as_grpc)]
        found.append(as_grpc(model, array, kind, outputs=outputs, typed=True))
    return found


def mutated(sent: Sent, chance: random.Random) -> Sent:
    """A request with one to three random faults: in its bytes, its numbers, its words, its header."""
    for _ in range(chance.randint(1, 3)):
        sent = chance.choice([_bytes, _cut, _number, _word, _header, _field])(sent, chance)
    return sent


def _bytes(sent: Sent, chance: random.Random) -> Sent:
    body = bytearray(sent.body)
    end = max(1, len(body) if chance.random() < 0.5 else min(300, len(body)))  # where the description is
    for _ in range(chance.randint(1, 8)):
        if body:
            body[chance.randrange(min(end, len(body)))] = chance.randrange(256)
    return replace(sent, body=bytes(body))


def _cut(sent: Sent, chance: random.Random) -> Sent:
    first, last = sorted(chance.randrange(len(sent.body) + 1) for _ in range(2))
    part = sent.body[first:last]
    made = chance.choice([sent.body[:first], sent.body[:first] + sent.body[last:], sent.body[:last] + part + sent.body[last:], part])
    return replace(sent, body=made)


def _number(sent: Sent, chance: random.Random) -> Sent:
    places = list(re.finditer(rb"(?<=[ \[:])-?\d+(\.\d+)?", sent.body[:2000]))
    if sent.protocol == "grpc" or not places:
        return _bytes(sent, chance)
    place = chance.choice(places)
    is_json = b'"data":' in sent.body or b"binary_data_size" not in sent.body
    numbers = NUMBERS if is_json else NUMBERS + LARGE
    return replace(sent, body=sent.body[: place.start()] + chance.choice(numbers).encode() + sent.body[place.end() :])


def _word(sent: Sent, chance: random.Random) -> Sent:
    places = list(re.finditer(rb"[A-Za-z_]{3,}", sent.body[:400]))
    if not places:
        return _bytes(sent, chance)
    place = chance.choice(places)
    words = [
        b"FP64",
        b"BYTES",
        b"INT32",
        b"logits",
        b"data",
        b"shared_memory_region",
        b"x" * len(place[0]),
        b"\xff\xfe",
        b'"',
        b"%s%n" * 20,
    ]
    return replace(sent, body=sent.body[: place.start()] + chance.choice(words) + sent.body[place.end() :])


def _header(sent: Sent, chance: random.Random) -> Sent:
    if sent.protocol == "grpc":
        return _field(sent, chance)
    return replace(sent, header=chance.choice([None, "0", "1", "-1", "999999999999", "x", "", str(len(sent.body))]))


def _field(sent: Sent, chance: random.Random) -> Sent:
    """A semantic fault in an otherwise valid gRPC request."""
    message = ModelInferRequest()
    try:
        message.ParseFromString(sent.body)
    except Exception:
        return _bytes(sent, chance)
    if sent.protocol != "grpc" or not message.inputs:
        return _bytes(sent, chance)
    tensor = message.inputs[0]
    fault = chance.randrange(8)
    if fault == 0:
        tensor.shape[:] = chance.choice([[], [0], [1, 3, 1 << 40, 1 << 40], [-1, 3, 32, 32], [1] * 40, [1, 3, 0, 32], [2, 3, 32, 32]])
    elif fault == 1:
        tensor.datatype = chance.choice(["", "FP16", "BYTES", "INT64", "BOOL", "FP99"])
    elif fault == 2:
        tensor.parameters["shared_memory_region"].string_param = "nowhere"
        tensor.parameters["shared_memory_byte_size"].int64_param = chance.choice([-1, 0, 1 << 60])
    elif fault == 3:
        message.inputs.add().CopyFrom(tensor)
    elif fault == 4:
        message.outputs.add(name=chance.choice(["", "logits", "nothing"]))
    elif fault == 5:
        message.model_version = chance.choice(["2", "-1", "x" * 1000])
    elif fault == 6:
        message.parameters["timeout"].int64_param = chance.choice([-1, 0, 1])
        message.parameters["priority"].int64_param = chance.choice([-1, 1 << 40])
    else:
        message.outputs[0].parameters["classification"].int64_param = chance.choice([-1, 0, 1, 1 << 40]) if message.outputs else 0
    return replace(sent, body=message.SerializeToString())


def memory_of(pid: int) -> int:
    """Bytes of a server's processes; what they share is divided among them."""
    total, server = 0, psutil.Process(pid)
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total
