"""`python -m pipelines COMMAND`: compile the pipelines, run them locally or on a cluster."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from dreamteacher.errors import UserError, resource_errors_in_one_line
from pipelines import NAMES, commands

PROGRAM = "python -m pipelines"
SAMPLE = "samples/bccd"
OF_SAMPLE = (f"ingest.source={SAMPLE}", "compare.inits=[scratch, features]")  # without the control: a retraining has one recipe


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run one command. Returns the exit code: 0, 2 for a user error, 128 + signal if stopped. `program` is the name for usage messages."""
    options = build_parser(program).parse_args(arguments)
    try:
        with resource_errors_in_one_line():
            code: int = options.run(options)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # run-local catches it once steps run
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("kfp", "kfp_server_api", "kubernetes"):
            raise
        print("error: kfp is not installed; run pip install 'dreamteacher[pipelines]'", file=sys.stderr)
        return 2


def build_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function that takes the options and returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="Compile the pipelines, and run them on Kubeflow or on this machine.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    build = add("compile", _compile, "compile a pipeline for KFP, with the image DREAMTEACHER_IMAGE (NAME@sha256:... or NAME:git-COMMIT)")
    build.add_argument("--pipeline", choices=NAMES, default=NAMES[0], help="pipeline to compile (default: %(default)s)")
    build.add_argument(
        "--profile", default="single-gpu", help="profile in resources.yaml of this folder, else of the package (default: %(default)s)"
    )
    build.add_argument(
        "--format",
        choices=("kfp", "kubernetes"),
        default="kfp",
        help="kfp: a package to upload; kubernetes: Pipeline and PipelineVersion manifests (default: %(default)s)",
    )
    build.add_argument("--namespace", default="kubeflow", help="namespace of the manifests (default: %(default)s)")
    build.add_argument("--version", help="first part of the PipelineVersion's name (default: git-COMMIT)")
    build.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: PIPELINE.yaml)")
    add("resources", _write_resources, "copy resources.yaml, which sets the resources of each step, to this folder for editing")
    local = add("run-local", _run_local, "run a pipeline on this machine, each step in its own process")
    local.add_argument("--pipeline", choices=NAMES, help=f"pipeline to run (default: {NAMES[0]}; with --sample both, one after the other)")
    local.add_argument("--sample", action="store_true", help=f"run on {SAMPLE}, which only the repository has")
    local.add_argument(
        "--project",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="folder with params.yaml and the pictures that it names (default: this folder)",
    )
    local.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    local.add_argument(
        "--root", type=Path, metavar="FOLDER", default=Path("artifacts/local-runs"), help="output folder (default: %(default)s)"
    )
    local.add_argument("--parallel", action="store_true", help="run the iterations of a loop in parallel")
    commands.add_commands(add)
    return parser


def _compile(options: argparse.Namespace) -> int:
    from dreamteacher.settings.file import load_params
    from dreamteacher.stages.find_commit import check_comparison
    from pipelines import resources
    from pipelines.compile import compile_pipeline

    if Path("params.yaml").exists():
        check_comparison(load_params(Path("params.yaml")), options.pipeline)
    file, out = resources.in_use(), options.out or Path(f"{options.pipeline}.yaml")
    version = (options.version or commands.commit_name()) if options.format == "kubernetes" else None
    compile_pipeline(options.pipeline, options.profile, out, resources=file, version=version, namespace=options.namespace)
    print(f"{options.pipeline}, {options.profile} of {file}: {out}")
    return 0


def _write_resources(_: argparse.Namespace) -> int:
    from pipelines import resources

    print(f"{resources.write()}: edit the profiles in this file; compile uses it from now on")
    return 0


def _run_local(options: argparse.Namespace) -> int:
    from pipelines.local import check, run_local

    project = options.project.absolute()
    if not (project / "params.yaml").exists():
        raise UserError(f"{project} has no params.yaml; set --project to the project's folder")
    if options.sample and not (project / SAMPLE).is_dir():
        raise UserError(
            f"{project} has no {SAMPLE}, which only DreamTeacher's repository has; omit --sample to run on the project's own pictures"
        )
    settings = [*(OF_SAMPLE if options.sample else ()), *options.set]
    arguments = {"git_url": str(project), "data_rev": "", "settings": settings}
    names = [options.pipeline] if options.pipeline else NAMES if options.sample else NAMES[:1]
    for name in names:
        check(name, project, settings)
    for name in names:
        run_local(name, options.root, arguments, parallel=options.parallel)
        print(f"{name}: done; outputs are in {options.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
