"""Compiled kernels: the bits of eager ones, made in the background, found again, done without."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_engine import compile_kernel, groups, kernel_library, runner
from merge_engine.engine import Engine
from merge_engine.kernel_library import KernelLibrary, has_compiler
from merge_engine.kernel_variants import Variant, example, flatten, nested
from merge_engine.methods import family
from merge_engine.methods.linear import linear
from merge_engine.spec.methods import METHODS
from tests.merge_engine import toy
from tests.merge_engine.test_engine import merged, recipe, same

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return toy.family(tmp_path_factory.mktemp("models"))


@pytest.fixture
def everything_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small tensors are treated as long ones, and libraries go to a folder of the test."""
    for module in (family, groups, runner):
        monkeypatch.setattr(module, "SHORT_ELEMENTS", 200, raising=False)
    monkeypatch.setattr(runner, "COMPILED_FROM_ELEMENTS", 200)
    monkeypatch.setenv("MERGEVOLVE_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, "bfloat16") for method in METHODS), ("ties", "float32"), ("dare_ties", "float32")],
)
def test_compiled_kernels_give_the_bits_of_eager_ones(
    models: list[str], everything_long: None, method: str, dtype: str
) -> None:
    extra = {
        name: value
        for name, value in {"lambda": 0.7, "rescale": True}.items()
        if METHODS[method].parameter(name)
    }
    job = recipe(method, models, dtype=dtype, **extra)
    assert same(merged(Engine(compile="always"), job), merged(Engine(compile="never"), job))


@pytest.mark.slow
@pytest.mark.skipif("g++" not in (compile_kernel.compiler() or ""), reason="asks g++ what it did")
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "breadcrumbs", "della", "sce", "ram"])
def test_loops_over_many_models_become_vectors(
    tmp_path: Path, everything_long: None, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    sources: list[str] = []

    def compile_library(source: str, library: Path) -> None:
        sources.append(source)
        build(source, library)

    build = compile_kernel.compile_library
    monkeypatch.setattr(compile_kernel, "compile_library", compile_library)
    merged(Engine(compile="always"), recipe(method, toy.family(tmp_path, sources="abcdefghijklmnop")))
    assert sources
    for source in sources:
        lines = source.splitlines()
        text = (
            "for (int32_t j = from / 2"
            if "reinterpret_cast<pair*>(block)" in source
            else "for (int32_t i = from"
        )
        (first,) = (number for number, line in enumerate(lines, start=1) if text in line)
        done = _vectorised(source, tmp_path)
        assert {first, first + 1} & done, f"line {first}, not {done}"


def _vectorised(source: str, folder: Path) -> set[int]:
    """Lines of C++ at which there are loops that g++ turns into vectors."""
    found = compile_kernel.compiler()
    assert found is not None
    made = str(folder / "kernel.so")
    command = [found, *compile_kernel.flags(), "-fopt-info-vec-optimized", "-o", made, "-"]
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=True)
    return {int(line.split(":")[1]) for line in done.stderr.splitlines() if "loop vectorized" in line}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_extreme_weights_give_no_nan_compiled_or_not(
    tmp_path: Path, everything_long: None, method: str
) -> None:
    huge, tiny = 2.0**120, 2.0**-133  # what gains and weights leave in bfloat16, and the smallest there is
    models = _extreme_models(tmp_path, [huge, -huge, 2.0**111, 2.0**-126, tiny, -tiny, 0.0, 1.0])
    job = recipe(method, models, normalize=True)
    eager, compiled = merged(Engine(compile="never"), job), merged(Engine(compile="always"), job)
    for name, tensor in eager.items():
        assert bool(tensor.isfinite().all())
        assert bool(((tensor == compiled[name]) | ((tensor - compiled[name]).abs() <= 2 * tiny)).all())


def _extreme_models(folder: Path, values: list[float]) -> list[str]:
    """A base and three models that hold these values, in different places, in some of their tensors."""
    settings = toy.config()
    references = []
    for seed, name in enumerate(("base", "a", "b", "c")):
        tensors = toy.random_tensors(settings, seed)
        chosen = torch.tensor(values, dtype=torch.bfloat16).roll(seed)
        for key in [key for key in tensors if "mlp" in key]:
            tensors[key].view(-1)[: len(values)] = chosen
        references.append(str(toy.save(folder / name, settings, tensors)))
    return references


@pytest.mark.slow
@needs_compiler
def test_a_kernel_is_compiled_in_the_background_and_found_by_the_next_process(
    models: list[str], everything_long: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = recipe("linear", models)
    expected = merged(Engine(compile="never"), job)
    monkeypatch.setattr(kernel_library, "PATIENCE_S", 0.0)
    engine = Engine()
    assert same(merged(engine, job), expected)  # eagerly: the compiler has only been started
    for entry in engine._runner._library._entries.values():
        if entry.build is not None:
            entry.build.wait()
    assert list((tmp_path / "cache" / "kernels").glob("linear-*.so"))
    for again in (engine, Engine()):
        assert same(merged(again, job), expected)
        entries = again._runner._library._entries.values()
        assert any(entry.compiled is not None for entry in entries)


def _variant() -> Variant:
    tensors = torch.zeros(500, dtype=torch.bfloat16), (torch.zeros(500),), None, (torch.zeros(1), None)
    return Variant.of(linear, tensors, 500, (torch.bfloat16, torch.bfloat16))


def test_a_compiler_that_fails_is_reported_once_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel_library, "PATIENCE_S", 0.0)
    monkeypatch.setattr(kernel_library, "has_compiler", lambda: True)
    monkeypatch.setattr("sys.executable", "/bin/false")
    library = KernelLibrary("auto", tmp_path)
    for _ in range(2):
        assert library.find(_variant()) is None
        library.spent(_variant(), 1.0)
        build = library._entries[_variant()].build
        if build is not None:
            build.wait()
        assert library.find(_variant()) is None
    (message,) = caplog.messages
    assert "linear could not be compiled (status 1: no message); merging goes on without" in message


def test_nothing_is_compiled_where_it_does_not_pay_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = KernelLibrary("auto", tmp_path)
    library.find(_variant())
    library.spent(_variant(), kernel_library.PATIENCE_S / 2)
    assert library._entries[_variant()].build is None
    monkeypatch.setattr(kernel_library, "has_compiler", lambda: False)
    library.spent(_variant(), kernel_library.PATIENCE_S)
    assert library._entries[_variant()].build is None
    with pytest.raises(ValueError, match="expected 'auto', 'always' or 'never'"):
        Engine(compile="sometimes")  # type: ignore[arg-type]


def test_a_library_that_another_user_could_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / _variant().file_name()).write_bytes(b"no library")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert KernelLibrary("auto", tmp_path).find(_variant()) is None


def test_a_variant_survives_being_written_down() -> None:
    variant = _variant()
    assert Variant.from_json(variant.to_json()) == variant
    made = flatten(example(variant.form))
    assert [list(tensor.shape) for tensor in made] == [[4096], [4096], [1]]
    out_N, sources, base_N, arguments = nested(variant.form, made)
    assert isinstance(out_N, Tensor)
    assert len(sources) == 1
    assert base_N is None
    assert arguments[1] is None
