"""The table of the chain: each stage as a command, with its inputs, default paths and options."""

from __future__ import annotations

from dataclasses import dataclass, field

IDENTITY = ("name", "recipe", "init", "seed")  # recorded settings that tell stages of one chain apart


@dataclass(frozen=True)
class StageCommand:
    """A stage on the command line.

    Paths are templates of options such as `{seed}` and `{init}`, of settings such as `{params.export.init}`, and of a recipe's `{teacher}`
    and `{features}` (the recipe without labels that it is or builds on).
    """

    help: str
    out: str
    inputs: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)  # inputs without a default path, with their help
    named: dict[str, str] = field(default_factory=dict)  # further options, and the setting that lists their valid values
    settings: dict[str, str] = field(default_factory=dict)  # options that are shorthands for `--set`, and the setting of each
    seed: bool = False
    trains: bool = False  # in all processes of torchrun; other stages run in the first only


STAGES = {
    "ingest": StageCommand(
        "build the data set from pictures and labels",
        "artifacts/data",
        optional={
            "source": "folder, list file or shards (path or URL); default: ingest.source of the settings",
            "incoming": "a second source, of newly arrived unlabelled pictures; they join the train split",
        },
    ),
    "train-teacher": StageCommand(
        "train the generator on the unlabelled pictures",
        "artifacts/teachers/{name}",
        {"data": "artifacts/data"},
        {"start": "an earlier teacher to continue from"},
        named={"name": "teachers"},
        trains=True,
    ),
    "distill-features": StageCommand(
        "distill the generator's features into a backbone",
        "artifacts/backbones/{recipe}",
        {"data": "artifacts/data", "teacher": "artifacts/teachers/{teacher}"},
        {"start": "an earlier output of this stage to continue from"},
        named={"recipe": "recipes"},
        trains=True,
    ),
    "train-interpreter": StageCommand(
        "train the feature interpreter on the few labels",
        "artifacts/interpreters/{recipe}/{seed}",
        {"data": "artifacts/data", "teacher": "artifacts/teachers/{teacher}"},
        named={"recipe": "label_recipes"},
        seed=True,
        trains=True,
    ),
    "distill-labels": StageCommand(
        "distill the interpreter's soft labels into a backbone",
        "artifacts/backbones/{recipe}/{seed}",
        {
            "data": "artifacts/data",
            "teacher": "artifacts/teachers/{teacher}",
            "interpreter": "artifacts/interpreters/{recipe}/{seed}",
            "features": "artifacts/backbones/{features}",
        },
        named={"recipe": "label_recipes"},
        seed=True,
        trains=True,
    ),
    "finetune": StageCommand(
        "fine-tune a backbone for the task",
        "artifacts/finetuned/{init}/{seed}",
        {"data": "artifacts/data"},
        {"backbone": "the pretrained backbone of --init; default: its folder below artifacts/backbones, if there is one"},
        named={"init": "compare.inits"},
        seed=True,
        trains=True,
    ),
    "evaluate": StageCommand(
        "compare the fine-tuned models on the validation split",
        "artifacts/evaluation",
        {
            "data": "artifacts/data",
            "teachers": "artifacts/teachers",
            "backbones": "artifacts/backbones",
            "finetuned": "artifacts/finetuned",
            "metrics": "metrics/evaluate.json",
            "plots": "plots/evaluate",
        },
    ),
    "export-onnx": StageCommand(
        "write the fine-tuned model and its backbone as ONNX",
        "artifacts/onnx",
        {"data": "artifacts/data", "finetuned": "artifacts/finetuned/{params.export.init}/{params.export.seed}"},
    ),
    "publish": StageCommand(
        "create the Triton repositories and register the model",
        "artifacts/triton",
        {"onnx": "artifacts/onnx", "evaluation": "artifacts/evaluation"},
    ),
    "report": StageCommand(
        "write one HTML page about the run, also if it is incomplete",
        "artifacts/report",
        {"artifacts": "artifacts"},
    ),
}

# Commands that run like stages; no stage depends on them, so neither DVC nor the pipelines run them.
TOOLS = {
    "assess": StageCommand(
        "estimate, before any pretraining, what it will gain and cost, and what else would gain as much",
        "artifacts/assess",
        {"data": "artifacts/data"},
        settings={"minutes": "assess.minutes", "price-per-hour": "assess.price_per_hour"},
    ),
    "tune": StageCommand(
        "choose the noise step and the taps of a teacher",
        "artifacts/tune/{recipe}",
        {"data": "artifacts/data", "teacher": "artifacts/teachers/{teacher}"},
        named={"recipe": "recipes"},
    ),
}
