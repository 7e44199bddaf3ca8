"""Noise depends on (seed, step, position in the global batch) and on nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamteacher.training.randomness import StepRandom, derive_seed, seed_everything


@settings(max_examples=40)
@given(seed=st.integers(-5, 2**40), step=st.integers(0, 10**6), parts=st.integers(1, 6), each=st.integers(1, 5))
def test_parts_are_slices_of_the_whole(seed: int, step: int, parts: int, each: int) -> None:
    whole = StepRandom(seed, step, 0, 1)
    slices = [StepRandom(seed, step, part, parts) for part in range(parts)]
    for _ in range(2):
        assert torch.equal(torch.cat([part.normal((each, 3, 2)) for part in slices]), whole.normal((each * parts, 3, 2)))
        assert torch.equal(torch.cat([part.integers(5, 50, each) for part in slices]), whole.integers(5, 50, each * parts))


def test_every_call_and_step_and_seed_has_its_own_stream() -> None:
    draws = [StepRandom(seed, step, 0, 1).normal((4,)) for seed in (0, 1) for step in (0, 1)]
    one = StepRandom(0, 0, 0, 1)
    one.normal((4,))
    draws.append(one.normal((4,)))
    assert len({tuple(draw.tolist()) for draw in draws}) == 5


def test_values_have_the_asked_distribution() -> None:
    random = StepRandom(0, 0, 0, 1)
    normal = random.normal((20_000, 2), dtype=torch.float64)
    assert normal.dtype == torch.float64 and normal.mean().abs() < 0.02 and (normal.std() - 1).abs() < 0.02
    assert set(random.integers(2, 5, 200).tolist()) == {2, 3, 4}


def test_derived_seeds_fit_a_generator_and_do_not_collide() -> None:
    seeds = {derive_seed(name, a, b) for name in ("x", "y") for a in range(30) for b in range(30)}
    assert len(seeds) == 1800
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_part_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="part 2"):
        StepRandom(0, 0, 2, 2)


def test_dropout_is_reproducible_after_seeding() -> None:
    draws = []
    for seed in (1, 2, 1):
        seed_everything(seed, torch.device("cpu"))
        draws.append(torch.nn.functional.dropout(torch.ones(100)).tolist())
    assert draws[0] == draws[2] != draws[1]
