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

from dreamteacher.trainjob import GROUP, PLURAL, VERSION, Nodes
from pipelines.check.finding import APPLY, Cluster, Finding, read

TRAINER = "2.3.0"  # on which the pipelines ran, with JobSet 0.12.0
SOURCE = "https://github.com/kubeflow/trainer.git/manifests/overlays/{}?ref=v" + TRAINER
INSTALL = f"kubectl apply --server-side -k '{SOURCE}'"
RUNTIME: str = Nodes.model_fields["runtime"].default
RIGHTS = [(GROUP, PLURAL, "", verb) for verb in ("create", "get", "list", "watch", "delete")] + [
    ("", "pods", "", "get"),
    ("", "pods", "", "list"),
    ("", "pods", "log", "get"),
]


def trainer(cluster: Cluster) -> Iterator[Finding]:
    """That the cluster knows TrainJobs as the steps write them."""
    groups = {group.name for group in read(ApisApi(cluster.client).get_api_versions).groups}
    if GROUP not in groups:
        yield Finding("wrong", "Kubeflow Trainer", f"the cluster has no {GROUP}", INSTALL.format("manager"))
        return
    if "jobset.x-k8s.io" not in groups:
        yield Finding("wrong", "JobSet", "the cluster has none, and Trainer makes its pods by it", INSTALL.format("manager"))
    crd = read(ApiextensionsV1Api(cluster.client).read_custom_resource_definition, f"{PLURAL}.{GROUP}")
    served = {each.name: each.schema.open_apiv3_schema.properties["spec"].properties for each in crd.spec.versions if each.served}
    if "runtimePatches" not in served.get(VERSION, {}):
        yield Finding(
            "wrong",
            "Kubeflow Trainer",
            "older than 2.3: its TrainJobs have no runtimePatches, by which nodes get the volume",
            INSTALL.format("manager"),
        )
    else:
        yield Finding("ok", "Kubeflow Trainer", f"knows TrainJobs as of 2.3, tried with {TRAINER}")


def runtime(cluster: Cluster) -> Iterator[Finding]:
    """That the runtime of the TrainJobs is there."""
    what = f"runtime {RUNTIME}"
    if read(CustomObjectsApi(cluster.client).get_cluster_custom_object, GROUP, VERSION, "clustertrainingruntimes", RUNTIME):
        yield Finding("ok", what, "is there")
    else:
        mend = INSTALL.format("runtimes") if RUNTIME == "torch-distributed" else APPLY.format(cluster.namespace)
        yield Finding("wrong", what, "no ClusterTrainingRuntime of that name", mend)


def rights(cluster: Cluster, account: str) -> Iterator[Finding]:
    """That the account of the runs may do what the steps with several nodes do."""
    refused = []
    for group, resource, subresource, verb in RIGHTS:
        wanted = V1ResourceAttributes(group=group, resource=resource, subresource=subresource, verb=verb, namespace=cluster.namespace)
        user = f"system:serviceaccount:{cluster.namespace}:{account}"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}", "system:authenticated"]
        review = V1SubjectAccessReview(spec=V1SubjectAccessReviewSpec(user=user, groups=groups, resource_attributes=wanted))
        if not read(AuthorizationV1Api(cluster.client).create_subject_access_review, review).status.allowed:
            refused.append(f"{verb} {resource}{f'/{subresource}' if subresource else ''}")
    what = f"rights of {account}"
    if refused:
        mend = f"name the account in k8s/base/trainjobs.yaml, then {APPLY.format(cluster.namespace)}"
        yield Finding("wrong", what, f"it may not {', '.join(refused)}", mend)
    else:
        yield Finding("ok", what, "it may create and watch TrainJobs")
