"""A fleet of Ray actors, one per worker, on the machines that are in the cluster at the time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Literal

from evolve.errors import FleetError, WorkerStartError
from evolve.evaluator import Evaluation, EvaluatorFactory, Facts
from evolve.failure_log import FailureLog
from evolve.fleet import Done, Job, WorkerEvent
from evolve.fleet_settings import FleetSettings
from evolve.outcome import Failed, Stage
from evolve.ray_crew import START_LIMIT_S, Crew
from evolve.ray_slot import Slot
from evolve.records import WorkerEventKind
from evolve.worker import NotPrepared, Prepared

_SHORTEST_LIMIT_S = 600.0
_LIMIT_OVER_PROBE = 20  # a candidate that takes so much longer than the first one did hangs
_LOOK_AROUND_S = 2.0  # how often machines that came or went are looked for


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
        self._settings = settings
        self._limit_s = START_LIMIT_S
        self._queue: deque[Job] = deque()
        self._attempts: Counter[int] = Counter()
        self._events: list[WorkerEvent] = []
        self._failures = FailureLog(settings.logs)
        self._look_around_s = 0.0
        self._empty_since_s: float | None = None
        self._crew = Crew(factory, settings)
        try:
            self._wait_for_all()
            slots = self._crew.slots
            self.facts: tuple[Facts, ...] = tuple(slot.process.facts for slot in slots if slot.process)
            self._settle()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return len(self._crew.slots)

    @property
    def batch_size(self) -> int:
        """The one that every worker uses."""
        assert self._crew.batch_size is not None, "settled when the workers were prepared"
        return self._crew.batch_size

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._assign()

    def wait(self, timeout_s: float) -> list[Done]:
        end_s = time.monotonic() + timeout_s
        while True:
            self._look_around()
            done = [result for slot in self._ready(end_s) for result in self._collect(slot)]
            done += [result for slot in list(self._crew.slots) for result in self._check_hung(slot)]
            self._assign()
            if done or time.monotonic() >= end_s:
                return done

    def events(self) -> list[WorkerEvent]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._queue.clear()
        self._crew.close()

    def __enter__(self) -> RayFleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_all(self) -> None:
        import ray

        for slot in list(self._crew.slots):
            left_s = max(slot.deadline_s - time.monotonic(), 0.0)
            if not ray.wait([slot.call], timeout=left_s)[0]:
                raise WorkerStartError(f"{slot.name} was not ready after {START_LIMIT_S:.0f} s")
            result = slot.result()
            died = isinstance(result, NotPrepared) and result.died
            if died and not self._crew.ours and len(self._crew.slots) > 1:  # with its machine, it seems
                self._on_restarted(slot, result)
            else:
                self._on_started(slot, result)

    def _settle(self) -> None:
        """One batch size for all, since padding reaches the last bit of a score, and a limit for
        candidates.
        """
        import ray

        if self._crew.batch_size is None:
            self._crew.batch_size = min(facts.batch_size for facts in self.facts)
        ray.get([slot.actor.set_batch_size.remote(self._crew.batch_size) for slot in self._crew.slots])
        usual_s = _LIMIT_OVER_PROBE * max(facts.probe_s for facts in self.facts)
        self._limit_s = self._settings.candidate_limit_s or max(_SHORTEST_LIMIT_S, usual_s)

    def _look_around(self) -> None:
        """Follow the cluster: workers for machines that came, none any more on those that went.

        Raises:
            FleetError: there have been no workers for long.
        """
        now_s = time.monotonic()
        if self._crew.ours or now_s < self._look_around_s:
            return
        self._look_around_s = now_s + _LOOK_AROUND_S
        for slot in self._crew.remove_absent():
            self._lose(slot, f"{slot.node.host} left the cluster")
        self._crew.start_missing()
        self._empty_since_s = None if self._crew.slots else self._empty_since_s or now_s
        limit_s = self._settings.empty_limit_s
        if self._empty_since_s is not None and now_s - self._empty_since_s > limit_s:
            raise FleetError(
                f"the cluster has had no machine for workers for {limit_s:.0f} s; bring machines back and "
                "start the same command again to go on"
            )

    def _ready(self, end_s: float) -> list[Slot]:
        """The slots whose call has ended, after a while if none has yet."""
        import ray

        calls = {slot.call: slot for slot in self._crew.slots if slot.call is not None}
        limits = [end_s, *(slot.deadline_s for slot in calls.values())]
        patience_s = max(min(limits) - time.monotonic(), 0.0)
        if not self._crew.ours:
            patience_s = min(patience_s, _LOOK_AROUND_S)
        if not calls:
            time.sleep(patience_s)
            return []
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=patience_s)
        if ready and len(calls) > 1:  # whatever else is ready by now
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0.0)
        return [calls[call] for call in ready]

    def _assign(self) -> None:
        for slot in self._crew.slots:
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
            return self._on_restarted(slot, NotPrepared(reason=f"not ready after {START_LIMIT_S:.0f} s"))
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
        self._crew.restart(slot)
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
            self._crew.give_up(slot)
            self._lose(slot, str(error))
            if not self._crew.slots and self._crew.ours:
                raise FleetError(f"no worker is left; the last one: {error}") from error
        return []

    def _lose(self, slot: Slot, why: str) -> None:
        """The slot is gone for good. Its job is not to blame: it goes to the front and keeps its tries."""
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
