"""`dreamteacher import-teacher`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_commands(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the command to those of `dreamteacher`; `add` takes name, function and help."""
    command = add("import-teacher", _import_teacher, "import a trained generator as a teacher; see docs/teachers.md")
    command.add_argument("kind", metavar="KIND", help="adm, diffusers, stylegan2, biggan, icgan or timm")
    command.add_argument("source", metavar="SOURCE", help="checkpoint, folder or hub id, depending on the kind")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write the teacher to, new or empty")
    command.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the kind, or licence=TEXT to record; repeatable"
    )


def _import_teacher(options: argparse.Namespace) -> int:
    from dreamteacher.stage import digest_of
    from dreamteacher.teachers.importing import import_teacher

    import_teacher(options.kind, options.source, options.out, options.option)
    settings = {"kind": options.kind, "pretrained": str(options.out), "digest": digest_of(options.out)}
    lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
    print(f"{options.out} is a teacher of kind {options.kind}; in params.yaml:\n\nteacher:\n{lines}", end="")
    return 0
