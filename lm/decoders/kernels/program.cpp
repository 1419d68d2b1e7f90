// Blocks of steps of a program of small operations (../step_program.py says what they mean), sampling included.
//
// Operations with few weights are shared out by rows: a thread keeps its rows from one to the next and waits
// for nobody. Those with many weights are shared out by outputs, so that each weight is read by one core; they
// stand between barriers. A sum is taken in the same order whatever the number of rows and threads, so a row
// does not depend on those beside it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include <omp.h>

#include "storage.h"

namespace {

enum Kind : int64_t { EMBED = 0, LINEAR = 1, GRU = 2, LSTM = 3 };
enum Activation : int64_t { NONE = 0, RELU = 1, TANH = 2, GATED = 3 };

// A negative count -n: up to n - 1, and there to stay.
struct Clock {
  int64_t count, shift, div, mul;
  int64_t at(int64_t step) const {
    if (count == 1) return 0;
    const int64_t number = step * mul / div + shift;
    return count > 0 ? number % count : std::min(number, -count - 1);
  }
};

struct Place {
  int64_t base, width, row_stride, slot_stride;
  Clock slot, part;
  float* at(float* state, int64_t step) const {
    return state + base + slot.at(step) * slot_stride + part.at(step) * width;
  }
};

constexpr int64_t MAX_SOURCES = 8;

struct Operation {
  int64_t kind, period, by_outputs;
  Place out, add, sources[MAX_SOURCES];
  int64_t num_sources, has_add, activation, num_outputs, num_inputs;
  int64_t taps, joined;    // of EMBED
  int64_t is_bf16;         // of LINEAR's weights
  const void* weights;     // LINEAR: panels of 16 outputs [panel, input, 16]; EMBED: [taps, K, V + 1, E]
  const float* bias;       // in the order of the panels, padded with zeros
};

struct Run {
  const Operation* operations;
  int64_t num_operations, num_before_head;
  float* state;
  Place logits;
  int64_t num_rows, batch_size, num_codebooks, codebook_size;
  int64_t* tokens;         // [B, K, num_tokens]; the input of step s is tokens[.., s]
  int64_t num_tokens;
  const uint8_t* to_sample;  // [B, K, num_tokens - 1]; null: nothing is sampled
  const float* noise;        // the same shape
  float* all_logits;       // [R, stop - start, K V], or null
  int64_t start, predict_from, stop, num_threads;
  int64_t guided, top_k;   // top_k 0: no limit
  double temperature, top_p, cfg_scale;
};

inline Floats sigmoid(const Floats& x) { return 1.0f / (1.0f + exp(-x)); }
inline Floats tanh(const Floats& x) { return 1.0f - 2.0f / (1.0f + exp(x + x)); }

inline int64_t share(int64_t total, int64_t thread, int64_t num_threads) { return total * thread / num_threads; }

// ------------------------------------------------------------------------------------------------- linear

struct Source {
  const float* x;
  int64_t stride, width;
};

// The outputs of some pairs of panels for ROWS rows from `row` on.
template <class Storage, int ROWS, int PAIRS>
void outputs_of(const Operation& op, const Source* sources, float* out, const float* add, int64_t row, int64_t pair) {
  constexpr int PANELS = 2 * PAIRS;
  Floats sums[ROWS][PANELS] = {};
  const int64_t panel_stride = op.num_inputs * LANES;
  typedef typename Storage::Stored Stored;
  const Stored* weights = (const Stored*)op.weights + 2 * pair * panel_stride;
  for (int64_t j = 0; j < op.num_sources; ++j) {
    const Source& source = sources[j];
    const float* rows[ROWS];
    for (int r = 0; r < ROWS; ++r) rows[r] = source.x + (row + r) * source.stride;
    for (int64_t i = 0; i < source.width; ++i, weights += LANES) {
      Floats w[PANELS];
      for (int p = 0; p < PANELS; ++p) w[p] = Storage::floats(weights + p * panel_stride);
      // Many rows take long enough for the next pair's weights to come.
      if (ROWS == 8) __builtin_prefetch(weights + (PANELS + (row / 8) % 2) * panel_stride, 0, 2);
      for (int r = 0; r < ROWS; ++r)
        for (int p = 0; p < PANELS; ++p) sums[r][p] += w[p] * rows[r][i];
    }
  }
  for (int p = 0; p < PANELS; ++p) {
    const Floats bias = load<Floats>(op.bias + (2 * pair + p) * LANES);
    for (int r = 0; r < ROWS; ++r) sums[r][p] += bias;
  }
  const bool gated = op.activation == GATED;
  const int64_t width = gated ? op.num_outputs / 2 : op.num_outputs;
  for (int r = 0; r < ROWS; ++r) {
    float* y = out + (row + r) * op.out.row_stride;
    const float* a = add ? add + (row + r) * op.add.row_stride : nullptr;
    for (int p = 0; p < PANELS; p += gated ? 2 : 1) {
      const int64_t first = (gated ? pair + p / 2 : 2 * pair + p) * LANES;
      const int64_t count = std::min(LANES, width - first);
      if (count <= 0) continue;
      Floats v = sums[r][p];
      if (a) v += load_some(a + first, count);
      if (gated) {
        Floats gate = sums[r][p + 1];
        if (a) gate += load_some(a + width + first, count);
        v = tanh(v) * sigmoid(gate);
      } else if (op.activation == RELU) {
        v = choose(v < 0.0f, Floats{}, v);  // NaN stays
      } else if (op.activation == TANH) {
        v = tanh(v);
      }
      store_some(y + first, v, count);
    }
  }
}

// The outputs of PAIRS pairs for rows `first` to `end` - 1, which all find the weights in the cache.
template <class Storage, int PAIRS>
void outputs_of_rows(const Operation& op, const Source* sources, float* out, const float* add, int64_t first,
                     int64_t end, int64_t pair) {
  int64_t row = first;
#if defined(__AVX512F__)
  if (PAIRS == 1)
    for (; row + 8 <= end; row += 8) outputs_of<Storage, 8, 1>(op, sources, out, add, row, pair);
  if (PAIRS <= 2)
    for (; row + 4 <= end; row += 4) outputs_of<Storage, 4, PAIRS <= 2 ? PAIRS : 1>(op, sources, out, add, row, pair);
#endif
  if (PAIRS <= 2)
    for (; row + 2 <= end; row += 2) outputs_of<Storage, 2, PAIRS <= 2 ? PAIRS : 1>(op, sources, out, add, row, pair);
  for (; row < end; ++row) outputs_of<Storage, 1, PAIRS>(op, sources, out, add, row, pair);
}

template <class Storage>
void linear(const Operation& op, float* state, int64_t step, int64_t first, int64_t end, int64_t first_pair,
            int64_t end_pair) {
  Source sources[MAX_SOURCES];
  for (int64_t j = 0; j < op.num_sources; ++j)
    sources[j] = {op.sources[j].at(state, step), op.sources[j].row_stride, op.sources[j].width};
  float* out = op.out.at(state, step);
  const float* add = op.has_add ? op.add.at(state, step) : nullptr;
  int64_t pair = first_pair;
  // The fewer rows share a weight, the more outputs are summed at once: all sums are in registers.
#if defined(__AVX512F__)
  if (end - first == 1)
    for (; pair + 4 <= end_pair; pair += 4) outputs_of_rows<Storage, 4>(op, sources, out, add, first, end, pair);
  if (end - first < 8)
    for (; pair + 2 <= end_pair; pair += 2) outputs_of_rows<Storage, 2>(op, sources, out, add, first, end, pair);
#endif
  for (; pair < end_pair; ++pair) outputs_of_rows<Storage, 1>(op, sources, out, add, first, end, pair);
}

typedef void Linear(const Operation&, float*, int64_t, int64_t, int64_t, int64_t, int64_t);

// ------------------------------------------------------------------------------------- embeddings and cells

void embed(const Run& run, const Operation& op, int64_t step, int64_t first, int64_t end) {
  const int64_t K = run.num_codebooks, V = run.codebook_size, T = run.num_tokens;
  const int64_t width = op.joined ? op.out.width / op.taps : op.out.width;
  float* out = op.out.at(run.state, step);
  const float* add = op.has_add ? op.add.at(run.state, step) : nullptr;
  for (int64_t r = first; r < end; ++r) {
    const int64_t* tokens = run.tokens + (r % run.batch_size) * K * T;
    float* y = out + r * op.out.row_stride;
    if (add)
      std::copy(add + r * op.add.row_stride, add + r * op.add.row_stride + op.out.width, y);
    else
      std::fill(y, y + op.out.width, 0.0f);
    for (int64_t tap = 0; tap < op.taps; ++tap) {
      float* part = op.joined ? y + (op.taps - 1 - tap) * width : y;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t token = step < tap ? V : tokens[k * T + step - tap];
        const float* row = (const float*)op.weights + ((tap * K + k) * (V + 1) + token) * width;
        for (int64_t i = 0; i < width; ++i) part[i] += row[i];
      }
    }
  }
}

void gru(const Operation& op, float* state, int64_t step, int64_t first, int64_t end) {
  const int64_t H = op.out.width;
  for (int64_t r = first; r < end; ++r) {
    float* h = op.out.at(state, step) + r * op.out.row_stride;
    const float* a = op.sources[0].at(state, step) + r * op.sources[0].row_stride;
    const float* b = op.sources[1].at(state, step) + r * op.sources[1].row_stride;
    for (int64_t i = 0; i < H; i += LANES) {
      const int64_t n = std::min(LANES, H - i);
      const Floats reset = sigmoid(load_some(a + i, n) + load_some(b + i, n));
      const Floats update = sigmoid(load_some(a + H + i, n) + load_some(b + H + i, n));
      const Floats fresh = tanh(load_some(a + 2 * H + i, n) + reset * load_some(b + 2 * H + i, n));
      const Floats renewed = (1.0f - update) * fresh + update * load_some(h + i, n);
      store_some(h + i, renewed, n);
    }
  }
}

void lstm(const Operation& op, float* state, int64_t step, int64_t first, int64_t end) {
  const int64_t H = op.out.width;
  for (int64_t r = first; r < end; ++r) {
    float* h = op.out.at(state, step) + r * op.out.row_stride;
    float* c = op.sources[0].at(state, step) + r * op.sources[0].row_stride;
    const float* g = op.sources[1].at(state, step) + r * op.sources[1].row_stride;
    for (int64_t i = 0; i < H; i += LANES) {
      const int64_t n = std::min(LANES, H - i);
      const Floats kept = sigmoid(load_some(g + H + i, n)) * load_some(c + i, n);
      const Floats cell = kept + sigmoid(load_some(g + i, n)) * tanh(load_some(g + 2 * H + i, n));
      const Floats hidden = sigmoid(load_some(g + 3 * H + i, n)) * tanh(cell);
      store_some(c + i, cell, n);
      store_some(h + i, hidden, n);
    }
  }
}

// ----------------------------------------------------------------------------------------------- sampling

// What `sample_tokens` in ../sampling.py does to one distribution; V if the logits hold NaN.
int64_t sample(const Run& run, std::vector<float>& p, std::vector<float>& sorted, float noise) {
  const int64_t V = run.codebook_size;
  float best = -INFINITY;
  int64_t likeliest = V;
  for (int64_t v = 0; v < V; ++v) {
    if (std::isnan(p[v])) return V;
    if (p[v] > best) best = p[v], likeliest = v;
  }
  if (run.temperature == 0 || run.top_k == 1) return likeliest;
  const float temperature = (float)run.temperature;
  for (int64_t v = 0; v < V; ++v) p[v] /= temperature;
  best /= temperature;
  if (run.top_k > 0 && run.top_k < V) {
    std::copy(p.begin(), p.begin() + V, sorted.begin());
    std::nth_element(sorted.begin(), sorted.begin() + run.top_k - 1, sorted.begin() + V, std::greater<float>());
    const float smallest = sorted[run.top_k - 1];
    for (int64_t v = 0; v < V; ++v)
      if (p[v] < smallest) p[v] = -INFINITY;
  }
  float total = 0;
  for (int64_t v = 0; v < V; v += LANES) {
    const int64_t n = std::min(LANES, V - v);
    const Floats x = load_some(p.data() + v, n) - best;
    const Floats e = choose(x < -86.0f, Floats{}, exp(x));
    store_some(p.data() + v, e, n);
  }
  for (int64_t v = 0; v < V; ++v) total += p[v];
  for (int64_t v = 0; v < V; ++v) p[v] /= total;
  if (run.top_p < 1) {
    std::copy(p.begin(), p.begin() + V, sorted.begin());
    std::sort(sorted.begin(), sorted.begin() + V, std::greater<float>());
    float before = 0, smallest = sorted[0];
    for (int64_t v = 0; v < V && before < (float)run.top_p; ++v) smallest = sorted[v], before += sorted[v];
    for (int64_t v = 0; v < V; ++v)
      if (p[v] < smallest) p[v] = 0;
  }
  float sum = 0;
  for (int64_t v = 0; v < V; ++v) sum += p[v];
  const float target = noise * sum;
  float cumulative = 0;
  for (int64_t v = 0; v < V; ++v) {
    cumulative += p[v];
    if (cumulative >= target) return v;
  }
  return V;
}

struct Scratch {
  std::vector<float> p, sorted;
};

void predict(const Run& run, int64_t step, int64_t first, int64_t end, Scratch& scratch) {
  const int64_t K = run.num_codebooks, V = run.codebook_size, T = run.num_tokens;
  const float* logits = run.logits.at(run.state, step);
  if (run.all_logits)
    for (int64_t r = first; r < end; ++r)
      std::memcpy(run.all_logits + (r * (run.stop - run.start) + step - run.start) * K * V,
                  logits + r * run.logits.row_stride, K * V * sizeof(float));
  if (!run.to_sample) return;
  const float scale = (float)run.cfg_scale;
  for (int64_t r = first; r < std::min(end, run.batch_size); ++r)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = (r * K + k) * (T - 1) + step;
      if (!run.to_sample[at]) continue;
      const float* given = logits + r * run.logits.row_stride + k * V;
      if (run.guided) {
        const float* hidden = given + run.batch_size * run.logits.row_stride;
        for (int64_t v = 0; v < V; ++v) scratch.p[v] = hidden[v] + scale * (given[v] - hidden[v]);
      } else {
        std::copy(given, given + V, scratch.p.begin());
      }
      run.tokens[(r * K + k) * T + step + 1] = sample(run, scratch.p, scratch.sorted, run.noise[at]);
    }
}

// ------------------------------------------------------------------------------------------------- the run

// A barrier of threads that meet every few microseconds. Those who wait give their core away soon: OpenMP's
// spin for milliseconds, which stops everything where another program has taken the core of one of them.
struct Barrier {
  static constexpr int SPINS = 2000;
  int64_t num_threads = 1;
  std::atomic<int64_t> waiting{0}, generation{0};

  void wait() {
    const int64_t now = generation.load(std::memory_order_relaxed);
    if (waiting.fetch_add(1, std::memory_order_acq_rel) == num_threads - 1) {
      waiting.store(0, std::memory_order_relaxed);
      generation.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; generation.load(std::memory_order_acquire) == now; ++spin)
      if (spin >= SPINS) std::this_thread::yield();
  }
};

// They meet where the next operation is shared out otherwise than the one before, or by outputs.
struct Meeting {
  Barrier& barrier;
  bool by_outputs = false;
  void before(bool next_by_outputs) {
    if (barrier.num_threads > 1 && (next_by_outputs || by_outputs)) barrier.wait();
    by_outputs = next_by_outputs;
  }
};

void run_thread(const Run& run, Barrier& barrier, int64_t thread) {
  const int64_t num_threads = barrier.num_threads;
  Scratch scratch{std::vector<float>(run.codebook_size), std::vector<float>(run.codebook_size)};
  Meeting meeting{barrier};
  const int64_t first = share(run.num_rows, thread, num_threads);
  const int64_t end = share(run.num_rows, thread + 1, num_threads);
  for (int64_t step = run.start; step < run.stop; ++step) {
    const bool predicts = step >= run.predict_from;
    const int64_t num_operations = predicts ? run.num_operations : run.num_before_head;
    for (int64_t i = 0; i < num_operations; ++i) {
      const Operation& op = run.operations[i];
      if (op.period > 1 && step % op.period) continue;
      meeting.before(op.by_outputs);
      if (op.kind == LINEAR) {
        const int64_t panels = (op.num_outputs + LANES - 1) / LANES;
        const int64_t pairs = op.activation == GATED ? (op.num_outputs / 2 + LANES - 1) / LANES : (panels + 1) / 2;
        Linear* product = op.is_bf16 ? linear<Bf16> : linear<Fp32>;
        if (op.by_outputs)
          product(op, run.state, step, 0, run.num_rows, share(pairs, thread, num_threads),
                  share(pairs, thread + 1, num_threads));
        else
          product(op, run.state, step, first, end, 0, pairs);
      } else if (op.kind == EMBED) {
        embed(run, op, step, first, end);
      } else if (op.kind == GRU) {
        gru(op, run.state, step, first, end);
      } else {
        lstm(op, run.state, step, first, end);
      }
    }
    if (!predicts) continue;
    // Under guidance a clip is two rows, which may be two threads' rows.
    meeting.before(run.guided);
    predict(run, step, first, end, scratch);
    meeting.by_outputs = meeting.by_outputs || run.guided;
  }
}

}  // namespace

extern "C" int64_t operation_size() { return sizeof(Operation); }
extern "C" int64_t run_size() { return sizeof(Run); }

extern "C" void run_program(const Run* run) {
  Barrier barrier;
#pragma omp parallel num_threads(run->num_threads)
  {
#pragma omp single
    barrier.num_threads = omp_get_num_threads();  // which may be fewer than asked for
    run_thread(*run, barrier, omp_get_thread_num());
  }
}
