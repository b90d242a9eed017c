"""The chat template of the result: that of the models, a well-known one by its name, or the recipe's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from merge_engine.errors import PlanError, Problem
from merge_engine.spec.reading import did_you_mean

FILE = "chat_template.jinja"
AUTO = "auto"

# As transformers renders them: no newline after a block, no blanks before one at the start of a line.
_ALPACA = """\
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '### Instruction:\\n' }}
{%- elif message.role == 'user_context' %}{{ '### Input:\\n' }}
{%- elif message.role == 'assistant' %}{{ '### Response:\\n' }}
{%- endif %}
{{- message.content | trim }}
{%- if not loop.last %}{{ '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'assistant' %}
{{- '\\n\\n### Response:\\n' }}
{%- endif %}"""
_CHATML = """\
{% for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
{{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
_MISTRAL = """\
{%- set talk = messages[1:] if messages[0].role == 'system' else messages %}
{{- bos_token }}
{%- for message in talk %}
{%- if message.role != ['user', 'assistant'][loop.index0 % 2] %}
{{- raise_exception('after a system message, which may be left out, user and assistant must take turns') }}
{%- elif message.role == 'assistant' %}{{ ' ' ~ message.content ~ eos_token }}
{%- else %}
{{- ' [INST] ' ~ (messages[0].content ~ '\\n\\n' if loop.first and talk != messages else '') }}
{{- message.content ~ ' [/INST]' }}
{%- endif %}
{%- endfor %}"""
_EXAONE = """\
{%- if messages[0].role != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}
{%- for message in messages %}
{{- '[|' ~ message.role ~ '|]' ~ message.content }}
{{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"""

BUILT_IN = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}


def chosen_template(wanted: str | None, folders: Sequence[Path]) -> str | None:
    """The template that a recipe's ``chat_template`` asks for, or None to keep the tokenizer's own.

    ``auto`` is the most frequent template of ``folders``, the first of those in a draw. Raises `PlanError`.
    """
    if wanted is None:
        return None
    if wanted == AUTO:
        templates = [template for template in map(template_of, folders) if template is not None]
        return Counter(templates).most_common(1)[0][0] if templates else None
    if wanted in BUILT_IN:
        return BUILT_IN[wanted]
    if "{" in wanted:
        return wanted
    remedy = f"{did_you_mean(wanted, [AUTO, *BUILT_IN])}; or give a Jinja template"
    raise PlanError([Problem("chat_template", f"unknown: {wanted!r}", remedy)])


def template_of(folder: Path) -> str | None:
    """The chat template of a model folder."""
    file = folder / FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = config.get("chat_template") if isinstance(config, dict) else None
    return template if isinstance(template, str) else None
