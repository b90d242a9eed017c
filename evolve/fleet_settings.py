"""What a fleet of Ray workers is set up with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How many workers, where, and how patient to be with them.

    ``num_workers``: None fits the GPUs, or the cores where there is none. ``address``: a running Ray
    cluster's, None starts one on this machine. ``processes_per_worker``: GPUs that each takes, all on one
    machine; without GPUs the fewest cores. ``worker_bytes``: of a machine's memory that each worker needs at
    least, as far as is known.
    ``candidate_limit_s``: a candidate that takes longer counts as hung; None takes 20 times the slowest
    worker's first candidate, at least ten minutes. ``retries``: new attempts for a candidate whose worker
    died or hung. ``batch_size``: None takes the smallest that any worker found to fit. ``empty_limit_s``: how
    long a cluster may be without workers: spot machines come back.
    """

    num_workers: int | None = None
    address: str | None = None
    device: str | None = None
    processes_per_worker: int = 1
    workers_per_gpu: int = 1
    worker_bytes: int = 0
    logs: Path | None = None
    candidate_limit_s: float | None = None
    retries: int = 2
    batch_size: int | None = None
    empty_limit_s: float = 600.0
