#!/usr/bin/env bash
# Reproduces the trials of distillation.
# Usage: docs/results/distillation/run.sh PLAIN BACKBONE DATA WORK [students|losses|texts|vocabulary ...]
# PLAIN is a fine-tuned six-layer MiniLM, BACKBONE the encoder that it was made of. DATA holds train.json, validation.json,
# test_squad_v1.1_dev.json and test_small.json. Results go to docs/results/distillation/raw.
set -euo pipefail

plain=$1 backbone=$2 data=$3 work=$4
shift 4
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw dev=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

# fine_tune MODEL OUTPUT STEPS SEED [OPTIONS]
fine_tune() {
    local model=$1 output=$2 steps=$3 seed=$4
    shift 4
    [ -e "$output/model.safetensors" ] || python "$here/../../../examples/question_answering/run_qa.py" \
        --model_name_or_path "$model" --train_file "$data/train.json" --output_dir "$output" --do_train \
        --max_steps "$steps" --seed "$seed" --per_device_train_batch_size 32 --warmup_steps 0.05 --weight_decay 0.01 \
        --train_sampling_strategy group_by_length --bf16 --use_cpu --logging_steps 10 --save_strategy no \
        --eval_strategy no "$@"
}

# score MODEL QUESTIONS NAME [OPTIONS]
score() {
    local model=$1 questions=$2 name=$3
    shift 3
    [ -s "$raw/$name.json" ] || optimum-cli qala evaluate --model "$model" --backend openvino --data "$questions" \
        "$@" --json > "$raw/$name.json"
}

# A student of three layers, copied from PLAIN, trained for the same number of steps with ever more of the teacher.
students() {
    local steps=${STEPS:-500} options="--num_random_sub_models 0 --smallest_sub_model false --learning_rate 1.5e-4"
    local teacher="$options --teacher_name_or_path $plain"
    [ -e "$work/shrunk" ] || optimum-cli qala shrink --model "$plain" --layers 3 --output "$work/shrunk"
    score "$work/shrunk" "$dev" shrunk-dev --budget full
    for seed in ${SEEDS:-1 2}; do
        declare -A recipes=(
            [a-labels]="$options"
            [b-logits]="$teacher --teacher_weight 0.9"
            [c-relations]="$teacher --teacher_weight 0.9 --auxiliary_losses relations=1"
            [d-states]="$teacher --teacher_weight 0.9 --auxiliary_losses hidden_states=1,relations=1"
        )
        for name in a-labels b-logits c-relations d-states; do
            # shellcheck disable=SC2086
            fine_tune "$work/shrunk" "$work/$name-$seed" "$steps" "$seed" ${recipes[$name]}
            score "$work/$name-$seed" "$dev" "$name-$seed-dev" --budget full
        done
    done
}

# LengthDrop training of PLAIN with and without each loss between full length and sub-models, at two small budgets.
losses() {
    local steps=${STEPS:-120} seed
    local options="--per_device_train_batch_size 16 --token_scoring answer --drop_layers 3 4 5 --drop_ratio_bound 0.7 \
        --smallest_sub_model false --min_exit_layer 3 --deep_supervision_weight 2 --learning_rate 1e-4"
    for seed in ${SEEDS:-1}; do
        for name in none hidden_states=1 attention_outputs=1 attention_scores=0.1 attention_maps=1 relations=1 mutual_information=0.1; do
            local extra=""
            [ "$name" = none ] || extra="--sub_model_auxiliary_losses $name"
            # shellcheck disable=SC2086
            fine_tune "$plain" "$work/losses-$name-$seed" "$steps" "$seed" $options $extra
            for questions in validation test_small; do
                score "$work/losses-$name-$seed" "$data/$questions.json" "losses-$name-$seed-$questions" --budget full \
                    --budget 1,1,1,0.5,0.5,0.5 --budget 1,1,1,0.4,0.2,0.2
            done
        done
    done
}

# Three layers of BACKBONE learn its relations on the contexts of train.json; then both students are fine-tuned alike.
texts() {
    local steps=${STEPS:-600} tune=${TUNE_STEPS:-500}
    local options="--num_random_sub_models 0 --smallest_sub_model false --learning_rate 1.5e-4"
    [ -e "$work/start" ] || optimum-cli qala shrink --model "$backbone" --layers 3 --output "$work/start"
    [ -e "$work/distilled" ] || optimum-cli qala distill --teacher "$backbone" --student "$work/start" \
        --data "$data/train.json" --output "$work/distilled" --max-steps "$steps" --batch-size 16 --max-length 128 \
        --learning-rate 3e-4 --bf16
    cp "$work/distilled/distillation.json" "$raw/distillation.json"
    for seed in ${SEEDS:-1}; do
        for name in start distilled; do
            # shellcheck disable=SC2086
            fine_tune "$work/$name" "$work/texts-$name-$seed" "$tune" "$seed" $options
            score "$work/texts-$name-$seed" "$data/test_small.json" "texts-$name-$seed-small" --budget full
        done
    done
}

# The vocabulary of the questions and contexts of test_small.json, and the same model's answers to them.
vocabulary() {
    [ -e "$work/trimmed" ] || optimum-cli qala trim-vocabulary --model "$plain" --data "$data/test_small.json" \
        --output "$work/trimmed" --json > "$raw/trimmed.json"
    score "$plain" "$data/test_small.json" whole-vocabulary-small --budget full
    score "$work/trimmed" "$data/test_small.json" trimmed-vocabulary-small --budget full
}

for section in "${@:-students losses texts vocabulary}"; do
    for part in $section; do "$part"; done
done
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g; s#$backbone#BACKBONE#g" "$raw"/*.json
