"""Every initialisation with every seed."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def combine(inits: list, seeds: list) -> list:
    """The items of a loop over both. (Loops in loops, which would say the same, are wrong in KFP's local runner.)

    Args:
        inits: initialisations or modes.
        seeds: of the comparison.
    """
    return [{"init": init, "seed": seed} for init in inits for seed in seeds]
