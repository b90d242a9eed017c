"""Scaling the hidden state of a pre-norm residual network without touching anything but its weights.

Each block of such a network adds to the hidden state what it makes of the *normalised* hidden state:
``h <- h + f(norm(h))``. Let h be scaled by w on entering a layer, and c be the product of all scales so far.
With ``h = c g`` the network computes ``g <- g + f(norm(c g)) / c``, and ``norm(c g) = sign(c) norm(g)``: an
RMS or layer norm does not see the size of its input. So the same function comes from weights alone:

- every output projection that adds to the hidden state, weight and bias, divided by c;
- every norm weight (not its bias) that reads the hidden state times the sign of c;
- at the end only the sign counts: the last norm's weight times the sign of the last c.

The one approximation: a norm adds eps to the mean square, so that its outputs differ by the relative amount
``|1 - 1/c^2| eps / (2 mean(g^2))``.

It does not hold where a block's output is normalised again before it is added (Gemma 2 and 3, OLMo 2, GLM 4),
or where the norm stands on the residual path (BERT, post-norm). The table below holds what is proven by test,
architecture by architecture (tests/merge_engine/test_residual.py); everything else is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merge_engine.errors import Problem
from merge_engine.spec.reading import did_you_mean
from merge_engine.spec.values import Filtered


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNames:
    """Parts of tensor names, as a recipe's filters take them.

    ``writers``: the projections that add to the hidden state. ``norms``: weights of the norms that read it
    within a layer; ``final_norm``: of the one after the layers. Both are empty where no factor on a weight
    turns the sign of a norm (it has no weight, or stores it less one): there only positive scales can be
    absorbed.
    """

    writers: tuple[str, ...]
    norms: tuple[str, ...] = ()
    final_norm: str = ""

    @property
    def takes_negative(self) -> bool:
        return bool(self.norms)


_LLAMA = ResidualNames(
    writers=("self_attn.o_proj", "mlp.down_proj"),
    norms=("input_layernorm.weight", "post_attention_layernorm.weight"),
    final_norm="model.norm.weight",
)
_UNSIGNED = ResidualNames(writers=_LLAMA.writers)

# By the config's model_type.
RESIDUAL: Mapping[str, ResidualNames] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,
    "granite": _LLAMA,  # its residual_multiplier is one more constant factor of each block
    "stablelm": _LLAMA,
    "gemma": _UNSIGNED,  # norm weights are stored less one
    "olmo": _UNSIGNED,  # norms have no weights
    "cohere": ResidualNames(  # attention and MLP side by side
        writers=_LLAMA.writers, norms=("input_layernorm.weight",), final_norm="model.norm.weight"
    ),
    "phi": ResidualNames(
        writers=("self_attn.dense", "mlp.fc2"),
        norms=("input_layernorm.weight",),
        final_norm="model.final_layernorm.weight",
    ),
    "starcoder2": ResidualNames(
        writers=("self_attn.o_proj", "mlp.c_proj"), norms=_LLAMA.norms, final_norm="model.norm.weight"
    ),
    "gpt_neox": ResidualNames(
        writers=("attention.dense", "mlp.dense_4h_to_h"),
        norms=_LLAMA.norms,
        final_norm="gpt_neox.final_layer_norm.weight",
    ),
    "gpt2": ResidualNames(
        writers=("attn.c_proj", "mlp.c_proj"), norms=("ln_1.weight", "ln_2.weight"), final_norm="ln_f.weight"
    ),
}


def residual_problems(model_type: str, layer_tensors: Sequence[str], *, negative: bool) -> list[Problem]:
    """Why scales cannot be absorbed into the weights of such a model; empty where they can.

    Args:
        model_type: the config's name of the architecture.
        layer_tensors: names of a layer's tensors after the layer's number.
        negative: whether scales may be negative.
    """
    names = RESIDUAL.get(model_type)
    remedy = "set scales: none, which works for any stack of layers"
    if names is None:
        what = f"that hidden states of {model_type!r} models can be scaled through weights is not proven"
        return [Problem("layout.scales", what, f"{remedy}; {did_you_mean(model_type, RESIDUAL)}")]
    absent = [part for part in (*names.writers, *names.norms) if not any(part in n for n in layer_tensors)]
    if absent:
        what = f"the layers of this {model_type!r} model have no tensor named {absent[0]!r}"
        return [Problem("layout.scales", what, remedy)]
    if negative and not names.takes_negative:
        what = f"the norms of {model_type!r} models cannot take a negative scale"
        return [Problem("layout.scale_bounds", what, "let them start above 0")]
    return []


def scale_values(names: ResidualNames, factor: float, *, last: bool) -> tuple[Filtered, ...]:
    """The ``scale`` parameter of passthrough for layers of one factor; empty where nothing changes.

    Args:
        factor: what their output projections are multiplied by, one over the hidden state's scale; not 0.
        last: whether these are the last layers, whose factor's sign the final norm takes.
    """
    if factor == 1.0:
        return ()
    values = [Filtered(filter=part, value=factor) for part in names.writers]
    if factor < 0:
        final = (names.final_norm,) if last else ()
        values += [Filtered(filter=part, value=-1.0) for part in (*names.norms, *final)]
    return tuple(values)


def factor_of(scale: object) -> float | None:
    """The factor in a ``scale`` parameter that `scale_values` wrote (None: none); None for any other."""
    if scale is None:
        return 1.0
    if not isinstance(scale, tuple) or not scale or not isinstance(scale[0], Filtered):
        return None
    value = scale[0].value
    usable = isinstance(value, float) and math.isfinite(value) and value != 0.0
    return value if usable else None  # type: ignore[return-value]
