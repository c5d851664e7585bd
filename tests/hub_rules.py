"""What the Hub says to the metadata of a model card: the rules that its documentation states."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK


# The Hub knows more; these are enough for what is tested.
LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "other"}
PIPELINE_TAGS = {"question-answering", "text-classification", "feature-extraction"}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
REPOSITORY = r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$"


def card_errors(content: str) -> list[str]:
    """List what the Hub would refuse of a card."""
    block = REGEX_YAML_BLOCK.search(content)
    if block is None:
        return []
    try:
        metadata = yaml.safe_load(block[2]) or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["metadata must be an object"]
    return [*_field_errors(metadata), *_index_errors(metadata.get("model-index", []))]


def _field_errors(metadata: dict[str, Any]) -> Iterator[str]:
    closed = {"license": LICENSES, "pipeline_tag": PIPELINE_TAGS, "base_model_relation": RELATIONS}
    for name, legal in closed.items():
        if name in metadata and metadata[name] not in legal:
            yield f'"{name}" must be one of {sorted(legal)}'
    for name in ("tags", "metrics"):
        values = metadata.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            yield f'"{name}" must be an array of strings'
    for name in ("base_model", "datasets"):
        values = metadata.get(name, [])
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not re.match(REPOSITORY, value):
                yield f'"{name}" with value {value!r} is not valid'
    emissions = metadata.get("co2_eq_emissions", 0)
    if not isinstance(emissions.get("emissions") if isinstance(emissions, dict) else emissions, int | float):
        yield '"co2_eq_emissions.emissions" must be a number'


def _index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for number, model in enumerate(index):
        place = f"model-index[{number}]"
        if not isinstance(model.get("name"), str):
            yield f'"{place}.name" is required'
        for position, result in enumerate(model.get("results", [])):
            where = f"{place}.results[{position}]"
            required = {"task": ("type",), "dataset": ("type", "name")}
            for part, names in required.items():
                for name in names:
                    if not isinstance(result.get(part, {}).get(name), str):
                        yield f'"{where}.{part}.{name}" is required'
            for metric in result.get("metrics", [{}]):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    yield f'"{where}.metrics" need a type and a value'
