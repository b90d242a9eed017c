"""Runs kernels over whole tensors: compiled where that pays, otherwise in pieces that stay in the cache."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from merge_engine.cache_folder import cache_folder
from merge_engine.compile_kernel import write
from merge_engine.kernel_library import Compiled, CompilePolicy, KernelLibrary
from merge_engine.kernel_variants import Variant, flatten
from merge_engine.methods.family import GROUP_ELEMENTS, Argument, Call, Kernel

Dtypes = tuple[torch.dtype, torch.dtype]

PIECE_ELEMENTS = 2**15  # eager: some ten fp32 temporaries of this size stay in a core's cache
EAGER_RUN_ELEMENTS = 2**20  # then look whether the kernel has been compiled meanwhile
COMPILED_FROM_ELEMENTS = 2**12  # a call of a compiled kernel costs some 20 us, as much as so many eagerly
COMPILED_RUN_ELEMENTS = 2**21  # short enough to share out among threads
DEVICE_FROM_ELEMENTS = 2**20  # on an accelerator compiling is worth it for long tensors,
DEVICE_RUN_ELEMENTS = 2**24  # and launching costs more than temporaries

_VARIANTS = 64  # numbers of models, dtypes and switches for which one kernel may be compiled on a device


class Runner:
    """Writes merged tensors. Compiled and eager runs give the same bits."""

    def __init__(self, *, device: str, policy: CompilePolicy) -> None:
        self._device = torch.device(device)
        self._policy = policy
        self._library = KernelLibrary(policy, cache_folder() / "kernels")

    def run(
        self,
        kernel: Kernel,
        call: Call,
        out_N: Tensor,
        sources: Sequence[Tensor],
        base_N: Tensor | None,
        dtypes: Dtypes,
        *,
        can_compile: Callable[[], bool],
    ) -> None:
        """Merge elements [call.start, call.stop) into ``out_N``. All tensors are flat and of one length.

        ``dtypes``: the merge dtype and the dtype of the result, to which values are rounded even where
        ``out_N`` could hold more. ``can_compile`` is asked where there is a compiled kernel.
        """
        inputs = _Inputs(kernel, call, out_N, tuple(sources), base_N, dtypes)
        if self._device.type == "cpu":
            self._run_on_cpu(inputs, can_compile)
        else:
            self._run_on_device(inputs, can_compile)

    def _run_on_cpu(self, inputs: _Inputs, can_compile: Callable[[], bool]) -> None:
        call = inputs.call
        variant = inputs.variant() if call.compiles and inputs.length >= COMPILED_FROM_ELEMENTS else None
        start = call.start
        while start < call.stop:
            compiled = None if variant is None else self._library.find(variant)
            if compiled is not None and can_compile():
                self._run_compiled(compiled, inputs, start)
                return
            stop = min(start + EAGER_RUN_ELEMENTS, call.stop)
            began_s = time.thread_time()
            self._run_eagerly(inputs, start, stop)
            if variant is not None:
                self._library.spent(variant, time.thread_time() - began_s)
            start = stop

    def _run_compiled(self, compiled: Compiled, inputs: _Inputs, start: int) -> None:
        """From element ``start`` on, by as many threads as torch would take."""
        stop, threads = inputs.call.stop, torch.get_num_threads()

        def run(begin: int) -> None:
            end = min(begin + COMPILED_RUN_ELEMENTS, stop)
            compiled(flatten((inputs.first(begin), inputs.tensors(begin, end))))

        begins = range(start, stop, COMPILED_RUN_ELEMENTS)
        if threads == 1 or len(begins) == 1:
            for begin in begins:
                run(begin)
            return
        with ThreadPoolExecutor(min(threads, len(begins))) as pool:
            for done in [pool.submit(run, begin) for begin in begins]:
                done.result()

    def _run_eagerly(self, inputs: _Inputs, start: int, stop: int) -> None:
        step = inputs.length if inputs.length <= GROUP_ELEMENTS else PIECE_ELEMENTS
        for begin in range(start, stop, max(step, 1)):
            out_N, sources, base_N, arguments = inputs.tensors(begin, min(begin + step, stop))
            write(inputs.kernel, out_N, sources, base_N, inputs.first(begin), inputs.dtypes, arguments)

    def _run_on_device(self, inputs: _Inputs, can_compile: Callable[[], bool]) -> None:
        call = inputs.call
        worth = self._policy == "always" or inputs.length >= DEVICE_FROM_ELEMENTS
        compiled = call.compiles and worth and self._policy != "never" and can_compile()
        merge = _compiled(inputs.kernel) if compiled else functools.partial(write, inputs.kernel)
        for start in range(call.start, call.stop, DEVICE_RUN_ELEMENTS):
            out_N, *rest = inputs.tensors(start, min(start + DEVICE_RUN_ELEMENTS, call.stop))
            sources, base_N, arguments = self._moved(tuple(rest))
            merge(out_N, sources, base_N, self._moved(inputs.first(start)), inputs.dtypes, arguments)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._device)
        return tuple(map(self._moved, value)) if isinstance(value, (tuple, list)) else value


class _Inputs:
    """What a kernel is run on, to be cut into pieces."""

    def __init__(
        self,
        kernel: Kernel,
        call: Call,
        out_N: Tensor,
        sources: tuple[Tensor, ...],
        base_N: Tensor | None,
        dtypes: Dtypes,
    ) -> None:
        self.kernel = kernel
        self.call = call
        self.dtypes = dtypes
        self._tensors = out_N, sources, base_N

    @property
    def length(self) -> int:
        return self.call.stop - self.call.start

    def variant(self) -> Variant:
        out_N = self._tensors[0]
        return Variant.of(self.kernel, (*self._tensors, self.call.arguments), out_N.numel(), self.dtypes)

    def first(self, start: int) -> Tensor:
        """The place of element ``start`` in the call, as kernels take it (those of calls up to 2**31)."""
        return torch.tensor((start - self.call.start) % 2**31, dtype=torch.int32)

    def tensors(
        self, start: int, stop: int
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None, tuple[Argument, ...]]:
        """Elements [start, stop) of result, sources and base, and the arguments as they are."""
        out_N, sources, base_N = self._tensors
        return (
            out_N[start:stop],
            tuple([source_N[start:stop] for source_N in sources]),
            None if base_N is None else base_N[start:stop],
            self.call.arguments,
        )


@functools.cache
def _compiled(kernel: Kernel) -> Callable[..., None]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    merge = functools.partial(write, kernel)
    return torch.compile(merge, dynamic=True, fullgraph=True, options={"emulate_precision_casts": True})
