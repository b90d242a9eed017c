"""The C++ around what a kernel does to an element: types, and a loop that a compiler turns into vectors.

Three things are added to a plain loop. What comes next of each tensor is asked for, as processors do not look
beyond a page by themselves; results go past the caches, which would read first what they overwrite; and
where all tensors are bfloat16, they are read and written in pairs, two in 32 bits, which takes half the
instructions of widening and narrowing each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FUNCTION = "merge"  # void merge(int32_t count, void* const* tensors)

# What C++ here knows of numbers; `counting.cpp` begins with it, too.
HEAD = """\
#ifndef __clang__  // instructions are put in order before registers are given out: a tenth less time for TIES
#pragma GCC optimize("schedule-insns", "sched-pressure", "no-tree-pre")
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

struct bfloat16 { uint16_t bits; };
typedef uint32_t __attribute__((aligned(2))) pair;  // of bfloat16; may_alias would tie it to every table

static inline float of_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

template <typename T> static inline T value(T x) { return x; }
static inline float value(bfloat16 x) { return of_bits(uint32_t(x.bits) << 16); }

static inline float difference(float x, float factor, float y) {  // x * factor - y, x * factor being exact
#ifdef FP_FAST_FMAF
  return std::fma(x, factor, -y);
#else
  return x * factor - y;
#endif
}

static inline uint32_t rounded_bits(float x) {  // the upper half to nearest, ties to even
  const uint32_t bits = bits_of(x);
  return bits + 0x7FFF + ((bits >> 16) & 1);
}

template <typename T, typename V> static inline T stored(V x) { return T(x); }
template <> inline bfloat16 stored<bfloat16, float>(float x) { return {uint16_t(rounded_bits(x) >> 16)}; }

// The bfloat16 numbers of a pair, and a pair of them; little endian.
static inline float first_of(pair x) { return of_bits(x << 16); }
static inline float second_of(pair x) { return of_bits(x & 0xFFFF0000u); }
static inline pair paired(float first, float second) {
  return rounded_bits(first) >> 16 | (rounded_bits(second) & 0xFFFF0000u);
}

#ifdef __FLT16_MAX__
typedef _Float16 float16;
static inline float value(float16 x) { return float(x); }
#endif
"""
_FUNCTION = """
// No other tensor reaches into the result; of more than a few, compilers do not find out by themselves.
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i line;
#define WRITE _mm512_stream_si512
#elif defined(__AVX__)
#include <immintrin.h>
typedef __m256i line;
#define WRITE _mm256_stream_si256
#elif defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i line;
#define WRITE _mm_stream_si128
#endif
static inline void write_past_caches(void* to, const void* from) {{
#ifdef WRITE
  if (reinterpret_cast<uintptr_t>(to) % sizeof(line) == 0) {{
    for (unsigned k = 0; k < {block} * sizeof({kind}) / sizeof(line); ++k)
      WRITE(static_cast<line*>(to) + k, static_cast<const line*>(from)[k]);
    return;
  }}
#endif
  std::memcpy(to, from, {block} * sizeof({kind}));
}}

extern "C" void {function}(int32_t count, void* const* tensors) {{
{before}
  const auto merged = [=](int32_t i, {parameters}) __attribute__((always_inline)) {{
{each}
  }};
{pointers}
  const int32_t blocks = count - count % {block};
  for (int32_t from = 0; from < blocks; from += {block}) {{
    alignas({line_bytes}) {kind} block[{block}];
{ahead}
    INDEPENDENT
{loop}
    write_past_caches({out} + from, block);
  }}
#ifdef WRITE
  _mm_sfence();  // the next reader may be another thread
#endif
  INDEPENDENT
  for (int32_t i = blocks; i < count; ++i) {out}[i] = stored<{kind}>(merged(i, {values}));
}}
"""
_BLOCK_ELEMENTS, _AHEAD_ELEMENTS = 256, 512  # 128 to 512, and 256 to 1024, are as good
_LINE_BYTES = 64
_ONE = """\
    for (int32_t i = from; i < from + {block}; ++i) block[i - from] = stored<{kind}>(merged(i, {values}));"""
_TWO = """\
    for (int32_t j = from / 2; j < (from + {block}) / 2; ++j)
      reinterpret_cast<pair*>(block)[j - from / 2] =
          paired(merged(2 * j, {first}), merged(2 * j + 1, {second}));"""
_POINTER = "  const pair* __restrict {name}_2 = reinterpret_cast<const pair*>({name});"
_AHEAD = """\
    for (int32_t k = 0; k < {block}; k += {line})
      __builtin_prefetch(reinterpret_cast<const char*>({name} + from + {distance} + k), 0);"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A pointer to a tensor of the common length: its name, the C++ type of its items and of their values."""

    name: str
    stored: str
    value: str
    item_bytes: int


def function_source(
    before: Sequence[str], each: Sequence[str], out: Table, inputs: Sequence[Table], *, in_pairs: bool
) -> str:
    """The source of `FUNCTION`.

    before: what does not depend on the element, pointers first. each: what gives the value of element ``i``
    from those of the inputs, named ``x_`` and the name of the input, and returns it.
    """

    def given(form: str) -> str:
        return ", ".join(form.format(name=table.name) for table in inputs)

    values = given("value({name}[i])")
    one = _ONE.format(block=_BLOCK_ELEMENTS, kind=out.stored, values=values)
    two = _TWO.format(
        block=_BLOCK_ELEMENTS, first=given("first_of({name}_2[j])"), second=given("second_of({name}_2[j])")
    )
    pointers = [_POINTER.format(name=table.name) for table in inputs]
    return _FUNCTION.format(
        function=FUNCTION,
        before="\n".join(before),
        parameters=", ".join(f"{table.value} x_{table.name}" for table in inputs),
        each="\n".join(each),
        pointers="\n".join(pointers) if in_pairs else "",
        block=_BLOCK_ELEMENTS,
        line_bytes=_LINE_BYTES,
        kind=out.stored,
        ahead="\n".join(map(_ahead, inputs)),
        loop=two if in_pairs else one,
        out=out.name,
        values=values,
    )


def _ahead(table: Table) -> str:
    line = _LINE_BYTES // table.item_bytes
    return _AHEAD.format(name=table.name, block=_BLOCK_ELEMENTS, distance=_AHEAD_ELEMENTS, line=line)
