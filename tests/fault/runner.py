"""One driver process of the toy search on a real Ray fleet: `python runner.py STORAGE_PATH '{"sleep_s":
...}'`.

Ends with one line of JSON: how the search ended, or the error that ended it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evolve.errors import EvolveError
from evolve.fleet import WorkerEvent
from evolve.fleet_settings import FleetSettings
from evolve.holdout import HoldoutRow, run_holdout
from evolve.journal import Journal
from evolve.ledger import choose_winner
from evolve.observer import Observer
from evolve.ray_fleet import RayFleet
from evolve.records import CandidateRecord
from evolve.search import SearchSettings, new_run, run_search
from evolve.storage import StoragePath
from tests.fault.toy import ToyFactory, ToySpace


class Log(Observer):
    def on_candidate(self, record: CandidateRecord) -> None:
        print(f"candidate {record.id}", flush=True)

    def on_worker(self, event: WorkerEvent) -> None:
        print(f"{event.worker} {event.kind}: {event.detail}", flush=True)


def main(folder: Path, options: Mapping[str, Any]) -> dict[str, object]:
    storage = StoragePath(folder)
    settings = SearchSettings(
        seed=3,
        popsize=6,
        max_fevals=options.get("max_fevals", 30),
        scheduler=options.get("scheduler", "sync"),
    )
    factory = ToyFactory(
        scratch=folder.parent,
        sleep_s=options.get("sleep_s", 0.0),
        faults=options.get("faults", {}),
        start_fault=options.get("start_fault", ""),
    )
    workers = FleetSettings(
        num_workers=options.get("num_workers", 2),
        address=options.get("address"),
        logs=storage.logs,
        candidate_limit_s=options.get("limit_s"),
        empty_limit_s=options.get("empty_limit_s", 600.0),
    )
    with storage.lock():
        storage.logs.mkdir(exist_ok=True)
        with RayFleet(factory, workers) as fleet:
            if "file_limit_bytes" in options:
                resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_limit_bytes"],) * 2)
            return search(storage, settings, fleet)


def search(storage: StoragePath, settings: SearchSettings, fleet: RayFleet) -> dict[str, object]:
    space = ToySpace()
    if storage.journal.exists():
        journal = Journal.open(storage.journal)
    else:
        run = new_run(space, settings, batch_size=fleet.batch_size, inputs={}, started_at="today")
        journal = Journal.create(storage.journal, run)
    result = run_search(space, settings, fleet, journal, [Log()])
    winner = choose_winner(record for record in (result.best, result.mean) if record is not None)
    if result.stopped_because != "interrupted" and winner is not None:
        run_holdout([HoldoutRow(name="best", candidate=winner)], fleet, journal)
    journal.close()
    return {"stopped_because": result.stopped_because, "evaluations": result.evaluations}


if __name__ == "__main__":
    try:
        ending = main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except EvolveError as error:
        ending = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(ending), flush=True)
