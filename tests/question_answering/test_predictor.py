"""Prediction streams in order, batches by length, loses nothing at a bad record, and scores what it predicts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from optimum_qala.errors import BackendError, ConfigurationError, DataError
from optimum_qala.question_answering.answers import DecodeOptions, decode
from optimum_qala.question_answering.features import WindowOptions, collate, make_windows
from optimum_qala.question_answering.metrics import score_predictions
from optimum_qala.question_answering.predictor import evaluate, predict
from optimum_qala.question_answering.records import QARecord, iter_records, load_records


OPTIONS = WindowOptions(max_length=48, doc_stride=12)
LONG = "the old tower in rome was built by king peter in one day and the new bridge in paris by queen anna . "


def make_records(count: int = 12) -> list[QARecord]:
    """Contexts of very different lengths, some of several windows."""
    return [
        QARecord(f"q{index}", "who built the bridge ?", (LONG * (1 + index % 4))[: 20 + 37 * index], ("tower",), (8,))
        for index in range(count)
    ]


def test_answers_equal_one_record_at_a_time(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """Reported: 100 contexts take 100 s. Batching must not change any answer nor the order."""
    records = make_records()
    expected = []
    for record in records:
        windows = make_windows(record, tiny_tokenizer, OPTIONS)
        logits: tuple[list[Any], list[Any]] = ([], [])
        for window in windows:
            with torch.no_grad():
                output = tiny_model(**collate([window], tiny_tokenizer))
            logits[0].append(output.start_logits[0].numpy())
            logits[1].append(output.end_logits[0].numpy())
        expected.append(decode(record, windows, *logits, DecodeOptions(top_k=3)))
    found = list(
        predict(
            tiny_model,
            tiny_tokenizer,
            records,
            window_options=OPTIONS,
            decode_options=DecodeOptions(top_k=3),
            batch_size=5,
            buffer_size=7,
        )
    )
    assert [record for record, _ in found] == records
    for (_, answers), reference in zip(found, expected, strict=True):
        assert [(answer.start, answer.end) for answer in answers] == [(one.start, one.end) for one in reference]
        assert [answer.score for answer in answers] == pytest.approx([one.score for one in reference], abs=1e-5)


def test_batches_are_sorted_by_length_and_padded_to_their_longest(fake_model: Any, tiny_tokenizer: Any) -> None:
    model = fake_model()
    list(predict(model, tiny_tokenizer, make_records(), window_options=OPTIONS, batch_size=4))
    shapes = [tuple(call["input_ids"].shape) for call in model.calls]
    lengths = [shape[1] for shape in shapes]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1
    assert all(int(call["attention_mask"].sum(1).max()) == call["input_ids"].shape[1] for call in model.calls)
    assert all(shape[0] == 4 for shape in shapes[:-1])


class TestFillBatch:
    """A model may say how many windows it wants at their length."""

    def model(self, fake_model: Any, fill: Any) -> Any:
        model = fake_model()
        model.asked = []

        def fill_batch(lengths: list[int]) -> int:
            model.asked.append(list(lengths))
            return fill(lengths)

        model.fill_batch = fill_batch
        return model

    def test_batches_are_of_the_size_that_the_model_wants(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        model = self.model(fake_model, lambda lengths: min(2 if lengths[0] > 32 else 3, len(lengths)))
        list(predict(model, tiny_tokenizer, make_records(), window_options=OPTIONS, batch_size=8))
        rows = [(call["input_ids"].shape[1], call["input_ids"].shape[0]) for call in model.calls]
        assert {count for length, count in rows[:-1] if length > 32} == {2}
        assert {count for length, count in rows[:-1] if length <= 32} == {3}
        assert all(lengths == sorted(lengths, reverse=True) and len(lengths) <= 8 for lengths in model.asked)

    def test_answers_stay_the_same(self, fake_model: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
        def answers() -> list[tuple[int, int]]:
            found = predict(tiny_model, tiny_tokenizer, make_records(), window_options=OPTIONS)
            return [(one[0].start, one[0].end) for _, one in found]

        expected = answers()
        tiny_model.fill_batch = lambda lengths: 1
        assert answers() == expected

    def test_padded_lengths_are_given(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        model = self.model(fake_model, len)
        list(predict(model, tiny_tokenizer, make_records(3), window_options=OPTIONS, pad_to_multiple_of=16))
        assert all(length % 16 == 0 for lengths in model.asked for length in lengths)

    @pytest.mark.parametrize("count", [0, 4])
    def test_impossible_size_is_refused(self, fake_model: Any, tiny_tokenizer: Any, count: int) -> None:
        model = self.model(fake_model, lambda lengths: count)
        with pytest.raises(BackendError, match=f"fill_batch of the model gave {count} for 3 windows; 1 to all"):
            list(predict(model, tiny_tokenizer, make_records(3), window_options=OPTIONS))


@pytest.mark.parametrize(
    ("options", "lengths"), [({"pad_to_length": 64}, {64}), ({"pad_to_multiple_of": 16}, {16, 32, 48})]
)
def test_padding_option_reaches_the_model(
    fake_model: Any, tiny_tokenizer: Any, options: dict[str, int], lengths: set[int]
) -> None:
    model = fake_model()
    list(predict(model, tiny_tokenizer, make_records(), window_options=OPTIONS, batch_size=2, **options))
    assert {call["input_ids"].shape[1] for call in model.calls} <= lengths


def test_padding_does_not_change_answers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    plain, padded = (
        [
            answers[0]
            for _, answers in predict(tiny_model, tiny_tokenizer, make_records(), window_options=OPTIONS, **options)
        ]
        for options in ({}, {"pad_to_length": 80})
    )
    assert [(answer.start, answer.end) for answer in plain] == [(answer.start, answer.end) for answer in padded]


def test_budget_is_passed_only_if_given(fake_model: Any, tiny_tokenizer: Any) -> None:
    model = fake_model()
    list(predict(model, tiny_tokenizer, make_records(2), window_options=OPTIONS))
    assert "budget" not in model.calls[-1]
    list(predict(model, tiny_tokenizer, make_records(2), window_options=OPTIONS, budget="fast"))
    assert model.calls[-1]["budget"] == "fast"


def test_budget_changes_the_logits_of_a_real_model(tiny_model: Any, tiny_tokenizer: Any) -> None:
    options = {"window_options": OPTIONS, "decode_options": DecodeOptions(top_k=5)}
    full = [answers for _, answers in predict(tiny_model, tiny_tokenizer, make_records(), **options)]
    half = [
        answers for _, answers in predict(tiny_model, tiny_tokenizer, make_records(), budget=(0.5,) * 4, **options)
    ]
    assert full != half


def test_segment_ids_are_passed_where_the_tokenizer_makes_them(
    fake_model: Any, tiny_tokenizer: Any, roberta_tokenizer: Any
) -> None:
    model = fake_model()
    list(predict(model, tiny_tokenizer, make_records(1), window_options=OPTIONS))
    list(predict(model, roberta_tokenizer, make_records(1), window_options=OPTIONS))
    assert [("token_type_ids" in call) for call in (model.calls[0], model.calls[-1])] == [True, False]


class TestStream:
    """Reading ahead is bounded."""

    def consumed(self, tokenizer: Any, model: Any, context: str, **options: Any) -> int:
        """Records that are read before the first answer arrives."""
        read = []

        def source() -> Iterator[QARecord]:
            for index in range(1000):
                read.append(index)
                yield QARecord(f"q{index}", "who ?", context)

        next(iter(predict(model, tokenizer, source(), window_options=OPTIONS, **options)))
        return len(read)

    @pytest.mark.parametrize("buffer_size", [1, 10])
    def test_buffer_size_bounds_the_records_read(self, fake_model: Any, tiny_tokenizer: Any, buffer_size: int) -> None:
        assert self.consumed(tiny_tokenizer, fake_model(), "anna .", buffer_size=buffer_size) == buffer_size

    def test_long_contexts_bound_it_further(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        assert self.consumed(tiny_tokenizer, fake_model(), "anna . " * 4000, buffer_size=10) == 2

    def test_memory_stays_flat(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        """Ten times the records, about the same peak."""

        class Silent(fake_model):  # type: ignore[misc]
            def __call__(self, **inputs: Any) -> Any:
                output = super().__call__(**inputs)
                self.calls.clear()
                return output

        peaks = []
        for count in (200, 2000):
            source = (QARecord(f"q{index}", "who ?", f"{LONG} {index}") for index in range(count))
            tracemalloc.start()
            for _ in predict(Silent(), tiny_tokenizer, source, window_options=OPTIONS, buffer_size=50):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]


class TestBadRecord:
    """Everything before a bad record is given out, then the error that names it."""

    def before_error(self, records: Any, model: Any, tokenizer: Any, message: str) -> list[str]:
        found: list[str] = []
        stream = predict(model, tokenizer, records, window_options=OPTIONS)
        with pytest.raises(DataError, match=message):
            found.extend(record.id for record, _ in stream)
        return found

    def test_empty_question(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        records = [*make_records(3), QARecord("bad", " ", "anna"), *make_records(1)]
        assert self.before_error(records, fake_model(), tiny_tokenizer, "record 'bad': the question") == [
            "q0",
            "q1",
            "q2",
        ]

    def test_first_record(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        assert self.before_error([QARecord("bad", " ", "anna")], fake_model(), tiny_tokenizer, "record 'bad'") == []

    def test_failing_source(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        source = iter_records([*make_records(2), {"id": "bad", "question": "who?"}])
        assert self.before_error(source, fake_model(), tiny_tokenizer, r"\(id 'bad'\) has no 'context'") == [
            "q0",
            "q1",
        ]

    def test_something_else(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        records = [*make_records(1), {"question": "who?"}]
        assert self.before_error(records, fake_model(), tiny_tokenizer, "expected a QARecord, found dict") == ["q0"]


def test_records_without_context_or_at_all(fake_model: Any, tiny_tokenizer: Any) -> None:
    assert list(predict(fake_model(), tiny_tokenizer, [], window_options=OPTIONS)) == []
    ((_, answers),) = predict(fake_model(), tiny_tokenizer, [QARecord("q", "who ?", "")], window_options=OPTIONS)
    assert [answer.text for answer in answers] == [""]


def test_module_is_run_in_evaluation_mode_and_left_as_it_was(tiny_tokenizer: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            assert not self.training
            assert torch.is_inference_mode_enabled()
            logits = input_ids.float()
            return SimpleNamespace(start_logits=logits, end_logits=logits)

    module = Module().train()
    for _ in predict(module, tiny_tokenizer, make_records(4), window_options=OPTIONS, buffer_size=2):
        assert module.training
        assert not torch.is_inference_mode_enabled()
    module.eval()
    list(predict(module, tiny_tokenizer, make_records(1), window_options=OPTIONS))
    assert not module.training


@pytest.mark.parametrize("convert", [np.asarray, lambda x: x.to(torch.bfloat16)], ids=["numpy", "bfloat16"])
def test_logits_of_other_back_ends_are_read(fake_model: Any, tiny_tokenizer: Any, convert: Any) -> None:
    tower = tiny_tokenizer.convert_tokens_to_ids("tower")
    inner = fake_model(tower, tower)

    def model(**inputs: Any) -> Any:
        output = inner(**inputs)
        return SimpleNamespace(start_logits=convert(output.start_logits), end_logits=convert(output.end_logits))

    ((_, answers),) = predict(model, tiny_tokenizer, [QARecord("q", "who ?", LONG)], window_options=OPTIONS)
    assert answers[0].text == "tower"


def test_progress_counts_every_record(fake_model: Any, tiny_tokenizer: Any) -> None:
    steps: list[int] = []
    list(
        predict(
            fake_model(),
            tiny_tokenizer,
            make_records(10),
            window_options=OPTIONS,
            buffer_size=4,
            progress=steps.append,
        )
    )
    assert steps == [4, 4, 2]


class TestBrokenModel:
    """Garbage is refused, not decoded."""

    def test_not_a_number(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        def model(**inputs: Any) -> Any:
            logits = inputs["input_ids"].float()
            logits[-1, 3] = torch.nan
            return SimpleNamespace(start_logits=torch.zeros_like(logits), end_logits=logits)

        records = [QARecord("long", "who ?", LONG[:60]), QARecord("short", "who ?", "anna in paris")]
        with pytest.raises(BackendError, match="end logits that are not a number for record 'short'"):
            list(predict(model, tiny_tokenizer, records, window_options=OPTIONS))

    def test_wrong_shape(self, tiny_tokenizer: Any) -> None:
        def model(**inputs: Any) -> Any:
            logits = inputs["input_ids"].float()
            return SimpleNamespace(start_logits=logits[:, :-1], end_logits=logits)

        with pytest.raises(BackendError, match=r"start logits of shape \(1, 12\) for inputs of shape \(1, 13\)"):
            list(predict(model, tiny_tokenizer, [QARecord("q", "who ?", LONG[:33])], window_options=OPTIONS))


@pytest.mark.parametrize("call", [predict, evaluate])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not a positive integer"),
        ({"buffer_size": 1.5}, r"buffer_size 1\.5 is not a positive integer"),
        ({"pad_to_length": 40}, "a window of 48 tokens does not fit pad_to_length 40"),
    ],
)
def test_bad_argument_is_refused_before_any_work(
    fake_model: Any, tiny_tokenizer: Any, call: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call(fake_model(), tiny_tokenizer, iter(()), window_options=OPTIONS, **options)


@pytest.mark.parametrize(
    ("config", "capacity"),
    [
        ({"model_type": "bert", "max_position_embeddings": 47}, 47),
        ({"model_type": "roberta", "max_position_embeddings": 49, "pad_token_id": 1}, 47),
        (
            {
                "model_type": "quala_minilm",
                "position_scheme": "roberta",
                "max_position_embeddings": 49,
                "pad_token_id": 1,
            },
            47,
        ),
    ],
)
def test_windows_longer_than_the_model_are_refused(
    fake_model: Any, tiny_tokenizer: Any, config: dict[str, Any], capacity: int
) -> None:
    """Some runtimes read past the position table and answer garbage."""
    model = fake_model()
    model.config = SimpleNamespace(**config)
    with pytest.raises(ConfigurationError, match=f"windows of up to 48 tokens exceed the {capacity} positions"):
        predict(model, tiny_tokenizer, [], window_options=OPTIONS)
    model.config.max_position_embeddings += 1
    assert list(predict(model, tiny_tokenizer, [], window_options=OPTIONS)) == []


class TestEvaluate:
    """Scores equal those of the predictions."""

    def test_scores_equal_those_of_the_predictions(self, tiny_model: Any, tiny_tokenizer: Any) -> None:
        records = make_records()
        predictions = {
            record.id: answers[0].text
            for record, answers in predict(tiny_model, tiny_tokenizer, records, window_options=OPTIONS)
        }
        found = evaluate(tiny_model, tiny_tokenizer, iter(records), window_options=OPTIONS, buffer_size=5)
        assert found.pop("seconds") > 0
        assert found == score_predictions(records, predictions)

    def test_right_answers_score_100(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        tower = tiny_tokenizer.convert_tokens_to_ids("tower")
        found = evaluate(fake_model(tower, tower), tiny_tokenizer, make_records(), window_options=OPTIONS)
        assert (found["f1"], found["exact_match"], found["num_questions"]) == (100.0, 100.0, 12)

    def test_thresholds_are_in_units_of_the_option(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        """Reported: models that never or always say "no answer". Here always, until the best threshold is used."""
        tower = tiny_tokenizer.convert_tokens_to_ids("tower")
        model = fake_model(tower, tower, null=12.0)
        records = [QARecord("a", "who ?", LONG, ("tower",), (8,)), QARecord("i", "who ?", "anna", is_impossible=True)]
        run = {"window_options": OPTIONS}
        first = evaluate(model, tiny_tokenizer, records, decode_options=DecodeOptions(allow_no_answer=True), **run)
        assert (first["has_answer_f1"], first["no_answer_f1"], first["best_f1"]) == (0.0, 100.0, 100.0)
        options = DecodeOptions(allow_no_answer=True, null_threshold=first["best_f1_threshold"])
        assert evaluate(model, tiny_tokenizer, records, decode_options=options, **run)["f1"] == first["best_f1"]

    def test_nothing_to_score_is_refused(self, fake_model: Any, tiny_tokenizer: Any) -> None:
        with pytest.raises(DataError, match="no questions to score"):
            evaluate(fake_model(), tiny_tokenizer, [], window_options=OPTIONS)
        with pytest.raises(DataError, match="record 'u' has no gold answer"):
            evaluate(fake_model(), tiny_tokenizer, [QARecord("u", "who ?", "anna")], window_options=OPTIONS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_model_scores_as_published(shared_data: Any, shared_model: Any) -> None:
    """Its README gives F1 69.6 and EM 53.5 on test_small.json, measured with other code."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    model = AutoModelForQuestionAnswering.from_pretrained(shared_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shared_model)
    found = evaluate(model, tokenizer, load_records(shared_data / "test_small.json"))
    assert found["num_questions"] == 1190
    assert found["f1"] == pytest.approx(69.6, abs=0.5)
    assert found["exact_match"] == pytest.approx(53.5, abs=0.5)
