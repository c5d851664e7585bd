#!/usr/bin/env bash
# Reproduces the comparison of token scores: one training each, alike but for the score, then F1 and survival.
# Usage: docs/results/scoring/run.sh PLAIN DATA WORK [TRAINED]
# PLAIN is a fine-tuned MiniLM, DATA holds train.json and validation.json, TRAINED is the model of the tenth entry of the
# latency notebook. Results go to docs/results/scoring/raw.
set -euo pipefail

plain=$1 data=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw
mkdir -p "$raw" "$work"

for score in attention question answer; do
    python "$here/../../../examples/question_answering/run_qa.py" --model_name_or_path "$plain" \
        --train_file "$data/train.json" --output_dir "$work/$score" --token_scoring "$score" --span_heads true \
        --drop_layers 2 3 4 5 --drop_ratio_bound 0.5 --num_random_sub_models 1 --smallest_sub_model false \
        --early_exit_prob 0.5 --min_exit_layer 3 --deep_supervision_weight 2 --per_device_train_batch_size 32 \
        --learning_rate 7e-5 --max_steps 200 --warmup_steps 0.05 --weight_decay 0.01 \
        --train_sampling_strategy group_by_length --bf16 --use_cpu --logging_steps 10 --save_steps 100 \
        --save_total_limit 1 --eval_strategy no --do_train
done
python "$here/compare.py" "$raw/validation.json" "$data/validation.json" answer="$work/answer" \
    question="$work/question" attention="$work/attention"
for score in attention question answer; do
    optimum-cli qala quantize --model "$work/$score" --backend openvino --data "$data/train.json" --budget full \
        --budget 1,1,1,0.5,0.5,0.5 --budget 1,1,0.7,0.7,0.7,0.7 --num-samples 100 --output "$work/$score-int8"
done
python "$here/../milliseconds.py" "$data/validation.json" "$raw/milliseconds.json" 24 "full 1,1,1,1,1,1@5 1,1,1,1,0.3,0.3 \
    1,1,1,0.7,0.35,0.35 1,1,1,0.5,0.5,0.5 1,1,1,0.5,0.5,0.5@5 1,1,0.7,0.7,0.7,0.7 1,1,0.5,0.5,0.5,0.5" \
    answer="buckets-32:$work/answer-int8" question="buckets-32:$work/question-int8" \
    attention="buckets-32:$work/attention-int8"
if [ $# -gt 3 ]; then
    python "$here/same_model.py" "$4" "$data/validation.json" "$raw/same-model.json"
fi
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
