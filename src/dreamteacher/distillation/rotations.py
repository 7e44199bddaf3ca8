"""Rotations that give all channels the same variance, for PHI-S whitening (arXiv 2410.01680)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def equalizing_rotation(covariance: Tensor) -> Tensor:
    """An orthogonal R, `(C, C)`, such that all of R covariance R^T's diagonal is the mean eigenvalue.

    H U^T of PHI-S: U the eigenvectors, H a Hadamard matrix divided by sqrt(C), each of whose rows has the same share of every eigenvector.
    If no Hadamard matrix of this order can be constructed here, such as for 3 channels, `_by_planes` is used.
    """
    covariance = covariance.double()
    mixing = hadamard(len(covariance))
    if mixing is None:
        return _by_planes(covariance)
    directions = torch.linalg.eigh(covariance).eigenvectors
    largest = directions.abs().argmax(0)
    directions = directions * directions[largest, torch.arange(len(directions))].sign()  # eigh does not determine the signs
    return mixing @ directions.T / math.sqrt(len(covariance))


def hadamard(order: int) -> Tensor | None:
    """A matrix of 1 and -1, `(order, order)`, with orthogonal rows: float64; None if neither construction gives one.

    Sylvester's doubling of 1 or of Paley's first construction (order q + 1 for a prime q = 3 mod 4). Together they cover all powers of two,
    and the 48, 96, 192, 320, 384, 640, 768, 1152 and 1280 channels of common networks.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if (order - 1) % 4 == 3 and _is_prime(order - 1):
        return _paley(order - 1)
    half = hadamard(order // 2) if order % 2 == 0 else None
    return None if half is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)


def _paley(prime: int) -> Tensor:
    """I + S, where S is bordered by 1 and -1 and holds whether i - j is a square modulo `prime`."""
    character = -torch.ones(prime, dtype=torch.float64)
    character[[x * x % prime for x in range(1, prime)]] = 1
    character[0] = 0
    place = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1, -1
    matrix[1:, 1:] = character[(place[:, None] - place) % prime]
    return matrix + torch.eye(prime + 1, dtype=torch.float64)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _by_planes(covariance: Tensor) -> Tensor:
    """As `equalizing_rotation`, by C - 1 plane rotations: each gives one of the channels with largest and smallest variance the mean."""
    rotated, rotation = covariance.clone(), torch.eye(len(covariance), dtype=covariance.dtype)
    mean = covariance.trace() / len(covariance)
    left = list(range(len(covariance)))
    while len(left) > 1:
        loud = max(left, key=lambda i: float(rotated[i, i]))
        faint = min(left, key=lambda i: float(rotated[i, i]))
        above, below, shared = float(rotated[loud, loud] - mean), float(rotated[faint, faint] - mean), float(rotated[loud, faint])
        if above <= 0 or below >= 0:  # all are average, up to rounding
            break
        tangent = (math.sqrt(shared**2 - above * below) - shared) / below
        cosine = 1 / math.sqrt(1 + tangent**2)
        plane = torch.eye(len(covariance), dtype=covariance.dtype)
        plane[loud, loud], plane[loud, faint] = cosine, cosine * tangent
        plane[faint, loud], plane[faint, faint] = -cosine * tangent, cosine
        rotated, rotation = plane @ rotated @ plane.T, plane @ rotation
        left.remove(loud)
    return rotation
