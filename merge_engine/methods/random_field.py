"""A fixed field of uniforms: the number at each place is a hash of the place and a key, so that any piece
of it can be made anywhere, on any worker, in any order.

The hash is two xorshift-multiply rounds (constants of Ettinger and Wellons, hash-prospector, lowbias32) with
one half of a 64-bit key before each. All arithmetic is modulo 2**32 in int32. Compared with a limit, a number
is as good as its upper bits, so the last xorshift, which mends lower ones, is left out.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

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


def limit(share: float) -> float:
    """What ``share`` of a field lies below."""
    return (share - 0.5) * 2.0**32


def field_N(first: Tensor, count: int, key_2: Tensor) -> Tensor:
    """``count`` numbers, fp32, uniform from -2**31 to 2**31, from place ``first`` (int32 scalar) on."""
    x_N = torch.arange(count, dtype=torch.int32, device=key_2.device) + first
    x_N = x_N ^ key_2[0]
    x_N = (x_N ^ _shifted(x_N, 16)) * 0x7FEB352D
    x_N = (x_N ^ _shifted(x_N, 15)) + key_2[1]
    return (x_N * (0x846CA68B - 2**32)).to(torch.float32)


def _shifted(x_N: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's shifts keep the sign."""
    return (x_N >> bits) & ((1 << (32 - bits)) - 1)
