"""A fleet of Ray actors, one per worker, on the machines that are in the cluster at the time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evolve.errors import FleetError, WorkerStartError
from evolve.evaluator import Evaluation, EvaluatorFactory, Facts
from evolve.failure_log import FailureLog
from evolve.fleet import Done, Job, WorkerEvent
from evolve.outcome import Failed, Stage
from evolve.ray_cluster import alive_nodes, connect, disconnect
from evolve.ray_slot import Slot, start_slot
from evolve.records import WorkerEventKind
from evolve.worker import NotPrepared, Prepared
from evolve.worker_plan import Node, missing_workers, plan_share

_START_LIMIT_S = 3600.0
_SHORTEST_LIMIT_S = 600.0
_LIMIT_OVER_PROBE = 20  # a candidate that takes so much longer than the first one did hangs
_LOOK_AROUND_S = 2.0  # how often machines that came or went are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How many workers, where, and how patient to be with them.

    ``num_workers``: None fits the GPUs, or the cores where there is none. ``address``: a running Ray
    cluster's, None starts one on this machine. ``gpus_per_worker``: all on one machine. ``worker_bytes``: of
    a machine's memory that each worker needs at least, as far as is known.
    ``candidate_limit_s``: a candidate that takes longer counts as hung; None takes 20 times the slowest
    worker's first candidate, at least ten minutes. ``retries``: new attempts for a candidate whose worker
    died or hung. ``batch_size``: None takes the smallest that any worker found to fit. ``empty_limit_s``: how
    long a cluster may be without workers: spot machines come back.
    """

    num_workers: int | None = None
    address: str | None = None
    device: str | None = None
    gpus_per_worker: int = 1
    workers_per_gpu: int = 1
    worker_bytes: int = 0
    logs: Path | None = None
    candidate_limit_s: float | None = None
    retries: int = 2
    batch_size: int | None = None
    empty_limit_s: float = 600.0


class RayFleet:
    """See `evolve.fleet.Fleet`. Building one starts the workers and waits until all are prepared.

    Machines that join the cluster later get workers of the same share; those of a machine that leaves are
    gone, and what they were at is done by others.
    """

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
        self._attempts: Counter[int] = Counter()
        self._events: list[WorkerEvent] = []
        self._failures = FailureLog(settings.logs)
        self._slots: list[Slot] = []
        self._started = 0
        self._unfit: set[str] = set()  # machines on which a worker could not be prepared
        self._look_around_s = 0.0
        self._empty_since_s: float | None = None
        self._batch_size = settings.batch_size
        self._ours = connect(settings.address, settings.num_workers)
        try:
            self._share = plan_share(
                alive_nodes(),
                num_workers=settings.num_workers,
                device=settings.device,
                gpus_per_worker=settings.gpus_per_worker,
                workers_per_gpu=settings.workers_per_gpu,
                worker_bytes=settings.worker_bytes,
            )
            self._start_missing()
            self._wait_for_all()
            self.facts: tuple[Facts, ...] = tuple(slot.process.facts for slot in self._slots if slot.process)
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
        self._assign()

    def wait(self, timeout_s: float) -> list[Done]:
        end_s = time.monotonic() + timeout_s
        while True:
            self._look_around()
            done = [result for slot in self._ready(end_s) for result in self._collect(slot)]
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
                slot.kill(on_this_machine=False)
            return
        self._ours = False
        disconnect()
        for slot in slots:
            slot.kill_process()

    def __enter__(self) -> RayFleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_missing(self) -> None:
        """Start workers where there is room for them."""
        nodes = [node for node in alive_nodes() if node.id not in self._unfit]
        present = Counter(slot.node.id for slot in self._slots)
        for node in missing_workers(self._share, nodes, present):
            self._slots.append(self._start(f"worker-{self._started}", node))
            self._started += 1

    def _start(self, name: str, node: Node) -> Slot:
        return start_slot(
            name,
            node,
            self._share,
            self._factory,
            logs=self._settings.logs,
            batch_size=self._batch_size,
            limit_s=_START_LIMIT_S,
        )

    def _wait_for_all(self) -> None:
        import ray

        for slot in list(self._slots):
            left_s = max(slot.deadline_s - time.monotonic(), 0.0)
            if not ray.wait([slot.call], timeout=left_s)[0]:
                raise WorkerStartError(f"{slot.name} was not ready after {_START_LIMIT_S:.0f} s")
            result = slot.result()
            died = isinstance(result, NotPrepared) and result.died
            if died and not self._ours and len(self._slots) > 1:  # with its machine, it seems
                self._on_restarted(slot, result)
            else:
                self._on_started(slot, result)

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

    def _look_around(self) -> None:
        """Follow the cluster: workers for machines that came, none any more on those that went.

        Raises:
            FleetError: there have been no workers for long.
        """
        now_s = time.monotonic()
        if self._ours or now_s < self._look_around_s:
            return
        self._look_around_s = now_s + _LOOK_AROUND_S
        alive = {node.id for node in alive_nodes()}
        for slot in [slot for slot in self._slots if slot.node.id not in alive]:
            self._lose(slot, f"{slot.node.host} left the cluster")
        self._start_missing()
        self._empty_since_s = None if self._slots else self._empty_since_s or now_s
        limit_s = self._settings.empty_limit_s
        if self._empty_since_s is not None and now_s - self._empty_since_s > limit_s:
            raise FleetError(
                f"the cluster has had no machine for workers for {limit_s:.0f} s; bring machines back and "
                "start the same command again to go on"
            )

    def _ready(self, end_s: float) -> list[Slot]:
        """The slots whose call has ended, after a while if none has yet."""
        import ray

        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        limits = [end_s, *(slot.deadline_s for slot in calls.values())]
        patience_s = max(min(limits) - time.monotonic(), 0.0)
        if not self._ours:
            patience_s = min(patience_s, _LOOK_AROUND_S)
        if not calls:
            time.sleep(patience_s)
            return []
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=patience_s)
        if ready and len(calls) > 1:  # whatever else is ready by now
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0)
        return [calls[call] for call in ready]

    def _assign(self) -> None:
        for slot in self._slots:
            if slot.call is None and self._queue:
                job = self._queue.popleft()
                self._attempts[job.id] += 1
                slot.evaluate(job, self._limit_s)

    def _collect(self, slot: Slot) -> Iterable[Done]:
        result = slot.result()
        if slot.job is None:
            return self._on_restarted(slot, result)
        if isinstance(result, Evaluation):
            return [self._finish(slot, result)]
        return self._replace(slot, "died", "worker", "its process died", result.traceback)

    def _check_hung(self, slot: Slot) -> Iterable[Done]:
        if slot.call is None or time.monotonic() < slot.deadline_s:
            return []
        if slot.job is None:
            return self._on_restarted(slot, NotPrepared(reason=f"not ready after {_START_LIMIT_S:.0f} s"))
        return self._replace(slot, "hung", "timeout", f"no result within {self._limit_s:g} s", None)

    def _finish(self, slot: Slot, evaluation: Evaluation) -> Done:
        job, slot.job, slot.call = slot.job, None, None
        assert job is not None
        if isinstance(evaluation.outcome, Failed):
            failed = evaluation.outcome
            what = f"candidate {job.id + 1}: {failed.reason}"
            self._note(slot, failed.stage, what, evaluation.traceback)
        return Done(
            job=job,
            evaluation=evaluation,
            worker=slot.name,
            started_s=slot.started_s,
            wall_s=time.time() - slot.started_s,
            attempts=self._attempts.pop(job.id),
        )

    def _replace(
        self, slot: Slot, kind: Literal["died", "hung"], stage: Stage, what: str, traceback: str | None
    ) -> Iterable[Done]:
        """Start a new process in the slot; its job goes to the front of the queue, or fails for good."""
        detail = f"{what} on {slot.node.host}; it is replaced"
        self._tell_of(slot, kind, detail)
        slot.kill(on_this_machine=self._ours)
        job = slot.job
        assert job is not None
        done = []
        if self._attempts[job.id] > self._settings.retries:
            reason = f"{what}, on each of {self._attempts[job.id]} attempts"
            failed = Failed(stage=stage, reason=reason)
            done = [self._finish(slot, Evaluation(outcome=failed, traceback=traceback))]
        else:
            self._note(slot, stage, f"candidate {job.id + 1}: {what}; it is tried again", traceback)
            self._queue.appendleft(job)
        self._slots[self._slots.index(slot)] = self._start(slot.name, slot.node)
        return done

    def _on_started(self, slot: Slot, result: Prepared | NotPrepared) -> None:
        """
        Raises:
            WorkerStartError: the worker is not prepared.
        """
        if isinstance(result, Prepared):
            slot.process, slot.call = result, None
            detail = f"ready on {result.host}, process {result.pid}"
            self._tell_of(slot, "started", detail)
            return
        self._note(slot, "start", result.reason, result.traceback)
        where = "" if self._settings.logs is None else f"; see {self._settings.logs / slot.name}.log"
        raise WorkerStartError(f"{slot.name} could not be prepared: {result.reason}{where}")

    def _on_restarted(self, slot: Slot, result: Prepared | NotPrepared) -> Iterable[Done]:
        """A replacement that cannot be prepared is given up; the search goes on while others work."""
        try:
            self._on_started(slot, result)
        except WorkerStartError as error:
            slot.kill(on_this_machine=self._ours)
            self._unfit.add(slot.node.id)
            self._lose(slot, str(error))
            if not self._slots and self._ours:
                raise FleetError(f"no worker is left; the last one: {error}") from error
        return []

    def _lose(self, slot: Slot, why: str) -> None:
        """The slot is gone for good. Its job is not to blame: it goes to the front and keeps its tries."""
        self._slots.remove(slot)
        self._tell_of(slot, "lost", why)
        if slot.job is not None:
            self._attempts[slot.job.id] -= 1
            self._queue.appendleft(slot.job)

    def _tell_of(self, slot: Slot, kind: WorkerEventKind, detail: str) -> None:
        now_s = time.time()
        lost_s = 0.0 if slot.job is None else now_s - slot.started_s
        self._events.append(
            WorkerEvent(worker=slot.name, kind=kind, at_s=now_s, lost_s=lost_s, detail=detail)
        )

    def _note(self, slot: Slot, stage: str, what: str, traceback: str | None) -> None:
        host = slot.node.host
        self._failures.note(worker=slot.name, host=host, stage=stage, what=what, traceback=traceback)
