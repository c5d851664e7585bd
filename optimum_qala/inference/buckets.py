"""Run an OpenVINO graph through static copies of it, one for each batch size and padded length.

A graph that is compiled for any shape prepares itself anew whenever the shape changes. Sequences are therefore padded
to the next of a few lengths, the buckets, and each bucket has a graph of its own, compiled when it is first needed.
The rows of a batch go to the buckets of their own lengths.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from optimum_qala.errors import BackendError, ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.folding import input_types, is_static, output_names, specialize, unpack_tables
from optimum_qala.inference.graph import PRECISION_KEY
from optimum_qala.inference.grouping import Group, group_rows, place_logits


__all__ = ["BucketCounters", "BucketedRunner", "Plan", "Variant"]

logger = logging.get_logger(__name__)

# Inputs with a row for each sequence, and what a real token of the rows is that warm graphs up.
ROW_INPUTS = {"input_ids": None, "attention_mask": 1, "token_type_ids": 0}

Plan = Callable[[NDArray[np.int64], NDArray[np.int64]], Mapping[str, NDArray[Any]]]
IdleSelections = Callable[[Mapping[str, NDArray[Any]], int], Collection[int]]


@dataclass(frozen=True)
class Variant:
    """One of the graphs that a graph becomes in the same bucket, for example by its budget.

    Args:
        constants: As in `BucketedRunner.run`.
        plan: As in `BucketedRunner.run`.
        outputs: As in `BucketedRunner.run`.
    """

    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    plan: Plan | None = None
    outputs: Sequence[str] | None = None


@dataclass(frozen=True)
class BucketCounters:
    """What a runner has done so far.

    Args:
        compilations: Graphs that were compiled.
        hits: Batches whose graph was there.
        evictions: Graphs that were dropped because there were more than `max_graphs`.
        compile_seconds: Time that compiling took, added up.
    """

    compilations: int = 0
    hits: int = 0
    evictions: int = 0
    compile_seconds: float = 0.0


@dataclass
class _Job:
    """A batch that runs."""

    graph: _Graph
    request: Any
    rows: NDArray[np.intp]


class _Graph:
    """A compiled graph with its infer requests: one for each batch that runs at the same time.

    Requests belong to the graph and not to threads, so that dropping the graph frees them all.
    """

    def __init__(self, compiled: Any, outputs: Sequence[str], static: bool) -> None:
        self.compiled, self.outputs, self.is_static = compiled, tuple(outputs), static
        self.num_streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: list[Any] = []

    def start(self, batch: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]) -> _Job:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        if self.num_streams == 1:
            request.infer(batch, share_inputs=True, share_outputs=True)
        else:
            request.start_async(batch, share_inputs=True)
        return _Job(self, request, rows)

    def finish(self, job: _Job, results: dict[str, NDArray[Any]], shape: tuple[int, int]) -> None:
        """Copy the logits of the real rows and columns, for the request will use its memory again."""
        job.request.wait()
        for index, name in enumerate(self.outputs):
            place_logits(results, name, job.request.get_output_tensor(index).data, job.rows, shape)
        self._idle.append(job.request)


class BucketedRunner:
    """Runs a graph in buckets. Threads may share a runner.

    Args:
        model: The `openvino.Model`; its inputs have shape (batch_size, length), but for those that are given as
            constants.
        options: The buckets.
        device: OpenVINO device.
        ov_config: OpenVINO's own settings.
        pad_token_id: Token that sequences are padded with.
        idle_selections: Tells, from the constants and the padded length, which selections of tokens keep every token;
            see `specialize`.

    Raises:
        ConfigurationError: If `ov_config` contradicts the options.
    """

    def __init__(
        self,
        model: Any,
        options: BucketOptions | None = None,
        *,
        device: str = "CPU",
        ov_config: Mapping[str, Any] | None = None,
        pad_token_id: int = 0,
        idle_selections: IdleSelections | None = None,
    ) -> None:
        self.options, self.device = options or BucketOptions(), device
        self.settings = self.options.runtime_settings(ov_config)
        self.pad_token_id = pad_token_id
        self._idle_selections = idle_selections
        self._types, self._outputs = input_types(model), output_names(model)
        self._model = unpack_tables(model, self._compute)
        self._graphs: OrderedDict[Any, Future[_Graph]] = OrderedDict()
        self._counters = BucketCounters()
        self._latest: _Graph | None = None
        self._lock = threading.Lock()
        self._clone_lock = threading.Lock()

    @property
    def counters(self) -> BucketCounters:
        """What was done so far."""
        return self._counters

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept now."""
        return len(self._graphs)

    @property
    def is_static(self) -> bool | None:
        """Whether the graph that was compiled last has no dynamic shape inside; None if none was compiled yet."""
        return None if self._latest is None else self._latest.is_static

    @property
    def num_streams(self) -> int:
        """Batches that run side by side; 1 until a graph was compiled."""
        return 1 if self._latest is None else self._latest.num_streams

    def get_property(self, name: str) -> Any:
        """Ask a compiled graph for one of OpenVINO's properties.

        Args:
            name: Name of the property.

        Returns:
            Its value, or None if no graph was compiled yet.
        """
        return None if self._latest is None else self._latest.compiled.get_property(name)

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        constants: Mapping[str, NDArray[Any]] | None = None,
        *,
        plan: Plan | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a batch of any shape.

        Args:
            inputs: Inputs by name, among them `input_ids` and `attention_mask`, whose rows may be padded at the end.
                *Shape of each:* `(batch_size, sequence_length)`
            constants: Values of the other inputs of the graph, which become constants of the compiled graph.
            plan: Makes further constants of the padded `input_ids` and `attention_mask` of each batch that is run.
                The fewer different ones it makes, the fewer graphs are compiled.
            outputs: Names of the outputs that are wanted; all if None.

        Returns:
            Outputs by name, `PADDING_LOGIT` where padding was left out. *Shape of each:*
            `(batch_size, sequence_length, ...)`

        Raises:
            BackendError: If inputs are missing, unknown or of different shapes, or a graph cannot be compiled.
            ConfigurationError: If the sequences are longer than the longest bucket.
        """
        shape = self._check(inputs)
        wanted = self._outputs if outputs is None else tuple(dict.fromkeys(outputs))
        results: dict[str, NDArray[Any]] = {}
        running: deque[_Job] = deque()
        try:
            for group in group_rows(inputs["attention_mask"], self.options):
                batch = {name: self._pad(name, array, group) for name, array in inputs.items()}
                folded = dict(constants or {})
                if plan is not None:
                    folded |= plan(batch["input_ids"], batch["attention_mask"])
                if missing := [name for name in self._types if name not in inputs and name not in folded]:
                    raise BackendError(f"the graph needs {missing[0]!r}, which is neither an input nor a constant")
                graph = self._find_graph(group.size, group.bucket, folded, wanted)
                running.append(graph.start(batch, group.rows))
                # One batch more than there are streams, so that no stream waits for this thread.
                while len(running) > (graph.num_streams if graph.num_streams > 1 else 0):
                    job = running.popleft()
                    job.graph.finish(job, results, shape)
            while running:
                job = running.popleft()
                job.graph.finish(job, results, shape)
        finally:
            for job in running:  # after an error; the arrays that they read must live as long as they run
                job.request.wait()
        return results

    def warm_up(
        self,
        lengths: Sequence[int] | None = None,
        batch_sizes: Sequence[int] | None = None,
        variants: Sequence[Variant] = (Variant(),),
    ) -> int:
        """Compile graphs before they are needed, and run each once.

        Args:
            lengths: Lengths of sequences whose buckets are wanted; all up to the longest if None.
            batch_sizes: Rows of the calls that will come, or fewer, since a call's rows go to several buckets; every
                batch size of each bucket if None.
            variants: Constants, plans and outputs of these calls. The plans are given rows without padding.

        Returns:
            How many graphs were compiled.

        Raises:
            ConfigurationError: If a length or a number of rows is not positive, a length does not fit the longest
                bucket, or there are more graphs than `max_graphs`, so that the first would be dropped again.
            BackendError: As in `run`.
        """
        options = self.options
        for name, values in (("lengths", lengths), ("batch_sizes", batch_sizes)):
            if not isinstance(values, Iterable | None):
                raise ConfigurationError(f"{name} {values!r} is not a list; write [{values!r}]")
            if values is not None and (illegal := [value for value in values if value < 1]):
                raise ConfigurationError(f"{name} of the warm-up holds {illegal[0]}, which is not positive")
        buckets = options.buckets() if lengths is None else sorted({options.bucket(length) for length in lengths})
        wanted = []
        for bucket in reversed(buckets):  # the longest first: it fails at once if memory is short
            most = max(options.rows(bucket) if batch_sizes is None else batch_sizes, default=0)
            sizes = {size for rows in range(1, most + 1) for size in options.split(rows, bucket)}
            wanted += [(bucket, size) for size in sorted(sizes)]
        if (total := len(wanted) * len(variants)) > options.max_graphs:
            raise ConfigurationError(
                f"the warm-up asks for {total} graphs, but max_graphs is {options.max_graphs}; raise it, or name "
                "fewer lengths, batch sizes or budgets"
            )
        before = self._counters.compilations
        for bucket, size in wanted:
            for variant in variants:
                inputs = {
                    name: np.full((size, bucket), self.pad_token_id if value is None else value, dtype=np.int64)
                    for name, value in ROW_INPUTS.items()
                    if name in self._types and name not in variant.constants
                }
                self.run(inputs, variant.constants, plan=variant.plan, outputs=variant.outputs)
        return self._counters.compilations - before

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        for name in ("input_ids", "attention_mask"):
            if name not in inputs:
                raise BackendError(f"{name} is missing; the inputs are {sorted(inputs)}")
        shape = inputs["input_ids"].shape
        if len(shape) != 2 or 0 in shape:
            raise BackendError(f"input_ids have shape {shape}; expected (batch size, length), both positive")
        for name, array in inputs.items():
            if name not in self._types:
                raise BackendError(f"the graph has no input {name!r}; it has {list(self._types)}")
            if array.shape != shape:
                raise BackendError(f"{name} has shape {array.shape}, but input_ids have shape {shape}")
        return shape[0], shape[1]

    def _pad(self, name: str, array: NDArray[Any], group: Group) -> NDArray[Any]:
        real = array[group.rows, : group.bucket]
        if real.shape == (group.size, group.bucket):
            return np.ascontiguousarray(real, dtype=self._types[name])
        padding = self.pad_token_id if name == "input_ids" else 0
        batch = np.full((group.size, group.bucket), padding, dtype=self._types[name])
        batch[: len(real), : real.shape[1]] = real
        # Rows that fill the batch up repeat a real one: without a single token, attention would divide by zero.
        batch[len(real) :] = batch[0]
        return batch

    def _find_graph(
        self, num_rows: int, length: int, constants: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]
    ) -> _Graph:
        values = [(name, str(array.dtype), array.shape, array.tobytes()) for name, array in sorted(constants.items())]
        key = (num_rows, length, tuple(values), outputs)
        with self._lock:
            future = self._graphs.get(key)
            is_new = future is None
            if future is None:
                future = self._graphs[key] = Future()
                self._evict()
            else:
                self._graphs.move_to_end(key)
                self._counters = replace(self._counters, hits=self._counters.hits + 1)
        if is_new:
            try:
                future.set_result(self._compile(num_rows, length, constants, outputs))
            except BaseException as error:
                with self._lock:
                    if self._graphs.get(key) is future:
                        del self._graphs[key]
                future.set_exception(error)
                raise
        return future.result()  # another thread may still be compiling it

    def _evict(self) -> None:
        while len(self._graphs) > self.options.max_graphs:
            # A thread that runs this graph holds it, and so does one that waits for it.
            self._graphs.popitem(last=False)
            self._counters = replace(self._counters, evictions=self._counters.evictions + 1)

    def _compute(self, model: Any) -> NDArray[Any]:
        from optimum.intel.openvino.modeling_base import core

        compiled = core.compile_model(model, self.device, {PRECISION_KEY: "f32"})
        values: NDArray[Any] = compiled.create_infer_request().infer({})[0]
        return values

    def _compile(
        self, num_rows: int, length: int, constants: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]
    ) -> _Graph:
        from optimum.intel.openvino.modeling_base import core

        began = time.perf_counter()
        idle = () if self._idle_selections is None else self._idle_selections(constants, length)
        with self._clone_lock:
            special = specialize(self._model, num_rows, length, constants, outputs, idle)
        try:
            compiled = core.compile_model(special, self.device, self.settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BackendError(f"OpenVINO cannot compile the graph for {num_rows} x {length}: {reason}") from error
        graph = _Graph(compiled, output_names(special), is_static(special))
        seconds = time.perf_counter() - began
        logger.info(f"compiled the graph of {num_rows} rows of {length} tokens in {seconds:.2f} s")
        with self._lock:
            self._latest = graph
            before = self._counters
            self._counters = replace(
                before,
                compilations=before.compilations + 1,
                compile_seconds=before.compile_seconds + seconds,
            )
        return graph
