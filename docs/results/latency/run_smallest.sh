#!/usr/bin/env bash
# Reproduces the thirteenth entry of the notebook: more training of its tenth model, now with the smallest sub-model in every step and
# the plain model as the teacher of the full length; then search and scores.
# Usage: docs/results/latency/run_smallest.sh TRAINED PLAIN DATA WORK
# TRAINED and PLAIN are the model that run_from_plain.sh trained and the one that it started from. DATA as in run.sh. Raw results go to
# raw/smallest.
set -euo pipefail

trained=$1 plain=$2 data=$3 work=$4
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw/smallest test=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

[ -e "$work/search.json" ] || python "$here/hold_out.py" "$data/train.json" "$data/validation.json" "$work/kept.json" \
    "$work/search.json" Andes Antibiotics Lens Oxford Tin
[ -e "$work/trained/model.safetensors" ] || python "$here/../../../examples/question_answering/run_qa.py" \
    --model_name_or_path "$trained" --teacher_name_or_path "$plain" --train_file "$work/kept.json" \
    --output_dir "$work/trained" --do_train --token_scoring answer --drop_layers 3 4 5 --drop_ratio_bound 0.65 \
    --num_random_sub_models 1 --smallest_sub_model true --early_exit_prob 1 --min_exit_layer 4 \
    --deep_supervision_weight 2 --per_device_train_batch_size 32 --learning_rate 8e-5 --max_steps 700 \
    --warmup_steps 0.03 --weight_decay 0.01 --train_sampling_strategy group_by_length --bf16 --use_cpu --seed 7 \
    --logging_steps 10 --save_steps 175 --save_total_limit 1 --eval_strategy no
"$here/search_and_score.sh" "$data" "$work" "$raw" 4
[ -s "$here/raw/plain-dev.json" ] || optimum-cli qala evaluate --model "$plain" --backend openvino --data "$test" \
    --budget full --json > "$here/raw/plain-dev.json"
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json "$here/raw/plain-dev.json"
