"""All settings of a project: the groups, and teachers and recipes by name. `params.yaml` holds their values.

Each setting stands once, with type, range, default, unit and source: here, in pretraining.py, or in downstream.py.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dreamteacher.settings.downstream import AUTO, HEADS, Assess, Evaluate, Export, Finetune, Ingest, Publish, Retrain
from dreamteacher.settings.presets import SIZED, ShareOf, auto_taps, fills, strides
from dreamteacher.settings.pretraining import Distill, Interpreter, Labels, Student, Teacher, Tune
from dreamteacher.settings.section import Name, Positive, Section

Taps = Annotated[list[Positive], Field(min_length=1)] | Literal["auto"]
_OR_NOTHING = BeforeValidator(lambda value: {} if value is None else value)  # `NAME:` without anything after it
NO_TEACHER = "none"  # of recipes whose method needs none
ALL_TEACHERS = "."  # of recipes that learn from a team: the folder that holds them
FRESH = ("scratch", "imagenet")  # initialisations that no recipe makes


class Recipe(Section):
    """How a backbone is pretrained without labels: groups given here hold what differs from those of all recipes."""

    teacher: Name | Literal["."] = Field(description="which of teachers; none: the method needs no teacher; '.': all, for the method team")
    taps: Taps | None = Field(None, description="null: those of all recipes")
    student: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of student that differ, for fine-tuning as well")
    distill: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of distill that differ")

    @property
    def one_teacher(self) -> str | None:
        """The name of the teacher; None: it has none, or all."""
        return None if self.teacher in (NO_TEACHER, ALL_TEACHERS) else self.teacher


class LabelRecipe(Section):
    """How a backbone is pretrained with the few labels, from what a recipe without them made."""

    features: Name = Field(description="which of recipes; its teacher, taps, student and distill are this one's too")
    interpreter: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of interpreter that differ")
    labels: Annotated[dict[str, Any], _OR_NOTHING] = Field({}, description="settings of labels that differ")


class Compare(Section):
    """What is compared. A group of its own, so that one seed more re-runs nothing that is done."""

    inits: Annotated[list[str], Field(min_length=1)] = Field(
        ["scratch", "features", "mix"],
        description="initialisations to fine-tune from: scratch, imagenet (timm's weights), and names of recipes and label_recipes",
    )
    seeds: Annotated[list[int], Field(min_length=1)] = Field(
        [0, 1, 2], description="each draws its own few labels and its own random weights"
    )


class Params(Section):
    """All settings of a project."""

    preset: Literal["demo", "paper", "best"] = Field(
        "demo",
        description="what fills settings that no line names: demo: the defaults here; paper: the paper to the letter; best: what the "
        "evidence ranks above it (docs/recipes.md); `dreamteacher params` prints the values",
    )
    seed: int = Field(0, description="seed of the stages that run once (teacher, features)")
    few_labels: Positive | None = Field(
        None, description="how many labelled train pictures the interpreter and fine-tuning may see, drawn by seed; null: all"
    )
    few_labels_by: Literal["random", "class", "cluster"] = Field(
        "random",
        description="what the draw of few_labels balances: random: class ids alone; class: also which classes occur in masks or boxes; "
        "cluster: kinds of pictures, by colours and brightness, so that few labels show all kinds and draws differ less",
    )
    taps: Taps = Field(
        "auto",
        description="strides of the generator's decoder levels that are regressed and interpreted; auto: the coarsest four of 2 to 32, "
        "which of adm-256 are the paper's 4 to 32",
    )
    teachers: Annotated[dict[Name, Annotated[dict[str, Any], _OR_NOTHING]], Field(min_length=1)] = Field(
        {"own": {}}, description="{NAME: settings of teacher that differ}; each is trained, or taken, once"
    )
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)] = Field(
        {"features": Recipe(teacher="own")},
        description="{NAME: {teacher: NAME, and what differs of taps, student, distill}}: backbones pretrained without labels",
    )
    label_recipes: dict[Name, LabelRecipe] = Field(
        {"mix": LabelRecipe(features="features")},
        description="{NAME: {features: NAME of recipes, and what differs of interpreter, labels}}: backbones pretrained with few labels",
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
    def _follow_the_size(self) -> Params:
        """What is left open is that of preset, teacher.kind and teacher.size."""
        chosen = {key: getattr(self.teacher, key) if key in self.teacher.model_fields_set else None for key in ("kind", "size")}
        for name, values in fills(self.preset, **chosen, default_kind=self.teacher.kind, default_size=self.teacher.size).items():
            group = getattr(self, name)
            left_open = {key: value for key, value in values.items() if key not in group.model_fields_set}
            for key, value in left_open.items():
                if isinstance(value, ShareOf):
                    left_open[key] = round(value.share * left_open.get(value.setting, getattr(group, value.setting)))
            followed = group.model_copy(update=left_open)
            followed.__pydantic_fields_set__ = set(group.model_fields_set)  # still open: another teacher may have another size
            self.__dict__[name] = followed  # frozen, but not complete before this
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Params:
        taken = [*FRESH, *self.recipes, *self.label_recipes]
        if twice := next((name for name in taken if taken.count(name) > 1), None):
            raise ValueError(f"{twice!r} names two initialisations; scratch, imagenet, recipes and label_recipes need names of their own")
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
            raise ValueError(f"teachers.{NO_TEACHER} stands for no teacher in recipes; give it another name")
        for name, recipe in self.label_recipes.items():
            if not self.recipes[recipe.features].one_teacher:
                raise ValueError(f"label_recipes.{name}.features = {recipe.features!r} has no teacher to read labels from; name another")
        if self.export.seed not in self.compare.seeds:
            raise ValueError(f"export.seed = {self.export.seed!r} is not among compare.seeds = {self.compare.seeds}; set it to one of them")
        for name, values in self.compare:
            if len(set(values)) < len(values):
                raise ValueError(f"compare.{name} = {values} names one twice")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        """What would otherwise fail hours later, in another stage."""
        if self.teacher.kind in SIZED:
            self._fits_the_size()
        return self

    def _fits_the_size(self) -> None:
        """Of other kinds the teacher's folder says what fits, which the stages read."""
        for name, group in (("distill", self.distill), ("interpreter", self.interpreter)):
            steps = self.teacher.T_train
            if group.encoding == "stratified":
                if group.strata[-1] > steps:
                    raise ValueError(f"{name}.strata = {group.strata} must end at teacher.T_train = {steps} or before")
            elif steps <= group.T:
                raise ValueError(f"{name}.T = {group.T} must be below teacher.T_train = {steps}")
        size = f"teacher.size = {self.teacher.size!r}"
        offered = strides(self.teacher.size)
        if absent := [stride for stride in self.taps if stride not in offered] if self.taps != "auto" else []:
            raise ValueError(f"taps = {self.taps}: {size} has no decoder level at stride {absent[0]}; take some of {offered}, or auto")
        for name in ("teacher", "distill", "interpreter"):
            side = getattr(self, name).resolution
            if side % offered[-1]:
                raise ValueError(f"{name}.resolution = {side} does not fit {size}: take a multiple of {offered[-1]}")
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
                f"finetune.head_steps = {self.finetune.head_steps} is more than finetune.steps = {self.finetune.steps}, of which they are "
                "the first; lower it"
            )
        return self

    @model_validator(mode="after")
    def _compiles_no_second_derivatives(self) -> Params:
        if self.teacher.compile and self.teacher.kind == "stylegan2" and not self.teacher.pretrained:
            raise ValueError("teacher.compile = true: torch.compile cannot differentiate a stylegan2 twice, as R1 does; set it to false")
        return self

    @model_validator(mode="after")
    def _head_fits_the_task(self) -> Params:
        """Where the settings name the task; else fine-tuning refuses the head (see `tasks.base.get_task`)."""
        head, task = self.finetune.head, self.ingest.task
        if task != AUTO and head in HEADS and HEADS[head] != task:
            raise ValueError(f"finetune.head = {head!r} is a head for {HEADS[head]}, and ingest.task is {task!r}; set it to auto")
        return self

    @model_validator(mode="after")
    def _mirrors_no_untrue_labels(self) -> Params:
        if self.interpreter.mirror and self.finetune.augment in ("no-flip", "none"):
            raise ValueError(
                f"finetune.augment = {self.finetune.augment!r} means that labels do not hold for mirrored pictures, "
                "from which the interpreter would learn, too; set interpreter.mirror = false"
            )
        return self

    def section(self, *names: str) -> dict[str, Any]:
        """The named settings as plain data, to be recorded and digested: `section("seed", "teacher")`."""
        plain = self.model_dump(mode="json")
        return {name: plain[name] for name in names}
