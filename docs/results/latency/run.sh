#!/usr/bin/env bash
# Reproduces the second entry of the notebook: training with span heads, int8, search by latency, scores and benchmark.
# Usage: docs/results/latency/run.sh BACKBONE PLAIN DATA WORK
# BACKBONE is a MiniLM without a task head, PLAIN the same backbone fine-tuned for question answering (the peer). DATA
# holds train.json, validation.json and the SQuAD 1.1 development set. Raw results go to docs/results/latency/raw.
set -euo pipefail

backbone=$1 plain=$2 data=$3 work=$4
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw test=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

# The training of the notebook was stopped three times and went on from its checkpoints, and --max_steps went from 1500
# to 1275 at step 700, so its learning rate fell a little faster from there on.
python "$here/../../../examples/question_answering/run_qa.py" --model_name_or_path "$backbone" \
    --train_file "$data/train.json" --validation_file "$data/validation.json" --output_dir "$work/trained" \
    --token_scoring answer --drop_layers 2 3 4 5 --drop_ratio_bound 0.5 --num_random_sub_models 1 \
    --smallest_sub_model false --deep_supervision_weight 2 --per_device_train_batch_size 32 --learning_rate 1.4e-4 \
    --max_steps 1275 --warmup_steps 0.05 --weight_decay 0.01 --train_sampling_strategy group_by_length --bf16 --use_cpu \
    --logging_steps 10 --save_steps 100 --save_total_limit 1 --eval_strategy no --do_train
python "$here/exits.py" "$work/trained" "$data/validation.json" "$raw/exits-validation.json"
optimum-cli qala quantize --model "$work/trained" --backend openvino --data "$data/train.json" --budget full \
    --budget 1,1,1,0.5,0.5,0.5 --budget 1,1,0.7,0.4,0.4,0.4 --output "$work/quantized" --json > "$raw/quantize.json"
optimum-cli qala search --model "$work/quantized" --data "$data/validation.json" --cost latency --drop-ratio-bound 0.5 \
    --accurate-loss 0.01 --max-loss 0.2 --min-exit-layer 3 --subset-size 600 --output "$work/int8" --json > /dev/null
cp "$work/int8/search.json" "$raw/search.json"
optimum-cli qala evaluate --model "$work/int8" --data "$test" --json > "$raw/int8-dev.json"
optimum-cli qala evaluate --model "$work/trained" --backend openvino --data "$test" --budget full --json \
    > "$raw/fp32-dev.json"
optimum-cli qala benchmark --model "$work/int8" --data "$test" --limit 600 --plain "$plain" \
    --calibration-data "$data/train.json" --calibration-samples 100 --depths 5 4 3 --budget full --budget accurate \
    --budget 1,1,1,1,0.1,0.1@5 --budget balanced --budget fastest --bert-base --buckets --length-multiple 16 \
    --max-graphs 130 --bulk --bulk-windows 300 --pad-to 384 --num-windows 32 --repeats 4 --slow-batches 3 \
    --output "$work/benchmark"
cp "$work/benchmark/results.json" "$raw/benchmark.json"
cp "$work/benchmark/results.md" "$here/benchmark.md"
cp "$work/benchmark/results.png" "$here/benchmark.png"
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
