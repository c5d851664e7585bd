"""What takes part in a benchmark: a model at its budgets, and the models that it is compared with."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimum_qala.cli.console import Console
from optimum_qala.cli.finding import size_on_disk
from optimum_qala.cli.loading import (
    LoadedModel,
    PlainTorchModel,
    load_model,
    load_tokenizer,
    refuse_buckets,
)
from optimum_qala.errors import ConfigurationError, LengthConfigError, UnknownBudgetError
from optimum_qala.inference.bucket_options import BucketOptions
from optimum_qala.models.configuration_quala_minilm import FULL_BUDGET
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.question_answering.predictor import position_capacity
from optimum_qala.question_answering.records import QARecord
from optimum_qala.question_answering.windows import Window, WindowOptions
from optimum_qala.reporting.benchmark import Candidate
from optimum_qala.reporting.peers import (
    PeerOptions,
    check_depth,
    export_plain,
    load_plain_config,
    make_bert_base,
    plain_macs,
    quantize_plain,
)


# Name of the row that the others are compared with.
PLAIN_INT8 = "plain int8"
# Configurations of which `plain_macs` knows the sizes.
BERT_SHAPED = ("bert", "camembert", "roberta", "xlm-roberta")


class ModelSource:
    """A model that is loaded when it is needed, in up to two ways.

    Args:
        path: Folder or repository id.
        backend: "torch", "openvino" or "inc"; by default what the folder holds.
        revision: Branch, tag or commit of the repository; main by default.
        threads: Threads of one call; the back end's own choice by default.
        buckets: Options of the buckets to run it in, if it is to.
        loaded: The model, if it is loaded already.
        unbucketed: The same model without buckets, whose graph it shares.
    """

    def __init__(
        self,
        path: str | Path,
        backend: str | None = None,
        *,
        revision: str | None = None,
        threads: int | None = None,
        buckets: BucketOptions | None = None,
        loaded: LoadedModel | None = None,
        unbucketed: ModelSource | None = None,
    ) -> None:
        self.path, self.backend, self.threads, self.buckets = str(path), backend, threads, buckets
        self.revision = revision
        self._loaded, self._unbucketed = loaded, unbucketed

    def load(self) -> LoadedModel:
        """Return the model for batches of the same shapes again and again: loaded once."""
        if self._loaded is None and self._unbucketed is not None and self.buckets is not None:
            self._loaded = self._unbucketed.load().in_buckets(self.buckets)
        if self._loaded is None:
            self._loaded = self._load(buckets=self.buckets)
        return self._loaded

    def load_for_bulk(self) -> LoadedModel:
        """Return the model for many batches of ever new shapes, whose memory stays flat; loaded anew if it differs."""
        if self.buckets is not None or self.load().backend != "openvino":
            return self.load()
        return self._load(bulk=True)

    def _load(self, **options: Any) -> LoadedModel:
        return load_model(self.path, self.backend, revision=self.revision, threads=self.threads, **options)

    def in_buckets(self, buckets: BucketOptions) -> ModelSource:
        """Return the same model in buckets."""
        refuse_buckets(self.backend)
        return ModelSource(self.path, "openvino", threads=self.threads, buckets=buckets, unbucketed=self)


@dataclass(frozen=True)
class Entry:
    """A row to be.

    Args:
        name: How the row is called; unique.
        source: The model.
        kind: As in `Candidate`.
        budget: The budget it runs at.
        baseline: Name of the entry of the same model at full length; None if there are no budgets.
        scored_as: Name of the entry whose F1 it has, because its logits are the same; its own if None.
        is_slow: As in `Candidate`. Slow ones are not scored.
    """

    name: str
    source: ModelSource
    kind: str
    budget: str = FULL_BUDGET
    baseline: str | None = None
    scored_as: str | None = None
    is_slow: bool = False

    def in_buckets(self, source: ModelSource) -> Entry:
        """Return the row of the same model in buckets, which gives the same logits."""
        return replace(
            self,
            name=f"{self.name} in buckets",
            source=source,
            baseline=None if self.baseline is None else f"{self.baseline} in buckets",
            scored_as=self.name,
        )

    def candidate(self, loaded: LoadedModel) -> Candidate:
        """Make what is timed of the model, loaded in either way."""
        return Candidate(
            name=self.name,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            budget=self.budget,
            backend=loaded.backend,
            precision=loaded.precision,
            threads=loaded.threads,
            baseline=self.baseline,
            buckets=loaded.buckets,
            kind=self.kind,
            arithmetic=loaded.arithmetic,
            compiled=loaded.compiled,
            is_slow=self.is_slow,
            macs=_mac_counter(loaded.model.config, self.budget),
        )


def _mac_counter(config: Any, budget: str) -> Callable[[Window], int] | None:
    if hasattr(config, "macs"):
        length_config = config.resolve_budget(budget)
        return lambda window: int(config.macs(length_config, len(window), window.context_position))
    return (lambda window: plain_macs(config, window)) if config.model_type in BERT_SHAPED else None


def budget_entries(source: ModelSource, budgets: Sequence[str], depths: Sequence[int] = ()) -> list[Entry]:
    """List the rows of a model at its budgets.

    Args:
        source: The model.
        budgets: Its budgets. Full length is measured in any case: speed-ups refer to it.
        depths: Numbers of layers after which to stop, at full length.

    Returns:
        The entries.

    Raises:
        ConfigurationError: If the model does not have more layers than a depth.
    """
    entries = [
        Entry(budget, source, "budget", budget, baseline=FULL_BUDGET)
        for budget in dict.fromkeys((FULL_BUDGET, *budgets))
    ]
    num_layers = source.load().model.config.num_hidden_layers
    for depth in depths:
        check_depth(depth, num_layers, source.path)
        budget = str(LengthConfig((1.0,) * num_layers, exit_layer=depth))
        entries.append(Entry(f"first {depth} layers", source, "depth", budget, baseline=FULL_BUDGET))
    return entries


def peer_entries(paths: Sequence[str], budgets: Sequence[str], threads: int | None = None) -> list[Entry]:
    """List the rows of other models, each run by what its folder holds.

    Args:
        paths: Their folders or repository ids.
        budgets: Budgets to measure a model with budgets at, besides full length; others run at full length only.
        threads: Threads of one call.

    Returns:
        The entries.

    Raises:
        ConfigurationError: If a model with budgets cannot run at one of them.
    """
    entries = []
    for path in paths:
        source = ModelSource(path, threads=threads)
        config = source.load().model.config
        shorter = [one for one in budgets if one != FULL_BUDGET] if hasattr(config, "resolve_budget") else []
        baseline = path if shorter else None
        entries.append(Entry(path, source, "peer", baseline=baseline))
        for budget in shorter:
            try:
                config.resolve_budget(budget)
            except (UnknownBudgetError, LengthConfigError) as error:
                raise ConfigurationError(f"peer {path} cannot run at budget {budget!r}: {error}") from error
            entries.append(Entry(f"{path}, {budget}", source, "peer", budget, baseline=baseline))
    return entries


def depths_of(args: Namespace, config: Any) -> list[int]:
    """List the depths at which the model itself stops.

    Args:
        args: The parsed command line.
        config: Configuration of the model.

    Returns:
        Those of `--depths` if the model has early span heads; else none, and they are for the plain model.

    Raises:
        ConfigurationError: If they fit no model.
    """
    depths: list[int] = getattr(args, "depths", [])
    if getattr(config, "has_span_heads", False):
        return depths
    if depths and "plain" not in args:
        raise ConfigurationError(
            f"--depths {' '.join(map(str, depths))} needs --plain, or a model with early span heads, which can stop "
            "after fewer layers"
        )
    return []


def plain_capacity(path: str, tokenizer: Any) -> int:
    """Check a plain model before it is made, and say how long a sequence it takes.

    Args:
        path: Its folder or repository id.
        tokenizer: Tokenizer of the model that it is compared with.

    Returns:
        Tokens.

    Raises:
        CheckpointError: If it is a QuaLA-MiniLM, or there is none.
        ConfigurationError: If it reads other tokens.
    """
    config = load_plain_config(path)
    check_vocabulary(path, load_tokenizer(path, config), tokenizer)
    return position_capacity(Namespace(config=config)) or int(config.max_position_embeddings)


def check_vocabulary(name: str, tokenizer: Any, expected: Any) -> None:
    """Raise unless two models read the same tokens.

    Args:
        name: How the model is called.
        tokenizer: Its tokenizer.
        expected: Tokenizer of the model that it is compared with.

    Raises:
        ConfigurationError: If their windows cannot be shared.
    """
    if tokenizer.get_vocab() != expected.get_vocab():
        raise ConfigurationError(f"peer {name} has another vocabulary than the model; measure it on its own")


def with_buckets(entries: Sequence[Entry], buckets: BucketOptions | None) -> list[Entry]:
    """Add each row in buckets after those of its model.

    Args:
        entries: The rows. A model that no back end was named for, and that is none of OpenVINO, stays as it is.
        buckets: Options of the buckets; nothing is added if None.

    Returns:
        The rows and those in buckets.

    Raises:
        ConfigurationError: If a model was asked for in torch.
    """
    if buckets is None:
        return list(entries)
    by_source: dict[ModelSource, list[Entry]] = {}
    for entry in entries:
        by_source.setdefault(entry.source, []).append(entry)
    both = []
    for source, own in by_source.items():
        both += own
        if source.backend is not None or source.load().backend == "openvino":
            bucketed = source.in_buckets(buckets)
            both += [entry.in_buckets(bucketed) for entry in own]
    return both


def make_plain(
    path: str,
    depths: Sequence[int],
    folder: Path,
    tokenizer: Any,
    records: Sequence[QARecord],
    *,
    threads: int | None,
    options: PeerOptions,
    window_options: WindowOptions,
    console: Console,
) -> tuple[list[Entry], dict[str, Any]]:
    """Export and quantize a plain model, whole and cut to its first layers.

    Args:
        path: Folder or repository id of the torch checkpoint.
        depths: Numbers of layers to cut it to.
        folder: Where to write what is made.
        tokenizer: Its tokenizer.
        records: Questions to calibrate with.
        threads: Threads of one call.
        options: How the models are made.
        window_options: How contexts are cut.
        console: Where to say what takes long.

    Returns:
        The rows, and the settings of the quantization.

    Raises:
        CheckpointError: If it has no trained span head, or cannot be loaded.
        ConfigurationError: If it does not have more layers than a depth.
        DataError: If a record is bad.
    """
    for depth in depths:
        check_depth(depth, load_plain_config(path).num_hidden_layers, path)
    entries, settings = [], {}
    cuts: list[int | None] = [None, *depths]
    for num_layers in cuts:
        suffix, kind = ("", "plain") if num_layers is None else (f", {num_layers} layers", "depth")
        console.info(f"exporting and quantizing the plain model{suffix}")
        exported, quantized = folder / f"fp32-{num_layers or 'full'}", folder / f"int8-{num_layers or 'full'}"
        export_plain(path, exported, tokenizer, num_layers)
        settings = quantize_plain(
            exported, quantized, tokenizer, records, options=options, window_options=window_options
        )
        if num_layers is None:
            entries.append(Entry("plain fp32", ModelSource(exported, "openvino", threads=threads), kind))
        entries.append(Entry(f"{PLAIN_INT8}{suffix}", ModelSource(quantized, "openvino", threads=threads), kind))
    return entries, settings


def make_bert_base_entries(
    loaded: LoadedModel, folder: Path, threads: int | None, options: PeerOptions
) -> list[Entry]:
    """Make a model of BERT-base shape.

    Args:
        loaded: The model that it is compared with, whose windows it has to take.
        folder: Where to write it.
        threads: Threads of one call.
        options: Gives the seed.

    Returns:
        Its rows, in torch and in OpenVINO.
    """
    model, exported = make_bert_base(folder, loaded.tokenizer, loaded.capacity, options)
    size = size_on_disk(exported, "openvino")  # float32 weights, as a torch checkpoint would hold them
    in_torch = LoadedModel(PlainTorchModel(model), loaded.tokenizer, "torch", size)
    return [
        Entry("BERT-base shape, torch", ModelSource(exported, loaded=in_torch), "bert-base", is_slow=True),
        Entry(
            "BERT-base shape, OpenVINO",
            ModelSource(exported, "openvino", threads=threads),
            "bert-base",
            is_slow=True,
        ),
    ]


def check_names(entries: Sequence[Entry]) -> None:
    """Raise if two rows have one name.

    Args:
        entries: The rows.

    Raises:
        ConfigurationError: If so.
    """
    names = [entry.name for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"two rows would be called {twice[0]!r}; give each model once, and another path")
