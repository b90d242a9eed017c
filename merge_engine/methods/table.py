"""The kernels by method name, all of them; `merge_engine.spec.methods` says what parameters they take."""

from __future__ import annotations

from collections.abc import Mapping

from merge_engine.methods.dare import DARE_LINEAR, DARE_TIES
from merge_engine.methods.family import Family
from merge_engine.methods.linear import LINEAR
from merge_engine.methods.passthrough import PASSTHROUGH
from merge_engine.methods.slerp import SLERP
from merge_engine.methods.task_arithmetic import TASK_ARITHMETIC
from merge_engine.methods.ties import TIES

FAMILIES: Mapping[str, Family] = {
    "linear": LINEAR,
    "slerp": SLERP,
    "task_arithmetic": TASK_ARITHMETIC,
    "ties": TIES,
    "dare_ties": DARE_TIES,
    "dare_linear": DARE_LINEAR,
    "passthrough": PASSTHROUGH,
}
