#!/usr/bin/env bash
# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
# Test with several processes, one per GPU (or per CPU share without GPUs).
# Usage: dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py]
# Environment: NNODES NODE_RANK MASTER_ADDR PORT PYTHON
set -euo pipefail

CONFIG=$1
CHECKPOINT=$2
PROCESSES=$3
TOOLS=$(dirname "$0")

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$PROCESSES" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
