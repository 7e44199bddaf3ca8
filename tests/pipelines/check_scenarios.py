"""What can be wrong with a cluster, and the commands that make it so and undo it: record_check.py runs them, test_check.py replays."""

import json
from pathlib import Path
from typing import NamedTuple

from pipelines.resources import Profile

# Steps so small that one node takes them, and two GPU nodes those of the profiles with GPUs.
PROFILES = """
environment:
  config_map: {dreamteacher-env: [MLFLOW_TRACKING_URI, MLFLOW_S3_ENDPOINT_URL, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, DREAMTEACHER_RESULTS]}
  secrets: {dreamteacher-s3: [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]}
  step_secrets: {record: {dreamteacher-git: [GIT_HOST, GIT_USERNAME, GIT_TOKEN]}}
  image_pull_secrets: []
  volume: {claim: dreamteacher-runs, mount: /runs}
  pool_label: dreamteacher.io/pool
profiles:
  cpu:
    default: {pool: cpu, cpu: 100m, memory: 128Mi, timeout_h: 1, retries: 2}
    steps: {}
  gpu:
    default: {pool: cpu, cpu: 100m, memory: 128Mi, timeout_h: 1, retries: 2}
    steps: {train-teacher: {pool: gpu, gpus: 8, cpu: "32", memory: 256Gi}}
  nodes:
    default: {pool: cpu, cpu: 100m, memory: 128Mi, timeout_h: 1, retries: 2}
    steps: {train-teacher: {pool: gpu, nodes: 2, gpus: 8, cpu: "32", memory: 256Gi}}
  tight:
    default: {pool: cpu, cpu: 1900m, memory: 128Mi, timeout_h: 1, retries: 2}
    steps: {}
  large:
    default: {pool: cpu, cpu: "4", memory: 2Ti, timeout_h: 1, retries: 2}
    steps: {}
"""
GOOD, OF_ROOT = "registry.example/dreamteacher-python:git-1a2b3c4", "registry.example/dreamteacher-python:git-4444444"
UNKNOWN, NO_PYTHON = "registry.example/dreamteacher-python:git-9999999", "localhost/pause:1"


class Scenario(NamedTuple):
    """One thing that is wrong. `pod`: the finding comes of the trial pod, or comes beside it."""

    name: str
    provoke: str = ""
    mend: str = ""
    profile: str = "cpu"
    pod: bool = False
    image: str = GOOD
    gpus: int = 8  # of each GPU node
    namespace: str = "dt"
    kfp_namespace: str = "kubeflow"
    context: str | None = None
    registry: bool = False  # the image lies in a private one
    pause: float = 0  # seconds until the cluster has noticed

    def read_profile(self, folder: Path) -> Profile:
        """What runs, of a resources.yaml that is written to `folder`."""
        file = folder / "resources.yaml"
        file.write_text(PROFILES.replace("image_pull_secrets: []", "image_pull_secrets: [regcred]") if self.registry else PROFILES)
        return Profile(self.profile, self.image, file)


BOUND = "kubectl wait -n dt pvc/dreamteacher-runs --for=jsonpath='{.status.phase}'=Bound --timeout=60s"
MANY = '"accessModes": ["ReadWriteMany"]'


def patched(name: str, namespace: str, **values: str) -> str:
    pairs = ", ".join(f'"{key}": "{value}"' for key, value in values.items())
    return f"""kubectl patch configmap {name} -n {namespace} --type merge -p '{{"data": {{{pairs}}}}}'"""


def defaults(text: str) -> str:
    return patched("workflow-controller-configmap", "kubeflow", workflowDefaults=text.replace("\n", "\\n"))


def environment(**values: str) -> str:
    return patched("dreamteacher-env", "dt", **values)


def retries(policy: str) -> str:
    return defaults("spec:\n  ttlStrategy: {secondsAfterCompletion: 3600}\n  templateDefaults:\n    retryStrategy: " + policy)


def changed(kind: str, name: str, command: str) -> tuple[str, str]:
    """The object of namespace dt is kept, then the command is run; and the command that brings the object back."""
    file = f"/tmp/kept-{name}.json"
    return f"kubectl get {kind} {name} -n dt -o json > {file}; {command}", f"kubectl replace --force -f {file} || kubectl create -f {file}"


def without(kind: str, name: str) -> tuple[str, str]:
    return changed(kind, name, f"kubectl delete {kind} {name} -n dt")


def patch(kind: str, name: str, change: str) -> tuple[str, str]:
    kind_of = "json" if change.startswith("[") else "merge"
    return changed(kind, name, f"kubectl patch {kind} {name} -n dt --type {kind_of} -p '{change}'")


def claim(spec: str = "") -> tuple[str, str]:
    """Another claim of that name instead, or none; and the first one back, on the volume that it had."""
    gone = "kubectl delete pvc dreamteacher-runs -n dt --ignore-not-found"
    free = """kubectl patch pv runs -p '{"spec": {"claimRef": null}}'"""
    meta = '"metadata": {"name": "dreamteacher-runs", "namespace": "dt"}'
    size = '"resources": {"requests": {"storage": "200Gi"}}'
    other = f'{{"apiVersion": "v1", "kind": "PersistentVolumeClaim", {meta}, "spec": {{{size}, {spec}}}}}'
    make = f"; echo '{other}' | kubectl create -f -" if spec else ""
    return gone + make, f"{gone}; {free}; kubectl apply -k k8s/base -n dt; {BOUND}"


def leaving_claim() -> tuple[str, str]:
    gone, back = claim()
    hold = 'kubectl patch pvc dreamteacher-runs -n dt -p \'{"metadata": {"finalizers": %s}}\''
    return hold % '["example.org/hold"]' + f"; {gone} --wait=false", hold % "null" + f"; {back}"


def lost_claim() -> tuple[str, str]:
    gone, back = claim()
    lose = """kubectl delete pv runs --wait=false; kubectl patch pv runs -p '{"metadata": {"finalizers": null}}'"""
    keep = """kubectl get pv runs -o json | grep -v '"resourceVersion"' > /tmp/kept-pv.json"""
    return f"{keep}; {lose}", f"{gone}; kubectl create -f /tmp/kept-pv.json; {back}"


def unmountable() -> tuple[str, str]:
    volume = (
        '{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "gone"}, "spec": {"capacity": {"storage": "200Gi"}, '
        '"accessModes": ["ReadWriteMany"], "hostPath": {"path": "/tmp/check-gone", "type": "Directory"}}}'
    )
    other, back = claim(MANY + ', "volumeName": "gone"')
    return f"echo '{volume}' | kubectl create -f -; {other}; {BOUND}", f"{back}; kubectl delete pv gone"


def leaving_namespace() -> tuple[str, str]:
    hold = 'kubectl patch configmap stay -n leaving -p \'{"metadata": {"finalizers": %s}}\''
    make = "kubectl create namespace leaving; kubectl create configmap stay -n leaving"
    held = hold % '["example.org/hold"]'
    return f"{make}; {held}; kubectl delete namespace leaving --wait=false", hold % "null"


def daemon_set() -> tuple[str, str]:
    """On each node a pod that asks for a fifth of a core."""
    container = '{"name": "main", "image": "localhost/pause:1", "resources": {"requests": {"cpu": "200m"}}}'
    template = f'{{"metadata": {{"labels": {{"app": "logs"}}}}, "spec": {{"containers": [{container}]}}}}'
    spec = f'{{"selector": {{"matchLabels": {{"app": "logs"}}}}, "template": {template}}}'
    made = f'{{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {{"name": "logs", "namespace": "kubeflow"}}, "spec": {spec}}}'
    return f"echo '{made}' | kubectl create -f -", "kubectl delete daemonset logs -n kubeflow"


def not_ready(name: str) -> str:
    condition = '{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}'
    return f'kubectl patch node {name} --subresource=status -p \'{{"status": {{"conditions": [{condition}]}}}}\''


def server(image: str) -> str:
    return f"kubectl set image -n kubeflow deployment/ml-pipeline main={image}; kubectl rollout status -n kubeflow deployment/ml-pipeline"


def crd(name: str, change: str = "") -> tuple[str, str]:
    """The kind changed, or gone; and back again."""
    file = f"/tmp/kept-{name}.json"
    act = f"kubectl patch crd {name} --type json -p '{change}'" if change else f"kubectl delete crd {name}"
    keep = f"kubectl get crd {name} -o json | grep -v '\"resourceVersion\"' > {file}"
    return f"{keep}; {act}", f"kubectl replace -f {file} || kubectl create -f {file}; sleep 3"


def runtimes(*names: str) -> tuple[str, str]:
    kept = [f"kubectl get {name} -o json" for name in names]
    files = [f"/tmp/kept-runtime-{number}.json" for number, _ in enumerate(names)]
    take = [f"{get} > {file}; kubectl delete {name}" for get, file, name in zip(kept, files, names, strict=True)]
    return "; ".join(take), "; ".join(f"kubectl create -f {file}" for file in files)


ALWAYS = retries('{limit: \\"0\\", retryPolicy: Always}')
BASE = "kubectl apply -k k8s/base -n dt"
KFP_IMAGE = "ghcr.io/kubeflow/kfp-api-server:2.17.0"
POOL = "dreamteacher.io/pool"
CLASS = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "late"}, "provisioner": "example.org/none"}
LATE_CLASS = f"kubectl create -f - <<< '{json.dumps(CLASS | {'volumeBindingMode': 'WaitForFirstConsumer'})}'"
late, late_back = claim(MANY + ', "storageClassName": "late"')

SCENARIOS = [
    Scenario("healthy", profile="nodes", pod=True),
    Scenario("healthy gpu", profile="gpu"),
    # KFP
    Scenario("stock retry policy", retries('{limit: \\"2\\", retryPolicy: OnError}'), ALWAYS),
    Scenario("no retry policy", defaults(""), ALWAYS),
    Scenario("groups repeated", retries('{limit: \\"2\\", retryPolicy: Always}'), ALWAYS),
    Scenario("broken workflow defaults", defaults("spec: [a, {"), ALWAYS),
    Scenario("old KFP", server("ghcr.io/kubeflow/kfp-api-server:1.8.5"), server(KFP_IMAGE)),
    Scenario(
        "KFP down",
        "kubectl scale -n kubeflow deployment ml-pipeline --replicas=0",
        "kubectl scale -n kubeflow deployment ml-pipeline --replicas=1; kubectl rollout status -n kubeflow deployment/ml-pipeline",
        pause=3,
    ),
    Scenario("KFP elsewhere", kfp_namespace="default"),
    # names
    Scenario("no namespace", namespace="nowhere", pod=True),
    Scenario("no account", *without("serviceaccount", "pipeline-runner"), pod=True),
    Scenario("no config map", *without("configmap", "dreamteacher-env"), pod=True),
    Scenario("config map lacks a key", *patch("configmap", "dreamteacher-env", '[{"op": "remove", "path": "/data/AWS_ENDPOINT_URL"}]')),
    Scenario("no secret", *without("secret", "dreamteacher-s3")),
    Scenario("secret lacks a key", *patch("secret", "dreamteacher-git", '[{"op": "remove", "path": "/data/GIT_HOST"}]')),
    Scenario("secret with a line end", *patch("secret", "dreamteacher-git", '{"data": {"GIT_TOKEN": "dAo="}}')),
    Scenario("no pull secret", registry=True),
    Scenario(
        "pull secret of another type",
        "kubectl create secret generic regcred -n dt --from-literal=password=x",
        "kubectl delete secret regcred -n dt",
        registry=True,
    ),
    Scenario("no claim", *claim(), pod=True),
    Scenario("unbound claim", *claim(MANY + ', "storageClassName": "nfs"'), pause=2),
    Scenario("claim for one node", *claim('"accessModes": ["ReadWriteOnce"]'), pause=2),
    Scenario("claim that waits for a pod", LATE_CLASS + "; " + late, late_back + "; kubectl delete storageclass late", pause=2),
    Scenario("claim being deleted", *leaving_claim(), pause=1),
    Scenario("claim without its volume", *lost_claim(), pause=3),
    Scenario("namespace being deleted", *leaving_namespace(), namespace="leaving", pause=1),
    Scenario(
        "quota", "kubectl create quota small -n dt --hard=requests.cpu=50m,requests.memory=64Gi,pods=5", "kubectl delete quota small -n dt"
    ),
    # nodes
    Scenario("no label", f"kubectl label node node1 {POOL}-", f"kubectl label node node1 {POOL}=cpu"),
    Scenario("no GPU node", f"kubectl label node gpu1 gpu2 {POOL}-", f"kubectl label node gpu1 gpu2 {POOL}=gpu", profile="gpu"),
    Scenario("no device plugin", profile="gpu", gpus=0),
    Scenario("few GPUs", profile="gpu", gpus=4),
    Scenario("too small nodes", profile="large"),
    Scenario("room of DaemonSets", *daemon_set(), profile="tight", pause=4),
    Scenario("foreign taint", "kubectl taint node node1 team=a:NoSchedule", "kubectl taint node node1 team:NoSchedule-"),
    Scenario("cordoned", "kubectl cordon node1", "kubectl uncordon node1"),
    Scenario("node not ready", not_ready("gpu1") + "; " + not_ready("gpu2"), profile="gpu"),
    Scenario(
        "no taint on GPU nodes",
        "kubectl taint node gpu1 gpu2 nvidia.com/gpu-",
        "kubectl taint node gpu1 gpu2 nvidia.com/gpu=present:NoSchedule",
        profile="gpu",
    ),
    Scenario("fewer nodes than a TrainJob has", "kubectl cordon gpu2", "kubectl uncordon gpu2", profile="nodes"),
    Scenario(
        "autoscaler",
        f"kubectl label node gpu1 gpu2 {POOL}-; kubectl create configmap cluster-autoscaler-status -n kube-system",
        f"kubectl label node gpu1 gpu2 {POOL}=gpu; kubectl delete configmap cluster-autoscaler-status -n kube-system",
        profile="gpu",
    ),
    # Kubeflow Trainer
    Scenario("no JobSet", *crd("jobsets.jobset.x-k8s.io"), profile="nodes", pause=3),
    Scenario(
        "old Trainer",
        *crd(
            "trainjobs.trainer.kubeflow.org",
            '[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"}]',
        ),
        profile="nodes",
        pause=1,
    ),
    Scenario("Trainer's runtime", *runtimes("trainingruntime/dreamteacher-torch -n dt"), profile="nodes"),
    Scenario(
        "no runtime", *runtimes("trainingruntime/dreamteacher-torch -n dt", "clustertrainingruntime/torch-distributed"), profile="nodes"
    ),
    Scenario("no rights", *without("rolebinding", "dreamteacher-trainjobs"), profile="nodes"),
    # the trial pod
    Scenario("image unknown to the registry", image=UNKNOWN, pod=True),
    Scenario("image of root", image=OF_ROOT, pod=True),
    Scenario("image without Python", image=NO_PYTHON, pod=True),
    Scenario(
        "volume of another user",
        "chown 1000:1000 /tmp/check-runs; chmod 0755 /tmp/check-runs",
        "chown 0:0 /tmp/check-runs; chmod 2775 /tmp/check-runs",
        pod=True,
    ),
    Scenario("folder of another user", "install -d -m 755 -o 1000 /tmp/check-runs/dvc-cache", "rmdir /tmp/check-runs/dvc-cache", pod=True),
    Scenario(
        "KFP sets another user",
        "kubectl create configmap pipeline-install-config -n kubeflow"
        " --from-literal=defaultSecurityContextRunAsUser=1001 --from-literal=defaultSecurityContextRunAsGroup=1002",
        "kubectl delete configmap pipeline-install-config -n kubeflow",
        pod=True,
    ),
    Scenario("volume cannot be mounted", *unmountable(), pod=True, pause=2),
    Scenario("pod finds no node", "kubectl taint node node1 team=a:NoSchedule", "kubectl taint node node1 team:NoSchedule-", pod=True),
    Scenario("pod beyond a quota", "kubectl create quota small -n dt --hard=pods=0", "kubectl delete quota small -n dt", pod=True, pause=2),
    Scenario("MLflow does not answer", environment(MLFLOW_TRACKING_URI="http://10.88.0.1:1"), BASE, pod=True),
    Scenario("another server than MLflow", environment(MLFLOW_TRACKING_URI="http://seaweedfs.kubeflow.svc:8333"), BASE, pod=True),
    Scenario("MLflow of no such name", environment(MLFLOW_TRACKING_URI="http://mlflow.nowhere.svc:5000"), BASE, pod=True),
    Scenario("MLflow refuses the name", environment(MLFLOW_TRACKING_URI="http://stranger.mlflow.svc:5000"), BASE, pod=True),
    Scenario("MLflow is a file", environment(MLFLOW_TRACKING_URI="file:///tmp/mlruns"), BASE, pod=True),
    Scenario("S3 does not answer", environment(AWS_ENDPOINT_URL="http://10.88.0.1:1"), BASE, pod=True),
    Scenario("another server than S3", environment(AWS_ENDPOINT_URL="http://mlflow.mlflow.svc:5000"), BASE, pod=True),
    Scenario("S3 refuses the keys", *patch("secret", "dreamteacher-s3", '{"data": {"AWS_SECRET_ACCESS_KEY": "d3Jvbmc="}}'), pod=True),
    Scenario("no bucket for results", environment(DREAMTEACHER_RESULTS="s3://missing/results"), BASE, pod=True),
    # users who may read little
    Scenario("user of one namespace", profile="nodes", context="team", pod=True),
    Scenario("user without rights", profile="nodes", context="guest", pod=True),
    # all that hangs on Trainer goes with it, so this is the last
    Scenario(
        "no Trainer",
        "kubectl delete crd {trainjobs,trainingruntimes,clustertrainingruntimes}.trainer.kubeflow.org",
        profile="nodes",
        pause=5,
    ),
]
