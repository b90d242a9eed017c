"""What may vary: search.yml -> search space; vector <-> recipe. Pure: no torch, no files."""

from genome.baselines import Baseline
from genome.benchmarks import benchmark_problems
from genome.errors import GenomeError, SearchFileError, VectorError
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
    "Budget",
    "GenomeError",
    "GenomeSpec",
    "HoldoutShare",
    "HoldoutTasks",
    "OptimizerSpec",
    "Problem",
    "SearchFile",
    "SearchFileError",
    "Space",
    "TaskEntry",
    "VectorError",
    "benchmark_problems",
    "diff_search_files",
    "frozen_search_file",
    "parse_search_file",
]
