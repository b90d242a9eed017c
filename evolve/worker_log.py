"""When workers came and went, in the journal, for whoever asks later where the time went."""

from __future__ import annotations

from evolve.fleet import WorkerEvent
from evolve.journal import Journal
from evolve.observer import Observer
from evolve.records import WorkerRecord


class WorkerLog(Observer):
    """Writes down what happens to workers."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def on_worker(self, event: WorkerEvent) -> None:
        self._journal.append(
            WorkerRecord(
                worker=event.worker,
                event=event.kind,
                at_s=event.at_s,
                lost_s=event.lost_s,
                detail=event.detail,
            )
        )
