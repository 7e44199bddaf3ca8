"""The stages of the chain as commands: what each reads, where that lies, and its options."""

from __future__ import annotations

from dataclasses import dataclass, field

INITS = ("scratch", "features", "labels", "mix", "imagenet")  # those of params.Init, which is slow to import


@dataclass(frozen=True)
class StageCommand:
    """A stage on the command line. Places may name `{seed}`, `{mode}`, `{init}` and settings such as `{params.export.init}`."""

    help: str
    out: str
    inputs: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)  # inputs without a default place, with their help
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)  # further options that must be given, with what is possible
    seed: bool = False
    trains: bool = False  # by all processes of torchrun; other stages run in the first alone


STAGES = {
    "ingest": StageCommand(
        "any pictures to one data set",
        "artifacts/data",
        optional={
            "source": "folder, list file or shards (path or URL); default: ingest.source of the settings",
            "incoming": "a second place, of unlabelled pictures that arrived since; they are for training only",
        },
    ),
    "train-teacher": StageCommand(
        "train the generator on the unlabelled pictures",
        "artifacts/teacher",
        {"data": "artifacts/data"},
        {"start": "an earlier teacher to go on from"},
        trains=True,
    ),
    "distill-features": StageCommand(
        "distill the generator's features into a backbone",
        "artifacts/backbones/features",
        {"data": "artifacts/data", "teacher": "artifacts/teacher"},
        {"start": "an earlier output of this stage to go on from"},
        trains=True,
    ),
    "train-interpreter": StageCommand(
        "train the feature interpreter on the few labels",
        "artifacts/interpreters/{seed}",
        {"data": "artifacts/data", "teacher": "artifacts/teacher"},
        seed=True,
        trains=True,
    ),
    "distill-labels": StageCommand(
        "distill the interpreter's soft labels into a backbone",
        "artifacts/backbones/{mode}/{seed}",
        {
            "data": "artifacts/data",
            "teacher": "artifacts/teacher",
            "interpreter": "artifacts/interpreters/{seed}",
            "features": "artifacts/backbones/features",
        },
        choices={"mode": ("labels", "mix")},
        seed=True,
        trains=True,
    ),
    "finetune": StageCommand(
        "fine-tune a backbone for the task",
        "artifacts/finetuned/{init}/{seed}",
        {"data": "artifacts/data"},
        {"backbone": "what --init starts from; default: its place below artifacts/backbones, if it has one"},
        choices={"init": INITS},
        seed=True,
        trains=True,
    ),
    "evaluate": StageCommand(
        "compare the fine-tuned models on the validation split",
        "artifacts/evaluation",
        {
            "data": "artifacts/data",
            "teacher": "artifacts/teacher",
            "features": "artifacts/backbones/features",
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
}

# Commands that are stages in all but one thing: no other depends on what they write, so neither dvc nor the pipelines run them.
TOOLS = {
    "tune": StageCommand(
        "choose the noise step and the taps of a teacher",
        "artifacts/tune",
        {"data": "artifacts/data", "teacher": "artifacts/teacher"},
    ),
}
