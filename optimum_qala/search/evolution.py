"""Evolutionary search for the `LengthConfig`s that answer best at every cost.

The method is that of the Length-Adaptive Transformer (Kim & Cho, arXiv 2010.07003, `evolution.py`): seeds
between the smallest and the full config, then rounds of mutation and crossover, each followed by a cut to the Pareto
front. Differences: candidates are retention ratios on a grid, so repeats are recognised and never measured again; the
seeds are spaced evenly in cost; attempts are bounded; what costs less than the smallest config or more than the full
one is not scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.operators import Levels, cross, mutate, uniform_path
from optimum_qala.search.pareto import Candidate, dominated_area, pareto_front
from optimum_qala.search.store import EvaluationStore


__all__ = ["SearchOptions", "SearchProgress", "SearchResult", "evolve"]

# Children that repeat a known config or cost too much or too little are drawn again, this often per child asked for.
ATTEMPTS_PER_CHILD = 20


@dataclass(frozen=True)
class SearchOptions:
    """Options of `evolve`.

    Args:
        iterations: Rounds of mutation and crossover; 0 scores the seeds only.
        population_size: Seeds between the smallest and the full config, evenly spaced in cost, beside those two.
        mutations: New mutants per round.
        crossovers: New crossovers per round.
        mutation_probability: Probability with which a mutant redraws each of its ratios.
        drop_ratio_bound: Share of the remaining tokens that each dropping layer of the smallest config drops. Its cost
            is the lower bound of the search; take the bound the model was trained with, or a little more.
        step: Spacing of the grid of ratios, 1 divided by an integer.
        drop_layers: 0-based layers that may drop; all if None.
        max_evaluations: Stop after this many scored configs, those found in the store included; no limit if None.
        seed: Seed of the search; the same seed gives the same result.

    Raises:
        ConfigurationError: If an option is out of range, or nothing is left to search.
    """

    iterations: int = 30
    population_size: int = 20
    mutations: int = 30
    crossovers: int = 30
    mutation_probability: float = 0.5
    drop_ratio_bound: float = 0.4
    step: float = 0.05
    drop_layers: tuple[int, ...] | None = None
    max_evaluations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.drop_layers is not None:
            object.__setattr__(self, "drop_layers", tuple(sorted(set(self.drop_layers))))
        self._check_ranges()
        self._check_something_to_search()

    def _check_ranges(self) -> None:
        for name in ("iterations", "population_size", "mutations", "crossovers"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0.0 < self.mutation_probability <= 1.0:
            raise ConfigurationError(f"mutation_probability {self.mutation_probability:g} is not in (0, 1]")
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
        if self.drop_layers == ():
            raise ConfigurationError("drop_layers is empty: no layer may drop a token, there is nothing to search")

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
        stop_reason: "iterations", "max_evaluations", or "exhausted" if a round found no new config.
    """

    front: tuple[Candidate, ...]
    full: Candidate
    smallest: Candidate
    evaluated: tuple[Candidate, ...]
    areas: tuple[float, ...]
    stop_reason: str


def evolve(
    num_layers: int,
    evaluate: Callable[[LengthConfig], float],
    cost: Callable[[LengthConfig], float],
    options: SearchOptions,
    store: EvaluationStore | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Search the `LengthConfig`s with the best score at every cost.

    The search is a function of its arguments: same options, same costs and scores, same result. A killed search
    resumes by running it again with its store: it takes the same path, and what the store holds is not measured again.
    That holds for measured latencies too, since the store keeps them.

    Args:
        num_layers: Layers of the model.
        evaluate: Scores a config, higher is better. It gets the config as an argument and must not leave it set on a
            model. Called once per config.
        cost: Costs of a config, lower is better. Called once per config.
        options: Options of the search.
        store: Keeps costs and scores on disk; written after every scored config.
        progress: Called after every scored config.

    Returns:
        The front and everything that was scored.

    Raises:
        ConfigurationError: If `drop_layers` does not fit the model, if nothing is left to search because the smallest
            config on the grid is the full one or costs no less, or if a cost or a score is not a finite number.
    """
    return _Search(num_layers, evaluate, cost, options, store, progress).run()


class _Search:
    """The state of one search, all of it rebuilt when a search resumes."""

    def __init__(
        self,
        num_layers: int,
        evaluate: Callable[[LengthConfig], float],
        cost: Callable[[LengthConfig], float],
        options: SearchOptions,
        store: EvaluationStore | None,
        progress: Callable[[SearchProgress], None] | None,
    ) -> None:
        drop_layers = tuple(range(num_layers)) if options.drop_layers is None else options.drop_layers
        unknown = [layer for layer in drop_layers if not 0 <= layer < num_layers]
        if unknown or num_layers < 1:
            raise ConfigurationError(
                f"drop_layers names layer {unknown[0]}, but the model has layers 0 to {num_layers - 1}; layers count "
                "from 0"
                if unknown
                else f"num_layers is {num_layers}: a model without layers has nothing to search"
            )
        self.num_layers = num_layers
        self.drop_layers = drop_layers
        self.evaluate = evaluate
        self.cost = cost
        self.options = options
        self.store = store
        self.progress = progress
        self.rng = random.Random(options.seed)
        self.costs: dict[Levels, float] = {}
        self.scored: dict[Levels, Candidate] = {}
        self.num_reused = 0
        self.iteration = 0

    def run(self) -> SearchResult:
        try:
            return self._run()
        finally:
            if self.store is not None:
                self.store.save()  # costs measured since the last score

    def _run(self) -> SearchResult:
        path = uniform_path(len(self.drop_layers), self.options.drop_ratio_bound, self.options.num_levels)
        full, smallest = path[0], path[-1]
        if full == smallest:
            raise ConfigurationError(
                f"nothing to search: with step {self.options.step:g} the smallest config of drop_ratio_bound "
                f"{self.options.drop_ratio_bound:g} rounds to full length; lower step or raise drop_ratio_bound"
            )
        self.highest_cost = self._cost_of(full)
        self.lowest_cost = self._cost_of(smallest)
        if self.lowest_cost >= self.highest_cost:
            raise ConfigurationError(
                f"nothing to search: the smallest config, {self._length_config(smallest)}, costs {self.lowest_cost:g} "
                f"and full length {self.highest_cost:g}, so dropping tokens saves nothing here; raise "
                "drop_ratio_bound, drop in fewer layers, or search by MACs"
            )
        for levels in (full, smallest, *self._seeds(path)):
            self._score(levels)
        population, stop_reason = self._front(self.scored), "iterations"
        areas = [self._area()]
        while self.iteration < self.options.iterations and not self._is_spent():
            self.iteration += 1
            children = self._children(population)
            if not children:
                stop_reason = "exhausted"
                break
            for levels in children:
                if self._is_spent():
                    break
                self._score(levels)
            population = self._front(self.scored)
            areas.append(self._area())
        if self._is_spent():
            stop_reason = "max_evaluations"
        return SearchResult(
            front=tuple(self.scored[levels] for levels in population),
            full=self.scored[full],
            smallest=self.scored[smallest],
            evaluated=tuple(self.scored.values()),
            areas=tuple(areas),
            stop_reason=stop_reason,
        )

    def _seeds(self, path: Sequence[Levels]) -> list[Levels]:
        """Pick configs of the path with costs evenly between the bounds, by bisection: a cost may be slow to get."""
        wanted = self.options.population_size
        if self.options.max_evaluations is not None:
            wanted = min(wanted, self.options.max_evaluations - 2)  # even spacing also when few may be scored
        seeds: list[Levels] = []
        for number in range(1, wanted + 1):
            target = self.lowest_cost + (self.highest_cost - self.lowest_cost) * number / (wanted + 1)
            costly, cheap = 0, len(path) - 1
            while cheap - costly > 1:
                middle = (costly + cheap) // 2
                if self._cost_of(path[middle]) > target:
                    costly = middle
                else:
                    cheap = middle
            nearest = min((cheap, costly), key=lambda index: abs(self._cost_of(path[index]) - target))
            if self._is_new(path[nearest]) and path[nearest] not in (path[0], path[-1], *seeds):
                seeds.append(path[nearest])
        return seeds

    def _children(self, population: Sequence[Levels]) -> list[Levels]:
        options, rng = self.options, self.rng
        children: dict[Levels, None] = {}  # a set that keeps its order

        def breed(number: int, make: Callable[[], Levels]) -> None:
            wanted = len(children) + number
            for _ in range(number * ATTEMPTS_PER_CHILD):
                if len(children) == wanted:
                    return
                child = make()
                if self._is_new(child):
                    children[child] = None

        breed(
            options.mutations,
            lambda: mutate(rng, rng.choice(population), options.mutation_probability, options.num_levels),
        )
        if len(population) > 1:
            breed(options.crossovers, lambda: cross(*rng.sample(population, 2)))
        return list(children)

    def _is_new(self, levels: Levels) -> bool:
        """Tell whether a config is worth scoring: not scored yet, and its cost within the bounds."""
        return levels not in self.scored and self.lowest_cost <= self._cost_of(levels) <= self.highest_cost

    def _is_spent(self) -> bool:
        return self.options.max_evaluations is not None and len(self.scored) >= self.options.max_evaluations

    def _front(self, scored: dict[Levels, Candidate]) -> list[Levels]:
        levels_of = {candidate: levels for levels, candidate in scored.items()}
        return [levels_of[candidate] for candidate in pareto_front(scored.values())]

    def _area(self) -> float:
        return dominated_area(self.scored.values(), self.lowest_cost, self.highest_cost)

    def _length_config(self, levels: Levels) -> LengthConfig:
        ratios, ratio = dict(zip(self.drop_layers, levels, strict=True)), 1.0
        retention = []
        for layer in range(self.num_layers):
            ratio = ratios[layer] / self.options.num_levels if layer in ratios else ratio
            retention.append(ratio)
        return LengthConfig(tuple(retention))

    def _cost_of(self, levels: Levels) -> float:
        if levels not in self.costs:
            length_config = self._length_config(levels)
            value = None if self.store is None else self.store.get_cost(length_config)
            if value is None:
                # The check for a finite number comes before the store, which must not keep what cannot be used.
                value = Candidate(length_config, float(self.cost(length_config))).cost
                if self.store is not None:
                    self.store.put(length_config, cost=value)
            self.costs[levels] = value
        return self.costs[levels]

    def _score(self, levels: Levels) -> None:
        length_config = self._length_config(levels)
        stored = None if self.store is None else self.store.get_score(length_config)
        score = float(self.evaluate(length_config)) if stored is None else stored
        candidate = Candidate(length_config, self._cost_of(levels), score)
        self.scored[levels] = candidate
        self.num_reused += stored is not None
        if self.store is not None and stored is None:
            self.store.put(length_config, score=score)
            self.store.save()
        if self.progress is not None:
            self.progress(
                SearchProgress(
                    iteration=self.iteration,
                    num_evaluations=len(self.scored),
                    num_reused=self.num_reused,
                    evaluation_limit=self.options.evaluation_limit,
                    area=self._area(),
                    candidate=candidate,
                )
            )
