"""Makes the demo folder: four models, the task suites, and last a manifest that says the models are whole."""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .courses import BASE, EXPERTS, Course
from .suites import write_suites, write_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HELDOUT_ITEMS = 800  # of each task


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the weights. `steps_share` scales the length of every course (1: the demo's own)."""

    seed: int = 0
    threads: int = 1  # a second one gains little at this size and costs 50 times on a busy machine
    batch_size: int = 128
    items_per_task: int = 20_000
    steps_share: float = 1.0


def build(
    out: Path, settings: Settings, *, jobs: int = len(EXPERTS), say: Callable[[str], None] = print
) -> bool:
    """Fills `out`, training up to `jobs` experts at once; returns whether anything had to be trained.

    The weights do not depend on `jobs`. With several, `say` runs in other processes: it must be picklable.
    """
    write_suites(out / "tasks", heldout_items=HELDOUT_ITEMS, seed=settings.seed)
    manifest = out / "manifest.json"
    content = json.dumps({"settings": asdict(settings), "source": _source_hash()}, indent=1)
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == content:
        say(f"{out}: the demo models are there already")
        return False
    manifest.unlink(missing_ok=True)
    started = time.monotonic()
    _train_all(partial(_train_one, out, settings, say), jobs)
    say(f"{out}: four models trained in {time.monotonic() - started:.0f} s")
    write_text(manifest, content)
    return True


def _train_all(train_one: Callable[[Course], None], jobs: int) -> None:
    """The base first, since every expert goes on from it; then the experts side by side."""
    train_one(BASE)
    if jobs == 1:
        for expert in EXPERTS:
            train_one(expert)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(train_one, expert) for expert in EXPERTS]:
            done.result()


def _train_one(out: Path, settings: Settings, say: Callable[[str], None], course: Course) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from .training import encode_lessons, new_model, train

    disable_progress_bar()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    if course == BASE:
        model = new_model(settings.seed)
    else:  # from what is handed around, so that expert minus base is all that was taught
        model = LlamaForCausalLM.from_pretrained(out / BASE.name, dtype=torch.float32)
    course = replace(course, steps=max(2, round(course.steps * settings.steps_share)))
    lessons = encode_lessons(settings.items_per_task, settings.seed)
    train(model, course, lessons, seed=settings.seed, batch_size=settings.batch_size, say=say)
    _save(model, out / course.name)


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
