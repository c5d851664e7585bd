"""What the OpenVINO models for question answering share: checks of tokens, precision, threads and buckets."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from optimum_qala._compat import require
from optimum_qala.errors import BackendError, ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.buckets import BucketCounters, BucketedRunner, Plan, Variant
from optimum_qala.inference.graph import PRECISION_KEY, THREADS_KEY, choose_precision, cut_graph
from optimum_qala.inference.grouping import pad_logits, real_lengths
from optimum_qala.inference.inputs import read_inputs
from optimum_qala.quantization.configuration import logit_names
from optimum_qala.question_answering.predictor import position_capacity


require("openvino", "running a model in OpenVINO")

from optimum.intel.openvino.modeling import OVModelForQuestionAnswering  # noqa: E402  # the message above first


__all__ = ["OVSpanModel"]


class OVSpanModel(OVModelForQuestionAnswering):  # type: ignore[misc]
    """A graph with start and end logits, compiled once for any shape or, with `buckets`, once for each bucket.

    Threads may share a model: each call runs an infer request of its own.

    Args:
        model: The graph.
        config: Configuration of the model.
        buckets: Options of the buckets, True for the defaults, False for one graph of any shape.
        precision: What float operations run in: "f32", or "bf16" where the CPU has it. Int8 operations are int8 either
            way. "f32" by default, because OpenVINO otherwise runs float models in bf16 on CPUs that have it.
        ov_config: OpenVINO's own settings, such as {"INFERENCE_NUM_THREADS": 1}.
        kwargs: Passed on to `OVModelForQuestionAnswering`: `device`, `dynamic_shapes`, `compile` (False by default).

    Raises:
        BackendError: If the CPU lacks the precision.
        ConfigurationError: If `precision` is not one of `PRECISIONS`, `buckets` are no `BucketOptions`, or `ov_config`
            contradicts one of them.
    """

    leaves_padding_out = True  # for those who report at what length it runs

    def __init__(
        self,
        model: Any,
        config: Any,
        *,
        buckets: BucketOptions | bool | None = None,
        precision: str | None = None,
        ov_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        ov_config = dict(ov_config or {})
        ov_config[PRECISION_KEY] = choose_precision(precision, ov_config.get(PRECISION_KEY))
        options = BucketOptions.parse(buckets)
        if options is not None:
            ov_config = options.runtime_settings(ov_config)
            self.config = config
            options = options.up_to(position_capacity(self))
        self.buckets = options
        self._runner: BucketedRunner | None = None
        self._compiled: dict[int | None, Any] = {}
        self._compile_lock = threading.Lock()
        self._local = threading.local()
        super().__init__(model, config, ov_config=ov_config, **({"compile": False} | kwargs))

    @property
    def request(self) -> Any:
        """The compiled graph of all layers; None until it is compiled."""
        return self._compiled.get(None)

    @request.setter
    def request(self, compiled: Any) -> None:
        # Upstream takes it away wherever the graph changes, which holds for every exit.
        self._compiled = {} if compiled is None else {None: compiled}

    @property
    def precision(self) -> str:
        """What float operations run in: as OpenVINO reports once a graph is compiled, as asked for before."""
        reported = self._reported(PRECISION_KEY)
        if reported is None:
            return str(self.ov_config[PRECISION_KEY])
        names = {"f32": "f32", "float": "f32", "bf16": "bf16", "bfloat16": "bf16"}
        reported = reported.get_type_name() if hasattr(reported, "get_type_name") else str(reported)
        return names.get(reported, reported)

    @property
    def threads(self) -> int:
        """Threads that a call runs on; a graph is compiled for it if there is none yet."""
        if self._reported(THREADS_KEY) is None:
            if self.buckets is None:
                self.compile()
            else:
                self.warm_up(lengths=[1], batch_sizes=[1])
        return int(self._reported(THREADS_KEY))

    def _reported(self, name: str) -> Any:
        if self.buckets is not None:
            return self.runner.get_property(name)
        return None if self.request is None else self.request.get_property(name)

    @property
    def runner(self) -> BucketedRunner:
        """What runs the graph in buckets.

        Raises:
            BackendError: If the model was loaded without buckets.
        """
        if self.buckets is None:
            raise BackendError("the model was loaded without buckets; pass buckets=True")
        with self._compile_lock:
            if self._runner is None:
                self._runner = BucketedRunner(
                    self.model,
                    self.buckets,
                    device=self._device,
                    ov_config=self.ov_config,
                    pad_token_id=getattr(self.config, "pad_token_id", None) or 0,
                    idle_selections=self._idle_selections,
                )
            return self._runner

    @property
    def bucket_counters(self) -> BucketCounters:
        """What the buckets compiled, found and dropped so far."""
        return self.runner.counters

    def fill_batch(self, lengths: Sequence[int]) -> int:
        """Say how many sequences to run in one call; `predict` and `evaluate` ask.

        Args:
            lengths: Tokens of the sequences that wait, longest first; at most as many as the caller wants in a call.

        Returns:
            How many of the first ones. With buckets these belong to one bucket and fill its bulk batch, once for each
            stream; without them it is all.
        """
        return len(lengths) if self.buckets is None else self.buckets.fill(lengths, self.runner.num_streams)

    def warm_up(
        self,
        lengths: Sequence[int] | None = None,
        batch_sizes: Sequence[int] | None = None,
        budgets: Sequence[Any] | None = None,
    ) -> int:
        """Compile graphs before they are needed, and run each once.

        Args:
            lengths: Lengths of the sequences that will come, in tokens; every bucket if None.
            batch_sizes: Rows of the calls that will come, or fewer, since a call's rows go to several buckets; every
                batch size of a bucket if None.
            budgets: Budgets of these calls, as in `forward`; the one that `set_budget` chose if None.

        Returns:
            How many graphs were compiled.

        Raises:
            BackendError: If the model was loaded without buckets.
            ConfigurationError: If a length does not fit the longest bucket, an argument is no list, or there are more
                graphs than `max_graphs`.
            LengthConfigError: If a budget does not fit the model.
            UnknownBudgetError: If the model has no budget of that name.
        """
        if isinstance(budgets, str) or not isinstance(budgets, Iterable | None):
            raise ConfigurationError(f"budgets {budgets!r} is not a list; write [{budgets!r}]")
        variants = [
            Variant(self._constants(budget), self._usual_plan(budget), logit_names(self._exit_layer(budget)))
            for budget in dict.fromkeys(self._resolve(budget) for budget in (budgets or [None]))
        ]
        return self.runner.warm_up(lengths, batch_sizes, variants)

    def forward(
        self,
        input_ids: torch.Tensor | NDArray[np.int64],
        attention_mask: torch.Tensor | NDArray[np.int64] | None = None,
        token_type_ids: torch.Tensor | NDArray[np.int64] | None = None,
        budget: Any = None,
    ) -> QuestionAnsweringModelOutput:
        """Score every token as the start and as the end of the answer.

        Padding at the end that all rows share is not computed; with buckets, hardly any is.

        Args:
            input_ids: Token ids. *Shape:* `(batch_size, sequence_length)`
            attention_mask: 1 for real tokens; all if None. *Shape:* `(batch_size, sequence_length)`
            token_type_ids: Zeros if None; not read by a model that has one segment. *Shape:* as `input_ids`
            budget: As in `set_budget`; None takes what `set_budget` chose. A model that drops no tokens takes None and
                "full" only.

        Returns:
            Start and end logits, `(batch_size, sequence_length)` each, of the kind (torch or numpy) that was given.
            Those of padding mean nothing.

        Raises:
            CheckpointError: If a token id is outside the vocabulary.
            ConfigurationError: If the sequence is too long, there is no token, or the shapes differ.
            LengthConfigError: If the budget does not fit the model.
            UnknownBudgetError: If the model has no budget of that name.
        """
        budget = self._resolve(budget)
        constants, plan, exit_layer = self._constants(budget), self._plan(budget), self._exit_layer(budget)
        inputs = read_inputs(self, input_ids, attention_mask, token_type_ids)
        length = inputs["input_ids"].shape[1]
        if "token_type_ids" not in self.input_names:
            del inputs["token_type_ids"]
        outputs: Any
        if self.buckets is None:
            if not self._has_fixed_length:
                width = int(real_lengths(inputs["attention_mask"]).max(initial=1))
                inputs = {name: np.ascontiguousarray(array[:, :width]) for name, array in inputs.items()}
            planned = {} if plan is None else dict(plan(inputs["input_ids"], inputs["attention_mask"]))
            outputs = self._infer_request(exit_layer).infer(inputs | constants | planned, share_inputs=True)
        else:
            outputs = self.runner.run(inputs, constants, plan=plan, outputs=logit_names(exit_layer))
        logits = [pad_logits(outputs[name], length) for name in logit_names(exit_layer)]
        start_logits, end_logits = logits if isinstance(input_ids, np.ndarray) else map(torch.from_numpy, logits)
        return QuestionAnsweringModelOutput(start_logits=start_logits, end_logits=end_logits)

    def _resolve(self, budget: Any) -> Any:
        """Turn what the caller gave into the budget of this call, once: another thread may choose a new default."""
        return budget

    def _constants(self, budget: Any) -> dict[str, NDArray[Any]]:
        """Write a budget, as `_resolve` gives it, as inputs of the graph."""
        raise NotImplementedError

    def _plan(self, budget: Any) -> Plan | None:
        """Return what makes further inputs of the graph from a batch, if it has any."""
        return None

    def _usual_plan(self, budget: Any) -> Plan | None:
        """Return a plan for rows that stand for the sequences that will come, which warm graphs up."""
        return self._plan(budget)

    def _idle_selections(self, constants: Mapping[str, NDArray[Any]], length: int) -> Collection[int]:
        """Return which selections of the graph keep every token; see `BucketedRunner`."""
        return ()

    def _exit_layer(self, budget: Any) -> int | None:
        """Return the number of layers that a budget runs; None for all."""
        return None

    @property
    def _has_fixed_length(self) -> bool:
        """Whether `reshape` gave the graph a fixed length."""
        return bool(self.model.input("input_ids").get_partial_shape()[1].is_static)

    def compile(self, exit_layer: int | None = None) -> None:
        """Compile a graph if it is not compiled yet; the first call that needs it does it otherwise.

        Does nothing with buckets; see `warm_up`.

        Args:
            exit_layer: Number of layers that the graph runs; all if None.
        """
        with self._compile_lock:
            if self.buckets is None and exit_layer not in self._compiled:
                graph = cut_graph(self.model, exit_layer)
                self._compiled[exit_layer] = self._compile_model(
                    graph, self._device, {**self.ov_config}, self.model_save_dir
                )

    def _infer_request(self, exit_layer: int | None) -> Any:
        """Return the calling thread's request, for a compiled model itself shares one among all callers."""
        if exit_layer not in self._compiled:
            self.compile(exit_layer)
        compiled = self._compiled[exit_layer]
        requests = vars(self._local).setdefault("requests", {})
        if exit_layer not in requests or requests[exit_layer][0] is not compiled:
            requests[exit_layer] = compiled, compiled.create_infer_request()
        return requests[exit_layer][1]

    def clear_requests(self) -> None:
        """Forget everything that was compiled."""
        super().clear_requests()
        self._runner = None

    def half(self) -> OVSpanModel:
        """Store the weights in 16 bits."""
        super().half()
        self.clear_requests()
        return self

    def reshape(self, batch_size: int, sequence_length: int, *args: Any, **kwargs: Any) -> OVSpanModel:
        """Give the graph a fixed shape.

        Args:
            batch_size: Its rows.
            sequence_length: Its columns.
            args: Passed on.
            kwargs: Passed on.

        Returns:
            The model itself.

        Raises:
            ConfigurationError: If the model has buckets, which have shapes of their own.
        """
        if self.buckets is not None:
            raise ConfigurationError(
                f"the model runs in buckets, which are of fixed shape already; leave reshape({batch_size}, "
                f"{sequence_length}) out, or load the model without buckets"
            )
        super().reshape(batch_size, sequence_length, *args, **kwargs)
        return self
