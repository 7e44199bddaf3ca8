"""Reading untrusted pickles: tensors and plain data, without executing anything."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gan_files
import numpy as np
import pytest
import torch

from dreamteacher.errors import UserError
from dreamteacher.teachers.unpickling import Stored, read_array, read_pickle


class Runs:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def written(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "a.pkl").write_bytes(content)
    return tmp_path / "a.pkl"


def hostile(tmp_path: Path) -> dict[str, bytes]:
    """Pickles each of which would make the file `mark` if it were run."""
    mark = tmp_path / "mark"
    touch = f"open({str(mark)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save({"a": Runs(os.system, f"touch {mark}")}, inner)
    legacy = io.BytesIO()
    torch.save(Runs(os.system, f"touch {mark}"), legacy, _use_new_zipfile_serialization=False)
    name = b"ctorch.storage\n_load_from_bytes\n"

    def bytes_of(content: bytes) -> bytes:
        return b"B" + struct.pack("<I", len(content)) + content

    return {
        "system": pickle.dumps(Runs(os.system, f"touch {mark}")),
        "exec": pickle.dumps({"G_ema": Runs(exec, touch)}),
        "getattr": pickle.dumps(Runs(getattr, "a", "upper")),
        "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x12OrderedDict.update\x93.",
        "within torch": name + bytes_of(inner.getvalue()) + b"\x85R.",
        "within torch, old format": name + bytes_of(legacy.getvalue()) + b"\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pabc\n.",
        "old instance": f"(S'touch {mark}'\nios\nsystem\n.".encode(),
        "import": pickle.dumps(Runs(__import__, "this")),
    }


@pytest.mark.parametrize("name", list(hostile(Path("/nowhere"))))
def test_a_hostile_pickle_is_refused_in_one_line_and_nothing_is_run(name: str, tmp_path: Path) -> None:
    path = written(hostile(tmp_path)[name], tmp_path)
    with pytest.raises(UserError, match=r"a\.pkl is refused \(.+\); nothing in it was run") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_cannot_change_what_it_calls(tmp_path: Path) -> None:
    """BUILD sets attributes, also of classes and functions that are allowed: of ours, for every later pickle."""
    targets = [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cdnnlib.util\nEasyDict\n"]
    for target in [*targets, targets[-1] + b")\x81"]:
        with pytest.raises(UserError, match="is refused"):
            read_pickle(written(b"\x80\x02" + target + b"N}X\x05\x00\x00\x00helloK\x01s\x86b.", tmp_path))
    with gan_files.writable() as easy_dict:
        path = written(pickle.dumps(easy_dict(a=1)), tmp_path)
    assert read_pickle(path) == {"a": 1}
    assert not hasattr(dict, "hello") and not hasattr(OrderedDict, "hello")


def test_a_small_pickle_cannot_allocate_much_memory(tmp_path: Path) -> None:
    wide = torch.ones(1).expand(1 << 40)  # a storage of 4 bytes
    storage = torch.ones(1).storage()
    content = Runs(torch._utils._rebuild_tensor_v2, storage, 0, tuple(wide.shape), (0,), False, OrderedDict())
    with pytest.raises(UserError, match="larger than what is stored"):
        read_pickle(written(pickle.dumps(content), tmp_path))
    lists: Any = []
    for _ in range(100):  # 2^100 when unrolled
        lists = [lists, lists]
    assert len(read_pickle(written(pickle.dumps({"a": lists}), tmp_path))["a"]) == 2


def test_damaged_pickles_are_refused_in_one_line(tmp_path: Path) -> None:
    for content in (b"", b"\x80\x04", b"not a pickle", pickle.dumps([1, 2])[:-1], b"\x80\x02]q\x00h\x01."):
        with pytest.raises(UserError, match="is refused"):
            read_pickle(written(content, tmp_path))


def test_a_pickle_of_tensorflow_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dnnlib\.tflib\.network\.Network.+it is one of TensorFlow: convert it to torch first"):
        read_pickle(written(b"cdnnlib.tflib.network\nNetwork\n.", tmp_path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_arrays_and_plain_data_come_out_as_they_went_in(protocol: int, tmp_path: Path) -> None:
    base = torch.arange(12.0)
    content = {
        "tensors": [base.view(3, 4)[:, 1], torch.nn.Parameter(base.half()), torch.tensor(3, dtype=torch.int64), base.view(3, 4).T],
        "plain": (1, 2.5, "text", None, True, {"a"}),
        "ordered": OrderedDict(a=1, b=[2]),
        "numbers": [np.float32(0.25), np.int64(-3), np.bool_(True)],
    }
    found = read_pickle(written(pickle.dumps(content, protocol), tmp_path))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found["tensors"], content["tensors"], strict=True))
    assert (found["plain"], found["ordered"], found["numbers"]) == (content["plain"], {"a": 1, "b": [2]}, [0.25, -3, True])


def test_an_object_array_of_numpy_is_read(tmp_path: Path) -> None:
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "instance_features": features,
        "labels": np.array([3, 4]),
        "image_path": ["a.png", "b.png"],
        "f": np.asfortranarray(features),
    }
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    found = read_array(tmp_path / "a.npy")
    assert np.array_equal(found["instance_features"], features) and np.array_equal(found["f"], features)
    assert (found["labels"].tolist(), found["image_path"]) == ([3, 4], ["a.png", "b.png"])
    np.save(tmp_path / "a.npy", features)
    assert np.array_equal(read_array(tmp_path / "a.npy"), features)
    np.save(tmp_path / "a.npy", np.array([Runs(os.system, f"touch {tmp_path / 'mark'}")], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy is refused \(it asks for (posix|nt)\.system"):
        read_array(tmp_path / "a.npy")
    assert not (tmp_path / "mark").exists()


def test_a_module_is_its_attributes_and_its_source_is_passed_over(tmp_path: Path) -> None:
    inner = gan_files.Module("Layer", {"weight": torch.ones(2)}, {"kernel": torch.zeros(1)}, {})
    with gan_files.writable():
        path = written(pickle.dumps(gan_files.Module("Net", {}, {}, {"b4": inner})), tmp_path)
    found = read_pickle(path)
    assert isinstance(found, Stored) and found.kind == "Net"
    assert {name: value.tolist() for name, value in found.tensors().items()} == {"b4.weight": [1, 1], "b4.kernel": [0]}
