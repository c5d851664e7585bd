"""What every search method does with a config: know its cost, score it once, keep it, and report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from optimum_qala.errors import ConfigurationError
from optimum_qala.models.length_config import LengthConfig
from optimum_qala.search.options import SearchProgress, SearchResult
from optimum_qala.search.pareto import Candidate, dominated_area, pareto_front
from optimum_qala.search.space import Genome, SearchSpace
from optimum_qala.search.store import EvaluationStore


__all__ = ["Scorer", "open_scorer"]


class Scorer:
    """The costs and scores of one search, all of them rebuilt when it resumes.

    Args:
        space: The configs.
        evaluate: Scores a config.
        cost: Costs of a config.
        store: Keeps costs and scores on disk.
        progress: Called after every scored config.

    Raises:
        ConfigurationError: If the smallest config costs no less than the full one.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Callable[[LengthConfig], float],
        cost: Callable[[LengthConfig], float],
        store: EvaluationStore | None,
        progress: Callable[[SearchProgress], None] | None,
    ) -> None:
        self.space = space
        self.options = space.options
        self.scored: dict[Genome, Candidate] = {}
        self.areas: list[float] = []
        self.iteration = 0
        self._evaluate = evaluate
        self._cost = cost
        self._store = store
        self._progress = progress
        self._costs: dict[Genome, float] = {}
        self._num_reused = 0
        self.highest_cost = self.cost_of(space.full)
        self.lowest_cost = self.cost_of(space.smallest)
        if self.lowest_cost >= self.highest_cost:
            raise ConfigurationError(
                f"nothing to search: the smallest config, {space.length_config(space.smallest)}, costs "
                f"{self.lowest_cost:g} and full length {self.highest_cost:g}, so dropping tokens saves nothing here; "
                "raise drop_ratio_bound, drop in fewer layers, or search by MACs"
            )

    @property
    def is_spent(self) -> bool:
        """True if `max_evaluations` configs were scored."""
        return self.options.max_evaluations is not None and len(self.scored) >= self.options.max_evaluations

    @property
    def area(self) -> float:
        """`dominated_area` of what was scored so far."""
        return dominated_area(self.scored.values(), self.lowest_cost, self.highest_cost)

    def is_new(self, genome: Genome) -> bool:
        """Tell whether a config is worth scoring: not scored yet, and its cost within the bounds."""
        return genome not in self.scored and self.lowest_cost <= self.cost_of(genome) <= self.highest_cost

    def seeds(self) -> list[Genome]:
        """Choose the configs to start from: the full and the smallest one, simple ones, and even drops.

        Even drops have costs evenly between the bounds, found by bisection, for a cost may be slow to get.
        """
        wanted = self.options.population_size
        if self.options.max_evaluations is not None:
            wanted = min(wanted, self.options.max_evaluations - 2)  # even spacing also when few may be scored
        path, ends = self.space.even_path(), (self.space.full, self.space.smallest)
        simple = [
            one for one in self.space.simple_configs()[: wanted * 3 // 4] if one not in ends and self.is_new(one)
        ]
        seeds, wanted = list(simple), wanted - len(simple)
        for number in range(1, wanted + 1):
            target = self.lowest_cost + (self.highest_cost - self.lowest_cost) * number / (wanted + 1)
            costly, cheap = 0, len(path) - 1
            while cheap - costly > 1:
                middle = (costly + cheap) // 2
                if self.cost_of(path[middle]) > target:
                    costly = middle
                else:
                    cheap = middle
            nearest = min((path[cheap], path[costly]), key=lambda one: abs(self.cost_of(one) - target))
            if self.is_new(nearest) and nearest not in (*ends, *seeds):
                seeds.append(nearest)
        return [*ends, *seeds]

    def front(self) -> list[Genome]:
        """List the configs of the Pareto front, cheapest first."""
        genomes = {candidate: genome for genome, candidate in self.scored.items()}
        return [genomes[candidate] for candidate in pareto_front(self.scored.values())]

    def parents(self) -> list[Genome]:
        """List the members of the front that may have children."""
        full = self.scored[self.space.full].score or 0.0
        floor = full - self.options.parent_loss * abs(full)
        return [genome for genome in self.front() if (self.scored[genome].score or 0.0) >= floor]

    def cost_of(self, genome: Genome) -> float:
        """Return the cost of a config, from the store if it is there."""
        if genome not in self._costs:
            length_config = self.space.length_config(genome)
            value = None if self._store is None else self._store.get_cost(length_config)
            if value is None:
                # The check for a finite number comes before the store, which must not keep what cannot be used.
                value = Candidate(length_config, float(self._cost(length_config))).cost
                if self._store is not None:
                    self._store.put(length_config, cost=value)
            self._costs[genome] = value
        return self._costs[genome]

    def score(self, genomes: Iterable[Genome]) -> None:
        """Score configs, as many as `max_evaluations` leaves."""
        for genome in genomes:
            if self.is_spent:
                return
            self._score(genome)

    def _score(self, genome: Genome) -> None:
        length_config = self.space.length_config(genome)
        stored = None if self._store is None else self._store.get_score(length_config)
        score = float(self._evaluate(length_config)) if stored is None else stored
        candidate = Candidate(length_config, self.cost_of(genome), score)
        self.scored[genome] = candidate
        self._num_reused += stored is not None
        if self._store is not None and stored is None:
            self._store.put(length_config, score=score)
            self._store.save()
        if self._progress is not None:
            self._progress(
                SearchProgress(
                    iteration=self.iteration,
                    num_evaluations=len(self.scored),
                    num_reused=self._num_reused,
                    evaluation_limit=self.options.evaluation_limit,
                    area=self.area,
                    candidate=candidate,
                )
            )

    def result(self, stop_reason: str) -> SearchResult:
        """Sum up the search.

        Args:
            stop_reason: Why it ended, unless `max_evaluations` ended it.

        Returns:
            What it found.
        """
        return SearchResult(
            front=tuple(self.scored[genome] for genome in self.front()),
            full=self.scored[self.space.full],
            smallest=self.scored[self.space.smallest],
            evaluated=tuple(self.scored.values()),
            areas=tuple(self.areas),
            stop_reason="max_evaluations" if self.is_spent else stop_reason,
        )


@contextlib.contextmanager
def open_scorer(
    space: SearchSpace,
    evaluate: Callable[[LengthConfig], float],
    cost: Callable[[LengthConfig], float],
    store: EvaluationStore | None,
    progress: Callable[[SearchProgress], None] | None,
) -> Iterator[Scorer]:
    """Make a scorer that has scored the seeds, and save what the store holds however the search ends.

    Args:
        space: See `Scorer`, as for the others.
        evaluate: See `Scorer`.
        cost: See `Scorer`.
        store: See `Scorer`.
        progress: See `Scorer`.

    Yields:
        The scorer.

    Raises:
        ConfigurationError: As `Scorer`.
    """
    try:
        scorer = Scorer(space, evaluate, cost, store, progress)
        scorer.score(scorer.seeds())
        scorer.areas.append(scorer.area)
        yield scorer
    finally:
        if store is not None:
            store.save()  # costs measured since the last score
