"""One start of a search, from the options to the exit status."""

from __future__ import annotations

from evolve.forecast import forecast
from evolve.machine import this_machine
from evolve.options import SearchOptions
from evolve.preflight import inspect, read_search_file
from evolve.report import text
from evolve.search_run import SearchRun
from evolve.stages import named_stages, run_stages
from evolve.storage import StoragePath


def run(options: SearchOptions) -> int:
    """Search, score the winner on held-out items, export it, report. Returns the exit status.

    Raises:
        PreflightError: something is wrong with the input; nothing was written.
        FleetError: this machine has no room for the workers (nothing was written), or a cluster none.
        EvolveError: the search could not go on; what it found so far is in the storage path.
    """
    content = read_search_file(options.search_file)
    stages = named_stages(options, content)
    if stages:
        return run_stages(options, stages, text.console())
    ready = inspect(options, content)
    expected = forecast(ready, options, this_machine())
    storage = StoragePath(options.storage_path)
    with storage.lock():
        return SearchRun(options, storage, text.console()).run(ready, expected)
