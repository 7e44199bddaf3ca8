"""The command line: parses, calls a stage, prints. Uses argparse, because importing typer takes 0.4 s and `--help` must be instant."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from dreamteacher.errors import Interrupted, UserError, resource_errors_in_one_line
from dreamteacher.graph import STAGES, TOOLS
from dreamteacher.serving.commands import add_commands
from dreamteacher.settings.presets import PRESETS
from dreamteacher.stage_commands import add_stage_options, run_stage
from dreamteacher.teachers.commands import add_commands as add_teacher_commands

TOOL_AFTER = {"ingest": "assess", "train-teacher": "tune"}  # stage -> the tool that uses its output
IN_ORDER_OF_USE = [name for stage in STAGES for name in (stage, TOOL_AFTER.get(stage)) if name]


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a bug (with a traceback), 2 for a user error, 128 + signal if stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    escape_unprintable()
    if arguments[:1] == ["pipelines"]:  # it has its own parser, also for `--help`
        return import_module("pipelines.__main__").main(arguments[1:], "dreamteacher pipelines")
    options = build_parser().parse_args(arguments)
    _log_to_stderr()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with resource_errors_in_one_line(options.command):
            code: int = options.run(options)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # of `dreamteacher params | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    finally:
        signal.signal(signal.SIGTERM, before)  # an exception from our handler during interpreter shutdown would print a traceback


def escape_unprintable() -> None:
    """Make stdout escape characters that the locale lacks, as stderr does: file names may be undecodable, class names in any script."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _run_init(options: argparse.Namespace) -> int:
    from dreamteacher.project.create import init

    init(options.folder, options.source, options.hours, options.preset)
    return 0


def _run_sync(_: argparse.Namespace) -> int:
    from dreamteacher.project_root import refuse_subfolder
    from dreamteacher.tracking import sync

    refuse_subfolder()
    sent = sync()
    print("\n".join(f"sent {name}" for name in sent) or "nothing to send")
    return 0


def _run_repro(options: argparse.Namespace) -> int:
    from dreamteacher.repro import repro

    return repro(options.jobs)


def _run_doctor(_: argparse.Namespace) -> int:
    from dreamteacher.doctor import examine

    return examine()


def _run_promote(options: argparse.Namespace) -> int:
    from dreamteacher.settings.file import load_params
    from dreamteacher.stages.promote import promote_manually

    name = _model_name(options)
    _print_served(name, promote_manually(load_params(), name, artifacts=options.artifacts, version=options.version))
    return 0


def _run_rollback(options: argparse.Namespace) -> int:
    from dreamteacher.lifecycle.promotion import rollback

    name = _model_name(options)
    _print_served(name, rollback(name))
    return 0


def _model_name(options: argparse.Namespace) -> str:
    from dreamteacher.settings.file import load_params

    return options.name or load_params().publish.name


def _print_served(name: str, served: Any) -> None:
    print(f"{name}: champion is version {served.champion}, previous {served.previous or 'none'}")


def _run_serve(options: argparse.Namespace) -> int:
    from dreamteacher.serving.triton_server import serve

    serve(options.repository, options.http_port, options.grpc_port)
    return 0


def _run_predict(options: argparse.Namespace) -> int:
    from dreamteacher.serving.predict import predict

    places = {"url": options.url, "model": options.model, "out": options.out, "protocol": options.protocol}
    predict(options.images, **places, features=options.features, batch=options.batch, output=options.format)
    return 0


def _run_params(options: argparse.Namespace) -> int:
    import yaml

    from dreamteacher.settings.file import load_params
    from dreamteacher.settings.table import markdown

    if options.markdown:
        print(markdown())
    else:
        params = load_params(options.params, options.set)
        print(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument("folder", type=Path, metavar="FOLDER", help="the project's folder; created if missing")
    init.add_argument("--source", required=True, metavar="PICTURES", help="folder, list file or shards (path or URL)")
    init.add_argument(
        "--preset", choices=list(PRESETS), default="demo", help="preset of the settings (default: %(default)s); see docs/recipes.md"
    )
    init.add_argument("--hours", type=_hours, help="time budget for the whole chain on this machine (default: 1 on CPU, 8 on GPU)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function that takes the options and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dreamteacher", description="From unlabelled pictures and a few labels to a pretrained, fine-tuned and served image backbone."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    def add_params(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="settings file (default: %(default)s)"
        )
        command.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a setting, such as distill.T=250; repeatable")

    # In the order of use, in which `dreamteacher --help` lists them.
    add("doctor", _run_doctor, "list what this machine has and lacks")
    _add_init(add("init", _run_init, "create a project for your pictures"))
    show = add("params", _run_params, "print the resolved settings")
    add_params(show)
    show.add_argument("--markdown", action="store_true", help="print all settings as a Markdown table, that of docs/parameters.md")
    for name in IN_ORDER_OF_USE:
        stage = (STAGES | TOOLS)[name]
        command = add(name, run_stage, stage.help)
        add_params(command)
        add_stage_options(command, stage)
    repro = add("repro", _run_repro, "run what has changed, like `dvc repro`, with independent stages in parallel")
    repro.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="maximum number of stages in parallel (default: as cores and memory allow; 1 with a GPU)",
    )
    add("sync", _run_sync, "send the records that MLflow could not store earlier")
    _add_serving(add)
    promote = add("promote", _run_promote, "make a registered version the champion")
    promote.add_argument("--version", metavar="N", help="version to promote (default: the challenger, which publish registered)")
    promote.add_argument(
        "--artifacts",
        type=Path,
        default=Path("artifacts"),
        metavar="FOLDER",
        help="outputs of the run that made the version (default: %(default)s)",
    )
    rollback = add("rollback", _run_rollback, "swap champion and previous")
    for command in (promote, rollback):
        command.add_argument("name", nargs="?", help="registered model (default: publish.name in params.yaml)")
    add_commands(add)
    add_teacher_commands(add)
    commands.add_parser("pipelines", help="run all stages locally or on Kubeflow, like `python -m pipelines`", add_help=False)
    return parser


def _add_serving(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    serve = add("serve", _run_serve, "start a local Triton on a published repository")
    serve.add_argument(
        "repository", type=Path, nargs="?", default=Path("artifacts/triton/local"), help="model repository (default: %(default)s)"
    )
    serve.add_argument("--http-port", type=int, metavar="PORT", help="default: a free port")
    serve.add_argument("--grpc-port", type=int, metavar="PORT", help="default: a free port")
    predict = add("predict", _run_predict, "send pictures to a served model")
    of_images = "file, folder (recursive) or glob pattern, such as 'shots/**/*.jpg'"
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=of_images)
    predict.add_argument("--url", required=True, help="HOST:PORT of the server, as printed by `dreamteacher serve`")
    predict.add_argument("--model", default="dreamteacher", help="model name, publish.name of its settings (default: %(default)s)")
    predict.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write masks, overlays and features to this folder (default: only print)"
    )
    predict.add_argument(
        "--protocol", choices=("http", "grpc"), default="http", help="protocol of the port in --url (default: %(default)s)"
    )
    predict.add_argument("--features", action="store_true", help="also write the backbone's features to --out")
    predict.add_argument("--batch", type=_positive, default=1, metavar="N", help="pictures per request (default: %(default)s)")
    predict.add_argument("--format", choices=("text", "jsonl", "csv"), default="text", help="output format (default: %(default)s)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of hours above 0")
    return hours


def _stop(signum: int, frame: FrameType | None) -> None:
    """Handle SIGTERM outside training, where stopping at once loses nothing; training's own handler saves a checkpoint first."""
    print("stopped; run the same command again to resume", file=sys.stderr)
    raise SystemExit(128 + signum)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dreamteacher").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
