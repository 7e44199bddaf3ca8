"""Rotations of channels after which all have the same variance, for the whitening PHI-S (arXiv 2410.01680)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def equalizing_rotation(covariance: Tensor) -> Tensor:
    """An orthogonal R, `(C, C)`, such that all of R covariance R^T's diagonal is the mean eigenvalue.

    H U^T of PHI-S: U the eigenvectors, H a Hadamard matrix divided by sqrt(C), each of whose rows takes the same share of every
    eigenvector. For a number of channels of which no Hadamard matrix is constructed here, such as 3, `_by_planes`.
    """
    covariance = covariance.double()
    mixing = hadamard(len(covariance))
    if mixing is None:
        return _by_planes(covariance)
    directions = torch.linalg.eigh(covariance).eigenvectors
    largest = directions.abs().argmax(0)
    directions = directions * directions[largest, torch.arange(len(directions))].sign()  # eigh leaves the signs open
    return mixing @ directions.T / math.sqrt(len(covariance))


def hadamard(order: int) -> Tensor | None:
    """A matrix of 1 and -1, `(order, order)`, with orthogonal rows: float64; None where neither construction has one.

    Sylvester's doubling of 1 or of Paley's first construction, of order q + 1 for a prime q = 3 mod 4: together they have all powers of
    two, and the 48, 96, 192, 320, 384, 640, 768, 1152 and 1280 of common networks.
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
    """As `equalizing_rotation`: C - 1 rotations, each in the plane of the loudest and the faintest channel, make one of them average."""
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
