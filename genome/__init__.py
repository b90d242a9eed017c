"""What may vary: search.yml -> search space; vector <-> recipe. Pure: no torch, no files."""

from genome.baselines import Baseline
from genome.benchmarks import benchmark_problems
from genome.box import Box, Kind, Variable, Vector
from genome.build import build_space
from genome.errors import GenomeError, RefusedRecipe, SearchFileError, VectorError
from genome.facts import ModelFacts
from genome.frozen import diff_search_files, frozen_search_file
from genome.parse import parse_search_file
from genome.search_file import (
    Budget,
    GenomeSpec,
    HoldoutShare,
    HoldoutTasks,
    OptimizerSpec,
    SearchFile,
    TaskEntry,
)
from genome.space import Space
from merge_engine.errors import Problem

__all__ = [
    "Baseline",
    "Box",
    "Budget",
    "GenomeError",
    "GenomeSpec",
    "HoldoutShare",
    "HoldoutTasks",
    "Kind",
    "ModelFacts",
    "OptimizerSpec",
    "Problem",
    "RefusedRecipe",
    "SearchFile",
    "SearchFileError",
    "Space",
    "TaskEntry",
    "Variable",
    "Vector",
    "VectorError",
    "benchmark_problems",
    "build_space",
    "diff_search_files",
    "frozen_search_file",
    "parse_search_file",
]
