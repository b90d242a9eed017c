"""The table of merge methods: what each is, what it takes, and what of it a search may vary.

Adding a method is one row here and one kernel file. Defaults are those of mergekit 0.1.5, as it behaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from merge_engine.spec.reading import did_you_mean
from merge_engine.spec.values import Scalar

TASK_ARITHMETIC = "Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv 2212.04089"
TIES = "Yadav et al. 2023, TIES-Merging, arXiv 2306.01708"
DARE = "Yu et al. 2023, Language Models are Super Mario, arXiv 2311.03099"
BREADCRUMBS = "Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795"
DELLA = "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617"
SCE = "Wan et al. 2024, FuseChat, arXiv 2408.07990"
RAM = "Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572"
TALL_MASKS = "Wang et al. 2024, Localizing Task Information for Improved Model Merging, arXiv 2405.07813"
MODEL_SOUPS = "Wortsman et al. 2022, Model Soups, arXiv 2203.05482"
SLERP = "Shoemake 1985, Animating Rotation with Quaternion Curves, SIGGRAPH"
MULTISLERP = "Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
KARCHER = "Wang et al. 2026, Functionality-Oriented LLM Merging, arXiv 2603.04972"
MODEL_STOCK = "Jang et al. 2024, Model Stock, arXiv 2403.19522"
ARCEE_FUSION = "Arcee AI 2025, https://arcee.ai"
ISO_C = "Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959"
TSV_MERGE = "Gargiulo et al. 2025, Task Singular Vectors, arXiv 2412.00081"
NEARSWAP = "alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"


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
_BREADCRUMBS_RESCALE = _rescale(False, "scale what is kept to the sum of magnitudes of the whole task vector")
_DELLA_RESCALE = _rescale(True, "scale what is kept so that the sum of magnitudes stays, in expectation")
_GAMMA = Parameter(
    name="gamma",
    help="share of the elements of this model's task vector, the largest, that is left out",
    default=0.01,
    low=0.0,
    high=1.0,
    search_low=0.0,
    search_high=0.1,
)
_DELLA_EPSILON = Parameter(
    name="epsilon",
    help="how far the largest and the smallest elements' probabilities to be kept are from the density",
    default=0.15,
    low=0.0,
    high=0.5,
    search_low=0.0,
    search_high=0.3,
)
_RAM_EPSILON = Parameter(
    name="epsilon",
    help="an element is changed by a model where its task vector is larger than this",
    scope="global",
    default=1e-5,
    low=0.0,
    search_low=0.0,
    search_high=1e-3,
)

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
        name="breadcrumbs",
        help="base plus task vectors without their largest and smallest elements",
        paper=BREADCRUMBS,
        base="required",
        parameters=(
            _weight(1.5),
            _DENSITY,
            _GAMMA,
            _normalize(False),
            _LAMBDA,
            _BREADCRUMBS_RESCALE,
            _INT8_MASK,
        ),
    ),
    Method(
        name="breadcrumbs_ties",
        help="base plus task vectors without their largest and smallest elements that agree in sign",
        paper=BREADCRUMBS,
        base="required",
        parameters=(
            _weight(1.5),
            _DENSITY,
            _GAMMA,
            _normalize(False),
            _LAMBDA,
            _BREADCRUMBS_RESCALE,
            _INT8_MASK,
        ),
    ),
    Method(
        name="della",
        help="base plus task vectors, dropped at random by magnitude, that agree in sign",
        paper=DELLA,
        base="required",
        parameters=(
            _weight(1.5),
            _DENSITY,
            _DELLA_EPSILON,
            _normalize(True),
            _LAMBDA,
            _DELLA_RESCALE,
            _INT8_MASK,
        ),
    ),
    Method(
        name="della_linear",
        help="base plus task vectors, dropped at random by magnitude",
        paper=DELLA,
        base="required",
        parameters=(
            _weight(1.5),
            _DENSITY,
            _DELLA_EPSILON,
            _normalize(False),
            _LAMBDA,
            _DELLA_RESCALE,
            _INT8_MASK,
        ),
    ),
    Method(
        name="sce",
        help="base plus task vectors, weighted by energy, that agree in sign where the models differ most",
        paper=SCE,
        base="required",
        parameters=(
            Parameter(
                name="select_topk",
                help="share of the elements, those of the largest variance over the models, that is merged",
                scope="global",
                default=1.0,
                low=0.0,
                high=1.0,
                search_low=0.1,
                search_high=1.0,
            ),
            _INT8_MASK,
        ),
    ),
    Method(
        name="ram",
        help="base plus, of each element, the mean of the task vectors that change it",
        paper=RAM,
        base="required",
        parameters=(_RAM_EPSILON,),
    ),
    Method(
        name="ramplus_tl",
        help="as ram, with elements that one model alone changes scaled up by how much it shares",
        paper=RAM,
        base="required",
        parameters=(
            Parameter(
                name="r",
                help="how far elements that one model alone changes are scaled up",
                scope="global",
                default=0.1,
                search_low=0.0,
                search_high=1.0,
            ),
            Parameter(
                name="alpha",
                help="most that the ratio of shared to unique elements counts",
                scope="global",
                default=0.2,
                low=0.0,
                search_low=0.0,
                search_high=1.0,
            ),
            dataclasses.replace(_RAM_EPSILON, search_low=None, search_high=None),
        ),
    ),
    Method(
        name="consensus_ta",
        help="base plus the sum of the task vectors where it matters to several models",
        paper=TALL_MASKS,
        base="required",
        min_models=2,
        parameters=(
            _weight(1.5),
            Parameter(
                name="mask_lambda",
                help="how large this model's change must be against the sum of the others' to count",
                default=0.4,
                low=0.0,
                search_low=0.0,
                search_high=1.0,
            ),
            Parameter(
                name="min_agreeing",
                help="to how many models an element must matter to be changed",
                kind="integer",
                scope="global",
                default=2,
                low=1,
                search_low=1,
                search_high=3,
            ),
            _LAMBDA,
        ),
    ),
    Method(
        name="nuslerp",
        help="spherical interpolation of two models, or of two task vectors",
        paper=SLERP,
        base="optional",
        min_models=2,
        max_models=2,
        parameters=(
            _weight(1.0),
            Parameter(
                name="nuslerp_flatten",
                help="each tensor is one vector; false: each of its rows is",
                kind="bool",
                scope="global",
                default=True,
            ),
            Parameter(
                name="nuslerp_row_wise",
                help="where tensors are not flattened: vectors run along the first dimension, not the last",
                kind="bool",
                scope="global",
                default=False,
            ),
        ),
    ),
    Method(
        name="multislerp",
        help="direction of the weighted mean of unit vectors, with the weighted mean of the lengths",
        paper=MULTISLERP,
        base="optional",
        parameters=(
            _weight(1.0),
            Parameter(
                name="normalize_weights",
                help="divide by the sum of the weights",
                kind="bool",
                scope="global",
                default=True,
            ),
            Parameter(name="eps", help="length that counts as none", scope="global", default=1e-8, low=0.0),
        ),
    ),
    Method(
        name="karcher",
        help="the point on the sphere nearest to all models, with the mean of their lengths",
        paper=KARCHER,
        base="none",
        parameters=(
            Parameter(name="max_iter", help="most steps", kind="integer", scope="global", default=10, low=0),
            Parameter(name="tol", help="shortest step, in radians", scope="global", default=1e-5, low=0.0),
        ),
    ),
    Method(
        name="model_stock",
        help="between the base and the mean of the models, as far as the angles of the task vectors say",
        paper=MODEL_STOCK,
        base="required",
        min_models=2,
        parameters=(
            Parameter(
                name="filter_wise",
                help="angles of each row instead of the whole tensor",
                kind="bool",
                scope="global",
                default=False,
            ),
        ),
    ),
    Method(
        name="nearswap",
        help="the other model where it is near the base, the base where it is not",
        paper=NEARSWAP,
        base="required",
        max_models=1,
        parameters=(
            Parameter(
                name="t",
                help="distance below which the other model is taken as it is",
                scope="global",
                low=0.0,
                search_low=0.0,
                search_high=0.0025,
            ),
        ),
    ),
    Method(
        name="arcee_fusion",
        help="the base with those changes to the other model that matter far more than most",
        paper=ARCEE_FUSION,
        base="required",
        max_models=1,
        parameters=(),
    ),
    Method(
        name="iso_c",
        help="base plus the sum of the task vectors with the singular values of each matrix made equal; "
        "every candidate decomposes every matrix",
        paper=ISO_C,
        base="required",
        parameters=(_weight(1.5), dataclasses.replace(_LAMBDA, search_low=0.2, search_high=2.0)),
    ),
    Method(
        name="tsv_merge",
        help="base plus the leading singular vectors of all task vectors, decorrelated; "
        "every candidate decomposes every matrix of every model",
        paper=TSV_MERGE,
        base="required",
        parameters=(_weight(1.5), _LAMBDA),
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
