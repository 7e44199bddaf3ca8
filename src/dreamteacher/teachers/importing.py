"""`dreamteacher import-teacher`: make a teacher's folder from a trained generator, without executing code of the source."""

from __future__ import annotations

import difflib
import pickle
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamteacher.errors import UserError, first_line
from dreamteacher.files import share
from dreamteacher.stage import RECORD
from dreamteacher.teachers.folder import KINDS, get_kind, read_facts, write_json

# Keys of nested state dicts in checkpoints; EMA weights first.
WRAPPERS = ("ema", "g_ema", "params_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")


def import_teacher(kind: str, source: str, out: Path, options: list[str]) -> None:
    """Write the teacher's folder `out`, or nothing.

    Args:
        kind: a kind whose module has `import_weights(source, out, options)`, which writes the weights as safetensors and teacher.json (with
            `folder.write_facts`) to the empty folder `out`, which is renamed when complete.
        source: file, folder or hub id, depending on the kind.
        options: "KEY=VALUE" options of the kind; `licence` (default: the one that the kind finds), `source` and all options are recorded
            in teacher.json.

    Raises:
        UserError: the kind cannot be imported, `out` is not empty, an option is not KEY=VALUE, or the kind refuses the source.
    """
    module = get_kind(kind)
    if not hasattr(module, "import_weights"):
        possible = [name for name in KINDS if hasattr(get_kind(name), "import_weights")]
        raise UserError(f"teachers of kind {kind!r} are not imported; of ours {', '.join(possible)} are")
    settings = _parse(options)
    licence = settings.pop("licence", None)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; name another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        module.import_weights(source, made, settings)
        facts = read_facts(made)
        write_json(made, facts | {"source": source, "licence": licence or facts.get("licence"), "options": settings})
        share(made)
        made.rename(out)


def _parse(options: list[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise UserError(f"--option {option} is no KEY=VALUE, such as licence=MIT")
        if key in parsed:
            raise UserError(f"--option {key} is given twice; give it once")
        parsed[key] = value
    return parsed


def check_options(options: Collection[str], allowed: Collection[str]) -> None:
    """Raises UserError if a key of `options` is not among `allowed`."""
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1) or sorted({*allowed, "licence"})
            raise UserError(f"there is no --option {key}; near: {', '.join(near)}")


def read_checkpoint(path: Path) -> Any:
    """The content of a .pt, .pth or .safetensors file, on the CPU; only tensors and plain types are read.

    Raises:
        UserError: there is no such file, it is damaged, or it contains something that would have to be executed to be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is no file; name the checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = _what_it_would_run(error)
        raise UserError(
            f"{path} holds more than tensors ({why}), and none of it was run; save its state dict alone where you trust it, and import that"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, SafetensorError) as error:
        raise UserError(f"{path} is no checkpoint of torch, or damaged ({first_line(error)}); fetch it again") from error


def _what_it_would_run(error: Exception) -> str:
    """The line of torch's error message that names the object."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return (lines or [first_line(error)])[0].removeprefix("WeightsUnpickler error: ")[:200]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, also if nested below a key such as `state_dict` or prefixed with `module.`.

    Raises:
        UserError: see `read_checkpoint`; or there are none.
    """
    content = read_checkpoint(path)
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no state dict; name a checkpoint of weights")
    if all(key.startswith("module.") for key in tensors):  # of DistributedDataParallel
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def copy_teacher(folder: Path, out: Path) -> None:
    """Copy the teacher in `folder` unchanged to the existing folder `out`, without stage.json."""
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD, "curves.csv", ".*"))
