"""How the machines of a cluster are shared out among workers. Pure.

Every worker gets the same share, settled at the start: the number of threads reaches the last bit of a score.
A machine that joins later gets as many workers of that share as fit on it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evolve.errors import FleetError
from evolve.wording import gigabytes, some

_MOST_CPU_WORKERS = 8  # by default, on a machine without GPUs; each holds a model of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster, by its id there. ``memory_bytes``: for workers; None: nobody knows."""

    id: str
    host: str
    cores: int
    gpus: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What each worker gets; ``limit``: workers in all, None for as many as fit. ``worker_bytes``: of a
    machine's memory that each needs at least. ``workers_per_gpu``: more than one share a GPU.
    """

    threads: int
    device: str
    gpus: int
    limit: int | None
    worker_bytes: int = 0
    workers_per_gpu: int = 1

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for."""
        if self.gpus:
            return {"num_gpus": self.gpus / self.workers_per_gpu, "num_cpus": 0}
        return {"num_cpus": self.threads}

    def fitting(self, node: Node) -> int:
        """How many workers a machine has room for."""
        by_gpus = node.gpus * self.workers_per_gpu // self.gpus if self.gpus else 0
        most = by_gpus if self.gpus else node.cores // self.threads
        if not self.gpus and self.limit is None:
            most = min(most, _MOST_CPU_WORKERS)
        return min(most, _most_in_memory(node, self.worker_bytes))

    def memory_share(self, node: Node) -> float:
        """The part of a machine's free memory that each of its workers may use."""
        workers = self.fitting(node)
        return 1 / max(1, workers if self.limit is None else min(workers, self.limit))


def plan_share(
    nodes: Sequence[Node],
    *,
    num_workers: int | None,
    device: str | None,
    processes_per_worker: int = 1,
    workers_per_gpu: int = 1,
    worker_bytes: int = 0,
) -> Share:
    """The share of each worker on the machines that are there at the start.

    Args:
        num_workers: None takes one per GPU, or, without GPUs, one per core and at most 8 on each machine.
        device: "cpu" leaves GPUs alone; None uses them where there are any.
        processes_per_worker: GPUs that each takes, all on one machine; or without GPUs the fewest cores.
        workers_per_gpu: more than one share each GPU, with ``processes_per_worker`` of 1.
        worker_bytes: memory of the machine that each worker needs at least: where there is too little, there
            are fewer workers than GPUs or cores.

    Raises:
        FleetError: so many workers do not fit, or none does.
    """
    gpus = 0 if device == "cpu" else sum(node.gpus for node in nodes)
    if device == "cuda" and not gpus:
        raise FleetError("workers were asked to use GPUs, but the cluster has none")
    if gpus:
        if processes_per_worker > 1 and workers_per_gpu > 1:
            raise FleetError(
                f"workers that take {processes_per_worker} GPUs each cannot share them: --workers-per-gpu 1"
            )
        fitting = sum(node.gpus * workers_per_gpu // processes_per_worker for node in nodes)
        if fitting < (num_workers or 1):
            wanted = f"{num_workers or 1} workers do not fit on {gpus} GPUs"
            shares = workers_per_gpu > 1
            each = f"{workers_per_gpu} share each" if shares else f"each takes {processes_per_worker}"
            raise FleetError(f"{wanted}: {each} of one machine")
        share = Share(
            threads=max(1, sum(node.cores for node in nodes) // (num_workers or fitting)),
            device="cuda",
            gpus=processes_per_worker,
            limit=num_workers,
            worker_bytes=worker_bytes,
            workers_per_gpu=workers_per_gpu,
        )
    else:
        threads = _cpu_threads(nodes, num_workers, processes_per_worker, worker_bytes)
        share = Share(threads=threads, device="cpu", gpus=0, limit=num_workers, worker_bytes=worker_bytes)
    _check_memory(share, nodes)
    return share


def _cpu_threads(
    nodes: Sequence[Node], num_workers: int | None, least_threads: int, worker_bytes: int
) -> int:
    if num_workers is not None:
        return threads_per_worker([node.cores for node in nodes], num_workers)
    largest = max(nodes, key=lambda node: node.cores, default=None)
    if largest is None:
        return 1
    # Few workers on a large machine share all of its cores.
    workers = min(_MOST_CPU_WORKERS, largest.cores // least_threads, _most_in_memory(largest, worker_bytes))
    return max(1, largest.cores // max(workers, 1))


def _most_in_memory(node: Node, worker_bytes: int) -> int:
    if node.memory_bytes is None or not worker_bytes:
        return sys.maxsize
    return node.memory_bytes // worker_bytes


def _check_memory(share: Share, nodes: Sequence[Node]) -> None:
    """Raise `FleetError` where it is memory that workers lack."""
    fitting = sum(map(share.fitting, nodes))
    if fitting >= (share.limit or 1) or not share.worker_bytes:
        return
    each = f"each worker needs about {gigabytes(share.worker_bytes)}"
    most = max((node.memory_bytes or 0 for node in nodes), default=0)
    if fitting:
        raise FleetError(
            f"{some(share.limit or 1, 'worker')} need more memory than there is: {each}; "
            f"--num-workers {fitting} fits"
        )
    raise FleetError(
        f"there is not enough memory: {each}, and {gigabytes(most)} are free; close other programs, take a "
        "larger machine, models of a smaller dtype (`dtype: bfloat16`), or --on-disk with --load-in-4bit"
    )


def threads_per_worker(cores: Sequence[int], workers: int) -> int:
    """The most cores that each of ``workers`` can have, when none may straddle two machines.

    Raises:
        FleetError: there are fewer cores than workers.
    """
    for threads in range(max(cores, default=0), 0, -1):
        if sum(count // threads for count in cores) >= workers:
            return threads
    raise FleetError(f"{workers} workers do not fit on {sum(cores)} cores: each takes at least one")


def missing_workers(share: Share, nodes: Sequence[Node], present: Mapping[str, int]) -> list[Node]:
    """Where to start a worker, once for each, given how many each machine has (by id)."""
    free = {node.id: share.fitting(node) - present.get(node.id, 0) for node in nodes}
    left = None if share.limit is None else share.limit - sum(present.values())
    places: list[Node] = []
    while left is None or len(places) < left:
        open_nodes = [node for node in nodes if free[node.id] > 0]
        if not open_nodes:
            break
        chosen = max(open_nodes, key=lambda node: free[node.id])  # the first of those with most room
        free[chosen.id] -= 1
        places.append(chosen)
    return places
