// Counts of the magnitudes of x - y, or of x alone where y is null, as a merge dtype forms them.
// A bin is the upper half of a magnitude as fp32: 2^15 of them, and one magnitude each in bfloat16.
// What it knows of numbers is kernel_loop.HEAD, which comes before it.
#include <type_traits>

namespace {

// x as T holds it.
template <typename T> float held(float x) { return value(stored<T>(x)); }

// T, the merge dtype, holds x and y before and after the subtraction.
template <typename S, typename T, bool two> struct Magnitudes {
  const S* x;
  const S* y;

  static float read(S z) { return std::is_same<S, T>::value ? value(z) : held<T>(value(z)); }
  uint16_t bin(int64_t i) const {
    const float z = two ? held<T>(read(x[i]) - read(y[i])) : read(x[i]);
    return (bits_of(z) >> 16) & 0x7FFF;
  }
};

constexpr int64_t STEP = 64;

struct Count {
  uint32_t* counts;

  template <typename M> int64_t operator()(const M& z, int64_t count) const {
    uint16_t bins[STEP];
    int64_t i = 0;
    for (; i + STEP <= count; i += STEP) {
      for (int64_t k = 0; k < STEP; ++k) bins[k] = z.bin(i + k);
      const uint16_t first = bins[0];
      uint16_t other = 0;
      for (int64_t k = 0; k < STEP; ++k) other |= bins[k] ^ first;
      if (!other) {  // as where a layer was frozen: adding to one count again and again is slow
        counts[first] += STEP;
        continue;
      }
      for (int64_t k = 0; k < STEP; ++k) ++counts[bins[k]];
    }
    for (; i < count; ++i) ++counts[z.bin(i)];
    return count;
  }
};

struct Find {
  uint16_t bin;
  int64_t wanted;

  template <typename M> int64_t operator()(const M& z, int64_t count) const {
    int64_t left = wanted, i = 0;
    for (; i + STEP <= count; i += STEP) {
      uint16_t here = 0;
      for (int64_t k = 0; k < STEP; ++k) here += z.bin(i + k) == bin;
      if (here >= left) break;
      left -= here;
    }
    for (; i < count; ++i)
      if (z.bin(i) == bin && --left == 0) return i;
    return count;
  }
};

struct Largest {
  template <typename M> int64_t operator()(const M& z, int64_t count) const {
    uint16_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t bin = z.bin(i);
      largest = bin > largest ? bin : largest;
    }
    return largest;
  }
};

template <typename S, typename T, typename F>
int64_t between(const F& use, const void* x, const void* y, int64_t count) {
  const S* const from = static_cast<const S*>(x);
  if (!y) return use(Magnitudes<S, T, false>{from, nullptr}, count);
  return use(Magnitudes<S, T, true>{from, static_cast<const S*>(y)}, count);
}

template <typename S, typename F>
int64_t from_stored(const F& use, int merge, const void* x, const void* y, int64_t count) {
  switch (merge) {
    case 0: return between<S, bfloat16>(use, x, y, count);
    case 1: return between<S, float>(use, x, y, count);
#ifdef __FLT16_MAX__
    case 2: return between<S, float16>(use, x, y, count);
#endif
  }
  return -1;
}

// Dtypes: 0 bfloat16, 1 float32, 2 float16. Negative where one is not known.
template <typename F>
int64_t run(const F& use, int stored, int merge, const void* x, const void* y, int64_t count) {
  switch (stored) {
    case 0: return from_stored<bfloat16>(use, merge, x, y, count);
    case 1: return from_stored<float>(use, merge, x, y, count);
#ifdef __FLT16_MAX__
    case 2: return from_stored<float16>(use, merge, x, y, count);
#endif
  }
  return -1;
}

}  // namespace

extern "C" {

// Adds to counts[2^15].
int64_t count_bins(int stored, int merge, const void* x, const void* y, int64_t count, uint32_t* counts) {
  return run(Count{counts}, stored, merge, x, y, count);
}

// The place of the wanted-th element (from 1) of a bin.
int64_t find_in_bin(int stored, int merge, const void* x, const void* y, int64_t count, int bin, int64_t wanted) {
  return run(Find{uint16_t(bin), wanted}, stored, merge, x, y, count);
}

// The largest bin, 0 of nothing.
int64_t largest_bin(int stored, int merge, const void* x, const void* y, int64_t count) {
  return run(Largest{}, stored, merge, x, y, count);
}

}
