"""One worker's place in the fleet: a Ray actor on a machine of the cluster, and what it is at."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.evaluator import EvaluatorFactory, WorkerContext
from evolve.fleet import Job
from evolve.worker import NotPrepared, Prepared, Worker
from evolve.worker_plan import Node, Share


@dataclass(slots=True, kw_only=True)
class Slot:
    """The process in it may change. Without ``call`` it is idle."""

    name: str
    node: Node
    actor: Any
    call: Any = None  # what the actor works on: its start, or `job`
    job: Job | None = None
    started_s: float = 0.0  # since the epoch
    deadline_s: float = 0.0  # on the monotonic clock
    process: Prepared | None = None

    def begin(self, call: Any, limit_s: float) -> None:
        """The actor works on ``call`` now, for at most ``limit_s``."""
        self.call = call
        self.started_s = time.time()
        self.deadline_s = time.monotonic() + limit_s

    def evaluate(self, job: Job, limit_s: float) -> None:
        """Let the actor score ``job``."""
        self.job = job
        self.begin(self.actor.evaluate.remote(job.recipe, job.split), limit_s)

    def result(self) -> Any:
        """What the finished call returned, or why there is nothing: its worker is dead."""
        import ray

        try:
            return ray.get(self.call)
        except ray.exceptions.RayError as error:
            *_, reason = str(error).strip().splitlines() or [type(error).__name__]
            return NotPrepared(reason=f"its process died: {reason}", traceback=str(error), died=True)

    def kill(self, *, on_this_machine: bool) -> None:
        """End the actor, and its process if that is here and does not hear Ray."""
        import ray

        ray.kill(self.actor, no_restart=True)
        if on_this_machine:
            self.kill_process()

    def kill_process(self) -> None:
        """A process of this machine that is stopped, or stuck in a C library, does not hear Ray."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)


def start_slot(
    name: str,
    node: Node,
    share: Share,
    factory: EvaluatorFactory,
    *,
    logs: Path | None,
    batch_size: int | None,
    limit_s: float,
) -> Slot:
    """A worker on that machine, whose start is under way."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = WorkerContext(
        name=name,
        threads=share.threads,
        device=share.device,
        memory_share=share.memory_share(node),
        logs=logs,
        folder=Path.cwd(),
        device_share=1 / share.workers_per_gpu,
    )
    # max_task_retries stays 0: a candidate is retried by us, on a worker that was prepared again.
    options = {
        **share.resources,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
    }
    actor = ray.remote(Worker).options(**options).remote(factory, context)
    slot = Slot(name=name, node=node, actor=actor)
    slot.begin(actor.prepare.remote(batch_size), limit_s)
    return slot
