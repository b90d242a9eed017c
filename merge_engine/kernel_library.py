"""Compiled kernels: those an earlier process left, or made by a process of their own while work goes on.

Compiling costs a constant, running eagerly a sum that grows: a kernel is compiled once it has run eagerly for
a while, so that short work never waits for a compiler and long work hardly notices the start.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from torch import Tensor

from merge_engine.compile_kernel import build, compiler
from merge_engine.kernel_loop import FUNCTION
from merge_engine.kernel_variants import Variant

CompilePolicy = Literal["auto", "always", "never"]
# Takes the place of the first element, the result and the other tensors of a call (`compile_kernel.Program`).
Compiled = Callable[[Sequence[Tensor]], None]

PATIENCE_S = 0.5  # of eager work before a kernel is compiled, which takes 3 s of another core
_log = logging.getLogger(__name__)


class KernelLibrary:
    """Compiled kernels for the CPU by variant.

    policy: ``auto`` compiles in the background what pays, ``always`` compiles before the first use (as tests
    want it), ``never`` neither compiles nor loads.
    folder: where libraries are kept, for this user alone.
    """

    def __init__(self, policy: CompilePolicy, folder: Path) -> None:
        if policy not in ("auto", "always", "never"):
            raise ValueError(f"compile={policy!r}: expected 'auto', 'always' or 'never'")
        self._policy = policy
        self._folder = folder
        self._entries: dict[Variant, _Entry] = {}

    def find(self, variant: Variant) -> Compiled | None:
        """The compiled kernel if it is there by now."""
        if self._policy == "never":
            return None
        entry = self._entries.get(variant)
        if entry is None:
            entry = self._entries[variant] = _Entry(self._load(variant))
            if entry.compiled is None and self._policy == "always":
                self._build_here(variant, entry)
        if entry.build is not None and entry.build.poll() is not None:
            self._take(variant, entry, entry.build)
        return entry.compiled

    def spent(self, variant: Variant, eager_s: float) -> None:
        """Account for time in which the kernel ran eagerly, and have it compiled once that pays."""
        entry = self._entries.get(variant)
        if entry is None or entry.compiled is not None or entry.is_hopeless:
            return
        entry.eager_s += eager_s
        if entry.eager_s >= PATIENCE_S and entry.build is None:
            self._start(variant, entry)

    def _load(self, variant: Variant) -> Compiled | None:
        file = self._folder / variant.file_name()
        if not file.is_file() or not is_ours(file):
            return None
        return _call(file)

    def _build_here(self, variant: Variant, entry: _Entry) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        build(variant, self._folder / variant.file_name())
        entry.compiled = self._load(variant)

    def _start(self, variant: Variant, entry: _Entry) -> None:
        """Start the compiler. It ends with this process at the latest."""
        if not has_compiler():
            entry.is_hopeless = True
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _log.info("compiling %s in the background", variant.kernel)
        entry.output = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115
        with tempfile.TemporaryFile(mode="w+", encoding="utf-8") as text:
            text.write(variant.to_json())
            text.seek(0)
            entry.build = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "merge_engine.compile_kernel",
                    str(self._folder / variant.file_name()),
                ],
                stdin=text,
                stdout=subprocess.DEVNULL,
                stderr=entry.output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,
            )
        weakref.finalize(self, _end, entry.build, entry.output)

    def _take(self, variant: Variant, entry: _Entry, build: subprocess.Popen[bytes]) -> None:
        entry.build = None
        entry.compiled = self._load(variant)
        if entry.compiled is None:
            entry.is_hopeless = True
            reason = _last_line(entry.output)
            _log.warning(
                "%s could not be compiled (status %s: %s); merging goes on without",
                variant.kernel,
                build.returncode,
                reason,
            )


@dataclass(slots=True)
class _Entry:
    """What is known about one variant."""

    compiled: Compiled | None
    eager_s: float = 0.0
    build: subprocess.Popen[bytes] | None = None
    output: IO[str] | None = field(default=None, repr=False)
    is_hopeless: bool = False


def has_compiler() -> bool:
    """Whether kernels can be compiled here."""
    return compiler() is not None


def _call(file: Path) -> Compiled:
    """The function of a library. Other threads run while it does."""
    function = getattr(ctypes.CDLL(str(file)), FUNCTION)
    function.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)]
    function.restype = None

    def call(tensors: Sequence[Tensor]) -> None:
        given = [tensor.contiguous() for tensor in tensors]
        addresses = (ctypes.c_void_p * len(given))(*[tensor.data_ptr() for tensor in given])
        function(given[1].numel(), addresses)

    return call


def is_ours(file: Path) -> bool:
    """A library is code: only this user may have written it."""
    return not hasattr(os, "getuid") or all(path.stat().st_uid == os.getuid() for path in (file, file.parent))


def _last_line(output: IO[str] | None) -> str:
    if output is None:
        return "no message"
    with output:
        output.seek(0)
        return (output.read().strip().splitlines() or ["no message"])[-1]


def _end(build: subprocess.Popen[bytes], output: IO[str]) -> None:
    output.close()
    if build.poll() is None:
        os.killpg(build.pid, signal.SIGTERM)
        build.wait()
