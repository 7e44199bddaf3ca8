"""Strict validation: Kubernetes' own objects by its schemas, custom resources by those of crds.yaml and of Kubeflow Trainer's package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime

VERSIONS = ("1.34", "1.35", "1.36", "1.37")
Schema = dict[str, Any]


def validate(manifest: dict[str, Any], version: str) -> None:
    """Raises ValidationError, of kubernetes_validate or jsonschema, where `manifest` is not valid for Kubernetes `version`."""
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    schema = schemas().get(kind)
    if schema is None:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    manifest, pod = _without_pod(manifest, kind)
    # Labels and annotations of any object are those of a config map.
    about = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    kubernetes_validate.validate(about, version, strict=True)
    jsonschema.Draft202012Validator(schema).validate(manifest)
    if pod:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}, version, strict=True)


@cache
def schemas() -> dict[str, Schema]:
    """{"apiVersion kind": its JSON schema, which refuses what it does not name}."""
    read = yaml.safe_load((Path(__file__).parent / "crds.yaml").read_text())
    about: Schema = {"apiVersion": {}, "kind": {}, "metadata": {}}
    found = {
        kind: {"type": "object", "required": ["spec"], "properties": about | {"spec": {"type": "object", **spec}}}
        for kind, spec in read["kinds"].items()
    }
    found |= {kind: {"type": "object", **plain, "properties": about | plain["properties"]} for kind, plain in read["plain"].items()}
    found = {kind: _closed(schema) for kind, schema in found.items()}
    trainer = TrainerV1alpha1TrainingRuntime.model_json_schema(by_alias=True)
    for each in [trainer, *trainer["$defs"].values()]:
        if "properties" in each:
            each["additionalProperties"] = False
    return found | {"trainer.kubeflow.org/v1alpha1 TrainingRuntime": trainer}


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return closed | {"additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else closed


def _without_pod(manifest: dict[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """An InferenceService's predictor is its own fields and those of a pod's spec in one; the two apart."""
    if not kind.endswith(" InferenceService"):
        return manifest, None
    own = schemas()[kind]["properties"]["spec"]["properties"]["predictor"]["properties"]
    predictor = manifest["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in own}
    rest = {key: value for key, value in predictor.items() if key in own}
    return manifest | {"spec": manifest["spec"] | {"predictor": rest}}, pod
