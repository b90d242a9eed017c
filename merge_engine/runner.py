"""Runs kernels over whole tensors: compiled where that pays, otherwise in pieces that stay in the cache."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from merge_engine.methods.family import GROUP_ELEMENTS, SHORT_ELEMENTS, Argument, Call, Kernel
from merge_engine.methods.rounding import rounded

CompilePolicy = Literal["auto", "always", "never"]

PIECE_ELEMENTS = 2**15  # eager: some ten fp32 temporaries of this size stay in a core's cache
COMPILED_RUN_ELEMENTS = (
    2**13
)  # a call of a compiled kernel costs some 150 us, as much as so many elements eagerly
COMPILE_FROM_ELEMENTS = (
    50_000_000  # compiling takes 5-20 s once, and saves about 30 ns per element and candidate
)

# Rounding must stay where the kernels put it, and a product must not be fused into a sum.
_INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "emulate_precision_casts": True,
    "cpp.enable_floating_point_contract_flag": "off",
}
_VARIANTS = 64  # numbers of models, dtypes and switches for which one kernel may be compiled


class Runner:
    """Writes merged tensors. Compiled and eager runs give the same bits."""

    def __init__(self, *, device: str, policy: CompilePolicy) -> None:
        if policy not in ("auto", "always", "never"):
            raise ValueError(f"compile={policy!r}: expected 'auto', 'always' or 'never'")
        self._device = torch.device(device)
        self._policy = policy

    def compiles(self, elements: int) -> bool:
        """Whether a model of so many elements is merged with compiled kernels."""
        if self._policy == "auto":
            return elements >= COMPILE_FROM_ELEMENTS and (self._device.type != "cpu" or has_compiler())
        return self._policy == "always"

    def run(
        self,
        kernel: Kernel,
        call: Call,
        out_N: Tensor,
        sources: Sequence[Tensor],
        base_N: Tensor | None,
        dtypes: tuple[torch.dtype, torch.dtype],
        *,
        compiled: bool,
    ) -> None:
        """Merge elements [call.start, call.stop) into ``out_N``. All tensors are flat and of one length.

        ``dtypes``: the merge dtype and the dtype of the result, to which values are rounded even where
        ``out_N`` could hold more.
        """
        length = call.stop - call.start
        compiled = compiled and out_N.numel() >= SHORT_ELEMENTS and length >= COMPILED_RUN_ELEMENTS
        step = length if compiled or length <= GROUP_ELEMENTS else PIECE_ELEMENTS
        write, cut = (_compiled(kernel), _unviewed) if compiled else (functools.partial(_write, kernel), _cut)
        arguments = self._moved(call.arguments)
        for start in range(call.start, call.stop, max(step, 1)):
            stop = min(start + step, call.stop)
            write(
                cut(out_N, start, stop),
                tuple(self._moved(cut(source_N, start, stop)) for source_N in sources),
                None if base_N is None else self._moved(cut(base_N, start, stop)),
                torch.tensor(start - call.start, dtype=torch.int32, device=self._device),
                dtypes,
                arguments,
            )

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._device)
        return tuple(self._moved(entry) for entry in value) if isinstance(value, tuple) else value


def has_compiler() -> bool:
    """Whether `torch.compile` finds a C++ compiler here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _write(
    kernel: Kernel,
    out_N: Tensor,
    sources: Sequence[Tensor],
    base_N: Tensor | None,
    first: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    arguments: tuple[Argument, ...],
) -> None:
    dtype, out_dtype = dtypes
    merged_N = kernel(sources, base_N, first, dtype, *arguments)
    if out_dtype != dtype or out_N.dtype != dtype:
        merged_N = rounded(rounded(merged_N, dtype), out_dtype)
    out_N.copy_(merged_N)


@functools.cache
def _compiled(kernel: Kernel) -> Callable[..., None]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    write = functools.partial(_write, kernel)
    return torch.compile(write, dynamic=True, fullgraph=True, options=_INDUCTOR_OPTIONS)


def _cut(x_N: Tensor, start: int, stop: int) -> Tensor:
    return x_N[start:stop]


def _unviewed(x_N: Tensor, start: int, stop: int) -> Tensor:
    """Elements [start, stop) of a flat tensor over the same storage, but no view, which dynamo tracks."""
    piece = torch.empty(0, dtype=x_N.dtype, device=x_N.device)
    return piece.set_(x_N.untyped_storage(), x_N.storage_offset() + start, (stop - start,), (1,))
