"""Load a model and its tokenizer for whichever back end runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from optimum_qala._compat import require
from optimum_qala.checkpoints import check_tokenizer, load_backbone, load_encoder, load_unchanged
from optimum_qala.cli.finding import cannot_load, check_folder, find_backend, first_line, size_on_disk
from optimum_qala.errors import CheckpointError, ConfigurationError, QuaLAError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.inference.files import find_config, find_graph
from optimum_qala.inference.graph import PRECISION_KEY, THREADS_KEY, check_plain_graph, read_graph
from optimum_qala.models.configuration_quala_minilm import QuaLAMiniLMConfig
from optimum_qala.quantization.configuration import IR_NAME
from optimum_qala.question_answering.predictor import position_capacity


# Batches of many windows hardly ever have a shape twice, so the operators that OpenVINO keeps for each shape (5,000 by
# default) only fill memory. One window at a time has the same few shapes again and again and needs them.
BULK_CONFIG = {"CPU_RUNTIME_CACHE_CAPACITY": 128}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer.

    Args:
        model: Called with tensors and `budget=`; has `config`.
        tokenizer: Its tokenizer.
        backend: "torch", "openvino" or "inc".
        size_bytes: What graph or weights take on disk; None if they are not in a folder here.
    """

    model: Any
    tokenizer: Any
    backend: str
    size_bytes: int | None = None

    @property
    def capacity(self) -> int:
        """Longest sequence that the model takes, in tokens."""
        return int(position_capacity(self.model) or self.model.config.max_position_embeddings)

    @property
    def precision(self) -> str:
        """What float operations run in, for example "f32"."""
        if self.backend != "torch":
            return str(self.model.precision)
        return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}.get(self.model.dtype, "other")

    @property
    def threads(self) -> int:
        """Threads that one call runs on."""
        return torch.get_num_threads() if self.backend == "torch" else int(self.model.threads)

    @property
    def arithmetic(self) -> str:
        """What matrix products run in: "int8" if the graph is quantized, else as `precision`."""
        if self.backend == "torch":
            return self.precision
        if self.backend == "inc":
            return "int8" if self.model.num_int8_layers else self.precision
        graph = self.model.graph if isinstance(self.model, PlainModel) else self.model.model
        is_quantized = any(operation.get_type_name() == "FakeQuantize" for operation in graph.get_ops())
        return "int8" if is_quantized else self.precision

    @property
    def compiled(self) -> bool:
        """Whether it runs machine code that `compile` of a model of Intel Neural Compressor made."""
        return self.backend == "inc" and bool(self.model.compiled_exits)

    @property
    def buckets(self) -> BucketOptions | None:
        """Options of the buckets that the model runs in, or None if it does not."""
        return getattr(self.model, "buckets", None)

    def in_buckets(self, buckets: BucketOptions) -> LoadedModel:
        """Return the same graph in buckets: loading it again could make another kind of model of a plain checkpoint.

        Args:
            buckets: Their options.

        Returns:
            The model in buckets, which shares the graph.

        Raises:
            ConfigurationError: If the model does not run in OpenVINO.
        """
        refuse_buckets(self.backend)
        from optimum_qala.inference.plain import OVBucketedModelForQuestionAnswering

        is_plain = isinstance(self.model, PlainModel)
        source = self.model.model if is_plain else self.model
        bucketed = OVBucketedModelForQuestionAnswering if is_plain else type(source)
        options = {} if is_plain else {"quantization": source.quantization}
        threads = {name: value for name, value in source.ov_config.items() if name == THREADS_KEY}
        model = bucketed(
            source.model, source.config, buckets=buckets, precision=self.precision, ov_config=threads, **options
        )
        return replace(self, model=model)


def load_model(
    path: str,
    backend: str | None = None,
    *,
    revision: str | None = None,
    allow_new_head: bool = False,
    threads: int | None = None,
    bulk: bool = False,
    buckets: BucketOptions | None = None,
    **config_overrides: Any,
) -> LoadedModel:
    """Load a model folder or repository.

    Args:
        path: The folder, or a repository id on the Hub.
        backend: "torch", "openvino" or "inc"; by default what the folder holds.
        revision: Branch, tag or commit of the repository; main by default.
        allow_new_head: Accept a checkpoint whose heads are not trained yet, as training does.
        threads: Threads of one call; the back end's own choice by default.
        bulk: Batches of many windows are what it will run: keep memory flat however many they are.
        buckets: Run an OpenVINO model in these buckets. A plain torch checkpoint then is exported as it is.
        config_overrides: Fields of the configuration to change, for a torch model.

    Returns:
        The model, its tokenizer and the back end.

    Raises:
        CheckpointError: If there is nothing to load, or model and tokenizer do not belong together.
        BackendError: If the model is one for another back end.
        ConfigurationError: If `threads` is less than 1, buckets are asked for elsewhere than in OpenVINO, or there is
            a revision of a folder.
    """
    if threads is not None:
        if threads < 1:
            raise ConfigurationError(f"threads {threads} is less than 1")
        torch.set_num_threads(threads)
    if buckets is not None:
        refuse_buckets(backend)
    chosen = backend or ("openvino" if buckets is not None else find_backend(path, revision))
    check_folder(path, chosen, revision)
    hub = _at(revision)
    if chosen == "inc":
        model = _load_inc(path, hub)
    elif chosen == "openvino":
        model = _load_openvino(path, threads, buckets, BULK_CONFIG if bulk and buckets is None else {}, hub)
    else:
        model = _load_torch(path, allow_new_head, hub | config_overrides)
    return LoadedModel(model, load_tokenizer(path, model.config, revision), chosen, size_on_disk(path, chosen))


class PlainTorchModel:
    """A torch model of transformers behind the call of ours.

    Args:
        model: A question answering model, which takes no budget.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config, self.dtype = model, model.config, model.dtype

    def __call__(self, budget: Any = None, **inputs: Any) -> Any:
        """Answer at full length, the only one there is."""
        return self.model(**inputs)


class PlainModel:
    """A plain exported model behind the call of ours: what users of optimum-intel run today.

    Args:
        model: An `OVModelForQuestionAnswering`, which takes no budget.
        precision: What its float operations run in.
    """

    def __init__(self, model: Any, precision: str) -> None:
        self.model, self.config, self.precision = model, model.config, precision

    def __call__(self, budget: Any = None, **inputs: Any) -> Any:
        """Answer at full length, the only one there is."""
        return self.model(**inputs)

    @property
    def graph(self) -> Any:
        """The graph."""
        return self.model.model

    @property
    def threads(self) -> int:
        """Threads that one call runs on."""
        self.model.compile()
        return int(self.model.request.get_property(THREADS_KEY))


def refuse_buckets(backend: str | None) -> None:
    """Raise if a command is asked for buckets elsewhere than in OpenVINO.

    Args:
        backend: What `--backend` was, if it was given.

    Raises:
        ConfigurationError: If it was another one than "openvino".
    """
    if backend not in (None, "openvino"):
        raise ConfigurationError(
            f"buckets are graphs of OpenVINO; leave --backend {backend} out, or the flags of buckets"
        )


def load_tokenizer(path: str, model_config: Any, revision: str | None = None) -> Any:
    """Load the tokenizer of a model and check that it belongs to it.

    Args:
        path: Folder or repository id.
        model_config: Configuration of the model.
        revision: Branch, tag or commit of the repository; main by default.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: If there is none, or it is another model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **_at(revision))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"{path} has no tokenizer that can be loaded ({first_line(error)}); save the tokenizer beside the model"
        ) from error
    check_tokenizer(model_config, tokenizer, path)
    return tokenizer


def load_plain_encoder(path: str, revision: str | None = None, **config_overrides: Any) -> Any:
    """Load the encoder of a torch checkpoint as what it is.

    Args:
        path: Folder or repository id of a BERT, RoBERTa, XLM-R or QuaLA-MiniLM checkpoint.
        revision: Branch, tag or commit of the repository; main by default.
        config_overrides: Fields of its configuration to change.

    Returns:
        The encoder, without heads.

    Raises:
        CheckpointError: If there is nothing to load.
        ConfigurationError: If there is a revision of a folder.
    """
    check_folder(path, "torch", revision)
    return _quietly(path, load_encoder, revision=revision, **config_overrides)


def load_source(path: str, revision: str | None = None) -> tuple[Any, Any]:
    """Load a torch checkpoint to make a smaller one of: the kind of model and the precision stay.

    Args:
        path: Folder or repository id.
        revision: Branch, tag or commit of the repository; main by default.

    Returns:
        The model and its tokenizer.

    Raises:
        CheckpointError: If there is nothing to load, or model and tokenizer do not belong together.
        ConfigurationError: If there is a revision of a folder.
    """
    check_folder(path, "torch", revision)
    model = _quietly(path, load_unchanged, revision=revision)
    return model, load_tokenizer(path, model.config, revision)


def _at(revision: str | None) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that names a revision, if one was given."""
    return {} if revision is None else {"revision": revision}


def _load_torch(path: str, allow_new_head: bool, config_overrides: dict[str, Any]) -> Any:
    model, report = _quietly(path, load_backbone, **config_overrides)
    if not allow_new_head:
        report.check_heads(path)
    return model


def _quietly(path: str, load: Callable[..., Any], **options: Any) -> Any:
    """Load without the table of what does not fit, which the caller judges."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return load(path, **options)
    except QuaLAError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(cannot_load(path, error)) from error
    finally:
        logging.set_verbosity(verbosity)


def _load_openvino(
    path: str, threads: int | None, buckets: BucketOptions | None, ov_config: dict[str, Any], hub: dict[str, Any]
) -> Any:
    require("openvino", "running an OpenVINO model")
    from optimum_qala.inference.openvino import OVQuaLAMiniLMForQuestionAnswering
    from optimum_qala.inference.plain import OVBucketedModelForQuestionAnswering

    ov_config = ov_config | ({} if threads is None else {THREADS_KEY: threads})
    try:
        file, beside = find_graph(path, IR_NAME, hub)
        beside = find_config(path, beside, hub)
        stored, _ = PreTrainedConfig.get_config_dict(path, **beside)
        is_plain = stored.get("model_type") != QuaLAMiniLMConfig.model_type
        options = {"buckets": buckets, "ov_config": ov_config, **hub}
        if is_plain and buckets is not None:
            return OVBucketedModelForQuestionAnswering.from_pretrained(path, **options)
        if is_plain and file is not None:
            return _load_plain(AutoConfig.from_pretrained(path, **beside), file, ov_config)
        return OVQuaLAMiniLMForQuestionAnswering.from_pretrained(path, **options)
    except QuaLAError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_load(path, error)) from error


def _load_inc(path: str, hub: dict[str, Any]) -> Any:
    from optimum_qala.inference.inc import INCQuaLAMiniLMForQuestionAnswering

    try:
        return INCQuaLAMiniLMForQuestionAnswering.from_pretrained(path, **hub)
    except QuaLAError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_load(path, error)) from error


def _load_plain(config: Any, file: Path, ov_config: dict[str, Any]) -> PlainModel:
    from optimum.intel.openvino import OVModelForQuestionAnswering

    graph = read_graph(file)
    check_plain_graph(graph)
    model = OVModelForQuestionAnswering(
        graph,
        config,
        compile=False,
        ov_config={PRECISION_KEY: "f32", **ov_config},
        model_save_dir=file.parent,
    )
    return PlainModel(model, "f32")
