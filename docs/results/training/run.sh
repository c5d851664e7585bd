#!/usr/bin/env bash
# Reproduces the trials of the training recipe: short LengthDrop trainings of the plain model, alike but for one setting.
# Usage: docs/results/training/run.sh PLAIN DATA WORK
# PLAIN is a fine-tuned MiniLM, DATA holds train.json and validation.json. Results go to docs/results/training/raw.
set -euo pipefail

plain=$1 data=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw latency=$here/../latency
mkdir -p "$raw" "$work"

[ -e "$work/search.json" ] || python "$latency/hold_out.py" "$data/train.json" "$data/validation.json" \
    "$work/kept.json" "$work/search.json" Andes Antibiotics Lens Oxford Tin
# trial NAME [OPTIONS], which come last and win
trial() {
    local name=$1
    shift
    [ -e "$work/$name/model.safetensors" ] || python "$here/../../../examples/question_answering/run_qa.py" \
        --model_name_or_path "$plain" --train_file "$work/kept.json" --output_dir "$work/$name" --do_train \
        --token_scoring answer --drop_layers 3 4 5 --drop_ratio_bound 0.7 --num_random_sub_models 1 \
        --smallest_sub_model false --min_exit_layer 4 --deep_supervision_weight 2 --per_device_train_batch_size 32 \
        --learning_rate 1e-4 --max_steps "${STEPS:-100}" --warmup_steps 0.1 --weight_decay 0.01 \
        --train_sampling_strategy group_by_length --bf16 --use_cpu --logging_steps 10 --save_strategy no \
        --eval_strategy no "$@"
    [ -s "$raw/$name.json" ] || optimum-cli qala evaluate --model "$work/$name" --backend openvino \
        --data "$work/search.json" --budget full --budget 1,1,1,0.7,0.5,0.5 --budget 1,1,1,0.5,0.3,0.3 \
        --budget 1,1,1,0.3,0.1,0.1 --json > "$raw/$name.json"
}

trial base
trial reverse --divergence reverse
trial skew --divergence skew
trial labels --sub_model_label_weight 0.5
trial temperature --temperature 2
trial sandwich --smallest_sub_model true
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
