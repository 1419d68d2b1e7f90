// One decoding step of a Transformer: a list of operations (../transformer_kernel.py), run in one call.
//
// With few rows of activations a step takes as long as reading its weights, keys and values. So weights are
// read once, in the order in which they lie in memory, and asked for ahead: in panels of 16 outputs, which are
// the lanes of a sum, so that no sum is ever taken across lanes. Threads own ranges of panels, or heads, so
// that an operation needs one barrier. Activations are fp32.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include <omp.h>

#include "storage.h"

namespace {

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 16;   // of activations that go through the weights together
constexpr int GROUP = 8;       // of them, those whose sums the registers hold at once
constexpr int TILE = 6;        // panels whose outputs are finished together
constexpr int panels_for(int rows) { return rows <= 4 ? 6 : 3; }  // whose sums the registers hold at once
#else
constexpr int MAX_ROWS = 4;
constexpr int GROUP = 4;
constexpr int TILE = 4;
constexpr int panels_for(int rows) { return 4 / rows; }
#endif
constexpr int64_t AHEAD = 4096;        // bytes between what is read and what is asked for
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
  const void* weight;        // panels [O / 16, I, 16], of int8 [O / 16, I / 2, 16, 2]; the rest zeros
  const float* scales;       // [O], of int8
  const float* bias;         // [O] or null
  const float* norm_weight;  // [I]
  const float* norm_bias;    // [I] or null
  const float* residual;     // as out, or null; may be out
  int64_t num_inputs, num_outputs;

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
  std::vector<float> floats, scales, row, given, columns;
  std::vector<int16_t> shorts;
};

thread_local Scratch scratch;

template <class T>
T* room(std::vector<T>& buffer, int64_t size) {
  if ((int64_t)buffer.size() < size + 64) buffer.resize(size + 64);
  return (T*)(((uintptr_t)buffer.data() + 63) / 64 * 64);
}

// ------------------------------------------------------------------------------------------------- linear

// x as it enters the products: parts of MAX_ROWS rows (the last one of fewer), each [I / PAIR, rows, PAIR].
template <class S>
struct Prepared {
  const typename S::Active* x;
  int64_t num_inputs;   // rounded up to pairs
  const float* scales;  // [R], of integers
};

// How many rows are computed for so many: the registers' sums are of a fixed number.
int rows_for(int num_rows) {
  int rows = 1;
  while (rows < num_rows) rows *= 2;
  return std::min(rows, MAX_ROWS);
}

// totals [PANELS, ROWS, 16] = the products of PANELS panels with ROWS rows, span after span, so that the rows'
// second group finds the weights near. A sum is taken in the same order whatever ROWS and PANELS are. `next`:
// from the end of a panel to the beginning of the one that is read after it.
template <class S, int ROWS, int PANELS>
void multiply_panels(const typename S::Stored* weight, int64_t next, const typename S::Active* x,
                     int64_t num_inputs, float* totals) {
  constexpr int TOGETHER = std::min(ROWS, GROUP);
  constexpr int64_t STEP = LANES * S::PAIR;  // stored elements of a panel that are read together
  constexpr int64_t NEAR = AHEAD / (int64_t)sizeof(typename S::Stored);
  const int64_t panel = num_inputs * LANES;
  const int64_t turn = num_inputs - NEAR / LANES;  // from there on what is asked for is the next panels'
  for (int64_t start = 0; start < num_inputs; start += SPAN) {
    const int64_t end = std::min(start + SPAN, num_inputs);
    for (int first = 0; first < ROWS; first += TOGETHER) {
      typename S::Sum sums[PANELS][TOGETHER] = {};
      for (int64_t i = start; i < end; i += S::PAIR) {
        const int64_t ahead = i < turn ? NEAR : NEAR + next;
        typename S::Column w[PANELS];
        for (int p = 0; p < PANELS; ++p) {
          const typename S::Stored* from = weight + p * panel + i * LANES;
          // A line of the cache is one step of fp32 and two of the others.
          if (first == 0 && (STEP * sizeof(typename S::Stored) >= 64 || i / S::PAIR % 2 == 0))
            prefetch<64>(from + ahead);
          w[p] = S::column(from);
        }
        for (int r = 0; r < TOGETHER; ++r) {
          const typename S::Factor factor = S::factor(x + i * ROWS + (first + r) * S::PAIR);
          for (int p = 0; p < PANELS; ++p) S::add_column(sums[p][r], w[p], factor);
        }
      }
      for (int p = 0; p < PANELS; ++p)
        for (int r = 0; r < TOGETHER; ++r) {
          float* total = totals + (p * ROWS + first + r) * LANES;
          const Floats found = S::to_floats(sums[p][r]);
          store(total, start == 0 ? found : load<Floats>(total) + found);
        }
    }
  }
}

// The same of any number of panels, up to TILE.
template <class S, int ROWS>
void multiply_tile(const typename S::Stored* weight, int64_t num_panels, const typename S::Active* x,
                   int64_t num_inputs, float* totals) {
  constexpr int PANELS = panels_for(ROWS);
  const int64_t panel = num_inputs * LANES;
  int64_t p = 0;
  for (; p + PANELS <= num_panels; p += PANELS)
    multiply_panels<S, ROWS, PANELS>(weight + p * panel, (PANELS - 1) * panel, x, num_inputs,
                                     totals + p * ROWS * LANES);
  for (; p < num_panels; ++p)
    multiply_panels<S, ROWS, 1>(weight + p * panel, 0, x, num_inputs, totals + p * ROWS * LANES);
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

// rows [count, pitch] of `length` numbers of 32 bits each, floats or pairs of integers, to columns [length, ROWS].
template <int ROWS>
void interleave(const float* rows, int count, int64_t pitch, int64_t length, float* columns) {
#if defined(__AVX512F__)
  // Of a column more than ROWS numbers are written, and the next one covers them.
  for (int64_t i = 0; i < length; i += LANES) {
    Floats block[LANES] = {};
    for (int r = 0; r < count; ++r) block[r] = load<Floats>(rows + r * pitch + i);
    transpose(block);
    const int64_t num_columns = std::min(LANES, length - i);
    for (int64_t j = 0; j < num_columns; ++j) store(columns + (i + j) * ROWS, block[j]);
  }
#else
  for (int r = 0; r < count; ++r)
    for (int64_t i = 0; i < length; ++i) std::memcpy(columns + i * ROWS + r, rows + r * pitch + i, sizeof(float));
#endif
}

// Every thread does this for itself, which costs less than a barrier.
template <class S>
Prepared<S> prepare(const Operation& op, int num_rows) {
  typedef typename S::Active Active;
  const int64_t num_inputs = (op.num_inputs + S::PAIR - 1) / S::PAIR * S::PAIR;
  const int64_t padded = (num_inputs + LANES - 1) / LANES * LANES;
  const int64_t pitch = padded + LANES;  // rows a power of two apart would fall into the same few lines
  const int num_parts = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
  float* row = room(scratch.row, pitch);
  float* given = room(scratch.given, MAX_ROWS * pitch);
  float* scales = room(scratch.scales, num_rows);
  float* columns = room(scratch.columns, num_parts * MAX_ROWS * num_inputs);  // of integers, pairs
  const int64_t length = num_inputs / S::PAIR;
  for (int first = 0; first < num_rows; first += MAX_ROWS) {
    const int count = std::min(MAX_ROWS, num_rows - first);
    for (int r = 0; r < count; ++r) {
      const float* from = op.x + (first + r) * op.num_inputs;
      float* to = S::integers ? row : given + r * pitch;
      if (op.norm)
        normalise(op, from, to);
      else
        std::copy(from, from + op.num_inputs, to);
      std::fill(to + op.num_inputs, to + padded, 0.0f);
      if (S::integers)
        scales[first + r] = to_shorts(row, padded, std::min(num_inputs, SPAN), (int16_t*)(given + r * pitch));
    }
    float* to = columns + first * length;
    switch (rows_for(count)) {
      case 1: std::copy(given, given + length, to); break;
      case 2: interleave<2>(given, count, pitch, length, to); break;
      case 4: interleave<4>(given, count, pitch, length, to); break;
#if defined(__AVX512F__)
      case 8: interleave<8>(given, count, pitch, length, to); break;
      case 16: interleave<16>(given, count, pitch, length, to); break;
#endif
    }
  }
  return {(const Active*)columns, num_inputs, scales};
}

// Outputs `o` to o + 15 of a row, from their sums, and of SWIGLU those `apart` behind them.
template <class S>
void finish(const Operation& op, const float* sums, int64_t apart, float scale, int64_t row, int64_t o,
            int64_t num_outputs) {
  const int64_t count = std::min(LANES, num_outputs - o);
  const bool gated = op.activation == SWIGLU;
  Floats halves[2];
  for (int half = 0; half <= (int)gated; ++half) {
    const int64_t at = half * num_outputs + o;
    Floats v = load<Floats>(sums + half * apart);
    if (S::integers) v *= load_some(op.scales + at, count) * scale;
    if (op.bias) v += load_some(op.bias + at, count);
    halves[half] = v;
  }
  Floats v = halves[0];
  if (op.activation == GELU) v = gelu(v);
  if (gated) v = silu(v) * halves[1];
  const int64_t at = row * num_outputs + o;
  if (op.residual) v += load_some(op.residual + at, count);
  store_some(op.out + at, v, count);
}

template <class S>
void linear(const Operation& op, int num_rows, int thread, int num_threads) {
  typedef typename S::Stored Stored;
  const Prepared<S> prepared = prepare<S>(op, num_rows);
  const int64_t num_inputs = prepared.num_inputs, panel = num_inputs * LANES;

  // Of SWIGLU panels of gates and of what they are for take turns.
  const int64_t together = op.activation == SWIGLU ? 2 : 1;
  const int64_t num_outputs = op.num_outputs / together;
  const int64_t num_shares = (num_outputs + LANES - 1) / LANES;
  const int64_t end = num_shares * (thread + 1) / num_threads * together;
  const Stored* weight = (const Stored*)op.weight;

  alignas(64) float totals[TILE * MAX_ROWS * LANES];
  for (int64_t tile = num_shares * thread / num_threads * together; tile < end; tile += TILE) {
    const int64_t num_panels = std::min<int64_t>(TILE, end - tile);
    const typename S::Active* x = prepared.x;
    for (int first = 0; first < num_rows; first += MAX_ROWS, x += MAX_ROWS * num_inputs) {
      const int count = std::min(MAX_ROWS, num_rows - first), rows = rows_for(count);
      switch (rows) {
        case 1: multiply_tile<S, 1>(weight + tile * panel, num_panels, x, num_inputs, totals); break;
        case 2: multiply_tile<S, 2>(weight + tile * panel, num_panels, x, num_inputs, totals); break;
        case 4: multiply_tile<S, 4>(weight + tile * panel, num_panels, x, num_inputs, totals); break;
#if defined(__AVX512F__)
        case 8: multiply_tile<S, 8>(weight + tile * panel, num_panels, x, num_inputs, totals); break;
        case 16: multiply_tile<S, 16>(weight + tile * panel, num_panels, x, num_inputs, totals); break;
#endif
      }
      for (int r = 0; r < count; ++r)
        for (int64_t p = 0; p < num_panels; p += together) {
          const int64_t o = (tile + p) / together * LANES;
          const float scale = S::integers ? prepared.scales[first + r] : 1;
          finish<S>(op, totals + (p * rows + r) * LANES, rows * LANES, scale, first + r, o, num_outputs);
        }
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
  const typename S::Stored* near_end = keys + length * width - AHEAD / (int64_t)sizeof(typename S::Stored);
  typename S::Factors factors[CHUNKS];
  for (int c = 0; c < CHUNKS; ++c) factors[c] = S::factors(query + c * CHUNK);
  for (int64_t t = 0; t < length; t += LANES) {
    Floats parts[LANES];
    const int64_t last = std::min(LANES, length - t) - 1;
    for (int64_t j = 0; j < LANES; ++j) {
      const typename S::Stored* row = keys + (t + std::min(j, last)) * width;
      if (row < near_end) prefetch<width * sizeof(typename S::Stored)>((const char*)row + AHEAD);
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
  const typename S::Stored* near_end = values + length * width - AHEAD / (int64_t)sizeof(typename S::Stored);
  Floats even[VECTORS] = {}, odd[VECTORS] = {};  // two sums, for additions not to wait for each other
  int64_t t = 0;
  for (; t + 2 <= length; t += 2) {
    const typename S::Stored* row = values + t * width;
    if (row < near_end) prefetch<2 * width * sizeof(typename S::Stored)>((const char*)row + AHEAD);
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
      if (S::integers) scale *= to_shorts(query, P, P / LANES, shorts);
      const void* active = S::integers ? (const void*)shorts : (const void*)query;
      score<S, CHUNKS>(keys, length, (const typename S::Active*)active, scale, scores + g * score_stride);
    }
    prefetch_some(values, std::min(START, length * P * (int64_t)sizeof(Stored)));
    for (int64_t g = 0; g < G; ++g) {
      float* row = scores + g * score_stride;
      if (S::integers)
        for (int64_t t = 0; t < length; ++t) row[t] *= key_scales[t];
      softmax(row, length);
      if (S::integers)
        for (int64_t t = 0; t < length; ++t) row[t] *= value_scales[t];
      // Keys of the next head, of which there are as many, or of the next row.
      if (g == G - 1)
        prefetch_some(keys + op.capacity * P, std::min(START, length * P * (int64_t)sizeof(Stored)));
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
