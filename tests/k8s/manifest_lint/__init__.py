"""Lint for sets of manifests: faults that Kubernetes' schemas do not detect, and a cluster reports late or never."""

from __future__ import annotations

from manifest_lint import network, objects, pods
from manifest_lint.stack import Made, Manifest, Stack


def lint(manifests: list[Manifest], made: Made | None = None) -> list[str]:
    """All problems, one line each.

    Args:
        manifests: what is applied together.
        made: {(kind, name): keys} of what the user makes beside them, such as secrets.
    """
    stack = Stack(manifests, made or {})
    found = [f"{each['kind']} {each['metadata']['name']}: {problem}" for each in manifests for problem in objects.problems(each, stack)]
    return found + [f"{each}: {problem}" for each in stack.pods for check in (pods, network) for problem in check.problems(each, stack)]
