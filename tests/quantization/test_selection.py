from __future__ import annotations

import pytest

from optimum_qala import OVQuaLAMiniLMForQuestionAnswering
from optimum_qala.quantization.selection import selection_operations


@pytest.fixture(scope="module")
def graph(torch_model):
    return OVQuaLAMiniLMForQuestionAnswering.from_model(torch_model).model


def test_selection_reaches_from_the_scores_to_the_choice(graph):
    selection = set(selection_operations(graph))
    kinds = [operation.get_type_name() for operation in graph.get_ops() if operation.get_friendly_name() in selection]
    assert kinds.count("TopK") == 2 * 2  # the choice and the ordering, in each of two layers
    assert kinds.count("Softmax") == 2
    assert kinds.count("MaxPool") == 2
    assert kinds.count("MatMul") == 2 * 2  # queries by keys, and votes by probabilities


def test_selection_holds_no_linear_layer(graph):
    selection = set(selection_operations(graph))
    linear = {
        operation.get_friendly_name()
        for operation in graph.get_ops()
        if operation.get_type_name() == "MatMul" and operation.input_value(1).get_node().get_type_name() == "Constant"
    }
    assert linear
    assert not selection & linear
    assert not any("LayerNorm" in name for name in selection)
