"""What the demo's four models are taught. Pure: no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What one model is taught: `mix` is the share of each task in its batches, in the order of `TASKS`."""

    name: str
    mix: tuple[float, float, float]
    steps: int
    peak_lr: float


# The base learns a bit of everything; each expert goes on with one task and forgets the others. Tasks are not
# equally hard nor courses equally long, so neither the uniform merge nor the sum of task vectors is the best.
BASE = Course(name="base", mix=(0.45, 0.12, 0.43), steps=160, peak_lr=1.7e-3)
EXPERTS = (
    Course(name="arithmetic", mix=(1.0, 0.0, 0.0), steps=130, peak_lr=6e-4),
    Course(name="text", mix=(0.0, 1.0, 0.0), steps=60, peak_lr=6e-4),
    Course(name="choice", mix=(0.0, 0.0, 1.0), steps=90, peak_lr=6e-4),
)
