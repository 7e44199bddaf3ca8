"""Paths of stage outputs in a revision's dvc.yaml, and copying a run's outputs there without leaving the project."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.stage import read_stage

_CACHED = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")  # a file in a cache of DVC, which may link to it instead of copying


@dataclass(frozen=True)
class Place:
    """A stage of dvc.yaml and the path of its output."""

    stage: str  # name, such as finetune@mix-0
    command: tuple[str, ...]  # its command
    out: Path  # relative to the project

    @property
    def ours(self) -> bool:
        """Whether the command is a `dreamteacher` stage, which writes a stage.json."""
        return self.command[0] == "dreamteacher"

    def mark(self, folder: Path) -> bool:
        """Do what the command does below `folder` with `mkdir -p`, `touch` and `cp` of files.

        Returns False, without doing anything, if it does more, or copies missing files.

        Anyone who can push can change dvc.yaml, so its commands must not run in a shell with access to secrets.
        """
        steps = [list(words) for is_and, words in groupby(self.command, lambda word: word == "&&") if not is_and]
        for step in steps:
            possible = step[:2] == ["mkdir", "-p"] or step[0] == "touch" or (step[0] == "cp" and len(step) == 3)
            names = step[2 if step[0] == "mkdir" else 1 :]
            if step[0] == "cp" and not (folder / step[1]).is_file():  # of a recipe that was not in the run
                return False
            if not possible or not all(re.fullmatch(r"[\w.@=+,/][\w.@=+,/-]*", name) for name in names):
                return False
        for kind, *names in steps:
            places = [inside(folder, name, f"dvc.yaml: {name} of stage {self.stage}") for name in names[kind == "mkdir" :]]
            if kind == "cp":
                shutil.copyfile(*places)
                continue
            for place in places:
                place.touch() if kind == "touch" else place.mkdir(parents=True, exist_ok=True)
        return True

    def holds(self, folder: Path) -> bool:
        """Whether the complete stage output `folder` was made by this command."""
        record = read_stage(folder)
        name, *options = self.command[1:]
        if len(options) % 2:  # a flag; stages of a run have none
            return False
        wanted = {key.removeprefix("--"): value for key, value in zip(options[::2], options[1::2], strict=True)}
        return record["stage"] == name and all(str(record["params"].get(key)) == value for key, value in wanted.items())


def inside(folder: Path, name: str | Path, what: str) -> Path:
    """`folder`/`name`, after checking that it is in `folder` with all links resolved, or in a DVC cache.

    Raises:
        UserError: it is not; `what` names it in the message.
    """
    place = folder / name
    led_to = place.resolve()
    if not led_to.is_relative_to(folder.resolve()) and not _CACHED.search(str(led_to)):
        led = f"is a link to {led_to}" if place.is_symlink() else f"leads to {led_to}"
        raise UserError(f"{what} {led}, out of the project; move it inside, or copy its target there")
    return place


def put(outputs: list[Path], places: list[Place], folder: Path) -> dict[str, Path]:
    """Copy each stage output of a run to its path of dvc.yaml below `folder`; returns {stage: path}.

    Raises:
        UserError: a stage of ours has no output among them, or an output has no place.
    """
    filled: dict[str, Path] = {}
    for output in outputs:
        place = next((place for place in places if place.ours and place.holds(output)), None)
        if place is None:
            raise UserError(f"{output} belongs to no stage of dvc.yaml; record a run with the settings of its params.yaml")
        target = inside(folder, place.out, f"dvc.yaml: {place.out} of stage {place.stage}")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(output, target)
        filled[place.stage] = target
    missing = [place.stage for place in places if place.ours and place.stage not in filled]
    if missing:
        raise UserError(f"the run has no output of {', '.join(missing)}, which dvc.yaml has; record every output of the run")
    return filled
