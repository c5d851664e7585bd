#!/usr/bin/env bash
# Reproduces the tables of this folder from a trained model: search, int8, scores on the SQuAD 1.1 development set and
# latency. Usage: docs/results/squad/run.sh TRAINED_MODEL DATA_FOLDER WORK_FOLDER PLAIN_MODEL
# PLAIN_MODEL is the BERT-shaped model that training started from, the peer in the latency table. DATA_FOLDER holds train.json (calibration), validation.json (search, budgets) and the development set. Raw results go
# to docs/results/squad/raw, from which report.py makes the tables.
set -euo pipefail

trained=$1 data=$2 work=$3 plain=$4
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw
test=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

qala() {
    echo "optimum-cli qala $*" | sed "s#$data#DATA#g; s#$work#WORK#g; s#$trained#TRAINED#g; s#$plain#PLAIN#g" >> "$raw/commands.txt"
    optimum-cli qala "$@"
}

: > "$raw/commands.txt"
qala search --model "$trained" --backend openvino --data "$data/validation.json" --output "$work/searched" \
    --drop-ratio-bound 0.5 --max-evaluations 45 --accurate-loss 0.01 --max-loss 0.2 --json > "$raw/search.json"
qala quantize --model "$work/searched" --backend openvino --data "$data/train.json" \
    --validation-data "$data/validation.json" --drop-layers budgets --output "$work/int8" --json > "$raw/quantize.json"
qala evaluate --model "$work/searched" --backend openvino --data "$test" --budget full --json > "$raw/fp32-pad-none.json"
qala evaluate --model "$work/int8" --data "$test" --json > "$raw/int8-pad-none.json"
python "$here/plain_int8.py" "$plain" "$data/train.json" "$work/plain-fp32" "$work/plain-int8"
qala benchmark --model "$work/int8" --data "$test" --limit 150 --pad-to 384 --num-windows 32 \
    --peer "$work/plain-int8" --peer "$work/plain-fp32" --output "$work/benchmark" --json > "$raw/benchmark.json"
python "$here/memory.py" "$work/int8" "$test" "$raw/memory.json"
qala evaluate --model "$work/int8" --data "$test" --pad-to 384 --json > "$raw/int8-pad-384.json"
find "$work/int8" -type f -printf '%f %s\n' | sort > "$raw/files.txt"
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$trained#TRAINED#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
python "$here/report.py"
