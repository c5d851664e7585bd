"""Milliseconds of a loaded model on real windows, one at a time, for the search."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from optimum_qala._folders import write_json
from optimum_qala.cli.console import Console
from optimum_qala.cli.loading import LoadedModel
from optimum_qala.models.budget_choice import cpu_name
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.question_answering.features import Window, collate
from optimum_qala.reporting.benchmark import describe_padding, sample_windows
from optimum_qala.search.cost import measured_latency_cost
from optimum_qala.search.latency import (
    CalibrationOptions,
    LatencyTable,
    calibrate,
    compare,
    summarize_errors,
    table_cost,
    time_in_turns,
)
from optimum_qala.search.space import SearchSpace
from optimum_qala.search.store import EvaluationStore


# Windows that a measurement runs over, and a prediction too, so that both can be compared: enough to span the lengths,
# few enough for many configs.
TIMED_WINDOWS = 32
REPEATS, WARMUP = 7, 1
# Beyond this relative error of the table the user is told.
LARGEST_ERROR = 0.1


class Stopwatch:
    """Measures one model on the windows of one data set.

    Args:
        loaded: The model, loaded as it will serve.
        windows: The windows.
        console: Where progress and warnings go.
    """

    def __init__(self, loaded: LoadedModel, windows: Sequence[Window], console: Console) -> None:
        self.loaded, self.console = loaded, console
        self.windows = list(windows)
        self.conditions: dict[str, Any] = {
            "backend": loaded.backend,
            "batch": 1,
            "threads": loaded.threads,
            "cpu": cpu_name(),
            "precision": loaded.precision,
            "padding": describe_padding(loaded.buckets),
        }
        self.report: dict[str, Any] = {}

    @property
    def bucket(self) -> Callable[[int], int] | None:
        """What windows are padded to, if the model runs in buckets."""
        return None if self.loaded.buckets is None else self.loaded.buckets.bucket

    def direct_cost(self, store: EvaluationStore) -> Callable[[LengthConfig], float]:
        """Build a cost that measures every config, in turns with full length."""
        windows = sample_windows(self.windows, TIMED_WINDOWS)
        run = self._runner(windows)
        full = LengthConfig.full(self.loaded.model.config.num_hidden_layers)

        def run_all(length_config: LengthConfig) -> None:
            for number in range(len(windows)):
                run(length_config, number)

        return measured_latency_cost(
            run_all, reference=full, reference_ms=store.get_cost(full), num_windows=len(windows)
        )

    def table_cost(
        self, file: Path, space: SearchSpace, store: EvaluationStore, options: CalibrationOptions | None = None
    ) -> Callable[[LengthConfig], float]:
        """Build a cost that predicts, from a table that is measured now or was by an interrupted search.

        Args:
            file: Keeps the table, so that a resumed search goes on with the same costs.
            space: What is searched.
            store: Costs of another table, which it must not keep.
            options: What is timed for the table.

        Returns:
            Milliseconds per window of a config.
        """
        options, config = options or CalibrationOptions(), self.loaded.model.config
        if file.is_file():
            self.report = json.loads(file.read_text(encoding="utf-8"))
        searched = {
            "drop_layers": list(space.drop_layers),
            "depths": list(space.depths),
            "drop_ratio_bound": space.options.drop_ratio_bound,
        }
        made_for = {"conditions": self.conditions, "searched": searched}
        # None yet, or one that was measured elsewhere or fitted to other configs than may follow.
        if any(self.report.get(name) != value for name, value in made_for.items()):
            store.forget_costs()
            windows = sample_windows(self.windows, options.windows)
            with self.console.progress(len(windows), "measure", "length") as bar:
                table, found = calibrate(
                    self._runner(windows),
                    _sizes(windows),
                    config,
                    space,
                    options,
                    bucket=self.bucket,
                    progress=bar.update,
                )
            self.report = {**made_for, "factors": dict(table.factors), **found}
            write_json(file, self.report)
        self._warn("configs that it was not fitted to", self.report)
        sizes = _sizes(sample_windows(self.windows, TIMED_WINDOWS))
        return table_cost(LatencyTable(self.report["factors"]), sizes, config, self.bucket)

    def measure(self, length_configs: Sequence[LengthConfig]) -> list[float]:
        """Measure configs in turns.

        Args:
            length_configs: The configs.

        Returns:
            Milliseconds per window of each: medians of the windows, averaged.
        """
        windows = sample_windows(self.windows, TIMED_WINDOWS)
        with self.console.progress(len(windows), "measure budgets", "window") as bar:
            times = time_in_turns(
                self._runner(windows), length_configs, len(windows), REPEATS, WARMUP, progress=bar.update
            )
        return [float(mean) for mean in times.mean(axis=1)]

    def check(self, predicted: dict[str, tuple[LengthConfig, float]], measured: dict[str, float]) -> None:
        """Set the table's costs of the named budgets beside their measurements, in the report."""
        if not self.report:
            return
        rows = {name: compare(one, cost, measured[name]) for name, (one, cost) in predicted.items()}
        self.report["budgets"] = rows
        self._warn("the named budgets", summarize_errors(list(rows.values())))

    def _warn(self, where: str, errors: dict[str, Any]) -> None:
        text = f"the latency table is off by {errors['mean_error']:.0%}, at most {errors['max_error']:.0%}, on {where}"
        if errors["max_error"] > LARGEST_ERROR:
            text = f"warning: {text}; its costs may be in the wrong order: is the machine busy?"
        self.console.info(text)

    def _runner(self, windows: Sequence[Window]) -> Callable[[LengthConfig, int], None]:
        batches = [collate([window], self.loaded.tokenizer) for window in windows]

        def run(length_config: LengthConfig, number: int) -> None:
            with torch.inference_mode():
                self.loaded.model(**batches[number], budget=length_config)

        return run


def _sizes(windows: Sequence[Window]) -> list[tuple[int, int]]:
    return [(len(window), window.context_position) for window in windows]
