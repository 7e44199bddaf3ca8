"""A pipeline to the file that KFP runs, or to Kubernetes manifests."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import components
from dreamteacher.errors import UserError
from pipelines.resources import Profile


def compile_pipeline(
    name: str, profile: str, out: Path, *, manifests: bool = False, version: str = "", namespace: str = "kubeflow"
) -> None:
    """Write pipeline `name` with the resources of `profile` to `out`.

    Args:
        name: one of pipelines.NAMES.
        profile: of resources.yaml.
        out: YAML file.
        manifests: as Pipeline and PipelineVersion for a KFP that keeps its pipelines in Kubernetes.
        version: name of the PipelineVersion.
        namespace: of the manifests.

    Raises:
        UserError: the image (DREAMTEACHER_IMAGE) is not named by digest or an immutable tag, or there is no such profile.
    """
    check_image(components.IMAGE)
    pipeline = import_module(f"pipelines.{name}").build(Profile(profile, components.IMAGE).apply)
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: KFP reads pipelines from .yaml files; name it {out.with_suffix('.yaml')}")
    out.parent.mkdir(parents=True, exist_ok=True)
    options = KubernetesManifestOptions(
        pipeline_name=f"dreamteacher-{name}", pipeline_version_name=version, namespace=namespace, include_pipeline_manifest=True
    )
    Compiler().compile(pipeline, str(out), kubernetes_manifest_format=manifests, kubernetes_manifest_options=options if manifests else None)


def check_image(image: str) -> None:
    """Raises UserError where what `image` names may change: KFP's cache knows the name alone, and would give old results for new code."""
    place, _, digest = image.partition("@")
    tag = re.search(r":([^/:]+)$", place)
    if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or (
        not digest and tag and re.fullmatch(r"(git|sha)-[0-9a-f]{7,40}|[0-9a-f]{40}", tag[1])
    ):
        return
    raise UserError(
        f"DREAMTEACHER_IMAGE = {image}: name the image by digest (NAME@sha256:...) or by a tag that holds its git commit (NAME:git-1a2b3c4)"
    )
