// One decoding step of a Transformer as a list of operations, all of it run in one parallel region.
//
// Weights are plain row-major matrices [O, stride] (fp32, bf16, or int8 with a scale a row), read once a step
// in the order in which they lie in memory: with few rows of activations nothing else costs time. Threads own
// ranges of outputs, so an operation needs one barrier. Activations are fp32 between operations; where weights
// or keys are int8, the other factor becomes 16-bit integers with one scale a row, so that products are exact
// and only the weights lose precision.
//
// Vectors are 16 floats of GCC's and Clang's vector extension, which any instruction set can lower; only the
// product of integers has versions of its own.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(32)));

constexpr int64_t LANES = 16;
constexpr int64_t CHUNK = 32;  // every stored row is a multiple of this many elements, the rest zero
constexpr int BLOCK = 4;       // weight rows that go through the activations together
#if defined(__AVX512F__)
constexpr int GROUP = 4;  // rows of activations that share a pass over a block
#else
constexpr int GROUP = 1;
#endif

enum Kind : int32_t { LINEAR = 0, ATTEND = 1 };
enum Storage : int32_t { FP32 = 0, BF16 = 1, INT8 = 2 };
enum Norm : int32_t { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };
enum Activation : int32_t { NO_ACTIVATION = 0, GELU = 1, SILU_AND_MUL = 2 };

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

inline Floats splat(float x) { return Floats{} + x; }

inline float sum(const Floats& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
#endif
}

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

// exp x = 2^n exp r with |r| <= ln 2 / 2, by the Taylor series of exp r; relative error below 2e-7.
inline Floats exp(Floats x) {
  x = larger(smaller(x, splat(88.0f)), splat(-87.0f));
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = splat(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + c;
  return (Floats)((Ints)y + (((Ints)shifted - (Ints)magic) << 23));
}

// erf by Abramowitz and Stegun, 7.1.26; absolute error below 1.5e-7.
inline Floats gelu(const Floats& x) {
  const Floats z = absolute(x) * 0.70710678118654752f;
  const Floats t = 1.0f / (1.0f + 0.3275911f * z);
  Floats p = splat(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
  const Floats tail = p * t * exp(-z * z);  // 1 - erf z
  return choose(x < 0.0f, 0.5f * x * tail, x - 0.5f * x * tail);
}

inline Floats silu(const Floats& x) { return x / (1.0f + exp(-x)); }

// ------------------------------------------------------------------------------------------- dot products

// The three storages: what a row is made of, what the other factor is made of, and 32 products of them.
struct Fp32 {
  typedef float Stored;
  typedef float Active;
  typedef Floats Sum;
  struct Weights {
    Floats low, high;
  };
  typedef Weights Factors;
  static Weights weights(const float* w) { return {load<Floats>(w), load<Floats>(w + LANES)}; }
  static Factors factors(const float* x) { return weights(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
    sum += w.low * x.low;
    sum += w.high * x.high;
  }
  static float total(const Sum& sum) { return ::sum(sum); }
  static float single(float w) { return w; }
  static Floats floats(const float* w) { return load<Floats>(w); }
};

struct Bf16 {
  typedef uint16_t Stored;
  typedef float Active;
  typedef Floats Sum;
  typedef Fp32::Weights Weights;
  typedef Fp32::Factors Factors;
  static Floats floats(const uint16_t* w) {
    return (Floats)(__builtin_convertvector(load<Halves>(w), Words) << 16);
  }
  static Weights weights(const uint16_t* w) { return {floats(w), floats(w + LANES)}; }
  static Factors factors(const float* x) { return Fp32::factors(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) { Fp32::add(sum, w, x); }
  static float total(const Sum& sum) { return ::sum(sum); }
};

struct Int8 {
  typedef int8_t Stored;
  typedef int16_t Active;
  static Floats floats(const int8_t* w) {
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(w), Ints), Floats);
  }
#if defined(__AVX512BW__)
  typedef Ints Sum;
  typedef __m512i Weights;
  typedef __m512i Factors;
  static Weights weights(const int8_t* w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w)); }
  static Factors factors(const int16_t* x) { return _mm512_loadu_si512(x); }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
#if defined(__AVX512VNNI__)
    sum = (Ints)_mm512_dpwssd_epi32((__m512i)sum, w, x);
#else
    sum += (Ints)_mm512_madd_epi16(w, x);
#endif
  }
#elif defined(__AVX2__)
  typedef Ints Sum;
  struct Weights {
    __m256i low, high;
  };
  typedef Weights Factors;
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
#else
  typedef Ints Sum;
  struct Weights {
    Ints low, high;
  };
  typedef Weights Factors;
  static Weights weights(const int8_t* w) {
    return {__builtin_convertvector(load<Bytes>(w), Ints), __builtin_convertvector(load<Bytes>(w + LANES), Ints)};
  }
  static Factors factors(const int16_t* x) {
    return {__builtin_convertvector(load<Shorts>(x), Ints), __builtin_convertvector(load<Shorts>(x + LANES), Ints)};
  }
  static void add(Sum& sum, const Weights& w, const Factors& x) {
    sum += w.low * x.low;
    sum += w.high * x.high;
  }
#endif
  // Lanes may each be near the largest integer: they are summed as floats.
  static float total(const Sum& sum) { return ::sum(__builtin_convertvector(sum, Floats)); }
};

// Products of BLOCK stored rows with ROWS rows of activations.
template <class S, int ROWS>
inline void dot_block(const typename S::Stored* const* rows, int64_t ahead, const typename S::Active* x,
                      int64_t x_stride, int64_t length, float (*products)[BLOCK]) {
  typename S::Sum sums[ROWS][BLOCK] = {};
  for (int64_t i = 0; i < length; i += CHUNK) {
    typename S::Factors factors[ROWS];
    for (int r = 0; r < ROWS; ++r) factors[r] = S::factors(x + r * x_stride + i);
    for (int j = 0; j < BLOCK; ++j) {
      // Half or more of a cache line: each line is asked for once or twice, a block before it is needed.
      if (ahead) __builtin_prefetch(rows[j] + i + ahead, 0, 2);
      const typename S::Weights w = S::weights(rows[j] + i);
      for (int r = 0; r < ROWS; ++r) S::add(sums[r][j], w, factors[r]);
    }
    if (sizeof(typename S::Stored) == 4 && ahead)
      for (int j = 0; j < BLOCK; ++j) __builtin_prefetch(rows[j] + i + LANES + ahead, 0, 2);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < BLOCK; ++j) products[r][j] = S::total(sums[r][j]);
}

template <class S>
inline void dot_rows(const typename S::Stored* const* rows, int64_t ahead, const typename S::Active* x,
                     int64_t x_stride, int64_t length, int num_rows, float (*products)[BLOCK]) {
  int r = 0;
  for (; r + GROUP <= num_rows; r += GROUP)
    dot_block<S, GROUP>(rows, r ? 0 : ahead, x + r * x_stride, x_stride, length, products + r);
#if defined(__AVX512F__)
  const typename S::Active* rest = x + r * x_stride;
  const int64_t first = r ? 0 : ahead;
  switch (num_rows - r) {
    case 1: dot_block<S, 1>(rows, first, rest, x_stride, length, products + r); break;
    case 2: dot_block<S, 2>(rows, first, rest, x_stride, length, products + r); break;
    case 3: dot_block<S, 3>(rows, first, rest, x_stride, length, products + r); break;
  }
#endif
}

// The largest 16-bit value for which a lane's sum of products of `length` / 16 int8 values stays an int32.
inline float short_limit(int64_t length) {
  const int64_t per_lane = std::max<int64_t>(1, (length + LANES - 1) / LANES);
  return (float)std::min<int64_t>(32767, 2147483647 / (127 * per_lane));
}

// `x` [length] as integers with the returned scale.
inline float to_shorts(const float* x, int64_t length, float limit, int16_t* out) {
  Floats best = {};
  for (int64_t i = 0; i < length; i += LANES) best = larger(best, absolute(load<Floats>(x + i)));
  const float top = largest(best);
  const float inverse = top > 0 ? limit / top : 0;
  const Floats magic = splat(12582912.0f);
  for (int64_t i = 0; i < length; i += LANES) {
    const Floats v = load<Floats>(x + i) * inverse + magic;
    store(out + i, __builtin_convertvector((Ints)v - (Ints)magic, Shorts));
  }
  return top / limit;
}

}  // namespace

// Mirrored field by field in step.py.
struct Operation {
  int32_t kind;
  int32_t storage;     // of the weight, or of keys and values
  int32_t norm;        // of x before the product
  int32_t activation;  // after it
  const float* x;      // LINEAR: [R, I]. ATTEND: [R, x_stride], queries, then keys and values where appended
  float* out;          // LINEAR: [R, O]. ATTEND: [R, H * Dh]
  const void* weight;  // [O, stride]
  const float* scales;       // [O], int8 only
  const float* bias;         // [O] or null
  const float* norm_weight;  // [I]
  const float* norm_bias;    // [I] or null
  const float* residual;     // [R, O] or null
  int64_t in_features, stride, out_features;
  float norm_eps;
  int32_t append;  // ATTEND: whether keys and values of this step are written first
  void* keys;      // [R, Hkv, capacity, Dp]
  void* values;
  float* key_scales;  // [R, Hkv, capacity], int8 only
  float* value_scales;
  const int64_t* lengths;  // [R]: filled positions before this step
  const float* q_norm;     // [Dh] or null
  const float* k_norm;
  const float* cosines;  // [capacity, Dh / 2] or null
  const float* sines;
  int64_t x_stride, num_heads, num_kv_heads, head_dim, padded_head_dim, capacity;
};

namespace {

struct Scratch {
  std::vector<float> floats;
  std::vector<int16_t> shorts;
  std::vector<float> scales;
  std::vector<float> products;
};

thread_local Scratch scratch;

template <class T>
T* room(std::vector<T>& buffer, int64_t size) {
  if ((int64_t)buffer.size() < size + 64) buffer.resize(size + 64);
  const uintptr_t address = (uintptr_t)buffer.data();
  return (T*)((address + 63) / 64 * 64);
}

void normalise(const Operation& op, const float* x, float* out) {
  const int64_t n = op.in_features;
  float mean = 0, square = 0;
  if (op.norm == LAYER_NORM) {
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= n;
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1 / std::sqrt(square / n + op.norm_eps);
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * inverse * op.norm_weight[i];
  if (op.norm_bias)
    for (int64_t i = 0; i < n; ++i) out[i] += op.norm_bias[i];
}

template <class S>
void linear(const Operation& op, int num_rows, int thread, int num_threads) {
  typedef typename S::Active Active;
  constexpr bool integers = std::is_same<S, Int8>::value;
  const int64_t I = op.in_features, stride = op.stride, O = op.out_features;

  // Every thread prepares all of x for itself: cheaper than another barrier.
  const float* x = op.x;
  if (op.norm || stride != I) {
    float* prepared = room(scratch.floats, num_rows * stride);
    for (int r = 0; r < num_rows; ++r) {
      float* row = prepared + r * stride;
      if (op.norm)
        normalise(op, op.x + r * I, row);
      else
        std::memcpy(row, op.x + r * I, I * sizeof(float));
      std::fill(row + I, row + stride, 0.0f);
    }
    x = prepared;
  }
  const Active* active = (const Active*)x;
  float* x_scales = room(scratch.scales, num_rows);
  if (integers) {
    int16_t* shorts = room(scratch.shorts, num_rows * stride);
    for (int r = 0; r < num_rows; ++r)
      x_scales[r] = to_shorts(x + r * stride, stride, short_limit(stride), shorts + r * stride);
    active = (const Active*)shorts;
  }

  const bool gated = op.activation == SILU_AND_MUL;
  const int64_t outputs = gated ? O / 2 : O;
  const int64_t step = gated ? BLOCK / 2 : BLOCK;  // outputs a block makes
  const int64_t blocks = (outputs + step - 1) / step;
  const int64_t begin = blocks * thread / num_threads * step;
  const int64_t end = std::min(outputs, blocks * (thread + 1) / num_threads * step);
  const typename S::Stored* weight = (const typename S::Stored*)op.weight;
  float(*products)[BLOCK] = (float(*)[BLOCK])room(scratch.products, num_rows * BLOCK);

  const int64_t ahead = step * stride;
  for (int64_t o = begin; o < end; o += step) {
    const typename S::Stored* rows[BLOCK];
    int64_t index[BLOCK];
    for (int j = 0; j < BLOCK; ++j) {
      index[j] = gated ? std::min(o + j % 2, outputs - 1) + (j / 2) * outputs : std::min(o + j, outputs - 1);
      rows[j] = weight + index[j] * stride;
    }
    dot_rows<S>(rows, ahead, active, stride, stride, num_rows, products);
    for (int r = 0; r < num_rows; ++r) {
      float y[BLOCK];
      for (int j = 0; j < BLOCK; ++j) {
        y[j] = products[r][j];
        if (integers) y[j] *= op.scales[index[j]] * x_scales[r];
        if (op.bias) y[j] += op.bias[index[j]];
      }
      const int count = (int)std::min(step, end - o);
      for (int j = 0; j < count; ++j) op.out[r * outputs + o + j] = y[j];
      if (gated)  // the other factor waits in the scratch of this thread
        for (int j = 0; j < count; ++j) {
          const float gate = y[j];
          op.out[r * outputs + o + j] = gate / (1 + std::exp(-gate)) * y[j + 2];
        }
    }
  }
  for (int r = 0; r < num_rows; ++r) {
    float* out = op.out + r * outputs;
    if (op.activation == GELU) {
      int64_t i = begin;
      for (; i + LANES <= end; i += LANES) store(out + i, gelu(load<Floats>(out + i)));
      for (; i < end; ++i) out[i] = gelu(splat(out[i]))[0];
    }
    if (op.residual)
      for (int64_t i = begin; i < end; ++i) out[i] += op.residual[r * outputs + i];
  }
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void write_position(Fp32, const float* x, int64_t length, float* out, float*) {
  std::memcpy(out, x, length * sizeof(float));
}
void write_position(Bf16, const float* x, int64_t length, uint16_t* out, float*) {
  for (int64_t i = 0; i < length; ++i) out[i] = to_bf16(x[i]);
}
void write_position(Int8, const float* x, int64_t length, int8_t* out, float* scale) {
  float top = 0;
  for (int64_t i = 0; i < length; ++i) top = std::max(top, std::fabs(x[i]));
  const float inverse = top > 0 ? 127 / top : 0;
  for (int64_t i = 0; i < length; ++i) out[i] = (int8_t)std::nearbyint(x[i] * inverse);
  *scale = top / 127;
}

// A head's query or key: normalised (RMS), then turned by its position's angles, zero beyond head_dim.
void prepare_head(const Operation& op, const float* x, const float* norm, int64_t position, float* out) {
  const int64_t n = op.head_dim, half = n / 2;
  std::memcpy(out, x, n * sizeof(float));
  std::fill(out + n, out + op.padded_head_dim, 0.0f);
  if (norm) {
    float square = 0;
    for (int64_t i = 0; i < n; ++i) square += x[i] * x[i];
    const float inverse = 1 / std::sqrt(square / n + op.norm_eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse * norm[i];
  }
  if (op.cosines)
    for (int64_t i = 0; i < half; ++i) {
      const float a = out[i], b = out[i + half];
      const float cosine = op.cosines[position * half + i], sine = op.sines[position * half + i];
      out[i] = a * cosine - b * sine;
      out[i + half] = b * cosine + a * sine;
    }
}

// out [VECTORS * 16] = sum over t of weights[t] * values[t]
template <class S, int VECTORS>
void weigh(const typename S::Stored* values, const float* weights, int64_t length, float* out) {
  Floats sums[2][VECTORS] = {};
  constexpr int64_t width = VECTORS * LANES;
  int64_t t = 0;
  for (; t + 2 <= length; t += 2)
    for (int k = 0; k < 2; ++k) {
      const typename S::Stored* row = values + (t + k) * width;
      __builtin_prefetch(row + 16 * width);
      if (sizeof(typename S::Stored) * width > 64) __builtin_prefetch((const char*)(row + 16 * width) + 64);
      if (sizeof(typename S::Stored) * width > 128) __builtin_prefetch((const char*)(row + 16 * width) + 128);
      if (sizeof(typename S::Stored) * width > 192) __builtin_prefetch((const char*)(row + 16 * width) + 192);
      for (int v = 0; v < VECTORS; ++v) sums[k][v] += weights[t + k] * S::floats(row + v * LANES);
    }
  for (; t < length; ++t)
    for (int v = 0; v < VECTORS; ++v) sums[0][v] += weights[t] * S::floats(values + t * width + v * LANES);
  for (int v = 0; v < VECTORS; ++v) store(out + v * LANES, sums[0][v] + sums[1][v]);
}

template <class S>
void weigh_any(const typename S::Stored* values, const float* weights, int64_t length, int64_t width, float* out) {
  switch (width) {
    case 32: return weigh<S, 2>(values, weights, length, out);
    case 64: return weigh<S, 4>(values, weights, length, out);
    case 96: return weigh<S, 6>(values, weights, length, out);
    case 128: return weigh<S, 8>(values, weights, length, out);
  }
}

template <class S>
void attend(const Operation& op, int num_rows, int thread, int num_threads) {
  typedef typename S::Stored Stored;
  typedef typename S::Active Active;
  constexpr bool integers = std::is_same<S, Int8>::value;
  const int64_t D = op.head_dim, P = op.padded_head_dim, H = op.num_heads, Hkv = op.num_kv_heads, G = H / Hkv;
  const int64_t pairs = num_rows * Hkv;
  const int64_t score_stride = (op.capacity + BLOCK + LANES - 1) / LANES * LANES;
  float* queries = room(scratch.floats, (G + 1) * P + G * score_stride);
  float* other = queries + G * P;
  float* scores = other + P;
  int16_t* shorts = room(scratch.shorts, G * P);
  float* scales = room(scratch.scales, G);
  float(*products)[BLOCK] = (float(*)[BLOCK])room(scratch.products, G * BLOCK);

  for (int64_t pair = pairs * thread / num_threads; pair < pairs * (thread + 1) / num_threads; ++pair) {
    const int64_t r = pair / Hkv, h = pair % Hkv;
    const float* x = op.x + r * op.x_stride;
    Stored* keys = (Stored*)op.keys + pair * op.capacity * P;
    Stored* values = (Stored*)op.values + pair * op.capacity * P;
    float* key_scales = op.key_scales + pair * op.capacity;
    float* value_scales = op.value_scales + pair * op.capacity;
    int64_t length = op.lengths[r];
    for (int64_t g = 0; g < G; ++g) prepare_head(op, x + (h * G + g) * D, op.q_norm, length, queries + g * P);
    if (op.append) {
      prepare_head(op, x + (H + h) * D, op.k_norm, length, other);
      write_position(S(), other, P, keys + length * P, key_scales + length);
      std::memcpy(other, x + (H + Hkv + h) * D, D * sizeof(float));
      std::fill(other + D, other + P, 0.0f);
      write_position(S(), other, P, values + length * P, value_scales + length);
      ++length;
    }
    float* out = op.out + (r * H + h * G) * D;
    if (length == 0) {  // nothing to attend to, as where a condition was dropped
      std::fill(out, out + G * D, 0.0f);
      continue;
    }

    const float factor = 1 / std::sqrt((float)D);
    for (int64_t g = 0; g < G; ++g) {
      scales[g] = factor;
      if (integers) scales[g] *= to_shorts(queries + g * P, P, short_limit(P), shorts + g * P);
    }
    const Active* active = integers ? (const Active*)shorts : (const Active*)queries;
    for (int64_t t = 0; t < length; t += BLOCK) {
      const Stored* rows[BLOCK];
      for (int j = 0; j < BLOCK; ++j) rows[j] = keys + std::min(t + j, length - 1) * P;
      dot_rows<S>(rows, 4 * BLOCK * P, active, P, P, (int)G, products);
      for (int64_t g = 0; g < G; ++g)
        for (int j = 0; j < BLOCK; ++j) scores[g * score_stride + t + j] = products[g][j] * scales[g];
    }
    for (int64_t g = 0; g < G; ++g) {
      float* row = scores + g * score_stride;
      int64_t t = 0;
      if (integers)
        for (int64_t i = 0; i < length; ++i) row[i] *= key_scales[i];
      for (t = length; t % LANES; ++t) row[t] = -INFINITY;
      Floats best = splat(-INFINITY), total = {};
      for (int64_t i = 0; i < t; i += LANES) best = larger(best, load<Floats>(row + i));
      const float top = largest(best);
      for (int64_t i = 0; i < t; i += LANES) {
        const Floats p = exp(load<Floats>(row + i) - top);
        total += p;
        store(row + i, p);
      }
      const float inverse = 1 / sum(total);
      if (integers)
        for (int64_t i = 0; i < length; ++i) row[i] *= inverse * value_scales[i];
      else
        for (int64_t i = 0; i < length; ++i) row[i] *= inverse;
      weigh_any<S>(values, row, length, P, other);
      std::memcpy(out + g * D, other, D * sizeof(float));
    }
  }
}

void run_one(const Operation& op, int num_rows, int thread, int num_threads) {
  if (op.kind == LINEAR) {
    if (op.storage == FP32) linear<Fp32>(op, num_rows, thread, num_threads);
    if (op.storage == BF16) linear<Bf16>(op, num_rows, thread, num_threads);
    if (op.storage == INT8) linear<Int8>(op, num_rows, thread, num_threads);
  } else {
    if (op.storage == FP32) attend<Fp32>(op, num_rows, thread, num_threads);
    if (op.storage == BF16) attend<Bf16>(op, num_rows, thread, num_threads);
    if (op.storage == INT8) attend<Int8>(op, num_rows, thread, num_threads);
  }
}

}  // namespace

extern "C" int64_t operation_size() { return sizeof(Operation); }

extern "C" void run_operations(const Operation* operations, int64_t num_operations, int64_t num_rows, int64_t num_threads) {
#pragma omp parallel num_threads(num_threads)
  for (int64_t i = 0; i < num_operations; ++i) {
    run_one(operations[i], (int)num_rows, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
  }
}
