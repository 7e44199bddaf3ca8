# Triton for tests on a cluster that cannot have NVIDIA's image: the tritonserver of the nvidia-pytriton wheel, in the project's image.
#   docker build --network host --build-arg IMAGE="$DREAMTEACHER_IMAGE" --build-arg TRITON="$(python scripts/pins.py triton)" \
#       --tag triton-of-wheel:0.7.0 --file tests/cluster/triton.Dockerfile tests/cluster
ARG IMAGE
FROM ${IMAGE}
ARG TRITON
USER 0
RUN apt-get update -qq && apt-get install --yes --quiet --no-install-recommends libpython3.11 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca \
    pip install --quiet --no-cache-dir --no-deps "${TRITON}"
COPY --chmod=755 tritonserver /usr/local/bin/tritonserver
USER 65532:0
