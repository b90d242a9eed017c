"""C++ of a traced kernel: what it does to an element, in the loop of `kernel_loop`.

That is arithmetic, comparisons and choices. Written down in scalar C++ as it was traced, a compiler turns it
into some 100 instructions for 16 elements; nothing is left to be tuned by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from merge_engine.kernel_loop import HEAD, Table, function_source

_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
# Operations of torch on the values of their arguments; NaN and zeros of either sign come out as torch's do.
_EXPRESSIONS: Mapping[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "reciprocal": "1.0f / {0}",
    "square": "{0} * {0}",
    "neg": "-{0}",
    "abs": "std::fabs({0})",
    "ceil": "std::ceil({0})",
    "sign": "float({0} > 0.0f) - float({0} < 0.0f)",
    "relu": "{0} < 0.0f ? 0.0f : {0}",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "le": "{0} <= {1}",
    "lt": "{0} < {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "where": "{0} ? {1} : {2}",
    "bitwise_and": "{0} & {1}",
    "bitwise_xor": "{0} ^ {1}",
    "bitwise_not": "!{0}",
    "__and__": "{0} & {1}",
    "__xor__": "{0} ^ {1}",
    "__rshift__": "{0} >> {1}",
    "zeros_like": "0.0f",
    "ones_like": "1.0f",
}


def kernel_source(graph: Graph) -> str:
    """The source of `kernel_loop.FUNCTION`, which does what ``graph`` does.

    ``graph``: of tensors alone, each a scalar, a table of fixed size, or of the common length N; its last
    operation copies a result to the tensor of length N that it was given second (`compile_kernel.Program`).
    Raises `NotImplementedError` for an operation that is not known here.
    """
    writer = _Writer()
    for node in graph.nodes:
        writer.add(node)
    out, *inputs = writer.tables
    in_pairs = all(table.stored == "bfloat16" for table in writer.tables)
    return HEAD + function_source(writer.before, writer.each, out, inputs, in_pairs=in_pairs)


class _Writer:
    """Lines of C++: those before the loop, and those for each element ``i``."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.each: list[str] = []
        self.tables: list[Table] = []  # of the common length: the result, then the inputs
        self._values: dict[Node, str] = {}
        self._pointers: dict[Node, str] = {}  # to the tensors that were given

    def add(self, node: Node) -> None:
        if node.op == "placeholder":
            self._take(node)
        elif node.op == "call_function" and _is_tensor(node):
            name = _operation(node)
            if name == "copy_":
                self._return(node)
                return
            special = _SPECIAL.get(name.removesuffix("_") if not name.endswith("__") else name)
            value = special(self, node) if special else self._plain(node, name)
            self._name(node, value)
            if name.endswith("_") and not name.endswith("__"):  # in place: its argument has changed
                self._values[node.args[0]] = self._values[node]  # type: ignore[index]

    def _take(self, node: Node) -> None:
        tensor = node.meta["val"]
        pointer, number = f"t{len(self._pointers)}", len(self._pointers)
        stored = _TYPES[tensor.dtype]
        kind = stored if number == 1 else f"const {stored}"
        self.before.append(f"  {kind}* __restrict {pointer} = static_cast<{kind}*>(tensors[{number}]);")
        self._pointers[node] = pointer
        if number == 1 or _is_long(node):
            value, size = _kind(tensor.dtype), tensor.dtype.itemsize
            self.tables.append(Table(name=pointer, stored=stored, value=value, item_bytes=size))
        if number != 1 and tensor.dim() == 0:
            self._name(node, f"value({pointer}[0])")
        elif number != 1 and _is_long(node):
            self._name(node, f"x_{pointer}")

    def _plain(self, node: Node, name: str) -> str:
        plain = name if name in _EXPRESSIONS else name.removesuffix("_")
        if plain not in _EXPRESSIONS or node.kwargs.get("alpha", 1) != 1:
            raise NotImplementedError(f"{node.target} has no C++ yet: merge_engine/kernel_source.py")
        if plain == "sub" and (scaled := _scaled_exactly(node.args[0])):
            x, factor = self._values[scaled[0]], _literal(scaled[1], torch.float32)
            return f"difference({x}, {factor}, {self._values[node.args[1]]})"  # type: ignore[index]
        dtype = _computed_in(node)
        arguments = [self.value(argument, dtype) for argument in node.args]
        return _held(_EXPRESSIONS[plain].format(*arguments), node.meta["val"].dtype)

    def _name(self, node: Node, value: str) -> None:
        """Give a value its name, in or before the loop."""
        dtype = node.meta["val"].dtype
        kind = _kind(dtype)
        name = f"v{len(self._values)}"
        lines, indent = (self.each, "    ") if _is_long(node) else (self.before, "  ")
        lines.append(f"{indent}const {kind} {name} = {value};")
        self._values[node] = name

    def value(self, argument: Any, dtype: torch.dtype) -> str:
        """An argument of an operation that is computed in ``dtype``."""
        if not isinstance(argument, Node):
            return _literal(argument, dtype)
        own, name = argument.meta["val"].dtype, self._values[argument]
        converted = own.is_floating_point and _kind(own) != _kind(dtype)
        return f"{_kind(dtype)}({name})" if converted else name

    def select(self, node: Node) -> str:
        table, _, index = node.args
        return f"value({self._pointers[table]}[{index}])"  # type: ignore[index]

    def index_select(self, node: Node) -> str:
        table, _, indices = node.args
        return f"value({self._pointers[table]}[{self._values[indices]}])"  # type: ignore[index]

    def arange(self, node: Node) -> str:
        if len(node.args) != 1:
            raise NotImplementedError(f"{node.target} has no C++ yet, but from 0 on")
        return "i"

    def to(self, node: Node) -> str:
        dtype = node.meta["val"].dtype
        value = self._values[node.args[0]]  # type: ignore[index]
        return _held(f"{_kind(dtype)}({value})", dtype)

    def clamp(self, node: Node) -> str:
        value = self._values[node.args[0]]  # type: ignore[index]
        dtype = node.meta["val"].dtype
        limits: dict[str, Any] = {**dict(zip(("min", "max"), node.args[1:], strict=False)), **node.kwargs}
        if limits.get("min") is not None:
            low = _literal(limits["min"], dtype)
            value = f"({value} < {low} ? {low} : {value})"
        if limits.get("max") is None:
            return value
        return "{1} < {0} ? {1} : {0}".format(value, _literal(limits["max"], dtype))

    def _return(self, node: Node) -> None:
        """The end: what is copied to the result."""
        value = f"{_kind(node.meta['val'].dtype)}({self._values[node.args[1]]})"  # type: ignore[index]
        self.each.append(f"    return {value};")


_SPECIAL: Mapping[str, Callable[[_Writer, Node], str]] = {
    "select": _Writer.select,
    "index_select": _Writer.index_select,
    "arange": _Writer.arange,
    "to": _Writer.to,
    "clamp": _Writer.clamp,
}


def _operation(node: Node) -> str:
    name: str = node.target._schema.name  # type: ignore[union-attr]
    return name.removeprefix("aten::")


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_long(node: Node) -> bool:
    """Whether a tensor has the common length N; tables and scalars have numbers for sizes."""
    return any(not isinstance(size, int) for size in node.meta["val"].shape)


def _computed_in(node: Node) -> torch.dtype:
    """The dtype to which an operation's arguments are converted."""
    result: torch.dtype = node.meta["val"].dtype
    if result != torch.bool:
        return result
    numbers: list[Any] = [
        argument.meta["val"] if isinstance(argument, Node) else argument for argument in node.args
    ]
    return result if len(numbers) == 1 else torch.result_type(*numbers)


def _scaled_exactly(argument: Any) -> tuple[Node, float] | None:
    """x and a power of two, where ``argument`` is their product in fp32."""
    if not (isinstance(argument, Node) and argument.op == "call_function" and _is_tensor(argument)):
        return None
    if _operation(argument) != "mul" or argument.meta["val"].dtype != torch.float32:
        return None
    x, factor = argument.args
    is_power = isinstance(factor, float) and math.frexp(factor)[0] == 0.5
    return (x, factor) if is_power and isinstance(x, Node) else None  # type: ignore[return-value]


def _kind(dtype: torch.dtype) -> str:
    """In what a value is kept: narrow floating point numbers as float."""
    return "float" if dtype.is_floating_point and dtype.itemsize < 4 else _TYPES[dtype]


def _held(value: str, dtype: torch.dtype) -> str:
    """What a dtype holds of a value."""
    if dtype in (torch.bfloat16, torch.float16):
        return f"value(stored<{_TYPES[dtype]}>({value}))"
    return value


def _literal(number: float, dtype: torch.dtype) -> str:
    """The nearest number of the kind that holds a dtype, to the bit."""
    if not dtype.is_floating_point:
        return str(int(number))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    nearest = float(torch.tensor(number, dtype=kind))
    if math.isinf(nearest):
        return "INFINITY" if nearest > 0 else "-INFINITY"
    return nearest.hex() + ("" if kind == torch.float64 else "f")
