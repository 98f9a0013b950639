#!/usr/bin/env bash
# Runs `easel bench gpu` from a checkout, on a machine on which Easel is not installed and which has
# no network. It takes the same options, for example: bash bench/gpu_check.sh --minutes 5
#
# Beforehand, bench/gpu_wheels.sh fetches what the machine lacks into .whl, where there is a network.
#
#   PYTHON=python3        the interpreter, which needs torch and Easel's other dependencies
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
if ls .whl/*.whl > /dev/null 2>&1; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$SITE" .whl/*.whl
fi
# The server asks for the version of its own installation. This folder stands for one.
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
INFO="$SITE/easel_server-$VERSION.dist-info"
mkdir -p "$INFO"
printf 'Metadata-Version: 2.1\nName: easel-server\nVersion: %s\n' "$VERSION" > "$INFO/METADATA"
export PYTHONPATH="$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
"$PYTHON" -m bench gpu "$@"
