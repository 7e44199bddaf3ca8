"""The end of a retraining for which too little has arrived."""

from kfp import dsl
from kfp.dsl import HTML, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def nothing_new(words: str, page: Output[HTML]) -> str:
    """Say that nothing is trained, and why.

    Args:
        words: of compare_data.
        page: the same words.
    """
    from pathlib import Path

    from dreamteacher.report.step import write_facts

    print(words)
    write_facts(Path(page.path), "nothing-new", {"not trained": words})
    return words
