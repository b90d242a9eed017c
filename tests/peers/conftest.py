"""The wheel's sums over a long tensor depend on the number of threads, and with them a cosine's last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.threads import torch_threads


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield
