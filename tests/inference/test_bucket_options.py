"""Which bucket and which batches a call becomes, and what is refused."""

from __future__ import annotations

import pytest

from optimum_qala import BucketOptions
from optimum_qala.errors import ConfigurationError
from optimum_qala.inference.bucket_options import padding_multiple


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("length_multiple", 0, "length_multiple 0 is not a positive integer"),
        ("length_multiple", True, "length_multiple True is not a positive integer"),
        ("longest_bucket", -1, "longest_bucket -1 is not a positive integer"),
        ("batch_sizes", (1, 0), "batch_sizes 0 is not a positive integer"),
        ("batch_sizes", 4, r"batch_sizes 4 is not a list; write \(4,\)"),
        ("batch_sizes", (), "batch_sizes is empty; give at least one"),
        ("batch_tokens", 1.5, r"batch_tokens 1\.5 is not a positive integer"),
        ("max_graphs", 0, "max_graphs 0 is not a positive integer"),
        ("performance_hint", "fast", r"performance_hint 'fast' is not one of \['latency', 'throughput'\]"),
        ("threads", 0, "threads 0 is not a positive integer"),
    ],
)
def test_illegal_value_is_refused(field, value, message):
    with pytest.raises(ConfigurationError, match=message):
        BucketOptions(**{field: value})


def test_cache_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(ConfigurationError, match=f"cache_dir {tmp_path / 'cache'} is a file; name a folder"):
        BucketOptions(cache_dir=tmp_path / "cache")
    BucketOptions(cache_dir=tmp_path / "absent")


def test_switch_and_options_are_read_alike():
    options = BucketOptions(length_multiple=8)
    assert BucketOptions.parse(True) == BucketOptions()
    assert BucketOptions.parse(options) is options
    assert BucketOptions.parse(False) is None
    assert BucketOptions.parse(None) is None
    with pytest.raises(ConfigurationError, match="buckets 32 are neither BucketOptions nor True or False"):
        BucketOptions.parse(32)


@pytest.mark.parametrize(
    ("multiple", "longest", "length", "expected"),
    [
        (32, None, 1, 32),
        (32, None, 32, 32),
        (32, None, 33, 64),
        (8, None, 33, 40),
        (32, 100, 97, 100),
        (64, 100, 3, 64),
    ],
)
def test_bucket_is_the_next_multiple_or_the_longest(multiple, longest, length, expected):
    assert BucketOptions(length_multiple=multiple, longest_bucket=longest).bucket(length) == expected


def test_longer_sequence_is_refused():
    with pytest.raises(ConfigurationError, match="a sequence of 101 tokens does not fit the longest bucket of 100"):
        BucketOptions(longest_bucket=100).bucket(101)


def test_buckets_end_at_the_longest():
    assert BucketOptions(longest_bucket=100).buckets() == [32, 64, 96, 100]
    assert BucketOptions(longest_bucket=64).buckets() == [32, 64]
    with pytest.raises(ConfigurationError, match="longest_bucket is None, so there is no list of all buckets"):
        BucketOptions().buckets()


@pytest.mark.parametrize(
    ("sizes", "bucket", "expected"),
    [
        ((1,), 32, (32, 1)),
        ((1,), 256, (4, 1)),
        ((1,), 2048, (1,)),
        ((4,), 2048, (4,)),
        ((1, 4, 8), 64, (16, 8, 4, 1)),
        ((1, 3), 256, (4, 1)),  # three rows fill the batch of four, so a graph for three would never run
    ],
)
def test_long_buckets_take_fewer_rows(sizes, bucket, expected):
    assert BucketOptions(batch_sizes=sizes, batch_tokens=1024).rows(bucket) == expected


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(1, [1]), (2, [1, 1]), (5, [1] * 5), (6, [8]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (22, [8, 8, 8])],
)
def test_rows_are_split_into_batches_that_are_nearly_full(num_rows, expected):
    assert BucketOptions(batch_tokens=256).split(num_rows, 32) == expected


def test_smallest_batch_is_filled_up():
    assert BucketOptions(batch_sizes=(4,), batch_tokens=32 * 16).split(1, 32) == [4]
    assert BucketOptions(batch_sizes=(4,), batch_tokens=32 * 16).split(0, 32) == []


def test_split_of_a_batch_size_is_that_batch():
    """Warming up relies on it."""
    for batch_sizes in ((1,), (1, 4), (2, 3, 5, 9)):
        options = BucketOptions(batch_sizes=batch_sizes, batch_tokens=1024)
        for bucket in (32, 96, 512):
            assert all(options.split(size, bucket) == [size] for size in options.rows(bucket))


class TestRuntimeSettings:
    def test_options_become_settings(self, tmp_path):
        options = BucketOptions(performance_hint="throughput", cache_dir=tmp_path, threads=3)
        assert options.runtime_settings({"INFERENCE_PRECISION_HINT": "f32"}) == {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
            "CACHE_DIR": str(tmp_path),
            "INFERENCE_NUM_THREADS": 3,
        }
        assert BucketOptions().runtime_settings() == {"PERFORMANCE_HINT": "LATENCY"}

    def test_agreement_is_accepted(self):
        assert BucketOptions(threads=2).runtime_settings({"INFERENCE_NUM_THREADS": "2"})["INFERENCE_NUM_THREADS"] == 2

    @pytest.mark.parametrize(
        ("options", "name", "value"),
        [
            ({}, "PERFORMANCE_HINT", "THROUGHPUT"),
            ({"threads": 2}, "INFERENCE_NUM_THREADS", 1),
            ({"cache_dir": "a"}, "CACHE_DIR", "b"),
        ],
    )
    def test_contradiction_is_refused(self, options, name, value):
        with pytest.raises(ConfigurationError, match=f"{name} {value!r} in ov_config contradicts"):
            BucketOptions(**options).runtime_settings({name: value})


def test_padding_is_read_back():
    assert padding_multiple(BucketOptions(length_multiple=16).padding) == 16
    for other in ("longest", "fixed 384", "multiple of", "16", "", None):
        assert padding_multiple(other) is None


@pytest.mark.parametrize(
    ("num_rows", "bucket", "expected"), [(0, 32, []), (3, 32, [3]), (4, 32, [4]), (9, 32, [4, 4, 1]), (2, 300, [1, 1])]
)
def test_any_number_of_rows_is_split_without_filling_up(num_rows, bucket, expected):
    assert BucketOptions(batch_tokens=128).split_exactly(num_rows, bucket) == expected


@pytest.mark.parametrize(
    ("lengths", "num_streams", "expected"), [([64, 40, 33, 32], 1, 2), ([64, 40, 33, 32], 2, 3), ([20, 20], 1, 2)]
)
def test_calls_are_filled_from_one_bucket(lengths, num_streams, expected):
    assert BucketOptions(batch_tokens=128).fill(lengths, num_streams) == expected


@pytest.mark.parametrize(
    ("longest", "positions", "expected"), [(None, None, None), (None, 128, 128), (64, 128, 64), (256, 128, 128)]
)
def test_buckets_end_where_the_model_does(longest, positions, expected):
    options = BucketOptions(longest_bucket=longest, length_multiple=16)
    assert options.up_to(positions) == BucketOptions(longest_bucket=expected, length_multiple=16)


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"batch_sizes": (1, 2)}, ""),
        ({"max_graphs": 8}, ""),
        ({"performance_hint": "throughput"}, ""),
        ({"cache_dir": "graphs"}, r"; compile\(\) takes one for what it makes"),
        ({"threads": 2}, r"; call torch\.set_num_threads"),
    ],
    ids=str,
)
def test_options_of_fixed_shapes_are_refused_for_any_shape(option, advice):
    (name,) = option
    message = (
        rf"^{name} .* has no effect on a model of Intel Neural Compressor, .* runs any shape; leave it out{advice}$"
    )
    with pytest.raises(ConfigurationError, match=message):
        BucketOptions(**option).check_any_shape()
    BucketOptions(length_multiple=8, longest_bucket=64, batch_tokens=512).check_any_shape()
