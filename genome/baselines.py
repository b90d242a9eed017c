"""What a search has to beat, scored beside its first candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genome.direct import DirectForm
from genome.frame import Frame
from genome.layout import Layout, Slot
from genome.pairs import PairForm
from merge_engine.spec import Recipe

# Methods that add up weighted task vectors, and nothing else, where all of each is kept.
_PLAIN_SUMS = ("task_arithmetic", "dare_linear")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """One merge to compare with; ``vector``, shape (D,), is it as a point of the space, where it is one.

    The names: ``source:<model>``, ``base``, ``uniform``, ``task_arithmetic``.
    """

    name: str
    recipe: Recipe
    vector: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baselines:
    """Makes the baselines of one space; ``contains`` tells whether a vector lies within its bounds."""

    frame: Frame
    layout: Layout
    form: DirectForm | PairForm
    contains: Callable[[NDArray[np.float64]], bool]

    def all(self) -> tuple[Baseline, ...]:
        """The sources in their order, the base if it is none of them, the uniform merge, task arithmetic."""
        models, base = self.frame.genome.models, self.frame.genome.base_model
        found = [self._source(model) for model in models]
        if base is not None and base not in models:
            found.append(self._base(base))
        found.append(self._uniform())
        if base is not None:
            found.append(self._task_arithmetic(base))
        return tuple(found)

    def _source(self, model: str) -> Baseline:
        """One model as it is. In the space: all weight on it, everything of it kept."""

        def alone(slot: Slot) -> float:
            if slot.parameter == "weight":
                return float(slot.model == model)
            if slot.parameter == "t":
                return float(self.form.base_model != model)
            return slot.start

        reachable = isinstance(self.form, DirectForm)
        return Baseline(
            name=f"source:{model}",
            recipe=self._as_it_is(model),
            vector=self._point(alone) if reachable else None,
        )

    def _base(self, base: str) -> Baseline:
        """The base model as it is. In the space: no weight anywhere, unless their sum is divided by."""
        genome = self.frame.genome
        reachable = (
            isinstance(self.form, DirectForm) and self.form.base_model == base and not genome.normalize
        )
        return Baseline(
            name="base", recipe=self._as_it_is(base), vector=self._weights(0.0) if reachable else None
        )

    def _uniform(self) -> Baseline:
        """Equal weights, everything kept, by the search's method; the plain mean where that takes pairs."""
        if isinstance(self.form, PairForm):
            models = self.frame.genome.models
            share = {model: {"weight": 1.0 / len(models)} for model in models}
            recipe = self.frame.whole("linear", share, parameters={"normalize": True})
            return Baseline(name="uniform", recipe=recipe, vector=None)
        start = self.layout.constant(lambda slot: slot.start)
        recipe = self.form.write(start.reshape(self.layout.shape))
        return Baseline(name="uniform", recipe=recipe, vector=start if self.contains(start) else None)

    def _task_arithmetic(self, base: str) -> Baseline:
        """The base plus the sum of all task vectors, each with weight 1."""
        genome = self.frame.genome
        ones = {model: {"weight": 1.0} for model in genome.models if model != base}
        recipe = self.frame.whole(
            "task_arithmetic",
            {base: {}, **ones},
            base_model=base,
            parameters={"normalize": False, "lambda": 1.0},
        )
        reachable = genome.merge_method in _PLAIN_SUMS and not genome.normalize
        return Baseline(
            name="task_arithmetic", recipe=recipe, vector=self._weights(1.0) if reachable else None
        )

    def _as_it_is(self, model: str) -> Recipe:
        return self.frame.whole("passthrough", {model: {}})

    def _weights(self, weight: float) -> NDArray[np.float64] | None:
        return self._point(lambda slot: weight if slot.parameter == "weight" else slot.start)

    def _point(self, value: Callable[[Slot], float]) -> NDArray[np.float64] | None:
        vector = self.layout.constant(value)
        return vector if self.contains(vector) else None
