"""git and DVC on a machine that has neither checkout nor home: get a data version, give a run's outputs back.

Both are called as commands, since those are their stable interface. Each use has a clone of its own: DVC allows one process a workspace.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.mlflow_server import without_password
from dreamteacher.stage import read_stage

# git asks this for a password. It reaches git by the environment, so it shows neither in a list of processes nor in the clone.
_CREDENTIAL_HELPER = '!f() { printf "username=%s\\npassword=%s\\n" "${GIT_USERNAME:-git}" "$GIT_TOKEN"; }; f'


@dataclass(frozen=True)
class Place:
    """Where dvc.yaml wants the output of a stage."""

    stage: str  # its name, such as finetune@mix-0
    command: tuple[str, ...]  # what it runs
    out: Path  # relative to the project

    @property
    def ours(self) -> bool:
        """Whether the command is one of `dreamteacher`, which leaves a stage.json."""
        return self.command[0] == "dreamteacher"

    def holds(self, folder: Path) -> bool:
        """Whether the complete stage output `folder` is what this command makes."""
        record = read_stage(folder)
        name, *options = self.command[1:]
        given = {key.removeprefix("--"): value for key, value in zip(options[::2], options[1::2], strict=True)}
        return record["stage"] == name and all(str(record["params"].get(key)) == value for key, value in given.items())


class Clone:
    """A git clone of a DVC project at one revision, in a folder of its own."""

    def __init__(self, url: str, rev: str, folder: Path):
        """Clone shallowly where the server gives the revision by name, else wholly.

        Raises:
            UserError: there is no such repository or revision, or it cannot be read.
        """
        shown = without_password(url)
        if not rev.strip():
            raise UserError(f"no revision of {shown} is named; set data_rev to a commit, tag or branch of it")
        for text in (url, rev):
            if text.startswith("-"):  # git would take it for an option, of which some run a command
                raise UserError(f"{without_password(text)!r} begins with '-'; name a git repository, and a commit, tag or branch of it")
        self.url, self.folder = url, folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet")
        self.git("remote", "add", "--", "origin", url)
        try:
            self.git("fetch", "--quiet", "--depth", "1", "--", "origin", rev)
            self.git("checkout", "--quiet", "--detach", "FETCH_HEAD")
        except UserError:  # a short hash, or main~3
            try:
                self.git("fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
            except UserError as error:
                raise UserError(f"cannot read git repository {shown}: {error}") from error
            for name in (f"origin/{rev}", rev):
                if self._try("git", "checkout", "--quiet", "--detach", name).returncode == 0:
                    break
            else:
                raise UserError(f"git repository {shown} has no revision {rev!r}; name a commit, tag or branch that was pushed") from None
        self.commit = self.git("rev-parse", "HEAD")
        if cache := os.environ.get("DREAMTEACHER_DVC_CACHE"):
            self.dvc("cache", "dir", "--local", cache)

    def git(self, *words: str) -> str:
        """Run git; what it prints."""
        return self._run("git", *words)

    def dvc(self, *words: str) -> str:
        """Run DVC; what it prints."""
        return self._run(sys.executable, "-m", "dvc", *words)

    def get(self, path: str) -> Path:
        """The file or folder `path` of the revision, fetched by DVC unless git has it.

        Raises:
            UserError: the revision has no such path, or DVC cannot fetch it.
        """
        place = self.folder / path
        if not place.exists():
            known = [Path(path), *Path(path).parents[:-1]]
            if not any((self.folder / each.parent / f"{each.name}.dvc").exists() for each in known):
                raise UserError(f"revision {self.commit[:12]} has no {path}, neither in git nor in DVC; `dvc add` it, commit and push")
            self.dvc("pull", path)
        return place

    def places(self) -> list[Place]:
        """The stages of dvc.yaml, with the settings of params.yaml filled in."""
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            return [
                Place(stage.name, tuple(shlex.split(str(stage.cmd))), Path(stage.outs[0].fs_path).relative_to(repo.root_dir))
                for stage in repo.index.stages
                if stage.cmd
            ]

    def push(self, stages: list[str], branch: str, message: str) -> str:
        """Record what lies in the folder as the outputs of `stages`: models in DVC's remote, dvc.lock and all else on `branch`; the commit.

        Nothing is run, and data that the stages do not read need not be there. A branch of that name is replaced: it is this run's own.

        Raises:
            UserError: an output of dvc.yaml is missing, or something cannot be pushed.
        """
        if not self._try(sys.executable, "-m", "dvc", "config", "core.remote").stdout.strip():
            raise UserError("the project has no DVC remote to keep the outputs; add one: `dvc remote add -d storage s3://BUCKET/PATH`")
        self.dvc("commit", "--force", *stages)
        changed = json.loads(self.dvc("status", "--json", *stages))
        if changed:
            raise UserError(f"{branch} would not reproduce: {', '.join(changed)} changed; record every output of the run")
        self.dvc("push", *stages)
        self.git("add", "--all")
        if self.git("status", "--porcelain"):
            who = ("-c", "user.name=DreamTeacher", "-c", "user.email=dreamteacher@localhost", "-c", "commit.gpgsign=false")
            self.git(*who, "commit", "--quiet", "--message", message)
        self.git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")

    def _run(self, *command: str) -> str:
        done = self._try(*command)
        if done.returncode:
            name = "dvc" if command[0] == sys.executable else command[0]
            words = [word for word in command if not word.startswith("-") and word not in (sys.executable, "dvc", "git")]
            raise UserError(f"{name} {words[0]} failed: {_last_words(done.stderr or done.stdout)}")
        return done.stdout.strip()

    def _try(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise UserError(f"{command[0]} is not installed; the image needs it") from error

    def _environment(self) -> dict[str, str]:
        """That of the caller, made good for a container: no question is asked, and a home that can be written is there."""
        scratch = self.folder / ".git" / "dreamteacher"  # in the clone, and never a part of it
        scratch.mkdir(exist_ok=True, parents=True)
        ours = {"DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
        ours |= {"DVC_SITE_CACHE_DIR": os.environ.get("DVC_SITE_CACHE_DIR", str(scratch))}
        if not os.access(os.environ.get("HOME", ""), os.W_OK):  # a random user in a container
            ours["HOME"] = str(scratch)
        if os.environ.get("GIT_TOKEN"):
            number = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
            ours |= {f"GIT_CONFIG_KEY_{number}": "credential.helper", f"GIT_CONFIG_VALUE_{number}": _CREDENTIAL_HELPER}
            ours["GIT_CONFIG_COUNT"] = str(number + 1)
        return os.environ | ours


def put(outputs: list[Path], places: list[Place], folder: Path) -> dict[str, Path]:
    """Copy each stage output of a run to the place below `folder` that dvc.yaml names; {stage: its place there}.

    Raises:
        UserError: a stage of ours has no output among them, or an output has no place.
    """
    filled: dict[str, Path] = {}
    for output in outputs:
        place = next((place for place in places if place.ours and place.holds(output)), None)
        if place is None:
            raise UserError(f"{output} is of no stage of dvc.yaml; record a run whose settings are those of its params.yaml")
        target = folder / place.out
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(output, target)
        filled[place.stage] = target
    missing = [place.stage for place in places if place.ours and place.stage not in filled]
    if missing:
        raise UserError(f"the run has no output of {', '.join(missing)}, which dvc.yaml has; record every output of the run")
    return filled


@contextmanager
def lay_out(models: list[str]) -> Iterator[Path]:
    """A folder in which the fine-tuned models lie as INIT/SEED, as evaluate and export-onnx expect them; gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        for model in models:
            made = read_stage(Path(model))["params"]
            place = Path(scratch) / made["init"] / str(made["seed"])
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(Path(model).absolute(), target_is_directory=True)
        yield Path(scratch)


def _last_words(text: str) -> str:
    """The line in which git or DVC say what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("ERROR:", "fatal:", "error:", "remote:"))] or lines or ["no reason given"]
    return without_password(telling[0])[:300]
