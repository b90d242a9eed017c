"""What this machine has: cores, memory, GPUs; and how fast such devices usually are.

Light: GPUs are asked for through ``nvidia-smi``, so that no torch is loaded.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one device as forward passes and merges find it.

    ``flops_per_s``: of matrix products with many rows. ``weights_bytes_per_s``: at which weights are read
    when there are few. ``merge_bytes_per_s``: of source models, at which a merge takes them in.
    """

    flops_per_s: float
    weights_bytes_per_s: float
    merge_bytes_per_s: float

    def times(self, factor: float) -> Speed:
        """Of so many devices together."""
        return Speed(
            flops_per_s=factor * self.flops_per_s,
            weights_bytes_per_s=factor * self.weights_bytes_per_s,
            merge_bytes_per_s=factor * self.merge_bytes_per_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver names it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``free_bytes``: memory that programs can have now. ``matrix_unit``: for products in bfloat16."""

    cores: int
    free_bytes: int
    gpus: tuple[Gpu, ...] = ()
    matrix_unit: bool = False


# One core, measured (docs/log.md); without a matrix unit a guess from its products in float32.
CORE = Speed(flops_per_s=6e10, weights_bytes_per_s=7e9, merge_bytes_per_s=2e9)
CORE_WITH_MATRIX_UNIT = Speed(flops_per_s=4e11, weights_bytes_per_s=7e9, merge_bytes_per_s=2e9)

# What the makers say of dense bfloat16 products (1e12/s) and memory (1e12 bytes/s); not measured by us.
_GPUS = {
    "H200": (989, 4.8),
    "H100": (989, 3.35),
    "A100": (312, 1.9),
    "L40": (362, 0.86),
    "A10": (125, 0.6),
    "L4": (121, 0.3),
    "4090": (165, 1.0),
    "3090": (71, 0.94),
    "V100": (125, 0.9),
    "T4": (65, 0.32),
}
_USUAL_GPU = "A100"
_PRODUCTS_SHARE, _MEMORY_SHARE = 0.35, 0.5  # of that, what a search is likely to see
_LINK_BYTES_PER_S = 8e9  # from the memory of the machine, where source models are mapped


def this_machine() -> Machine:
    """This one, as it is now."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        free_bytes=free_bytes(),
        gpus=_gpus(),
        matrix_unit="amx_bf16" in _processor_flags(),
    )


def free_bytes() -> int:
    """Memory that this process and its children can have, also inside a container."""
    available = int(psutil.virtual_memory().available)
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return min(available, max(limit - used + (_cgroup_cache_bytes() or 0), 0))


def gpu_speed(name: str) -> Speed:
    """What is assumed of a GPU by its name; an unknown one is taken for an A100."""
    products, memory = next((row for key, row in _GPUS.items() if key in name), _GPUS[_USUAL_GPU])
    return Speed(
        flops_per_s=_PRODUCTS_SHARE * products * 1e12,
        weights_bytes_per_s=_MEMORY_SHARE * memory * 1e12,
        merge_bytes_per_s=_LINK_BYTES_PER_S,
    )


def _gpus() -> tuple[Gpu, ...]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in found.splitlines() if "," in line]
    gpus = [
        Gpu(name=name.strip(), memory_bytes=int(size) * 2**20)
        for name, size in rows
        if size.strip().isdigit()
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(
        gpus if visible is None else gpus[: len([part for part in visible.split(",") if part.strip()])]
    )


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_cache_bytes() -> int | None:
    """What the container's files hold of its memory, and give back when it is wanted."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), None)
