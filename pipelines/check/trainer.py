"""Findings on Kubeflow Trainer, which a profile with several nodes needs."""

from __future__ import annotations

from collections.abc import Iterator

from kubernetes.client import (
    ApiextensionsV1Api,
    ApisApi,
    AuthorizationV1Api,
    CustomObjectsApi,
    V1ResourceAttributes,
    V1SubjectAccessReview,
    V1SubjectAccessReviewSpec,
)

from dreamteacher.cluster.trainjob import GROUP, PLURAL, RUNTIME, VERSION, Nodes
from pipelines.check.finding import APPLY, Cluster, Finding, read

TRAINER = "2.3.0"  # on which the pipelines ran, with JobSet 0.12.0
SOURCE = "https://github.com/kubeflow/trainer.git/manifests/overlays/{}?ref=v" + TRAINER
INSTALL = f"kubectl apply --server-side -k '{SOURCE}'"
SHIPPED: str = Nodes.model_fields["runtime"].default  # used by TrainJobs in namespaces without ours
# (API group, resource, subresource, verbs): those of k8s/base/trainjobs.yaml.
RIGHTS = [
    (GROUP, PLURAL, "", ("create", "get", "list", "watch", "delete")),
    (GROUP, "trainingruntimes", "", ("get",)),
    ("", "pods", "", ("get", "list", "watch")),
    ("", "pods", "log", ("get",)),
    ("", "events", "", ("list",)),
]


def trainer(cluster: Cluster) -> Iterator[Finding]:
    """Whether the cluster supports TrainJobs as the steps write them."""
    groups = {group.name for group in read(ApisApi(cluster.client).get_api_versions).groups}
    if GROUP not in groups:
        yield Finding("wrong", "Kubeflow Trainer", f"the cluster has no {GROUP}", INSTALL.format("manager"))
        return
    if "jobset.x-k8s.io" not in groups:
        yield Finding("wrong", "JobSet", "not installed, and Trainer needs it to create pods", INSTALL.format("manager"))
    crd = read(ApiextensionsV1Api(cluster.client).read_custom_resource_definition, f"{PLURAL}.{GROUP}")
    schemas = [each.schema.open_apiv3_schema for each in crd.spec.versions if each.name == VERSION] if crd else []
    fields = {field for schema in schemas for field in (schema.properties["spec"].properties or {})}
    if "runtimePatches" not in fields:
        yield Finding(
            "wrong",
            "Kubeflow Trainer",
            "older than 2.3: its TrainJobs lack runtimePatches, with which nodes mount the volume",
            INSTALL.format("manager"),
        )
    else:
        yield Finding("ok", "Kubeflow Trainer", f"has TrainJobs as of 2.3; tested with {TRAINER}")


def runtime(cluster: Cluster) -> Iterator[Finding]:
    """Whether a runtime for the TrainJobs exists, preferably our own."""
    objects, fix = CustomObjectsApi(cluster.client), f"kubectl apply -k k8s/multi-node -n {cluster.namespace}"
    if read(objects.get_namespaced_custom_object, GROUP, VERSION, cluster.namespace, "trainingruntimes", RUNTIME):
        yield Finding("ok", "runtime", f"{RUNTIME} exists")
    elif read(objects.get_cluster_custom_object, GROUP, VERSION, "clustertrainingruntimes", SHIPPED):
        words = f"no TrainingRuntime {RUNTIME}, so nodes use {SHIPPED}, with which a third preemption may fail the job"
        yield Finding("warn", "runtime", words, fix)
    else:
        yield Finding("wrong", "runtime", f"no TrainingRuntime {RUNTIME}, and no ClusterTrainingRuntime {SHIPPED}", fix)


def rights(cluster: Cluster, account: str) -> Iterator[Finding]:
    """Whether the account of the runs has the permissions for steps on several nodes."""
    review = AuthorizationV1Api(cluster.client).create_subject_access_review
    user = f"system:serviceaccount:{cluster.namespace}:{account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}", "system:authenticated"]
    refused: dict[str, list[str]] = {}
    for group, resource, subresource, verbs in RIGHTS:
        for verb in verbs:
            right = V1ResourceAttributes(group=group, resource=resource, subresource=subresource, verb=verb, namespace=cluster.namespace)
            request = V1SubjectAccessReview(spec=V1SubjectAccessReviewSpec(user=user, groups=groups, resource_attributes=right))
            if not read(review, request).status.allowed:
                refused.setdefault(f"{resource}/{subresource}".rstrip("/"), []).append(verb)
    if refused:
        fix = f"name the account in k8s/base/trainjobs.yaml, then {APPLY.format(cluster.namespace)}"
        words = ", ".join(f"{'/'.join(verbs)} {resource}" for resource, verbs in refused.items())
        yield Finding("wrong", f"rights of {account}", f"may not {words}", fix)
    else:
        yield Finding("ok", f"rights of {account}", "may create and watch TrainJobs")
