"""Which Ray cluster to use, and the machines in it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from typing import Any

from evolve.errors import FleetError
from evolve.worker_plan import Node

_OBJECT_STORE_BYTES = 80_000_000  # Ray's least: recipes and reports are all that travels
_ANSWER_LIMIT_S = 10.0


def connect(address: str | None, num_workers: int | None) -> bool:
    """Join the cluster at ``address`` (or ``RAY_ADDRESS``) as it is, or start one on this machine.

    Returns:
        whether it is ours: started here, to be stopped by `disconnect`.

    Raises:
        FleetError: no cluster answers at ``address``, or none could be started.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        _keep_to_ourselves()
    else:
        _check_listens(address)
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
    try:
        ray.init(
            address="local",
            num_cpus=max(_cores(), num_workers or 1),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    except Exception as error:  # of no more special class where this machine is too busy
        raise FleetError(
            f"Ray did not start on this machine: {error}; start the same command again when it is less busy"
        ) from error
    return True


def _check_listens(address: str) -> None:
    """Raise `FleetError` at once where Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return  # "auto", and other forms of which Ray knows the meaning
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_LIMIT_S).close()
    except (OSError, OverflowError) as error:
        raise FleetError(
            f"no Ray cluster answers at {address}: {error}; start one, or mend the address"
        ) from error


def disconnect() -> None:
    import ray

    ray.shutdown()


def alive_nodes() -> list[Node]:
    """The machines that are in the cluster now, in a fixed order."""
    import ray

    return sorted(
        (
            Node(
                id=node["NodeID"],
                host=node["NodeManagerHostname"],
                cores=int(node["Resources"].get("CPU", 0)),
                gpus=int(node["Resources"].get("GPU", 0)),
                memory_bytes=int(node["Resources"].get("memory", 0)) or None,
            )
            for node in ray.nodes()
            if node["Alive"]
        ),
        key=lambda node: (node.host, node.id),
    )


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
