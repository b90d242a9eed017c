"""Whether an engine really takes new weights: some architectures and quantisations do not, silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitness.errors import ModelError
from fitness.requests import Continuation, Generation, Tokens
from fitness.vllm_engine import StoredTensors, VllmEngine
from fitness.vllm_support import WAY_OUT

if TYPE_CHECKING:
    from torch import Tensor

_PROMPTS = 4
_PROMPT_TOKENS = 12  # or as many as there is room for
_NEW_TOKENS = 8


def check_reload(
    engine: VllmEngine, folder: Path, *, architecture: str, vocab_size: int, longest_tokens: int
) -> None:
    """Reload the start weights: answers must stay; load zeros in between: answers must change.

    ``longest_tokens``: what the engine takes, prompt and answer together; at least 2.

    Raises:
        ModelError: they do not, so that scores would belong to other weights than they say.
    """
    prompts = _prompts(vocab_size, min(_PROMPT_TOKENS, longest_tokens - 1))
    new_tokens = min(_NEW_TOKENS, longest_tokens - len(prompts[0]))
    before = _answers(engine, prompts, new_tokens)
    engine.load(_Zeros(StoredTensors(folder)))
    blank = _answers(engine, prompts, new_tokens)
    engine.load(StoredTensors(folder))
    after = _answers(engine, prompts, new_tokens)
    model = f"{folder} ({architecture})"
    if blank == before:
        raise ModelError(f"vLLM keeps the weights of {model} when it is given others: {WAY_OUT}")
    if after != before:
        raise ModelError(
            f"vLLM does not answer as before when it is given the weights of {model} again: reloading this "
            f"architecture is not safe: {WAY_OUT}"
        )


@dataclass(frozen=True, slots=True)
class _Zeros:
    """Zeros in the shape of a model's tensors."""

    like: StoredTensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.like:
            yield name, tensor.new_zeros(tensor.shape)


def _prompts(vocab_size: int, tokens: int) -> list[Tokens]:
    return [
        tuple((7 * (row + 1) * (place + 1)) % vocab_size for place in range(tokens))
        for row in range(_PROMPTS)
    ]


def _answers(engine: VllmEngine, prompts: Sequence[Tokens], new_tokens: int) -> object:
    asked = [Generation(prompt=prompt, max_new_tokens=new_tokens, stops=()) for prompt in prompts]
    windows = [Continuation(prefix=prompt[:1], target=prompt[1:]) for prompt in prompts]
    return engine.generate(asked, [frozenset()] * len(asked)), engine.likelihoods(windows)
