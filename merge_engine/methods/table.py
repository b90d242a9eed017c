"""The kernels by method name, all of them; `merge_engine.spec.methods` says what parameters they take."""

from __future__ import annotations

from collections.abc import Mapping

from merge_engine.methods.arcee_fusion import ARCEE_FUSION
from merge_engine.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from merge_engine.methods.consensus_ta import CONSENSUS_TA
from merge_engine.methods.dare import DARE_LINEAR, DARE_TIES
from merge_engine.methods.della import DELLA, DELLA_LINEAR
from merge_engine.methods.family import Family
from merge_engine.methods.iso_c import ISO_C
from merge_engine.methods.karcher import KARCHER
from merge_engine.methods.linear import LINEAR
from merge_engine.methods.model_stock import MODEL_STOCK
from merge_engine.methods.multislerp import MULTISLERP
from merge_engine.methods.nearswap import NEARSWAP
from merge_engine.methods.nuslerp import NUSLERP
from merge_engine.methods.passthrough import PASSTHROUGH
from merge_engine.methods.ram import RAM, RAMPLUS_TL
from merge_engine.methods.sce import SCE
from merge_engine.methods.slerp import SLERP
from merge_engine.methods.task_arithmetic import TASK_ARITHMETIC
from merge_engine.methods.ties import TIES
from merge_engine.methods.tsv_merge import TSV_MERGE

FAMILIES: Mapping[str, Family] = {
    "linear": LINEAR,
    "slerp": SLERP,
    "task_arithmetic": TASK_ARITHMETIC,
    "ties": TIES,
    "dare_ties": DARE_TIES,
    "dare_linear": DARE_LINEAR,
    "breadcrumbs": BREADCRUMBS,
    "breadcrumbs_ties": BREADCRUMBS_TIES,
    "della": DELLA,
    "della_linear": DELLA_LINEAR,
    "sce": SCE,
    "ram": RAM,
    "ramplus_tl": RAMPLUS_TL,
    "consensus_ta": CONSENSUS_TA,
    "nuslerp": NUSLERP,
    "multislerp": MULTISLERP,
    "karcher": KARCHER,
    "model_stock": MODEL_STOCK,
    "nearswap": NEARSWAP,
    "arcee_fusion": ARCEE_FUSION,
    "iso_c": ISO_C,
    "tsv_merge": TSV_MERGE,
    "passthrough": PASSTHROUGH,
}
