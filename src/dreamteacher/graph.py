"""The stages of the chain as commands: what each reads, where that lies, and its options."""

from __future__ import annotations

from dataclasses import dataclass, field

IDENTITY = ("name", "recipe", "init", "seed")  # recorded settings that tell stages of one chain apart


@dataclass(frozen=True)
class StageCommand:
    """A stage on the command line.

    Places may name its options, such as `{seed}` and `{init}`, settings such as `{params.export.init}`, and of a recipe `{teacher}` and
    `{features}`, the recipe without labels that it is or builds on.
    """

    help: str
    out: str
    inputs: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)  # inputs without a default place, with their help
    named: dict[str, str] = field(default_factory=dict)  # further options, and the setting that holds what each may be
    settings: dict[str, str] = field(default_factory=dict)  # options that are short for `--set`, and the setting of each
    seed: bool = False
    trains: bool = False  # by all processes of torchrun; other stages run in the first alone


STAGES = {
    "ingest": StageCommand(
        "make one data set of any pictures",
        "artifacts/data",
        optional={
            "source": "folder, list file or shards (path or URL); default: ingest.source of the settings",
            "incoming": "a second place, of unlabelled pictures that arrived since; they are for training only",
        },
    ),
    "train-teacher": StageCommand(
        "train the generator on the unlabelled pictures",
        "artifacts/teachers/{name}",
        {"data": "artifacts/data"},
        {"start": "an earlier teacher to go on from"},
        named={"name": "teachers"},
        trains=True,
    ),
    "distill-features": StageCommand(
        "distill the generator's features into a backbone",
        "artifacts/backbones/{recipe}",
        {"data": "artifacts/data", "teacher": "artifacts/teachers/{teacher}"},
        {"start": "an earlier output of this stage to go on from"},
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
        {"backbone": "what --init starts from; default: its place below artifacts/backbones, if it has one"},
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
        "make the Triton repositories and register the model",
        "artifacts/triton",
        {"onnx": "artifacts/onnx", "evaluation": "artifacts/evaluation"},
    ),
    "report": StageCommand(
        "write one HTML page about the run, as far as it got",
        "artifacts/report",
        {"artifacts": "artifacts"},
    ),
}

# Commands that run as stages do, but that no stage depends on, so neither DVC nor the pipelines run them.
TOOLS = {
    "assess": StageCommand(
        "say what pretraining will gain here, what else would, and what it costs, before it is run",
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
