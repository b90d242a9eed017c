"""What a search file says, as typed values with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from genome.slice_layout import LayoutSpec
from genome.template import Template
from genome.vllm_spec import VllmSpec

DEFAULT_METRIC = "acc,none"
DEFAULT_SIGMA0 = 1 / 6
ALGORITHMS = ("cma", "sep-cma")
SMALLEST_POPSIZE = 4  # CMA-ES selects half of a generation as parents, and needs two
SCHEDULERS = ("sync", "async")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenomeSpec:
    """What may vary.

    ``layer_granularity``: layers that share one parameter set; 0: all of them. ``normalize``: None where
    the method has no such parameter. ``filters``: parts of tensor names that get sets of their own, beside
    one for the rest. ``smooth``: the sets are nodes of gradients over the layers instead of steps.
    ``bounds``: of every parameter that the search varies, [low, high]. ``dtype``: of the merged model; None
    takes the models' own.
    """

    models: tuple[str, ...]
    merge_method: str
    base_model: str | None
    tokenizer_source: str | None
    layer_granularity: int
    normalize: bool | None
    allow_negative_weights: bool
    smooth: bool
    filters: tuple[str, ...]
    bounds: Mapping[str, tuple[float, float]]
    dtype: str | None

    @property
    def pattern(self) -> str:
        """The model whose config and tokenizer the merged model has."""
        return self.base_model or self.models[0]

    def model_references(self) -> tuple[str, ...]:
        """Every model that the search needs, the base included, each once."""
        base = () if self.base_model is None else (self.base_model,)
        return tuple(dict.fromkeys(self.models + base))


Genome: TypeAlias = "GenomeSpec | Template | LayoutSpec"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """One lm-eval task. ``metric``: lm-eval's "metric,filter"; a negative ``weight`` asks for less of it."""

    name: str
    weight: float
    metric: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutShare:
    """``share`` in (0, 1) of every task's items is held out."""

    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutTasks:
    """Tasks of their own are held out."""

    tasks: tuple[TaskEntry, ...]


Holdout: TypeAlias = "HoldoutShare | HoldoutTasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """How to search. ``popsize`` None: by dimensions and workers; ``sigma0``: a share of the bounds."""

    name: str = ALGORITHMS[0]
    popsize: int | None = None
    sigma0: float = DEFAULT_SIGMA0
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When the search ends; None: not limited by that."""

    candidates: int | None = None
    hours: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFile:
    """One search file.

    ``genome``: what may vary, in whichever form the file says it: ``genome``, ``template`` or ``layout``.
    ``limit``: items per task, a count or a share below 1; None: all. ``num_fewshot`` None: the task's own.
    ``random_init``: the search starts at a random point of the space, not at the uniform merge.
    ``apply_chat_template`` None: where the tokenizer has one. ``initial``: paths of recipes to begin with.
    ``scheduler``: ``sync`` learns from whole generations, ``async`` from candidates as they come.
    ``vllm``: engine settings, which count with ``--vllm`` only.
    """

    genome: Genome
    tasks: tuple[TaskEntry, ...]
    holdout: Holdout | None
    optimizer: OptimizerSpec
    scheduler: str
    budget: Budget
    limit: float | None
    num_fewshot: int | None
    shuffle: bool
    random_init: bool
    apply_chat_template: bool | None
    fewshot_as_multiturn: bool
    initial: tuple[str, ...]
    vllm: VllmSpec
