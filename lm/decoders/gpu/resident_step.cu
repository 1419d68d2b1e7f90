// A whole step of a Transformer with weights in bfloat16, from tokens to logits, as one kernel that stays on
// the GPU.
//
// With few rows a step reads every weight once and computes next to nothing with it, so its time is that of
// the bytes, and of waiting between one product and the next, which needs all of its results. Kernels one
// after another wait for some 3 microseconds each time. Here each block stays on its multiprocessor and owns
// the same outputs of every product. It has their weights on the way before it needs them, and sends its
// results as words of 8 bytes that carry a tag: who needs a number reads its word until the tag is that of
// this step and layer. So there is no barrier between blocks and no fence (as in NCCL's protocol LL,
// arXiv:2507.04786). A word is written again only after all who read it have sent what later products needed.
//
// What products hand to one another is bfloat16, their sums and the residual stream are float32. Each warp
// takes a part of the inputs of all outputs of its block; the sums of the warps are added in order, so
// results do not depend on what was there first.
//
// The host (`resident_step.py`) says the shape by macros, and everything else in one array of 64-bit numbers.
// It launches no more blocks than run at the same time, because they wait for one another.

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#ifndef EMULATED
#define FULL 0xffffffffu

extern __shared__ float4 shared_memory[];

// Two float32 as bfloat16 in one word, `low` in its lower half.
__device__ __forceinline__ u32 packed(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// c += a b: 16 outputs, 16 inputs, 8 rows.
__device__ __forceinline__ void multiply_add(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 16 bytes that are read once.
__device__ __forceinline__ uint4 streamed(const u16* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

__device__ __forceinline__ void read_word(const u64* p, u32& value, u32& tag) {
  asm volatile("ld.volatile.global.v2.b32 {%0,%1}, [%2];" : "=r"(value), "=r"(tag) : "l"(p));
}

__device__ __forceinline__ void read_two_words(const u64* p, u32& value, u32& tag, u32& next, u32& next_tag) {
  asm volatile("ld.volatile.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value), "=r"(tag), "=r"(next), "=r"(next_tag)
               : "l"(p));
}

__device__ __forceinline__ void write_word(u64* p, u32 value, u32 tag) {
  asm volatile("st.volatile.global.v2.b32 [%0], {%1,%2};" ::"l"(p), "r"(value), "r"(tag));
}

__device__ __forceinline__ void ask_for_line(const char* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ __forceinline__ void yield() {}
#endif

constexpr int WARPS = NUM_WARPS;
constexpr int THREADS = 32 * WARPS;
constexpr int PAIRS = (ROWS + 1) / 2;
constexpr int KV_DIM = KV_HEADS * HEAD_DIM;
constexpr int QKV = DIM + 2 * KV_DIM;
constexpr int LANES = HEAD_DIM / 8;  // that share a key
constexpr int KEYS_OF_WARP = 32 / LANES;
constexpr int BLOCK_KEYS = 4 * KEYS_OF_WARP * WARPS;
constexpr int PART = HEAD_DIM / 2 + 1;  // words of a part: pairs of numbers, and a logarithm
constexpr int MOMENTS = ROWS == 1 ? 2 : ROWS == 2 ? 4 : ROWS <= 4 ? 8 : 16;  // twice the rows, or more
constexpr int PADDED = 32;  // between rows of inputs, so that two rows lie in different banks

__device__ constexpr int share_of(int outputs) { return (outputs + BLOCKS - 1) / BLOCKS; }
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

constexpr int PER_QKV = share_of(QKV);
constexpr int PER_DIM = share_of(DIM);
constexpr int PER_UP = share_of(HIDDEN);
constexpr int PER_LOGITS = share_of(LOGITS);
constexpr int MOST = larger(larger(PER_QKV, PER_LOGITS), (GATED ? 2 : 1) * PER_UP);
#if IS_FOLDED
constexpr int STATES = 32;              // a memory has no more of them
constexpr int SCORES = HEADS * STATES;  // of a row
static_assert(HEADS % WARPS == 0);
constexpr int PER_SCORES = share_of((ROWS)*SCORES);
constexpr int TILES = (larger(larger(MOST, PER_SCORES), (ROWS)*PER_DIM) + 15) / 16;
#else
constexpr int SCORES = 0;
constexpr int TILES = (MOST + 15) / 16;
#endif
constexpr int WIDEST = larger(larger(HIDDEN, DIM), SCORES);

struct Layer {
  const u16 *attention_gain, *attention_bias, *qkv, *q_gain, *k_gain;
  u16 *keys, *values;
  const u16* out;
  const u16 *cross_gain, *cross_bias, *query, *memory_keys, *memory_values, *cross_out;
  const u16 *up_gain, *up_bias, *up, *down;
  const u16 *folded_keys, *folded_values;  // [R, H · 32, D] and [R, D, H · 32]
};

struct Step {
  u32* launches;
  i64 *position, *position_of_logits;
  const u16 *embedding, *added;
  const float* frequencies;
  const i64* num_hidden;
  const bool *prefix_seen, *memory_seen;
  u64 *x, *after_attention, *after_cross, *qkv, *parts, *query, *cross, *hidden, *scores;
  const u16 *norm_gain, *norm_bias, *head;
  float* logits;
  const i64* tokens;
  i64 num_clips, clip_stride, codebook_stride, step_stride;
  i64 num_prepended, num_prefix_seen, num_states;
  i64 cache_row_stride, cache_head_stride, memory_row_stride, memory_head_stride, memory_key_stride;
  Layer layers[LAYERS];
};

struct Shared {
  Step step;
  float parts[WARPS][HEAD_DIM + 2];
  alignas(16) float moments[MOMENTS][WARPS];
  alignas(16) float sums[TILES * 16][ROWS][WARPS + 4];  // neighbours in different banks
  alignas(16) u16 inputs[ROWS][WIDEST + PADDED];
};

__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }
__device__ __forceinline__ float number(u16 x) { return __uint_as_float((u32)x << 16); }

// Words at p and p + 1, p + stride and p + stride + 1, ... once all that the warp asks for have the tag. All
// of its lanes come here.
template <int N>
__device__ __forceinline__ void receive(const u64* p, int stride, u32 tag, u32 (&values)[N]) {
  for (;;) {
    bool is_there = true;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      u32 found, next_found;
      read_two_words(p + j / 2 * stride, values[j], found, values[j + 1], next_found);
      is_there &= found == tag && next_found == tag;
    }
    if (__all_sync(FULL, is_there)) return;
    yield();
  }
}

__device__ __forceinline__ float sum_over_warps(const float* x) {
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w += 4) {
    const float4 four = *(const float4*)&x[w];
    sum += (four.x + four.y) + (four.z + four.w);
  }
  return sum;
}

// Have rows `first` to `limit` of a matrix brought into the L2 cache.
__device__ __forceinline__ void prefetch(const u16* matrix, int first, int limit, int width) {
  const char* p = (const char*)(matrix + (i64)first * width);
  const int bytes = (limit - first) * width * 2;
#pragma unroll 1
  for (int place = 128 * threadIdx.x; place < bytes; place += 128 * THREADS) ask_for_line(p + place);
}

template <int N>
__device__ __forceinline__ void prefetch_share(const u16* matrix, int width) {
  const int first = blockIdx.x * share_of(N);
  if (first < N) prefetch(matrix, first, smaller(first + share_of(N), N), width);
}

// ------------------------------------------------------------------------------------------------ products

enum Epilogue { SEND, ACTIVATE, ADD, KEEP, SCORE };

// Weights of one block's outputs, in the order in which its warps use them. An item is 32 inputs of 16
// outputs: of each output, a lane has 8 inputs that are neighbours. Which of the 32 a tensor core takes to be
// which is the same for weights and inputs, and matters to no sum.
template <int INPUTS, int OUTPUTS, int MATRICES>
struct Weights {
  static constexpr int PER = share_of(OUTPUTS);
  static constexpr int NUM_TILES = (MATRICES * PER + 15) / 16;
  static constexpr bool IS_HALF = MATRICES * PER <= 8;
  static constexpr int CHUNKS = INPUTS / 32;
  static constexpr int STEPS = (CHUNKS + WARPS - 1) / WARPS;
  static constexpr int ITEMS = NUM_TILES * STEPS;
  static constexpr int EARLY = smaller(ITEMS, IS_HALF ? 16 : 8);  // what registers hold

  const u16* matrix;
  int first, warp, lane;
  uint4 held[EARLY][IS_HALF ? 1 : 2];

  // Ask for the first of them.
  __device__ __forceinline__ void begin(const u16* matrix_) {
    matrix = matrix_;
    first = blockIdx.x * PER;
    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
#pragma unroll
    for (int item = 0; item < EARLY; item++) load(item);
  }

  // Beyond the last output or input come others again: nobody asks for those sums, and those inputs are
  // zeros.
  __device__ __forceinline__ uint4 row(int o, int chunk) const {
    const int n = first + (MATRICES == 1 ? o : o % PER),
              known = smaller(smaller(n, first + PER - 1), OUTPUTS - 1);
    const int place = (MATRICES == 1 ? known : smaller(o / PER, MATRICES - 1) * OUTPUTS + known) * INPUTS;
    return streamed(
        matrix + place + (CHUNKS % WARPS == 0 ? chunk : smaller(chunk, CHUNKS - 1)) * 32 + lane % 4 * 8);
  }

  __device__ __forceinline__ void load(int item) {
    const int o = item / STEPS * 16 + lane / 4, chunk = warp * STEPS + item % STEPS;
    held[item % EARLY][0] = row(o, chunk);
    if (!IS_HALF) held[item % EARLY][IS_HALF ? 0 : 1] = row(o + 8, chunk);
  }
};

// Gains and biases of a norm. A thread has two neighbours of every 2 THREADS inputs.
template <bool HAS_NORM, int INPUTS>
struct Gains {
  static constexpr int EACH = (INPUTS + 2 * THREADS - 1) / (2 * THREADS);
  u32 gain[EACH], bias[EACH];

  __device__ __forceinline__ Gains(const u16* gains, const u16* biases) {
    if (!HAS_NORM) return;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = smaller(2 * (threadIdx.x + j * THREADS), INPUTS - 2);
      gain[j] = *(const u32*)(gains + i);
      bias[j] = IS_LAYERNORM ? *(const u32*)(biases + i) : 0;
    }
  }
};

// Inputs of a product from words, normalised if there is a norm, to shared memory.
template <bool HAS_NORM, int INPUTS, class Next>
__device__ __forceinline__ void take_words(
    Shared& shared, const u64* from, u32 tag, const Gains<HAS_NORM, INPUTS>& gains, Next begin_next) {
  constexpr int EACH = Gains<HAS_NORM, INPUTS>::EACH;
  constexpr bool IS_EVEN = INPUTS % (2 * THREADS) == 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 both[PAIRS][2 * EACH];
#pragma unroll
  for (int pair = 0; pair < PAIRS; pair++) {
    const u64* p = from + pair * INPUTS;
    if (IS_EVEN) {
      receive<2 * EACH>(p + 2 * threadIdx.x, 2 * THREADS, tag, both[pair]);
    } else {
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        u32 two[2];
        const int i = 2 * (threadIdx.x + j * THREADS);
        receive<2>(p + smaller(i, INPUTS - 2), 0, tag, two);
        both[pair][2 * j] = i < INPUTS ? two[0] : 0, both[pair][2 * j + 1] = i < INPUTS ? two[1] : 0;
      }
    }
  }
  begin_next();
  float mean[2 * PAIRS] = {}, scale[2 * PAIRS];
  if (HAS_NORM) {
    // Both moments at once. It loses digits where a row's mean is far above its deviation.
    float moments[MOMENTS] = {};  // of each row its sum and its sum of squares
#pragma unroll
    for (int row = 0; row < ROWS; row++)
#pragma unroll
      for (int j = 0; j < 2 * EACH; j++) {
        const float x = row % 2 ? high(both[row / 2][j]) : low(both[row / 2][j]);
        moments[2 * row] += x, moments[2 * row + 1] += x * x;
      }
    // Lanes halve what they sum up as long as there are several sums.
#pragma unroll
    for (int distance = 16, sums = MOMENTS; distance > 0; distance /= 2, sums /= 2) {
      if (sums > 1) {
#pragma unroll
        for (int k = 0; k < sums / 2; k++) {
          const bool is_upper = lane & distance;
          const float given = is_upper ? moments[k] : moments[k + sums / 2];
          const float kept = is_upper ? moments[k + sums / 2] : moments[k];
          moments[k] = kept + __shfl_xor_sync(FULL, given, distance);
        }
      } else {
        moments[0] += __shfl_xor_sync(FULL, moments[0], distance);
      }
    }
    if (lane % (32 / MOMENTS) == 0) shared.moments[lane / (32 / MOMENTS)][warp] = moments[0];
    __syncthreads();
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      mean[row] = IS_LAYERNORM ? sum_over_warps(shared.moments[2 * row]) / INPUTS : 0.f;
      const float variance = sum_over_warps(shared.moments[2 * row + 1]) / INPUTS - mean[row] * mean[row];
      scale[row] = rsqrtf(fmaxf(variance, 0.f) + (IS_LAYERNORM ? 1e-5f : 1e-6f));
    }
  }
#pragma unroll
  for (int row = 0; row < ROWS; row++)
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int i = 2 * (threadIdx.x + j * THREADS);
      const u32 first = both[row / 2][2 * j], second = both[row / 2][2 * j + 1];
      u32 bits = row % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffff) | second << 16;
      if (HAS_NORM)
        bits = packed(
            (low(bits) - mean[row]) * scale[row] * low(gains.gain[j]) + low(gains.bias[j]),
            (high(bits) - mean[row]) * scale[row] * high(gains.gain[j]) + high(gains.bias[j]));
      if (IS_EVEN || i < INPUTS) *(u32*)&shared.inputs[row][i] = bits;
    }
}

// Attention over all keys, of attention over parts of them, to shared memory.
template <int MOST_PARTS, class Next>
__device__ __forceinline__ void take_parts(
    Shared& shared, const u64* from, u32 tag, int num_parts, Next begin_next) {
  constexpr int ROUNDS = (DIM / 2 + THREADS - 1) / THREADS;
  if (num_parts == 1) {
    u32 both[ROUNDS][ROWS];
    for (;;) {
      bool is_there = true;
#pragma unroll
      for (int round = 0; round < ROUNDS; round++)
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
          const int j = smaller(threadIdx.x + round * THREADS, DIM / 2 - 1);
          u32 found;
          const u64* p = from + (row * HEADS + j / (HEAD_DIM / 2)) * PART + j % (HEAD_DIM / 2);
          read_word(p, both[round][row], found);
          is_there &= found == tag;
        }
      if (__all_sync(FULL, is_there)) break;
      yield();
    }
    begin_next();
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
#pragma unroll
      for (int row = 0; row < ROWS; row++) {
        const int j = threadIdx.x + round * THREADS;
        if (j < DIM / 2) *(u32*)&shared.inputs[row][2 * j] = both[round][row];
      }
    return;
  }
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int mine = threadIdx.x + round * THREADS, j = smaller(mine, DIM / 2 - 1);
    const int head = j / (HEAD_DIM / 2), place = j % (HEAD_DIM / 2);
    u32 both[ROWS][MOST_PARTS], logs[ROWS][MOST_PARTS];
    for (;;) {
      bool is_there = true;
#pragma unroll
      for (int row = 0; row < ROWS; row++)
#pragma unroll
        for (int part = 0; part < MOST_PARTS; part++) {
          const u64* p = from + ((part * ROWS + row) * HEADS + head) * PART;
          u32 found = tag, found_log = tag;
          if (part < num_parts) read_word(p + place, both[row][part], found);
          if (part < num_parts) read_word(p + PART - 1, logs[row][part], found_log);
          is_there &= found == tag && found_log == tag;
        }
      if (__all_sync(FULL, is_there)) break;
      yield();
    }
    if (round == ROUNDS - 1) begin_next();
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      float most = __uint_as_float(logs[row][0]), a = 0.f, b = 0.f, total = 0.f;
#pragma unroll
      for (int part = 1; part < MOST_PARTS; part++)
        if (part < num_parts) most = fmaxf(most, __uint_as_float(logs[row][part]));
#pragma unroll
      for (int part = 0; part < MOST_PARTS; part++)
        if (part < num_parts) {
          const float share = exp2f(__uint_as_float(logs[row][part]) - most);
          total += share, a += share * low(both[row][part]), b += share * high(both[row][part]);
        }
      if (mine == j) *(u32*)&shared.inputs[row][2 * j] = packed(a / total, b / total);
    }
  }
}

// The sums of this block's outputs over the inputs in shared memory; they end in `shared.sums`.
template <int INPUTS, int OUTPUTS, int MATRICES>
__device__ __forceinline__ void multiply(Shared& shared, Weights<INPUTS, OUTPUTS, MATRICES>& weights) {
  using W = Weights<INPUTS, OUTPUTS, MATRICES>;
  const int warp = weights.warp, lane = weights.lane, row = lane / 4;
  uint4 input[W::STEPS];
#pragma unroll
  for (int tile = 0; tile < W::NUM_TILES; tile++) {
    // Sums that wait for one another take their time, so there are several.
    constexpr int CHAINS = W::NUM_TILES == 1 ? 4 : 2;
    float sums[CHAINS][4] = {};
#pragma unroll
    for (int step = 0; step < W::STEPS; step++) {
      const int item = tile * W::STEPS + step;
      if (tile == 0) {
        const int chunk = warp * W::STEPS + step;
        input[step] = make_uint4(0, 0, 0, 0);
        if (row < ROWS && (W::CHUNKS % WARPS == 0 || chunk < W::CHUNKS))
          input[step] = *(const uint4*)&shared.inputs[row < ROWS ? row : 0][chunk * 32 + lane % 4 * 8];
      }
      const uint4 a = weights.held[item % W::EARLY][0], x = input[step];
      uint4 b = make_uint4(0, 0, 0, 0);
      if (!W::IS_HALF) b = weights.held[item % W::EARLY][W::IS_HALF ? 0 : 1];
      multiply_add(sums[2 * step % CHAINS], a.x, b.x, a.y, b.y, x.x, x.y);
      multiply_add(sums[(2 * step + 1) % CHAINS], a.z, b.z, a.w, b.w, x.z, x.w);
      if (item + W::EARLY < W::ITEMS) weights.load(item + W::EARLY);
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int column = lane % 4 * 2 + k % 2;
      float sum = sums[0][k];
#pragma unroll
      for (int chain = 1; chain < CHAINS; chain++) sum += sums[chain][k];
      if (column < ROWS) shared.sums[tile * 16 + lane / 4 + k / 2 * 8][column][warp] = sum;
    }
  }
  __syncthreads();
}

// What a thread keeps of the residual stream: two rows of an output that is its own in every product.
constexpr int RESIDUALS = (PER_DIM * PAIRS + THREADS - 1) / THREADS;
struct Residual {
  float x[RESIDUALS][2];
};

// This block's outputs of a product, from `shared.sums` to who waits for them.
template <int OUTPUTS, Epilogue EPILOGUE, bool HAS_MATRIX_OF_ROW = false>
__device__ __forceinline__ void send(
    const Shared& shared, u64* to, float* logits, u32 tag, Residual& residual) {
  constexpr int PER = share_of(OUTPUTS);
  constexpr int ROUNDS = (PER * PAIRS + THREADS - 1) / THREADS;
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int o = (threadIdx.x + round * THREADS) / PAIRS, pair = (threadIdx.x + round * THREADS) % PAIRS;
    const int n = blockIdx.x * PER + o;
    if (o >= PER || n >= OUTPUTS) continue;
    if (EPILOGUE == SCORE) {  // the weights of an output are of one row
      write_word(to + n, __float_as_uint(sum_over_warps(shared.sums[o][n / (OUTPUTS / ROWS)])), tag);
      continue;
    }
    float y[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int row = smaller(2 * pair + k, ROWS - 1);
      y[k] = sum_over_warps(shared.sums[o + (HAS_MATRIX_OF_ROW ? row * PER : 0)][row]);
      if (EPILOGUE == ACTIVATE && GATED)
        y[k] = y[k] / (1.f + expf(-y[k])) * sum_over_warps(shared.sums[PER + o][row]);
      if (EPILOGUE == ACTIVATE && !GATED) y[k] = 0.5f * y[k] * (1.f + erff(y[k] * 0.70710678f));
      if (EPILOGUE == ADD) y[k] = residual.x[round < RESIDUALS ? round : 0][k] += y[k];
      if (EPILOGUE == KEEP && 2 * pair + k < ROWS) logits[(i64)row * OUTPUTS + n] = y[k];
    }
    if (EPILOGUE != KEEP) write_word(to + (i64)pair * OUTPUTS + n, packed(y[0], y[1]), tag);
  }
}

// A product from one set of words to another, with a norm before it. `begin_next` asks for the weights of the
// next one as soon as the inputs are there: later, the words that are then waited for would stand in line
// behind them.
template <int INPUTS, int OUTPUTS, int MATRICES, bool HAS_NORM, Epilogue EPILOGUE, class Next>
__device__ __forceinline__ void product(
    Shared& shared, const u64* from, u64* to, float* logits, Weights<INPUTS, OUTPUTS, MATRICES>& weights,
    const u16* gain, const u16* bias, u32 tag, u32 tag_of_results, Residual& residual, Next begin_next) {
  if (blockIdx.x * share_of(OUTPUTS) >= OUTPUTS) return begin_next();
  const Gains<HAS_NORM, INPUTS> gains(gain, bias);
  take_words<HAS_NORM, INPUTS>(shared, from, tag, gains, begin_next);
  __syncthreads();
  multiply(shared, weights);
  send<OUTPUTS, EPILOGUE>(shared, to, logits, tag_of_results, residual);
}

// The product after attention, added to the residual stream.
template <int MOST_PARTS, class Next>
__device__ __forceinline__ void product_of_heads(
    Shared& shared, const u64* from, u64* to, Weights<DIM, DIM, 1>& weights, u32 tag, int num_parts,
    Residual& residual, Next begin_next) {
  if (blockIdx.x * PER_DIM >= DIM) return begin_next();
  take_parts<MOST_PARTS>(shared, from, tag, num_parts, begin_next);
  __syncthreads();
  multiply(shared, weights);
  send<DIM, ADD>(shared, to, nullptr, tag, residual);
}

#if IS_FOLDED
// Attention to a memory whose keys have become a matrix that gives scores, and its values one that gives what
// is added to the residual stream: this is the second half, from scores on.
template <class Next>
__device__ __forceinline__ void product_of_scores(
    Shared& shared, const u64* from, u64* to, Weights<SCORES, DIM, ROWS>& weights, u32 tag,
    Residual& residual, Next begin_next) {
  if (blockIdx.x * PER_DIM >= DIM) return begin_next();
  constexpr int EACH = ROWS * HEADS / WARPS;  // of a warp; a lane has one state of each
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int num_states = shared.step.num_states;
  const bool* seen = shared.step.memory_seen;
  bool is_seen[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    is_seen[j] = lane < num_states;
    if (seen != nullptr && is_seen[j]) is_seen[j] = seen[(warp + j * WARPS) / HEADS * num_states + lane];
  }
  u32 words[EACH];
  for (;;) {
    bool is_there = true;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      u32 found;
      read_word(from + (warp + j * WARPS) * STATES + lane, words[j], found);
      is_there &= found == tag;
    }
    if (__all_sync(FULL, is_there)) break;
    yield();
  }
  begin_next();
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int row = (warp + j * WARPS) / HEADS, head = (warp + j * WARPS) % HEADS;
    float most = is_seen[j] ? __uint_as_float(words[j]) : -1e30f;
    const float score = most;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      most = fmaxf(most, __shfl_xor_sync(FULL, most, distance));
    const float weight = is_seen[j] ? exp2f(score - most) : 0.f;
    float total = weight;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(FULL, total, distance);
    shared.inputs[row][head * STATES + lane] = packed(weight / total, 0.f) & 0xffff;
  }
  __syncthreads();
  multiply(shared, weights);
  send<DIM, ADD, true>(shared, to, nullptr, tag, residual);
}
#endif

// ----------------------------------------------------------------------------------------------- attention

// 8 numbers of one row of each of N heads, from pairs of rows.
template <int N>
__device__ __forceinline__ void take_heads(
    const u64* from, const int (&places)[N], int row, u32 tag, float (&x)[N][8]) {
  u32 both[N][8];
  for (;;) {
    bool is_there = true;
#pragma unroll
    for (int head = 0; head < N; head++)
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        u32 found, next_found;
        read_two_words(from + places[head] + j, both[head][j], found, both[head][j + 1], next_found);
        is_there &= found == tag && next_found == tag;
      }
    if (__all_sync(FULL, is_there)) break;
    yield();
  }
#pragma unroll
  for (int head = 0; head < N; head++)
#pragma unroll
    for (int j = 0; j < 8; j++) x[head][j] = row % 2 ? high(both[head][j]) : low(both[head][j]);
}

__device__ __forceinline__ float sum_over_lanes(float x) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL, x, distance);
  return x;
}

// Normalise a query or key if there is a gain, and turn it to its place if positions are rotary.
__device__ __forceinline__ void turn(float (&x)[8], const u16* gain, const float* frequencies, int place) {
  const int d = threadIdx.x % LANES * 8;
  if (HAS_GAIN) {
    float square = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) square += x[j] * x[j];
    const float scale = rsqrtf(sum_over_lanes(square) / HEAD_DIM + 1e-6f);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= scale * number(gain[d + j]);
  }
  if (IS_ROTARY) {
    constexpr int HALF = HEAD_DIM / 2;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      // Dimension d is paired with d + Dh/2.
      const float other = LANES > 1 ? __shfl_xor_sync(FULL, x[j], LANES / 2) : x[(j + HALF) % 8];
      const float angle = place * frequencies[(d + j) % HALF];
      const float turned = x[j] * cosf(angle) + (d + j < HALF ? -other : other) * sinf(angle);
      if (LANES > 1) x[j] = turned;
    }
  }
}

__device__ __forceinline__ void unpack(uint4 x, float (&y)[8]) {
  y[0] = low(x.x), y[1] = high(x.x), y[2] = low(x.y), y[3] = high(x.y);
  y[4] = low(x.z), y[5] = high(x.z), y[6] = low(x.w), y[7] = high(x.w);
}

__device__ __forceinline__ uint4 packed8(const float (&x)[8]) {
  return make_uint4(packed(x[0], x[1]), packed(x[2], x[3]), packed(x[4], x[5]), packed(x[6], x[7]));
}

// One query of one head over a part of the keys; writes the step's own key and value.
template <bool IS_SELF>
__device__ __forceinline__ void attend(
    Shared& shared, const Layer& layer, int row, int head, int part, u32 tag, int length, int share) {
  const Step& step = shared.step;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = lane % LANES * 8;
  const int kv_head = head / (HEADS / KV_HEADS);
  const i64 key_stride = IS_SELF ? HEAD_DIM : step.memory_key_stride;
  const i64 offset = IS_SELF ? row * step.cache_row_stride + kv_head * step.cache_head_stride
                             : row * step.memory_row_stride + kv_head * step.memory_head_stride;
  const u16* keys = (IS_SELF ? layer.keys : layer.memory_keys) + offset + d;
  const u16* values = (IS_SELF ? layer.values : layer.memory_values) + offset + d;
  const bool* seen = IS_SELF ? step.prefix_seen : step.memory_seen;
  const int num_seen = IS_SELF ? step.num_prefix_seen : step.num_states;
  const int first = part * share, last = smaller(first + share, length);
  const int mine = first + (warp * KEYS_OF_WARP + lane / LANES) * 4;  // four neighbours of every block
  uint4 k[4], v[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int l = smaller(mine + j, last - 1);
    k[j] = v[j] = make_uint4(0, 0, 0, 0);
    // Earlier steps have written these.
    if (l >= 0)
      k[j] = *(const uint4*)(keys + l * key_stride), v[j] = *(const uint4*)(values + l * key_stride);
  }
  float taken[IS_SELF ? 3 : 1][8];
  const bool has_new = IS_SELF && part == 0;
  int place = length;
  if (IS_SELF && step.num_hidden != nullptr) place -= (int)step.num_hidden[row];
  if constexpr (IS_SELF) {
    const int key = DIM + kv_head * HEAD_DIM + d, places[3] = {head * HEAD_DIM + d, key, key + KV_DIM};
    take_heads<3>(step.qkv + row / 2 * QKV, places, row, tag, taken);
  } else {
    const int places[1] = {head * HEAD_DIM + d};
    take_heads<1>(step.query + row / 2 * DIM, places, row, tag, taken);
  }
  float (&q)[8] = taken[0], (&k_new)[8] = taken[IS_SELF ? 1 : 0], (&v_new)[8] = taken[IS_SELF ? 2 : 0];
  if (IS_SELF) turn(q, layer.q_gain, step.frequencies, place);
#pragma unroll
  for (int j = 0; j < 8; j++) q[j] *= SCALE;
  if (has_new) {
    // The step's own key is not read back: another block writes it.
    turn(k_new, layer.k_gain, step.frequencies, place);
    const uint4 bits = packed8(k_new);
    unpack(bits, k_new);
    if (warp == 0 && lane < LANES && head % (HEADS / KV_HEADS) == 0) {
      *(uint4*)(layer.keys + offset + d + length * key_stride) = bits;
      *(uint4*)(layer.values + offset + d + length * key_stride) = packed8(v_new);
    }
  }
  // Finite, as the difference of two infinities is no number.
  float most = -1e30f, total = 0.f, y[8] = {};
  for (int start = 0; start < share && first + start < last; start += BLOCK_KEYS) {
    float scores[4], x[8], higher = most;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int l = mine + start + j;
      bool is_key = l < last;
      if (seen != nullptr && l < num_seen && is_key) is_key = seen[row * num_seen + l];
      unpack(k[j], x);
      float score = 0.f;
#pragma unroll
      for (int i = 0; i < 8; i++) score += x[i] * q[i];
      score = sum_over_lanes(score);
      scores[j] = is_key ? score : -1e30f;
      higher = fmaxf(higher, scores[j]);
    }
    const float scaled = exp2f(most - higher);
    total *= scaled;
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] *= scaled;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float weight = scores[j] > -1e30f ? exp2f(scores[j] - higher) : 0.f;
      total += weight;
      unpack(v[j], x);
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] += weight * x[i];
    }
    most = higher;
    if (start + BLOCK_KEYS < share) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int l = smaller(mine + start + BLOCK_KEYS + j, last - 1);
        k[j] = *(const uint4*)(keys + l * key_stride), v[j] = *(const uint4*)(values + l * key_stride);
      }
    }
  }
  if (has_new) {
    float score = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) score += k_new[i] * q[i];
    score = sum_over_lanes(score);
    if (warp == 0 && lane < LANES) {
      const float higher = fmaxf(most, score), scaled = exp2f(most - higher), weight = exp2f(score - higher);
      total = total * scaled + weight;
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] = y[i] * scaled + weight * v_new[i];
      most = higher;
    }
  }
#pragma unroll
  for (int distance = LANES; distance < 32; distance *= 2) {
    const float higher = fmaxf(most, __shfl_xor_sync(FULL, most, distance));
    const float scaled = exp2f(most - higher);
    total *= scaled;
    total += __shfl_xor_sync(FULL, total, distance);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      y[i] *= scaled;
      y[i] += __shfl_xor_sync(FULL, y[i], distance);
    }
    most = higher;
  }
  if (lane < LANES) {
#pragma unroll
    for (int i = 0; i < 8; i++) shared.parts[warp][d + i] = y[i];
    if (lane == 0) shared.parts[warp][HEAD_DIM] = most, shared.parts[warp][HEAD_DIM + 1] = total;
  }
  __syncthreads();
  const int pair = threadIdx.x;
  if (pair <= HEAD_DIM / 2) {
    float highest = -1e30f, sum = 0.f, a = 0.f, b = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, shared.parts[w][HEAD_DIM]);
    const int at = pair < HEAD_DIM / 2 ? 2 * pair : 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float scaled = exp2f(shared.parts[w][HEAD_DIM] - highest);
      sum += scaled * shared.parts[w][HEAD_DIM + 1];
      a += scaled * shared.parts[w][at], b += scaled * shared.parts[w][at + 1];
    }
    const float inverse = sum == 0.f ? 1.f : 1.f / sum;
    u64* to = (IS_SELF ? step.parts : step.cross) + (i64)((part * ROWS + row) * HEADS + head) * PART;
    if (pair < HEAD_DIM / 2)
      write_word(to + pair, packed(a * inverse, b * inverse), tag);
    else if (IS_SELF)
      write_word(to + pair, __float_as_uint(sum == 0.f ? -1e30f : highest + log2f(sum)), tag);
  }
  __syncthreads();  // before the next task writes its parts
}

// ------------------------------------------------------------------------------------------------ the step

// The sum of embeddings, of conditions and of the position's sinusoids.
__device__ __forceinline__ float embedded(const Step& step, int row, int d, i64 position) {
  const i64* token = step.tokens + row % step.num_clips * step.clip_stride + position * step.step_stride;
  float x = 0.f;
  for (int codebook = 0; codebook < CODEBOOKS; codebook++)
    x += number(
        step.embedding
            [(codebook * (LOGITS / CODEBOOKS + 1) + token[codebook * step.codebook_stride]) * DIM + d]);
  if (step.added != nullptr) x += number(step.added[row * DIM + d]);
  if (!IS_ROTARY) {
    i64 counted = position + step.num_prepended;
    if (step.num_hidden != nullptr) counted -= step.num_hidden[row];
    const float angle = counted * step.frequencies[d % (DIM / 2)];
    x += d < DIM / 2 ? cosf(angle) : sinf(angle);
  }
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) resident_step(const Step* given) {
  Shared& shared = *(Shared*)shared_memory;
  for (int i = threadIdx.x; i < sizeof(Step) / 8; i += THREADS)
    ((u64*)&shared.step)[i] = ((const u64*)given)[i];
  __syncthreads();
  const Step& step = shared.step;
  const u32 launch = *step.launches;
  const i64 position = *step.position;
  u32 tag = launch * (LAYERS + 1);
  Weights<DIM, QKV, 1> qkv;
  Weights<DIM, DIM, 1> out;
#if IS_FOLDED
  Weights<DIM, ROWS * SCORES, 1> folded_keys;
  Weights<SCORES, DIM, ROWS> folded_values;
#else
  Weights<DIM, DIM, 1> query, cross_out;
#endif
  Weights<DIM, HIDDEN, GATED ? 2 : 1> up;
  Weights<HIDDEN, DIM, 1> down;
  Weights<DIM, LOGITS, 1> head;
  qkv.begin(step.layers[0].qkv);
  prefetch_share<DIM>(step.layers[0].out, DIM);

  Residual residual;
#pragma unroll
  for (int round = 0; round < RESIDUALS; round++) {
    const int o = (threadIdx.x + round * THREADS) / PAIRS, pair = (threadIdx.x + round * THREADS) % PAIRS;
    const int n = blockIdx.x * PER_DIM + o;
    if (o >= PER_DIM || n >= DIM) continue;
    for (int k = 0; k < 2; k++)
      residual.x[round][k] = embedded(step, smaller(2 * pair + k, ROWS - 1), n, position);
    write_word(step.x + (i64)pair * DIM + n, packed(residual.x[round][0], residual.x[round][1]), tag);
  }

  const int length = (int)(position + step.num_prepended);
  int share = (length + PARTS - 1) / PARTS;
  share = larger((share + BLOCK_KEYS - 1) / BLOCK_KEYS, 1) * BLOCK_KEYS;
  const int num_parts = larger((length + share - 1) / share, 1);

  for (int number = 0; number < LAYERS; number++, tag++) {
    const Layer& layer = step.layers[number];
    const Layer& next = step.layers[smaller(number + 1, LAYERS - 1)];
#if IS_FOLDED
    prefetch_share<ROWS * SCORES>(layer.folded_keys, DIM);
    for (int row = 0; row < ROWS; row++)
      prefetch_share<DIM>(layer.folded_values + (i64)row * DIM * SCORES, SCORES);
#else
    if (HAS_MEMORY) {
      prefetch_share<DIM>(layer.query, DIM);
      prefetch_share<DIM>(layer.cross_out, DIM);
    }
#endif
    const int num_tasks = ROWS * HEADS * num_parts;
    for (int task = blockIdx.x; task < num_tasks; task += BLOCKS) {
      const int row = task / HEADS % ROWS, kv_head = task % HEADS / (HEADS / KV_HEADS),
                part = task / (HEADS * ROWS);
      const i64 offset = row * step.cache_row_stride + kv_head * step.cache_head_stride;
      const int last = smaller((part + 1) * share, length);
      if (part * share < last) {
        prefetch(layer.keys + offset, part * share, last, HEAD_DIM);
        prefetch(layer.values + offset, part * share, last, HEAD_DIM);
      }
    }
    product<DIM, QKV, 1, true, SEND>(
        shared, step.x, step.qkv, nullptr, qkv, layer.attention_gain, layer.attention_bias, tag, tag,
        residual, [&] { out.begin(layer.out); });
    prefetch_share<HIDDEN>(layer.up, DIM);
    if (GATED) prefetch_share<HIDDEN>(layer.up + (i64)HIDDEN * DIM, DIM);
    for (int task = blockIdx.x; task < num_tasks; task += BLOCKS)
      attend<true>(
          shared, layer, task / HEADS % ROWS, task % HEADS, task / (HEADS * ROWS), tag, length, share);
    const auto begin_up = [&] { up.begin(layer.up); };
#if IS_FOLDED
    const auto begin_cross = [&] { folded_keys.begin(layer.folded_keys); };
#else
    const auto begin_cross = [&] {
      if (HAS_MEMORY)
        query.begin(layer.query);
      else
        begin_up();
    };
#endif
    product_of_heads<PARTS>(
        shared, step.parts, step.after_attention, out, tag, num_parts, residual, begin_cross);
    prefetch_share<DIM>(layer.down, HIDDEN);
#if IS_FOLDED
    product<DIM, ROWS * SCORES, 1, true, SCORE>(
        shared, step.after_attention, step.scores, nullptr, folded_keys, layer.cross_gain, layer.cross_bias,
        tag, tag, residual, [&] { folded_values.begin(layer.folded_values); });
    product_of_scores(shared, step.scores, step.after_cross, folded_values, tag, residual, begin_up);
#else
    if (HAS_MEMORY) {
      product<DIM, DIM, 1, true, SEND>(
          shared, step.after_attention, step.query, nullptr, query, layer.cross_gain, layer.cross_bias, tag,
          tag, residual, [&] { cross_out.begin(layer.cross_out); });
      for (int task = blockIdx.x; task < ROWS * HEADS; task += BLOCKS)
        attend<false>(
            shared, layer, task / HEADS, task % HEADS, 0, tag, (int)step.num_states, (int)step.num_states);
      product_of_heads<1>(shared, step.cross, step.after_cross, cross_out, tag, 1, residual, begin_up);
    }
#endif
    prefetch_share<QKV>(next.qkv, DIM);
    product<DIM, HIDDEN, GATED ? 2 : 1, true, ACTIVATE>(
        shared, HAS_MEMORY ? step.after_cross : step.after_attention, step.hidden, nullptr, up, layer.up_gain,
        layer.up_bias, tag, tag, residual, [&] { down.begin(layer.down); });
    prefetch_share<DIM>(next.out, DIM);
    if (number == LAYERS - 1) prefetch_share<LOGITS>(step.head, DIM);
    product<HIDDEN, DIM, 1, false, ADD>(
        shared, step.hidden, step.x, nullptr, down, nullptr, nullptr, tag, tag + 1, residual,
        [&] { qkv.begin(next.qkv); });
  }
  head.begin(step.head);
  product<DIM, LOGITS, 1, true, KEEP>(
      shared, step.x, nullptr, step.logits, head, step.norm_gain, step.norm_bias, tag, tag, residual, [] {});
  // It has had all of the last layer's results, so all blocks have long known both numbers.
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *step.launches = launch + 1;
    *step.position_of_logits = position;
    *step.position = position + 1;
  }
}
