"""Compile a pipeline to KFP's YAML or to Kubernetes manifests."""

from __future__ import annotations

import hashlib
import re
import tempfile
from importlib import import_module
from pathlib import Path

from kfp.compiler import Compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

import components
from dreamteacher.errors import UserError
from dreamteacher.git_access import output_of
from dreamteacher.mlflow_server import without_password
from pipelines.resources import FILE, Profile


def compile_pipeline(
    name: str, profile: str, out: Path, *, resources: Path = FILE, version: str | None = None, namespace: str = "kubeflow"
) -> None:
    """Write pipeline `name` with the resources of `profile` to `out`; parameter defaults name the project of the current folder.

    Args:
        name: one of pipelines.NAMES.
        profile: of `resources`.
        out: YAML file.
        resources: resources.yaml, such as `resources.in_use()`.
        version: write a Pipeline and a PipelineVersion of this name, for a KFP that stores its pipelines in Kubernetes. A PipelineVersion
            is immutable, so its name ends with a digest of its content: image, profile and code.
        namespace: of both.

    Raises:
        UserError: the image (DREAMTEACHER_IMAGE) is not named by digest or an immutable tag, there is no such profile, or the name is
            not valid in Kubernetes.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: KFP reads pipelines from .yaml files; name it {out.with_suffix('.yaml')}")
    check_image(components.IMAGE)
    git_url, data_rev = suggest_project()
    build = import_module(f"pipelines.{name}").build
    pipeline = build(Profile(profile, components.IMAGE, resources).apply, git_url=git_url, data_rev=data_rev)
    options = None
    if version is not None:
        digest = hashlib.sha256()
        for spec in (pipeline.pipeline_spec, pipeline.platform_spec):
            digest.update(spec.SerializeToString(deterministic=True))
        options = KubernetesManifestOptions(
            pipeline_name=f"dreamteacher-{name}",
            pipeline_version_name=_name("--version", f"dreamteacher-{name}-{version}-{digest.hexdigest()[:8]}"),
            pipeline_version_display_name=f"{version} {profile}",
            namespace=_name("--namespace", namespace),
            include_pipeline_manifest=True,
        )
    with tempfile.TemporaryDirectory() as scratch:  # an error leaves `out` as it was
        made = Path(scratch) / "made.yaml"
        Compiler().compile(pipeline, str(made), kubernetes_manifest_format=options is not None, kubernetes_manifest_options=options)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(made.read_text())


def suggest_project() -> tuple[str, str]:
    """URL and default branch of the git remote of the current folder; ("", "main") if it is not on a server.

    The URL is readable by a step: https without user name or password, even if this clone uses ssh.
    """
    address = output_of("git", "remote", "get-url", "origin")
    if ssh := re.fullmatch(r"(?:ssh://)?[\w.-]+@([\w.-]+)(?::\d+/|[:/])(.+)", address):
        address = f"https://{ssh[1]}/{ssh[2]}"
    if not re.match(r"https?://", address):
        return "", "main"
    branch = output_of("git", "symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    return without_password(address), branch or "main"


def _name(option: str, name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise UserError(f"{option}: {name} is not a valid Kubernetes name; use a-z, 0-9 and -, at most 63 characters, not - at the ends")
    return name


def check_image(image: str) -> None:
    """Raises UserError if `image` is a moving tag: KFP's cache compares only the name and would return old results for new code."""
    place, _, digest = image.partition("@")
    tag = re.search(r":([^/:]+)$", place)
    if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or (
        not digest and tag and re.fullmatch(r"(git|sha)-[0-9a-f]{7,40}|[0-9a-f]{40}", tag[1])
    ):
        return
    raise UserError(
        f"DREAMTEACHER_IMAGE = {image}: name the image by digest (NAME@sha256:...) or by a tag that holds its git commit (NAME:git-1a2b3c4)"
    )
