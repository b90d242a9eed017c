"""Random streams: each is named by the root seed, its purpose and its ids, and independent of all others."""

from __future__ import annotations

import zlib

import numpy as np


def random_stream(seed: int, purpose: str, *ids: int) -> np.random.RandomState:
    """The stream of normal and uniform draws for one purpose; the same arguments give the same draws for
    ever.

    `RandomState` and not `Generator`, because numpy promises never to change what it draws.
    """
    entropy = (seed, zlib.crc32(purpose.encode()), *ids)
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy)))
