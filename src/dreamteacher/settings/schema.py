"""All settings of a project: the groups, and teachers and recipes by name. `params.yaml` holds their values.

Each setting is defined once, with type, range, default, unit and source: here, in pretraining.py, or in downstream.py.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dreamteacher.settings.downstream import AUTO, HEADS, Assess, Evaluate, Export, Finetune, Ingest, Publish, Retrain
from dreamteacher.settings.presets import SIZED_KINDS, auto_taps, decoder_strides, preset_defaults
from dreamteacher.settings.pretraining import Distill, Interpreter, Labels, Student, Teacher, Tune
from dreamteacher.settings.section import Name, Positive, Section, Seed

Taps = Annotated[list[Positive], Field(min_length=1)] | Literal["auto"]
_OR_NOTHING = BeforeValidator(lambda value: {} if value is None else value)  # `NAME:` without anything after it
NO_TEACHER = "none"  # in recipes whose method needs no teacher
ALL_TEACHERS = "."  # in recipes for the method team: the folder of all teachers
FRESH = ("scratch", "imagenet")  # initialisations without a recipe


class Recipe(Section):
    """How a backbone is pretrained without labels; its groups override the common ones."""

    teacher: Name | Literal["."] = Field(
        description="name of one of teachers; none: the method needs no teacher; '.': all, for the method team"
    )
    taps: Taps | None = Field(None, description="null: the common taps")
    student: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="overrides of student, for fine-tuning as well")
    distill: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="overrides of distill")

    @property
    def one_teacher(self) -> str | None:
        """The name of the teacher; None if there is none, or all."""
        return None if self.teacher in (NO_TEACHER, ALL_TEACHERS) else self.teacher


class LabelRecipe(Section):
    """How a backbone is pretrained with the few labels, starting from a recipe without labels."""

    features: Name = Field(description="name of one of recipes, whose teacher, taps, student and distill are used")
    interpreter: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="overrides of interpreter")
    labels: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="overrides of labels")


class Compare(Section):
    """What is compared. A separate group, so that an additional seed reruns nothing else."""

    inits: Annotated[list[str], Field(min_length=1)] = Field(
        ["scratch", "features", "mix"],
        description="initialisations to fine-tune from: scratch, imagenet (timm's weights), and names of recipes and label_recipes",
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        [0, 1, 2], description="each seed draws its own few labels and its own random weights"
    )


class Params(Section):
    """All settings of a project."""

    preset: Literal["demo", "paper", "best"] = Field(
        "demo",
        description="defaults of settings that params.yaml does not set; demo: those of this table; paper: the paper's values; "
        "best: values that published evidence prefers to the paper's (docs/recipes.md); `dreamteacher params` prints them",
    )
    seed: Seed = Field(0, description="seed of the stages that run once (teacher, features)")
    few_labels: Positive | None = Field(
        None, description="number of labelled train pictures that interpreter and fine-tuning use, drawn by seed; null: all"
    )
    few_labels_by: Literal["random", "class", "cluster"] = Field(
        "random",
        description="what the draw of few_labels is stratified by; random: class ids only; class: also the classes in masks or boxes; "
        "cluster: clusters of pictures by colour and brightness, so that few labels cover all kinds of pictures and draws "
        "differ less",
    )
    taps: Taps = Field(
        "auto",
        description="strides of the generator's decoder levels that are regressed and interpreted; auto: the coarsest four of 2 to 32 "
        "(for adm-256 the paper's 4 to 32)",
    )
    teachers: Annotated[dict[Name, Annotated[dict[str, Any], _OR_NOTHING]], Field(min_length=1)] = Field(
        {"own": {}}, description="{NAME: overrides of teacher}; each is trained (or loaded, see teacher.pretrained) once"
    )
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)] = Field(
        {"features": Recipe(teacher="own")},
        description="{NAME: {teacher: NAME, and overrides of taps, student, distill}}: backbones pretrained without labels",
    )
    label_recipes: dict[Name, LabelRecipe] = Field(
        {"mix": LabelRecipe(features="features")},
        description="{NAME: {features: NAME of a recipe, and overrides of interpreter, labels}}: backbones pretrained with few labels",
    )
    ingest: Ingest = Ingest()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    interpreter: Interpreter = Interpreter()
    labels: Labels = Labels()
    finetune: Finetune = Finetune()
    compare: Compare = Compare()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    publish: Publish = Publish()
    retrain: Retrain = Retrain()
    tune: Tune = Tune()
    assess: Assess = Assess()

    @model_validator(mode="after")
    def _fill_in_defaults(self) -> Params:
        """Settings that are not set take the defaults of preset, teacher.kind and teacher.size."""
        chosen = {key: getattr(self.teacher, key) if key in self.teacher.model_fields_set else None for key in ("kind", "size")}
        defaults = preset_defaults(self.preset, **chosen, default_kind=self.teacher.kind, default_size=self.teacher.size)
        for name, values in defaults.items():
            group = getattr(self, name)
            unset = {key: value for key, value in values.items() if key not in group.model_fields_set}
            filled = group.model_copy(update=unset)
            filled.__pydantic_fields_set__ = set(group.model_fields_set)  # the defaults stay unset: another teacher may have another size
            self.__dict__[name] = filled  # the model is frozen, but still under construction
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Params:
        taken = [*FRESH, *self.recipes, *self.label_recipes]
        if twice := next((name for name in taken if taken.count(name) > 1), None):
            raise ValueError(
                f"{twice!r} names two initialisations; names of recipes and label_recipes must differ from each other, scratch and imagenet"
            )
        named = [
            *(
                (f"recipes.{name}.teacher", recipe.teacher, "teachers", list(self.teachers))
                for name, recipe in self.recipes.items()
                if recipe.one_teacher
            ),
            *(
                (f"label_recipes.{name}.features", recipe.features, "recipes", list(self.recipes))
                for name, recipe in self.label_recipes.items()
            ),
            *(("compare.inits", init, "scratch, imagenet, recipes or label_recipes", taken) for init in self.compare.inits),
            ("export.init", self.export.init, "compare.inits", self.compare.inits),
        ]
        for setting, name, group, possible in named:
            if name not in possible:
                near = difflib.get_close_matches(name, possible, 1)
                raise ValueError(
                    f"{setting} = {name!r} is not among {group}; " + (f"did you mean {near[0]!r}?" if near else f"there are {possible}")
                )
        if NO_TEACHER in self.teachers:
            raise ValueError(f"teachers.{NO_TEACHER}: in recipes this name means no teacher; choose another")
        for name, recipe in self.label_recipes.items():
            if not self.recipes[recipe.features].one_teacher:
                raise ValueError(
                    f"label_recipes.{name}.features = {recipe.features!r} has no teacher, which label distillation needs; name another"
                )
        if self.export.seed not in self.compare.seeds:
            raise ValueError(f"export.seed = {self.export.seed!r} is not among compare.seeds = {self.compare.seeds}; set it to one of them")
        for name, values in self.compare:
            if len(set(values)) < len(values):
                raise ValueError(f"compare.{name} = {values} lists a value twice")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        """Catch what would otherwise fail hours later, in another stage."""
        if self.teacher.kind in SIZED_KINDS:
            self._fits_the_size()
        return self

    def _fits_the_size(self) -> None:
        """For SIZED_KINDS only. The folders of other kinds record the valid values, and the stages check them."""
        for name, group in (("distill", self.distill), ("interpreter", self.interpreter)):
            steps = self.teacher.T_train
            if group.encoding == "stratified":
                if group.strata[-1] > steps:
                    raise ValueError(f"{name}.strata = {group.strata} must end at teacher.T_train = {steps} or before")
            elif steps <= group.T:
                raise ValueError(f"{name}.T = {group.T} must be below teacher.T_train = {steps}")
        size = f"teacher.size = {self.teacher.size!r}"
        offered = decoder_strides(self.teacher.size)
        if absent := [stride for stride in self.taps if stride not in offered] if self.taps != "auto" else []:
            raise ValueError(f"taps = {self.taps}: {size} has no decoder level at stride {absent[0]}; choose from {offered}, or set auto")
        for name in ("teacher", "distill", "interpreter"):
            side = getattr(self, name).resolution
            if side % offered[-1]:
                raise ValueError(f"{name}.resolution = {side} does not fit {size}: set a multiple of {offered[-1]}")
        coarsest = max(auto_taps(offered) if self.taps == "auto" else self.taps)
        cells = self.distill.resolution // coarsest
        if self.distill.margin and cells - 2 * -(-self.distill.margin // coarsest) < 2:
            raise ValueError(
                f"distill.margin = {self.distill.margin} leaves less than 2 x 2 of the {cells} x {cells} cells at stride {coarsest}; "
                f"lower it to {max(0, cells - 2) // 2 * coarsest}, raise distill.resolution, or leave that stride out of taps"
            )

    @model_validator(mode="after")
    def _head_steps_end_with_the_run(self) -> Params:
        if self.finetune.head_steps > self.finetune.steps:
            raise ValueError(
                f"finetune.head_steps = {self.finetune.head_steps} is more than finetune.steps = {self.finetune.steps}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _compiles_no_second_derivatives(self) -> Params:
        if self.teacher.compile and self.teacher.kind == "stylegan2" and not self.teacher.pretrained:
            raise ValueError("teacher.compile = true: torch.compile cannot differentiate a stylegan2 twice, as R1 does; set it to false")
        return self

    @model_validator(mode="after")
    def _head_fits_the_task(self) -> Params:
        """Checked here if the settings name the task; otherwise fine-tuning checks (see `tasks.base.get_task`)."""
        head, task = self.finetune.head, self.ingest.task
        if task != AUTO and head in HEADS and HEADS[head] != task:
            raise ValueError(f"finetune.head = {head!r} is a head for {HEADS[head]}, and ingest.task is {task!r}; set it to auto")
        return self

    @model_validator(mode="after")
    def _mirrors_no_untrue_labels(self) -> Params:
        if self.interpreter.mirror and self.finetune.augment in ("no-flip", "none"):
            raise ValueError(
                f"finetune.augment = {self.finetune.augment!r} says that mirroring changes the labels, "
                "but the interpreter also trains on mirrored pictures; set interpreter.mirror = false"
            )
        return self

    def section(self, *names: str) -> dict[str, Any]:
        """The named settings as plain data, for records and digests: `section("seed", "teacher")`."""
        plain = self.model_dump(mode="json")
        return {name: plain[name] for name in names}
