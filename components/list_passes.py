"""List the fine-tunings from one recipe: the items of the loops inside the loop over recipes."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_passes(passes: dict, recipe: str) -> NamedTuple("Passes", [("seeds", list), ("mixed", list)]):
    """Look up the fine-tunings from one recipe; a separate step for the reason given in list_recipes.

    Args:
        passes: {recipe: its loop items}, from find_commit.
        recipe: its name.
    """
    return passes[recipe]["seeds"], passes[recipe]["mixed"]
