#!/usr/bin/env bash
# Tests that need a GPU, its speed, and evidence, within LIMIT seconds on a machine that needs no network. What is done is not repeated.
#
#   OUT=benchmarks/results       where gpu/ (tests.log, speed.json, README.md) and SET/ (evidence) go
#   WHEELS=folder                wheels of what the machine lacks (docs/gpu.md); they are installed beside its own packages
#   SOURCE=folder SET=cifar10    the pictures of a set of benchmarks/paper/sets; without them there is no evidence
#   LABELS=250                   how many labels the evidence has
#   WORK=artifacts/paper         what benchmarks.paper made of them so far
#   LIMIT=480                    seconds in all
#   PYTHON=python3               the interpreter that has torch
#   DRY=1                        tiny networks and few steps, on a CPU too
set -uo pipefail
cd "$(dirname "$0")/.."
SOURCE=${SOURCE:-} SET=${SET:-cifar10} LABELS=${LABELS:-250} WORK=${WORK:-artifacts/paper}
OUT=${OUT:-benchmarks/results} LIMIT=${LIMIT:-480} PYTHON=${PYTHON:-python3}
export DREAMTEACHER_TRACKING=off PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
left() { echo $((LIMIT - SECONDS)); }
mkdir -p "$OUT/gpu"
# Results of an earlier run come along with the repository where OUT is elsewhere.
[ "$OUT" -ef benchmarks/results ] || cp -rn benchmarks/results/. "$OUT"

if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit
    export PYTHONPATH="$PYTHONPATH:$site"
fi
failed=0
timeout 120 "$PYTHON" -m pytest tests/gpu -p no:xdist -rs 2>&1 | tee "$OUT/gpu/tests.log" || failed=1
evidence=$((${#SOURCE} > 0 ? 240 : 10))
timeout "$(left)" "$PYTHON" -m benchmarks.gpu --seconds $(($(left) - evidence)) --out "$OUT/gpu" ${DRY:+--dry} || failed=1
if [ -n "$SOURCE" ]; then
    # What the time ends goes on from its checkpoint when the same command is given again with the same WORK.
    few=(teacher.size=tiny teacher.compile=false {teacher,distill,finetune}.{steps,batch_size}=2 teacher.samples=0)
    timeout "$(left)" "$PYTHON" -m benchmarks.paper label-efficiency "$SET" --source "$SOURCE" --work "$WORK" --out "$OUT" \
        --labels "$LABELS" --seeds 0 1 2 3 4 --pretraining-seeds 0 ${DRY:+--as dry --seeds 0 "${few[@]/#/--set=}"} || failed=1
fi
exit $failed
