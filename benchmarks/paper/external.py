"""A backbone that a program of others pretrains: a command that is run on a folder of pictures and leaves timm's weights."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import clean_state_dict

from dreamteacher.data.dataset import ImageSet
from dreamteacher.errors import UserError
from dreamteacher.settings.pretraining import Student
from dreamteacher.stage import open_stage
from dreamteacher.students.backbone import BACKBONE_FOLDER, Backbone, create_backbone, save_backbone

PLACES = "{data}, {out}, {seconds}, {backbone}, {seed}"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
HEADS = ("fc.", "head.fc.", "classifier.")  # of timm's classifiers, which a backbone has none of


@dataclass(frozen=True)
class External:
    """A command with some of the places {data}, {out}, {seconds}, {backbone} and {seed}; `seconds` of pretraining are the budget."""

    command: str
    seconds: float | None = None

    def words(self, **values: object) -> list[str]:
        """The command's words with the places filled in.

        Raises:
            UserError: it names a place that there is not.
        """
        try:
            return [word.format(**values) for word in shlex.split(self.command)]
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"--external {self.command}: {error} is no place; name some of {PLACES}") from error


def pretrain(external: External, *, student: Student, images: Callable[[], ImageSet], seed: int, out: Path) -> dict[str, float]:
    """Run the command on the train pictures and save the backbone whose weights it leaves below {out} into `out`/backbone.

    Of several files of weights the newest counts. `images` opens the train split.

    Raises:
        UserError: the command fails, leaves no weights, or weights that do not fit `student`.
    """
    recorded = {"command": external.command, "seed": seed, "student": student.model_dump(mode="json"), "seconds": external.seconds}
    with open_stage("external", params=recorded, inputs={}, out=out) as stage:
        if not stage.done:
            with tempfile.TemporaryDirectory() as scratch:
                made = Path(scratch) / "out"
                made.mkdir()
                write_pictures(images(), Path(scratch) / "data")
                seconds = "" if external.seconds is None else round(external.seconds)
                if seconds == "" and "{seconds}" in external.command:
                    raise UserError(f"--external {external.command}: {{seconds}} needs --equal seconds")
                values = {"data": f"{scratch}/data", "out": made, "seconds": seconds, "backbone": student.backbone, "seed": seed}
                begin = time.monotonic()
                run(external.words(**values))
                took = time.monotonic() - begin
                save_backbone(load(student, made), stage.tmp / BACKBONE_FOLDER)
            stage.metrics["seconds"] = round(took, 2)
    return stage.metrics


def write_pictures(images: ImageSet, folder: Path) -> None:
    """The pictures as PNG files, as ingest stored them."""
    folder.mkdir()
    for index in range(len(images)):
        Image.fromarray(images.read(index).image).save(folder / f"{index:08}.png", compress_level=1)


def run(words: list[str]) -> None:
    """Run a command to its end.

    Raises:
        UserError: there is no such command, or it failed.
    """
    try:
        code = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise UserError(f"--external: {words[0]} cannot be started ({error.strerror}); install it, or give its path") from error
    if code:
        raise UserError(f"--external: {shlex.join(words)} ended with exit code {code}; what it printed says why")


def load(student: Student, folder: Path) -> Backbone:
    """A backbone of `student` with the newest weights below `folder`.

    Raises:
        UserError: there are none, or they do not fit.
    """
    files = sorted((p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    if not files:
        raise UserError(f"--external: the command left no weights below {{out}}; it must write a timm state dict ({', '.join(SUFFIXES)})")
    path = files[-1]
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"--external: {path.name} holds no plain weights ({type(error).__name__}); export a state dict") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    backbone = create_backbone(student.backbone, finest=student.finest_stride)
    state = {key: value for key, value in clean_state_dict(state).items() if not key.startswith(HEADS)}
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:
        wrong = str(error).splitlines()[1].strip()[:200]
        raise UserError(f"--external: {path.name} does not fit student.backbone = {student.backbone!r}: {wrong}") from error
    return backbone
