"""The evaluator of a search over merges: merged in memory, into the resident model that is then scored.

Light to import: what it needs is imported in the worker.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.evaluator import Evaluation, Facts, WorkerContext
from evolve.layouts import Layouts
from evolve.merged_weights import MergedWeights, MergeSettings
from evolve.outcome import Failed, Scored, Stage
from evolve.records import Split
from evolve.worker import one_line
from fitness.suite import SuiteSpec
from fitness.vllm_settings import VllmSettings
from merge_engine.spec.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from fitness.backend import Backend
    from merge_engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSpec:
    """All that a worker needs to know; picklable, and an `evolve.evaluator.EvaluatorFactory`.

    ``model``: the reference (folder or hub id) whose config every candidate has, and whose tokenizer, unless
    the recipes say which. ``dtype``: of the resident weights. ``batch_size``: None takes what fits the
    worker's memory. ``probe``: a recipe, as plain data, that is scored once to warm up and to measure a
    candidate's time. ``layouts``: where candidates differ in their layers, how; None: all are as deep as the
    model. ``vllm``: score with a vLLM engine set up like this; None: with transformers.
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

    def __call__(self, context: WorkerContext) -> MergeEvaluator:
        return MergeEvaluator(self, context)


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
        tasks = probe.outcome.report.tasks if isinstance(probe.outcome, Scored) else ()
        return Facts(
            device=self._context.device,
            threads=self._context.threads,
            batch_size=self._backend.batch_size,
            memory_bytes=_memory_bytes(self._context.device),
            probe_s=time.perf_counter() - started,
            search_items=sum(len(task.items) for task in tasks),
            suite_digest=self._backend.suite_digest,
        )

    def set_batch_size(self, batch_size: int) -> None:
        if batch_size != self._backend.batch_size:
            self._backend = self._new_backend(batch_size)

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        stage: Stage = "merge"
        forward_s = self._backend.forward_s
        started = merged = time.perf_counter()
        trace = None
        try:
            self._load(recipe)
            merged, stage = time.perf_counter(), "score"
            outcome: Scored | Failed = Scored(report=self._backend.score(split))
        except Exception as error:
            traceback.print_exc()
            trace = traceback.format_exc()
            outcome = Failed(stage=stage, reason=one_line(error))
            _release_memory(self._context.device)
        ended = time.perf_counter()
        if stage == "merge":
            merged = ended
        return Evaluation(
            outcome=outcome,
            merge_s=merged - started,
            score_s=ended - merged,
            forward_s=self._backend.forward_s - forward_s,
            traceback=trace,
        )

    def _load(self, recipe: Mapping[str, Any]) -> None:
        self._backend.load(self._weights(recipe))

    def _weights(self, recipe: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
        """The merge's stream. An engine with several workers takes one that each of them runs itself."""
        spec = self._spec
        if spec.vllm is not None and spec.vllm.tensor_parallel_size > 1:
            settings = MergeSettings(
                seed=spec.seed, device=self._context.device, allow_crimes=spec.allow_crimes
            )
            return MergedWeights(settings=settings, recipe=recipe)
        return self._engine.stream(parse_recipe(recipe), into=self._backend.tensors())

    def _new_backend(self, batch_size: int | None) -> Backend:
        if self._spec.vllm is not None:
            return self._new_engine(self._spec.vllm, batch_size)
        from fitness.transformers_backend import TransformersBackend

        with self._prototype() as (folder, names):
            return TransformersBackend(
                folder,
                self._spec.suite,
                dtype=self._spec.dtype,
                device=self._context.device,
                batch_size=batch_size,
                memory_bytes=_share_bytes(self._context),
                most_layers=None if self._spec.layouts is None else self._spec.layouts.most_layers,
                checkpoint_names=names,
                trust_remote_code=self._spec.trust_remote_code,
            )

    def _new_engine(self, settings: VllmSettings, batch_size: int | None) -> Backend:
        from fitness.vllm_backend import VllmBackend

        if batch_size is not None:
            settings = replace(settings, max_num_seqs=batch_size)
        with self._first_weights() as folder:
            return VllmBackend(
                folder,
                self._spec.suite,
                settings,
                dtype=self._spec.dtype,
                memory_bytes=_share_bytes(self._context),
                pads=self._spec.layouts is not None,
                trust_remote_code=self._spec.trust_remote_code,
            )

    @contextmanager
    def _first_weights(self) -> Iterator[Path]:
        """A model of the result's shapes for an engine to start from: a source, or a merge.

        Where candidates differ in their layers, it has as many as the deepest.
        """
        from merge_engine.folder import write_model
        from merge_engine.sources import resolve

        layouts, recipe = self._spec.layouts, parse_recipe(self._spec.probe)
        folder = resolve(self._spec.model)
        if layouts is not None:
            recipe = self._stacked(layouts.most_layers)
        elif recipe.vocabulary is None and any(folder.glob("*.safetensors")):
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="mergevolve-") as place:
            write_model(self._engine, recipe, Path(place) / "start")
            yield Path(place) / "start"

    def _stacked(self, layers: int) -> Recipe:
        """The model's layers again and again, until there are so many."""
        model = self._spec.model
        own = self._engine.header(model).num_layers or layers
        lengths = [min(own, layers - start) for start in range(0, layers, own)]
        slices = [{"sources": [{"model": model, "layer_range": [0, length]}]} for length in lengths]
        return parse_recipe({"merge_method": "passthrough", "slices": slices, "dtype": self._spec.dtype})

    @contextmanager
    def _prototype(self) -> Iterator[tuple[Path, Sequence[str] | None]]:
        """What the resident model is built from: a folder, and its tensors' names if it has no weights.

        Where the recipes settle the vocabulary, that is a temporary folder with the result's tokenizer.
        """
        from merge_engine.folder import write_prototype
        from merge_engine.sources import resolve

        recipe = parse_recipe(self._spec.probe)
        if recipe.vocabulary is None:
            yield resolve(self._spec.model), None
            return
        with tempfile.TemporaryDirectory(prefix="mergevolve-") as place:
            write_prototype(self._engine, recipe, Path(place) / "prototype")
            yield Path(place) / "prototype", [job.name for job in self._engine.plan(recipe).jobs]


def _share_bytes(context: WorkerContext) -> int | None:
    """The worker's part of its machine's free memory; None, for all of it, where it has a GPU to itself."""
    if context.device == "cuda":
        return None
    import psutil

    return int(psutil.virtual_memory().available * context.memory_share)


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


def _release_memory(device: str) -> None:
    """Give back what a failed candidate left behind, so that the next one finds the room it is used to."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
