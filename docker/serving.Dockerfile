# Fetches models for Triton and follows the alias on a cluster (k8s/serving). Without torch: a tenth of docker/Dockerfile's size.
# `dreamteacher fetch-model`, `deploy`, `follow`, `last-run` and `status` run in it.
#
#   docker build -f docker/serving.Dockerfile -t REGISTRY/dreamteacher-serving:git-$(git rev-parse HEAD) .
#
# BASE and the secrets are those of docker/Dockerfile; the versions those of constraints.txt.
ARG BASE=python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7

FROM ${BASE} AS build
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY constraints.txt ./
# mlflow-skinny is MLflow's client without its server; boto3 is for artifacts that MLflow's server does not proxy.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca \
    pip install --quiet --constraint constraints.txt mlflow-skinny boto3 kubernetes \
        "numpy>=2" pillow onnx "tritonclient[grpc]" pydantic pyyaml psutil "setuptools>=77"
COPY README.md LICENSE pyproject.toml dvc.yaml ./
COPY src/ src/
RUN pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . && pip install --quiet --no-deps --no-index dist/*.whl

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=dreamteacher PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp
USER 65532:0
# Fail the build if these commands import more than is installed.
RUN python3 -c "import dreamteacher.serving.delivery, dreamteacher.serving.webhook, dreamteacher.lifecycle.last_run, mlflow.tracking, kubernetes, boto3"
CMD ["dreamteacher", "fetch-model", "--help"]
