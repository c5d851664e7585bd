"""`pipeline("question-answering")` with the call shapes of the pipeline that transformers removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, pipeline

from optimum_qala.errors import ConfigurationError, DataError, QuestionTooLongError, UnknownBudgetError
from optimum_qala.question_answering.pipeline import QuestionAnsweringPipeline
from optimum_qala.question_answering.records import QARecord


CONTEXT = "anna built the old tower in paris . the king lived in the north of london with a red book ."
QUESTION = "who built the tower ?"


@pytest.fixture
def qa(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    return pipeline("question-answering", model=tiny_model, tokenizer=tiny_tokenizer)


def test_one_question_gives_a_dictionary(qa: Any) -> None:
    answer = qa(question=QUESTION, context=CONTEXT)
    assert isinstance(qa, QuestionAnsweringPipeline)
    assert set(answer) == {"score", "start", "end", "answer"}
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""
    assert 0.0 < answer["score"] <= 1.0


def test_every_call_shape_gives_the_same_answers(qa: Any) -> None:
    expected = qa(question=QUESTION, context=CONTEXT)
    item = {"question": QUESTION, "context": CONTEXT}

    def generate() -> Iterator[dict[str, str]]:
        yield item
        yield item

    assert qa(item) == expected
    assert qa(QARecord("x", QUESTION, CONTEXT)) == expected
    assert qa([item, item]) == [expected, expected]
    assert qa((item, item)) == [expected, expected]
    assert qa(question=[QUESTION, QUESTION], context=CONTEXT) == [expected, expected]
    assert qa(question=QUESTION, context=[CONTEXT, CONTEXT]) == [expected, expected]
    assert qa(question=[QUESTION], context=[CONTEXT]) == [expected]
    stream = qa(generate())
    assert not isinstance(stream, list)
    assert list(stream) == [expected, expected]
    assert qa([]) == []


def test_generator_is_read_as_results_are_taken(qa: Any) -> None:
    """A million questions must not be read into memory first."""
    taken = []

    def generate() -> Iterator[dict[str, str]]:
        for number in range(5000):
            taken.append(number)
            yield {"question": QUESTION, "context": "anna ."}

    next(iter(qa(generate())))
    assert 0 < len(taken) < 5000


def test_budget_of_a_call_changes_that_call_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model.config.budgets = {"fast": {"retention": [1.0, 0.6, 0.6, 0.6]}}
    qa = pipeline("question-answering", model=tiny_model, tokenizer=tiny_tokenizer)
    full, fast = qa(question=QUESTION, context=CONTEXT), qa(question=QUESTION, context=CONTEXT, budget="fast")
    assert fast != full
    assert qa(question=QUESTION, context=CONTEXT, budget="1,0.6,0.6,0.6") == fast
    assert qa(question=QUESTION, context=CONTEXT) == full
    tiny_model.set_budget("fast")
    assert qa(question=QUESTION, context=CONTEXT) == fast
    assert qa(question=QUESTION, context=CONTEXT, budget="full") == full


def test_constructor_arguments_apply_to_every_call(tiny_model: Any, tiny_tokenizer: Any) -> None:
    qa = pipeline("question-answering", model=tiny_model, tokenizer=tiny_tokenizer, top_k=3, budget="1,1,0.5,0.5")
    plain = pipeline("question-answering", model=tiny_model, tokenizer=tiny_tokenizer)
    expected = plain(question=QUESTION, context=CONTEXT, top_k=3, budget="1,1,0.5,0.5")
    assert qa(question=QUESTION, context=CONTEXT) == expected
    assert len(expected) == 3
    assert isinstance(qa(question=QUESTION, context=CONTEXT, top_k=1), dict)


def test_top_k_gives_a_list_best_first(qa: Any) -> None:
    answers = qa(question=QUESTION, context=CONTEXT, top_k=4)
    scores = [answer["score"] for answer in answers]
    assert len(answers) == 4
    assert scores == sorted(scores, reverse=True)


def test_max_answer_len_limits_answers(qa: Any) -> None:
    answers = qa(question=QUESTION, context=CONTEXT, max_answer_len=1, top_k=10)
    assert all(len(answer["answer"].split()) == 1 for answer in answers)
    longer = qa(question=QUESTION, context=CONTEXT, max_answer_len=8, top_k=10)
    assert any(len(answer["answer"].split()) > 1 for answer in longer)


def test_handle_impossible_answer_lets_no_answer_win(qa: Any) -> None:
    always, never = (
        qa(question=QUESTION, context=CONTEXT, handle_impossible_answer=True, null_threshold=threshold)
        for threshold in (-1e6, 1e6)
    )
    assert (always["answer"], always["start"], always["end"]) == ("", 0, 0)
    assert never["answer"] != ""


def test_answer_late_in_a_long_context_is_found(qa: Any) -> None:
    """Windows cover the context to its end, whatever their length."""
    context = "the king lived in the old north . " * 40 + "anna ."
    whole = qa(question=QUESTION, context=context, max_seq_len=64, doc_stride=16, top_k=2000, max_answer_len=1)
    assert max(answer["end"] for answer in whole) >= len(context) - 1


def test_max_seq_len_and_doc_stride_change_the_windows(qa: Any) -> None:
    context = CONTEXT * 4
    scores = {
        qa(question=QUESTION, context=context, **settings)["score"]
        for settings in (
            {"max_seq_len": 32, "doc_stride": 8},
            {"max_seq_len": 32, "doc_stride": 4},
            {"max_seq_len": 64},
        )
    }
    assert len(scores) == 3


def test_short_max_seq_len_alone_gets_a_stride_that_fits(qa: Any) -> None:
    assert qa(question=QUESTION, context=CONTEXT, max_seq_len=24)["answer"]


def test_align_to_words_extends_partial_words(tiny_tokenizer: Any, tiny_model: Any) -> None:
    qa = pipeline("question-answering", model=tiny_model, tokenizer=tiny_tokenizer)
    context = "xyzzy quux plugh"
    pieces = qa(question=QUESTION, context=context, max_answer_len=1, align_to_words=False, top_k=20)
    words = qa(question=QUESTION, context=context, max_answer_len=1, top_k=20)
    assert any(len(piece["answer"]) == 1 for piece in pieces)
    assert {word["answer"] for word in words} == {"xyzzy", "quux", "plugh"}
    assert all(word["answer"] == context[word["start"] : word["end"]] for word in words)


def test_batch_size_changes_the_calls_not_the_answers(qa: Any, tiny_model: Any) -> None:
    items = [{"question": QUESTION, "context": CONTEXT[: 20 + 5 * number]} for number in range(7)]
    sizes: list[int] = []
    tiny_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    one_by_one = qa(items, batch_size=1)
    assert set(sizes) == {1}
    batched = qa(items, batch_size=4)
    assert max(sizes) == 4
    assert [answer["answer"] for answer in one_by_one] == [answer["answer"] for answer in batched]


@pytest.mark.parametrize("context", ["", "   ", "\n\n", "🙂 🙂", "a" * 500])
def test_pathological_contexts_do_not_crash(qa: Any, context: str) -> None:
    answer = qa(question=QUESTION, context=context)
    assert answer["answer"] == context[answer["start"] : answer["end"]]


def test_plain_bert_works_too(tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    qa = pipeline("question-answering", model=BertForQuestionAnswering(config), tokenizer=tiny_tokenizer)
    assert qa(question=QUESTION, context=CONTEXT)["answer"]


def test_save_pretrained_loads_again_without_remote_code(qa: Any, tmp_path: Path) -> None:
    qa.save_pretrained(tmp_path)
    loaded = pipeline("question-answering", model=str(tmp_path))
    assert loaded(question=QUESTION, context=CONTEXT) == qa(question=QUESTION, context=CONTEXT)
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.parametrize(
    ("inputs", "arguments", "message"),
    [
        ((), {"question": QUESTION}, "context is missing"),
        ((), {"context": CONTEXT}, "question is missing"),
        ((), {"question": "", "context": CONTEXT}, "the question of input 0 is empty"),
        ((), {"question": "  ", "context": CONTEXT}, "the question of input 0 is empty"),
        (("who ?",), {}, "got the text 'who \\?' alone"),
        (({"question": QUESTION},), {}, "context of input 0 is not a text, got None"),
        (([{"question": 3, "context": CONTEXT}],), {}, "question of input 0 is not a text, got 3"),
        (([CONTEXT],), {}, "input 0 is a str; give a dictionary"),
        (({"question": QUESTION, "context": CONTEXT},), {"question": QUESTION}, "give either question= and context="),
        ((), {"question": [QUESTION] * 2, "context": [CONTEXT] * 3}, "got 2 questions and 3 contexts"),
    ],
)
def test_bad_inputs_are_refused(qa: Any, inputs: Any, arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        qa(*inputs, **arguments)


def test_unknown_argument_is_refused(qa: Any) -> None:
    with pytest.raises(ConfigurationError, match="no argument 'topk'; it has .*'top_k'"):
        qa(question=QUESTION, context=CONTEXT, topk=3)


def test_unknown_budget_is_refused(qa: Any) -> None:
    with pytest.raises(UnknownBudgetError, match="no budget 'quick'"):
        qa(question=QUESTION, context=CONTEXT, budget="quick")


def test_question_longer_than_the_window_is_refused(qa: Any) -> None:
    with pytest.raises(QuestionTooLongError, match="record '0'"):
        qa(question="who built the tower " * 50, context=CONTEXT, max_seq_len=64)
