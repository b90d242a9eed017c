"""Which rows of the sources make up the rows of a tensor that has one row for each token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NOT_OWN = -1
PART = np.dtype([("row", np.int64), ("donor", np.int64), ("donor_row", np.int64), ("share", np.float32)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowMap:
    """How one model's embedding-like tensors are brought to the vocabulary of the result.

    ``own_R``: for each of the R rows of the result the model's own row, int64, or `NOT_OWN`. ``parts_P``:
    what the other rows are the sum of, of dtype `PART`: ``share`` times row ``donor_row`` of the model
    ``donors[donor]``, a reference of the recipe; a row without parts is zero. The last ``padding`` rows are
    the mean of all before them. Sums and means are rounded to ``dtype``, as recipes name it, or to that of
    the model where it is None. Equal, and hashed, by content.
    """

    own_R: npt.NDArray[np.int64]
    donors: tuple[str, ...] = ()
    parts_P: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=PART))
    padding: int = 0
    dtype: str | None = None
    _digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.own_R.flags.writeable = self.parts_P.flags.writeable = False
        digest = hashlib.blake2b(repr((self.donors, self.padding, self.dtype)).encode(), digest_size=16)
        digest.update(self.own_R.tobytes())
        digest.update(self.parts_P.tobytes())
        object.__setattr__(self, "_digest", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowMap) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    @property
    def rows(self) -> int:
        """How many rows the result has."""
        return len(self.own_R)

    @property
    def mixes(self) -> bool:
        """Whether any row is a sum, so that its exact value may lie between numbers of the stored dtype."""
        return self.padding > 0 or bool(np.any(self.parts_P["share"] != 1.0))

    def is_identity(self, rows: int) -> bool:
        """Whether a tensor of ``rows`` rows stays as it is."""
        return rows == self.rows and bool(np.array_equal(self.own_R, np.arange(rows)))
