"""What a search file's tasks ask of the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evolve.search_tasks import has_chat_template
from tests.evolve import tiny


@pytest.mark.parametrize("template_in", ["tokenizer_config.json", "chat_template.jinja"])
def test_chat_templates_are_found(tmp_path: Path, template_in: str) -> None:
    tiny.write_model(tmp_path)
    assert not has_chat_template(tmp_path)
    path = tmp_path / template_in
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))
    else:
        path.write_text("{{ messages }}")
    assert has_chat_template(tmp_path)
