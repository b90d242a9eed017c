"""Compiles one variant of a kernel into a shared library.

Run as a process of its own, it takes a `Variant` as JSON on standard input: the compiler's memory and threads
are not those of the merge, which goes on meanwhile.
"""

from __future__ import annotations

import fcntl
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_engine.kernel_variants import EXAMPLE_ELEMENTS, Variant, example, flatten, nested
from merge_engine.methods.rounding import rounded

# Rounding must stay where the kernels put it, and a product must not be fused into a sum.
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "emulate_precision_casts": True,
    "cpp.enable_floating_point_contract_flag": "off",
}
_LIBRARY_OPTIONS = {
    **INDUCTOR_OPTIONS,
    "aot_inductor.compile_wrapper_opt_level": "O0",  # all the time is spent in the kernel itself
    "aot_inductor.package": False,
}


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


def build(variant: Variant, library: Path) -> None:
    """Write the shared library of ``variant``: it takes the place of the first element, then all tensors."""
    torch.set_num_threads(variant.threads)
    tensors = [torch.tensor(0, dtype=torch.int32), *flatten(example(variant.form))]
    sizes = [_dynamic(tensor) for tensor in tensors[1:]]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=library.parent) as folder:
        warnings.simplefilter("ignore")  # of torch's own code
        with torch.no_grad():
            program = torch.export.export(
                Program(variant), tuple(tensors), dynamic_shapes=(None, tuple(sizes))
            )
            built = torch._inductor.aot_compile(
                program.module(),
                tuple(tensors),
                options={**_LIBRARY_OPTIONS, "aot_inductor.output_path": str(Path(folder) / "kernel.so")},
            )
        Path(str(built)).replace(library)


def _dynamic(tensor: Tensor) -> dict[int, Any]:
    return {axis: torch.export.Dim.AUTO for axis, size in enumerate(tensor.shape) if size == EXAMPLE_ELEMENTS}


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
