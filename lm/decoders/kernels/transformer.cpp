// One decoding step of a Transformer: a list of operations (../transformer_kernel.py), run in one call.
//
// With few rows of activations a step takes as long as reading its weights, keys and values. So weights are
// plain row-major matrices that are read once, in the order in which they lie in memory, and asked for ahead;
// threads own ranges of outputs, or heads, so that an operation needs one barrier. Activations are fp32.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include <omp.h>

#include "storage.h"

namespace {

constexpr int BLOCK = 4;  // rows of weights that go through the activations together
constexpr int TILE = 8;   // blocks whose outputs are finished together
#if defined(__AVX512F__)
constexpr int GROUP = 4;  // rows of activations for which the registers hold the sums of a block
#else
constexpr int GROUP = 1;
#endif
constexpr int64_t AHEAD = 4096;        // bytes between the keys that are read and those that are asked for
constexpr int64_t START = 8192;        // bytes that are asked for before reading begins elsewhere

enum Kind : int32_t { LINEAR = 0, ATTEND = 1 };
enum StorageKind : int32_t { FP32 = 0, BF16 = 1, INT8 = 2 };
enum Norm : int32_t { NO_NORM = 0, LAYER_NORM = 1, RMS_NORM = 2 };
enum Activation : int32_t { NO_ACTIVATION = 0, GELU = 1, SWIGLU = 2 };

// R rows, I inputs, O outputs, H heads, Hkv key heads, Dh width of a head, Dp the same rounded up to 32.
struct Operation {
  int32_t kind, storage;
  const float* x;  // LINEAR: [R, I]; ATTEND: [R, x_stride], queries, then keys and values where appended
  float* out;      // LINEAR: [R, O], or [R, O / 2] of SWIGLU; ATTEND: [R, H Dh]
  float epsilon;   // of the norms

  int32_t norm, activation;
  const void* weight;        // [O, stride]
  const float* scales;       // [O], of int8
  const float* bias;         // [O] or null
  const float* norm_weight;  // [I]
  const float* norm_bias;    // [I] or null
  const float* residual;     // as out, or null; may be out
  int64_t num_inputs, stride, num_outputs;

  int32_t append;  // whether keys and values of this step are written first
  void* keys;      // [R, Hkv, capacity, Dp]
  void* values;
  float* key_scales;  // [R, Hkv, capacity], of int8
  float* value_scales;
  const int64_t* lengths;  // [R]: filled positions before this step
  const float* q_norm;       // [Dh] or null
  const float* k_norm;
  const float* cosines;  // [capacity, Dh / 2], angles at each position, or null
  const float* sines;
  int64_t x_stride, num_heads, num_kv_heads, head_dim, padded_head_dim, capacity;
};

// Buffers of a thread; they grow to what is needed once.
struct Scratch {
  std::vector<float> floats, scales, products;
  std::vector<int16_t> shorts;
};

thread_local Scratch scratch;

template <class T>
T* room(std::vector<T>& buffer, int64_t size) {
  if ((int64_t)buffer.size() < size + 64) buffer.resize(size + 64);
  return (T*)(((uintptr_t)buffer.data() + 63) / 64 * 64);
}

// ------------------------------------------------------------------------------------------------- linear

// All of x as it enters the products.
template <class S>
struct Prepared {
  const typename S::Active* x;  // [R, x_stride]
  int64_t x_stride;
  float* scales;  // [R], of integers
};

// The products of BLOCK stored rows with ROWS rows of activations. Meanwhile the rows that follow a block
// later, `ahead` elements further on, are asked for: those whose bit in `asked` is set.
template <class S, int ROWS>
inline void multiply_block(const typename S::Stored* const* rows, int64_t ahead, unsigned asked,
                           const typename S::Active* x, int64_t x_stride, int64_t length, float* products) {
  typename S::Sum accumulated[ROWS][BLOCK] = {};
  for (int64_t i = 0; i < length; i += CHUNK) {
    typename S::Factors factors[ROWS];
    for (int r = 0; r < ROWS; ++r) factors[r] = S::factors(x + r * x_stride + i);
    for (int j = 0; j < BLOCK; ++j) {
      if (asked >> j & 1) prefetch<CHUNK * sizeof(typename S::Stored)>(rows[j] + i + ahead);
      const typename S::Weights w = S::weights(rows[j] + i);
      for (int r = 0; r < ROWS; ++r) S::add(accumulated[r][j], w, factors[r]);
    }
  }
  Floats parts[ROWS * BLOCK];
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < BLOCK; ++j) parts[r * BLOCK + j] = S::to_floats(accumulated[r][j]);
  const Floats totals = sums<ROWS>(parts);
  std::memcpy(products, &totals, sizeof(float) * ROWS * BLOCK);
}

template <class S>
inline void multiply(const typename S::Stored* const* rows, int64_t ahead, const Prepared<S>& prepared,
                     int64_t length, int num_rows, float* products) {
  const int64_t x_stride = prepared.x_stride;
  const typename S::Active* x = prepared.x;
  // Each pass over the block asks for its share of the next one, so that memory is never idle.
  const int num_passes = (num_rows + GROUP - 1) / GROUP;
  for (int pass = 0; pass < num_passes; ++pass) {
    unsigned asked = 0;
    for (int j = 0; j < BLOCK; ++j) asked |= (unsigned)(j * num_passes / BLOCK == pass) << j;
    switch (std::min(GROUP, num_rows - pass * GROUP)) {
      case 1: multiply_block<S, 1>(rows, ahead, asked, x, x_stride, length, products); break;
#if defined(__AVX512F__)
      case 2: multiply_block<S, 2>(rows, ahead, asked, x, x_stride, length, products); break;
      case 3: multiply_block<S, 3>(rows, ahead, asked, x, x_stride, length, products); break;
      case 4: multiply_block<S, 4>(rows, ahead, asked, x, x_stride, length, products); break;
#endif
    }
    x += GROUP * x_stride;
    products += GROUP * BLOCK;
  }
}

void normalise(const Operation& op, const float* x, float* out) {
  const int64_t n = op.num_inputs;
  float mean = 0, square = 0;
  if (op.norm == LAYER_NORM) {
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= n;
  }
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1 / std::sqrt(square / n + op.epsilon);
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * inverse * op.norm_weight[i];
  if (op.norm_bias)
    for (int64_t i = 0; i < n; ++i) out[i] += op.norm_bias[i];
}

// Every thread does this for itself, which costs less than a barrier.
template <class S>
Prepared<S> prepare(const Operation& op, int num_rows) {
  const int64_t num_inputs = op.num_inputs, stride = op.stride;
  // Rows a power of two apart would fall into the same few lines of the cache.
  const int64_t x_stride = stride + CHUNK;
  float* floats = room(scratch.floats, num_rows * x_stride);
  int16_t* shorts = S::integers ? room(scratch.shorts, num_rows * x_stride) : nullptr;
  float* scales = room(scratch.scales, num_rows);
  for (int r = 0; r < num_rows; ++r) {
    float* row = floats + r * x_stride;
    if (op.norm)
      normalise(op, op.x + r * num_inputs, row);
    else
      std::copy(op.x + r * num_inputs, op.x + (r + 1) * num_inputs, row);
    std::fill(row + num_inputs, row + stride, 0.0f);
    if (S::integers) scales[r] = to_shorts(row, stride, shorts + r * x_stride);
  }
  const void* x = S::integers ? (const void*)shorts : (const void*)floats;
  return {(const typename S::Active*)x, x_stride, scales};
}

// out [begin, end) = activation(values), where SWIGLU multiplies with `up`.
void activate(int32_t activation, const float* values, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t n = std::min(LANES, count - i);
    Floats v = {}, u = {};
    std::memcpy(&v, values + i, n * sizeof(float));
    if (activation == GELU) v = gelu(v);
    if (activation == SWIGLU) {
      std::memcpy(&u, up + i, n * sizeof(float));
      v = silu(v) * u;
    }
    std::memcpy(out + i, &v, n * sizeof(float));
  }
}

template <class S>
void linear(const Operation& op, int num_rows, int thread, int num_threads) {
  typedef typename S::Stored Stored;
  const int64_t stride = op.stride;
  const Prepared<S> prepared = prepare<S>(op, num_rows);

  // Of SWIGLU a block is two rows of gates and the two of what they are for.
  const bool gated = op.activation == SWIGLU;
  const int64_t num_outputs = gated ? op.num_outputs / 2 : op.num_outputs;
  const int64_t step = gated ? BLOCK / 2 : BLOCK;
  const int64_t num_blocks = (num_outputs + step - 1) / step;
  const int64_t end = num_blocks * (thread + 1) / num_threads;
  const Stored* weight = (const Stored*)op.weight;

  float* products = room(scratch.products, TILE * num_rows * BLOCK);
  for (int64_t block = num_blocks * thread / num_threads; block < end; block += TILE) {
    const int64_t tile_end = std::min(end, block + TILE);
    for (int64_t b = block; b < tile_end; ++b) {
      const Stored* rows[BLOCK];
      for (int j = 0; j < BLOCK; ++j) {
        const int64_t o = gated ? std::min(b * step + j % 2, num_outputs - 1) + j / 2 * num_outputs
                                : std::min(b * step + j, num_outputs - 1);
        rows[j] = weight + o * stride;
      }
      multiply<S>(rows, step * stride, prepared, stride, num_rows, products + (b - block) * num_rows * BLOCK);
    }
    const int64_t first = block * step, count = std::min(tile_end * step, num_outputs) - first;
    for (int r = 0; r < num_rows; ++r) {
      float y[2][TILE * BLOCK];  // the second half: what gates are for
      for (int64_t b = 0; b < tile_end - block; ++b) {
        const float* from = products + (b * num_rows + r) * BLOCK;
        for (int half = 0; half <= (int)gated; ++half)
          std::copy(from + half * step, from + (half + 1) * step, y[half] + b * step);
      }
      for (int half = 0; half <= (int)gated; ++half) {
        const int64_t o = half * num_outputs + first;
        if (S::integers)
          for (int64_t i = 0; i < count; ++i) y[half][i] *= op.scales[o + i] * prepared.scales[r];
        if (op.bias)
          for (int64_t i = 0; i < count; ++i) y[half][i] += op.bias[o + i];
      }
      if (op.activation) activate(op.activation, y[0], y[1], count, y[0]);
      const int64_t at = r * num_outputs + first;
      if (op.residual)
        for (int64_t i = 0; i < count; ++i) op.out[at + i] = y[0][i] + op.residual[at + i];
      else
        std::copy(y[0], y[0] + count, op.out + at);
    }
  }
}

// ---------------------------------------------------------------------------------------------- attention

// A head's query or key: normalised by its root mean square, turned by its position's angles, padded.
void prepare_head(const Operation& op, const float* x, const float* norm, int64_t position, float* out) {
  const int64_t n = op.head_dim, half = n / 2;
  std::copy(x, x + n, out);
  std::fill(out + n, out + op.padded_head_dim, 0.0f);
  if (norm) {
    float square = 0;
    for (int64_t i = 0; i < n; ++i) square += x[i] * x[i];
    const float inverse = 1 / std::sqrt(square / n + op.epsilon);
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

// scores [length, rounded up to 16] = products of `query` [P] with keys [length, P]
template <class S, int CHUNKS>
void score(const typename S::Stored* keys, int64_t length, const typename S::Active* query, float scale,
           float* scores) {
  constexpr int64_t width = CHUNKS * CHUNK;
  typename S::Factors factors[CHUNKS];
  for (int c = 0; c < CHUNKS; ++c) factors[c] = S::factors(query + c * CHUNK);
  for (int64_t t = 0; t < length; t += LANES) {
    Floats parts[LANES];
    const int64_t last = std::min(LANES, length - t) - 1;
    for (int64_t j = 0; j < LANES; ++j) {
      const typename S::Stored* row = keys + (t + std::min(j, last)) * width;
      prefetch<width * sizeof(typename S::Stored)>((const char*)row + AHEAD);
      typename S::Sum products = {};
      for (int c = 0; c < CHUNKS; ++c) S::add(products, S::weights(row + c * CHUNK), factors[c]);
      parts[j] = S::to_floats(products);
    }
    store(scores + t, sums<4>(parts) * scale);
  }
}

// scores [length] to probabilities; `row` has room for a multiple of 16
void softmax(float* row, int64_t length) {
  const int64_t padded = (length + LANES - 1) / LANES * LANES;
  std::fill(row + length, row + padded, -INFINITY);
  Floats best = splat(-INFINITY), total = {};
  for (int64_t i = 0; i < padded; i += LANES) best = larger(best, load<Floats>(row + i));
  const float top = largest(best);
  for (int64_t i = 0; i < padded; i += LANES) {
    const Floats p = exp(load<Floats>(row + i) - top);
    total += p;
    store(row + i, p);
  }
  const float inverse = 1 / sum(total);
  for (int64_t i = 0; i < padded; i += LANES) store(row + i, load<Floats>(row + i) * inverse);
}

// out [32 CHUNKS] = sum over t of weights[t] values[t]
template <class S, int CHUNKS>
void weigh(const typename S::Stored* values, const float* weights, int64_t length, float* out) {
  constexpr int VECTORS = 2 * CHUNKS;
  constexpr int64_t width = CHUNKS * CHUNK;
  Floats even[VECTORS] = {}, odd[VECTORS] = {};  // two sums, for additions not to wait for each other
  int64_t t = 0;
  for (; t + 2 <= length; t += 2) {
    const typename S::Stored* row = values + t * width;
    prefetch<2 * width * sizeof(typename S::Stored)>((const char*)row + AHEAD);
    for (int v = 0; v < VECTORS; ++v) even[v] += weights[t] * S::floats(row + v * LANES);
    for (int v = 0; v < VECTORS; ++v) odd[v] += weights[t + 1] * S::floats(row + width + v * LANES);
  }
  if (t < length)
    for (int v = 0; v < VECTORS; ++v) even[v] += weights[t] * S::floats(values + t * width + v * LANES);
  for (int v = 0; v < VECTORS; ++v) store(out + v * LANES, even[v] + odd[v]);
}

template <class S, int CHUNKS>
void attend_heads(const Operation& op, int num_rows, int thread, int num_threads) {
  typedef typename S::Stored Stored;
  const int64_t D = op.head_dim, P = op.padded_head_dim;
  const int64_t H = op.num_heads, Hkv = op.num_kv_heads, G = H / Hkv;
  const int64_t score_stride = (op.capacity + LANES - 1) / LANES * LANES;
  float* queries = room(scratch.floats, (G + 1) * P + G * score_stride);
  float* other = queries + G * P;
  float* scores = other + P;
  int16_t* shorts = room(scratch.shorts, P);

  const int64_t pairs = num_rows * Hkv;
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
      S::write(other, P, keys + length * P, key_scales + length);
      std::copy(x + (H + Hkv + h) * D, x + (H + Hkv + h + 1) * D, other);
      std::fill(other + D, other + P, 0.0f);
      S::write(other, P, values + length * P, value_scales + length);
      ++length;
    }
    float* out = op.out + (r * H + h * G) * D;
    if (length == 0) {  // nothing to see: zeros, as where a condition was dropped
      std::fill(out, out + G * D, 0.0f);
      continue;
    }
    for (int64_t g = 0; g < G; ++g) {
      const float* query = queries + g * P;
      float scale = 1 / std::sqrt((float)D);
      if (S::integers) scale *= to_shorts(query, P, shorts);
      const void* active = S::integers ? (const void*)shorts : (const void*)query;
      score<S, CHUNKS>(keys, length, (const typename S::Active*)active, scale, scores + g * score_stride);
    }
    prefetch<START>(values);
    for (int64_t g = 0; g < G; ++g) {
      float* row = scores + g * score_stride;
      if (S::integers)
        for (int64_t t = 0; t < length; ++t) row[t] *= key_scales[t];
      softmax(row, length);
      if (S::integers)
        for (int64_t t = 0; t < length; ++t) row[t] *= value_scales[t];
      if (g == G - 1) prefetch<START>(keys + op.capacity * P);
      weigh<S, CHUNKS>(values, row, length, other);
      std::copy(other, other + D, out + g * D);
    }
  }
}

template <class S>
void attend(const Operation& op, int num_rows, int thread, int num_threads) {
  switch (op.padded_head_dim / CHUNK) {
    case 1: return attend_heads<S, 1>(op, num_rows, thread, num_threads);
    case 2: return attend_heads<S, 2>(op, num_rows, thread, num_threads);
    case 3: return attend_heads<S, 3>(op, num_rows, thread, num_threads);
    case 4: return attend_heads<S, 4>(op, num_rows, thread, num_threads);
  }
}

// ------------------------------------------------------------------------------------------------- the run

template <class S>
void run_stored(const Operation& op, int num_rows, int thread, int num_threads) {
  if (op.kind == LINEAR)
    linear<S>(op, num_rows, thread, num_threads);
  else
    attend<S>(op, num_rows, thread, num_threads);
}

// Spins, which costs less than a microsecond, but not for long: a thread that has lost its core to another
// process gets that of one which waits. (OpenMP's own barrier spins for milliseconds; beside another process
// a step then took 17 times as long, and takes twice as long with this one.)
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}

  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        round_.store(round + 1, std::memory_order_release);
      }
      next_round_.notify_all();
      return;
    }
    for (int i = 0; i < SPINS; ++i) {
      if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    next_round_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != round; });
  }

 private:
  static constexpr int SPINS = 2000;
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
  std::mutex mutex_;
  std::condition_variable next_round_;
};

}  // namespace

extern "C" int64_t operation_size() { return sizeof(Operation); }

extern "C" void run_operations(const Operation* operations, int64_t num_operations, int64_t num_rows,
                               int64_t num_threads) {
  std::optional<Barrier> barrier;
#pragma omp parallel num_threads(num_threads)
  {
    const int thread = omp_get_thread_num(), found = omp_get_num_threads();  // which may be fewer
#pragma omp single
    barrier.emplace(found);
    for (int64_t i = 0; i < num_operations; ++i) {
      const Operation& op = operations[i];
      if (op.storage == FP32) run_stored<Fp32>(op, (int)num_rows, thread, found);
      if (op.storage == BF16) run_stored<Bf16>(op, (int)num_rows, thread, found);
      if (op.storage == INT8) run_stored<Int8>(op, (int)num_rows, thread, found);
      barrier->wait();
    }
  }
}
