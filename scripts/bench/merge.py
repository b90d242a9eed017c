"""The tables of scripts/bench_merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.processes import Comparison, Processes
from bench.resident import measure
from bench.synthetic import Size, config_file, make_models, read_models

SCALING_METHODS = ("linear", "ties")
_SMALL = Size(layers=5, vocabulary=32_000)  # 0.10 B


def in_search(
    folder: Path, size: Size, sources: int, methods: Sequence[str], repetitions: int, threads: int
) -> Iterator[str]:
    """Merging into a resident model, sources prepared, against `copy_` of the same bytes; line by line."""
    models = make_models(folder, size, sources)
    yield f"{size.parameters / 1e9:.2f} B parameters, bf16, {threads} thread(s); copy: `copy_`, same bytes"
    yield ""
    yield "| method | first (s) | candidate (s) | copy (s) | candidate / copy | memory above model (MiB) |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for method in methods:
        t = measure(method, models, size, repetitions, threads)
        times = f"{t.first_s:.1f} | {t.candidate_s:.3f} | {t.copy_s:.3f}"
        yield f"| {t.method} | {times} | {t.ratio:.2f} | {t.extra_mib:.0f} |"


def whole_processes(
    folder: Path,
    size: Size,
    sources: int,
    methods: Sequence[str],
    repetitions: int,
    threads: int,
    *,
    wheel: bool,
    cached: bool,
) -> Iterator[str]:
    """Our command, the wheel's and a copying process on the same files; line by line as they are measured."""
    models = make_models(folder, size, sources)
    processes = Processes(folder, threads=threads, repetitions=repetitions, cached=cached)
    yield (
        f"{size.parameters / 1e9:.2f} B parameters, bf16, base and {sources} sources, {threads} thread(s); "
        f"whole processes, models {'in the page cache' if cached else 'read from the disk'}"
    )
    yield ""
    yield (
        "| method | copy (s) | ours, warm (s) | / copy | ours, cold (s) | wheel (s) | wheel / warm "
        "| peak, ours (MiB) | peak, wheel (MiB) |"
    )
    yield "| --- " * 9 + "|"
    for method in methods:
        config = config_file(folder, method, models)
        yield _process_line(processes.compare(method, config, read_models(method, models), wheel=wheel))


def _process_line(row: Comparison) -> str:
    ours = f"{row.copy.wall_s:.1f} | {row.warm.wall_s:.1f} | {row.warm.wall_s / row.copy.wall_s:.2f}"
    peak_mib = max(row.warm.peak_mib, row.cold.peak_mib)
    if row.wheel is None:
        return f"| {row.method} | {ours} | {row.cold.wall_s:.1f} | | | {peak_mib:.0f} | |"
    wheel = f"{row.wheel.wall_s:.1f} | {row.wheel.wall_s / row.warm.wall_s:.1f}"
    peaks = f"{peak_mib:.0f} | {row.wheel.peak_mib:.0f}"
    return f"| {row.method} | {ours} | {row.cold.wall_s:.1f} | {wheel} | {peaks} |"


def scaling(folder: Path, repetitions: int, threads: int, *, cached: bool) -> Iterator[str]:
    """Our command by number of sources (0.1 B parameters) and by size (3 sources, two of them links)."""
    processes = Processes(folder, threads=threads, repetitions=repetitions, cached=cached)
    yield "| method | parameters (B) | sources | seconds, warm | copy (s) | / copy |"
    yield "| --- " * 6 + "|"
    cases = [(_SMALL, count) for count in (2, 4, 8, 16)]
    cases += [(Size(layers=layers, vocabulary=32_000), 3) for layers in (23, 65)]
    for size, count in cases:
        models = make_models(folder, size, count, distinct=1 if size.layers > _SMALL.layers else None)
        for method in SCALING_METHODS:
            config = config_file(folder, method, models)
            row = processes.compare(method, config, read_models(method, models), wheel=False)
            ratio = row.warm.wall_s / row.copy.wall_s
            times = f"{row.warm.wall_s:.1f} | {row.copy.wall_s:.1f} | {ratio:.2f}"
            yield f"| {method} | {size.parameters / 1e9:.2f} | {count} | {times} |"
