#!/usr/bin/env bash
# What a trained model goes through in the entries of the notebook: exits, int8, search, and its score in float32.
# Usage: docs/results/latency/search_and_score.sh DATA WORK RAW MIN_EXIT_LAYER
# DATA as in run.sh; WORK holds the model in trained and the questions in kept.json and search.json, and gets quantized and int8. RAW
# gets the results.
set -euo pipefail

data=$1 work=$2 raw=$3 min_exit_layer=$4
here=$(cd "$(dirname "$0")" && pwd)

python "$here/exits.py" "$work/trained" "$data/validation.json" "$raw/exits-validation.json"
optimum-cli qala quantize --model "$work/trained" --backend openvino --data "$work/kept.json" --budget full \
    --budget 1,1,1,0.5,0.5,0.5 --budget 1,1,1,0.7,0.3,0.3 --output "$work/quantized" --json > "$raw/quantize.json"
optimum-cli qala search --model "$work/quantized" --data "$work/search.json" --cost latency --drop-ratio-bound 0.7 \
    --accurate-loss 0.01 --max-loss 0.2 --min-exit-layer "$min_exit_layer" --subset-size 600 --max-evaluations 48 \
    --output "$work/int8" --json > /dev/null
cp "$work/int8/search.json" "$raw/search.json"
optimum-cli qala evaluate --model "$work/trained" --backend openvino --data "$data/test_squad_v1.1_dev.json" \
    --budget full --json > "$raw/fp32-dev.json"
