"""What Kubernetes' schemas do not see in a set of manifests, and a cluster says late or never."""

from __future__ import annotations

from manifest_lint import network, objects, pods
from manifest_lint.stack import Made, Manifest, Stack


def lint(manifests: list[Manifest], made: Made | None = None) -> list[str]:
    """All problems, each in a line.

    Args:
        manifests: what is applied together.
        made: {(kind, name): keys} of what the user makes beside them, such as secrets.
    """
    stack = Stack(manifests, made or {})
    found = [f"{each['kind']} {each['metadata']['name']}: {problem}" for each in manifests for problem in objects.problems(each, stack)]
    return found + [f"{each}: {problem}" for each in stack.pods for check in (pods, network) for problem in check.problems(each, stack)]
