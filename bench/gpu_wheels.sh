#!/usr/bin/env bash
# Fetches the wheels for bench/gpu_check.sh into .whl (24 MB), on a machine with a network, in the
# versions of constraints.txt. They are those that a CUDA machine with Python 3.12, torch 2.11 and
# no network lacked.
#
#   bash bench/gpu_wheels.sh [WHEEL...]   wheels to fetch besides these: the report names what a
#                                         machine lacks
#
#   PYTHON=python3        the interpreter that has pip
#   WHEELS_PYTHON=3.12    the version of Python on the machine with the GPU, which is an x86_64
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VERSION="${WHEELS_PYTHON:-3.12}"
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 39 34 31 28 27 26 24 17; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
mkdir -p .whl
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: -c constraints.txt -d .whl \
    --python-version "$VERSION" --implementation cp \
    --abi "cp${VERSION/./}" --abi abi3 --abi none "${platforms[@]}" \
    transformers gguf msgspec pyzmq typing-extensions \
    fastapi starlette annotated-doc opentelemetry-api uvicorn sse-starlette \
    pydantic pydantic-core pydantic-settings annotated-types typing-inspection python-dotenv \
    jsonschema-rs backports.zstd "$@"
ls .whl
