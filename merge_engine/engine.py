"""The merge engine: recipes in, streams of tensors out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import PlanError, Problem
from merge_engine.methods.table import FAMILIES
from merge_engine.plan import Plan, TensorJob, make_plan
from merge_engine.preparation import JobInputs, Preparation
from merge_engine.runner import CompilePolicy, Runner
from merge_engine.spec.recipe import Recipe
from merge_engine.tensor_files import MERGE_DTYPES


class Engine:
    """Merges recipes, one after another; one per worker.

    It keeps files mapped, and what it has learnt about the sources, between recipes: the first merge of a set
    of models prepares, the next ones only merge. The same recipe and seed give the same bits on every worker,
    whether compiled or not.

    seed: root of the random methods (dare_*).
    device: where kernels run.
    compile: ``auto`` compiles kernels for models from 50 M elements where a C++ compiler is found.
    """

    def __init__(self, *, seed: int = 0, device: str = "cpu", compile: CompilePolicy = "auto") -> None:
        self._runner = Runner(device=device, policy=compile)
        self._device = device
        self._preparation = Preparation(seed)

    def check(self, recipe: Recipe) -> None:
        """Raise `PlanError` with every problem of ``recipe``, from the models' headers alone."""
        self.plan(recipe)

    def plan(self, recipe: Recipe) -> Plan:
        """What `stream` will do. Raises `PlanError`."""
        return make_plan(recipe, self._preparation.header)

    def header(self, reference: str) -> CheckpointHeader:
        """The header of a source model, opened once. Raises `CheckpointError`."""
        return self._preparation.header(reference)

    def result_dtype(self, job: TensorJob) -> torch.dtype:
        """The dtype of a merged tensor as it is streamed when no resident tensor takes it."""
        if job.out_dtype is None:
            return self._preparation.tensor(job.base or job.sources[0]).dtype
        return MERGE_DTYPES[job.out_dtype]

    def stream(
        self, recipe: Recipe, into: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors by checkpoint name, ordered by layer.

        Where ``into`` has the name, the result is written to that tensor and it is what is yielded; otherwise
        a new tensor of the recipe's dtype. Values are those of the recipe's ``out_dtype`` (or ``dtype``) in
        either case. Raises `PlanError` before anything is written.
        """
        plan = self.plan(recipe)
        targets = {} if into is None else into
        _check_targets(plan, targets)
        compiled = self._runner.compiles(sum(math.prod(job.shape) for job in plan.jobs))
        for job in plan.jobs:
            target = targets.get(job.name)
            yield job.name, self._merge(job, self._new(job) if target is None else target, compiled)

    def _new(self, job: TensorJob) -> Tensor:
        return torch.empty(job.shape, dtype=self.result_dtype(job), device=self._device)

    @torch.no_grad()
    def _merge(self, job: TensorJob, target: Tensor, compiled: bool) -> Tensor:
        sources = [self._preparation.tensor(ref) for ref in job.sources]
        base_N = None if job.base is None else self._preparation.tensor(job.base)
        if job.dtype is None or job.out_dtype is None:
            target.copy_((sources[0] if base_N is None else base_N).view(job.shape))
            return target
        flat = target.detach() if target.is_contiguous() else torch.empty_like(target).contiguous()
        family = FAMILIES[job.method]
        dtypes = MERGE_DTYPES[job.dtype], MERGE_DTYPES[job.out_dtype]
        for call in family.calls(JobInputs(job=job, preparation=self._preparation)):
            self._runner.run(family.kernel, call, flat.view(-1), sources, base_N, dtypes, compiled=compiled)
        if not target.is_contiguous():
            target.copy_(flat)
        return target


def _check_targets(plan: Plan, into: Mapping[str, Tensor]) -> None:
    problems = [
        Problem(job.name, f"merges to {list(job.shape)}, the resident tensor is {list(into[job.name].shape)}")
        for job in plan.jobs
        if job.name in into and tuple(into[job.name].shape) != job.shape
    ]
    if problems:
        raise PlanError(problems)
