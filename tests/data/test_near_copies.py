"""Near-duplicates in val and train, in any order and number."""

import numpy as np
import pytest

from dreamteacher.data import near_copies
from dreamteacher.data.near_copies import NearCopies


def thumbnails(n: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(n, 256)).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def digest(i: int) -> bytes:
    return i.to_bytes(32)


@pytest.mark.parametrize("order", ["val first", "train first", "mixed"])
def test_pairs_are_found_in_any_order(order: str) -> None:
    others = thumbnails(300)
    copies = thumbnails(10, 1)
    entries = [("train" if i % 2 else "val", other, digest(i)) for i, other in enumerate(others)]
    entries += [("train", copy, digest(1000 + i)) for i, copy in enumerate(copies)]
    entries += [("val", copy + 0.004 * other, digest(2000 + i)) for i, (copy, other) in enumerate(zip(copies, others, strict=False))]
    keys = {"val first": lambda entry: entry[0] != "val", "train first": lambda entry: entry[0], "mixed": lambda entry: entry[1][0]}
    near = NearCopies()
    for split, thumbnail, name in sorted(entries, key=keys[order]):
        near.add(split, thumbnail, name)
    assert sorted(near.pairs()) == [(digest(2000 + i), digest(1000 + i)) for i in range(10)]


def test_a_set_in_which_all_look_alike_has_no_copies() -> None:
    near = NearCopies()
    for i, other in enumerate(thumbnails(100)):
        alike = thumbnails(1, 5)[0] + 0.05 * other
        near.add("val" if i % 2 else "train", alike / np.linalg.norm(alike), digest(i))
    assert near.pairs() == []


def test_of_more_pictures_than_are_held_the_first_are_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "MAX_COMPARED", 20)
    near, val = NearCopies(), thumbnails(30)
    for i, one in enumerate(val):
        near.add("val", one, digest(i))
    for i, other in enumerate([*thumbnails(200, 1), *val]):
        near.add("train", other, digest(1000 + i))
    assert near.pairs() == [(digest(i), digest(1200 + i)) for i in range(20)]


def test_flat_pictures_and_nothing_at_all_are_no_copies() -> None:
    near = NearCopies()
    assert near.pairs() == []
    for split in ("val", "train"):
        near.add(split, np.zeros(256, np.float32), digest(1))
    assert near.pairs() == []
