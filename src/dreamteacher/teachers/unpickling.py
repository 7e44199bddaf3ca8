"""Read tensors and plain data from untrusted pickles without executing their code.

A pickle names functions and classes to call. Here names are looked up in a short allowlist whose entries only build tensors, arrays and
dicts; any other name is refused. StyleGAN2-ADA's networks are pickled with their source code, which their own loader executes: here the
code is ignored, and attributes and weights are kept.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dreamteacher.errors import UserError, first_line


class Stored:
    """Placeholder of a pickled object whose class is not loaded: class name and attributes."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str, state: dict[str, Any]):
        self.kind, self.state = kind, state

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes an object that is complete")

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of a stored module, by state dict names."""
        found, seen = {}, set()
        todo = [("", self)]
        while todo:
            prefix, module = todo.pop()
            if id(module) in seen:
                raise pickle.UnpicklingError("it has one module in two places")
            seen.add(id(module))
            for group in ("_parameters", "_buffers"):
                found.update({prefix + name: value.detach() for name, value in module.state[group].items() if isinstance(value, Tensor)})
            todo += [(f"{prefix}{name}.", inner) for name, inner in module.state["_modules"].items() if inner is not None]
        return found


class _Call:
    """The entry of a name in the pickle. The pickle cannot change it or the function it calls."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    """A numpy dtype under construction: the pickle sets its byte order afterwards."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, *_: Any):
        self._code, self._order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self._order = {"<": "<", ">": ">"}.get(state[1], "=")

    def numpy(self) -> np.dtype:
        kind = self._code.lstrip("<>|=")
        if kind[:1] not in set("biuf?OSU"):
            raise pickle.UnpicklingError(f"it holds numbers of type {self._code!r}")
        return np.dtype(kind).newbyteorder(self._order)  # type: ignore[arg-type]


class _Array:
    """A numpy array under construction."""

    __slots__ = ("value",)

    def __init__(self, *_: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        dtype = dtype.numpy()
        if dtype.hasobject:
            flat = np.empty(len(raw), object)
            flat[:] = raw
        else:
            flat = np.frombuffer(raw, dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: Any, raw: Any) -> Any:
    return np.frombuffer(raw, dtype.numpy())[0].item()


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) * storage.dtype.itemsize > storage._untyped_storage.nbytes():
        raise pickle.UnpicklingError("it has a tensor that is larger than what is stored of it")
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _text(value: Any, encoding: str) -> bytes:
    if encoding != "latin1" or not isinstance(value, str):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return value.encode("latin1")


def _stored(meta: Any) -> Stored:
    return Stored(str(meta["class_name"]), dict(meta["state"]))


def _never(*_: Any) -> Any:
    raise pickle.UnpicklingError("it makes an array in an unknown way")


_NUMPY = [f"numpy.{core}.multiarray" for core in ("core", "_core")]
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _text,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _stored,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _never,
    **{(module, "_reconstruct"): _Array for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
}


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file)

        class EasyDict(dict):  # a new class for this pickle, since a pickle can set attributes of a class
            def __setstate__(self, state: Any) -> None:
                raise pickle.UnpicklingError("it gives a dict attributes")

        self._names: dict[tuple[str, str], Any] = {name: _Call(function) for name, function in _NAMES.items()}
        self._names |= {(module, "EasyDict"): EasyDict for module in ("dnnlib", "dnnlib.util")}

    def find_class(self, module: str, name: str) -> Any:
        """The entry of the table; nothing is imported."""
        if (module, name) in self._names:
            return self._names[module, name]
        hint = "; it is one of TensorFlow: convert it to torch first" if "tflib" in module else ""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs{hint}")


def read_pickle(path: Path) -> Any:
    """The pickle's content, with a `Stored` for each object of an unknown class.

    Raises:
        UserError: it cannot be read, or contains more than tensors and plain data.
    """
    with in_one_line(path), path.open("rb") as file:
        return _finish(_Reader(file).load())


def read_array(path: Path) -> Any:
    """The content of a .npy file: an array, or the object that `numpy.save` pickled.

    Raises:
        UserError: as of `read_pickle`.
    """
    with in_one_line(path), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        array = _finish(_Reader(file).load())
        return array.item() if array.shape == () else array


class in_one_line:
    """Turn any error caused by a foreign file into a UserError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError | MemoryError):
            raise UserError(f"{self.path} is refused ({first_line(error)}); nothing in it was run") from error


def _finish(value: Any, done: dict[int, Any] | None = None) -> Any:
    """`value` with finished arrays instead of those under construction; shared references stay shared."""
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    result = value
    if isinstance(value, _Array):
        result = value.value
        if result is not None and result.dtype.hasobject:
            for place in np.ndindex(result.shape):
                result[place] = _finish(result[place], done)
    elif isinstance(value, Stored):
        value.state = _finish(value.state, done)
    elif isinstance(value, dict):
        result = {key: _finish(item, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(_finish(item, done) for item in value)
    done[id(value)] = result
    return result
