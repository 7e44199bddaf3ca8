"""Kinds of teachers, and their folders: `teacher.json` names the kind and the taps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch

from dreamteacher.errors import UserError, first_line
from dreamteacher.plugins import load_plugin
from dreamteacher.settings.presets import auto_taps
from dreamteacher.teachers.base import Generator, Tap, Teacher
from dreamteacher.teachers.encodings import Encoding
from dreamteacher.training.precision import move_frozen

if TYPE_CHECKING:
    from dreamteacher.settings.pretraining import Teacher as Settings

CPU = torch.device("cpu")
TEACHER_FILE = "teacher.json"
PRETRAINED = Path(__file__).parent / "pretrained"
OWN = ("ddpm", "edm", "random", "pixels", "adm", "stylegan2", "biggan", "icgan", "timm")
KINDS = {name: f"dreamteacher.teachers.{name}" for name in OWN}
KINDS["diffusers"] = "dreamteacher.teachers.diffusers_folder"
ENTRY_POINTS = "dreamteacher.teachers"  # entry point group of other packages' kinds


class Kind(Protocol):
    """The module of a kind. A kind that can only be imported has no `Generator`."""

    def Generator(self, settings: Settings) -> Generator:
        """Its training."""
        ...

    def open_folder(self, folder: Path, strides: list[int] | None, encoding: Encoding) -> Teacher:
        """On the CPU. See `open_teacher`."""
        ...

    def import_weights(self, source: str, out: Path, options: dict[str, str]) -> None:
        """Optional. See `importing.import_teacher`."""
        ...


def get_kind(name: str) -> Kind:
    """The module of a kind of teachers: one of KINDS, or an entry point of ENTRY_POINTS.

    Raises:
        UserError: there is none of that name, or it cannot be loaded.
    """
    return cast(Kind, load_plugin(ENTRY_POINTS, name, KINDS, "kind of teacher"))


def open_teacher(folder: Path, strides: list[int] | None, encoding: Encoding, device: torch.device = CPU) -> Teacher:
    """The frozen teacher in `folder` on `device`, with taps at `strides` (None: all).

    Raises:
        UserError: the folder holds no teacher, a damaged one, or one of an unknown kind, or strides or encoding do not fit.
    """
    return move_frozen(get_kind(read_facts(folder)["kind"]).open_folder(folder, strides, encoding), device)


def write_facts(folder: Path, kind: str, taps: list[Tap], facts: dict[str, Any]) -> None:
    """Write `teacher.json`."""
    write_json(folder, {"kind": kind, "taps": [asdict(tap) for tap in taps], **facts})


def write_json(folder: Path, content: dict[str, Any]) -> None:
    """Write `teacher.json` with this content, as `read_facts` returns it."""
    (folder / TEACHER_FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of `teacher.json`, including `kind` and `taps`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / TEACHER_FILE
    if not path.exists():
        raise UserError(f"{folder} is not a teacher (no {TEACHER_FILE}); run `dreamteacher train-teacher` first")
    try:
        return {"kind": "ddpm", **json.loads(path.read_text())}  # files from when there was only one kind
    except ValueError as error:  # no JSON, no text
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> UserError:
    """The error for a teacher that cannot be read because of `error`."""
    why = first_line(error).replace(f"{folder}/", "")
    return UserError(f"{folder} is damaged ({why}); fetch it again (`dvc checkout`), or remove it and run `dreamteacher train-teacher`")


def choose_strides(folder: Path, taps: list[int] | Literal["auto"]) -> list[int]:
    """The tap strides that `taps` selects for this teacher, fine to coarse; auto: see `presets.auto_taps`."""
    return sorted(taps) if taps != "auto" else auto_taps([int(tap["stride"]) for tap in read_facts(folder)["taps"]])


def find_pretrained(name: str) -> Path:
    """The folder of a teacher that comes with the package, or any teacher's folder.

    Raises:
        UserError: `name` is neither.
    """
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{TEACHER_FILE}"))
    if name in shipped:
        return PRETRAINED / name
    if not (Path(name) / TEACHER_FILE).is_file():
        raise UserError(
            f"teacher.pretrained = {name!r} is neither a teacher's folder nor one of {shipped}, which come with the package; "
            "`dreamteacher import-teacher` makes one of what others trained"
        )
    return Path(name)
