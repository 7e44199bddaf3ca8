# PostgreSQL from Debian's packages, for tests on a cluster that cannot have docker.io's image.
#   docker build --network host --build-arg BASE=localhost/dreamteacher-base:bookworm --tag localhost/postgres-debian:15 \
#       --file tests/cluster/postgres.Dockerfile tests/cluster
ARG BASE
FROM ${BASE}
RUN useradd --uid 999 --no-create-home postgres \
    && apt-get update -qq && apt-get install --yes --quiet --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH
COPY --chmod=755 postgres-entrypoint /usr/local/bin/
USER 999:999
ENTRYPOINT ["postgres-entrypoint"]
