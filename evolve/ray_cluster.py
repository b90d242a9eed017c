"""Which Ray cluster to use, and how its cores and GPUs are shared out among the workers."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evolve.errors import FleetError

_OBJECT_STORE_BYTES = 80_000_000  # Ray's least: recipes and reports are all that travels
_MOST_CPU_WORKERS = 8  # by default, a machine without GPUs; each holds a model of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What each of ``workers`` gets; ``resources`` is what Ray is asked for."""

    workers: int
    threads: int
    device: str
    memory_share: float  # of a machine's free memory
    resources: dict[str, float] = field(default_factory=dict)


def connect(address: str | None, num_workers: int | None) -> bool:
    """Join the cluster at ``address`` (or ``RAY_ADDRESS``) as it is, or start one on this machine.

    Returns:
        whether it is ours: started here, to be stopped by `disconnect`.

    Raises:
        FleetError: no cluster answers at ``address``.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        _keep_to_ourselves()
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise FleetError(f"no Ray cluster answers at {address}: {error}") from error
        return False
    ray.init(
        address="local",
        num_cpus=max(_cores(), num_workers or 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        **quiet,
    )
    return True


def disconnect() -> None:
    import ray

    ray.shutdown()


def plan_workers(num_workers: int | None, device: str | None) -> Share:
    """Share out the cluster that this process is connected to.

    Args:
        num_workers: None takes one per GPU, or, without GPUs, one per core (at most 8 on each machine).
        device: "cpu" leaves GPUs alone; None uses them where there are any.

    Raises:
        FleetError: so many workers do not fit.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not gpus:
        raise FleetError("workers were asked to use GPUs, but the cluster has none")
    if gpus:
        workers = num_workers or gpus
        if workers > gpus:
            raise FleetError(f"{workers} workers do not fit on {gpus} GPUs: each takes one of its own")
        return Share(
            workers=workers,
            threads=max(1, sum(cores) // workers),
            device="cuda",
            memory_share=1 / max(1, workers // len(nodes)),
            resources={"num_gpus": 1, "num_cpus": 0},
        )
    workers = num_workers or max(1, sum(min(count, _MOST_CPU_WORKERS) for count in cores))
    threads = threads_per_worker(cores, workers)
    return Share(
        workers=workers,
        threads=threads,
        device="cpu",
        memory_share=1 / min(workers, max(cores) // threads),
        resources={"num_cpus": threads},
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


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _keep_to_ourselves() -> None:
    """Let the cluster that Ray starts here be reached by this search alone. Ray reads this when it is
    imported.

    Left alone, Ray listens on every network interface, lets anyone in who connects, and reports usage home.
    """
    if "ray" in sys.modules:
        return
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # the one switch that binds to loopback
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # silences a warning about a future default
    )
