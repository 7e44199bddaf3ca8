"""Say which commit a revision is now."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_commit(git_url: str, data_rev: str) -> str:
    """The commit that a revision is now. KFP's cache compares names, and a branch moves under its name: later steps get the commit.

    Args:
        git_url: repository of the project; empty: there is none, and data_rev is returned.
        data_rev: its revision: commit, tag or branch.
    """
    from dreamteacher.stages.fetch_data import commit_of

    return commit_of(git_url=git_url, data_rev=data_rev)
