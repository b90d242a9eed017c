"""The README.md of a merged model."""

from __future__ import annotations

from collections.abc import Sequence

from merge_engine.spec.recipe import Recipe
from merge_engine.spec.yaml_io import dump_yaml


def front_matter(models: Sequence[str]) -> str:
    """What a model hub reads at the top of a card: the models that were merged, and that it is a merge."""
    data = {"base_model": list(models), "library_name": "transformers", "tags": ["merge", "mergevolve"]}
    return f"---\n{dump_yaml(data)}---\n"


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
