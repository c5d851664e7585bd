from __future__ import annotations

from optimum_qala.reporting.tables import comparable_rows, markdown, settings_of
from tests.reporting.reports import report, row, rows


BULK = {**row("full", "budget", 4.0, 73.0), "batching": "32 windows", "num_windows": 110}


def lines_with(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_settings_are_apart():
    titles = [title for title, _ in settings_of(report(bulk_rows=[BULK]))]
    assert titles == ["Batch size 1, true lengths", "Batch size 32, padded to 200", "Bulk, 110 windows"]


def test_every_setting_has_a_table_with_units():
    text = markdown(report(bulk_rows=[BULK]))
    assert text.count("\n## ") == 3
    (header, *_) = lines_with(text, "| row |")
    for title in ("median, ms", "p90, ms", "times plain int8", "F1, %", "MMAC per window", "GMAC/s", "on disk, MB"):
        assert title in header
    assert lines_with(text, "| row |")[2].count("ms per window") == 1
    assert lines_with(text, "| fast | openvino | int8, else f32 | 2 | longest | 64 | 8.00 | 16.00 | 1.25 |")


def test_times_of_compiling_are_told_under_their_table():
    timed = [
        row("full", "budget", 8.0, 70.0, num_compiled=0),
        row("fast in buckets", "budget", 8.0, 70.0, num_compiled=3),
    ]
    first, second = markdown(report(rows=timed, bulk_rows=[BULK | {"num_compiled": 12}])).split("## Bulk")
    assert "Times include compiling graphs" in first
    assert "`fast in buckets` (3 graphs). Raise `--max-graphs`" in first
    assert "`full` (12 graphs)" in second
    assert "compiling" not in markdown(report(bulk_rows=[BULK]))


def test_compiled_rows_say_so():
    timed = [
        row("a", "peer", 8.0, 70.0, backend="inc", compiled=True),
        row("b", "peer", 8.0, 70.0, backend="inc", compiled=False),
        row("c", "peer", 8.0, 70.0, backend="inc"),  # from an older report
    ]
    text = markdown(report(rows=timed))
    assert "| a | inc, compiled | int8" in text
    assert "| b | inc | int8" in text
    assert "| c | inc | int8" in text


def test_what_is_not_known_is_a_dash():
    (line, _) = lines_with(markdown(report()), "| BERT-base shape, torch |")
    assert line.startswith(
        "| BERT-base shape, torch | torch | f32 | 2 | longest | 64 | 300.00 | 600.00 | 0.03 | - | - |"
    )


def test_columns_that_nothing_is_known_for_are_left_out():
    unscored = [one | {"f1": None, "exact_match": None, "ratio": None} for one in rows()]
    text = markdown(report(rows=unscored, reference=None))
    assert "F1" not in text
    assert "plain int8 |" in text  # the row
    assert "times plain int8" not in text


def test_text_says_what_it_depends_on():
    text = markdown(report())
    for part in (
        "# Benchmark of int8",
        "dev.json",
        "A CPU, avx2.",
        "400 GMAC/s (512 x 1024 by 1024 x 1024, run in u8",
    ):
        assert part in text
    assert "python 3.11.7, torch 2.13.0, transformers 5.5.4." in text
    assert "GMAC/s (" not in markdown(report(int8_peak=None))


def test_comparable_rows_are_those_at_true_lengths():
    ((title, kept),) = comparable_rows(report())
    assert title == "Batch size 1, true lengths"
    # "full" is the one in buckets; a cut plain model and one of random weights only explain the others.
    assert [(one["name"], one["median_ms"]) for one in kept] == [
        ("fast", 8.0),
        ("slower and worse", 9.0),
        ("full", 9.0),
        ("first 3 layers", 6.0),
        ("plain fp32", 30.0),
        ("plain int8", 10.0),
    ]


def test_plain_models_stay_both_ways():
    both = [row("plain int8", "plain", 10.0, 73.0), row("plain int8 in buckets", "plain", 7.0, 73.0)]
    ((_, kept),) = comparable_rows(report(rows=both))
    assert [one["name"] for one in kept] == ["plain int8", "plain int8 in buckets"]
