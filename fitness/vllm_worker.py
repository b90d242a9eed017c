"""What is mixed into vLLM's worker: a stream of weights is run where the weights are kept.

An engine with tensor parallelism has several workers, each in a process of its own. What travels there is
what the stream is made from. Each worker runs it, or, where it can be divided, makes its share and gets the
others'; either way vLLM's loader sees every tensor, and keeps its part of it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fitness.errors import ModelError, StreamError
from fitness.held_memory import held_bytes
from fitness.vllm_sharing import Divisible, shared

if TYPE_CHECKING:
    from torch import Tensor

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Stream: TypeAlias = Iterable[tuple[str, "Tensor"]]

QUALIFIED_NAME = "fitness.vllm_worker.StreamLoader"  # for vLLM's `worker_extension_cls`

_LAYER = re.compile(r".*?\.\d+\.")


class StreamLoader:
    """Becomes a base of vLLM's worker class, which may not have a method of the same name."""

    reload_weights: Callable[..., None]  # the worker's

    def run_weight_stream(self, stream: Stream, shapes: Shapes, pads: bool) -> Arrived:
        """Take ``stream`` as the model's weights; what was wrong with it is returned.

        Args:
            stream: tensors by checkpoint name; pickled on its way, where the worker has a process of its own.
            shapes: those of every tensor that has to come.
            pads: layers that are missing altogether become identities.
        """
        arriving = _Arriving(shapes)
        stream = _divided(stream)
        tensors = arriving.fitting(_deep_enough(shapes, stream) if pads else stream)
        try:
            self.reload_weights(weights_iterator=tensors, weights_path=None, is_checkpoint_format=True)
        except Exception as error:
            arriving.broken_by(error)
        for _ in tensors:  # what vLLM did not take: other workers wait for this one's share of it
            pass
        return arriving.end()

    def held_bytes(self, device: str) -> int:
        """See `fitness.held_memory.held_bytes`."""
        return held_bytes(device)


def _divided(stream: Stream) -> Stream:
    """``stream``, its making shared with the engine's other workers if it can be."""
    if not isinstance(stream, Divisible):
        return stream
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    return shared(stream, group) if group.world_size > 1 else stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """How a stream came in. ``error``: what broke it off."""

    problems: tuple[str, ...]
    error: Exception | None

    def check(self) -> None:
        """Raise ``error``, or `ModelError` with every problem."""
        if self.error is not None:
            raise self.error
        if self.problems:
            lines = "\n".join(self.problems)
            raise ModelError(f"weights do not fit the model in vLLM:\n{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is sent to another process: with an error that can be built there."""
        return _received, (self.problems, None if self.error is None else _described(self.error))


def _described(error: Exception) -> str:
    trace = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}\nin a worker of the engine:\n{trace}"


def _received(problems: tuple[str, ...], error: str | None) -> Arrived:
    return Arrived(problems=problems, error=None if error is None else StreamError(error))


class _Arriving:
    """A stream on its way into vLLM, which must never see a name that it does not know: it would stop
    half-way. What is wrong is noted and left out.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._seen: set[str] = set()
        self._problems: list[str] = []
        self._error: Exception | None = None

    def fitting(self, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        """What of ``stream`` fits the model."""
        try:
            for name, tensor in stream:
                if self._fits(name, tensor):
                    yield name, tensor
        except Exception as error:  # of the merge: vLLM finishes first, so that it can take the next model
            self.broken_by(error)

    def broken_by(self, error: Exception) -> None:
        """Note what broke the stream off, if it is the first to do so."""
        self._error = self._error or error

    def end(self) -> Arrived:
        """What was noted, now that everything has come."""
        missing = [f"{name}: missing from the stream" for name in self._shapes if name not in self._seen]
        return Arrived(problems=(*self._problems, *missing), error=self._error)

    def _fits(self, name: str, tensor: Tensor) -> bool:
        known = self._shapes.get(name)
        if known is None:
            self._problems.append(f"{name}: the model has no such tensor")
        elif name in self._seen:
            self._problems.append(f"{name}: came twice")
        elif tuple(tensor.shape) != known:
            self._problems.append(f"{name}: shape {tuple(tensor.shape)}, expected {known}")
        else:
            self._seen.add(name)
            return True
        return False


def _deep_enough(shapes: Shapes, stream: Stream) -> Iterator[tuple[str, Tensor]]:
    """``stream``, and after it zeros for the layers that it lacks altogether.

    A layer of zeros adds nothing to what passes it by: it is the identity.
    """
    seen: set[str] = set()
    tensor = None
    for name, tensor in stream:
        seen.add(name)
        yield name, tensor
    present = {match[0] for match in map(_LAYER.match, seen) if match}
    for name, shape in shapes.items():
        match = _LAYER.match(name)
        if match and match[0] not in present and tensor is not None:
            yield name, tensor.new_zeros(shape)
