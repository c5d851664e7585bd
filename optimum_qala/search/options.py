"""What a search takes and gives, whichever method it uses."""

from __future__ import annotations

from dataclasses import dataclass

from optimum_qala.errors import ConfigurationError
from optimum_qala.search.pareto import Candidate


__all__ = ["SearchOptions", "SearchProgress", "SearchResult"]


@dataclass(frozen=True)
class SearchOptions:
    """Options of `evolve` and `optimize`.

    `optimize` has no rounds and no children: of `iterations`, `mutations` and `crossovers` it takes only how many
    configs they would score.

    Args:
        iterations: Rounds of mutation and crossover; 0 scores the seeds only.
        population_size: Seeds beside the full and the smallest config: pure exits and drops in a single layer, up to
            three quarters of them, then even drops, evenly spaced in cost.
        mutations: New mutants per round.
        crossovers: New crossovers per round.
        mutation_probability: Probability with which a mutant redraws each of its ratios, and its exit.
        merge_probability: Probability with which a mutant has one layer stop dropping, which hands its drop on to the
            next layer that drops: a layer that drops nothing does not pay for choosing.
        parent_loss: Members of the front that lose more than this share of the full score have no children.
        drop_ratio_bound: Share of the remaining tokens that each dropping layer of the smallest config drops. Its cost
            is the lower bound of the search; take the bound the model was trained with, or a little more.
        step: Spacing of the grid of ratios, 1 divided by an integer.
        drop_layers: 0-based layers that may drop; all if None.
        exit_layers: Numbers of layers that a config may stop after, beside all of them; none for a model without early
            span heads.
        max_evaluations: Stop after this many scored configs, those found in the store included; no limit if None.
        seed: Seed of the search; the same seed gives the same result.

    Raises:
        ConfigurationError: If an option is out of range, or nothing is left to search.
    """

    iterations: int = 30
    population_size: int = 20
    mutations: int = 6
    crossovers: int = 4
    mutation_probability: float = 0.5
    merge_probability: float = 0.3
    parent_loss: float = 0.5
    drop_ratio_bound: float = 0.4
    step: float = 0.05
    drop_layers: tuple[int, ...] | None = None
    exit_layers: tuple[int, ...] = ()
    max_evaluations: int | None = 72
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("drop_layers", "exit_layers"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        self._check_ranges()
        self._check_something_to_search()

    def _check_ranges(self) -> None:
        for name in ("iterations", "population_size", "mutations", "crossovers"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0.0 < self.mutation_probability <= 1.0:
            raise ConfigurationError(f"mutation_probability {self.mutation_probability:g} is not in (0, 1]")
        for name in ("merge_probability", "parent_loss"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigurationError(f"{name} {getattr(self, name):g} is not in [0, 1]")
        if not 0.0 < self.drop_ratio_bound < 1.0:
            raise ConfigurationError(
                f"drop_ratio_bound {self.drop_ratio_bound:g} is not in (0, 1); at 0 no layer may drop a token and "
                "there is nothing to search"
            )
        if not 0.0 < self.step <= 0.5 or abs(1.0 / self.step - round(1.0 / self.step)) > 1e-6:
            raise ConfigurationError(
                f"step {self.step:g} is not 1 divided by an integer of at least 2; 0.05 gives ratios 0.05, 0.1, ... 1"
            )
        if self.max_evaluations is not None and self.max_evaluations < 2:
            raise ConfigurationError(
                f"max_evaluations is {self.max_evaluations}; the full and the smallest config alone take 2"
            )

    def _check_something_to_search(self) -> None:
        if self.iterations == 0 and self.population_size == 0:
            raise ConfigurationError(
                "iterations is 0 and population_size is 0: there is nothing to search; raise one of them"
            )
        if self.iterations > 0 and self.mutations == 0 and self.crossovers == 0:
            raise ConfigurationError(
                f"mutations is 0 and crossovers is 0: {self.iterations} iterations have nothing to search; raise one "
                "of them, or set iterations to 0 to score the seeds only"
            )
        if self.drop_layers == () and not self.exit_layers:
            raise ConfigurationError(
                "drop_layers is empty and so is exit_layers: no layer may drop a token and none may be left out, so "
                "there is nothing to search"
            )

    @property
    def num_levels(self) -> int:
        """Number of ratios on the grid, 1 included and 0 excluded."""
        return round(1.0 / self.step)

    @property
    def evaluation_limit(self) -> int:
        """Most configs that the search can score, for the total of a progress bar."""
        limit = 2 + self.population_size + self.iterations * (self.mutations + self.crossovers)
        return limit if self.max_evaluations is None else min(limit, self.max_evaluations)


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands, handed to the progress callback after every scored config.

    Args:
        iteration: Round of mutation and crossover, from 1; 0 while the seeds are scored.
        num_evaluations: Configs scored so far, those found in the store included.
        num_reused: Of these, the configs found in the store.
        evaluation_limit: Most configs that the search can score; it may stop earlier.
        area: `dominated_area` of all candidates between the smallest and the full config's cost.
        candidate: The config scored last.
    """

    iteration: int
    num_evaluations: int
    num_reused: int
    evaluation_limit: int
    area: float
    candidate: Candidate


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        front: The Pareto front, cost and score strictly increasing.
        full: The full config, whether or not it is on the front.
        smallest: The config whose cost was the lower bound.
        evaluated: Every scored candidate, in the order of scoring.
        areas: `dominated_area` after the seeds and after each round.
        stop_reason: "iterations", "max_evaluations", or "exhausted" if no new config was found.
    """

    front: tuple[Candidate, ...]
    full: Candidate
    smallest: Candidate
    evaluated: tuple[Candidate, ...]
    areas: tuple[float, ...]
    stop_reason: str
