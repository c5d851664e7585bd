"""Static copies of a graph give what the graph gives."""

from __future__ import annotations

import numpy as np
import pytest

from optimum_qala.errors import BackendError


@pytest.fixture
def graph():
    """One row input, two further inputs, two outputs: ids * scale + sum(sizes), and ids * scale."""
    import openvino
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    scale = ops.parameter([2], np.float32, name="scale")
    sizes = ops.parameter([-1], np.int64, name="sizes")
    scaled = ops.multiply(ops.convert(ids, np.float32), ops.reduce_sum(scale, ops.constant([0])))
    shifted = ops.add(scaled, ops.convert(ops.reduce_sum(sizes, ops.constant([0])), np.float32))
    for node, name in ((ids, "input_ids"), (scale, "scale"), (sizes, "sizes"), (shifted, "a"), (scaled, "b")):
        node.output(0).set_names({name})
    return openvino.Model([shifted, scaled], [ids, scale, sizes])


def run(graph, *inputs):
    import openvino

    return list(openvino.Core().compile_model(graph, "CPU")(list(inputs)).values())


IDS = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int64)
CONSTANTS = {"scale": np.array([0.5, 1.5], dtype=np.float32), "sizes": np.array([3, 4, 5], dtype=np.int64)}


def test_constants_replace_inputs(graph):
    from optimum_qala.inference.folding import input_types, is_static, specialize

    special = specialize(graph, 2, 3, CONSTANTS)
    assert list(input_types(special)) == ["input_ids"]
    assert str(special.inputs[0].get_partial_shape()) == "[2,3]"
    assert is_static(special)
    shifted, scaled = run(special, IDS)
    np.testing.assert_array_equal(scaled, 2.0 * IDS)
    np.testing.assert_array_equal(shifted, 2.0 * IDS + 12)


def test_original_graph_stays_as_it_is(graph):
    from optimum_qala.inference.folding import input_types, is_static, specialize

    specialize(graph, 2, 3, CONSTANTS, ("b",))
    assert list(input_types(graph)) == ["input_ids", "scale", "sizes"]
    assert not is_static(graph)
    assert str(graph.inputs[0].get_partial_shape()) == "[?,?]"
    np.testing.assert_array_equal(run(graph, IDS, *CONSTANTS.values())[0], 2.0 * IDS + 12)


def test_values_are_cast_to_the_type_of_the_input(graph):
    from optimum_qala.inference.folding import specialize

    special = specialize(graph, 2, 3, {"scale": np.array([1, 1]), "sizes": np.array([1.0])})
    np.testing.assert_array_equal(run(special, IDS)[0], 2.0 * IDS + 1)


def test_only_wanted_outputs_stay(graph):
    from optimum_qala.inference.folding import output_names, specialize

    assert output_names(graph) == ("a", "b")
    special = specialize(graph, 2, 3, CONSTANTS, ("b",))
    assert output_names(special) == ("b",)
    np.testing.assert_array_equal(run(special, IDS)[0], 2.0 * IDS)


@pytest.mark.parametrize(
    ("constants", "outputs", "message"),
    [
        ({**CONSTANTS, "depth": np.zeros(1)}, None, r"no input 'depth'; it has \['input_ids', 'scale', 'sizes'\]"),
        (CONSTANTS, ("c",), r"no output 'c'; it has \['a', 'b'\]"),
        ({**CONSTANTS, "scale": np.zeros(3)}, None, r"'scale' of the graph has shape \[2\].* constant of shape \[3\]"),
        ({"scale": CONSTANTS["scale"]}, None, r"'sizes' of the graph has shape \[\?\], not \(batch size, length\)"),
    ],
)
def test_what_does_not_fit_is_named(graph, constants, outputs, message):
    from optimum_qala.inference.folding import specialize

    with pytest.raises(BackendError, match=message):
        specialize(graph, 2, 3, constants, outputs)


def test_shape_that_the_graph_cannot_take_is_named(graph):
    from optimum_qala.inference.folding import specialize

    graph.reshape({"input_ids": [-1, -1]})
    import openvino
    from openvino import opset13 as ops

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    fixed = ops.add(ids, ops.constant(np.zeros((1, 7), dtype=np.int64)))
    fixed.output(0).set_names({"a"})
    with pytest.raises(BackendError, match="the graph does not take 2 rows of 3 tokens"):
        specialize(openvino.Model([fixed], [ids]), 2, 3)


def test_embedding_tables_of_8_bits_are_written_out_once():
    import openvino
    from openvino import opset13 as ops

    from optimum_qala.inference.folding import specialize, unpack_tables

    table = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    packed = ops.multiply(ops.convert(ops.constant(table), np.float32), np.array([0.5], dtype=np.float32))
    rows = ops.gather(packed, ids, ops.constant(0))
    # A gather from what an input gives must stay as it is.
    total = ops.reduce_sum(ops.gather(rows, ops.constant(0), ops.constant(2)), ops.constant([1]), keep_dims=True)
    ids.output(0).set_names({"input_ids"})
    total.output(0).set_names({"a"})
    graph = openvino.Model([total], [ids])

    def compute(model):
        return run(model)[0]

    unpacked = unpack_tables(graph, compute)
    kinds = [operation.get_type_name() for operation in unpacked.get_ordered_ops()]
    assert "Multiply" not in kinds
    assert kinds.count("Gather") == 2
    assert "Multiply" in [operation.get_type_name() for operation in graph.get_ordered_ops()]
    inputs = np.array([[0, 3, 1]])
    np.testing.assert_array_equal(run(specialize(unpacked, 1, 3), inputs), run(graph, inputs))
