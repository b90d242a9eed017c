"""Guard against searching on benchmark test sets, which would make their published scores worthless."""

from __future__ import annotations

from genome.search_file import SearchFile
from merge_engine.errors import Problem

# Beginnings of lm-eval task names, as mergekit-evolve guards them.
BENCHMARKS = (
    "mmlu",
    "hendrycks",
    "agieval",
    "gsm8k",
    "hellaswag",
    "winogrande",
    "arc_",
    "ai2_arc",
    "truthfulqa",
    "bigbench",
    "piqa",
    "openbookqa",
    "leaderboard",
)


def benchmark_problems(search_file: SearchFile) -> tuple[Problem, ...]:
    """One problem for each search task that is a well-known test set; held-out tasks are only reported on."""
    return tuple(
        Problem(
            f"tasks[{i}].name",
            f"{task.name!r} is a benchmark's test set: a search on it makes its score meaningless",
            "search on training items (names ending in _train are fine), or pass "
            "--i-understand-the-depths-of-the-evils-i-am-unleashing",
        )
        for i, task in enumerate(search_file.tasks)
        if task.name.startswith(BENCHMARKS) and not task.name.endswith("_train")
    )
