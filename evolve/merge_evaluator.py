"""The evaluator of a search over merges: merged in memory, into the resident model that is then scored.

Light to import: what it needs is imported in the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evolve.evaluating import evaluated, item_count, share_bytes
from evolve.evaluator import Evaluation, Facts, WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.merged_weights import MergedWeights, MergeSettings, SharedWeights
from evolve.outcome import Scored
from evolve.prototypes import first_weights, prototype
from evolve.records import Split
from fitness.vllm_settings import VllmSettings
from merge_engine.spec.recipe import parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from fitness.backend import Backend
    from merge_engine.engine import Engine


class MergeEvaluator:
    """See `evolve.evaluator.Evaluator`. Keeps open files, prepared sources, built tasks and the one
    resident model.
    """

    _engine: Engine
    _backend: Backend

    def __init__(self, spec: EvaluatorSpec, context: WorkerContext) -> None:
        self._spec = spec
        self._context = context

    def prepare(self) -> Facts:
        """
        Raises:
            FitnessError, MergeError: the model or the tasks cannot be built.
        """
        import torch

        from merge_engine.engine import Engine

        torch.set_num_threads(self._context.threads)
        self._engine = Engine(
            seed=self._spec.seed, device=self._context.device, allow_crimes=self._spec.allow_crimes
        )
        if self._spec.layouts is not None and self._spec.vllm is None:
            for place, model in enumerate(self._spec.layouts.models):
                self._engine.keep(model, self._spec.dtype, layers_only=place > 0)
        self._backend = self._new_backend(self._spec.batch_size)
        self._load(self._spec.probe)  # the first merge also prepares the sources
        started = time.perf_counter()
        probe = self.evaluate(self._spec.probe, "search")
        return Facts(
            device=self._context.device,
            threads=self._context.threads,
            batch_size=self._backend.batch_size,
            memory_bytes=self._backend.held_bytes(),
            probe_s=time.perf_counter() - started,
            search_items=item_count(probe.outcome.report) if isinstance(probe.outcome, Scored) else 0,
            suite_digest=self._backend.suite_digest,
        )

    def set_batch_size(self, batch_size: int) -> None:
        if batch_size != self._backend.batch_size:
            self._backend = self._new_backend(batch_size)

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        return evaluated(
            merge=lambda: self._load(recipe),
            score=lambda: self._backend.score(split),
            forward_s=lambda: self._backend.forward_s,
            device=self._context.device,
        )

    def _load(self, recipe: Mapping[str, Any]) -> None:
        self._backend.load(self._weights(recipe))

    def _weights(self, recipe: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
        """The merge's stream. An engine with several workers takes one that each of them runs itself.

        GPUs share the work: what limits a merge there is the way of the sources to each of them. Processes
        without GPUs would take longer to send a tensor than to merge it (docs/log.md).
        """
        spec, device = self._spec, self._context.device
        if spec.vllm is not None and spec.vllm.tensor_parallel_size > 1:
            settings = MergeSettings(seed=spec.seed, device=device, allow_crimes=spec.allow_crimes)
            weights = MergedWeights if device == "cpu" else SharedWeights
            return weights(settings=settings, recipe=recipe)
        return self._engine.stream(parse_recipe(recipe), into=self._backend.tensors())

    def _new_backend(self, batch_size: int | None) -> Backend:
        if self._spec.vllm is not None:
            return self._new_engine(self._spec.vllm, batch_size)
        from fitness.transformers_backend import TransformersBackend

        with prototype(self._engine, self._spec) as (folder, names):
            return TransformersBackend(
                folder,
                self._spec.suite,
                dtype=self._spec.dtype,
                device=self._context.device,
                batch_size=batch_size,
                memory_bytes=share_bytes(self._context),
                most_layers=None if self._spec.layouts is None else self._spec.layouts.most_layers,
                checkpoint_names=names,
                trust_remote_code=self._spec.trust_remote_code,
            )

    def _new_engine(self, settings: VllmSettings, batch_size: int | None) -> Backend:
        from fitness.vllm_backend import VllmBackend

        if batch_size is not None:
            settings = replace(settings, max_num_seqs=batch_size)
        with first_weights(self._engine, self._spec) as folder:
            return VllmBackend(
                folder,
                self._spec.suite,
                settings,
                dtype=self._spec.dtype,
                memory_bytes=share_bytes(self._context),
                merge_bytes=self._merge_bytes(),
                pads=self._spec.layouts is not None,
                trust_remote_code=self._spec.trust_remote_code,
            )

    def _merge_bytes(self) -> int:
        """What merging takes on a GPU: a tensor of every source, and the result, in fp32. On a CPU next to
        nothing: sources are mapped files, and kernels work in pieces.
        """
        if self._context.device != "cuda":
            return 0
        jobs = self._engine.plan(parse_recipe(self._spec.probe)).jobs
        return max(4 * math.prod(job.shape) * (len(job.sources) + 1) for job in jobs)
