// How weights, keys and values are stored: fp32, bf16, or int8 with a scale for each row.
//
// Each storage says what is stored, what the other factor of a product is made of (`Active`), and how products
// are added to a sum: 32 of a row that lies in one piece (keys and values), or those of 16 outputs, a lane
// each, with PAIR inputs that are the same for all of them (weights). The other factor of int8 is made of
// 16-bit integers, with a scale of its own: these products are exact, so that only what is stored has lost
// precision.

#pragma once

#include <cmath>

#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

constexpr int64_t CHUNK = 32;  // stored rows are multiples of this many elements, the rest zero
constexpr int64_t SPAN = 64;  // inputs of a column's sum, after which it is taken over as floats

struct Fp32 {
  typedef float Stored;
  typedef float Active;
  typedef Floats Sum;
  struct Weights {
    Floats low, high;
  };
  typedef Weights Factors;
  static constexpr bool integers = false;

  static Floats floats(const float* w) { return load<Floats>(w); }
  static Weights weights(const float* w) { return {floats(w), floats(w + LANES)}; }
  static Factors factors(const float* x) { return weights(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
    sum += w.low * x.low;
    sum += w.high * x.high;
  }
  static Floats to_floats(const Sum& sum) { return sum; }

  static constexpr int64_t PAIR = 1;
  typedef Floats Column;
  typedef float Factor;
  static Column column(const float* w) { return floats(w); }
  static Factor factor(const float* x) { return *x; }
  static void add_column(Sum& sum, const Column& w, Factor x) { sum += w * x; }

  static void write(const float* x, int64_t length, float* out, float*) {
    std::memcpy(out, x, length * sizeof(float));
  }
};

struct Bf16 {
  typedef uint16_t Stored;
  typedef float Active;
  typedef Floats Sum;
  typedef Fp32::Weights Weights;
  typedef Fp32::Factors Factors;
  static constexpr bool integers = false;

  static Floats floats(const uint16_t* w) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)w)), 16);
#elif defined(__AVX2__)
    const __m256i parts[2] = {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)w)),
                              _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(w + 8)))};
    return (Floats)(load<Words>(parts) << 16);
#else
    return (Floats)(__builtin_convertvector(load<Halves>(w), Words) << 16);
#endif
  }
  static Weights weights(const uint16_t* w) { return {floats(w), floats(w + LANES)}; }
  static Factors factors(const float* x) { return Fp32::factors(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) { Fp32::add(sum, w, x); }
  static Floats to_floats(const Sum& sum) { return sum; }

  static constexpr int64_t PAIR = 1;
  typedef Fp32::Column Column;
  typedef Fp32::Factor Factor;
  static Column column(const uint16_t* w) { return floats(w); }
  static Factor factor(const float* x) { return Fp32::factor(x); }
  static void add_column(Sum& sum, const Column& w, Factor x) { Fp32::add_column(sum, w, x); }

  // To the nearest, ties to even.
  static void write(const float* x, int64_t length, uint16_t* out, float*) {
    for (int64_t i = 0; i < length; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      out[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  }
};

struct Int8 {
  typedef int8_t Stored;
  typedef int16_t Active;
  typedef Ints Sum;
  static constexpr bool integers = true;
  static constexpr int64_t PAIR = 2;
  typedef int32_t Factor;  // both 16-bit integers
  static Factor factor(const int16_t* x) {
    Factor pair;
    std::memcpy(&pair, x, sizeof pair);
    return pair;
  }

#if defined(__AVX512BW__)
  typedef __m512i Weights;
  typedef __m512i Factors;
  static Floats floats(const int8_t* w) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)w)));
  }
  static Weights weights(const int8_t* w) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w));
  }
  static Factors factors(const int16_t* x) { return _mm512_loadu_si512(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
#if defined(__AVX512VNNI__)
    sum = (Ints)_mm512_dpwssd_epi32((__m512i)sum, w, x);
#else
    sum += (Ints)_mm512_madd_epi16(w, x);
#endif
  }
  typedef __m512i Column;
  static Column column(const int8_t* w) { return weights(w); }
  static void add_column(Sum& sum, const Column& w, Factor x) { add(sum, w, _mm512_set1_epi32(x)); }
#elif defined(__AVX2__)
  struct Weights {
    __m256i low, high;
  };
  typedef Weights Factors;
  static Floats floats(const int8_t* w) {
    const __m256i parts[2] = {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)w)),
                              _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(w + 8)))};
    return __builtin_convertvector(load<Ints>(parts), Floats);
  }
  static Weights weights(const int8_t* w) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16)))};
  }
  static Factors factors(const int16_t* x) {
    return {_mm256_loadu_si256((const __m256i*)x), _mm256_loadu_si256((const __m256i*)(x + 16))};
  }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
    __m256i parts[2];
    std::memcpy(parts, &sum, sizeof sum);
    parts[0] = _mm256_add_epi32(parts[0], _mm256_madd_epi16(w.low, x.low));
    parts[1] = _mm256_add_epi32(parts[1], _mm256_madd_epi16(w.high, x.high));
    std::memcpy(&sum, parts, sizeof sum);
  }
  typedef Weights Column;
  static Column column(const int8_t* w) { return weights(w); }
  static void add_column(Sum& sum, const Column& w, Factor x) {
    const __m256i both = _mm256_set1_epi32(x);
    add(sum, w, {both, both});
  }
#else
  struct Weights {
    Ints low, high;
  };
  typedef Weights Factors;
  static Ints ints(const int8_t* w) { return __builtin_convertvector(load<Bytes>(w), Ints); }
  static Ints ints(const int16_t* x) { return __builtin_convertvector(load<Shorts>(x), Ints); }
  static Floats floats(const int8_t* w) { return __builtin_convertvector(ints(w), Floats); }
  static Weights weights(const int8_t* w) { return {ints(w), ints(w + LANES)}; }
  static Factors factors(const int16_t* x) { return {ints(x), ints(x + LANES)}; }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
    sum += w.low * x.low;
    sum += w.high * x.high;
  }
  struct Column {
    Ints first, second;
  };
  static Column column(const int8_t* w) {
    Column found;
    for (int64_t lane = 0; lane < LANES; ++lane) {
      found.first[lane] = w[2 * lane];
      found.second[lane] = w[2 * lane + 1];
    }
    return found;
  }
  static void add_column(Sum& sum, const Column& w, Factor x) {
    int16_t pair[2];
    std::memcpy(pair, &x, sizeof pair);
    sum += w.first * (int32_t)pair[0];
    sum += w.second * (int32_t)pair[1];
  }
#endif
  // Lanes may each be near the largest integer, so they are summed as floats.
  static Floats to_floats(const Sum& sum) { return __builtin_convertvector(sum, Floats); }

  static void write(const float* x, int64_t length, int8_t* out, float* scale) {
    float top = 0;
    for (int64_t i = 0; i < length; ++i) top = std::max(top, std::fabs(x[i]));
    const float inverse = top > 0 ? 127 / top : 0;
    for (int64_t i = 0; i < length; ++i) out[i] = (int8_t)std::nearbyint(x[i] * inverse);
    *scale = top / 127;
  }
};

// `x` [length] as the other factor of int8; returns its scale. Values are so small that a lane, which sums
// `per_lane` products with int8, cannot overflow.
inline float to_shorts(const float* x, int64_t length, int64_t per_lane, int16_t* out) {
  const float limit = (float)std::min<int64_t>(32767, 2147483647 / (127 * per_lane));
  Floats best = {};
  for (int64_t i = 0; i < length; i += LANES) best = larger(best, absolute(load<Floats>(x + i)));
  const float top = largest(best);
  const float inverse = top > 0 ? limit / top : 0;
  for (int64_t i = 0; i < length; i += LANES) {
    const Ints rounded = (Ints)(load<Floats>(x + i) * inverse + ROUNDING) - (Ints)splat(ROUNDING);
    for (int64_t j = 0; j < LANES; ++j) out[i + j] = (int16_t)rounded[j];
  }
  return top / limit;
}
