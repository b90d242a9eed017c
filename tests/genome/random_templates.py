"""Templates drawn at random: mostly sound, some with mistakes, a few that are nonsense."""

from __future__ import annotations

import random
from collections.abc import Callable

from merge_engine.spec import METHODS

LAYERS = 6
MODELS = ("a", "b", "c")
_METHODS = sorted(METHODS)
_NUMBERS = {"weight": (0.0, 1.5), "density": (0.1, 1.0), "t": (0.0, 1.0), "lambda": (0.5, 2.0)}


class RandomTemplate:
    """One template; ``data`` is its plain data."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names: list[str] = []
        self.data = self._recipe()

    def _is(self, share: float) -> bool:
        return self._random.random() < share

    def _recipe(self) -> object:
        pick = self._random
        method = pick.choice(_METHODS)
        data: dict[str, object] = {"merge_method": method}
        if self._is(0.3):
            data["merge_method"] = {"choose": pick.sample(_METHODS, pick.randint(2, 4))}
        if METHODS[method].takes_base or self._is(0.1):
            data["base_model"] = "root"
        body = self._models if self._is(0.6) else self._slices
        data |= body(method)
        wanted = [p for p in METHODS[method].parameters if p.scope == "global" and p.default is None]
        if wanted or self._is(0.6):
            data["parameters"] = self._parameters(method, "global")
        if self._is(0.02):
            data[pick.choice(["dtype", "models", "parameters", "nonsense"])] = self._nonsense()
        return data

    def _models(self, method: str) -> dict[str, object]:
        entries = [{"model": self._model(name), **self._own(method)} for name in self._some_models(method)]
        return {"models": self._chosen(entries, lambda: entries[: max(1, len(entries) - 1)])}

    def _some_models(self, method: str) -> tuple[str, ...]:
        least, most = METHODS[method].min_models, METHODS[method].max_models or len(MODELS)
        base = ("root",) if self._is(0.3) and METHODS[method].takes_base else ()
        count = self._random.randint(least, min(most, len(MODELS)))
        return base + MODELS[: count if self._is(0.95) else 1]

    def _model(self, name: str) -> object:
        return {"choose": [name, "d"]} if self._is(0.05) else name

    def _slices(self, method: str) -> dict[str, object]:
        cut = self._integer(1, LAYERS - 1)
        if isinstance(cut, dict) and "search" in cut:
            cut["name"] = "cut"
        again = {"ref": "cut"} if isinstance(cut, dict) else cut
        pieces = [self._slice(method, [0, cut]), self._slice(method, [again, LAYERS])]
        return {"slices": self._chosen(pieces, lambda: [self._slice(method, [0, LAYERS])])}

    def _slice(self, method: str, layers: list[object]) -> dict[str, object]:
        names = self._some_models(method)
        if METHODS[method].takes_base and "root" not in names:
            names = ("root", *names)
        piece: dict[str, object] = {
            "sources": [{"model": name, "layer_range": layers, **self._own(method)} for name in names]
        }
        if self._is(0.3):
            piece["parameters"] = self._parameters(method, "global")
        return piece

    def _own(self, method: str) -> dict[str, object]:
        parameters = self._parameters(method, "model")
        return {"parameters": parameters} if parameters else {}

    def _parameters(self, method: str, scope: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for parameter in METHODS[method].parameters:
            if parameter.scope == scope and (parameter.default is None or self._is(0.6)):
                found[parameter.name] = self._parameter(parameter.name, parameter.kind)
        if self._is(0.02):
            found[self._random.choice(["density", "weight", "rescale"])] = self._value(0.2, 1.0)
        return found

    def _parameter(self, name: str, kind: str) -> object:
        if kind == "bool":
            return {"choose": [True, False]} if self._is(0.5) else self._is(0.5)
        if kind == "integer":
            return self._integer(1, 5)
        return self._value(*_NUMBERS.get(name, (0.01, 0.5)))

    def _integer(self, low: int, high: int) -> object:
        if self._is(0.5):
            return self._random.randint(low, high)
        return {"search": [low, high], "step": 1} if high > low else low

    def _value(self, low: float, high: float) -> object:
        """A value of a parameter: plain, filtered, a gradient, or chosen among two."""
        if self._is(0.15):
            return [
                {"filter": part, "value": self._number(low, high)}
                for part in self._random.sample(["mlp", "self_attn", "q_proj"], 2)
            ] + [{"value": self._number(low, high)}]
        if self._is(0.1):
            return [self._number(low, high, every=False) for _ in range(self._random.randint(1, 3))]
        if self._is(0.05):
            return {"choose": [[low, high], self._number(low, high), {"search": [low, high]}]}
        return self._number(low, high)

    def _number(self, low: float, high: float, *, every: bool = True) -> object:
        if self._is(0.3):
            return round(self._random.uniform(low, high), 3)
        if self._is(0.1) and self._names:
            return {"ref": self._random.choice(self._names)}
        if self._is(0.1):
            return {"choose": [low, high]}
        hole: dict[str, object] = {"search": [low, high]}
        if self._is(0.2):
            hole["init"] = round(self._random.uniform(low, high), 2)
        if every and self._is(0.4):
            hole["every"] = self._random.choice([1, 2, 4, 9])
            hole["smooth"] = self._is(0.4)
        if self._is(0.1) and low > 0:
            hole["scale"] = "log"
        elif self._is(0.1) and not hole.get("smooth"):
            hole["step"] = 0.1
        if self._is(0.1):
            hole["name"] = f"shared{len(self._names)}"
            self._names.append(str(hole["name"]))
        if self._is(0.01):
            hole[self._random.choice(["search", "step", "init", "evry"])] = self._nonsense()
        return hole

    def _chosen(self, part: object, other: Callable[[], object]) -> object:
        return {"choose": [part, other()]} if self._is(0.15) else part

    def _nonsense(self) -> object:
        nothing: list[object] = [None, -1, "x", [], {}, [1, "x"], {"ref": "nobody"}, {"choose": []}, 1e308]
        return self._random.choice(nothing)
