"""What workers did with their time, read off a journal. Pure: no files, no drawing.

Times are in seconds of searching: what lies between one session and the next, which began with new workers,
is cut out. So is every stretch of more than `PAUSE_S` in which nobody was at work, such as a machine that
slept leaves; of journals before schema 3, which do not say when workers came, nothing else tells sessions
apart.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from evolve.records import CandidateRecord, WorkerRecord

PAUSE_S = 60.0

_Stretch = TypeVar("_Stretch", bound="Stretch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """From when to when."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return max(0.0, self.end_s - self.begin_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Stretch):
    """A worker at one candidate: it merges, then it scores."""

    merge_s: float
    forward_s: float

    @property
    def merging(self) -> Stretch:
        return Stretch(begin_s=self.begin_s, end_s=self.begin_s + self.merge_s)

    @property
    def forward(self) -> Stretch:
        """The model's forward passes, as if they came one after another right after the merge."""
        return Stretch(begin_s=self.merging.end_s, end_s=self.merging.end_s + self.forward_s)

    @property
    def rest(self) -> Stretch:
        """Whatever else scoring takes."""
        return Stretch(begin_s=self.forward.end_s, end_s=self.end_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTime:
    """One worker, whose process may have been replaced: ``present`` is when there was one.

    ``lost``: at candidates that it did not finish, since it died or hung at the end.
    """

    name: str
    present: tuple[Stretch, ...]
    works: tuple[Work, ...]
    lost: tuple[Stretch, ...]

    @property
    def present_s(self) -> float:
        return _total_s(self.present)

    @property
    def idle_s(self) -> float:
        """Present and not at a candidate: there was none, or messages were on their way."""
        return max(0.0, self.present_s - _total_s(self.works) - _total_s(self.lost))

    @property
    def busy_share(self) -> float:
        """Of its time, at candidates that it finished."""
        return _total_s(self.works) / self.present_s if self.present_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTime:
    """All workers, in the order of their names. ``resumed_s``: when later sessions began."""

    workers: tuple[WorkerTime, ...]
    elapsed_s: float
    resumed_s: tuple[float, ...]

    @property
    def idle_share(self) -> float:
        """Of the time of all workers together."""
        return self._share(worker.idle_s for worker in self.workers)

    @property
    def lost_share(self) -> float:
        """Of the time of all workers together: at candidates that they did not finish."""
        return self._share(_total_s(worker.lost) for worker in self.workers)

    def _share(self, seconds: Iterable[float]) -> float:
        present_s = math.fsum(worker.present_s for worker in self.workers)
        return math.fsum(seconds) / present_s if present_s else 0.0


def work_time(records: Iterable[CandidateRecord], events: Sequence[WorkerRecord]) -> WorkTime:
    """``records``: candidates that workers were busy with; ``events`` in the journal's order."""
    works: dict[str, list[Work]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.measured.started_s):
        works[record.measured.worker].append(_work(record))
    every = sorted((work for each in works.values() for work in each), key=lambda work: work.begin_s)
    renewals = _renewals(every, events)
    sessions = _sessions(every, renewals)
    history = _History(sessions, renewals)
    happened: dict[str, list[WorkerRecord]] = defaultdict(list)
    for event in events:
        happened[event.worker].append(event)
    names = sorted(works.keys() | happened.keys(), key=_natural)
    workers = [history.worker(name, works[name], happened[name]) for name in names]
    begins_s = [history.place(session.begin_s) for session in sessions]
    return WorkTime(
        workers=tuple(worker for worker in workers if worker.present_s),
        elapsed_s=math.fsum(session.length_s for session in sessions),
        resumed_s=tuple(begins_s[1:]),
    )


class _History:
    """When the search went on, by the clock; from that, what each worker did, in seconds of searching."""

    def __init__(self, sessions: Sequence[Stretch], renewals: Sequence[float]) -> None:
        self._sessions = sessions
        self._renewals = renewals
        self._begins = [session.begin_s for session in sessions]
        self._before = [0.0]  # seconds of searching before each session
        for session in sessions:
            self._before.append(self._before[-1] + session.length_s)

    def place(self, time_s: float) -> float:
        """Seconds of searching up to a time since the epoch."""
        at = bisect_right(self._begins, time_s) - 1
        if at < 0:
            return 0.0
        session = self._sessions[at]
        return self._before[at] + min(time_s - session.begin_s, session.length_s)

    def worker(self, name: str, works: Sequence[Work], events: Sequence[WorkerRecord]) -> WorkerTime:
        """What one worker did; ``works`` and ``events`` are its own, by the clock."""
        known_from_s = events[0].at_s if events else math.inf
        present = list(self._guessed(works, known_from_s))
        came_s: float | None = None
        for event in events:
            if came_s is not None:
                left_s = min(event.at_s, self._end_of_run(came_s))
                present.append(Stretch(begin_s=came_s, end_s=left_s))
            came_s = event.at_s if event.event == "started" else None
        if came_s is not None:
            present.append(Stretch(begin_s=came_s, end_s=self._end_of_run(came_s)))
        lost = [Stretch(begin_s=event.at_s - event.lost_s, end_s=event.at_s) for event in events]
        return WorkerTime(
            name=name, present=self._placed(present), works=self._placed(works), lost=self._placed(lost)
        )

    def _guessed(self, works: Sequence[Work], until_s: float) -> Iterator[Stretch]:
        """Where nothing is known but a worker's work: in each session, from its first candidate on."""
        for session in self._sessions:
            begins = [work.begin_s for work in works if session.begin_s <= work.begin_s <= session.end_s]
            if begins and begins[0] < until_s:
                yield Stretch(begin_s=begins[0], end_s=min(session.end_s, until_s))

    def _end_of_run(self, time_s: float) -> float:
        """When the driver ended that was at work then."""
        after = bisect_right(self._renewals, time_s)
        until_s = self._renewals[after] if after < len(self._renewals) else math.inf
        last = bisect_right(self._begins, until_s) - 1
        return self._sessions[last].end_s if last >= 0 else time_s

    def _placed(self, stretches: Iterable[_Stretch]) -> tuple[_Stretch, ...]:
        """In seconds of searching; without those that came to nothing."""
        placed = (
            replace(each, begin_s=self.place(each.begin_s), end_s=self.place(each.end_s))
            for each in stretches
        )
        return tuple(each for each in placed if each.length_s)


def _work(record: CandidateRecord) -> Work:
    measured = record.measured
    length_s = measured.merge_s + measured.score_s or measured.wall_s  # who died has measured nothing
    return Work(
        begin_s=measured.started_s,
        end_s=measured.started_s + length_s,
        merge_s=measured.merge_s,
        forward_s=measured.forward_s,
    )


def _renewals(works: Sequence[Work], events: Sequence[WorkerRecord]) -> list[float]:
    """When drivers ended, except the last one: a worker that starts but never went is another driver's."""
    renewals: list[float] = []
    here: set[str] | None = None
    for event in events:
        if event.event != "started":
            here = (here or set()) - {event.worker}
        elif here is not None and event.worker not in here:
            here.add(event.worker)
        else:
            here = {event.worker}
            before = [work.end_s for work in works if work.begin_s < event.at_s]
            renewals += [max(before)] if before else []
    return renewals


def _sessions(works: Sequence[Work], renewals: Sequence[float]) -> list[Stretch]:
    """Stretches of the clock without a pause, from a first candidate's beginning to a last one's end."""
    sessions: list[Stretch] = []
    driver = 0
    for work in works:
        its_driver = bisect_left(renewals, work.begin_s)
        if sessions and its_driver == driver and work.begin_s - sessions[-1].end_s <= PAUSE_S:
            sessions[-1] = replace(sessions[-1], end_s=max(sessions[-1].end_s, work.end_s))
        else:
            sessions.append(Stretch(begin_s=work.begin_s, end_s=work.end_s))
        driver = its_driver
    return sessions


def _total_s(stretches: Iterable[Stretch]) -> float:
    return math.fsum(stretch.length_s for stretch in stretches)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts worker-2 before worker-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
