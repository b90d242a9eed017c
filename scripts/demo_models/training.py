"""A plain training loop: answer-only loss, AdamW, cosine schedule, one seed for everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .courses import Course
from .tasks import TASKS, draw_items
from .vocabulary import BOS, EOS, PAD, WORDS

_IDS = {word: i for i, word in enumerate(WORDS)}
_IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True, slots=True)
class Lessons:
    """Encoded training items of one task: tokens and labels, int64, shape (items, length)."""

    tokens: Tensor
    labels: Tensor


def encode_lessons(items_per_task: int, seed: int) -> list[Lessons]:
    """The training share of every task, padded to one common length."""
    rows = [
        [
            ([_IDS[w] for w in item.prompt.split()], [_IDS[w] for w in (*item.answer.split(), EOS)])
            for item in draw_items(task, "training", items_per_task, seed, repeats=True)
        ]
        for task in TASKS
    ]
    length = max(len(prompt) + len(answer) for task_rows in rows for prompt, answer in task_rows)
    return [_padded(task_rows, length) for task_rows in rows]


def _padded(rows: Sequence[tuple[list[int], list[int]]], length: int) -> Lessons:
    tokens = torch.full((len(rows), length), _IDS[PAD])
    labels = torch.full((len(rows), length), _IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return Lessons(tokens, labels)


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of about 2.7 million parameters, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=_IDS[BOS],
        eos_token_id=_IDS[EOS],
        pad_token_id=_IDS[PAD],
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    course: Course,
    lessons: Sequence[Lessons],
    *,
    seed: int,
    batch_size: int,
    say: Callable[[str], None],
) -> None:
    """Teaches `model` in place. The same arguments give the same weights on the same machine."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = min(50, course.steps // 5)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.02, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.steps - warmup, course.peak_lr / 20),
        ],
        milestones=[warmup],
    )
    started = time.monotonic()
    model.train()
    for step in range(1, course.steps + 1):
        tokens, labels = _batch(lessons, course.mix, batch_size, rng)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == course.steps:
            elapsed_s = time.monotonic() - started
            say(f"{course.name}: step {step}/{course.steps}, loss {loss.item():.3f}, {elapsed_s:.0f} s")
    model.eval()


def _batch(
    lessons: Sequence[Lessons], mix: Sequence[float], size: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    tasks = torch.multinomial(torch.tensor(mix), size, replacement=True, generator=rng)
    counts = torch.bincount(tasks, minlength=len(lessons)).tolist()
    tokens, labels = [], []
    for lesson, count in zip(lessons, counts, strict=True):
        picks = torch.randint(len(lesson.tokens), (count,), generator=rng)
        tokens.append(lesson.tokens[picks])
        labels.append(lesson.labels[picks])
    tokens_BT, labels_BT = torch.cat(tokens), torch.cat(labels)
    used = int((tokens_BT != _IDS[PAD]).any(0).sum())  # one task alone needs no padding to the longest
    return tokens_BT[:, :used], labels_BT[:, :used]
