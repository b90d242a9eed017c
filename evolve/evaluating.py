"""What evaluators have in common: outcomes and times of a candidate, and a worker's share of its machine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from evolve.evaluator import Evaluation, WorkerContext
from evolve.outcome import Failed, Scored, Stage
from evolve.worker import one_line
from fitness.results import Report


def evaluated(
    merge: Callable[[], None],
    score: Callable[[], Report],
    *,
    forward_s: Callable[[], float],
    device: str,
) -> Evaluation:
    """Merge, then score; what goes wrong is the candidate's outcome. ``forward_s`` counts from anywhere."""
    stage: Stage = "merge"
    forward_before_s = forward_s()
    started = merged = time.perf_counter()
    trace = None
    try:
        merge()
        merged, stage = time.perf_counter(), "score"
        outcome: Scored | Failed = Scored(report=score())
    except Exception as error:
        traceback.print_exc()
        trace = traceback.format_exc()
        outcome = Failed(stage=stage, reason=one_line(error))
        _release_memory(device)
    ended = time.perf_counter()
    if stage == "merge":
        merged = ended
    return Evaluation(
        outcome=outcome,
        merge_s=merged - started,
        score_s=ended - merged,
        forward_s=forward_s() - forward_before_s,
        traceback=trace,
    )


def item_count(report: Report) -> int:
    """Items of all tasks."""
    return sum(len(task.items) for task in report.tasks)


def share_bytes(context: WorkerContext) -> int | None:
    """The worker's part of the free memory, of its GPU or its machine; None, for all of it, where it has a
    GPU to itself.
    """
    if context.device == "cuda":
        return None if context.device_share == 1.0 else _gpu_share_bytes(context.device_share)
    import psutil

    return int(psutil.virtual_memory().available * context.memory_share)


def _gpu_share_bytes(share: float) -> int:
    """What is left of this process's part of its GPU. The others may not have taken theirs yet."""
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return max(min(free_bytes, int(total_bytes * share) - torch.cuda.memory_reserved()), 0)


def _release_memory(device: str) -> None:
    """Give back what a failed candidate left behind, so that the next one finds the room it is used to."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
