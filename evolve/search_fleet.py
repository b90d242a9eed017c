"""The workers of one search: what they are told, and that they have room."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evolve.evaluator_spec import DiskSettings, EvaluatorSpec
from evolve.fleet_settings import FleetSettings
from evolve.forecast import candidate_bytes
from evolve.layouts import layouts_of
from evolve.options import SearchOptions
from evolve.preflight import Ready, vllm_settings
from evolve.scratch import check_room, remove_left_overs, scratch_root
from evolve.storage import StoragePath
from evolve.winners import LocatedFactory, Winner, folders, renamed
from fitness.vllm_settings import VllmSettings
from merge_engine.spec import recipe_data

if TYPE_CHECKING:
    from evolve.evaluator import EvaluatorFactory
    from evolve.ray_fleet import RayFleet


def start_fleet(
    ready: Ready,
    options: SearchOptions,
    storage: StoragePath,
    winners: Sequence[Winner],
    *,
    batch_size: int | None,
    worker_bytes: int,
) -> RayFleet:
    """Start the workers, and wait until they are prepared.

    Args:
        winners: of earlier stages.
        batch_size: None: what fits.
        worker_bytes: of a machine's memory that each worker needs at least.

    Raises:
        FleetError: there is no such cluster, or it has no room for the workers.
        WorkerStartError: a worker could not be prepared.
    """
    from evolve.ray_fleet import RayFleet

    storage.logs.mkdir(exist_ok=True)
    # The driver has nothing to do until they are ready; imported later, pycma would keep them waiting.
    threading.Thread(target=importlib.import_module, args=("cma",), daemon=True).start()
    return RayFleet(
        _evaluator_factory(ready, options, storage, folders(winners), batch_size),
        FleetSettings(
            num_workers=options.wanted_workers(ready.processes),
            address=options.ray_address,
            device=options.device,
            logs=storage.logs,
            candidate_limit_s=options.candidate_timeout_s,
            retries=options.retries,
            processes_per_worker=ready.processes,
            workers_per_gpu=options.workers_per_gpu,
            worker_bytes=worker_bytes,
            batch_size=batch_size,
        ),
    )


def make_room(ready: Ready, options: SearchOptions, storage: StoragePath) -> Iterator[str]:
    """See that candidates fit on this machine's disk, before any worker starts; each looks for itself, too.

    Yields:
        what was done, a line each.

    Raises:
        ScratchError: there is not room enough, even without what earlier searches left.
    """
    disk = _disk_settings(options, storage)
    root = scratch_root(disk.scratch)
    removed = remove_left_overs(root)
    if removed:
        yield f"removed {len(removed)} scratch folders that killed workers left below {root}"
    check_room(root, candidate_bytes(ready), options.wanted_workers(ready.processes) or 1, disk.owner)
    yield f"candidates are merged to the disk, below {root}, and removed once they are scored"


def _evaluator_factory(
    ready: Ready,
    options: SearchOptions,
    storage: StoragePath,
    winners: dict[str, str],
    batch_size: int | None,
) -> EvaluatorFactory:
    """What workers need to know. ``winners``: where those of earlier stages lie."""
    layouts = layouts_of(ready)
    spec = EvaluatorSpec(
        model=str(renamed(ready.pattern, winners)),
        suite=ready.suite,
        dtype=ready.dtype,
        seed=options.seed,
        probe=renamed(recipe_data(ready.space.decode(ready.space.start)), winners),
        batch_size=batch_size,
        trust_remote_code=options.trust_remote_code,
        allow_crimes=options.allow_crimes,
        layouts=None if layouts is None else replace(layouts, models=tuple(renamed(layouts.models, winners))),
        vllm=_vllm_settings(ready, options) if options.vllm else None,
        disk=_disk_settings(options, storage) if options.on_disk else None,
    )
    return LocatedFactory(factory=spec, folders=winners) if winners else spec


def _vllm_settings(ready: Ready, options: SearchOptions) -> VllmSettings:
    """Engines that share a GPU share what engines may take of it."""
    settings = vllm_settings(ready.search_file.vllm)
    each = settings.gpu_memory_utilization / options.workers_per_gpu
    return replace(settings, gpu_memory_utilization=each)


def _disk_settings(options: SearchOptions, storage: StoragePath) -> DiskSettings:
    return DiskSettings(
        scratch=None if options.scratch is None else options.scratch.absolute(),
        owner=str(storage.folder.absolute()),
        bits=options.bits,
    )
