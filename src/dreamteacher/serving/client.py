"""Pictures through a served model. How a picture is prepared comes from the server, so nothing else is needed here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tritonclient.utils import InferenceServerException

from dreamteacher.data.decode import BadPicture, decode
from dreamteacher.errors import UserError

Protocol = Literal["http", "grpc"]
Infer = Callable[[np.ndarray], dict[str, np.ndarray]]

AT_ONCE = 8  # requests under way, from which the server forms batches
JSON_KEYS = ("classes", "mean", "std", "size", "multiple", "short_side", "scale_to", "dynamic_size")  # of the contract
TIMEOUT = 120.0  # seconds for one answer
# Tableau's ten colours, for class 1, 2, ...; class 0, most often the background, is left as it is.
COLOURS = bytes.fromhex("1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf")


def predict(
    images: list[Path], url: str, model: str, out: Path | None = None, *, protocol: Protocol = "http", features: bool = False
) -> None:
    """Ask the server at `url` for every picture; prints one line a picture, in order.

    Segmentation: the share of each class; with `out` also STEM.mask.png (class ids, in the picture's own size) and STEM.overlay.png.
    Classification: the three likeliest classes with their probabilities.
    `features` asks MODEL-backbone as well and writes STEM.npz: `strideS` (C, H/S, W/S) and `embedding` (C,), float32, of the
    picture as prepared (see `prepare`), and `size`, its (H, W) unpadded.

    Raises:
        UserError: the server cannot be reached or lacks the model, `out` is needed, or some pictures are bad (the others are done).
    """
    if features and out is None:
        raise UserError("features are written to files; name a folder with --out")
    served = [_connect(url, name, protocol) for name in [model] + [f"{model}-backbone"] * features]
    if out:
        out.mkdir(parents=True, exist_ok=True)

    def ask(path: Path, stem: str) -> str:
        try:
            picture = decode(path.read_bytes()).image
        except IsADirectoryError:
            return f"BAD {path}: it is a folder; name pictures, such as {path}/*.jpg"
        except (BadPicture, OSError) as error:
            return f"BAD {path}: {error.strerror if isinstance(error, OSError) else error}"
        place = out / stem if out else None
        return f"{path}: " + "; ".join(_answer(picture, contract, infer, place) for contract, infer in served)

    bad = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line in pool.map(ask, images, _stems(images)):  # when one raises, those not begun are cancelled
            bad += line.startswith("BAD ")
            print(line, flush=True)
    if bad:
        raise UserError(f"{bad} of {len(images)} pictures could not be read; see the lines that begin with BAD")


def _answer(picture: np.ndarray, contract: dict[str, Any], infer: Infer, place: Path | None) -> str:
    """What a model says of a picture, in words; its files go to `place` with a suffix."""
    tensor, size = prepare(picture, contract)
    results = {name: array[0] for name, array in infer(tensor).items()}
    if contract["task"] == "classification":
        return _likeliest(results["logits"], contract["classes"])
    if contract["task"] == "segmentation":
        return _segmented(picture, results["logits"][:, : size[0], : size[1]], contract["classes"], place)
    words = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in results.items())
    if place:
        np.savez(f"{place}.npz", size=np.array(size), **results)
        words += f" -> {place}.npz"
    return words


def prepare(picture: np.ndarray, contract: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 RGB (H, W, 3) as evaluation sees it: scaled, padded by reflection to the multiple, normalised.

    Scaled: reduced to `short_side` as ingest does, then, where the task is evaluated at one scale, to the short side `scale_to`. A model
    that takes one size only gets the picture in that size. Returns float32 (1, 3, H', W') and the size (h, w) of its upper left part
    that is the picture.
    """
    interpolation = Image.Resampling[contract["interpolation"].upper()]
    if not contract["dynamic_size"]:
        picture = _resize(picture, contract["size"], contract["size"], interpolation)
    else:
        if contract["short_side"]:
            picture = _scale(picture, min(contract["short_side"], *picture.shape[:2]), interpolation)
        if contract["scale_to"]:
            picture = _scale(picture, contract["scale_to"], interpolation)
    height, width = picture.shape[:2]
    down, right = (-side % contract["multiple"] for side in (height, width))
    padded = np.pad(picture, ((0, down), (0, right), (0, 0)), mode="reflect")
    normalized = (padded / np.float32(255) - np.float32(contract["mean"])) / np.float32(contract["std"])
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]), (height, width)


def _scale(picture: np.ndarray, short: int, interpolation: Image.Resampling) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = short / min(height, width)
    return _resize(picture, round(height * scale), round(width * scale), interpolation)


def _resize(picture: np.ndarray, height: int, width: int, interpolation: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), interpolation))  # Pillow copies where the size is the same


def _connect(url: str, model: str, protocol: Protocol) -> tuple[dict[str, Any], Infer]:
    """What the server says of the model, and a function that asks it; the function may be called from several threads."""
    scheme, _, rest = url.rpartition("://")
    try:
        place = urlsplit(f"//{rest}")
        whole = bool(place.hostname) and place.port != 0
    except ValueError:
        whole = False
    if not whole:  # the HTTP client would fail, and again while it is taken down
        raise UserError(f"--url {url} is no address; write HOST:PORT as `dreamteacher serve` prints it")
    library: Any = tritonclient.http if protocol == "http" else tritonclient.grpc
    waits = {"connection_timeout": TIMEOUT, "network_timeout": TIMEOUT} if protocol == "http" else {}
    limit = {} if protocol == "http" else {"client_timeout": TIMEOUT}
    own = threading.local()

    def client() -> Any:
        if not hasattr(own, "client"):  # the HTTP client must not leave its thread
            own.client = library.InferenceServerClient(rest.rstrip("/"), ssl=scheme in ("https", "grpcs"), **waits)
        return own.client

    with _one_line(url, model, protocol):
        models = [entry["name"] for entry in _plain(client().get_model_repository_index())]
        if model not in models:
            raise UserError(f"the server at {url} has no model {model!r}; it has {', '.join(sorted(models)) or 'none'}")
        config = _plain(client().get_model_config(model))
    parameters = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    if not {"task", *JSON_KEYS} <= set(parameters):
        raise UserError(f"model {model!r} at {url} does not say how pictures are prepared; serve what `dreamteacher publish` wrote")

    def infer(images: np.ndarray) -> dict[str, np.ndarray]:
        given = library.InferInput(config["input"][0]["name"], list(images.shape), "FP32")
        given.set_data_from_numpy(images)
        with _one_line(url, model, protocol):
            answer = client().infer(model, [given], **limit)
        return {output["name"]: answer.as_numpy(output["name"]) for output in config["output"]}

    return {key: json.loads(text) if key in JSON_KEYS else text for key, text in parameters.items()}, infer


def _plain(answer: Any) -> Any:
    """The HTTP client answers with plain data; the gRPC client with a message around the same."""
    if isinstance(answer, (dict, list)):
        return answer
    plain = MessageToDict(answer, preserving_proto_field_name=True)
    return plain["config"] if "config" in plain else plain.get("models", [])


@contextmanager
def _one_line(url: str, model: str, protocol: Protocol) -> Iterator[None]:
    """What a server, or the lack of one, can do wrong, in one line."""
    try:
        yield
    except UserError:
        raise
    except InferenceServerException as error:
        if error.status() and ("UNAVAILABLE" in error.status() or "DEADLINE" in error.status()):
            raise _unreachable(url, protocol, error.message()) from error
        raise UserError(f"the server at {url} refuses (model {model!r}): {error.message().splitlines()[0][:300]}") from error
    except (OSError, ValueError, HTTPException) as error:  # no connection, no such host, an answer that is no JSON or no HTTP
        raise _unreachable(url, protocol, str(error) or type(error).__name__) from error


def _unreachable(url: str, protocol: Protocol, why: str) -> UserError:
    name = {"http": "HTTP", "grpc": "gRPC"}[protocol]
    advice = f"start one (`dreamteacher serve`) and give its {name} address"
    return UserError(f"no Triton answers at {url} over {name} ({why.strip().splitlines()[0][:200]}); {advice}")


def _stems(images: list[Path]) -> list[str]:
    """A name for each picture's files, none twice."""
    stems: dict[str, None] = {}
    for path in images:
        numbered = (f"{path.stem}-{number}" for number in count(2))
        stems[next(name for name in chain([path.stem], numbered) if name not in stems)] = None
    return list(stems)


def _likeliest(logits: np.ndarray, classes: list[str]) -> str:
    """The three likeliest classes of logits (K,)."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return ", ".join(f"{classes[i]} {shares[i]:.3f}" for i in np.argsort(-shares)[:3])


def _segmented(picture: np.ndarray, logits: np.ndarray, classes: list[str], place: Path | None) -> str:
    """The share of each class in logits (K, h, w); with `place`, mask and overlay are written in the size of the picture."""
    mask = logits.argmax(0).astype(np.uint8)
    shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
    words = ", ".join(f"{name} {share:.1%}" for name, share in zip(classes, shares, strict=True))
    if place is None:
        return words
    image = Image.fromarray(mask).resize(picture.shape[1::-1], Image.Resampling.NEAREST)
    mask = np.asarray(image)
    palette = np.frombuffer(bytes(3) + (COLOURS * 26)[: 255 * 3], np.uint8).reshape(256, 3)
    image.putpalette(palette.ravel().tolist())
    image.save(f"{place}.mask.png")
    blended = np.where(mask[..., None] > 0, picture // 2 + palette[mask] // 2, picture)
    Image.fromarray(blended).save(f"{place}.overlay.png")
    return f"{words} -> {place}.mask.png, {place}.overlay.png"
