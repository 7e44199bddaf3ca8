"""List the recipes of one teacher: the items of the loop inside the loop over teachers."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_recipes(recipes: dict, teacher: str) -> list:
    """Look up the recipes of one teacher.

    A separate step: KFP 2.17 cannot loop over a field of an outer loop's item: its driver selects the field again in each iteration.

    Args:
        recipes: {teacher: its recipes}, from find_commit.
        teacher: its name.
    """
    return recipes[teacher]
