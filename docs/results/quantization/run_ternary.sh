#!/usr/bin/env bash
# Reproduces the comparison of losses in quantization-aware training with ternary weights (Kim et al., arXiv 2211.11014): the
# teacher's logits only, and with them attention maps, attention outputs, or both. No tokens are dropped.
# Usage: docs/results/quantization/run_ternary.sh PLAIN DATA WORK
# PLAIN is a fine-tuned MiniLM, the start and the teacher. DATA as in ../latency/run.sh. SEEDS, STEPS and EVERY (questions of every
# n-th paragraph are scored) are read from the environment. Results go to raw.
set -euo pipefail

plain=$1 data=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw every=${EVERY:-5} steps=${STEPS:-250}
mkdir -p "$raw" "$work"

# train NAME SEED STEPS LEARNING_RATE FLAGS...
train() {
    local name=$1 seed=$2 steps=$3 rate=$4
    shift 4
    [ -e "$work/$name/model.safetensors" ] || python "$here/../../../examples/question_answering/run_qa.py" --do_train \
        --model_name_or_path "$plain" --teacher_name_or_path "$plain" --teacher_weight 1 --train_file "$data/train.json" \
        --output_dir "$work/$name" --quantization_aware true --weight_bits 2 --num_random_sub_models 0 \
        --smallest_sub_model false --per_device_train_batch_size 8 --learning_rate "$rate" --max_steps "$steps" \
        --warmup_steps 0.05 --weight_decay 0.01 --train_sampling_strategy group_by_length --bf16 --use_cpu --seed "$seed" \
        --logging_steps 10 --save_strategy no --eval_strategy no "$@"
}

# score OUTPUT NAME...: int8 by Intel Neural Compressor, where ternary weights are 8-bit numbers of three values, and its F1
score() {
    local output=$1 models=()
    shift
    for name in "$@"; do
        [ -e "$work/$name-int8" ] || optimum-cli qala quantize --model "$work/$name" --backend inc --approach qat \
            --data "$data/train.json" --output "$work/$name-int8"
        models+=("$name=inc:$work/$name-int8")
    done
    [ -s "$output" ] || python "$here/scores.py" "$data/test_squad_v1.1_dev.json" "$output" "$every" full "${models[@]}"
}

declare -A losses=(
    [logits]=""
    [maps]="--auxiliary_losses attention_maps=1"
    [outputs]="--auxiliary_losses attention_outputs=1"
    [unified]="--auxiliary_losses attention_maps=0.5,attention_outputs=0.5"
)
[ -s "$raw/ternary-float.json" ] ||
    python "$here/scores.py" "$data/test_squad_v1.1_dev.json" "$raw/ternary-float.json" "$every" full "float=torch:$plain"
train untrained 1 1 0  # one step that moves nothing
score "$raw/ternary-untrained.json" untrained
for seed in ${SEEDS:-1 2 3}; do
    for name in logits maps outputs unified; do
        # shellcheck disable=SC2086
        train "$name-$seed" "$seed" "$steps" 3e-4 ${losses[$name]}
        cp "$work/$name-$seed/trainer_state.json" "$raw/ternary-$name-$seed-training.json"
    done
    score "$raw/ternary-$seed.json" {logits,maps,outputs,unified}-"$seed"
done
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
