#!/usr/bin/env bash
# Builds the CPU image without an image registry and runs tests/image/checks.py on it: `make test-image`.
#
#   BASE=NAME      use this base image instead of building one from Debian's packages
#   VARIANT=cuda   build the CUDA variant; checks still run on CPU
#
# Uses a running Docker engine, or starts one (as root) and stops it at the end. Debian 12's engine suffices.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
stop=()
trap 'if [ ${#stop[@]} -gt 0 ]; then kill "${stop[@]}"; wait; fi; rm -rf "$work"' EXIT

install() { # packages of Debian that are not there yet
    local missing=()
    for package; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] || { apt-get update -qq && apt-get install --yes --quiet --no-install-recommends "${missing[@]}"; }
}

if ! docker info >/dev/null 2>&1; then
    install docker.io
    # No bridge: neither the build (host network) nor the checks (no network) use it, and it needs iptables in the kernel.
    dockerd --bridge=none --iptables=false >"$work/dockerd.log" 2>&1 &
    stop+=($!)
    for _ in $(seq 60); do docker info >/dev/null 2>&1 && break || sleep 1; done
    docker info >/dev/null || { tail "$work/dockerd.log" >&2; exit 1; }
fi
# BuildKit is a plugin of newer clients and built into Debian's.
docker=docker
docker buildx version >/dev/null 2>&1 || docker=/usr/bin/docker
export DOCKER_BUILDKIT=1

if [ -z "${BASE:-}" ]; then
    BASE=localhost/dreamteacher-base:bookworm
    if ! docker image inspect "$BASE" >/dev/null 2>&1; then
        install debootstrap
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base" >"$work/debootstrap.log" ||
            { tail "$work/debootstrap.log" >&2; exit 1; }
        tar -C "$work/base" -c . | docker import - "$BASE"
    fi
fi

# The build asks the package index that pip asks here.
python scripts/pip_secrets.py "$work"
secrets=()
for secret in pip_conf pip_ca; do
    [ ! -e "$work/$secret" ] || secrets+=(--secret "id=$secret,src=$work/$secret")
done

revision=$(git describe --always --abbrev=40 --exclude='*' --dirty)
export DREAMTEACHER_IMAGE="localhost/dreamteacher-python:${VARIANT:-cpu}-$revision"
"$docker" build --network host --progress plain "${secrets[@]}" --file docker/Dockerfile --tag "$DREAMTEACHER_IMAGE" \
    --build-arg BASE="$BASE" --build-arg VARIANT="${VARIANT:-cpu}" --build-arg REVISION="$revision" \
    --build-arg VERSION="$(python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')" .
docker images "$DREAMTEACHER_IMAGE"
pytest tests/image/checks.py
