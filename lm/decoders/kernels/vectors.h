// Vectors of 16 floats, in the vector extension of GCC and Clang, which any instruction set can lower.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

constexpr int64_t LANES = 16;

template <class V, class T>
inline V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
inline void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

inline Floats load_some(const float* from, int64_t count) {
  if (count == LANES) return load<Floats>(from);
  Floats v = {};
  std::memcpy(&v, from, count * sizeof(float));
  return v;
}

inline void store_some(float* to, const Floats& v, int64_t count) {
  if (count == LANES)
    store(to, v);
  else
    std::memcpy(to, &v, count * sizeof(float));
}

inline Floats splat(float x) { return Floats{} + x; }

inline Floats choose(const Ints& mask, const Floats& yes, const Floats& no) {
  return (Floats)(((Ints)yes & mask) | ((Ints)no & ~mask));
}

inline Floats larger(const Floats& a, const Floats& b) { return choose(a > b, a, b); }
inline Floats smaller(const Floats& a, const Floats& b) { return choose(a < b, a, b); }
inline Floats absolute(const Floats& a) { return (Floats)((Ints)a & 0x7fffffff); }

inline float largest(const Floats& v) {
  float best = v[0];
  for (int i = 1; i < LANES; ++i) best = std::max(best, v[i]);
  return best;
}

// 1.5 * 2^23: adding it rounds a float to an integer, which then stands in the low bits.
constexpr float ROUNDING = 12582912.0f;

// exp x = 2^n exp r with |r| <= ln 2 / 2, by the Taylor series of exp r; relative error below 2e-7. NaN stays.
inline Floats exp(const Floats& given) {
  const Floats x = larger(smaller(given, splat(88.0f)), splat(-87.0f));
  const Floats shifted = x * 1.44269504088896341f + ROUNDING;
  const Floats n = shifted - ROUNDING;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = splat(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + c;
  const Ints exponent = ((Ints)shifted - (Ints)splat(ROUNDING)) << 23;
  return choose(given == given, (Floats)((Ints)y + exponent), given);
}

// x Φ(x), with erf by Abramowitz and Stegun, 7.1.26; error of erf below 1.5e-7.
inline Floats gelu(const Floats& x) {
  const Floats z = absolute(x) * 0.70710678118654752f;
  const Floats t = 1.0f / (1.0f + 0.3275911f * z);
  Floats p = splat(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
  const Floats tail = 0.5f * x * p * t * exp(-z * z);  // x Φ(-|x|)
  return choose(x < 0.0f, tail, x - tail);
}

inline Floats silu(const Floats& x) { return x / (1.0f + exp(-x)); }

// ------------------------------------------------------------------------------------------------- sums

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

// One step of a transposition: two blocks of S numbers that lie across its diagonal change places.
template <int S, int... LANE>
inline void swap_blocks(Floats& a, Floats& b, std::integer_sequence<int, LANE...>) {
  const Floats upper = SHUFFLE(a, b, ((LANE & S) ? 16 + LANE - S : LANE)...);
  b = SHUFFLE(a, b, ((LANE & S) ? 16 + LANE : LANE + S)...);
  a = upper;
}

template <int S>
inline void swap_all_blocks(Floats* v) {
  for (int i = 0; i < LANES; ++i)
    if (!(i & S)) swap_blocks<S>(v[i], v[i + S], std::make_integer_sequence<int, LANES>());
}

// Rows become columns, of 16 vectors; what the numbers of 32 bits are does not matter.
inline void transpose(Floats* v) {
  swap_all_blocks<1>(v);
  swap_all_blocks<2>(v);
  swap_all_blocks<4>(v);
  swap_all_blocks<8>(v);
}

// Two vectors whose sums are wanted become one: both folded at the middle, side by side; and so on with parts.
inline Floats fold8(const Floats& a, const Floats& b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
inline Floats fold4(const Floats& a, const Floats& b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
inline Floats fold2(const Floats& a, const Floats& b) {
  return SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
inline Floats fold1(const Floats& a, const Floats& b) {
  return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// The sums of v[0] to v[4 NUM - 1] in the first lanes; NUM is 1 to 4.
template <int NUM>
inline Floats sums(const Floats* v) {
  Floats fours[4];
  for (int i = 0; i < 4; ++i)
    fours[i] = i < NUM ? fold4(fold8(v[4 * i], v[4 * i + 1]), fold8(v[4 * i + 2], v[4 * i + 3])) : fours[i - 1];
  const Floats low = fold2(fours[0], fours[1]);
  return fold1(low, NUM > 2 ? fold2(fours[2], fours[3]) : low);
}

inline float sum(const Floats& v) {
  const Floats four[4] = {v, v, v, v};
  return sums<1>(four)[0];
}

// Asks for memory that is read soon, into the second level of the cache.
inline void prefetch_some(const void* from, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char*)from + i, 0, 2);
}

template <int64_t BYTES>
inline void prefetch(const void* from) {
  prefetch_some(from, BYTES);
}
