"""What a worker is told about the candidates that it is going to score. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evolve.evaluator import Evaluator, WorkerContext
from evolve.layouts import Layouts
from fitness.quantisation import Bits
from fitness.suite import SuiteSpec
from fitness.vllm_settings import VllmSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """How candidates are scored from the disk.

    ``scratch``: the folder below which each worker makes one of its own; None: the system's for temporary
    files. ``owner``: the search, for people who find such a folder. ``bits``: of the linear layers' weights
    while they are scored; None: as merged.
    """

    scratch: Path | None = None
    owner: str = ""
    bits: Bits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSpec:
    """All that a worker needs to know; picklable, and an `evolve.evaluator.EvaluatorFactory`.

    ``model``: the reference (folder or hub id) whose config every candidate has, and whose tokenizer, unless
    the recipes say which. ``dtype``: of the merged weights. ``batch_size``: None takes what fits the
    worker's memory. ``probe``: a recipe, as plain data, that is scored once to warm up and to measure a
    candidate's time. ``layouts``: where candidates differ in their layers, how; None: all are as deep as the
    model. ``vllm``: score with a vLLM engine set up like this; None: with transformers. ``disk``: candidates
    are merged to the disk; None: in memory.
    """

    model: str
    suite: SuiteSpec
    dtype: str
    seed: int
    probe: Mapping[str, Any]
    batch_size: int | None = None
    trust_remote_code: bool = False
    allow_crimes: bool = False
    layouts: Layouts | None = None
    vllm: VllmSettings | None = None
    disk: DiskSettings | None = None

    def __call__(self, context: WorkerContext) -> Evaluator:
        if self.disk is not None:
            from evolve.disk_evaluator import DiskEvaluator

            return DiskEvaluator(self, self.disk, context)
        from evolve.merge_evaluator import MergeEvaluator

        return MergeEvaluator(self, context)
