# SeaweedFS from its Go module, for tests on a cluster that cannot have docker.io's image.
#   cd "$(mktemp -d)" && go mod init weed && go get github.com/seaweedfs/seaweedfs/weed@VERSION
#   CGO_ENABLED=0 go build -ldflags '-s -w' github.com/seaweedfs/seaweedfs/weed
#   docker build --build-arg BASE=localhost/dreamteacher-base:bookworm --tag localhost/seaweedfs:go --file .../tests/cluster/object-store.Dockerfile .
ARG BASE
FROM ${BASE}
COPY --chmod=755 weed /usr/bin/weed
USER 1000:1000
ENTRYPOINT ["/usr/bin/weed"]
