"""`python -m pipelines COMMAND`: compile the pipelines, run them locally or on a cluster."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from dreamteacher.errors import UserError, resource_errors_in_one_line
from pipelines import NAMES, commands

PROGRAM = "python -m pipelines"
SAMPLE = "samples/bccd"
OF_SAMPLE = (f"ingest.source={SAMPLE}", "compare.inits=[scratch, features]")  # without the control: a retraining has one recipe


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run one command. Returns the exit code: 0, 2 for a user error, 128 + signal if stopped. `program` is the name for usage messages."""
    options = _parser(program).parse_args(arguments)
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
        print("error: kfp is not installed here; pip install 'dreamteacher[pipelines]'", file=sys.stderr)
        return 2


def _parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Run the pipelines on Kubeflow or locally.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = subparsers.add_parser("compile", help="compile a pipeline for KFP; DREAMTEACHER_IMAGE names the image, by digest or commit")
    build.add_argument("--pipeline", choices=NAMES, default=NAMES[0], help="default: %(default)s")
    build.add_argument(
        "--profile", default="single-gpu", help="of resources.yaml: this folder's, else the package's (default: %(default)s)"
    )
    build.add_argument("--format", choices=("kfp", "kubernetes"), default="kfp", help="kubernetes: Pipeline and PipelineVersion manifests")
    build.add_argument("--namespace", default="kubeflow", help="of the manifests (default: %(default)s)")
    build.add_argument("--version", help="first part of the PipelineVersion's name (default: git-COMMIT)")
    build.add_argument("--out", type=Path, metavar="FILE", help="default: the pipeline's name .yaml")
    build.set_defaults(run=_compile)
    own = subparsers.add_parser("resources", help="copy resources.yaml, the resources of each step, to this folder for editing")
    own.set_defaults(run=_write_resources)
    here = subparsers.add_parser("run-local", help="run a pipeline on this machine, each step as a process")
    here.add_argument("--pipeline", choices=NAMES, help=f"default: {NAMES[0]}; with --sample both, one after another")
    here.add_argument("--sample", action="store_true", help=f"run on {SAMPLE} of the repository")
    here.add_argument("--project", type=Path, default=Path(), help="folder with params.yaml and the pictures it names (default: here)")
    here.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    here.add_argument("--root", type=Path, default=Path("artifacts/local-runs"), help="output folder (default: %(default)s)")
    here.add_argument("--parallel", action="store_true", help="run loop iterations in parallel")
    here.set_defaults(run=_run_local)
    commands.add_commands(subparsers)
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

    print(f"{resources.write()}: compile now uses this file; edit its profiles")
    return 0


def _run_local(options: argparse.Namespace) -> int:
    from pipelines.local import check, run_local

    project = options.project.absolute()
    if not (project / "params.yaml").exists():
        raise UserError(f"{project} has no params.yaml; name the project's folder with --project")
    if options.sample and not (project / SAMPLE).is_dir():
        raise UserError(
            f"{project} has no {SAMPLE}, which lies in DreamTeacher's repository; leave out --sample to run on its own pictures"
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
