"""A copy of the project's pipeline, run by a real DVC. Only the stage bodies are replaced: by ones that take no time."""

import os
import shlex
import subprocess
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import dvc.cli
import dvc.logger
import dvc.repo.reproduce
import dvc.stage.run
import networkx  # noqa: F401 (so that no fork has to)
import stand_in
from dvc.stage.exceptions import StageCmdFailedError
from dvc.utils.serialize import _yaml

from dreamteacher.stages import fetch_data
from dreamteacher.stages.find_commit import Resolved, resolve
from forked import Forked

dvc.cli.parse_args(["repro"])  # imports all commands


def _dvc(*words: str) -> int:
    """`dvc WORDS` in this process, a fork of the tests'; what DVC starts as a command of ours is a fork too, and no text is parsed twice:
    DVC asks its slow parser for params.yaml five times a stage."""
    start, parse = dvc.stage.run._run, cache(_yaml.parse_yaml)

    def run(executable: str, command: str, *, cwd: str, env: dict[str, str], **options: Any) -> None:
        name, *words = shlex.split(command)
        if name == "dreamteacher" and "&&" not in words:
            done = Forked(partial(stand_in.main, words), Path(cwd), env)
            if done.wait():
                raise StageCmdFailedError(f"{command}: {done.output}", done.returncode)
        else:
            start(executable, command, cwd=cwd, env=env, **options)

    dvc.stage.run._run = run
    _yaml.parse_yaml = lambda *text, **kind: deepcopy(parse(*text, **kind))
    dvc.logger.setup()  # to where this process writes
    return int(dvc.cli.main(list(words)))


class Project:
    """A git and DVC project in `folder` with one seed of the demo's comparison."""

    def __init__(self, folder: Path, tools: Path):
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(self, *command: str) -> str:
        if command[0] == "dvc":
            forked = Forked(partial(_dvc, *command[1:]), self.folder, self.environment)
            assert forked.wait() == 0, f"{command}: {forked.output}"
            return forked.output
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def change(self, old: str, new: str) -> None:
        """Edit params.yaml."""
        text = (self.folder / "params.yaml").read_text()
        assert text.count(old) == 1, old
        (self.folder / "params.yaml").write_text(text.replace(old, new))

    def repro(self) -> list[str]:
        """`dvc repro`; the commands it ran."""
        log = self.folder / "ran.log"
        log.unlink(missing_ok=True)
        self.run("dvc", "repro")
        return sorted(log.read_text().splitlines()) if log.exists() else []


def url(origin: Project) -> str:
    return (origin.folder.parent / "bare.git").as_uri()


def head(origin: Project) -> str:
    return origin.run("git", "rev-parse", "HEAD").strip()


def find(address: str, rev: str, *overrides: str) -> Resolved:
    return resolve(git_url=address, data_rev=rev, overrides=list(overrides), pipeline="pretrain")


def fetch(origin: Project, rev: str, out: Path, *overrides: str) -> tuple[Resolved, dict[str, str]]:
    """As the pipeline does."""
    found = find(url(origin), rev, *overrides)
    return found, fetch_data.run(git_url=url(origin), data_version=found.data_version, source=found.source, out=out)
