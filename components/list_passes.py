"""What is fine-tuned from one recipe: the items of loops within the loop of recipes."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_passes(passes: dict, recipe: str) -> NamedTuple("Passes", [("seeds", list), ("mixed", list)]):
    """Look up what is fine-tuned from one recipe; a step of its own for the reason in list_recipes.

    Args:
        passes: {recipe: its passes}, of find_commit.
        recipe: its name.
    """
    return passes[recipe]["seeds"], passes[recipe]["mixed"]
