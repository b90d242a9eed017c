"""Runs kernels over whole tensors: compiled where that pays, otherwise in pieces that stay in the cache."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_engine.cache_folder import cache_folder
from merge_engine.compile_kernel import write
from merge_engine.kernel_library import Compiled, CompilePolicy, KernelLibrary
from merge_engine.kernel_variants import Variant, flatten
from merge_engine.methods.family import GROUP_ELEMENTS, Call, Kernel
from merge_engine.threads import mapped

Dtypes = tuple[torch.dtype, torch.dtype]

PIECE_ELEMENTS = 2**15  # eager: some ten fp32 temporaries of this size stay in a core's cache
EAGER_RUN_ELEMENTS = 2**20  # then look whether the kernel has been compiled meanwhile
COMPILED_FROM_ELEMENTS = 2**8  # a call of a compiled kernel costs some 20 us, less than any eager one
COMPILED_RUN_ELEMENTS = 2**22  # what one of several threads does at a time, at most
LEAST_SHARE = 2**18  # and at least: less is done before another one has woken up
DEVICE_FROM_ELEMENTS = 2**20  # on an accelerator compiling is worth it for long tensors,
DEVICE_RUN_ELEMENTS = 2**24  # and launching costs more than temporaries

_LONGEST_RUN = 2**30  # compiled kernels count in 32 bits
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
        calls: Iterable[Call],
        out_N: Tensor,
        sources: Sequence[Tensor],
        base_N: Tensor | None,
        dtypes: Dtypes,
        *,
        can_compile: Callable[[], bool],
    ) -> None:
        """Merge the elements of all ``calls`` into ``out_N``. All tensors are flat and of one length.

        ``dtypes``: the merge dtype and the dtype of the result, to which values are rounded even where
        ``out_N`` could hold more. ``can_compile`` is asked once, where there is a compiled kernel.
        """
        inputs = _Inputs(kernel, out_N, tuple(sources), base_N, dtypes)
        moderate = functools.cache(can_compile)
        for call in calls:
            if self._device.type == "cpu":
                self._run_on_cpu(inputs, call, moderate)
            else:
                self._run_on_device(inputs, call, moderate)

    def _run_on_cpu(self, inputs: _Inputs, call: Call, can_compile: Callable[[], bool]) -> None:
        length = call.stop - call.start
        variant = inputs.variant(call) if call.compiles and length >= COMPILED_FROM_ELEMENTS else None
        start = call.start
        while start < call.stop:
            compiled = None if variant is None else self._library.find(variant)
            if compiled is not None and can_compile():
                self._run_compiled(compiled, inputs, call, start)
                return
            stop = min(start + EAGER_RUN_ELEMENTS, call.stop)
            began_s = time.thread_time()
            self._run_eagerly(inputs, call, start, stop)
            if variant is not None:
                self._library.spent(variant, time.thread_time() - began_s)
            start = stop

    def _run_compiled(self, compiled: Compiled, inputs: _Inputs, call: Call, start: int) -> None:
        """From element ``start`` on, by as many threads as torch would take."""
        arguments = flatten(call.arguments)

        def run(begin: int) -> None:
            end = min(begin + step, call.stop)
            compiled([_first(call, begin), *flatten(inputs.tensors(begin, end)), *arguments])

        threads = torch.get_num_threads()
        share = max(-(-(call.stop - start) // threads), LEAST_SHARE)
        step = min(share, COMPILED_RUN_ELEMENTS) if threads > 1 else _LONGEST_RUN
        mapped(run, range(start, call.stop, step))

    def _run_eagerly(self, inputs: _Inputs, call: Call, start: int, stop: int) -> None:
        length = call.stop - call.start
        step = length if length <= GROUP_ELEMENTS else PIECE_ELEMENTS
        for begin in range(start, stop, max(step, 1)):
            out_N, sources, base_N = inputs.tensors(begin, min(begin + step, stop))
            write(inputs.kernel, out_N, sources, base_N, _first(call, begin), inputs.dtypes, call.arguments)

    def _run_on_device(self, inputs: _Inputs, call: Call, can_compile: Callable[[], bool]) -> None:
        worth = self._policy == "always" or call.stop - call.start >= DEVICE_FROM_ELEMENTS
        compiled = call.compiles and worth and self._policy != "never" and can_compile()
        merge = _compiled(inputs.kernel) if compiled else functools.partial(write, inputs.kernel)
        arguments = self._moved(call.arguments)
        for start in range(call.start, call.stop, DEVICE_RUN_ELEMENTS):
            out_N, *rest = inputs.tensors(start, min(start + DEVICE_RUN_ELEMENTS, call.stop))
            sources, base_N = self._moved(tuple(rest))
            merge(out_N, sources, base_N, self._moved(_first(call, start)), inputs.dtypes, arguments)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._device)
        return tuple(map(self._moved, value)) if isinstance(value, (tuple, list)) else value


class _Inputs:
    """What a kernel is run on, to be cut into pieces."""

    def __init__(
        self,
        kernel: Kernel,
        out_N: Tensor,
        sources: tuple[Tensor, ...],
        base_N: Tensor | None,
        dtypes: Dtypes,
    ) -> None:
        self.kernel = kernel
        self.dtypes = dtypes
        self._tensors = out_N, sources, base_N
        self._variant: Variant | None = None

    def variant(self, call: Call) -> Variant:
        """That of all calls: their arguments are of one form."""
        if self._variant is None:
            length = self._tensors[0].numel()
            self._variant = Variant.of(self.kernel, (*self._tensors, call.arguments), length, self.dtypes)
        return self._variant

    def tensors(self, start: int, stop: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Elements [start, stop) of result, sources and base."""
        out_N, sources, base_N = self._tensors
        return (
            out_N[start:stop],
            tuple([source_N[start:stop] for source_N in sources]),
            None if base_N is None else base_N[start:stop],
        )


def _first(call: Call, start: int) -> Tensor:
    """The place of element ``start`` in the call, as kernels take it (those of calls up to 2**31)."""
    return torch.tensor((start - call.start) % 2**31, dtype=torch.int32)


@functools.cache
def _compiled(kernel: Kernel) -> Callable[..., None]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    merge = functools.partial(write, kernel)
    return torch.compile(merge, dynamic=True, fullgraph=True, options={"emulate_precision_casts": True})
