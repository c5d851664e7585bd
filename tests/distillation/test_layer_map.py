from __future__ import annotations

import pytest

from optimum_qala.distillation.layer_map import check_layer_map, uniform_layer_map
from optimum_qala.errors import ConfigurationError


@pytest.mark.parametrize(
    ("num_student_layers", "num_teacher_layers", "expected"),
    [
        (6, 12, (1, 3, 5, 7, 9, 11)),
        (4, 12, (2, 5, 8, 11)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (5, 12, (2, 4, 7, 9, 11)),
        (4, 1, (0, 0, 0, 0)),
        (1, 24, (23,)),
    ],
)
def test_uniform_map_spreads_the_layers(num_student_layers, num_teacher_layers, expected):
    assert uniform_layer_map(num_student_layers, num_teacher_layers) == expected


def test_given_map_is_taken():
    assert check_layer_map([0, 18], 2, 24) == (0, 18)


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        ([0, 1, 2], r"teacher_layers \[0, 1, 2\] has 3 entries, but the student has 2 layers"),
        ([0, 12], "teacher_layers names layer 12, but the teacher has layers 0 to 11"),
        ([-1, 0], "teacher_layers names layer -1, but the teacher has layers 0 to 11"),
    ],
)
def test_illegal_map_is_refused(layer_map, message):
    with pytest.raises(ConfigurationError, match=message):
        check_layer_map(layer_map, 2, 12)
