"""A fixed field of uniforms: the number at each place is a hash of the place and a key, so that any piece
of it can be made anywhere, on any worker, in any order.

The hash is two multiply-xorshift rounds (constants of Ettinger and Wellons, hash-prospector, lowbias32) with
one half of a 64-bit key before each. All arithmetic is modulo 2**32 in int32.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_FIELD_BITS = 24  # what fp32 holds exactly
FIELD_ELEMENTS = 2**30  # one key serves so many elements; longer tensors take one key per block


def field_key(seed: int, source: str, tensor: str, block: int) -> tuple[int, int]:
    """Two signed 32-bit numbers from (seed, source model, tensor, block of `FIELD_ELEMENTS`).

    ``source``: the fingerprint of the model's content, so that a folder keeps its field wherever it lies.
    """
    text = "\0".join((str(seed), source, tensor, str(block)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(
        digest[4:], "little", signed=True
    )


def field_N(first: Tensor, count: int, key_2: Tensor) -> Tensor:
    """``count`` uniforms in [0, 1), multiples of 2**-24 in fp32, from place ``first`` (int32 scalar) on."""
    x_N = torch.arange(count, dtype=torch.int32, device=key_2.device) + first
    x_N = x_N ^ key_2[0]
    x_N = (x_N ^ _shifted(x_N, 16)) * 0x7FEB352D
    x_N = (x_N ^ _shifted(x_N, 15)) + key_2[1]
    x_N = x_N * (0x846CA68B - 2**32)
    return _shifted(x_N ^ _shifted(x_N, 16), 32 - _FIELD_BITS).to(torch.float32) * 2.0**-_FIELD_BITS


def _shifted(x_N: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's shifts keep the sign."""
    return (x_N >> bits) & ((1 << (32 - bits)) - 1)
