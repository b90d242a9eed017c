"""`mergevolve explain`: the long form and every variable, from headers alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evolve.cli import main
from genome import parse_search_file
from tests.evolve import tiny

ROOT = Path(__file__).parents[2]

TEMPLATE = """
template:
  merge_method: {{choose: [slerp, linear]}}
  base_model: {models}/left
  models:
    - {{model: {models}/left, parameters: {{weight: {{search: [0, 1], every: 2}}}}}}
    - {{model: {models}/right, parameters: {{weight: {{search: [0.1, 1.0], scale: log, name: other}}}}}}
  parameters:
    t: {{search: [0.0, 1.0], step: 0.25}}
tasks: [tiny_choice]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    return folder


def explain(path: Path, text: str) -> Result:
    path.write_text(text, encoding="utf-8")
    return CliRunner().invoke(main, ["explain", str(path)])


def test_a_genome_is_shown_as_the_template_that_it_is_short_for(models: Path, tmp_path: Path) -> None:
    text = tiny.search_text(models)
    output = explain(tmp_path / "search.yml", text).output
    long_form, head, table = output.split("\n\n", maxsplit=2)
    assert parse_search_file(f"{long_form}\ntasks: [x]\n").genome.model_references()
    assert head == "4 dimensions: CMA-ES over 4 reals"
    first, second, *_ = table.splitlines()
    assert first.split() == ["variable", "kind", "values", "start", "feeds"]
    assert second.split() == [
        *f"weight of {models}/left, layers 0-1 real 0 to 1.5 0.5".split(),
        "models[1].parameters.weight",
    ]
    again = explain(tmp_path / "long.yml", f"{long_form}\ntasks: [x]\n").output
    assert again.endswith(f"{head}\n\n{table}")


def test_a_template_with_its_variables_and_choices_that_do_not_work(models: Path, tmp_path: Path) -> None:
    output = explain(tmp_path / "search.yml", TEMPLATE.format(models=models)).output
    rows = [" ".join(line.split()) for line in output.splitlines()]
    assert "5 dimensions: CMA-ES over 3 reals and 1 integer, elite distribution over 1 categorical" in rows
    assert "merge_method categorical slerp | linear slerp merge_method" in rows
    assert "other real 0.1 to 1, log scale 1 models[1].parameters.weight" in rows
    assert "t integer 0, 0.25, ..., 1 0.5 parameters.t" in rows


def test_choices_that_are_refused_at_the_start_are_named(models: Path, tmp_path: Path) -> None:
    text = TEMPLATE.format(models=models).replace("slerp, linear", "slerp, linear, passthrough")
    output = explain(tmp_path / "search.yml", text).output
    assert "note: merge_method = passthrough is refused at the start: " in output
    assert "passthrough takes exactly 1 model(s), found 2" in output


def test_pairs_are_shown_as_they_are(models: Path, tmp_path: Path) -> None:
    genome = f"{{models: [{models}/left, {models}/right, {models}/base], merge_method: slerp}}"
    output = explain(tmp_path / "search.yml", f"genome: {genome}\ntasks: [x]\n").output
    assert output.startswith("# No template: each group of layers blends the two models of the largest")
    assert f"preference of {models}/base" in output


def test_stages_are_shown_in_turn(models: Path, tmp_path: Path) -> None:
    text = f"""
stages:
  - name: first
    genome: {{models: [{models}/left, {models}/right], merge_method: linear, layer_granularity: 2}}
  - name: path
    layout: {{models: ["winner:first", {models}/left], repeats: 1}}
  - name: last
    genome: {{models: ["winner:path", {models}/left], merge_method: linear}}
tasks: [x]
"""
    output = explain(tmp_path / "search.yml", text).output
    assert output.index("# stage first") < output.index("# stage path") < output.index("# stage last")
    assert f"weight of {models}/right, layers 2-3" in output
    assert "use winner:first layer 1" in output
    assert "The variables depend on the layers of winner:path." in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("left", "nowhere"), "no such folder"),
        (("merge_method", "merge_methd"), "template.merge_methd: unknown key"),
        (("tasks: [tiny_choice]", ""), "tasks: no task is given"),
        (("template:", "template: ["), "line"),
    ],
)
def test_what_is_wrong_is_told(models: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    result = explain(tmp_path / "search.yml", TEMPLATE.format(models=models).replace(*change))
    assert result.exit_code == 2
    assert message in result.output


def test_nothing_heavy_is_loaded(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "search.yml"
    path.write_text(TEMPLATE.format(models=models), encoding="utf-8")
    code = (
        "import sys; from evolve.explain import explain; from pathlib import Path; "
        f"explain(Path({str(path)!r})); "
        "print(sorted({'torch', 'ray', 'cma', 'lm_eval'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
