"""The merge engine: recipes in, streams of tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.counting import Counter
from merge_engine.errors import PlanError, Problem
from merge_engine.groups import grouped
from merge_engine.kept_tensors import KeptTensors
from merge_engine.kernel_library import CompilePolicy
from merge_engine.methods.family import Group
from merge_engine.methods.table import FAMILIES
from merge_engine.plan import Plan, TensorJob, TensorRef, make_plan
from merge_engine.preparation import JobInputs
from merge_engine.runner import Runner
from merge_engine.soundness import check_equal, check_result
from merge_engine.source_memory import Kept, Passing
from merge_engine.spec.recipe import Recipe
from merge_engine.tensor_files import MERGE_DTYPES


class Engine:
    """Merges recipes, one after another; one per worker.

    It keeps files mapped, and what it has learnt about the sources, between recipes: the first merge of a set
    of models prepares, the next ones only merge. The same recipe and seed give the same bits on every worker,
    whether compiled or not.

    seed: root of the random methods (dare_*).
    device: where kernels run.
    compile: ``auto`` compiles kernels in the background where that pays (`merge_engine.kernel_library`).
    once: nothing is kept between recipes, and of the sources only what is being merged is in memory: for
    models of any size.
    allow_crimes: merge models of different architectures where their tensors fit.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        device: str = "cpu",
        compile: CompilePolicy = "auto",
        once: bool = False,
        allow_crimes: bool = False,
    ) -> None:
        self._runner = Runner(device=device, policy=compile)
        self._device = device
        self._allow_crimes = allow_crimes
        counter = Counter(compile)
        self._memory = Passing(seed, counter) if once else Kept(seed, counter)
        self._kept = KeptTensors()
        self._sound: set[tuple[TensorRef, ...]] = set()

    def check(self, recipe: Recipe) -> None:
        """Raise `PlanError` with every problem of ``recipe``, from the models' headers alone."""
        self.plan(recipe)

    def plan(self, recipe: Recipe) -> Plan:
        """What `stream` will do. Raises `PlanError`."""
        sources = self._memory.preparation.sources
        return make_plan(
            recipe, sources.header, sources.layer_names, sources.alignment, allow_crimes=self._allow_crimes
        )

    def header(self, reference: str) -> CheckpointHeader:
        """The header of a source model, opened once. Raises `CheckpointError`."""
        return self._memory.preparation.sources.header(reference)

    def result_dtype(self, job: TensorJob) -> torch.dtype:
        """The dtype of a merged tensor as it is streamed when no resident tensor takes it."""
        if job.out_dtype is None:
            return self._memory.preparation.sources.tensor(job.base or job.sources[0]).dtype
        return MERGE_DTYPES[job.out_dtype]

    def keep(self, reference: str, dtype: str, *, layers_only: bool = False) -> None:
        """Hold the tensors of a source model on the device, rounded to ``dtype``, from now on.

        Where a result in that dtype has one of them unchanged, `stream` yields it itself, each time the same
        tensor. Raises `CheckpointError`.
        """
        sources = self._memory.preparation.sources
        header = sources.header(reference)
        main = sources.layer_names(header).main
        names = main.names() if layers_only and main is not None else header.tensors
        self._kept.add(sources, reference, names, MERGE_DTYPES[dtype], self._device)

    def stream(
        self, recipe: Recipe, into: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors by checkpoint name, ordered by layer.

        Where ``into`` has the name, the result is written to that tensor and it is what is yielded; otherwise
        a new tensor of the recipe's dtype, or one that is kept (`keep`). Values are those of the recipe's
        ``out_dtype`` (or ``dtype``) in any case. Raises `PlanError` before anything is written.
        """
        yield from self.stream_jobs(self.plan(recipe).jobs, into)

    def stream_jobs(
        self, jobs: Sequence[TensorJob], into: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """`stream` of some jobs of one plan: each result is the same, whatever others are asked for."""
        targets = {} if into is None else into
        _check_targets(jobs, targets)
        with self._memory.reading(list(grouped(jobs))) as groups:
            for group in groups:
                yield from self._results(group, targets)

    def _results(
        self, group: Sequence[TensorJob], targets: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        results = self._unchanged(group, targets)
        rest = [job for job in group if job.name not in results]
        if rest:
            merged = {job.name: targets[job.name] if job.name in targets else self._new(job) for job in rest}
            self._merge(rest, list(merged.values()))
            self._memory.forget()
            results |= merged
            del merged
        for job in group:
            yield job.name, results.pop(job.name)  # nothing here holds on to what was handed out

    def _unchanged(self, jobs: Sequence[TensorJob], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results that are kept source tensors as they stand, and have no target."""
        free = [job for job in jobs if job.name not in targets]
        found = {job.name: self._kept.result(job, self.result_dtype(job)) for job in free}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _new(self, job: TensorJob) -> Tensor:
        return torch.empty(job.shape, dtype=self.result_dtype(job), device=self._device)

    @torch.no_grad()
    def _merge(self, jobs: Sequence[TensorJob], targets: Sequence[Tensor]) -> None:
        job = jobs[0]
        dtype = None if job.dtype is None else MERGE_DTYPES[job.dtype]
        sources = [self._joined([other.sources[m] for other in jobs], dtype) for m in range(len(job.sources))]
        base_N = None if job.base is None else self._joined([other.base for other in jobs], dtype)
        if job.dtype is None or job.out_dtype is None:
            for other in jobs:
                check_equal(other.inputs, self._memory.preparation.sources.tensor)
            merged_N = sources[0] if base_N is None else base_N
        else:
            dtypes = MERGE_DTYPES[job.dtype], MERGE_DTYPES[job.out_dtype]
            merged_N = self._place(targets, dtypes[1])
            family = FAMILIES[job.method]
            inputs = [JobInputs(job=other, preparation=self._memory.preparation) for other in jobs]

            moderate = _Moderate(inputs)
            calls = family.calls(Group(tensors=inputs))
            self._runner.run(family.kernel, calls, merged_N, sources, base_N, dtypes, can_compile=moderate)
            if job.method != "passthrough" and not moderate.known:  # a copy may hold anything
                self._check(jobs, merged_N)
        _distribute(merged_N, targets)

    def _check(self, jobs: Sequence[TensorJob], merged_N: Tensor) -> None:
        """Raise `CheckpointError` where a source holds NaN or infinity; with their first result only."""
        refs = tuple(ref for job in jobs for ref in job.inputs)
        if refs not in self._sound:
            check_result(merged_N, refs, self._memory.preparation.sources.tensor)
            self._sound.add(refs)

    def _joined(self, refs: Sequence[TensorRef | None], dtype: torch.dtype | None) -> Tensor:
        """The stored tensors, or what is kept of them in ``dtype``, end to end: a single one as it is."""
        tensors = [
            self._memory.preparation.sources.tensor(ref)
            if (kept := self._kept.flat(ref, dtype)) is None
            else kept
            for ref in refs
            if ref is not None
        ]
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat([tensor.to(self._device) for tensor in tensors])

    def _place(self, targets: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Where to merge to: a single target itself if it can be, else a new flat tensor."""
        if len(targets) == 1 and targets[0].is_contiguous():
            return targets[0].detach().view(-1)
        return torch.empty(sum(target.numel() for target in targets), dtype=dtype, device=self._device)


class _Moderate:
    """Whether compiled kernels may merge these tensors; ``known``: somebody has asked, and they may."""

    def __init__(self, inputs: Sequence[JobInputs]) -> None:
        self._inputs = inputs
        self.known = False

    def __call__(self) -> bool:
        self.known = all(tensor.can_compile for tensor in self._inputs)
        return self.known


def _distribute(merged_N: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the parts of ``merged_N`` to the targets, unless it is the target."""
    if len(targets) == 1 and targets[0].data_ptr() == merged_N.data_ptr():
        return
    parts = torch.split(merged_N, [target.numel() for target in targets])
    for part_N, target in zip(parts, targets, strict=True):
        target.copy_(part_N.view(target.shape))


def _check_targets(jobs: Sequence[TensorJob], into: Mapping[str, Tensor]) -> None:
    problems = [
        Problem(job.name, f"merges to {list(job.shape)}, the resident tensor is {list(into[job.name].shape)}")
        for job in jobs
        if job.name in into and tuple(into[job.name].shape) != job.shape
    ]
    if problems:
        raise PlanError(problems)
