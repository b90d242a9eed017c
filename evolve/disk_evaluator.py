"""The evaluator of candidates that are merged to the disk, scored from there, and removed.

For models that cannot stay in memory, and for weights that are quantised while they are loaded.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.evaluating import evaluated, item_count, share_bytes
from evolve.evaluator import Evaluation, Facts, WorkerContext
from evolve.evaluator_spec import DiskSettings, EvaluatorSpec
from evolve.prototypes import merged_bytes, prototype
from evolve.records import Split
from evolve.scratch import Scratch, check_room, remove_left_overs, scratch_root
from fitness.vllm_settings import VllmSettings
from merge_engine.spec.recipe import parse_recipe

if TYPE_CHECKING:
    from fitness.backend import FolderScorer
    from fitness.results import Report
    from merge_engine.engine import Engine


class DiskEvaluator:
    """See `evolve.evaluator.Evaluator`. Keeps open files, prepared sources, built tasks and a scratch folder,
    but no model.
    """

    _engine: Engine
    _scorer: FolderScorer
    _scratch: Scratch

    def __init__(self, spec: EvaluatorSpec, disk: DiskSettings, context: WorkerContext) -> None:
        self._spec = spec
        self._disk = disk
        self._context = context

    def prepare(self) -> Facts:
        """
        Raises:
            FitnessError, MergeError: the model or the tasks cannot be built, or not with these weights.
            ScratchError: there is no room on the disk.
        """
        import torch

        from merge_engine.engine import Engine

        torch.set_num_threads(self._context.threads)
        self._engine = Engine(
            seed=self._spec.seed, device=self._context.device, allow_crimes=self._spec.allow_crimes
        )
        root = scratch_root(self._disk.scratch)
        remove_left_overs(root)
        workers = round(1 / self._context.memory_share)  # on this machine
        check_room(root, merged_bytes(self._engine, self._spec), workers, self._disk.owner)
        self._scratch = Scratch(root, self._disk.owner)
        try:
            return self._first_facts()
        except BaseException:
            self.close()
            raise

    def set_batch_size(self, batch_size: int) -> None:
        if batch_size != self._scorer.batch_size:
            self._scorer = self._new_scorer(batch_size)

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        with self._scratch.place("candidate") as folder:
            return evaluated(
                merge=lambda: self._write(recipe, folder),
                score=lambda: self._scorer.score(folder, split),
                forward_s=lambda: self._scorer.forward_s,
                device=self._context.device,
            )

    def close(self) -> None:
        """Remove the scratch folder; a process that just ends does so, too."""
        self._scratch.close()

    def _first_facts(self) -> Facts:
        self._scorer = self._new_scorer(self._spec.batch_size)
        started = time.perf_counter()
        report = self._first_report()
        return Facts(
            device=self._context.device,
            threads=self._context.threads,
            batch_size=self._scorer.batch_size,
            memory_bytes=_peak_bytes(self._context.device),
            probe_s=time.perf_counter() - started,
            search_items=0 if report is None else item_count(report),
            suite_digest=self._scorer.suite_digest,
        )

    def _first_report(self) -> Report | None:
        """Of the probe; None where only its scores are no numbers, which another candidate's may be."""
        from fitness.errors import ScoringError

        with self._scratch.place("candidate") as folder:
            self._write(self._spec.probe, folder)
            try:
                return self._scorer.score(folder, "search")
            except ScoringError:
                return None

    def _write(self, recipe: Mapping[str, Any], folder: Path) -> None:
        from merge_engine.folder import write_model

        # Texts are tokenised with the prototype's tokenizer, but engines of vLLM want one of their own.
        has_tokenizer = self._spec.vllm is not None
        write_model(self._engine, parse_recipe(recipe), folder, copy_tokenizer=has_tokenizer)

    def _new_scorer(self, batch_size: int | None) -> FolderScorer:
        if self._spec.vllm is not None:
            return self._new_vllm(self._spec.vllm, batch_size)
        from fitness.transformers_folders import TransformersFolders

        with prototype(self._engine, self._spec) as (folder, _):
            return TransformersFolders(
                folder,
                self._spec.suite,
                dtype=self._spec.dtype,
                device=self._context.device,
                bits=self._disk.bits,
                batch_size=batch_size,
                memory_bytes=share_bytes(self._context),
                most_layers=None if self._spec.layouts is None else self._spec.layouts.most_layers,
                trust_remote_code=self._spec.trust_remote_code,
            )

    def _new_vllm(self, settings: VllmSettings, batch_size: int | None) -> FolderScorer:
        from fitness.vllm_folders import VllmFolders

        if batch_size is not None:
            settings = replace(settings, max_num_seqs=batch_size)
        with prototype(self._engine, self._spec) as (folder, _):
            return VllmFolders(
                folder,
                self._spec.suite,
                settings,
                dtype=self._spec.dtype,
                memory_bytes=share_bytes(self._context),
                trust_remote_code=self._spec.trust_remote_code,
            )


def _peak_bytes(device: str) -> int:
    """What the process, or its part of the device, held at most so far: the model is gone again by now."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
