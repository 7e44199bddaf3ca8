"""git and DVC on a machine without checkout or home folder: fetch a data version, push a run's outputs.

Both are called as commands, which are their stable interface. Each use has its own clone: DVC allows one process per workspace.

Anybody who may push to the repository controls its content. So none of it is executed, links out of the clone are refused, and only git
gets the token, for the host that the cluster's secret names.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dreamteacher.errors import UserError, first_line
from dreamteacher.git_access import why_no_token, with_token, without_token
from dreamteacher.mlflow_server import without_password
from dreamteacher.outages import GivenUp, NoAnswer, is_outage, patient
from dreamteacher.places import Place, inside

log = logging.getLogger(__name__)

_PULLED_AT_ONCE = 500  # names on one command line
_REMOTE = ("fetch", "push", "pull")  # commands of git and DVC that speak with a server


class Kept(NamedTuple):
    """An output that DVC keeps."""

    definition: str  # the .dvc file or dvc.yaml that names it
    copied: str  # the file or web address that DVC would copy there, mostly ""


class Clone:
    """A git clone of a DVC project at one revision, in its own folder. If a server does not answer, it retries (see `outages`)."""

    def __init__(self, url: str, rev: str, folder: Path):
        """Clone shallowly if the server offers the revision by name, else completely.

        Raises:
            UserError: there is no such repository or revision, or it cannot be read.
        """
        shown = without_password(url)
        if not rev.strip():
            raise UserError(f"data_rev is empty; set it to a commit, tag or branch of {shown}")
        for text in (url, rev):
            if text.startswith("-"):  # git would take it for an option, of which some run a command
                raise UserError(f"{without_password(text)!r} begins with '-'; name a git repository, and a commit, tag or branch of it")
        if re.match(r"https?://[^/]*:[^/]*@", url):
            log.warning(
                "git_url contains a password, which all who see the run can read; store it as GIT_TOKEN in the secret dreamteacher-git"
            )
        self.url, self.folder = url, folder
        scratch = folder / ".git" / "dreamteacher"  # in the clone, but never committed
        self._environment = without_token(scratch)
        self._git_environment = with_token(url, scratch)
        scratch.mkdir(parents=True)
        self.git("init", "--quiet")
        self.git("remote", "add", "--", "origin", url)
        try:
            self.git("fetch", "--quiet", "--depth", "1", "--", "origin", rev)
            self.git("checkout", "--quiet", "--detach", "FETCH_HEAD")
        except GivenUp as error:
            raise UserError(f"cannot read git repository {shown}: {error}") from error
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
        """Run git; returns its output."""
        return self._run("git", *words)

    def dvc(self, *words: str) -> str:
        """Run DVC; returns its output."""
        return self._run(sys.executable, "-m", "dvc", *words)

    def get(self, path: str) -> Path:
        """The file or folder `path` of the revision; what DVC has of it, or below it, is fetched.

        Raises:
            UserError: the revision has no such path, it leads out of the project, or DVC cannot fetch it.
        """
        wanted, outs = posixpath.normpath(path), self._outs()
        inside(self.folder, wanted, path)
        if _containing(wanted, outs):
            self._pull([wanted], outs)
        else:
            self._pull([out for out in outs if wanted == "." or out.startswith(f"{wanted}/")], outs)
        place = self.folder / path
        if not place.exists():
            raise UserError(f"revision {self.commit[:12]} has no {path}, neither in git nor in DVC; `dvc add` it, commit and push")
        return place

    def get_files(self, names: Iterable[str]) -> None:
        """Fetch those of the files `names` that DVC has; the others are ignored."""
        outs = self._outs()
        if outs:
            self._pull({out for name in names if (out := _containing(posixpath.normpath(name), outs))}, outs)

    def is_file(self, path: str) -> bool:
        """Whether `path` of the revision is a file, in git or in DVC, fetched or not."""
        if (self.folder / path).is_file() or not (self.folder / ".dvc").is_dir():
            return (self.folder / path).is_file()
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            return bool(repo.dvcfs.isfile(f"/{posixpath.normpath(path)}"))

    def last_change(self, paths: Iterable[str]) -> str:
        """The newest commit, of this revision and those before it, that changed the files at `paths`, in git or in DVC.

        Only commits and file names are fetched. A change of DVC's remote counts as a change of the data.
        """
        wanted = {posixpath.normpath(path) for path in paths}
        kept_by = {".dvc/config"}
        for out, kept in self._outs().items():
            if any(path in (out, ".") or out.startswith(f"{path}/") or path.startswith(f"{out}/") for path in wanted):
                kept_by |= {kept.definition, kept.definition.replace("dvc.yaml", "dvc.lock")}
        if self.git("rev-parse", "--is-shallow-repository") == "true":
            self.git("fetch", "--quiet", "--unshallow", "--filter=blob:none", "--", "origin", self.commit)
        return self.git("log", "-1", "--format=%H", self.commit, "--", *sorted(wanted | kept_by)) or self.commit

    def _outs(self) -> dict[str, Kept]:
        """{path in the project: Kept} of all outputs that DVC keeps."""
        if not (self.folder / ".dvc").is_dir():
            return {}
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(self.folder)) as repo:
                # `dvc import-url --no-download` leaves an output without a hash, which DVC copies from the path or URL of its dependency.
                found = {}
                for out in (out for out in repo.index.outs if out.use_cache and out.protocol == "local"):
                    place, definition = (Path(os.path.relpath(path, repo.root_dir)).as_posix() for path in (out.fs_path, out.stage.path))
                    if not place.startswith(".."):
                        found[place] = Kept(definition, _origin(out.stage.deps[0]) if out.stage.is_partial_import else "")
                return found
        except DvcException as error:
            raise UserError(f"revision {self.commit[:12]}: {first_line(error)}; fix it, commit and push") from error

    def _pull(self, paths: Iterable[str], outs: dict[str, Kept]) -> None:
        wanted = sorted(paths)
        for path in wanted:
            if copied := outs[_containing(path, outs) or path].copied:
                if "://" in copied:
                    raise UserError(f"{path}.dvc imports {copied}, which no step fetches; run `dvc update {path}.dvc` and `dvc push`")
                inside(self.folder, copied, f"what {path}.dvc imports")
        for start in range(0, len(wanted), _PULLED_AT_ONCE):
            self.dvc("pull", "--", *wanted[start : start + _PULLED_AT_ONCE])

    def places(self) -> list[Place]:
        """The stages of dvc.yaml, with the settings of params.yaml filled in.

        Raises:
            UserError: a stage reads or writes outside of the project; DVC would put values of a file of parameters there into dvc.lock.
        """
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            stages = [stage for stage in repo.index.stages if stage.cmd and stage.outs]
            for stage in stages:
                for each in (*stage.deps, *stage.outs):
                    if each.protocol == "local":
                        inside(self.folder, each.fs_path, f"dvc.yaml: {each} of stage {stage.name}")
            return [
                Place(stage.name, tuple(shlex.split(_command(stage.cmd))), Path(os.path.relpath(stage.outs[0].fs_path, repo.root_dir)))
                for stage in stages
            ]

    def push(self, stages: list[str], branch: str, message: str) -> str:
        """Record the files in the folder as the outputs of `stages`: models in DVC's remote, the rest on `branch`; returns the commit.

        No stage is run, and data that the stages do not read may be missing. An existing branch of that name is replaced.

        Raises:
            UserError: an output of dvc.yaml is missing, or something cannot be pushed.
        """
        if not self._try(sys.executable, "-m", "dvc", "config", "core.remote").stdout.strip():
            raise UserError("the project has no DVC remote for the outputs; add one: `dvc remote add -d storage s3://BUCKET/PATH`")
        self.dvc("commit", "--force", "--", *stages)
        changed = json.loads(self.dvc("status", "--json", "--", *stages))
        if changed:
            raise UserError(f"{branch} could not be reproduced: {', '.join(changed)} changed; record every output of the run")
        self.dvc("push", "--", *stages)
        self.git("add", "--all")
        if self.git("status", "--porcelain"):
            who = ("-c", "user.name=DreamTeacher", "-c", "user.email=dreamteacher@localhost", "-c", "commit.gpgsign=false")
            self.git(*who, "commit", "--quiet", "--message", message)
        self.git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")

    @patient
    def _run(self, *command: str) -> str:
        done = self._try(*command)
        if done.returncode:
            name = "dvc" if command[0] == sys.executable else command[0]
            words = [word for word in command if not word.startswith("-") and word not in (sys.executable, "dvc", "git")]
            hint = why_no_token(self.url) if name == "git" and words[0] in _REMOTE else ""
            kind = NoAnswer if words[0] in _REMOTE and is_outage(done.stderr + done.stdout) else UserError
            raise kind(f"{name} {words[0]} failed: {_error_line(done.stderr or done.stdout)}{hint}")
        return done.stdout.strip()

    def _try(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            environment = self._git_environment if command[0] == "git" else self._environment
            return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise UserError(f"{command[0]} is not installed; the image needs it") from error


def _containing(path: str, outs: Iterable[str]) -> str | None:
    """The one of `outs` that is `path` or contains it."""
    above = path
    while above not in outs:
        above, _, _ = above.rpartition("/")
        if not above:
            return None
    return above


def _origin(dependency: Any) -> str:
    """The path or URL of DVC's `dependency`, either of which may belong to the pod: its secrets, its cloud's metadata service.

    "" for one in another repository or an object store.
    """
    if dependency.stage.is_repo_import or dependency.protocol not in ("local", "http", "https"):
        return ""
    return str(dependency.fs_path if dependency.protocol == "local" else dependency.def_path)


def _command(words: str | list[str]) -> str:
    return words if isinstance(words, str) else " && ".join(words)


def _error_line(text: str) -> str:
    """The error line in the output of git or DVC."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "fatal:", "error:", "remote:"))] or lines or ["no reason given"]
    return without_password(errors[0])[:300]
