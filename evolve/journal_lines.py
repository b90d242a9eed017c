"""Records as lines of a journal, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from evolve.outcome import Failed, Outcome, Scored
from evolve.records import (
    CandidateRecord,
    HoldoutRecord,
    Measured,
    Record,
    RunRecord,
    WorkerRecord,
)
from fitness.results import Report, TaskResult


def to_line(record: Record) -> bytes:
    """The line of a record, with its newline."""
    # orjson writes a number that is none as null; scores are finite by their type, items are filtered below.
    return orjson.dumps(encode(record), option=orjson.OPT_APPEND_NEWLINE)


def encode(record: Record) -> dict[str, Any]:
    """A record as plain data, what varies between runs of one search under ``measured``."""
    if isinstance(record, RunRecord):
        return {
            "kind": "run",
            "schema": record.schema,
            "seed": record.seed,
            "popsize": record.popsize,
            "batch_size": record.batch_size,
            "dimensions": record.dimensions,
            "inputs": record.inputs,
            "measured": {"versions": record.versions, "started_at": record.started_at},
        }
    if isinstance(record, CandidateRecord):
        return {
            "kind": "candidate",
            "id": record.id,
            "generation": record.generation,
            "index": record.index,
            "origin": record.origin,
            "recipe": record.recipe,
            "copied_from": record.copied_from,
            "outcome": _encode_outcome(record.outcome),
            "measured": asdict(record.measured),
        }
    if isinstance(record, WorkerRecord):
        return {"kind": "worker", "measured": asdict(record)}
    return {
        "kind": "holdout",
        "name": record.name,
        "candidate_id": record.candidate_id,
        "outcome": _encode_outcome(record.outcome),
        "measured": asdict(record.measured),
    }


def _encode_outcome(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        return {"failed": {"stage": outcome.stage, "reason": outcome.reason}}
    return {
        "score": outcome.report.score,
        "tasks": [
            {
                "task": task.task,
                "metric": task.metric,
                "weight": task.weight,
                "value": task.value,
                "items": [
                    value if value is not None and math.isfinite(value) else None for value in task.items
                ],
                "item_ids": list(task.item_ids),
            }
            for task in outcome.report.tasks
        ],
    }


def decode(data: Mapping[str, Any]) -> Record:
    """The record of such data, of any version that is read. Raises ValueError, KeyError or TypeError."""
    kind, measured = data["kind"], data["measured"]
    if kind == "run":
        return RunRecord(
            schema=data["schema"],
            seed=data["seed"],
            popsize=data["popsize"],
            batch_size=data["batch_size"],
            dimensions=data["dimensions"],
            inputs=data["inputs"],
            versions=measured["versions"],
            started_at=measured["started_at"],
        )
    if kind == "candidate":
        return CandidateRecord(
            id=data["id"],
            generation=data["generation"],
            index=data["index"],
            origin=data["origin"],
            recipe=data["recipe"],
            copied_from=data.get("copied_from"),
            outcome=_decode_outcome(data["outcome"]),
            measured=Measured(**measured),
        )
    if kind == "holdout":
        return HoldoutRecord(
            name=data["name"],
            candidate_id=data["candidate_id"],
            outcome=_decode_outcome(data["outcome"]),
            measured=Measured(**measured),
        )
    if kind == "worker":
        return WorkerRecord(**measured)
    raise ValueError(f"unknown kind {kind!r}")


def _decode_outcome(data: Mapping[str, Any]) -> Outcome:
    if "failed" in data:
        return Failed(stage=data["failed"]["stage"], reason=data["failed"]["reason"])
    return Scored(
        report=Report(
            tasks=tuple(
                TaskResult(
                    task=task["task"],
                    metric=task["metric"],
                    weight=task["weight"],
                    value=task["value"],
                    items=tuple(task["items"]),
                    item_ids=tuple(task["item_ids"]),
                )
                for task in data["tasks"]
            )
        )
    )
