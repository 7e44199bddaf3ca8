"""What a picture costs: milliseconds and memory of each kind of teacher, encoding, objective, neck and method, on this machine.

    python -m benchmarks.cost [--quick] [--only PART ...] [--teacher NAME=FOLDER] [--backbone resnet18]

Names come from the code's own tables and from installed packages, so that what is added is measured by itself. What cannot be built from
settings (a kind that is only imported) or does not fit the backbone is listed with the reason; `--teacher` measures an imported one from
its folder, and `--transformer` is the backbone of methods that refuse the other.

* teacher, encoding: one lesson, `Teacher.teach`. Encodings are those of the first kind that is trained.
* objective: a term and its gradient, on maps that are already there.
* neck: a step of the student (forward, Eq 3, backward, optimiser) on a lesson that is already there.
* method: a whole step, the teacher's pass included where there is one, on views that are already there.
* loop: how much of distillation through the training loop is teacher and student (see `loop_share`); at least 0.95 is wanted.

Milliseconds are the median of `--repeats` turns. Memory is the peak of a step over what was there before it: of the accelerator, or on
Linux CPUs of the process (to some MB; small steps may show 0). Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.loop_share import loop_share, words
from benchmarks.memory import peak
from benchmarks.timing import clock, describe_machine
from dreamteacher.data.dataset import ImageSet, Sample, Samples
from dreamteacher.data.transforms import pretrain_crop
from dreamteacher.distillation import terms
from dreamteacher.distillation.features import feature_objective, student_options
from dreamteacher.distillation.whitening import layernorm
from dreamteacher.errors import UserError
from dreamteacher.methods import base as methods
from dreamteacher.report.summary import markdown
from dreamteacher.settings import pretraining
from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor
from dreamteacher.tasks.model import normalize
from dreamteacher.teachers import folder as teachers
from dreamteacher.teachers.base import Lesson, Teacher
from dreamteacher.teachers.encodings import get_encoding
from dreamteacher.training.optim import create_optimizer
from dreamteacher.training.precision import choose_layout, choose_precision
from dreamteacher.training.processes import this_process
from dreamteacher.training.randomness import StepRandom

PARTS = ("teacher", "encoding", "objective", "neck", "method", "loop")
Step = Callable[[int], None]
Case = tuple[str, str, Callable[[], Step]]  # part, name, and what prepares a step


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of two pictures: for a look, no figures to publish")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="default: all")
    parser.add_argument("--teacher", action="append", default=[], metavar="NAME=FOLDER", help="a teacher's folder to measure, too")
    parser.add_argument("--backbone", default="resnet18", help="student (default: %(default)s)")
    parser.add_argument("--transformer", default="vit_tiny_patch16_224", help="of methods that need one (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="of the student's neck (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--source", type=Path, default=Path("samples/nuclei"), help="pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost"), help="without extension (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.steps, options.repeats = 2, 1, 1
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {name: str(value) for name, value in vars(options).items() if name not in ("out", "only")},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part, name, prepare in bench.cases():
            if part in options.only:
                results["rows"].append({"part": part, "name": name, **bench.measure(prepare)})
                print(_words(results["rows"][-1]), flush=True)
        if "loop" in options.only:
            results["loop"] = loop_share(Namespace(**vars(options), preset="tiny"), bench.samples, Path(folder))
            print(words(results["loop"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report(results))


def names(group: str, built_in: dict[str, Any]) -> list[str]:
    """Of our own, and of installed packages."""
    return [*built_in, *sorted({entry.name for entry in entry_points(group=group)} - set(built_in))]


@dataclass
class Bench:
    """Cases, and how one is measured."""

    options: Namespace
    folder: Path

    def __post_init__(self) -> None:
        self.device = this_process().device
        self.dtype = choose_precision("auto", self.device)
        self.layout = choose_layout(self.device, self.dtype)
        ingest.run(Params(), source=self.options.source, out=self.folder / "data")
        self.samples = Samples(ImageSet(self.folder / "data", "train"), pretrain_crop(self.options.size))
        self.images = self.batch(pretrain_crop(self.options.size))["image"]
        self._taught: tuple[Teacher, Lesson] | None = None

    def batch(self, transform: Callable[[Sample], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of transformed pictures on the device."""
        source = Samples(self.samples.images, transform)
        items = [source[i % len(source), i] for i in range(self.options.batch)]
        keys = [key for key in items[0] if key != "label"]
        return {key: torch.stack([item[key] for item in items]).to(self.device, memory_format=self.layout) for key in keys}

    def cases(self) -> Iterator[Case]:
        """All, by the tables of the code."""
        kinds = names(teachers.ENTRY_POINTS, teachers.KINDS)
        for kind in kinds:
            yield "teacher", kind, lambda kind=kind: self.teach(self.open(kind))
        for given in self.options.teacher:
            name, _, folder = given.rpartition("=")
            yield "teacher", name, lambda folder=folder: self.teach(self.open(folder=Path(folder)))
        for name in get_args(pretraining.EncodingSettings.model_fields["encoding"].annotation):
            yield "encoding", name, lambda name=name: self.teach(self.open(kinds[0], encoding=name))
        for name in names(pretraining.OBJECTIVES_GROUP, terms.BUILT_IN):
            yield "objective", name, lambda name=name: self.compare(name)
        for name in get_args(pretraining.Student.model_fields["neck"].annotation):
            yield "neck", name, lambda name=name: self.regress(name)
        for name in names(methods.GROUP, methods.BUILT_IN):
            yield "method", name, lambda name=name: self.learn(name)

    def measure(self, prepare: Callable[[], Step]) -> dict[str, Any]:
        """Milliseconds and MB a picture, or why there are none."""
        try:
            step = prepare()
        except UserError as error:
            return {"left_out": str(error)}
        step(0)
        turns = [1000 * clock(step, self.options.steps) / self.options.steps / self.options.batch for _ in range(self.options.repeats)]
        memory = peak(lambda: step(0), self.device)
        return {"ms": median(turns), "turns_ms": turns, "mb": None if memory is None else memory / 2**20 / self.options.batch}

    def params(self, **distill: Any) -> Params:
        """Settings of the size that is measured; taps of `tiny`."""
        student = {"backbone": self.options.backbone, "width": self.options.width}
        made = {"teacher": {"resolution": self.options.size}, "student": student}
        return Params.model_validate({**made, "distill": {"resolution": self.options.size, **distill}})

    def open(self, kind: str = "", encoding: str = "stochastic", folder: Path | None = None) -> Teacher:
        """A teacher of `kind` with random weights, or that of a folder."""
        params = self.params(encoding=encoding)
        if folder is None:
            module = teachers.get_kind(kind)
            if not hasattr(module, "Generator"):
                raise UserError("it is only imported; measure a folder by --teacher")
            generator = module.Generator(params.teacher.model_copy(update={"kind": kind}))
            folder = self.folder / f"teacher-{kind}"
            if not folder.exists():
                torch.manual_seed(0)
                network = generator.build()
                folder.mkdir()
                generator.save(network, folder, {"resolution": self.options.size})
        return teachers.open_teacher(folder, teachers.choose_strides(folder, params.taps), get_encoding(params.distill), self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def teach(self, teacher: Teacher) -> Step:
        def step(number: int) -> None:
            with self.autocast():
                teacher.teach(self.images, StepRandom(0, number, 0, 1, self.device))

        return step

    def taught(self) -> tuple[Teacher, Lesson]:
        """The first kind, and a lesson of it."""
        if self._taught is None:
            teacher = self.open(next(iter(teachers.KINDS)))
            with self.autocast():
                self._taught = teacher, teacher.teach(self.images, StepRandom(0, 0, 0, 1, self.device))
        return self._taught

    def compare(self, name: str) -> Step:
        teacher, lesson = self.taught()
        regressed = [torch.randn_like(maps).requires_grad_() for maps in lesson.features]
        pooled = torch.randn(self.options.batch, lesson.features[-1].shape[1], device=self.device).requires_grad_()
        objective = feature_objective(self.params(objectives={name: 1.0}).distill, layernorm, teacher.taps)

        def step(number: int) -> None:
            objective([*regressed, *([pooled] if name == "global" else [])], lesson.features)["loss"].backward()

        return step

    def regress(self, neck: str) -> Step:
        teacher, lesson = self.taught()
        params = self.params()
        channels, strides = [tap.channels for tap in teacher.taps], [tap.stride for tap in teacher.taps]
        backbone = create_backbone(self.options.backbone)
        student = FeatureRegressor(backbone, channels, strides, self.options.width, neck, **student_options(params.distill))
        objective = feature_objective(params.distill, layernorm, teacher.taps)
        images = normalize(lesson.images, backbone.mean, backbone.std)
        return self.train(student, params, lambda model, _: objective(model(images), lesson.features)["loss"])

    def learn(self, name: str) -> Step:
        kind = methods.get_method(name)
        folder = self.folder / f"teacher-{next(iter(teachers.KINDS))}"
        if kind.needs_teacher:
            self.taught()
        params = self.params(method=name)
        if name == "team":  # from the first kind twice, so that what is more than feature distillation's is the team's
            folder = self.folder / "team"
            for each in ("one", "two"):
                (folder / each).parent.mkdir(exist_ok=True)
                (folder / each).symlink_to(self.folder / f"teacher-{next(iter(teachers.KINDS))}")
        method = kind(params, folder if kind.needs_teacher else None, self.folder, self.device)
        try:
            network = method.build(create_backbone(self.options.backbone), self.samples)
        except UserError:
            network = method.build(create_backbone(self.options.transformer), self.samples)
        batch = self.batch(method.transform())

        def loss(model: nn.Module, number: int) -> Tensor:
            return method.loss(model, batch, StepRandom(0, number, 0, 1, self.device))["loss"]

        return self.train(network, params, loss, method.after_step)

    def train(
        self,
        network: nn.Module,
        params: Params,
        loss: Callable[[nn.Module, int], Tensor],
        after_step: Callable[[nn.Module, int], None] = lambda model, number: None,
    ) -> Step:
        network = network.train().to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        optimizer = create_optimizer(network, params.distill)

        def step(number: int) -> None:
            with self.autocast():
                value = loss(network, number)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), params.distill.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            after_step(network, number)

        return step


def report(results: dict[str, Any]) -> str:
    """As Markdown."""
    machine, settings = results["machine"], results["settings"]
    lines = [
        f"{machine['device']}; CPU features: {machine['cpu_features']}; {machine['precision']}; torch {machine['torch']}.",
        f"{settings['batch']} pictures of {settings['size']} px a step, student {settings['backbone']}; figures a picture.",
        "",
        markdown([["part", "name", "ms", "MB"], *(_cells(row) for row in results["rows"])]) if results["rows"] else "",
    ]
    left_out = [f"* {row['part']} {row['name']}: {row['left_out']}" for row in results["rows"] if "left_out" in row]
    lines += ["", "Not measured:", "", *left_out] if left_out else []
    lines += ["", words(results["loop"])] if "loop" in results else []
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    ms = "-" if "left_out" in row else f"{row['ms']:.2f}"
    return [row["part"], row["name"], ms, "-" if row.get("mb") is None else f"{row['mb']:.1f}"]


def _words(row: dict[str, Any]) -> str:
    part, name, ms, mb = _cells(row)
    return f"{part} {name}: {row['left_out']}" if "left_out" in row else f"{part} {name}: {ms} ms, {mb} MB a picture"


if __name__ == "__main__":
    main()
