#!/usr/bin/env bash
# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
# Collect what `benchmarks/gpu.py` needs on a bare GPU machine.
# Usage: pack_gpu_kit.sh [FOLDER]        (default: gpu_kit, ignored by git)
# Environment: PYTHON, one that has torch, packaging, setuptools and wheel,
#   which the two source packages import to tell their version (default:
#   .venv/bin/python). KIT_MIB, the largest size allowed (default: 60).
#
# FOLDER/wheels holds Python packages, FOLDER/sdists the sources of mamba-ssm
# and causal-conv1d, whose CUDA kernels we compare with; the versions are in
# gpu_kit.txt. An existing FOLDER is replaced once all has been downloaded.
#
# The other machine needs Linux on x86-64, Python 3.12, PyTorch 2.11 with
# torchvision, Triton 3.6, numpy, OpenCV, matplotlib and scikit-learn, and no
# network. Copy the repository with FOLDER in it, and there, from its root:
#
#   python3 -m pip install --no-index --no-deps --target SITE \
#       FOLDER/wheels/*.whl
#   export PYTHONPATH=SITE:$PWD           # SITE: any new folder, absolute
#   export TRANSMAMBA_GPU_KIT=FOLDER      # for the kernels of mamba-ssm
#   python3 benchmarks/gpu.py --out DIR
set -euo pipefail

fail() {
    echo "pack_gpu_kit.sh: $*" >&2
    exit 1
}

HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
FOLDER=${1:-$ROOT/gpu_kit}
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
KIT_MIB=${KIT_MIB:-60}

"$PYTHON" -c 'import packaging, setuptools, torch, wheel' ||
    fail "$PYTHON lacks a package (run \`make test\`, or set PYTHON)"
if [ -e "$FOLDER" ] && [ ! -d "$FOLDER/wheels" ] &&
    [ -n "$(ls -A "$FOLDER")" ]; then
    fail "$FOLDER exists and is no kit; not replaced"
fi
mkdir -p "$(dirname "$FOLDER")"
NEW=$(mktemp -d "$(dirname "$FOLDER")/.gpu_kit.XXXXXX")
trap 'rm -rf "$NEW"' EXIT
chmod 755 "$NEW"
mkdir "$NEW/wheels" "$NEW/sdists"

# pip asks a source package for its version by running its setup.py, which
# imports torch (hence no isolation) and must not look for CUDA.
MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$PYTHON" -m pip download -qq --no-deps --no-build-isolation \
    --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
    --dest "$NEW/wheels" -r "$HERE/gpu_kit.txt" ||
    fail 'a download failed; nothing was changed'
mv "$NEW"/wheels/*.tar.gz "$NEW/sdists"

WANTED=$(grep -c == "$HERE/gpu_kit.txt")
FOUND=$(find "$NEW" -type f | wc -l)
[ "$FOUND" -eq "$WANTED" ] ||
    fail "$FOUND files for $WANTED packages; nothing was changed"
BYTES=$(cat "$NEW"/*/* | wc -c)
[ "$BYTES" -le $((KIT_MIB << 20)) ] ||
    fail "$((BYTES >> 20)) MiB, more than $KIT_MIB; nothing was changed"

rm -rf "$FOLDER"
mv "$NEW" "$FOLDER"
trap - EXIT
echo "$FOLDER: $FOUND packages, $(((BYTES + 1048575) >> 20)) MiB"
