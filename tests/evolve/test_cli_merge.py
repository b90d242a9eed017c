"""`mergevolve merge`: mergekit-yaml's options, refusals that load nothing, and what lies in the folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evolve.cli import main
from merge_engine.checkpoint_header import open_header
from tests.merge_engine import toy
from tests.merge_engine.test_out_of_core import hollow_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    _, a, b = toy.family(tmp_path / "models", sources="ab")
    text = f"merge_method: linear  # half and half\nmodels:\n- {{model: {a}, parameters: {{weight: 1}}}}\n"
    file = tmp_path / "config.yml"
    file.write_text(text + f"- {{model: {b}, parameters: {{weight: 1}}}}\ndtype: bfloat16\n")
    return file


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def test_the_folder_has_weights_config_and_card(config: Path, tmp_path: Path) -> None:
    result = invoke(config, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'out'}: 0.00 GB read and written" in result.output
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md", "mergekit_config.yml"}
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == config.read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# half and half" in card


def test_sizes_card_and_silence(config: Path, tmp_path: Path) -> None:
    result = invoke(config, tmp_path / "out", "--out-shard-size", "20KB", "--no-write-model-card", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert "README.md" not in files
    assert max(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) < 22_000
    assert len(files) > 5


NEEDLESS = [
    *("--low-cpu-memory", "--read-to-gpu", "--multi-gpu", "--lazy-unpickle", "--clone-tensors"),
    *("--trust-remote-code", "--async-write", "--safe-serialization", "--write-threads", "3"),
    *("--lora-merge-cache", "x", "--lora-merge-dtype", "bfloat16"),
]


def test_needless_options_are_taken_and_say_so(config: Path, tmp_path: Path) -> None:
    result = invoke(config, tmp_path / "out", *NEEDLESS)
    assert result.exit_code == 0, result.output
    options = [option for option in NEEDLESS if option.startswith("--")]
    assert [line.split()[1] for line in result.stderr.splitlines()] == sorted(
        options, key=lambda option: result.stderr.index(f"note: {option} ")
    )
    assert len(result.stderr.splitlines()) == len(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out-shard-size", "large"], "'large' is no size; give bytes such as 500M, 5B or 5GB"),
        (["--out-shard-size", "-5B"], "is no size"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--no-safe-serialization"], "pickled weights are not written"),
        (["--num-threads", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_done_is_refused(
    config: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = invoke(config, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_fit_is_refused_without_torch(tmp_path: Path) -> None:
    settings = toy.config(hidden=64)
    a = toy.family(tmp_path, sources="a")[1]
    wide = toy.save(tmp_path / "wide", settings, toy.random_tensors(settings, 0))
    config = tmp_path / "config.yml"
    config.write_text(f"merge_method: linear\nmodels: [{{model: {a}}}, {{model: {wide}}}]\n")
    code = (
        "import sys\nfrom evolve.cli import main\n"
        f"try:\n    main(['merge', {str(config)!r}, {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n", done.stderr
    assert f"error: {config}: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_several_documents_in_one_file(config: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.yml"
    last = config.read_text().replace(str(tmp_path / "models" / "a"), "half")
    named.write_text(f"name: half\n{config.read_text()}---\n{last}")
    assert invoke(named, tmp_path / "out").exit_code == 0
    result = invoke(named, tmp_path / "kept_out", "--intermediate-dir", tmp_path / "kept", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    weights = [tmp_path / name / "model.safetensors" for name in ("out", "kept_out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (tmp_path / "kept" / "half" / "model.safetensors").is_file()
    names = {"models", "config.yml", "named.yml", "out", "kept_out", "kept"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_merge_that_is_told_to_end_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    model = hollow_model(tmp_path / "model", tensors=400)  # seconds of work
    config = tmp_path / "config.yml"
    config.write_text(f"merge_method: linear\nmodels: [{{model: {model}, parameters: {{weight: 2}}}}]\n")
    # What a shell starts in the background ignores SIGINT, and so does what that starts in turn.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; import sys; from evolve.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "merge", str(config), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        while child.poll() is None and not any(tmp_path.glob(".out.*.partial/**/*.safetensors")):
            time.sleep(0.005)
        has_begun = child.poll() is None
        child.send_signal(number)
        printed, _ = child.communicate()
    assert has_begun, printed
    assert child.returncode == (143 if number == signal.SIGTERM else 1), printed
    assert {path.name for path in tmp_path.iterdir()} == {"model", "config.yml"}


def test_what_has_no_effect_is_told(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "parameters: {int8_mask: true}\n")
    result = invoke(config, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (
        "note: parameters.int8_mask: linear has no parameter 'int8_mask' (it has no effect)" in result.output
    )


def test_embeddings_are_cut_to_the_smallest_vocabulary(tmp_path: Path) -> None:
    models = []
    for seed, vocabulary in enumerate((70, 64)):
        settings = toy.config(vocabulary=vocabulary)
        models.append(toy.save(tmp_path / str(seed), settings, toy.random_tensors(settings, seed)))
    config = tmp_path / "config.yml"
    entries = ", ".join(f"{{model: {model}, parameters: {{weight: 1}}}}" for model in models)
    config.write_text(f"merge_method: linear\nmodels: [{entries}]\n")
    refused = invoke(config, tmp_path / "out")
    assert refused.exit_code == 2
    assert "the vocabularies differ: choose one with tokenizer_source" in refused.output
    result = invoke(config, tmp_path / "out", "--unsafe-truncate-embeddings")
    assert result.exit_code == 0, result.output
    header = open_header(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert header.tensors[name].shape == (64, 32)
    assert header.config["vocab_size"] == 64
