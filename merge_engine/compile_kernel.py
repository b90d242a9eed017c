"""Compiles one variant of a kernel into a shared library.

Run as a process of its own, it takes a `Variant` as JSON on standard input: the memory that tracing takes is
not that of the merge, which goes on meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_engine.kernel_source import kernel_source
from merge_engine.kernel_variants import EXAMPLE_ELEMENTS, Variant, example, flatten, nested
from merge_engine.methods.rounding import rounded

# Values are those of the operations as they are written: no product is fused into a sum, integers wrap round.
_EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv")
_LIBRARY = ("-x", "c++", "-std=c++17", "-O3", "-shared", "-fPIC", "-w")


def write(
    kernel: Callable[..., Tensor],
    out_N: Tensor,
    sources: tuple[Tensor, ...],
    base_N: Tensor | None,
    first: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    arguments: tuple[Any, ...],
) -> None:
    """Merge into ``out_N``, rounded to ``dtypes``: that of the merge and that of the result."""
    dtype, out_dtype = dtypes
    merged_N = kernel(sources, base_N, first, dtype, *arguments)
    if out_dtype != dtype or out_N.dtype != dtype:
        merged_N = rounded(rounded(merged_N, dtype), out_dtype)
    out_N.copy_(merged_N)


class Program(torch.nn.Module):
    """A variant as a program of tensors alone."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._variant, self._kernel = variant, variant.function()

    def forward(self, first: Tensor, *tensors: Tensor) -> None:
        out_N, sources, base_N, arguments = nested(self._variant.form, tensors)
        write(self._kernel, out_N, sources, base_N, first, self._variant.merge_dtypes(), arguments)


def compiler() -> str | None:
    """The C++ compiler: $CXX, or what is found."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((path for path in map(shutil.which, names) if path), None)


def build(variant: Variant, library: Path) -> None:
    """Write the shared library of ``variant``: it takes the place of the first element, then all tensors."""
    compile_library(kernel_source(_traced(variant)), library)


def compile_library(source: str, library: Path) -> None:
    """Write the shared library of C++ ``source``. Raises `RuntimeError` where that fails."""
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler: install g++ or clang++, or name one in $CXX")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [found, *flags(), "-o", str(made), "-"]
        done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{found} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        made.replace(library)


def flags() -> tuple[str, ...]:
    """What the compiler is told, the result's name and ``-``, for the source on standard input, apart."""
    return *_LIBRARY, *_EXACT, *_processor_options()


def _traced(variant: Variant) -> torch.fx.Graph:
    tensors = [torch.tensor(0, dtype=torch.int32), *flatten(example(variant.form))]
    sizes = [_dynamic(tensor) for tensor in tensors[1:]]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own code
        exported = torch.export.export(Program(variant), tuple(tensors), dynamic_shapes=(None, tuple(sizes)))
    graph: torch.fx.Graph = exported.graph
    return graph


def _dynamic(tensor: Tensor) -> dict[int, Any]:
    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(tensor.shape) if size == EXAMPLE_ELEMENTS}


def _processor_options() -> tuple[str, ...]:
    """All instructions of this processor, and its widest vectors."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("-mcpu=native",)
    return "-march=native", "-mprefer-vector-width=512"


def main() -> None:
    """Build the variant on standard input as the file named, unless another process has."""
    library = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # temporary files go too
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            build(Variant.from_json(sys.stdin.read()), library)


if __name__ == "__main__":
    main()
