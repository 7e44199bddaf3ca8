"""`dreamteacher init`: a folder with settings, pipeline, git and DVC, ready for `dvc repro`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from dreamteacher.data.formats import SUFFIXES
from dreamteacher.data.shard_source import are_shards, expand
from dreamteacher.errors import UserError
from dreamteacher.project import propose
from dreamteacher.project.cost import rough_duration
from dreamteacher.project.machine import look, measure
from dreamteacher.project.survey import Survey, survey
from dreamteacher.settings.file import load_params
from dreamteacher.settings.schema import Params

CHAIN = "dvc.yaml"
SETTINGS = "params.yaml"
LOCK = "dvc.lock"
# Outputs of the chain that are not committed, environments and tool caches, which DVC should ignore.
IGNORED = {
    ".gitignore": [".venv/", "__pycache__/", ".checkpoints/", ".dreamteacher/", "mlflow.db*", "mlruns/", "mlartifacts/", "artifacts/",
                   "plots/", "dvc_plots/"],
    ".dvcignore": [".venv", ".checkpoints", ".dreamteacher", "mlruns", "__pycache__"],
}  # fmt: skip
ARCHIVES = {".zip", ".7z", ".rar", ".gz", ".bz2", ".xz"}
DVC_CONFIG = "[core]\n    analytics = false\n    autostage = false\n    check_update = false\n"


def init(folder: Path, source: str, hours: float | None = None, preset: str = "demo") -> None:
    """Inspect `source`, propose settings for this machine, and make `folder` a project. Existing files are kept, except that missing lines
    are added to ignore files.

    Args:
        folder: created if missing; may be in a git repository.
        source: the pictures, relative to the current folder.
        hours: time budget of the whole chain; default propose.HOURS.
        preset: preset of the settings.

    Raises:
        UserError: `folder` is a project already or cannot be one, or the pictures cannot be used.
    """
    for name in (CHAIN, SETTINGS):
        if (folder / name).exists():
            raise UserError(f"{folder} is a project already: it has {name}; name another folder, or edit that file")
    if file := next((each for each in (folder, *folder.parents) if each.exists() and not each.is_dir()), None):
        raise UserError(f"{file} is a file; name another folder for the project")
    if not shutil.which("git"):
        raise UserError("git is not installed here; install it, for the project's settings and results are versioned by it")
    source = _expanded(source)
    place = _place(folder, source)
    top = _git_top(folder)
    print("looking at the pictures")
    found = survey(source)
    print("".join(f"  {line}\n" for line in found.lines()), end="")
    found.source = place
    machine = look()
    values = propose.sizes(found, machine, preset)
    print(f"timing training steps on this {'GPU' if machine.device == 'cuda' else 'CPU'}", flush=True)
    proposal = propose.propose(found, machine, measure(_checked(values), machine), values, hours)
    print(f"  {machine.line()}; the whole takes about {rough_duration(3600 * proposal.hours)} here")
    if machine.device == "cpu" and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        print(f"  other programs keep the CPU busy (load {os.getloadavg()[0]:.1f}), which slowed the timing; alone it is faster")
    if proposal.hours > 1.3 * proposal.budget:
        print(f"  in {rough_duration(3600 * proposal.budget)} nothing would be learnt: these are the fewest steps that make sense")
    if found.may_have_labels and len(proposal.values["compare"]["seeds"]) == 1:
        print("  there is time for one seed only, so figures will have no spread; more --hours allow three")
    heading = [
        f"Proposed by `dreamteacher init` for {found.pictures:,} pictures and {machine.name}; all of it takes about "
        f"{rough_duration(3600 * proposal.hours)} there.",
        "What is not named here has its default: `dreamteacher params` prints all. Every group stays, because dvc.yaml names it.",
    ]
    text = propose.write(proposal, heading)
    _check(text)

    folder.mkdir(parents=True, exist_ok=True)
    if not top:
        _run(folder, "git", "init", "--quiet")
    if not (folder / ".dvc").exists():
        below = top is not None and top != folder.resolve()
        _run(folder, sys.executable, "-m", "dvc", "init", *(["--subdir"] if below else []))
        (folder / ".dvc/config").write_text(DVC_CONFIG)
    for name, lines in IGNORED.items():
        _add_lines(folder / name, lines)
    commands = _next(found, add=found.source if _is_to_be_added(folder, found.source) else None)
    readme = folder / "README.md"
    if readme.exists():
        print(f"kept {readme}")
    else:
        readme.write_text(_readme(folder, found, machine.name, proposal.hours, alone=top in (None, folder.resolve()), commands=commands))
    (folder / CHAIN).write_text(chain())
    (folder / SETTINGS).write_text(text)
    print(f"{folder} is a project. Next:\n\n" + "".join(f"    {line}\n" for line in [f"cd {shlex.quote(str(folder))}", *commands]))


def chain() -> str:
    """The text of dvc.yaml: the repository's or, in a wheel, its copy."""
    return files("dreamteacher.project").joinpath("chain.yaml").read_text()


def _expanded(source: str) -> str:
    """`source` with the home folder for ~, which shells leave after `--source=`, unless a file or folder has that name."""
    is_home = (source == "~" or source.startswith("~/")) and not Path(source).exists()
    return os.path.expanduser(source) if is_home else source  # noqa: PTH111 - Path's raises where there is no home folder


def _place(folder: Path, source: str) -> str:
    """`source` as ingest.source of the project in `folder`: relative if inside, else absolute."""
    if are_shards(source) and ("{" in source or "*" in source):
        source = _folder_of_shards(source)
    if "://" in source:
        return source
    path, home = Path(os.path.abspath(source)), Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would replace links
    if not path.exists():
        raise UserError(f"--source {source} does not exist; name a folder, a text file of paths, WebDataset shards, or an address of them")
    suffix = path.suffix.lower() if path.is_file() and not are_shards(source) else ""
    if suffix in SUFFIXES | ARCHIVES:
        what = "one picture; name its folder" if suffix in SUFFIXES else "an archive; unpack it, and name the folder"
        raise UserError(f"--source {source} is {what}")
    if path.is_dir() and (home.resolve() == path.resolve() or path.resolve() in home.resolve().parents):
        raise UserError(f"{folder} is the folder of the pictures or lies in it, and results would be taken for pictures; name another one")
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _folder_of_shards(pattern: str) -> str:
    """The folder with exactly the shards of `pattern`, since DVC tracks folders, not patterns."""
    shards = expand(pattern)
    folder = shards[0].rpartition("/")[0] or "."
    if "://" in pattern or sorted(shards) != sorted(str(path) for path in Path(folder).glob("*.tar")):
        raise UserError(
            f"--source {pattern}: `dvc repro` watches a folder or one file, not a pattern; name a folder with just these shards"
        )
    return folder


def _git_top(folder: Path) -> Path | None:
    """The top of the git repository that `folder` lies in, or will lie in; None if there is none.

    Raises:
        UserError: git refuses the repository, or ignores `folder` or the files that DVC needs in git.
    """
    there = next(each for each in [folder.absolute(), *folder.absolute().parents] if each.is_dir())
    done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=there, capture_output=True, text=True, check=False)
    if done.returncode:
        if "not a git repository" in done.stderr:
            return None
        raise UserError(f"git cannot use {there}: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}")
    top = Path(done.stdout.strip()).resolve()
    if folder.resolve() != top:
        _refuse_ignored(f"{folder.absolute()}/", str(folder), there, top)
    for name in (CHAIN, SETTINGS, LOCK):
        _refuse_ignored(str(folder.absolute() / name), name, there, top)
    return top


def _refuse_ignored(path: str, shown: str, there: Path, top: Path) -> None:
    ignored = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=there, capture_output=True, check=False)
    if ignored.returncode == 0:
        raise UserError(f"{shown} is ignored by the git repository {top}; name another folder, or correct its .gitignore")


def _run(folder: Path, *command: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        why = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason given")
        raise UserError(f"`{Path(command[0]).name} {' '.join(command[1:])}` failed in {folder}: {why}")


def _add_lines(path: Path, lines: list[str]) -> None:
    there = path.read_bytes() if path.exists() else b"\n"  # in whatever encoding
    missing = [line.encode() for line in lines if line.encode() not in there.splitlines()]
    if missing:
        with path.open("ab") as file:
            file.write(b"\n".join([*([] if there.endswith(b"\n") else [b""]), *missing, b""]))


def _checked(values: dict[str, object]) -> Params:
    return Params.model_validate(values)


def _check(text: str) -> None:
    """Raises UserError if the stages could not read the file to be written."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / SETTINGS
        path.write_text(text)
        load_params(path)


def _is_inside(source: str) -> bool:
    return "://" not in source and not Path(source).is_absolute()


def _is_to_be_added(folder: Path, source: str) -> bool:
    """Whether the pictures are in the project but tracked by neither git nor DVC: `git add .` would add them all."""
    if not _is_inside(source) or (folder / f"{source}.dvc").exists():
        return False
    in_git = subprocess.run(["git", "ls-files", "--", source], cwd=folder, capture_output=True, text=True, check=False).stdout
    return not in_git


def _next(found: Survey, add: str | None = None) -> list[str]:
    """The commands after init; `add`: pictures to `dvc add` first."""
    commit = [*([f"dvc add {shlex.quote(add)}"] if add else []), 'git add . && git commit -m "first run"']
    if found.may_have_labels:
        return [
            "dvc repro ingest              # reads the pictures; quick",
            "dreamteacher assess           # in about ten minutes: what pretraining will gain here, what else would, what it costs",
            "dvc repro                     # trains, compares, exports; stop it at any time, it resumes",
            *commit,
            "dreamteacher serve            # answers for pictures; see also: dreamteacher predict --help",
        ]
    return [
        "dvc repro distill-features    # pretrains the backbone; the stages after it need labels",
        *commit,
        """python -c 'import timm, torch; """
        """backbone = timm.create_model("local-dir:artifacts/backbones/features/backbone", pretrained=True); """
        """print(backbone(torch.rand(1, 3, 128, 128)).shape)'    # of the embedding of a picture""",
    ]


def _readme(folder: Path, found: Survey, machine: str, hours: float, *, alone: bool, commands: list[str]) -> str:
    """README.md of the project; `alone`: it is a git repository of its own. `commands`: those after init."""
    parts = [
        f"# {folder.absolute().name}",
        "A [DreamTeacher](https://arxiv.org/abs/2307.07487) project, made by `dreamteacher init`. What it found:",
        "\n".join(f"* {line}" for line in found.lines()),
        f"The next commands; on {machine} all of the chain takes about {rough_duration(3600 * hours)}:",
        "\n".join(f"    {line}" for line in commands),
    ]
    if found.may_have_labels:
        parts.append(
            "Results: `artifacts/report/report.html` says whether pretraining paid (figures: `metrics/evaluate.json`), "
            "`artifacts/evaluation/overlays` has pictures with their predictions, `dvc plots show` draws curves, `dvc metrics diff` "
            "compares with the last commit. `export.init` says which of the models is served."
        )
    else:
        parts.append(
            "There are no labels, so `dvc repro distill-features` is the whole of it. `artifacts/backbones/features/backbone` is a timm "
            "model, pretrained on these pictures, for training or embeddings elsewhere. `explained_variance`, in the last lines, says how "
            "much of the generator's features it predicts (1: all), `dreamteacher report` then writes a page with curves and samples. "
            "Fine-tuning, comparison, ONNX and `dreamteacher serve` need labels: `dvc repro` alone would stop at the first of those "
            "stages. Once some pictures have masks or classes, set `ingest.val_fraction`, such as 0.2, and run `dvc repro`; "
            "it starts with the generator, as the data set is another then."
        )
    if any(line.startswith("dvc add") for line in commands):
        parts.append("`dvc add` keeps the pictures out of git, and versions them.")
    parts.append(
        "`params.yaml` holds the settings, `dreamteacher params` prints all of them as resolved, `dreamteacher STAGE --help` explains a "
        "stage, `dreamteacher doctor` says what this machine lacks, `mlflow ui --backend-store-uri sqlite:///mlflow.db` shows every run."
    )
    if found.may_have_labels:
        where = "" if alone else ", and this folder must be a git repository of its own"
        parts.append(
            "On Kubeflow: `dreamteacher pipelines --help`. The pictures must then lie in this folder, in git or DVC"
            f"{where}; the container image and the cluster's manifests come from DreamTeacher's repository (`docs/cluster.md`)."
        )
    return "\n\n".join([*parts, ""])
