"""The tables of scripts/bench_fleet."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.fleet import Plan, Sleeping, Timing, measure_ray, measure_simulated
from bench.simulated_fleet import Conditions

_SPREAD = 0.2
_ASYNC_POPSIZE = 13  # has nothing to do with the number of workers
_DEATHS_PER_MINUTE, _START_S = 0.1, 20.0
_RAY_DRIVER_S, _RAY_LATENCY_S = 1e-3, 3e-3  # measured on two busy cores
_IN_MEMORY = Path("/dev/shm")  # where candidates that take no time need not wait for a disk


def print_ray(workers: Sequence[int], mean_s: float, each: int) -> None:
    """``each``: candidates for each worker."""
    print(f"Ray workers of this machine, candidates sleep {mean_s:g} s ± {_SPREAD:.0%}")
    print("  workers  scheduler  generation    steady    over W x one    whole search")
    first: dict[str, float] = {}
    for count in workers:
        plans = [_plan("async", _ASYNC_POPSIZE, count, each), _plan("sync", 4 * max(count, 2), count, each)]
        with tempfile.TemporaryDirectory() as folder:
            timings = measure_ray(count, plans, Sleeping(mean_s=mean_s, spread=_SPREAD), Path(folder))
        for timing in timings:
            plan, done = timing.plan, timing.steady.done
            ratio = done / first.setdefault(plan.scheduler, done)
            print(
                f"  {count:7}  {plan.scheduler:9}  {plan.popsize:10}  {done:8.3f}  {ratio:14.3f}"
                f"  {timing.whole.done:14.3f}",
                flush=True,
            )


def print_simulated(workers: Sequence[int], each: int) -> None:
    """``each``: candidates for each worker. ``steady`` is what the others leave of 1."""
    print(f"simulated workers, candidates take {Conditions(workers=1).mean_s:g} s ± {_SPREAD:.0%}")
    print("  workers  scheduler  generation  what                  steady      lost  starting      idle")
    for count in workers:
        for timing, what in _simulated(count, each):
            plan, shares = timing.plan, timing.steady
            print(
                f"  {count:7}  {plan.scheduler:9}  {plan.popsize:10}  {what:18}  {shares.done:8.3f}  "
                f"{shares.lost:8.3f}  {shares.starting:8.3f}  {shares.idle:8.3f}",
                flush=True,
            )


def _simulated(count: int, each: int) -> Iterator[tuple[Timing, str]]:
    calm = Conditions(workers=count, spread=_SPREAD)
    deadly = replace(calm, deaths_per_minute=_DEATHS_PER_MINUTE, start_s=_START_S)
    ray = replace(calm, driver_s=_RAY_DRIVER_S, latency_s=_RAY_LATENCY_S)
    anything = _plan("async", _ASYNC_POPSIZE, count, each)
    with tempfile.TemporaryDirectory() as folder:
        timing = measure_simulated(ray, anything, Path(folder), clock=time.perf_counter)
        yield timing, "with this driver"
    in_memory = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        for popsize in sorted({4, _ASYNC_POPSIZE, max(count, 4), 3 * count + 1}):
            yield measure_simulated(calm, _plan("async", popsize, count, each), Path(folder)), ""
        yield measure_simulated(deadly, anything, Path(folder)), "10 % die a minute"
        for times in (1, 2, 4, 8):
            plan = _plan("sync", max(4, times * count), count, each)
            yield measure_simulated(calm, plan, Path(folder)), f"{times} x workers"
        plan = _plan("sync", max(4, 4 * count), count, each)
        yield measure_simulated(deadly, plan, Path(folder)), "10 % die a minute"


def _plan(scheduler: str, popsize: int, workers: int, each: int) -> Plan:
    """At least three generations that count, beside the baselines and the last generation."""
    return Plan(scheduler=scheduler, popsize=popsize, candidates=max(each * workers, 4 * popsize) + 6)
