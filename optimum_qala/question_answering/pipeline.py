"""The question answering pipeline that transformers removed in version 5.3, with a budget per call.

It takes what the removed pipeline took and returns what it returned, for every model that gives start and end logits:
a plain BERT as well as QuaLA-MiniLM, in torch or on another back end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Pipeline

from optimum_qala.errors import ConfigurationError, DataError
from optimum_qala.question_answering.answers import Answer, DecodeOptions
from optimum_qala.question_answering.features import WindowOptions
from optimum_qala.question_answering.predictor import position_capacity, predict
from optimum_qala.question_answering.records import QARecord


TASK = "question-answering"

# Argument of a call -> field of the options that it sets.
_WINDOW_ARGUMENTS = {
    "max_seq_len": "max_length",
    "doc_stride": "doc_stride",
    "max_question_len": "max_question_length",
}
_DECODE_ARGUMENTS = {
    "top_k": "top_k",
    "max_answer_len": "max_answer_length",
    "handle_impossible_answer": "allow_no_answer",
    "null_threshold": "null_threshold",
}
_OTHER_ARGUMENTS = ("budget", "align_to_words")


class QuestionAnsweringPipeline(Pipeline):
    """Answers questions over contexts of any length.

        qa = pipeline("question-answering", model=model, tokenizer=tokenizer)
        qa(question="Who built it?", context="...", budget="fast")

    Keyword arguments of a call, or of the constructor for all calls:

    - `question` and `context`: a text each, or lists of the same length; one context may serve many questions.
      Instead, a dictionary or a list of dictionaries with these keys may be given. A generator gives a generator of
      results.
    - `budget`: a named budget of the model, "full", a LengthConfig or ratios; None takes what `model.set_budget`
      chose.
    - `top_k`: answers to return. With more than one the result of a question is a list.
    - `doc_stride`, `max_seq_len`, `max_question_len`: how long contexts are cut; see `WindowOptions`, also for
      defaults.
    - `max_answer_len`, `handle_impossible_answer`, `null_threshold`: how answers are chosen; see `DecodeOptions`.
    - `align_to_words`: extend answers to whole words, True by default.
    - `batch_size`: windows per call of the model, 32 by default.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        legal = {*_WINDOW_ARGUMENTS, *_DECODE_ARGUMENTS, *_OTHER_ARGUMENTS}
        unknown = sorted(set(kwargs) - legal)
        if unknown:
            raise ConfigurationError(
                f"the question answering pipeline has no argument {unknown[0]!r}; it has {sorted(legal)}"
            )
        return {}, kwargs, {}

    def preprocess(self, input_: QARecord, **_: Any) -> dict[str, Any]:
        """Wrap a record; windows are made where batches are."""
        return {"record": input_}

    def _forward(self, input_tensors: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        return {"answers": next(self._answer([input_tensors["record"]], arguments))}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> Any:
        """Unwrap the answers."""
        return model_outputs["answers"]

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Answer one question or many.

        Args:
            inputs: A dictionary with `question` and `context`, or a list or generator of them.
            kwargs: `question` and `context` instead, and the arguments that the class lists.

        Returns:
            `{"score", "start", "end", "answer"}` for one question, a list of them for a list, a generator for a
            generator. `start` and `end` are characters of the context; "no answer" is an empty text.

        Raises:
            DataError: If a question or a context is missing, empty or not a text, or the lists differ in length.
            ConfigurationError: If an argument is unknown or out of range.
        """
        batch_size = kwargs.pop("batch_size", None) or self._batch_size
        named: dict[str, Any] = {name: kwargs.pop(name) for name in ("question", "context") if name in kwargs}
        arguments = {**self._forward_params, **self._sanitize_parameters(**kwargs)[1]}
        if batch_size is not None:
            arguments["batch_size"] = batch_size
        source = _read_inputs(inputs, named)
        if isinstance(source, Mapping | QARecord):
            return next(self._answer([source], arguments))
        if isinstance(source, list):
            return list(self._answer(source, arguments))
        return self._answer(source, arguments)

    def _answer(self, source: Iterable[Any], arguments: dict[str, Any]) -> Iterator[Any]:
        arguments = dict(arguments)
        windows = {_WINDOW_ARGUMENTS[name]: arguments[name] for name in _WINDOW_ARGUMENTS if name in arguments}
        decoding = {_DECODE_ARGUMENTS[name]: arguments[name] for name in _DECODE_ARGUMENTS if name in arguments}
        settings = {"batch_size": arguments["batch_size"]} if "batch_size" in arguments else {}
        results = predict(
            self.model,
            self.tokenizer,
            _to_records(source),
            budget=arguments.get("budget"),
            window_options=_window_options(windows, self.model),
            decode_options=DecodeOptions(**decoding),
            **settings,
        )
        for record, answers in results:
            if arguments.get("align_to_words", True):
                answers = [_align_to_words(answer, record.context) for answer in answers]
            found = [
                {"score": answer.score, "start": answer.start, "end": answer.end, "answer": answer.text}
                for answer in answers
            ]
            yield found[0] if decoding.get("top_k", 1) == 1 else found

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and tokenizer.

        The base class would also copy this file into the folder, where it could not run without the package and would
        make every load ask for remote code.

        Args:
            save_directory: Folder.
            kwargs: Passed on to the model and the tokenizer.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)


def _window_options(settings: dict[str, Any], model: Any) -> WindowOptions:
    """Cut windows that the model can take, with a stride that fits them where only their length is known."""
    if "max_length" not in settings:
        capacity = position_capacity(model)
        if capacity is not None and capacity < WindowOptions.max_length:
            settings = {"max_length": capacity} | settings
    if set(settings) == {"max_length"}:
        return WindowOptions.for_max_length(settings["max_length"])
    return WindowOptions(**settings)


def _read_inputs(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Bring the call shapes of the removed pipeline into one: a dictionary, a list or another iterable of them."""
    if len(inputs) > 1 or (inputs and named):
        raise DataError("give either question= and context=, or one dictionary, list or generator of them")
    if inputs:
        source = inputs[0]
        if isinstance(source, str):
            raise DataError(f"got the text {source[:40]!r} alone; give question= and context=")
        if isinstance(source, Mapping | QARecord | list):
            return source
        return list(source) if isinstance(source, tuple) else source
    missing = [name for name in ("question", "context") if name not in named]
    if missing:
        raise DataError(f"{missing[0]} is missing; give question= and context=")
    question, context = named["question"], named["context"]
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if isinstance(question, str):
        questions = questions * len(contexts)
    if len(questions) != len(contexts):
        raise DataError(
            f"got {len(questions)} questions and {len(contexts)} contexts; give one context for each, or one"
        )
    return [{"question": question, "context": context} for question, context in zip(questions, contexts, strict=True)]


def _to_records(source: Iterable[Any]) -> Iterator[QARecord]:
    for number, item in enumerate(source):
        if isinstance(item, QARecord):
            yield item
            continue
        if not isinstance(item, Mapping):
            raise DataError(f"input {number} is a {type(item).__name__}; give a dictionary with question and context")
        for name in ("question", "context"):
            if not isinstance(item.get(name), str):
                raise DataError(f"{name} of input {number} is not a text, got {item.get(name)!r}")
        if not item["question"].strip():
            raise DataError(f"the question of input {number} is empty")
        yield QARecord(id=str(number), question=item["question"], context=item["context"])


def _align_to_words(answer: Answer, context: str) -> Answer:
    start, end = answer.start, answer.end
    if start == end:
        return answer
    while start > 0 and context[start - 1].isalnum() and context[start].isalnum():
        start -= 1
    while end < len(context) and context[end].isalnum() and context[end - 1].isalnum():
        end += 1
    return replace(answer, text=context[start:end], start=start, end=end)
