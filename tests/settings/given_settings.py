"""Settings as `--set` gives them."""

import pytest

from dreamteacher.errors import UserError
from dreamteacher.settings.file import load_params
from dreamteacher.settings.schema import Params


def loaded(*overrides: str) -> Params:
    return load_params(None, list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
