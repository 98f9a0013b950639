#!/usr/bin/env bash
# Checks Easel on a machine with an NVIDIA GPU, in one run of nine minutes. Its stages are the
# machine, each kernel, a small model, the released size with random weights, and the server.
#
# The most valuable stage comes first. Each one is a process of its own with a time limit, and every
# row of results is written as soon as it is known. So an early end only loses what has not run yet.
# The exit status is 1 if a stage or a case failed, or if a result is wrong.
#
#   bash bench/gpu_check.sh                    on a GPU
#   GPU_CHECK_TINY=1 bash bench/gpu_check.sh   the same code on a CPU, in tiny sizes and with
#                                              Triton's interpreter
#
#   OUT=/tmp/gpu_check_out       the folder for results.jsonl, log.txt, env.txt, profile.txt and
#                                server.txt
#   PYTHON=python3               the interpreter, which needs Easel's dependencies
#   GPU_CHECK_STAGES="env kernels model released server compiled"
#   GPU_CHECK_FORMATS="bf16 int8 int4 int8x fp8"   the weights' formats in the stage "released".
#                                "int8x" and "int4x" quantise the experts only, "small" everything
#   GPU_CHECK_BUDGET=530         the seconds that the whole run may take
#   GPU_CHECK_SLOW=1             the factor by which each stage's time limit is longer
#
# On a machine without a network, bench/gpu_wheels.sh fetches the missing wheels into .whl
# beforehand. This script installs them into a folder of its own.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export OUT="${OUT:-/tmp/gpu_check_out}"
mkdir -p "$OUT" && rm -f "$OUT"/{log,env,profile,server}.txt && : > "$OUT/results.jsonl" || exit 2
PYTHON="${PYTHON:-python3}"
export GPU_CHECK_TINY="${GPU_CHECK_TINY:-0}"
BUDGET="${GPU_CHECK_BUDGET:-530}"
STAGES="${GPU_CHECK_STAGES:-env kernels model released server compiled}"
FORMATS="${GPU_CHECK_FORMATS:-bf16 int8 int4 int8x fp8}"
START=$(date +%s)
FAILED=0
WORK=$(mktemp -d) || exit 2
trap 'rm -rf "$WORK"' EXIT
export WORK
export PYTHONPATH="$WORK/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$WORK/triton}"
if [ "$GPU_CHECK_TINY" = 1 ]; then
    export TRITON_INTERPRET=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
else
    export TRITON_INTERPRET=0
fi

left() { echo $((BUDGET - $(date +%s) + START)); }
say() { echo "[$(($(date +%s) - START)) s] $*" | tee -a "$OUT/log.txt"; }
requested() { case " $STAGES " in *" $1 "*) return 0 ;; esac; return 1; }

# check SECONDS STAGE [ARGUMENT...]: run a stage for at most so long, and never beyond the budget. A
# stage that fails or is stopped does not end the others.
check() {
    local most=$(($1 * ${GPU_CHECK_SLOW:-1})) room status
    shift
    room=$(left)
    [ "$room" -lt "$most" ] && most=$room
    if [ "$most" -lt 8 ]; then
        say "$*: no time left"
        return
    fi
    say "== $* (at most $most s)"
    timeout -k 5 "$most" "$PYTHON" -W ignore -m bench.gpu_check "$@" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || FAILED=1
    say "== $*: exit status $status"
}

if ls .whl/*.whl > /dev/null 2>&1; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$WORK/site" .whl/*.whl 2>&1 | tail -3
fi
# The server asks for the version of its own installation. This folder stands for one.
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
INFO="$WORK/site/easel_server-$VERSION.dist-info"
mkdir -p "$INFO"
printf 'Metadata-Version: 2.1\nName: easel-server\nVersion: %s\n' "$VERSION" > "$INFO/METADATA"

if requested env; then
    { nvidia-smi; uname -a; nproc; free -g; df -h "$WORK"; "$PYTHON" -m pip list; } \
        > "$OUT/env.txt" 2>&1
    check 45 env
fi
requested kernels && check 100 kernels
requested model && check 80 model
if requested released; then
    for formats in $FORMATS; do
        check 75 released "$formats"
        [ "$(left)" -lt 130 ] && break # the rest of the time is for the server
    done
fi
requested server && check 110 server
requested compiled && [ "$(left)" -gt 60 ] && check 120 released bf16 compiled
say "done; the results are in $OUT:"
"$PYTHON" -m bench.gpu_check summary || FAILED=1
exit "$FAILED"
