"""Scores models from their folders with vLLM: for what a resident engine cannot be given new weights for."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fitness.backend import Split
from fitness.errors import ModelError
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.vllm_settings import VllmSettings
from fitness.vllm_suite import Answers, Questions, VllmSuite, ask


@dataclass(frozen=True, slots=True, kw_only=True)
class _EngineSpec:
    """An engine that a process of its own is to build."""

    folder: Path
    settings: VllmSettings
    dtype: str
    longest_tokens: int
    end_ids: frozenset[int]
    memory_bytes: int | None
    trust_remote_code: bool


class VllmFolders:
    """A `fitness.backend.FolderScorer`: the suite's tasks are built and tokenised once. Each model gets an
    engine of its own, in a process that ends with it: that alone is sure to give back all of its memory.

    Args:
        folder: with the config and the tokenizer that all models have; weights are not needed.
        dtype: of the weights, as a checkpoint names it ("bfloat16").
        memory_bytes: without a GPU, what an engine may take; None takes what the suite needs.

    Raises:
        ModelError: the folder has no config or tokenizer that transformers reads.
        SuiteError: tasks cannot be built for such a model.
    """

    def __init__(
        self,
        folder: Path,
        suite: SuiteSpec,
        settings: VllmSettings,
        *,
        dtype: str,
        memory_bytes: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._suite = VllmSuite(folder, suite, settings, trust_remote_code=trust_remote_code)
        self._settings = settings
        self._dtype = settings.dtype or dtype
        self._memory_bytes = memory_bytes
        self._trust_remote_code = trust_remote_code
        self.forward_s = 0.0

    @property
    def batch_size(self) -> int:
        """Sequences that run at the same time at most."""
        return self._settings.max_num_seqs

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that models are asked, on both splits."""
        return self._suite.digest

    def score(self, folder: Path, split: Split) -> Report:
        """See `fitness.backend.FolderScorer.score`; ``folder`` has a tokenizer, too."""
        spec = _EngineSpec(
            folder=folder,
            settings=self._settings,
            dtype=self._dtype,
            longest_tokens=self._suite.longest_tokens,
            end_ids=self._suite.end_ids,
            memory_bytes=self._memory_bytes,
            trust_remote_code=self._trust_remote_code,
        )
        answers = _asked_elsewhere(spec, self._suite.questions(split))
        self.forward_s += answers.answer_s
        return self._suite.report(split, answers)


def _asked_elsewhere(spec: _EngineSpec, questions: Questions) -> Answers:
    """What an engine in another process answers. Raises what that raises, or `ModelError` where it dies."""
    _release_gpu()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there, spec, questions))
    process.start()
    there.close()
    try:
        answers = here.recv()
    except EOFError as error:
        process.join()
        raise ModelError(f"vLLM's process ended with status {process.exitcode}") from error
    finally:
        here.close()
        process.join()
    if isinstance(answers, ModelError):
        raise answers
    assert isinstance(answers, Answers)
    return answers


def _release_gpu() -> None:
    """The merge has left memory to this process that the engine is going to ask for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _answer(answers: Connection, spec: _EngineSpec, questions: Questions) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answers.send(ask(_engine(spec), questions))
    except ModelError as error:
        traceback.print_exc()
        answers.send(error)
    except Exception as error:
        traceback.print_exc()
        answers.send(ModelError(f"vLLM failed: {type(error).__name__}: {error}"))
    os._exit(0)  # not what engines and their threads do at the end of a process, which may hang


def _engine(spec: _EngineSpec) -> Any:
    import torch

    from fitness.model_folder import load_config
    from fitness.vllm_engine import VllmEngine, checkpoint_shapes
    from fitness.vllm_memory import Need, cache_bytes

    need = Need.of(
        checkpoint_shapes(spec.folder),
        load_config(spec.folder, spec.trust_remote_code).to_dict(),
        spec.settings,
        weight_bytes=getattr(torch, spec.dtype).itemsize,
        longest_tokens=spec.longest_tokens,
        merge_bytes=0,
    )
    return VllmEngine(
        spec.folder,
        spec.settings,
        dtype=spec.dtype,
        longest_tokens=spec.longest_tokens,
        end_ids=spec.end_ids,
        cache_bytes=cache_bytes(need, spec.settings, spec.memory_bytes),
        trust_remote_code=spec.trust_remote_code,
    )


def _end_with_parent() -> None:
    """A worker that is killed must not leave an engine behind, which holds a GPU."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
