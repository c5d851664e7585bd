#!/usr/bin/env bash
# Reproduces the results of this folder: an int8 model by Intel Neural Compressor, the card, a push of everything to a Hub on
# the loopback address, and answers of processes that load it by repository id.
# Usage: docs/results/sharing/run.sh TRAINED INT8 BENCHMARK DATA WORK
# TRAINED is a trained torch model with its training.json, INT8 the same for OpenVINO with searched budgets, BENCHMARK the
# results.json of its benchmark, DATA holds train.json and validation.json. Raw results go to raw. Pictures of the card need
# markdown-it-py, weasyprint and pypdfium2.
set -euo pipefail

trained=$1 int8=$2 benchmark=$3 data=$4 work=$5
here=$(cd "$(dirname "$0")" && pwd)
raw=$here/raw
mkdir -p "$raw" "$work"

# What was searched in int8 holds for the torch model too, all but the milliseconds and scores.
python - "$trained" "$int8" "$work/searched" <<'PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from optimum_qala import QuaLAMiniLMForQuestionAnswering

trained, int8, searched = sys.argv[1:]
model = QuaLAMiniLMForQuestionAnswering.from_pretrained(trained)
measured = json.loads((Path(int8) / "config.json").read_text())["budgets"]
kept = ("retention", "exit_layer", "macs")
model.config.budgets = {name: {key: one[key] for key in kept if key in one} for name, one in measured.items()}
model.save_pretrained(searched)
AutoTokenizer.from_pretrained(trained).save_pretrained(searched)
PYTHON
cp "$trained/training.json" "$int8/search.json" "$work/searched"
cp -r "$int8" "$work/searched/openvino"
optimum-cli qala quantize --model "$work/searched" --backend inc --data "$data/train.json" \
    --output "$work/searched/inc" --json > "$raw/quantize.json"
optimum-cli qala report --model "$work/searched" --repo-id your-name/your-model --remote-code --benchmark "$benchmark" \
    --base-model sentence-transformers/all-MiniLM-L6-v2 --question "How long is the bridge?" \
    --context "The old harbour was closed in 1962, when ships had grown too large for it. A bridge of 410 metres has crossed the \
basin since 1975; before, people took a ferry, which left every 20 minutes and carried 60 passengers. On the far side, the former \
warehouses are flats and workshops today, and the ferry itself is a cafe." --json > "$raw/report.json"
cd "$here/../../.."
PYTHONPATH=.:${PYTHONPATH:-} python "$here/share.py" "$work" "$data/validation.json" "$raw"
optimum-cli qala evaluate --model "$work/searched/inc" --data "$data/validation.json" --budget full --budget fastest --json \
    > "$raw/validation-inc.json"
sed -i "s#$data#DATA#g; s#$work#WORK#g; s#$trained#TRAINED#g; s#$int8#INT8#g" "$raw"/*.json  # whose machine it was is nobody's business
python "$here/report.py"
python "$here/render.py" "$work/searched/README.md" "$here"
cp "$work/searched"/{latency,tokens,example}.png "$here"
