"""A fleet without machines: jobs take virtual time, so that hours with a thousand workers pass in seconds.

It is an `evolve.fleet.Fleet`, so `evolve.search.run_search` and `evolve.dispatch.run_jobs` drive it as they
are. Its retries are `RayFleet`'s: a job whose worker died goes to the front of the queue and takes the first
worker that is free; the dead worker is replaced after its start-up time.

It does not model: what Ray and the network cost by themselves (only as the two constants of `Conditions`),
workers that hang, machines that leave for good or join, results that are lost on their way, and workers that
slow each other down. Limits of `run_search` on time are real time, not virtual.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import orjson

from evolve.evaluator import Evaluation
from evolve.fleet import Done, Job, WorkerEvent
from evolve.outcome import Failed, Outcome, Scored
from evolve.records import WorkerEventKind
from fitness.results import Report, TaskResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the simulated machines are like.

    ``mean_s`` and ``spread``: a candidate's time, log-normal; ``spread`` is the standard deviation as a share
    of the mean. A candidate takes the same time again when it is retried. ``deaths_per_minute``: the share of
    workers that die, at random moments, busy or idle. ``start_s``: until a dead one's replacement is ready.
    ``latency_s``: a worker waits so long between one job and the next although there is one, for messages on
    their way. ``driver_s``: the driver is busy with each job's messages for so long, one job after another.
    """

    workers: int
    mean_s: float = 10.0
    spread: float = 0.2
    deaths_per_minute: float = 0.0
    start_s: float = 0.0
    latency_s: float = 0.0
    driver_s: float = 0.0
    retries: int = 2
    seed: int = 0


SpanKind = Literal["done", "lost", "starting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one worker did for a while; ``lost``: at a candidate, until it died."""

    worker: int
    kind: SpanKind
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How the time of all workers was spent, as shares of it; together they are 1.

    ``done`` is the efficiency: candidates / (workers x time), in units of the mean duration.
    """

    done: float
    lost: float
    starting: float
    idle: float


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where one worker after another lives; what was planned for an earlier ``life`` does not happen."""

    number: int
    life: int = 0
    job: Job | None = None
    since_s: float = 0.0  # when it began with `job`, or to start

    @property
    def name(self) -> str:
        return f"worker-{self.number}"


_Act = Callable[[_Place, float], None]


class SimulatedFleet:
    """Workers that need virtual time for their jobs.

    ``outcome_of`` gives a job its outcome when its time is over; by default any number, which never
    converges. With ``clock`` (`time.perf_counter`) the time that the driver takes between its calls passes
    for the workers, too: then a slow driver costs what it would cost in earnest, and no two runs are the
    same.

    ``now_s`` is the virtual time, ``spans`` what each worker did.
    """

    def __init__(
        self,
        conditions: Conditions,
        outcome_of: Callable[[Job], Outcome] | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.now_s = 0.0
        self.spans: list[Span] = []
        self._conditions = conditions
        self._outcome_of = outcome_of or any_outcome
        self._clock = clock or (lambda: 0.0)
        self._returned_s = self._clock()
        self._deaths = np.random.default_rng([conditions.seed, 0])
        self._places = [_Place(number=number) for number in range(conditions.workers)]
        self._free = deque(self._places)
        self._queue: deque[Job] = deque()
        self._attempts: Counter[int] = Counter()
        self._events: list[WorkerEvent] = []
        self._finished: list[Done] = []
        self._agenda: list[tuple[float, int, int, _Act, _Place]] = []
        self._serial = itertools.count()
        for place in self._places:
            self._tell_of(place, "started", 0.0)
            self._begin_life(place, 0.0)

    @property
    def capacity(self) -> int:
        return len(self._places)

    def submit(self, job: Job) -> None:
        with self._charged():
            self.now_s += self._conditions.driver_s
            self._queue.append(job)
            self._assign()

    def wait(self, timeout_s: float) -> list[Done]:
        with self._charged():
            end_s = self.now_s + timeout_s
            self._happen()
            while not self._finished and self.now_s < end_s:
                next_s = self._agenda[0][0] if self._agenda else math.inf
                self.now_s = min(next_s, end_s)
                self._happen()
            finished, self._finished = self._finished, []
            return finished

    def events(self) -> list[WorkerEvent]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._queue.clear()
        self._agenda.clear()

    def busy_s(self) -> list[float]:
        """For each worker, how long it worked on candidates that it finished."""
        seconds = [0.0] * len(self._places)
        for span in self.spans:
            seconds[span.worker] += (span.end_s - span.begin_s) * (span.kind == "done")
        return seconds

    def shares(self, begin_s: float, end_s: float) -> Shares:
        """How all workers spent the time between two moments; a job that still runs counts as idle."""
        seconds = {"done": 0.0, "lost": 0.0, "starting": 0.0}
        for span in self.spans:
            seconds[span.kind] += max(0.0, min(span.end_s, end_s) - max(span.begin_s, begin_s))
        total_s = len(self._places) * (end_s - begin_s)
        spent = {kind: value_s / total_s for kind, value_s in seconds.items()}
        return Shares(**spent, idle=max(0.0, 1 - sum(spent.values())))

    @contextmanager
    def _charged(self) -> Iterator[None]:
        """A call from the driver, which was at something else since its last one."""
        self.now_s += self._clock() - self._returned_s
        yield
        self._returned_s = self._clock()

    def _happen(self) -> None:
        """Everything planned up to now; then workers that are free take what waits."""
        while self._agenda and self._agenda[0][0] <= self.now_s:
            time_s, _, life, act, place = heapq.heappop(self._agenda)
            if life == place.life:
                act(place, time_s)
        self._assign()

    def _plan(self, time_s: float, act: _Act, place: _Place) -> None:
        heapq.heappush(self._agenda, (time_s, next(self._serial), place.life, act, place))

    def _assign(self) -> None:
        while self._queue and self._free:
            place, job = self._free.popleft(), self._queue.popleft()
            self._attempts[job.id] += 1
            place.job, place.since_s = job, self.now_s + self._conditions.latency_s
            self._plan(place.since_s + self._duration_s(job), self._finish, place)

    def _duration_s(self, job: Job) -> float:
        """The same for the same job, whoever does it and when."""
        return log_normal(
            self._conditions.mean_s, self._conditions.spread, [self._conditions.seed, 1, job.id]
        )

    def _finish(self, place: _Place, time_s: float) -> None:
        job = self._leave_job(place, "done", time_s)
        self._free.append(place)
        self._hand_over(place, job, self._outcome_of(job), time_s)

    def _begin_life(self, place: _Place, time_s: float) -> None:
        if self._conditions.deaths_per_minute:
            life_s = self._deaths.exponential(60.0 / self._conditions.deaths_per_minute)
            self._plan(time_s + life_s, self._die, place)

    def _die(self, place: _Place, time_s: float) -> None:
        at_work_s = 0.0 if place.job is None else max(0.0, time_s - place.since_s)
        self._tell_of(place, "died", time_s, lost_s=at_work_s)
        if place.job is None:
            self._free.remove(place)
        else:
            job = self._leave_job(place, "lost", time_s)
            self._retry(place, job, time_s)
        place.life += 1
        place.since_s = self.now_s  # the driver sees it when it asks next
        self._plan(self.now_s + self._conditions.start_s, self._start, place)

    def _start(self, place: _Place, time_s: float) -> None:
        self._note_span(place, "starting", time_s)
        self._tell_of(place, "started", time_s)
        self._free.append(place)
        self._begin_life(place, time_s)

    def _retry(self, place: _Place, job: Job, time_s: float) -> None:
        if self._attempts[job.id] <= self._conditions.retries:
            self._queue.appendleft(job)
            return
        reason = f"its process died, on each of {self._attempts[job.id]} attempts"
        self._hand_over(place, job, Failed(stage="worker", reason=reason), time_s)

    def _leave_job(self, place: _Place, kind: SpanKind, time_s: float) -> Job:
        job, place.job = place.job, None
        assert job is not None, "only a worker with a job ends one"
        self._note_span(place, kind, time_s)
        return job

    def _note_span(self, place: _Place, kind: SpanKind, end_s: float) -> None:
        # A worker that dies while its job is on the way to it has done nothing.
        begin_s = min(place.since_s, end_s)
        self.spans.append(Span(worker=place.number, kind=kind, begin_s=begin_s, end_s=end_s))

    def _tell_of(self, place: _Place, kind: WorkerEventKind, time_s: float, lost_s: float = 0.0) -> None:
        self._events.append(
            WorkerEvent(worker=place.name, kind=kind, at_s=time_s, lost_s=lost_s, detail="as simulated")
        )

    def _hand_over(self, place: _Place, job: Job, outcome: Outcome, time_s: float) -> None:
        wall_s = time_s - place.since_s
        self._finished.append(
            Done(
                job=job,
                evaluation=Evaluation(outcome=outcome, score_s=wall_s),
                worker=place.name,
                started_s=place.since_s,
                wall_s=wall_s,
                attempts=self._attempts.pop(job.id),
            )
        )


def log_normal(mean: float, spread: float, seed: int | Sequence[int]) -> float:
    """One draw; ``spread`` is the standard deviation as a share of the mean."""
    variance = math.log1p(spread**2)
    return mean * float(np.random.default_rng(seed).lognormal(-variance / 2, math.sqrt(variance)))


def any_outcome(job: Job) -> Scored:
    """A number in [0, 1) that depends on the recipe alone: nothing that an optimiser could converge to."""
    digest = hashlib.blake2b(orjson.dumps(job.recipe), digest_size=6).digest()
    value = int.from_bytes(digest, "big") / 2**48
    task = TaskResult(task="any", metric="acc,none", weight=1.0, value=value, items=(value,), item_ids=(0,))
    return Scored(report=Report(tasks=(task,)))
