"""QuaLA-MiniLM in int8 by Intel Neural Compressor, run by torch: one graph, any budget, chosen per call."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from transformers import AutoConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils import logging

from optimum_qala._folders import replacing
from optimum_qala.errors import BackendError, CheckpointError, ConfigurationError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.files import find_file, find_graph
from optimum_qala.inference.graph import retention_of
from optimum_qala.inference.grouping import group_rows, pad_logits, place_logits, real_lengths
from optimum_qala.inference.inc_compile import default_compile_cache, program_file, provide_program
from optimum_qala.inference.inc_graph import GRAPH_NAME, WEIGHTS_NAME, read_graph
from optimum_qala.inference.inc_programs import Programs
from optimum_qala.inference.inputs import read_inputs
from optimum_qala.inference.int8_fusion import fuse_kernels
from optimum_qala.inference.int8_kernels import has_kernels, use_int8_kernels
from optimum_qala.inference.sizes import plan_sizes
from optimum_qala.models.budget_choice import Conditions, choose_budget
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.models.conversion import HUB_ARGUMENTS
from optimum_qala.models.hub import HubModel
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.quantization.configuration import IR_NAME, RETENTION_INPUT, SIZES_INPUT, logit_names
from optimum_qala.quantization.cpu import has_safe_int8, read_cpu_flags
from optimum_qala.quantization.inc_configuration import INC_CONFIG_NAME, INCQuaLAConfig
from optimum_qala.quantization.inc_export import graph_inputs, graph_outputs, input_names
from optimum_qala.question_answering.predictor import position_capacity


__all__ = ["INCQuaLAMiniLMForQuestionAnswering"]

logger = logging.get_logger(__name__)

# The ratios are those of docs/results/quantization/README.md.
_UNCOMPILED = (
    "the model runs uncompiled, on the int8 kernels of torch: 1.3 to 1.7 times as fast as in float32, and a compiled "
    "one more than twice as fast; compile=True compiles it, a minute for each number of layers, once on this machine"
)


class INCQuaLAMiniLMForQuestionAnswering(HubModel):
    """An int8 QuaLA-MiniLM that torch runs on a CPU. Calls take the same `budget` as the torch model's.

    Its linear layers are the int8 kernels that torch carries, so any shape runs at once. `compile` makes it faster.
    Threads may share a model. A thread that needs another budget than the others names it in the call; `set_budget`
    changes it for all.

    Args:
        graph: The graph, as `read_graph` reads it.
        config: Configuration of the model.
        quantization: How the model was quantized.
        files: The files that the graph was read from, which `save_pretrained` copies.
        buckets: Options of the buckets, True for the defaults, False for none. With buckets the rows of a batch run in
            groups of about the same length, instead of all at the longest row's. Only `length_multiple`,
            `longest_bucket` and `batch_tokens` apply, since the graph runs any shape: a group is padded to its longest
            row, and has any number of rows that fit `batch_tokens`.

    Raises:
        BackendError: If the graph's inputs or outputs are not those that the configuration asks for.
        ConfigurationError: If `buckets` are no `BucketOptions`, or set an option that does not apply.
    """

    leaves_padding_out = True  # for those who report at what length it runs
    device = torch.device("cpu")
    dtype = torch.float32  # of what is not int8
    precision = "f32"

    def __init__(
        self,
        graph: fx.GraphModule,
        config: QuaLAMiniLMConfig,
        *,
        quantization: INCQuaLAConfig,
        files: tuple[Path, Path],
        buckets: BucketOptions | bool | None = None,
    ) -> None:
        _check_graph(graph, config)
        self.config = config
        self.buckets = BucketOptions.parse(buckets)
        if self.buckets is not None:
            self.buckets.check_any_shape()
            self.buckets = self.buckets.up_to(position_capacity(self))
        self.quantization = quantization
        self.files = files
        self.num_int8_layers = use_int8_kernels(graph)
        if self.num_int8_layers:
            fuse_kernels(graph)
        if not has_kernels():
            logger.warning(
                f"torch {torch.__version__} has no int8 kernels for this CPU, so the model runs in float32, with int8 "
                "weights and slower than the torch model; install a build of torch with oneDNN"
            )
        elif not has_safe_int8(read_cpu_flags()):
            logger.warning(
                "this CPU has no VNNI, so sums of int8 products may overflow and answers may be wrong; quantize with "
                "--backend openvino, which has an overflow fix"
            )
        self.programs = Programs(graph)
        self._budget: LengthConfig | None = None

    @property
    def budget(self) -> LengthConfig | None:
        """LengthConfig that calls use where they name no budget; None is full length."""
        return self._budget

    @property
    def threads(self) -> int:
        """Threads that a call runs on."""
        return torch.get_num_threads()

    @property
    def compiled_exits(self) -> set[int | None]:
        """Numbers of layers, None for all, that are compiled for as many threads as torch has now."""
        return self.programs.compiled_exits

    def set_budget(
        self, budget: Any = None, *, max_latency_ms: float | None = None, max_f1_loss: float | None = None
    ) -> None:
        """Choose the budget of the calls that name none, by itself or by what was measured at the named ones.

        Args:
            budget: A named budget, "full", a LengthConfig, ratios such as "1,1,0.8,0.8,0.5,0.5", or "1,1,1,1,1,1@5"
                to stop after five layers, or None for full length.
            max_latency_ms: Take the most accurate budget that was measured at or under it here: `fastest_enough`.
            max_f1_loss: Take the cheapest budget that loses at most this share of the full F1: `cheapest_accurate`.

        Raises:
            UnknownBudgetError: If it is a name that the model does not carry, or no budget was measured to fit.
            LengthConfigError: If it does not fit the model.
            ConfigurationError: If more than one argument is given, or one is out of range.
        """

        def here() -> Conditions:
            return Conditions.here("inc", self.threads, self.precision)

        self._budget = choose_budget(self.config, budget, max_latency_ms, max_f1_loss, here)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        budget: Any = None,
    ) -> QuestionAnsweringModelOutput:
        """Score every token as the start and as the end of the answer.

        Padding that all rows share is left out; with buckets, nearly all is.

        Args:
            input_ids: Token ids, as a tensor or an array. *Shape:* `(batch_size, sequence_length)`
            attention_mask: 1 for real tokens; all if None. *Shape:* `(batch_size, sequence_length)`
            token_type_ids: Zeros if None; not read by a model that has one segment. *Shape:* as `input_ids`
            budget: As in `set_budget`; None takes what `set_budget` chose.

        Returns:
            Start and end logits, `(batch_size, sequence_length)` each, of the kind (torch or numpy) that was given.
            Those of padding mean nothing.

        Raises:
            CheckpointError: If a token id is outside the vocabulary.
            ConfigurationError: If the sequence is too long, there is no token, or the shapes differ.
            LengthConfigError: If the budget does not fit the model.
            UnknownBudgetError: If the model has no budget of that name.
        """
        chosen = self._budget if budget is None else self.config.resolve_budget(budget)
        given = read_inputs(self, input_ids, attention_mask, token_type_ids)
        shape = given["input_ids"].shape
        if self.buckets is None:
            width = int(real_lengths(given["attention_mask"]).max(initial=1))
            logits = [pad_logits(values, shape[1]) for values in self._run(given, chosen, width)]
        else:
            results: dict[str, NDArray[Any]] = {}
            for group in group_rows(given["attention_mask"], self.buckets, any_shape=True):
                rows = {name: array[group.rows] for name, array in given.items()}
                for name, values in zip(("start", "end"), self._run(rows, chosen, group.bucket), strict=True):
                    place_logits(results, name, values, group.rows, shape)
            logits = [*results.values()]
        start_logits, end_logits = logits if isinstance(input_ids, np.ndarray) else map(torch.from_numpy, logits)
        return QuestionAnsweringModelOutput(start_logits=start_logits, end_logits=end_logits)

    __call__ = forward

    def _run(
        self, given: dict[str, NDArray[Any]], budget: LengthConfig | None, width: int
    ) -> list[NDArray[np.float32]]:
        """Return the logits of rows without what is behind their first `width` tokens."""
        inputs = {name: array[:, :width] for name, array in given.items()}
        inputs[SIZES_INPUT] = plan_sizes(inputs["input_ids"], inputs["attention_mask"], self.config, budget)
        inputs[RETENTION_INPUT] = retention_of(budget, self.config.dropping_layers)
        program = self.programs.choose(None if budget is None else budget.exit_layer, width)
        with torch.inference_mode():
            results: tuple[Tensor, ...] = program(*graph_inputs(inputs, self.config).values())
        return [values.numpy() for values in results]

    def fill_batch(self, lengths: Sequence[int]) -> int:
        """Say how many sequences to run in one call; `predict` and `evaluate` ask.

        Args:
            lengths: Tokens of the sequences that wait, longest first; at most as many as the caller wants in a call.

        Returns:
            How many of the first ones. With buckets these belong to one bucket and fit `batch_tokens`; without them it
            is all.
        """
        return len(lengths) if self.buckets is None else self.buckets.fill(lengths)

    def compile(self, budgets: Sequence[Any] | None = None, cache_dir: str | Path | None = None) -> None:
        """Replace what runs by machine code for this CPU, which torch's inductor makes.

        A C++ compiler takes about a minute for every number of layers that the budgets run. The result is kept in a
        cache of this machine, from where another process has it in a second. It is made for the threads that torch has
        now: under another number calls run uncompiled until `compile` is called again. Calls of a single token run
        uncompiled, too.

        A compiled call holds Python's lock until it ends, which uncompiled ones give away while they compute: the
        compiled calls of one process run one at a time and hold up its other Python threads. Use processes for a
        server.

        Args:
            budgets: Budgets to compile for, as in `set_budget`; full length and all named ones if None. Those that
                run another number of layers are not compiled.
            cache_dir: The cache; `default_compile_cache` if None. Its files hold code, so nobody else may write there.

        Raises:
            BackendError: If there is no C++ compiler, the graph cannot be compiled, or the cache cannot be made or
                written. A file of the cache that does not load is compiled again in its place.
            CheckpointError: If the files that the model was loaded from are gone or damaged.
            LengthConfigError: If a budget does not fit the model.
            UnknownBudgetError: If the model has no budget of that name.
        """
        chosen = [None, *(self.config.budgets or {})] if budgets is None else budgets
        resolved = [None if budget is None else self.config.resolve_budget(budget) for budget in chosen]
        cache = default_compile_cache() if cache_dir is None else Path(cache_dir)
        threads = self.threads
        read = functools.cache(lambda: read_graph(*self.files))  # as it was, without the kernels
        for exit_layer in {None if budget is None else budget.exit_layer for budget in resolved} - self.compiled_exits:
            file = program_file(cache, self._existing_files(), exit_layer)
            program = provide_program(file, self.config, read, logit_names(exit_layer))
            self.programs.add(exit_layer, threads, program)

    def _existing_files(self) -> tuple[Path, Path]:
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(f"{file}, which the model was loaded from, is gone; load it again")
        return self.files

    def can_generate(self) -> bool:
        """Tell pipelines that this is no generator of text."""
        return False

    def eval(self) -> INCQuaLAMiniLMForQuestionAnswering:
        """Return the model, which knows no other mode; torch's own quantized modules refuse the call."""
        return self

    def to(self, device: Any) -> INCQuaLAMiniLMForQuestionAnswering:
        """Return the model if the device is a CPU.

        Args:
            device: The device.

        Returns:
            The model itself.

        Raises:
            BackendError: If it is another device.
        """
        if torch.device(device).type != "cpu":
            raise BackendError(f"int8 models of Intel Neural Compressor run on CPUs, not on {device}; leave .to() out")
        return self

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        config: QuaLAMiniLMConfig | None = None,
        buckets: BucketOptions | bool | None = None,
        compile: bool = False,  # noqa: A002  # as in OpenVINO
        **kwargs: Any,
    ) -> INCQuaLAMiniLMForQuestionAnswering:
        """Load a model that `INCQuaLAQuantizer` saved. Nothing in its files is executed.

        Args:
            model_id: Folder or repository id. The graph may be in its sub-folder `inc`.
            config: Configuration to use instead of the stored one.
            buckets: See the class.
            compile: Call `compile` for full length and all named budgets.
            kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`. They are for
                the model's files; what is compiled goes to `default_compile_cache`.

        Returns:
            The model.

        Raises:
            BackendError: If there is no such model, it is one for another back end, or another version of torch wrote
                it and this one lacks an operator of it; or as in `compile`.
            CheckpointError: If the files are damaged or of different models.
            ConfigurationError: If an argument is unknown, or as in the class.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        if unknown := sorted(set(kwargs) - set(HUB_ARGUMENTS)):
            raise ConfigurationError(f"from_pretrained has no argument {unknown[0]!r}")
        file, hub = find_graph(model_id, GRAPH_NAME, hub)
        if file is None:
            raise BackendError(_describe_absence(model_id, hub))
        weights, record = (find_file(model_id, name, hub) for name in (WEIGHTS_NAME, INC_CONFIG_NAME))
        for name, found in ((WEIGHTS_NAME, weights), (INC_CONFIG_NAME, record)):
            if found is None:
                raise CheckpointError(f"{model_id} holds {GRAPH_NAME} without {name}; download or quantize it again")
        quantization = INCQuaLAConfig.from_json_file(record)  # type: ignore[arg-type]
        try:
            graph = read_graph(file, weights)  # type: ignore[arg-type]
        except CheckpointError as error:
            made = quantization.versions.get("torch")
            if made is not None and made.partition("+")[0] != torch.__version__.partition("+")[0]:
                raise CheckpointError(
                    f"{error}; torch {made} made it, and this is torch {torch.__version__}"
                ) from error
            raise
        config = AutoConfig.from_pretrained(model_id, **hub) if config is None else config
        files: Any = (file, weights)
        model = cls(graph, config, quantization=quantization, files=files, buckets=buckets)
        if compile:
            model.compile()
        elif model.num_int8_layers:  # else a warning has said how it runs
            logger.info(_UNCOMPILED)
        return model

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the graph, its weights, config.json and inc_config.json.

        Args:
            save_directory: Folder; made if it does not exist.
            push_to_hub: Upload the folder afterwards.
            kwargs: Arguments of `push_to_hub`; `repo_id` is the folder's name if not given.

        Raises:
            CheckpointError: If the files that the model was loaded from are gone.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for source, name in zip(self._existing_files(), (GRAPH_NAME, WEIGHTS_NAME), strict=True):
            target = folder / name
            if not (target.exists() and target.samefile(source)):
                with replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
        self.config.save_pretrained(folder)
        self.quantization.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(**({"repo_id": folder.name} | kwargs))


def _check_graph(graph: fx.GraphModule, config: Any) -> None:
    if not isinstance(config, QuaLAMiniLMConfig):
        raise BackendError(
            f"config.json describes a {getattr(config, 'model_type', None)!r} model, not a 'quala_minilm'; use the "
            f"config.json that was written with {GRAPH_NAME}"
        )
    for what, found, expected in (
        ("inputs", graph.input_names, input_names(config)),
        ("outputs", graph.output_names, graph_outputs(config)),
    ):
        if list(found) != expected:  # type: ignore[arg-type]
            raise BackendError(
                f"the graph has the {what} {list(found)}, but config.json asks for {expected}; {GRAPH_NAME} and "  # type: ignore[arg-type]
                "config.json are not of the same quantization"
            )


def _describe_absence(model_id: str | Path, hub: dict[str, Any]) -> str:
    """Say what a model is instead, and how to go on."""
    if find_graph(model_id, IR_NAME, hub)[0] is not None:
        return (
            f"{model_id} holds {IR_NAME}, a model for OpenVINO, and no {GRAPH_NAME}; load it with "
            "OVQuaLAMiniLMForQuestionAnswering"
        )
    if find_file(model_id, "quantized_weight.pt", hub) is not None:
        return (
            f"{model_id} holds quantized_weight.pt, which Intel Neural Compressor itself saved, and no {GRAPH_NAME}; "
            "loading it could run code, so quantize the torch checkpoint with INCQuaLAQuantizer"
        )
    return f"{model_id} holds no {GRAPH_NAME}; quantize the torch checkpoint with INCQuaLAQuantizer first"
