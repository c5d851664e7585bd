"""The section of a model card that says how to load the model: as it was measured, so that it is as fast."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from optimum_qala.inference.bucket_options import BucketOptions, padding_multiple
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.reporting.facts import BACKENDS, ModelFacts, Variant
from optimum_qala.reporting.markup import escape_markdown
from optimum_qala.reporting.tables import comparable_rows


__all__ = ["describe_usage"]

# What runs a model, not what quantizes it.
EXTRAS = {"torch": "optimum-qala", "openvino": "optimum-qala[openvino]", "inc": "optimum-qala"}
# For those who have it alone. The bound is that of setup.cfg; a test keeps the two alike.
TRANSFORMERS = "transformers>=5.5.4"
CLASSES = {"openvino": "OVQuaLAMiniLMForQuestionAnswering", "inc": "INCQuaLAMiniLMForQuestionAnswering"}
QUESTION, CONTEXT = "Who wrote it?", "Ada wrote it in 1843."


def describe_usage(facts: ModelFacts, repo_id: str) -> Iterator[str]:
    """Say how to load each model and answer a question with it.

    Args:
        facts: What is known.
        repo_id: What users load the model by.

    Returns:
        Lines of Markdown.
    """
    budgets = list(facts.variants[0].budgets)
    named = [name for name in budgets if name != FULL_BUDGET]
    budget = "fast" if "fast" in named else (named or [FULL_BUDGET])[-1]
    for variant in (*facts.variants, *_exported(facts)):
        how = "" if variant in facts.variants else ", for which it is exported as it was measured"
        yield from (f'With {BACKENDS[variant.backend]}{how} (`pip install "{EXTRAS[variant.backend]}"`):', "")
        multiple = _measured_multiple(facts, variant)
        yield from ("```python", *_code(facts, variant, repo_id, budget, multiple), "```", "")
        if multiple is not None:
            yield (
                f"It runs in buckets, as it was measured: windows are padded to a multiple of {multiple} tokens, and "
                "the first one of each padded length waits for a graph to be compiled, unless `model.warm_up` did so."
            )
            yield ""
        if variant.backend == "torch" and (facts.remote_code or _has_code(variant)):
            yield from (
                f'Without optimum-qala (`pip install torch "{TRANSFORMERS}"`), by the code in the repository, which '
                "you should read before it runs:",
                "",
            )
            yield from ("```python", *_remote_code(facts, repo_id, budget), "```", "")
    if named:
        names = ", ".join(escape_markdown(name) for name in budgets)
        yield f"`budget` is one of {names}, ratios such as `1,1,0.8,0.8,0.5,0.5` with one for each layer, or left out."


def _exported(facts: ModelFacts) -> Iterator[Variant]:
    """Make up the OpenVINO model of a torch one that was benchmarked in OpenVINO, for which it is exported."""
    first = facts.variants[0]  # the torch model, if there is one
    is_there = any(variant.backend == "openvino" for variant in facts.variants)
    rows = _benchmarked(facts, "openvino")
    # Rows in int8 are those of another model, which was made of this one.
    if first.backend == "torch" and not is_there and any(row["arithmetic"] != "int8" for row in rows):
        yield replace(first, backend="openvino")


def _has_code(variant: Variant) -> bool:
    return "AutoModelForQuestionAnswering" in (variant.config.get("auto_map") or {})


def _benchmarked(facts: ModelFacts, backend: str) -> list[Mapping[str, Any]]:
    """Return the rows of the benchmark that have the budgets of this model in a back end."""
    settings = [] if facts.benchmark is None else comparable_rows(dict(facts.benchmark))
    return [row for _, rows in settings for row in rows if row["kind"] == "budget" and row["backend"] == backend]


def _measured_multiple(facts: ModelFacts, variant: Variant) -> int | None:
    """Return the multiple that windows were padded to where the card has milliseconds of an OpenVINO model.

    Those of the benchmark count before those of the search, which the card does not repeat. None if they were measured
    without buckets, or not at all.
    """
    if variant.backend != "openvino":
        return None
    searched = [row for budget in variant.budgets.values() for row in budget.get("latency_ms") or ()]
    own = [row for row in searched if row.get("backend") == variant.backend]
    rows = _benchmarked(facts, variant.backend) or own
    multiples = [padding_multiple(row.get("padding")) for row in rows]
    return min((multiple for multiple in multiples if multiple is not None), default=None)


def _code(facts: ModelFacts, variant: Variant, repo_id: str, budget: str, multiple: int | None) -> Iterator[str]:
    place = _quote(repo_id)
    options = _in_subfolder(variant.subfolder)
    tokenizer = place
    imports = ["from transformers import pipeline"]
    if facts.tokenizer_subfolder:
        imports = ["from transformers import AutoTokenizer, pipeline"]
        tokenizer = f"AutoTokenizer.from_pretrained({place}{_in_subfolder(facts.tokenizer_subfolder)})"
    yield from imports
    yield ""
    if variant.backend == "torch":
        yield "import optimum_qala  # makes this kind of model and the task known to transformers"
        model = place
    else:
        names = [CLASSES[variant.backend]]
        if variant not in facts.variants:
            options += ", export=True"
        if multiple == BucketOptions.length_multiple:
            options += ", buckets=True"
        elif multiple is not None:
            names.insert(0, "BucketOptions")
            options += f", buckets=BucketOptions(length_multiple={multiple})"
        yield f"from optimum_qala import {', '.join(names)}"
        model = f"{CLASSES[variant.backend]}.from_pretrained({place}{options})"
    yield from ("", f"model = {model}", f'qa = pipeline("question-answering", model=model, tokenizer={tokenizer})')
    yield f"qa(question={_quote(QUESTION)}, context={_quote(CONTEXT)}, budget={_quote(budget)})"


def _remote_code(facts: ModelFacts, repo_id: str, budget: str) -> Iterator[str]:
    """Write the code for those who have transformers only, which has no pipeline for the task."""
    place = _quote(repo_id)
    yield "from transformers import AutoModelForQuestionAnswering, AutoTokenizer"
    yield ""
    trusted = ", trust_remote_code=True"  # the tokenizer asks too, for it reads the configuration of the model
    yield f"tokenizer = AutoTokenizer.from_pretrained({place}{_in_subfolder(facts.tokenizer_subfolder)}{trusted})"
    yield f"model = AutoModelForQuestionAnswering.from_pretrained({place}{trusted})"
    yield f'inputs = tokenizer({_quote(QUESTION)}, {_quote(CONTEXT)}, return_tensors="pt")'
    yield f"output = model(**inputs, budget={_quote(budget)})"
    yield "start, end = int(output.start_logits.argmax()), int(output.end_logits.argmax())"
    yield 'tokenizer.decode(inputs["input_ids"][0, start : end + 1])'


def _in_subfolder(subfolder: str) -> str:
    return f", subfolder={_quote(subfolder)}" if subfolder else ""


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
