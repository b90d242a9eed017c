"""The demo's winner found with vLLM beside the one found with transformers, on the held-out items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.vllm_search import demo_search

from evolve.journal import JournalView
from evolve.outcome import Scored
from evolve.statistics import Estimate, estimate, paired_difference
from fitness.results import Report

_WINNER = "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Winners:
    """Held-out scores with 95 % intervals; ``difference``: vLLM's less the other's, item by item."""

    transformers: Estimate
    vllm: Estimate
    difference: Estimate


def measure(demo: Path, scratch: Path, *, candidates: int, workers: int) -> Winners:
    """Two searches with the same seed and budget, one after another."""
    theirs, ours = (
        _winner(demo_search(demo, scratch / name, vllm=vllm, candidates=candidates, workers=workers))
        for name, vllm in (("transformers", False), ("vllm", True))
    )
    return Winners(
        transformers=estimate(theirs), vllm=estimate(ours), difference=paired_difference(ours, theirs)
    )


def _winner(view: JournalView) -> Report:
    (record,) = (record for record in view.holdout if record.name == _WINNER)
    if not isinstance(record.outcome, Scored):
        raise SystemExit(f"the winner has no held-out score: {record.outcome.reason}")
    return record.outcome.report


def table(winners: Winners) -> str:
    """A line for each score."""
    rows = {
        "winner found with transformers": winners.transformers,
        "winner found with vLLM": winners.vllm,
        "difference, item by item": winners.difference,
    }
    lines = [f"{name:<34} {_shown(score)}" for name, score in rows.items()]
    verdict = "differ" if winners.difference.excludes_zero else "are the same within the interval"
    return "\n".join([*lines, f"they {verdict}"])


def _shown(score: Estimate) -> str:
    return (
        f"{score.value:.3f} +- {score.half_width:.3f}"
        if score.half_width is not None
        else f"{score.value:.3f}"
    )
