"""Equal seconds: each recipe's distillation takes as many steps as fit into the seconds of the first one's."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.paper.chain import Chain
from dreamteacher.errors import UserError
from dreamteacher.settings.recipes import of_recipe
from dreamteacher.settings.schema import Params
from dreamteacher.stages import distill_features

EACH, TIMED = 8, 48  # steps between records, and of a timing in all; the first record, which pays for what is prepared, does not count


def equal_seconds(chain: Chain, known: dict[str, Any]) -> dict[str, Any]:
    """{"reference": recipe, "seconds_per_step": {recipe: seconds}, "steps": {recipe: steps}}, measured on this machine.

    The first recipe is the reference: it keeps its steps. `known` is what was measured before, whose steps stay; a recipe that it lacks is
    measured beside the reference. The teacher's own training does not count.

    Raises:
        UserError: a label recipe, whose steps are of another kind, is among them.
    """
    params = chain.params
    if params.label_recipes:
        raise UserError(f"--equal seconds is for recipes without labels; {', '.join(params.label_recipes)} distils labels, too")
    reference, *others = params.recipes
    found: dict[str, Any] = {"reference": reference, "seconds_per_step": {}, "steps": {}} | known
    missing = [name for name in others if name not in found["steps"]]
    if missing or reference not in found["steps"]:
        own = seconds_per_step(chain, reference)
        steps = of_recipe(params, reference).distill.steps
        found["steps"] |= {reference: steps}
        found["seconds_per_step"] = {reference: own} | found["seconds_per_step"]
        for name in missing:
            found["seconds_per_step"][name] = each = seconds_per_step(chain, name)
            found["steps"][name] = max(1, round(steps * own / each))
    return found


def seconds_per_step(chain: Chain, recipe: str) -> float:
    """Of a short distillation, the median over its records."""
    params = of_recipe(chain.params, recipe)
    quick = {"steps": TIMED, "log_every": EACH, "warmup_steps": min(params.distill.warmup_steps, TIMED)}
    params = params.model_copy(update={"distill": params.distill.model_copy(update=quick)})
    out = chain.work / "timing" / recipe
    teacher = chain.teacher_of(recipe, params.seed)
    distill_features.run(params, data=chain.data(), teacher=teacher, recipe=recipe, out=out, overwrite=True)
    seconds = [row["seconds"] for row in chain.log_of(out) if row["step"] % EACH == 0]
    return median(after - before for before, after in pairwise(seconds)) / EACH


def with_steps(params: Params, steps: dict[str, int]) -> Params:
    """`params` with other steps of each recipe."""
    recipes = {
        name: recipe.model_copy(update={"distill": recipe.distill | {"steps": steps[name]}}) for name, recipe in params.recipes.items()
    }
    return params.model_copy(update={"recipes": recipes})
