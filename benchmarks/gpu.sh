#!/usr/bin/env bash
# Tests that need a GPU, its speed, and evidence, within LIMIT seconds on a machine that needs no network. What is done is not repeated.
#
#   OUT=benchmarks/results/gpu   where tests.log, speed.json, evidence.json and README.md go
#   WHEELS=folder                wheels of what the machine lacks (docs/gpu.md); they are installed beside its own packages
#   DATA=folder SET=cifar10      a public set as benchmarks.datasets reads it, or what ingest made of it; without it there is no evidence
#   LIMIT=480                    seconds in all
#   PYTHON=python3               the interpreter that has torch
#   DRY=1                        tiny networks, on a CPU too
set -uo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-} OUT=${OUT:-benchmarks/results/gpu} LIMIT=${LIMIT:-480} PYTHON=${PYTHON:-python3} SET=${SET:-cifar10}
dry=${DRY:+--dry}
export DREAMTEACHER_TRACKING=off PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
left() { echo $((LIMIT - SECONDS)); }
mkdir -p "$OUT"
# Results of an earlier run come along with the repository where OUT is elsewhere.
[ -d benchmarks/results/gpu ] && cp -n benchmarks/results/gpu/*.json "$OUT" 2>/dev/null

if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit
    export PYTHONPATH="$PYTHONPATH:$site"
fi
failed=0
timeout 120 "$PYTHON" -m pytest tests/gpu -p no:xdist -rs 2>&1 | tee "$OUT/tests.log" || failed=1
evidence=$((${#DATA} > 0 ? 170 : 10))
timeout "$(left)" "$PYTHON" -m benchmarks.gpu speed --seconds $(($(left) - evidence)) --out "$OUT" $dry || failed=1
if [ -n "$DATA" ]; then
    timeout "$(left)" "$PYTHON" -m benchmarks.gpu evidence --seconds $(($(left) - 80)) --set "$SET" --data "$DATA" --out "$OUT" $dry || failed=1
fi
"$PYTHON" -m benchmarks.gpu table --out "$OUT" || failed=1
exit $failed
