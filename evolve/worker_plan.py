"""How the machines of a cluster are shared out among workers. Pure.

Every worker gets the same share, settled at the start: the number of threads reaches the last bit of a score.
A machine that joins later gets as many workers of that share as fit on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evolve.errors import FleetError

_MOST_CPU_WORKERS = 8  # by default, on a machine without GPUs; each holds a model of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster, by its id there."""

    id: str
    host: str
    cores: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What each worker gets; ``limit``: workers in all, None for as many as fit."""

    threads: int
    device: str
    gpus: int
    limit: int | None

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for."""
        return {"num_gpus": self.gpus, "num_cpus": 0} if self.gpus else {"num_cpus": self.threads}

    def fitting(self, node: Node) -> int:
        """How many workers a machine has room for."""
        if self.gpus:
            return node.gpus // self.gpus
        most = node.cores // self.threads
        return most if self.limit is not None else min(most, _MOST_CPU_WORKERS)

    def memory_share(self, node: Node) -> float:
        """The part of a machine's free memory that each of its workers may use."""
        workers = self.fitting(node)
        return 1 / max(1, workers if self.limit is None else min(workers, self.limit))


def plan_share(
    nodes: Sequence[Node], *, num_workers: int | None, device: str | None, gpus_per_worker: int = 1
) -> Share:
    """The share of each worker on the machines that are there at the start.

    Args:
        num_workers: None takes one per GPU (or per ``gpus_per_worker``, which must be on one machine), or,
            without GPUs, one per core and at most 8 on each machine.
        device: "cpu" leaves GPUs alone; None uses them where there are any.

    Raises:
        FleetError: so many workers do not fit.
    """
    gpus = 0 if device == "cpu" else sum(node.gpus for node in nodes)
    if device == "cuda" and not gpus:
        raise FleetError("workers were asked to use GPUs, but the cluster has none")
    if gpus:
        fitting = sum(node.gpus // gpus_per_worker for node in nodes)
        if fitting < (num_workers or 1):
            wanted = f"{num_workers or 1} workers do not fit on {gpus} GPUs"
            raise FleetError(f"{wanted}: each takes {gpus_per_worker} of one machine")
        threads = max(1, sum(node.cores for node in nodes) // (num_workers or fitting))
        return Share(threads=threads, device="cuda", gpus=gpus_per_worker, limit=num_workers)
    cores = [node.cores for node in nodes]
    threads = 1 if num_workers is None else threads_per_worker(cores, num_workers)
    if num_workers is None:  # few workers on a large machine share all of its cores
        threads = max(1, max(cores, default=1) // _MOST_CPU_WORKERS)
    return Share(threads=threads, device="cpu", gpus=0, limit=num_workers)


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
