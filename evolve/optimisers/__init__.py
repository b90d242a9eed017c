"""Ask/tell optimisers: CMA-ES for numbers, an elite distribution for categoricals, or both at once."""

from evolve.optimisers.base import DEFAULT_SIGMA0, Box, Optimiser, OptimiserSettings, Vector, default_popsize
from evolve.optimisers.choice import describe, make_optimiser
from evolve.optimisers.cma_es import ALGORITHMS

__all__ = [
    "ALGORITHMS",
    "DEFAULT_SIGMA0",
    "Box",
    "Optimiser",
    "OptimiserSettings",
    "Vector",
    "default_popsize",
    "describe",
    "make_optimiser",
]
