"""What the person at the terminal asked for, beyond the search file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitness.quantisation import Bits

View = Literal["auto", "live", "log", "quiet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Options of one start of a search; None leaves a choice to the search file or to the machine.

    ``max_fevals`` and ``timeout_s`` overrule the file's budget, ``sigma0`` and ``popsize`` its optimizer.
    ``num_gpus`` 0 leaves GPUs alone. ``allow_crimes`` merges models of different architectures; ``vllm``
    scores with vLLM instead of transformers. ``on_disk`` merges candidates below the folder ``scratch``
    (None: the system's for temporary files) instead of in memory; ``bits`` quantises them there.
    """

    search_file: Path
    storage_path: Path
    max_fevals: int | None = None
    timeout_s: float | None = None
    seed: int = 0
    sigma0: float | None = None
    popsize: int | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    num_gpus: int | None = None
    workers_per_gpu: int = 1
    ray_address: str | None = None
    candidate_timeout_s: float | None = None
    retries: int = 2
    trust_remote_code: bool = False
    allow_crimes: bool = False
    vllm: bool = False
    on_disk: bool = False
    scratch: Path | None = None
    bits: Bits | None = None
    allow_benchmarks: bool = False
    task_search_paths: tuple[str, ...] = ()
    wandb: bool = False
    wandb_project: str | None = None
    wandb_entity: str | None = None
    save_final_model: bool = True
    view: View = "auto"

    @property
    def device(self) -> str | None:
        """That workers are to use; None: GPUs where there are any."""
        return None if self.num_gpus is None else "cuda" if self.num_gpus else "cpu"

    def wanted_workers(self, processes: int) -> int | None:
        """How many, if each takes so many GPUs; None: as many as fit."""
        return self.num_workers or (self.num_gpus or 0) * self.workers_per_gpu // processes or None
