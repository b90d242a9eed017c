"""A fleet of Ray actors, one per worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.errors import FleetError, WorkerStartError
from evolve.evaluator import Evaluation, EvaluatorFactory, Facts, WorkerContext
from evolve.fleet import Done, Job, WorkerEvent
from evolve.outcome import Failed, Stage
from evolve.ray_cluster import Share, connect, disconnect, plan_workers
from evolve.worker import NotPrepared, Prepared, Worker

_START_LIMIT_S = 3600.0
_SHORTEST_LIMIT_S = 600.0
_LIMIT_OVER_PROBE = 20  # a candidate that takes so much longer than the first one did hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How many workers, where, and how patient to be with them.

    ``num_workers``: None fits the GPUs, or the cores where there is none. ``address``: a running Ray
    cluster's, None starts one on this machine. ``candidate_limit_s``: a candidate that takes longer counts
    as hung; None takes 20 times the slowest worker's first candidate, at least ten minutes. ``retries``:
    new attempts for a candidate whose worker died or hung. ``batch_size``: None takes the smallest that any
    worker found to fit.
    """

    num_workers: int | None = None
    address: str | None = None
    device: str | None = None
    logs: Path | None = None
    candidate_limit_s: float | None = None
    retries: int = 2
    batch_size: int | None = None


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One worker's place in the fleet; the process in it may change. Without ``call`` it is idle."""

    name: str
    actor: Any
    call: Any = None  # what the actor works on: its start, or `job`
    job: Job | None = None
    started_s: float = 0.0
    deadline_s: float = 0.0  # on the monotonic clock
    process: Prepared | None = None


class RayFleet:
    """See `evolve.fleet.Fleet`. Building one starts the workers and waits until all are prepared."""

    def __init__(self, factory: EvaluatorFactory, settings: FleetSettings) -> None:
        """
        Raises:
            FleetError: there is no such cluster, or it has no room for the workers.
            WorkerStartError: a worker could not be prepared.
        """
        self._factory = factory
        self._settings = settings
        self._limit_s = _START_LIMIT_S
        self._queue: deque[Job] = deque()
        self._attempts: dict[int, int] = {}
        self._events: list[WorkerEvent] = []
        self._slots: list[_Slot] = []
        self._batch_size = settings.batch_size
        self._ours = connect(settings.address, settings.num_workers)
        try:
            self._share: Share = plan_workers(settings.num_workers, settings.device)
            self._start_all(self._share.workers)
            self.facts: tuple[Facts, ...] = self._facts()
            self._settle()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return len(self._slots)

    @property
    def batch_size(self) -> int:
        """The one that every worker uses."""
        assert self._batch_size is not None, "settled when the workers were prepared"
        return self._batch_size

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._attempts[job.id] = 0
        self._assign()

    def wait(self, timeout_s: float) -> list[Done]:
        import ray

        end_s = time.monotonic() + timeout_s
        while True:
            calls = {slot.call: slot for slot in self._slots if slot.call is not None}
            if not calls:
                return []
            patience_s = min([end_s, *(slot.deadline_s for slot in calls.values())]) - time.monotonic()
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=max(patience_s, 0.0))
            if len(calls) > 1:  # whatever else is ready by now
                ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0)
            done = [result for call in ready for result in self._collect(calls[call])]
            done += [result for slot in list(self._slots) for result in self._check_hung(slot)]
            self._assign()
            if done or time.monotonic() >= end_s:
                return done

    def events(self) -> list[WorkerEvent]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        slots, self._slots = self._slots, []
        self._queue.clear()
        if not self._ours:
            for slot in slots:
                self._kill(slot)
            return
        self._ours = False
        disconnect()
        for slot in slots:
            _kill_process(slot)

    def __enter__(self) -> RayFleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_all(self, workers: int) -> None:
        import ray

        self._slots = [self._start(f"worker-{number}") for number in range(workers)]
        for slot in self._slots:
            left_s = max(slot.deadline_s - time.monotonic(), 0.0)
            if not ray.wait([slot.call], timeout=left_s)[0]:
                raise WorkerStartError(f"{slot.name} was not ready after {_START_LIMIT_S:.0f} s")
            self._on_started(slot, self._result(slot))

    def _facts(self) -> tuple[Facts, ...]:
        return tuple(slot.process.facts for slot in self._slots if slot.process is not None)

    def _settle(self) -> None:
        """One batch size for all, since padding reaches the last bit of a score, and a limit for
        candidates.
        """
        import ray

        if self._batch_size is None:
            self._batch_size = min(facts.batch_size for facts in self.facts)
        ray.get([slot.actor.set_batch_size.remote(self._batch_size) for slot in self._slots])
        usual_s = _LIMIT_OVER_PROBE * max(facts.probe_s for facts in self.facts)
        self._limit_s = self._settings.candidate_limit_s or max(_SHORTEST_LIMIT_S, usual_s)

    def _start(self, name: str) -> _Slot:
        import ray

        context = WorkerContext(
            name=name,
            threads=self._share.threads,
            device=self._share.device,
            memory_share=self._share.memory_share,
            logs=self._settings.logs,
        )
        # max_task_retries stays 0: a candidate is retried by us, on a worker that was prepared again.
        actor = ray.remote(Worker).options(**self._share.resources).remote(self._factory, context)
        slot = _Slot(name=name, actor=actor)
        self._call(slot, actor.prepare.remote(self._batch_size), _START_LIMIT_S)
        return slot

    def _call(self, slot: _Slot, call: Any, limit_s: float) -> None:
        slot.call = call
        slot.started_s = time.time()
        slot.deadline_s = time.monotonic() + limit_s

    def _assign(self) -> None:
        for slot in self._slots:
            if slot.call is None and self._queue:
                slot.job = self._queue.popleft()
                self._attempts[slot.job.id] += 1
                call = slot.actor.evaluate.remote(slot.job.recipe, slot.job.split)
                self._call(slot, call, self._limit_s)

    def _result(self, slot: _Slot) -> Any:
        """What a finished call returned, or why there is nothing: its worker is dead."""
        import ray

        try:
            return ray.get(slot.call)
        except ray.exceptions.RayError as error:
            *_, reason = str(error).strip().splitlines() or [type(error).__name__]
            return NotPrepared(reason=f"its process died: {reason}")

    def _collect(self, slot: _Slot) -> Iterable[Done]:
        result = self._result(slot)
        if slot.job is None:
            return self._on_restarted(slot, result)
        if isinstance(result, Evaluation):
            return [self._finish(slot, result)]
        return self._replace(slot, "died", "worker", "its process died")

    def _check_hung(self, slot: _Slot) -> Iterable[Done]:
        if slot.call is None or time.monotonic() < slot.deadline_s:
            return []
        if slot.job is None:
            return self._on_restarted(slot, NotPrepared(reason=f"not ready after {_START_LIMIT_S:.0f} s"))
        return self._replace(slot, "hung", "timeout", f"no result within {self._limit_s:g} s")

    def _finish(self, slot: _Slot, evaluation: Evaluation) -> Done:
        job, slot.job, slot.call = slot.job, None, None
        assert job is not None
        return Done(
            job=job,
            evaluation=evaluation,
            worker=slot.name,
            started_s=slot.started_s,
            wall_s=time.time() - slot.started_s,
            attempts=self._attempts.pop(job.id),
        )

    def _replace(self, slot: _Slot, kind: Any, stage: Stage, what: str) -> Iterable[Done]:
        """Start a new process in the slot; its job goes to the front of the queue, or fails for good."""
        self._events.append(WorkerEvent(worker=slot.name, kind=kind, detail=f"{what}; it is replaced"))
        self._kill(slot)
        job = slot.job
        assert job is not None
        done = []
        if self._attempts[job.id] > self._settings.retries:
            reason = f"{what}, on each of {self._attempts[job.id]} attempts"
            failed = Failed(stage=stage, reason=reason)
            done = [self._finish(slot, Evaluation(outcome=failed, merge_s=0.0, score_s=0.0, forward_s=0.0))]
        else:
            self._queue.appendleft(job)
        self._slots[self._slots.index(slot)] = self._start(slot.name)
        return done

    def _on_started(self, slot: _Slot, result: Prepared | NotPrepared) -> None:
        """
        Raises:
            WorkerStartError: the worker is not prepared.
        """
        if isinstance(result, Prepared):
            slot.process, slot.call = result, None
            detail = f"ready on {result.host}, process {result.pid}"
            self._events.append(WorkerEvent(worker=slot.name, kind="started", detail=detail))
            return
        where = "" if self._settings.logs is None else f"; see {self._settings.logs / slot.name}.log"
        raise WorkerStartError(f"{slot.name} could not be prepared: {result.reason}{where}")

    def _on_restarted(self, slot: _Slot, result: Prepared | NotPrepared) -> Iterable[Done]:
        """A replacement that cannot be prepared is given up; the search goes on while others work."""
        try:
            self._on_started(slot, result)
        except WorkerStartError as error:
            self._kill(slot)
            self._slots.remove(slot)
            self._events.append(WorkerEvent(worker=slot.name, kind="lost", detail=str(error)))
            if not self._slots:
                raise FleetError(f"no worker is left; the last one: {error}") from error
        return []

    def _kill(self, slot: _Slot) -> None:
        import ray

        ray.kill(slot.actor, no_restart=True)
        if self._ours:
            _kill_process(slot)


def _kill_process(slot: _Slot) -> None:
    """A process of this machine that is stopped, or stuck in a C library, does not hear Ray."""
    if slot.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.process.pid, signal.SIGKILL)
