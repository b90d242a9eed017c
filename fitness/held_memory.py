"""How much memory a process holds, where the model is."""

from __future__ import annotations


def held_bytes(device: str) -> int:
    """What this process alone has: the most that it had of a GPU so far, or of the machine's memory now.

    Mapped files are not counted, which all processes of a machine share. ``device``: "cpu" or "cuda".
    """
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import psutil

    held = psutil.Process().memory_info()
    return int(held.rss - getattr(held, "shared", 0))
