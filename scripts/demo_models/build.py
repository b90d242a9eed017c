"""Makes the demo folder: four models, the task suites, and last a manifest that says the models are whole."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .suites import write_suites, write_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .training import Course

SEARCH_ITEMS, HELDOUT_ITEMS = 200, 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the weights. `steps_share` scales the length of every course (1: the demo's own)."""

    seed: int = 0
    threads: int = 1  # a second one gains little at this size and costs 50 times on a busy machine
    batch_size: int = 128
    items_per_task: int = 20_000
    steps_share: float = 1.0


def build(out: Path, settings: Settings, say: Callable[[str], None] = print) -> bool:
    """Fills `out`; returns whether anything had to be trained."""
    write_suites(out / "tasks", search_items=SEARCH_ITEMS, heldout_items=HELDOUT_ITEMS, seed=settings.seed)
    manifest = out / "manifest.json"
    content = json.dumps({"settings": asdict(settings), "source": _source_hash()}, indent=1)
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == content:
        say(f"{out}: the demo models are there already")
        return False
    manifest.unlink(missing_ok=True)
    _train_all(out, settings, say)
    write_text(manifest, content)
    return True


def _train_all(out: Path, settings: Settings, say: Callable[[str], None]) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers.utils.logging import disable_progress_bar

    from .training import encode_lessons, new_model, train

    started = time.monotonic()
    disable_progress_bar()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    lessons = encode_lessons(settings.items_per_task, settings.seed)
    base = new_model(settings.seed)
    for i, course in enumerate(_courses(settings.steps_share)):
        model = base if course.name == "base" else copy.deepcopy(base)
        train(model, course, lessons, seed=settings.seed + i, batch_size=settings.batch_size, say=say)
        _save(model, out / course.name)
    say(f"{out}: four models trained in {time.monotonic() - started:.0f} s")


def _courses(steps_share: float) -> list[Course]:
    """The base learns a bit of everything; each expert goes on with one task and forgets the others.

    The experts part from the base by unlike lengths, so the uniform merge is not the best one.
    """
    from .training import Course

    def course(name: str, mix: tuple[float, float, float], steps: int, peak_lr: float) -> Course:
        return Course(name=name, mix=mix, steps=max(2, round(steps * steps_share)), peak_lr=peak_lr)

    return [
        course("base", (0.50, 0.13, 0.37), 150, 2e-3),
        course("arithmetic", (1.0, 0.0, 0.0), 150, 7e-4),
        course("text", (0.0, 1.0, 0.0), 100, 7e-4),
        course("choice", (0.0, 0.0, 1.0), 120, 7e-4),
    ]


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    """An ordinary Hugging Face folder, bfloat16 as models are usually handed around."""
    import torch

    from .vocabulary import build_tokenizer

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def _source_hash() -> str:
    """Of the code that trains: other code, other models."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
