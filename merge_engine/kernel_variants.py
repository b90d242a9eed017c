"""What a kernel is compiled for: everything but the values of its tensors and how many elements they have."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

EXAMPLE_ELEMENTS = 4096  # no argument but the tensors themselves has as many

# A tensor as ("tensor", dtype, shape), with -1 for the length N; a sequence as a tuple; all else as itself.
Form: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to call a kernel ``module:function``; ``form`` is that of (out, sources, base, arguments)."""

    kernel: str
    form: Form
    dtypes: tuple[str, str]

    @staticmethod
    def of(
        kernel: Callable[..., Tensor],
        tensors: Sequence[Any],
        length: int,
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> Variant:
        """The variant of a call on ``tensors``: (out_N, sources, base_N, arguments)."""
        return Variant(
            f"{kernel.__module__}:{kernel.__qualname__}",
            _form(tuple(tensors), length),
            (_name(dtypes[0]), _name(dtypes[1])),
        )

    def function(self) -> Callable[..., Tensor]:
        module, _, name = self.kernel.partition(":")
        function: Callable[..., Tensor] = getattr(importlib.import_module(module), name)
        return function

    def merge_dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        return getattr(torch, self.dtypes[0]), getattr(torch, self.dtypes[1])

    def to_json(self) -> str:
        return json.dumps([self.kernel, self.form, self.dtypes])

    @staticmethod
    def from_json(text: str) -> Variant:
        kernel, form, dtypes = json.loads(text)
        return Variant(kernel, _as_tuples(form), (dtypes[0], dtypes[1]))

    def file_name(self) -> str:
        """The name of its library: another one where code, torch or processor differ."""
        digest = hashlib.blake2b(self.to_json().encode() + _surroundings(), digest_size=16)
        return f"{self.kernel.rpartition(':')[2]}-{digest.hexdigest()}.so"


def flatten(value: Any) -> list[Tensor]:
    """The tensors in a nest of tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for entry in value for tensor in flatten(entry)]
    return []


def example(form: Form) -> Any:
    """Something of that form, with tensors of zeros of `EXAMPLE_ELEMENTS` elements."""
    if _is_tensor(form):
        _, dtype, shape = form
        sizes = [EXAMPLE_ELEMENTS if size < 0 else size for size in shape]
        return torch.zeros(sizes, dtype=getattr(torch, dtype))
    return tuple(map(example, form)) if isinstance(form, tuple) else form


def nested(form: Form, tensors: Sequence[Tensor]) -> Any:
    """``tensors`` put into a nest of that form: what `flatten` undoes."""
    return _nested(form, iter(tensors))


def _nested(form: Form, tensors: Any) -> Any:
    if _is_tensor(form):
        return next(tensors)
    return tuple(_nested(entry, tensors) for entry in form) if isinstance(form, tuple) else form


def _form(value: Any, length: int) -> Form:
    if isinstance(value, Tensor):
        return ("tensor", _name(value.dtype), tuple(-1 if size == length else size for size in value.shape))
    return tuple(_form(entry, length) for entry in value) if isinstance(value, (tuple, list)) else value


def _is_tensor(form: Form) -> bool:
    return isinstance(form, tuple) and form[:1] == ("tensor",)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@functools.cache
def _surroundings() -> bytes:
    code = hashlib.blake2b()
    folder = Path(__file__).parent
    for file in sorted((*(folder / "methods").glob("*.py"), *folder.glob("*kernel*.py"))):
        code.update(file.read_bytes())
    return f"{torch.__version__} {processor()} {code.hexdigest()}".encode()


def processor() -> str:
    """What compiled code may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
