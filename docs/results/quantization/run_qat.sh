#!/usr/bin/env bash
# Reproduces int8 of a trained model with and without quantization-aware training.
# Usage: docs/results/quantization/run_qat.sh PLAIN DATA WORK [SEED] [STEPS]
# PLAIN is a length-adaptive model with the token score "answer", such as the one that ../latency/run_from_plain.sh trains, before it
# was quantized; it is the teacher, too. DATA as in ../latency/run.sh. Results go to raw.
set -euo pipefail

plain=$1 data=$2 work=$3 seed=${4:-42} steps=${5:-200}
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw test=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

# train NAME STEPS LEARNING_RATE FLAGS...: as run_from_plain.sh, but rounded, and from the teacher's answers alone
train() {
    local name=$1 steps=$2 rate=$3
    shift 3
    python "$here/../../../examples/question_answering/run_qa.py" --model_name_or_path "$plain" \
        --teacher_name_or_path "$plain" --teacher_weight 1 --train_file "$data/train.json" \
        --output_dir "$work/$name" --token_scoring answer --drop_layers 3 4 5 --quantization_aware true \
        --drop_ratio_bound 0.7 --num_random_sub_models 1 --smallest_sub_model false --early_exit_prob 1 \
        --min_exit_layer 4 --deep_supervision_weight 2 --per_device_train_batch_size 32 --learning_rate "$rate" \
        --max_steps "$steps" --warmup_steps 0.05 --weight_decay 0.01 --train_sampling_strategy group_by_length --bf16 \
        --use_cpu --seed "$seed" --logging_steps 10 --save_steps 100 --save_total_limit 1 --eval_strategy no --do_train \
        "$@"
}

# score NAME MODEL APPROACH: int8 by Intel Neural Compressor, and its F1
score() {
    optimum-cli qala quantize --model "$2" --backend inc --approach "$3" --data "$data/train.json" \
        --budget full --budget 1,1,1,0.5,0.5,0.5 --budget 1,1,1,0.7,0.3,0.3 --output "$work/$1-int8" --json \
        > "$raw/$1-quantize.json"
    optimum-cli qala evaluate --model "$work/$1-int8" --data "$test" --budget full --budget 1,1,1,0.5,0.5,0.5 \
        --budget 1,1,1,0.7,0.3,0.3 --json > "$raw/$1-dev.json"
}

optimum-cli qala evaluate --model "$plain" --backend torch --data "$test" --budget full --budget 1,1,1,0.5,0.5,0.5 \
    --budget 1,1,1,0.7,0.3,0.3 --json > "$raw/float-dev.json"

# Rounded after training, and trained
score int8-static "$plain" static
train "int8-$seed" "$steps" 2e-5 --auxiliary_losses attention_maps=0.5,attention_outputs=0.5
score "int8-$seed" "$work/int8-$seed" qat
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
