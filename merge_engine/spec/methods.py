"""The table of merge methods: what each is, what it takes, and what of it a search may vary.

Adding a method is one row here and one kernel file. Defaults are those of mergekit 0.1.5, as it behaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from merge_engine.spec.reading import did_you_mean
from merge_engine.spec.values import Scalar

TASK_ARITHMETIC = "Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv 2212.04089"
TIES = "Yadav et al. 2023, TIES-Merging, arXiv 2306.01708"
DARE = "Yu et al. 2023, Language Models are Super Mario, arXiv 2311.03099"
MODEL_SOUPS = "Wortsman et al. 2022, Model Soups, arXiv 2203.05482"
SLERP = "Shoemake 1985, Animating Rotation with Quaternion Curves, SIGGRAPH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a method.

    ``scope`` "model": one value per source model; "global": one for the merge (which may still vary by
    layer and tensor). ``default`` None: the recipe must give it. ``low`` and ``high``: what is allowed
    (None: no limit; ``low_open``: ``low`` itself is not). ``search_low`` and ``search_high``: the bounds of
    a search where the search file gives none; None: a search does not vary it.
    """

    name: str
    help: str
    kind: Literal["real", "integer", "bool"] = "real"
    scope: Literal["model", "global"] = "model"
    default: Scalar | None = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    search_low: float | None = None
    search_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One merge method.

    ``base``: "required" and "optional": with a base model, the differences from it are merged; it is then not
    counted in ``min_models`` and ``max_models`` (None: no limit), and parameters of its own have no effect.
    "none": a base model is a model like the others.
    """

    name: str
    help: str
    paper: str | None
    base: Literal["required", "optional", "none"]
    parameters: tuple[Parameter, ...]
    min_models: int = 1
    max_models: int | None = None

    @property
    def needs_base(self) -> bool:
        return self.base == "required"

    @property
    def takes_base(self) -> bool:
        """Whether a base model, where there is one, stands apart from the models that are merged."""
        return self.base != "none"

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


class MethodTable(Mapping[str, Method]):
    """Methods by name. A name can be given only once; looking up an unknown one lists those known."""

    def __init__(self, *methods: Method) -> None:
        self._methods: dict[str, Method] = {}
        for method in methods:
            if method.name in self._methods:
                raise ValueError(f"two merge methods are named {method.name!r}")
            self._methods[method.name] = method

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            raise KeyError(f"unknown merge method {name!r}: {did_you_mean(name, self._methods)}")
        return self._methods[name]

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


def _weight(search_high: float) -> Parameter:
    return Parameter(name="weight", help="share of this model", search_low=0.0, search_high=search_high)


def _normalize(default: bool) -> Parameter:
    text = "divide by the sum of the weights"
    return Parameter(name="normalize", help=text, kind="bool", scope="global", default=default)


_DENSITY = Parameter(
    name="density",
    help="share of the elements of this model's task vector that is kept",
    default=1.0,
    low=0.0,
    high=1.0,
    low_open=True,
    search_low=0.1,
    search_high=1.0,
)
_LAMBDA = Parameter(name="lambda", help="factor on the merged task vector", scope="global", default=1.0)
_INT8_MASK = Parameter(
    name="int8_mask", help="keep sign masks in one byte", kind="bool", scope="global", default=False
)


def _rescale(default: bool, text: str) -> Parameter:
    return Parameter(name="rescale", help=text, kind="bool", scope="global", default=default)


_DARE_RESCALE = _rescale(True, "divide what is kept by the density, so that the expectation stays")
_TIES_RESCALE = _rescale(False, "scale what is kept to the sum of magnitudes of the whole task vector")

METHODS: Mapping[str, Method] = MethodTable(
    Method(
        name="linear",
        help="weighted mean of the models",
        paper=MODEL_SOUPS,
        base="none",
        parameters=(_weight(1.0), _normalize(True)),
    ),
    Method(
        name="slerp",
        help="spherical interpolation from the base model (t = 0) to the other (t = 1)",
        paper=SLERP,
        base="required",
        max_models=1,
        parameters=(
            Parameter(
                name="t", help="place between base and model", scope="global", search_low=0.0, search_high=1.0
            ),
        ),
    ),
    Method(
        name="task_arithmetic",
        help="base plus the weighted sum of the task vectors",
        paper=TASK_ARITHMETIC,
        base="required",
        parameters=(_weight(1.5), _normalize(False), _LAMBDA, _INT8_MASK),
    ),
    Method(
        name="ties",
        help="base plus trimmed task vectors that agree in sign",
        paper=TIES,
        base="required",
        parameters=(_weight(1.5), _DENSITY, _normalize(True), _LAMBDA, _TIES_RESCALE, _INT8_MASK),
    ),
    Method(
        name="dare_ties",
        help="base plus randomly dropped task vectors that agree in sign",
        paper=DARE,
        base="required",
        parameters=(_weight(1.5), _DENSITY, _normalize(False), _LAMBDA, _DARE_RESCALE, _INT8_MASK),
    ),
    Method(
        name="dare_linear",
        help="base plus randomly dropped task vectors",
        paper=DARE,
        base="required",
        parameters=(_weight(1.5), _DENSITY, _normalize(False), _LAMBDA, _DARE_RESCALE, _INT8_MASK),
    ),
    Method(
        name="passthrough",
        help="one model's layers as they are",
        paper=None,
        base="none",
        max_models=1,
        parameters=(Parameter(name="scale", help="factor on the tensor", default=1.0),),
    ),
)
