#!/bin/bash
# Measure training on one GPU: about 7 minutes on an H100. Nothing is downloaded. The step `parallel` needs two.
#
#     OUT=results CHARS=shards/tinyshakespeare_char GPT2=shards/tinyshakespeare NANOGPT_DIR=... bash bench/gpu.sh [--smoke] [STEP ...]
#
# CHARS is a build of characters, GPT2 one with GPT-2's tokenizer; bench/README.md says how to make them. PYTHON is the Python to
# use (default: python3). Each step has a time limit, and a step that fails does not end the others. $OUT/results.jsonl has a
# line per result and $OUT/log.txt everything that was printed. --smoke runs tiny models on a CPU.
# Steps: environment tests chars eager compiled memory precision resume profile large parallel (default: all).
set -u
cd "$(dirname "$0")/.."
: "${OUT:?must name a folder for the results}" "${CHARS:?must name a build of characters}" "${GPT2:?must name a build with the tokenizer gpt2}"
PYTHON=${PYTHON:-python3}
SMOKE=
if [ "${1:-}" = --smoke ]; then SMOKE=--smoke; shift; fi
STEPS=${*:-environment tests chars eager compiled memory precision resume profile large parallel}
LIMIT_FACTOR=${LIMIT_FACTOR:-1} # multiplies the time limits, for slow machines
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SCRATCH=${SCRATCH:-$(mktemp -d)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
RESULTS=(--results "$OUT/results.jsonl" --scratch "$SCRATCH" $SMOKE)

is_selected() { [[ " $STEPS " == *" $1 "* ]]; }

# run_limited SECONDS NAME COMMAND...
run_limited() {
  local limit=$(($1 * LIMIT_FACTOR)) name=$2 begin=$SECONDS status
  shift 2
  echo "== $name: $*" | tee -a "$OUT/log.txt"
  timeout -k 5 "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt" | tail -n 40
  status=${PIPESTATUS[0]}
  echo "{\"part\": \"$name\", \"exit_status\": $status, \"seconds\": $((SECONDS - begin))}" | tee -a "$OUT/results.jsonl"
}

is_selected environment && run_limited 60 environment "$PYTHON" bench/gpu.py environment "${RESULTS[@]}"
if is_selected compiled && [ -z "$SMOKE" ]; then # fills the compiler's cache while the tests run, which measure no time
  "$PYTHON" bench/gpu.py steps "$GPT2" "${RESULTS[@]}" --label warm-up --compile --warm-up-only > "$OUT/warm_up.txt" 2>&1 &
fi
if is_selected tests; then
  workers=()
  "$PYTHON" -c 'import xdist' 2> /dev/null && workers=(-n 4)
  run_limited 120 tests "$PYTHON" -m pytest tests/train/test_cuda.py -q -p no:cacheprovider "${workers[@]}"
fi
wait
if is_selected chars; then
  preset=shakespeare-gpu-eager
  [ -n "$SMOKE" ] && preset=smoke
  run_limited 150 chars "$PYTHON" bench/time_to_loss.py "$CHARS" --preset $preset --seeds 1 --target "${TARGET:-1.4697}" --curves "$OUT/curves.json" --scratch "$SCRATCH"
fi
is_selected eager && run_limited 90 eager "$PYTHON" bench/gpu.py steps "$GPT2" "${RESULTS[@]}" --label eager --profile --trainers plain,plain+graph,modern,modern+graph,nanogpt
is_selected compiled && run_limited 150 compiled "$PYTHON" bench/gpu.py steps "$GPT2" "${RESULTS[@]}" --label compiled $([ -n "$SMOKE" ] || echo --compile) --profile
is_selected memory && run_limited 60 memory "$PYTHON" bench/gpu.py steps "$GPT2" "${RESULTS[@]}" --label memory --batch-size 16 --block-size 256 --trainers plain+graph,modern+graph,nanogpt
is_selected precision && run_limited 60 precision "$PYTHON" bench/gpu.py precision "$CHARS" "${RESULTS[@]}" --batch-size 32 --block-size 256
is_selected resume && run_limited 90 resume "$PYTHON" bench/gpu.py resume "$CHARS" "${RESULTS[@]}"
is_selected profile && run_limited 45 profile "$PYTHON" bench/gpu.py steps "$CHARS" "${RESULTS[@]}" --label profile --trainers modern,modern+graph --config configs/shakespeare_char.py --profile
is_selected large && run_limited 60 large "$PYTHON" bench/gpu.py steps "$GPT2" "${RESULTS[@]}" --label large --trainers plain+graph,modern+graph --batch-size 64
is_selected parallel && run_limited 150 parallel "$PYTHON" bench/parallel.py "$GPT2" "${RESULTS[@]}" --batch_size=32 --gradient_accumulation_steps=4
exit 0
