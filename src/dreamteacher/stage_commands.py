"""The commands that run a stage: their options, and how these determine its inputs, outputs and settings."""

from __future__ import annotations

import argparse
import gc
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from dreamteacher.errors import UserError
from dreamteacher.graph import STAGES, TOOLS, StageCommand

_PATH_HELP = {  # help of the options with a default path
    "data": "data set, made by ingest",
    "teacher": "teacher, made by train-teacher",
    "interpreter": "feature interpreter, made by train-interpreter",
    "features": "backbone and neck, made by distill-features",
    "teachers": "folder of all teachers",
    "backbones": "folder of all backbones",
    "finetuned": "fine-tuned models, made by finetune",
    "onnx": "ONNX files, made by export-onnx",
    "evaluation": "made by evaluate",
    "artifacts": "folder of the outputs of all stages",
    "metrics": "JSON file to write the metrics to",
    "plots": "folder to write the plots to",
    "out": "output folder",
}


def add_stage_options(command: argparse.ArgumentParser, stage: StageCommand) -> None:
    """Add the options of a stage to a parser."""
    for option, setting in stage.named.items():
        command.add_argument(f"--{option}", metavar="NAME", help=f"one of `{setting}` in the settings; default: the only one")
    for option, setting in stage.settings.items():
        command.add_argument(f"--{option}", metavar="NUMBER", help=f"short for --set {setting}=NUMBER")
    if stage.seed:
        command.add_argument("--seed", type=_seed, default=0, help="seed of the few labels and the random weights (default: 0)")
    for option, text in stage.optional.items():
        command.add_argument(f"--{option}", metavar="PATH", help=text)
    for option, default in {**stage.inputs, "out": stage.out}.items():
        command.add_argument(
            f"--{option}", type=Path, metavar="PATH", help=f"{_PATH_HELP[option]} (default: {default.replace('params.', '')})"
        )
    command.add_argument("--overwrite", action="store_true", help="replace the content of --out")
    command.add_argument("--sections", action="store_true", help=argparse.SUPPRESS)  # used by pipeline steps: settings.file.read_sections


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def run_stage(options: argparse.Namespace) -> int:
    """Run the stage `options.command` with the settings and paths of its options, print its metrics, and return 0."""
    from dreamteacher.settings.file import load_params, read_sections

    command = (STAGES | TOOLS)[options.command]
    if not command.trains and os.environ.get("RANK", "0") != "0":
        return 0
    short = {setting: getattr(options, option.replace("-", "_")) for option, setting in command.settings.items()}
    overrides = [*(options.set or []), *(f"{setting}={value}" for setting, value in short.items() if value is not None)]
    params = read_sections(options.params) if options.sections else load_params(options.params, overrides)
    names: dict[str, Any] = {name: getattr(options, name) or _only(name, setting, params) for name, setting in command.named.items()}
    places = dict(names)
    if not options.sections:
        params, of_recipe = _resolve(params, options.command, names)
        places |= of_recipe
    if command.seed:
        names["seed"] = places["seed"] = options.seed

    def place(name: str, default: str) -> Path:
        return getattr(options, name) or Path(default.format(params=params, **places))

    inputs: dict[str, Any] = {name: place(name, default) for name, default in command.inputs.items()}
    for name in command.optional:
        place_or_address = getattr(options, name)
        inputs[name] = Path(place_or_address) if place_or_address and "://" not in place_or_address else place_or_address
    if options.command == "finetune":
        inputs["backbone"] = inputs["backbone"] or _pretrained(params, **names)
    out = place("out", command.out)
    gc.disable()  # imports leave no garbage, and collection takes a tenth of their time
    run = import_module(f"dreamteacher.stages.{options.command.replace('-', '_')}").run
    gc.enable()
    metrics = run(params, **inputs, **names, out=out, overwrite=options.overwrite)
    if os.environ.get("RANK", "0") == "0":
        print(f"{options.command}: {out}")
        for name, value in metrics.items():
            print(f"  {name} = {value:.6g}")
    return 0


def _only(name: str, setting: str, params: Any) -> str:
    """The default of an option: the only name in `setting`.

    Raises:
        UserError: there are several, or none.
    """
    group, _, key = setting.partition(".")
    names = list(getattr(getattr(params, group), key) if key else getattr(params, group))
    if len(names) != 1:
        raise UserError(f"{setting} has {', '.join(names)}; choose one with --{name}" if names else f"{setting} in the settings is empty")
    return str(names[0])


def _resolve(params: Any, stage: str, names: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """The settings of the stage's teacher, recipe or initialisation, and the recipe's values for path templates."""
    from dreamteacher.settings import recipes

    if "name" in names:
        return recipes.of_teacher(params, names["name"]), {}
    if "recipe" in names:
        kinds = {True: "label_recipes", False: "recipes"}
        wanted, found = (STAGES | TOOLS)[stage].named["recipe"], kinds[names["recipe"] in params.label_recipes]
        resolved = recipes.of_recipe(params, names["recipe"])
        if wanted != found:
            raise UserError(f"{stage} takes a name from {wanted}, but {names['recipe']!r} is one of {found}")
        features = recipes.base_of(params, names["recipe"])
        return resolved, {"features": features, "teacher": params.recipes[features].teacher}
    return (recipes.of_init(params, names["init"]), {}) if "init" in names else (params, {})


def _pretrained(params: Any, init: str, seed: int) -> Path | None:
    """Default path of the backbone of initialisation `init`; None if it is not one of ours (scratch, imagenet)."""
    folder = Path("artifacts/backbones") / init
    return folder / str(seed) if init in params.label_recipes else folder if init in params.recipes else None
