"""The README.md of a merged model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from merge_engine.spec.recipe import Recipe
from merge_engine.spec.yaml_io import dump_yaml

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")  # "name" or "org/name"


def front_matter(models: Iterable[str]) -> str:
    """What a model hub reads at the top of a card: the models that were merged, and that it is a merge.

    Their key, ``base_model``, takes ids of the hub alone: it refuses a card with anything else there, be it a
    folder or a revision. Source: https://huggingface.co/docs/hub/model-cards, "Specifying a base model".
    """
    ids = list(dict.fromkeys(_hub_ids(models)))
    data = {"base_model": ids} if ids else {}
    return f"---\n{dump_yaml({**data, 'library_name': 'transformers', 'tags': ['merge', 'mergevolve']})}---\n"


def _hub_ids(models: Iterable[str]) -> Iterator[str]:
    """The ids in ``org/name``, ``org/name@revision`` and ``model+adapter``, but of what is a folder here."""
    for model in models:
        for part in [model] if Path(model).is_dir() else model.split("+"):
            name = part.partition("@")[0]
            if _HUB_ID.fullmatch(name) and not Path(part).is_dir():
                yield name


def merge_card(recipe: Recipe, config: str, *, title: str, seed: int) -> str:
    """The card of a model that was merged as the text ``config`` says."""
    models = list(recipe.model_references())
    listed = "\n".join(f"- `{model}`" for model in models)
    return f"""{front_matter(models)}# {title}

A merge of the models below with mergevolve. Method: `{recipe.merge_method}`.

{listed}

## Config

```yaml
{config.strip()}
```

Save it as `config.yml`, then `mergevolve merge config.yml OUT --random-seed {seed}` makes this model again.
"""
