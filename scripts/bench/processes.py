"""Whole commands on the same files: ours, the mergekit wheel's, and one that only copies. Linux only."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COPY = """
import os, sys
buffer = memoryview(bytearray(2**23))
with open(sys.argv[1], "wb", buffering=0) as out:
    for number, name in enumerate(sys.argv[2:]):
        with open(name, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                if number == 0:
                    out.write(buffer[:count])
    os.fsync(out.fileno())
"""
_OURS = "from evolve.cli import main; main()"
_OUR_IMPORTS = "import torch, evolve.cli.merge, merge_engine.folder; torch.ones(2) + 1"
_WHEEL_IMPORTS = "import torch, mergekit.scripts.run_yaml; torch.ones(2) + 1"
_PREPARE = """
import sys
from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe
from merge_engine.spec.yaml_io import load_yaml
import torch
torch.set_num_threads(int(sys.argv[2]))
for _ in Engine(once=True, compile="always").stream(parse_recipe(load_yaml(open(sys.argv[1]).read()))):
    pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a process took: wall and processor seconds, and its largest resident set."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One method, medians of repetitions; the wheel runs once. Peaks: above an idle process after imports."""

    method: str
    copy: Cost
    warm: Cost
    cold: Cost
    wheel: Cost | None


class Processes:
    """Runs commands that write one folder in ``folder``, which is removed after each.

    ``cached``: models are in the page cache; otherwise they are taken out of it before each command.
    """

    def __init__(self, folder: Path, *, threads: int, repetitions: int, cached: bool) -> None:
        self._out = folder / "out"
        self._caches = folder / "warm-cache", folder / "cold-cache"
        self._threads = threads
        self._repetitions = repetitions
        self._cached = cached
        self._files: list[Path] = []
        self._our_idle = self._run([sys.executable, "-c", _OUR_IMPORTS]).peak_mib
        self._wheel_idle = self._run([sys.executable, "-c", _WHEEL_IMPORTS]).peak_mib

    def compare(self, method: str, config: Path, models: Sequence[Path], *, wheel: bool) -> Comparison:
        """All commands for one config, one after another, as often as asked for."""
        warm, _ = self._caches
        self._files = [file for model in models for file in sorted(model.glob("*.safetensors"))]
        self._run([sys.executable, "-c", _PREPARE, str(config), str(self._threads)], cache=warm)
        rounds = [self._round(config) for _ in range(self._repetitions)]
        copies, warms, colds = (list(costs) for costs in zip(*rounds, strict=True))
        return Comparison(
            method=method,
            copy=_median(copies),
            warm=_median(warms),
            cold=_median(colds),
            wheel=self._wheel(config) if wheel else None,  # minutes for some methods
        )

    def _round(self, config: Path) -> tuple[Cost, Cost, Cost]:
        warm_cache, cold_cache = self._caches
        shutil.rmtree(cold_cache, ignore_errors=True)
        ours = [sys.executable, "-c", _OURS, "merge", str(config), str(self._out), "--quiet"]
        ours += ["--num-threads", str(self._threads)]
        copy = self._run([sys.executable, "-c", _COPY, str(self._out), *map(str, self._files)])
        warm = self._run(ours, cache=warm_cache, idle_mib=self._our_idle)
        cold = self._run(ours, cache=cold_cache, idle_mib=self._our_idle)
        return copy, warm, cold

    def _wheel(self, config: Path) -> Cost:
        command = [str(Path(sys.executable).with_name("mergekit-yaml")), str(config), str(self._out)]
        best = ["--async-write", "--quiet", "--no-copy-tokenizer", "-j", str(self._threads)]
        return self._run([*command, *best], idle_mib=self._wheel_idle)

    def _run(self, command: Sequence[str], *, cache: Path | None = None, idle_mib: float = 0.0) -> Cost:
        """The cost of a command; its output folder is removed."""
        environment: Mapping[str, str] = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self._threads),
            **({} if cache is None else {"MERGEVOLVE_CACHE": str(cache)}),
        }
        if not self._cached:
            _evict(self._files)
        start = time.perf_counter()
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        child.stderr.close()
        if child.returncode:
            raise SystemExit(f"{command} ended with {child.returncode}:\n{errors[-2000:]}")
        self._remove_output()
        return Cost(
            wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, peak_mib=usage.ru_maxrss / 1024 - idle_mib
        )

    def _remove_output(self) -> None:
        if self._out.is_dir():
            shutil.rmtree(self._out)
        else:
            self._out.unlink(missing_ok=True)


def _evict(files: Sequence[Path]) -> None:
    """Take files out of the page cache: the next one to need them reads the disk."""
    for name in files:
        with name.open("rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        wall_s=statistics.median(cost.wall_s for cost in costs),
        cpu_s=statistics.median(cost.cpu_s for cost in costs),
        peak_mib=statistics.median(cost.peak_mib for cost in costs),
    )
