"""The recipes that learn from one teacher: the items of a loop within the loop of teachers."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_recipes(recipes: dict, teacher: str) -> list:
    """Look up the recipes that learn from one teacher.

    KFP 2.17 cannot loop over a field of an outer loop's item: its driver selects the field once more in each pass. A step's output it can.

    Args:
        recipes: {teacher: its recipes}, of find_commit.
        teacher: its name.
    """
    return recipes[teacher]
