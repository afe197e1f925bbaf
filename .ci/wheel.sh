#!/usr/bin/env bash
# Builds a wheel with the CPU operators and runs the operators' tests from it, without a compiler. They run in a fresh
# environment with the oldest PyTorch that is supported, and with that of the active environment, which builds the
# wheel.
#
#   .ci/wheel.sh SCRATCH    SCRATCH: an empty folder for all that it makes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(realpath "$1")
readonly scratch source="$scratch/source" away="$scratch/away" tools="$scratch/tools"
tests=(operators score_fusion negative_sampling hardest_negatives pixel_contrast contrast_module proposals)
tests=("${tests[@]/#/tests/test_}")
tests=("${tests[@]/%/.py}")

# A copy, so that no stale build gets into the wheel and none is left behind. The tests get a folder without the package.
mkdir -p "$source" "$away" "$tools"
git ls-files -z | xargs -0 cp --parents -t "$source"
cp -r "$source"/{tests,benchmarks,pyproject.toml} "$away"

command -v cmake >/dev/null || pip install -q cmake
SSKD_FAST_AOT=1 CMAKE_ARGS="${CMAKE_ARGS--DSSKD_FAST_CUDA=OFF}" \
    pip wheel -q --no-deps --no-build-isolation --wheel-dir "$scratch/dist" "$source"
wheel=$(echo "$scratch"/dist/*.whl)
[[ $wheel == *-cp311-abi3-linux_x86_64.whl ]] || { echo "unexpected tags: $wheel" >&2; exit 1; }

# A PATH without any compiler: Python's own programs need none but these.
for tool in uname dirname env; do ln -s "$(command -v "$tool")" "$tools"; done

# operators_run PYTHON SITE: the operators' tests, on the package of the folder SITE.
operators_run() {
    local python=$1 site=$2 cache="$scratch/cache"
    local bare=(env -u SSKD_FAST_BACKEND PATH="$tools" CXX=no-compiler CC=no-compiler SSKD_FAST_CACHE="$cache")
    (
        cd "$away"
        "${bare[@]}" "$python" - "$site" <<'CHECK'
import sys
from pathlib import Path

import torch

import sskd_fast
from sskd_fast import _native, kernels

for file in (Path(sskd_fast.__file__), _native.load(), Path(kernels.__file__)):
    assert file.is_relative_to(sys.argv[1]), f"{file} is not of the wheel in {sys.argv[1]}"
print(f"torch {torch.__version__} with {_native.load()}")
CHECK
        "${bare[@]}" "$python" -m pytest -q -n 2 --dist loadfile -p no:cacheprovider "${tests[@]}"
    )
    [[ -z $(find "$cache" -name '*.so' 2>/dev/null) ]] || { echo "operators were compiled in $cache" >&2; exit 1; }
}

python3 -m venv "$scratch/oldest"
"$scratch/oldest/bin/pip" install -q "$wheel" "torch==2.10.*" pytest pytest-xdist hypothesis
operators_run "$scratch/oldest/bin/python" "$scratch/oldest"
rm -rf "$scratch/oldest"  # gigabytes

# The same wheel with the PyTorch of this environment, and as on a processor without AVX-512.
pip install -q --no-deps --target "$scratch/newest" "$wheel"
rm "$scratch/newest/sskd_fast/lib/sskd_fast_cpu_v4.so"
PYTHONPATH="$scratch/newest" operators_run "$(command -v python)" "$scratch/newest"
