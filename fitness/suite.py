"""What to score a model on, as plain values. No heavy imports: these cross the package border."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_METRIC = "acc,none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One lm-eval task (or group or tag, which stands for its tasks) and what its metric is worth.

    ``metric`` is lm-eval's ``metric,filter``. A negative ``weight`` asks for a smaller metric.
    """

    name: str
    metric: str = DEFAULT_METRIC
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a task needs a name")
        if not self.metric_name or not self.filter_name:
            raise ValueError(f"task {self.name!r}: metric {self.metric!r} is not of the form 'metric,filter'")

    @property
    def metric_name(self) -> str:
        """``acc`` of ``acc,none``."""
        return self.metric.partition(",")[0]

    @property
    def filter_name(self) -> str:
        """``none`` of ``acc,none``."""
        return self.metric.partition(",")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSpec:
    """The tasks of a search and how their items are chosen and prompted.

    ``holdout``
        a share in (0, 1) of every task's items, drawn by ``seed``; or tasks of their own; or None.
    ``limit``
        items kept per task and split: a count, or a share below 1 (as lm-eval's ``--limit``); None keeps all.
    ``shuffle``
        draw the items that ``limit`` keeps at random (by ``seed``, fixed for a search), not the first ones.
    ``num_fewshot``
        overrides the tasks' own number, except where a task fixes it to 0; None keeps theirs.
    ``apply_chat_template``
        None applies it if the tokenizer has one.
    ``search_paths``
        folders with task YAMLs, before lm-eval's own.
    """

    tasks: tuple[TaskSpec, ...]
    holdout: float | tuple[TaskSpec, ...] | None = None
    limit: float | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool = True
    search_paths: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a suite needs at least one task")
        if isinstance(self.holdout, float) and not 0 < self.holdout < 1:
            raise ValueError(f"holdout share must lie in (0, 1), not {self.holdout}")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit != int(self.limit))):
            raise ValueError(f"limit must be a share in (0, 1) or a whole number of items, not {self.limit}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must be 0 or more, not {self.num_fewshot}")

    @property
    def all_tasks(self) -> tuple[TaskSpec, ...]:
        """The search tasks, then the held-out tasks where they are tasks of their own."""
        return self.tasks + (self.holdout if isinstance(self.holdout, tuple) else ())
