#!/usr/bin/env bash
# Reproduces the tenth entry of the notebook: the plain model made length-adaptive, nearly all training data, search, scores and
# benchmark.
# Usage: docs/results/latency/run_from_plain.sh PLAIN DATA WORK
# PLAIN is the fine-tuned MiniLM that is the peer, too. DATA as in run.sh. Raw results go to raw/from_plain.
set -euo pipefail

plain=$1 data=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw/from_plain test=$data/test_squad_v1.1_dev.json
mkdir -p "$raw" "$work"

python "$here/hold_out.py" "$data/train.json" "$data/validation.json" "$work/kept.json" "$work/search.json" \
    Andes Antibiotics Lens Oxford Tin
python - "$plain" "$work/start" <<'PYTHON'
import sys

import torch
from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering

plain, start = sys.argv[1:]
options = {"token_scoring": "answer", "score_pooling": 8, "drop_layers": [3, 4, 5], "dtype": torch.float32}
QuaLAMiniLMForQuestionAnswering.from_pretrained(plain, **options).save_pretrained(start)
AutoTokenizer.from_pretrained(plain).save_pretrained(start)
PYTHON
# The training of the notebook was stopped once, and --max_steps went from 2000 to 1500 at step 700.
python "$here/../../../examples/question_answering/run_qa.py" --model_name_or_path "$work/start" \
    --train_file "$work/kept.json" --output_dir "$work/trained" --token_scoring answer --drop_layers 3 4 5 \
    --drop_ratio_bound 0.7 --num_random_sub_models 1 --smallest_sub_model false --early_exit_prob 1 \
    --min_exit_layer 4 --deep_supervision_weight 2 --per_device_train_batch_size 32 --learning_rate 1e-4 \
    --max_steps 1500 --warmup_steps 0.03 --weight_decay 0.01 --train_sampling_strategy group_by_length --bf16 \
    --use_cpu --logging_steps 10 --save_steps 100 --save_total_limit 1 --eval_strategy no --do_train
"$here/search_and_score.sh" "$data" "$work" "$raw" 3
optimum-cli qala evaluate --model "$work/int8" --data "$test" --json > "$raw/int8-dev.json"
optimum-cli qala evaluate --model "$work/int8" --data "$test" --budget 1,1,1,0.5,0.35,0.35@5 --json \
    > "$raw/int8-dev-more.json"
optimum-cli qala benchmark --model "$work/int8" --data "$test" --limit 600 --plain "$plain" \
    --calibration-data "$data/train.json" --calibration-samples 100 --depths 5 4 --budget full --budget accurate \
    --budget 1,1,1,0.5,0.35,0.35@5 --budget fast --buckets --batch-size 1 --length-multiple 16 --max-graphs 130 --bulk \
    --bulk-windows 600 --bulk-repeats 2 --num-windows 32 --repeats 3 --output "$work/benchmark"
cp "$work/benchmark/results.json" "$raw/benchmark.json"
cp "$work/benchmark/results.md" "$here/benchmark_from_plain.md"
cp "$work/benchmark/results.png" "$here/benchmark_from_plain.png"
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$plain#PLAIN#g" "$raw"/*.json  # whose machine it was is nobody's business
