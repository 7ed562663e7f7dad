#!/usr/bin/env bash
# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
# Train with several processes, one per GPU (or per CPU share without GPUs).
# Usage: dist_train.sh CONFIG PROCESSES [arguments of train.py]
# Environment: NNODES NODE_RANK MASTER_ADDR PORT PYTHON
set -euo pipefail

CONFIG=$1
PROCESSES=$2
TOOLS=$(dirname "$0")

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$PROCESSES" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
