"""What one user does in a process of its own: load a model by repository id, answer questions, keep the time.

Usage: answer.py KIND REPO_ID QUESTIONS OUTPUT [BUDGET ...]
KIND is torch, without-plugin, openvino-float (of the torch weights), openvino or inc. QUESTIONS is a list of
{"question", "context"}. OUTPUT.json gets times and answers, OUTPUT.npz the logits. All kinds read the answers off the
logits in the same way, one window for each question, so that only the models differ.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


BEGAN = {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}
KIND, REPO_ID, QUESTIONS, OUTPUT, *BUDGETS = sys.argv[1:]

if KIND == "without-plugin":
    from tests.hub import stranger  # noqa: F401  # from here on, optimum_qala cannot be imported

import numpy as np  # noqa: E402  # the hook above first
import torch  # noqa: E402
from transformers import AutoModelForQuestionAnswering, AutoTokenizer  # noqa: E402


LONGEST_WINDOW, LONGEST_ANSWER = 384, 30  # tokens


def elapsed() -> dict[str, float]:
    """Wall-clock and processor time of this process so far, in seconds."""
    now = {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}
    return {name: now[name] - began for name, began in BEGAN.items()}


def load() -> Any:
    """Load the model as the card says."""
    if KIND == "without-plugin":
        return AutoModelForQuestionAnswering.from_pretrained(REPO_ID, trust_remote_code=True)
    import optimum_qala

    if KIND == "openvino-float":
        return optimum_qala.OVQuaLAMiniLMForQuestionAnswering.from_pretrained(REPO_ID, subfolder="")
    if KIND == "openvino":
        return optimum_qala.OVQuaLAMiniLMForQuestionAnswering.from_pretrained(REPO_ID)
    if KIND == "inc":
        return optimum_qala.INCQuaLAMiniLMForQuestionAnswering.from_pretrained(REPO_ID)
    return AutoModelForQuestionAnswering.from_pretrained(REPO_ID)


def answer(model: Any, tokenizer: Any, question: str, context: str, budget: str) -> tuple[str, Any]:
    """Answer one question; return the text and the logits of the context, shape (2, context tokens)."""
    inputs = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=LONGEST_WINDOW,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = inputs.pop("offset_mapping")[0].tolist()
    places = [index for index, part in enumerate(inputs.sequence_ids(0)) if part == 1]
    with torch.no_grad():
        output = model(**inputs, budget=budget)
    logits = np.stack([np.asarray(values[0])[places] for values in (output.start_logits, output.end_logits)])
    scores = logits[0][:, None] + logits[1][None, :]
    scores[np.tril_indices_from(scores, -1)] = -np.inf
    scores[np.triu_indices_from(scores, LONGEST_ANSWER)] = -np.inf
    start, end = np.unravel_index(scores.argmax(), scores.shape)
    return context[offsets[places[start]][0] : offsets[places[end]][1]], logits


def main() -> None:
    """Load, answer, write."""
    times = {"imported": elapsed()}
    model, tokenizer = load(), AutoTokenizer.from_pretrained(REPO_ID)
    times["loaded"] = elapsed()
    with open(QUESTIONS, encoding="utf-8") as file:
        questions = json.load(file)
    answer(model, tokenizer, **questions[0], budget=BUDGETS[0])
    times["first answer"] = elapsed()
    texts, logits = {}, {}
    for budget in BUDGETS:
        found = [answer(model, tokenizer, **question, budget=budget) for question in questions]
        texts[budget] = [text for text, _ in found]
        logits |= {f"{budget} {index}": values for index, (_, values) in enumerate(found)}
    np.savez(f"{OUTPUT}.npz", **logits)
    plugin = sorted(name for name in sys.modules if name.partition(".")[0] == "optimum_qala")
    result = {"class": type(model).__name__, "has_plugin": bool(plugin), "times": times, "answers": texts}
    with open(f"{OUTPUT}.json", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
