// A whole step of a Transformer with weights in bfloat16, from tokens to logits, as one kernel that stays on
// the GPU.
//
// With few rows a step reads every weight once and computes next to nothing with it, so its time is that of
// the bytes, and of waiting between one product and the next, which needs all of its results. Kernels one
// after another wait for some 3 microseconds each time. Here each block stays on its multiprocessor and owns
// the same outputs of every product. One of its warps does nothing but have their weights copied into a ring
// in shared memory, as far ahead as that holds, whatever the others wait for. These send their results as
// words of 8 bytes that carry a tag: who needs a number reads its word until the tag is that of this step and
// layer. So there is no barrier between blocks and no fence (as in NCCL's protocol LL, arXiv:2507.04786). A
// word is written again only after all who read it have sent what later products needed.
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

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A barrier whose phase ends when `count` have arrived and all bytes are there that they have announced.
__device__ __forceinline__ void make_barrier(u64* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

// After which the copy engine knows the barriers.
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void arrive_before_bytes(u64* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Whether a phase has ended: its number's last bit.
__device__ __forceinline__ bool has_ended(u64* barrier, u32 phase) {
  u32 found;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
      : "=r"(found)
      : "r"(shared_address(barrier)), "r"(phase)
      : "memory");
  return found;
}

// Have bytes that are read once copied to shared memory, and tell a barrier there. The hint is CUTLASS's word
// for "evict first", so that they leave the cache to keys and values.
__device__ __forceinline__ void copy_later(void* to, const void* from, int bytes, u64* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(0x12f0000000000000ull)
      : "memory");
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

// Have bytes brought into the L2 cache.
__device__ __forceinline__ void prefetch(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// What the lane at `distance` has. Unlike an intrinsic function it stays where it is among barriers.
__device__ __forceinline__ float exchanged(float x, int distance) {
  float y;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(y) : "f"(x), "r"(distance));
  return y;
}

// 2^x, to the last bits but one; 0 for what is too small.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void yield() {}

// Registers of a thread from here on, of all threads of four warps.
template <int N>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// A barrier of the threads that multiply.
__device__ __forceinline__ void synchronise() {
  asm volatile("bar.sync 1, %0;" ::"n"(32 * NUM_WARPS) : "memory");
}
#endif

constexpr int WARPS = NUM_WARPS;  // that multiply
constexpr int THREADS = 32 * WARPS;
// One more warp fetches weights; registers are given to four together.
constexpr int ALL_THREADS = THREADS + 128;
// A launch of so many threads has 168 registers for each. Who wants more than there are waits for ever.
constexpr int MULTIPLYING = 224, FETCHING = 56;
static_assert(MULTIPLYING * THREADS + FETCHING * 128 <= 168 * ALL_THREADS);
static_assert(WARPS == 8);
constexpr int PAIRS = (ROWS + 1) / 2;
constexpr int KV_DIM = KV_HEADS * HEAD_DIM;
constexpr int QKV = DIM + 2 * KV_DIM;
constexpr int LANES = HEAD_DIM / 8;  // that share a key
constexpr int HALF = HEAD_DIM / 2;
constexpr int KEYS_OF_WARP = 32 / LANES;
constexpr int BLOCK_KEYS = 4 * KEYS_OF_WARP * WARPS;
constexpr int PART = HALF + 1;  // words of a part: pairs of numbers, and a logarithm
constexpr int MOMENTS = ROWS == 1 ? 2 : ROWS == 2 ? 4 : ROWS <= 4 ? 8 : 16;  // twice the rows, or more
constexpr int PADDED = 32;  // between rows of inputs, so that two rows lie in different banks

__device__ constexpr int share_of(int outputs) { return (outputs + BLOCKS - 1) / BLOCKS; }
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
// How often each thread sends, where one sends two rows of an output.
__device__ constexpr int rounds_of(int share) { return (share * PAIRS + THREADS - 1) / THREADS; }

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
constexpr int TILES = (larger(larger(MOST, PER_SCORES), (ROWS)*PER_DIM) + 7) / 8;
#else
constexpr int SCORES = 0;
constexpr int TILES = (MOST + 7) / 8;
#endif
constexpr int WIDEST = larger(larger(HIDDEN, DIM), SCORES);

struct Layer {
  const u16 *attention_gain, *qkv, *q_gain, *k_gain;
  u16 *keys, *values;
  const u16* out;
  const u16 *cross_gain, *query, *memory_keys, *memory_values, *cross_out;
  const u16 *up_gain, *up, *down;
  const u16 *folded_keys, *folded_values;  // [R, H · 32, D] and [R, D, H · 32]
  const float2 *qkv_shifts, *query_shifts, *up_shifts;
};

struct Step {
  u32* launches;
  i64 *position, *position_of_logits;
  const u16 *embedding, *added;
  const float* frequencies;
  const i64* num_hidden;
  const bool *prefix_seen, *memory_seen;
  u64 *x, *after_attention, *after_cross, *qkv, *parts, *query, *cross, *hidden, *scores;
  const u16 *norm_gain, *head;
  const float2* head_shifts;
  float* logits;
  const i64* tokens;
  i64 num_clips, clip_stride, codebook_stride, step_stride;
  i64 num_prepended, num_prefix_seen, num_states;
  i64 cache_row_stride, cache_head_stride, memory_row_stride, memory_head_stride, memory_key_stride;
  Layer layers[LAYERS];
};

// Weights come in tiles of 8 outputs and up to 32 chunks of 32 inputs. Outputs lie half of the banks apart,
// so that two of them can be read at once.
constexpr int CHUNK = 64;  // bytes
constexpr int TILE_CHUNKS = smaller(32, WIDEST / 32);
constexpr int TILE_PITCH = TILE_CHUNKS * CHUNK + (TILE_CHUNKS % 2 == 0 ? CHUNK : 0);

struct Shared {
  alignas(16) char ring[NUM_STAGES][8 * TILE_PITCH];
  u64 filled[NUM_STAGES], emptied[NUM_STAGES];
  Step step;
  float parts[WARPS][HEAD_DIM + 2];
  alignas(16) float2 turns[IS_ROTARY ? ROWS : 1][HALF];  // cosines and sines of the step's place
  alignas(16) float moments[MOMENTS][WARPS];
  alignas(16) float sums[TILES * 8][ROWS][WARPS + 4];  // neighbours in different banks
  alignas(16) u16 inputs[ROWS][WIDEST + PADDED];
};
static_assert(sizeof(Shared) <= NUM_SHARED_BYTES);

// Two neighbours of a row of inputs, the first of which is even. For up to four rows those come together
// which a lane takes together.
constexpr bool IS_PAIRED = ROWS <= 4;
__device__ __forceinline__ u16* input(Shared& shared, int row, int i) {
  const int pair = i / 2 % 16;
  return &shared.inputs[row][IS_PAIRED ? i / 32 * 32 + pair % 2 * 16 + pair / 4 * 4 + pair / 2 % 2 * 2 : i];
}

__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }
__device__ __forceinline__ float number(u16 x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ float sum_over_warps(const float* x) {
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w += 4) {
    const float4 four = *(const float4*)&x[w];
    sum += (four.x + four.y) + (four.z + four.w);
  }
  return sum;
}

// ------------------------------------------------------------------------------------------------ products

enum Epilogue { SEND, ACTIVATE, ADD, KEEP, SCORE };

// Where a warp is in the ring: the one that fetches and those that multiply pass through it in the same
// order.
struct RingPlace {
  int stage = 0;
  u32 turn = 0;  // its last bit

  __device__ __forceinline__ void advance() {
    if (++stage == NUM_STAGES) stage = 0, turn ^= 1;
  }
};

// One block's outputs of a product. Tiles follow one another by outputs, and within these by inputs.
template <int INPUTS, int OUTPUTS, int MATRICES>
struct Weights {
  static constexpr int PER = share_of(OUTPUTS);
  static constexpr int CHUNKS = INPUTS / 32;
  static constexpr int PIECES = (CHUNKS + TILE_CHUNKS - 1) / TILE_CHUNKS;  // tiles over all inputs
  static constexpr int SHARE = (CHUNKS + PIECES - 1) / PIECES;
  // Chunks of all but the last one, so that warps have as many of each.
  static constexpr int PIECE = smaller((SHARE + WARPS - 1) / WARPS * WARPS, TILE_CHUNKS);
  static constexpr int NUM_TILES = (MATRICES * PER + 7) / 8 * PIECES;
  static constexpr int STEPS = (PIECE + WARPS - 1) / WARPS;  // chunks of a tile that a warp multiplies
  static constexpr int ROUNDS = (NUM_TILES + 3) / 4;
  static constexpr int TOGETHER = (NUM_TILES + ROUNDS - 1) / ROUNDS;  // what registers hold

  uint4 held[TOGETHER][STEPS];

  static __device__ __forceinline__ bool has_any() { return blockIdx.x * PER < OUTPUTS; }
  static __device__ __forceinline__ bool has(int tile) {
    return NUM_TILES % TOGETHER == 0 || tile < NUM_TILES;
  }

  static __device__ __forceinline__ int chunks_of(int tile) {
    return PIECES == 1 ? CHUNKS : smaller(PIECE, CHUNKS - tile % PIECES * PIECE);
  }

  // Have all of them copied, each as soon as there is a place. One warp does this.
  static __device__ __forceinline__ void fetch(Shared& shared, RingPlace& place, const u16* matrix) {
    if (!has_any()) return;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int tile = 0; tile < NUM_TILES; tile++) {
      const int o = tile / PIECES * 8 + lane, n = blockIdx.x * PER + o % PER;
      const bool is_mine = lane < 8 && o < MATRICES * PER && n < OUTPUTS;
      const int bytes = chunks_of(tile) * CHUNK, num_rows = __popc(__ballot_sync(FULL, is_mine));
      while (!has_ended(&shared.emptied[place.stage], place.turn ^ 1)) yield();
      if (lane == 0) arrive_before_bytes(&shared.filled[place.stage], num_rows * bytes);
      __syncwarp();
      if (is_mine)
        copy_later(
            shared.ring[place.stage] + lane * TILE_PITCH,
            matrix + ((i64)(o / PER) * OUTPUTS + n) * INPUTS + tile % PIECES * PIECE * 32, bytes,
            &shared.filled[place.stage]);
      place.advance();
    }
  }

  // Take some tiles into registers, from tile `first` on, and let others be copied in their place. Of each of
  // its chunks and outputs, a lane has 8 inputs that are neighbours. Which of the 32 a tensor core takes to
  // be which is the same for weights and inputs, and matters to no sum. What lies beyond the last output is
  // anything: nobody asks for those sums.
  __device__ __forceinline__ void take(Shared& shared, RingPlace& place, int first) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    RingPlace ahead;
    for (;;) {
      bool is_there = true;
      ahead = place;
#pragma unroll
      for (int j = 0; j < TOGETHER; j++)
        if (has(first + j)) is_there &= has_ended(&shared.filled[ahead.stage], ahead.turn), ahead.advance();
      if (is_there) break;
      yield();
    }
    ahead = place;
#pragma unroll
    for (int j = 0; j < TOGETHER; j++)
      if (has(first + j)) {
        const char* mine = shared.ring[ahead.stage] + lane / 4 * TILE_PITCH + lane % 4 * 16;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
          const int chunk = warp * STEPS + step;
          if (is_whole(first + j) || chunk < chunks_of(first + j))
            held[j][step] = *(const uint4*)(mine + chunk * CHUNK);
        }
        ahead.advance();
      }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < TOGETHER; j++)
      if (has(first + j)) {
        if (lane == 0) arrive(&shared.emptied[place.stage]);
        place.advance();
      }
  }

  // Whether all warps have as many chunks of a tile.
  static __device__ __forceinline__ bool is_whole(int tile) { return chunks_of(tile) == STEPS * WARPS; }
};

// The inputs of a product as a thread brings them: two neighbours of every 2 THREADS.
template <bool HAS_NORM, int INPUTS>
struct Inputs {
  static constexpr int EACH = (INPUTS + 2 * THREADS - 1) / (2 * THREADS);
  static constexpr bool IS_EVEN = INPUTS % (2 * THREADS) == 0;
  u32 gain[EACH];
  float moments[MOMENTS] = {};  // of each row its sum and its sum of squares

  // A norm's gains.
  __device__ __forceinline__ explicit Inputs(const u16* gains) {
    if (!HAS_NORM) return;
#pragma unroll
    for (int j = 0; j < EACH; j++) gain[j] = *(const u32*)(gains + smaller(place(j), INPUTS - 2));
  }

  static __device__ __forceinline__ int place(int j) { return 2 * (threadIdx.x + j * THREADS); }

  // From words to shared memory, once all that the warp asks for have the tag. Under a norm they are
  // multiplied by the gains alone: what else it does to inputs is done to the sums (`Shifts`).
  __device__ __forceinline__ void take(Shared& shared, const u64* from, u32 tag) {
    constexpr int PAIRS_AT_ONCE = smaller(larger(16 / EACH, 1), PAIRS);
#pragma unroll
    for (int first = 0; first < PAIRS; first += PAIRS_AT_ONCE) {
      u32 both[PAIRS_AT_ONCE][2 * EACH];
      for (;;) {
        bool is_there = true;
#pragma unroll
        for (int pair = 0; pair < PAIRS_AT_ONCE; pair++)
#pragma unroll
          for (int j = 0; j < EACH; j++) {
            if (first + pair >= PAIRS) continue;
            u32 found, next_found;
            read_two_words(
                from + (first + pair) * INPUTS + (IS_EVEN ? place(j) : smaller(place(j), INPUTS - 2)),
                both[pair][2 * j], found, both[pair][2 * j + 1], next_found);
            is_there &= found == tag && next_found == tag;
          }
        if (__all_sync(FULL, is_there)) break;
        yield();
      }
#pragma unroll
      for (int row = 2 * first; row < smaller(2 * (first + PAIRS_AT_ONCE), ROWS); row++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
          if (!IS_EVEN && place(j) >= INPUTS) continue;
          const u32 one = both[row / 2 - first][2 * j], next = both[row / 2 - first][2 * j + 1];
          u32 bits = __byte_perm(one, next, row % 2 ? 0x7632 : 0x5410);
          if (HAS_NORM) {
            const float x = low(bits), y = high(bits);
            if (IS_LAYERNORM) moments[2 * row] += x + y;
            moments[2 * row + 1] += x * x;
            moments[2 * row + 1] += y * y;
            bits = packed(x * low(gain[j]), y * high(gain[j]));
          }
          *(u32*)input(shared, row, place(j)) = bits;
        }
    }
  }

  // The warp's sums of its moments, to shared memory. Both at once: it loses digits where a row's mean is far
  // above its deviation.
  __device__ __forceinline__ void share_moments(Shared& shared) {
    if (!HAS_NORM) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Lanes halve what they sum up as long as there are several sums.
#pragma unroll
    for (int distance = 16, sums = MOMENTS; distance > 0; distance /= 2, sums /= 2) {
      if (sums > 1) {
#pragma unroll
        for (int k = 0; k < sums / 2; k++) {
          const bool is_upper = lane & distance;
          const float given = is_upper ? moments[k] : moments[k + sums / 2];
          const float kept = is_upper ? moments[k + sums / 2] : moments[k];
          moments[k] = kept + exchanged(given, distance);
        }
      } else {
        moments[0] += exchanged(moments[0], distance);
      }
    }
    if (lane % (32 / MOMENTS) == 0) shared.moments[lane / (32 / MOMENTS)][warp] = moments[0];
  }
};

// Attention over all keys, of attention over parts of them, to shared memory.
template <int MOST_PARTS>
__device__ __forceinline__ void take_parts(Shared& shared, const u64* from, u32 tag, int num_parts) {
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
          const u64* p = from + (row * HEADS + j / HALF) * PART + j % HALF;
          read_word(p, both[round][row], found);
          is_there &= found == tag;
        }
      if (__all_sync(FULL, is_there)) break;
      yield();
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
#pragma unroll
      for (int row = 0; row < ROWS; row++) {
        const int j = threadIdx.x + round * THREADS;
        if (j < DIM / 2) *(u32*)input(shared, row, 2 * j) = both[round][row];
      }
    return;
  }
  u32 both[ROUNDS][ROWS][MOST_PARTS], logs[ROUNDS][ROWS][MOST_PARTS];
  for (;;) {
    bool is_there = true;
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
      const int j = smaller(threadIdx.x + round * THREADS, DIM / 2 - 1);
      const int head = j / HALF, place = j % HALF;
#pragma unroll
      for (int row = 0; row < ROWS; row++)
#pragma unroll
        for (int part = 0; part < MOST_PARTS; part++) {
          const u64* p = from + ((part * ROWS + row) * HEADS + head) * PART;
          u32 found = tag, found_log = tag;
          if (part < num_parts) read_word(p + place, both[round][row][part], found);
          if (part < num_parts) read_word(p + PART - 1, logs[round][row][part], found_log);
          is_there &= found == tag && found_log == tag;
        }
    }
    if (__all_sync(FULL, is_there)) break;
    yield();
  }
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int j = threadIdx.x + round * THREADS;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      float most = __uint_as_float(logs[round][row][0]), a = 0.f, b = 0.f, total = 0.f;
#pragma unroll
      for (int part = 1; part < MOST_PARTS; part++)
        if (part < num_parts) most = fmaxf(most, __uint_as_float(logs[round][row][part]));
#pragma unroll
      for (int part = 0; part < MOST_PARTS; part++)
        if (part < num_parts) {
          const float share = power_of_two(__uint_as_float(logs[round][row][part]) - most);
          total += share, a += share * low(both[round][row][part]), b += share * high(both[round][row][part]);
        }
      const float inverse = __fdividef(1.f, total);
      if (j < DIM / 2) *(u32*)input(shared, row, 2 * j) = packed(a * inverse, b * inverse);
    }
  }
}

// A lane's part of a chunk of inputs for the tensor cores, whose 8 columns are rows of the batch. Up to four
// rows are there twice: to columns 0 to 3 come the pairs of inputs of even number, to 4 to 7 those of odd
// number, and the same pairs of the weights to rows 0 to 7 and 8 to 15 of the sums.
struct Chunk {
  u32 words[IS_PAIRED ? 2 : 4];

  __device__ __forceinline__ void take(const Shared& shared, int number) {
    const int lane = threadIdx.x % 32, row = IS_PAIRED ? lane / 4 % 4 : lane / 4;
    if (row >= ROWS) return clear();
    const u16* p = &shared.inputs[row][number * 32];
    if (IS_PAIRED) {
      const uint2 two = *(const uint2*)(p + lane / 16 * 16 + lane % 4 * 4);
      words[0] = two.x, words[1] = two.y;
    } else {
      const uint4 four = *(const uint4*)(p + lane % 4 * 8);
      words[0] = four.x, words[1] = four.y;
      words[IS_PAIRED ? 0 : 2] = four.z, words[IS_PAIRED ? 1 : 3] = four.w;
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < (IS_PAIRED ? 2 : 4); k++) words[k] = 0;
  }

  __device__ __forceinline__ void multiply_add_to(float (&sums)[2][4], int step, uint4 w) const {
    if (IS_PAIRED) {
      multiply_add(sums[step % 2], w.x, w.y, w.z, w.w, words[0], words[1]);
    } else {
      multiply_add(sums[0], w.x, 0, w.y, 0, words[0], words[1]);
      multiply_add(sums[1], w.z, 0, w.w, 0, words[IS_PAIRED ? 0 : 2], words[IS_PAIRED ? 1 : 3]);
    }
  }
};

// The sums of this block's outputs over the inputs in shared memory; they end in `shared.sums`. The first
// weights have been taken.
template <int INPUTS, int OUTPUTS, int MATRICES>
__device__ __forceinline__ void multiply(
    Shared& shared, RingPlace& place, Weights<INPUTS, OUTPUTS, MATRICES>& weights) {
  using W = Weights<INPUTS, OUTPUTS, MATRICES>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Of which output and rows a lane has the sums at the end.
  const int output = lane / 4, row = IS_PAIRED ? lane % 2 * 2 : lane % 4 * 2;
  Chunk chunks[W::STEPS];
  float sum[2] = {};
// Few, because each layer has to bring the code anew to where it is run from.
#pragma unroll(W::NUM_TILES <= 8 ? W::NUM_TILES : 1)
  for (int first = 0; first < W::NUM_TILES; first += W::TOGETHER) {
    if (first > 0) weights.take(shared, place, first);
#pragma unroll
    for (int j = 0; j < W::TOGETHER; j++) {
      const int tile = first + j, piece = tile % W::PIECES;
      if (!W::has(tile)) continue;
      float sums[2][4] = {};  // sums that wait for one another take their time
#pragma unroll
      for (int step = 0; step < W::STEPS; step++) {
        const int chunk = warp * W::STEPS + step;
        const bool is_chunk = W::is_whole(tile) || chunk < W::chunks_of(tile);
        if ((W::PIECES > 1 || tile == 0) && is_chunk) chunks[step].take(shared, piece * W::PIECE + chunk);
        if (is_chunk) chunks[step].multiply_add_to(sums, step, weights.held[j][step]);
      }
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const bool is_upper = IS_PAIRED && lane % 4 >= 2;
        const float mine = is_upper ? sums[0][2 + k] + sums[1][2 + k] : sums[0][k] + sums[1][k];
        sum[k] = (piece == 0 ? 0.f : sum[k]) + mine;
        if (piece == W::PIECES - 1 && k < ROWS) {
          if (IS_PAIRED) sum[k] += __shfl_xor_sync(FULL, sum[k], 2);
          if (row + k < ROWS && (!IS_PAIRED || lane % 4 < 2))
            shared.sums[tile / W::PIECES * 8 + output][row + k][warp] = sum[k];
        }
      }
    }
  }
}

// What a thread keeps of the residual stream: two rows of an output that is its own in every product.
constexpr int RESIDUALS = rounds_of(PER_DIM);
struct Residual {
  float x[RESIDUALS][2];
};

// What a norm does to sums over inputs that are multiplied by its gains g alone: with weights w and biases b
// of the norm, sum w (g (x - mean) scale + b) = scale (sum w g x - mean sum w g) + sum w b. The host knows
// the last two for every output; without a mean they are not needed.
template <bool HAS_NORM, int OUTPUTS, int MATRICES>
struct Shifts {
  static constexpr int ROUNDS = rounds_of(share_of(OUTPUTS));
  float2 shift[ROUNDS][MATRICES];

  // Ask for those of the outputs that this thread sends.
  __device__ __forceinline__ explicit Shifts(const float2* shifts) {
    if (!HAS_NORM || !IS_LAYERNORM) return;
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
#pragma unroll
      for (int matrix = 0; matrix < MATRICES; matrix++) {
        const int n = blockIdx.x * share_of(OUTPUTS) + (threadIdx.x + round * THREADS) / PAIRS;
        shift[round][matrix] = shifts[matrix * OUTPUTS + smaller(n, OUTPUTS - 1)];
      }
  }
};

template <int INPUTS>
struct Norm {
  float mean = 0.f, scale;

  __device__ __forceinline__ Norm(const Shared& shared, int row) {
    if (IS_LAYERNORM) mean = sum_over_warps(shared.moments[2 * row]) * (1.f / INPUTS);
    const float variance = sum_over_warps(shared.moments[2 * row + 1]) * (1.f / INPUTS) - mean * mean;
    scale = rsqrtf(fmaxf(variance, 0.f) + (IS_LAYERNORM ? 1e-5f : 1e-6f));
  }

  __device__ __forceinline__ float operator()(float sum, float2 shift) const {
    return IS_LAYERNORM ? scale * (sum - mean * shift.x) + shift.y : scale * sum;
  }
};

// This block's outputs of a product, from `shared.sums` to who waits for them.
template <
    int INPUTS, int OUTPUTS, Epilogue EPILOGUE, bool HAS_NORM = false, int MATRICES = 1,
    bool HAS_MATRIX_OF_ROW = false>
__device__ __forceinline__ void send(
    const Shared& shared, u64* to, float* logits, u32 tag, Residual& residual,
    const Shifts<HAS_NORM, OUTPUTS, MATRICES>& shifts) {
  constexpr int PER = share_of(OUTPUTS);
#pragma unroll
  for (int round = 0; round < rounds_of(PER); round++) {
    const int o = (threadIdx.x + round * THREADS) / PAIRS, pair = (threadIdx.x + round * THREADS) % PAIRS;
    const int n = blockIdx.x * PER + o;
    if (o >= PER || n >= OUTPUTS) continue;
    if (EPILOGUE == SCORE) {  // the weights of an output are of one row
      const int row = n / (OUTPUTS / ROWS);
      const float y = Norm<INPUTS>(shared, row)(sum_over_warps(shared.sums[o][row]), shifts.shift[round][0]);
      if (pair == 0) write_word(to + n, __float_as_uint(y), tag);
      continue;
    }
    float y[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int row = smaller(2 * pair + k, ROWS - 1);
      y[k] = sum_over_warps(shared.sums[o + (HAS_MATRIX_OF_ROW ? row * PER : 0)][row]);
      float other = 0.f;
      if (GATED && EPILOGUE == ACTIVATE) other = sum_over_warps(shared.sums[PER + o][row]);
      if (HAS_NORM) {
        const Norm<INPUTS> norm(shared, row);
        y[k] = norm(y[k], shifts.shift[round][0]);
        if (GATED && EPILOGUE == ACTIVATE) other = norm(other, shifts.shift[round][MATRICES - 1]);
      }
      if (EPILOGUE == ACTIVATE && GATED) y[k] = __fdividef(y[k], 1.f + expf(-y[k])) * other;
      if (EPILOGUE == ACTIVATE && !GATED) y[k] = 0.5f * y[k] * (1.f + erff(y[k] * 0.70710678f));
      if (EPILOGUE == ADD) y[k] = residual.x[round < RESIDUALS ? round : 0][k] += y[k];
      if (EPILOGUE == KEEP && 2 * pair + k < ROWS) logits[(i64)row * OUTPUTS + n] = y[k];
    }
    if (EPILOGUE != KEEP) write_word(to + (i64)pair * OUTPUTS + n, packed(y[0], y[1]), tag);
  }
}

// A product from one set of words to another, with a norm before it.
template <int INPUTS, int OUTPUTS, int MATRICES, bool HAS_NORM, Epilogue EPILOGUE>
__device__ __forceinline__ void product(
    Shared& shared, RingPlace& place, const u64* from, u64* to, float* logits, const u16* gain,
    const float2* shift, u32 tag, u32 tag_of_results, Residual& residual) {
  Weights<INPUTS, OUTPUTS, MATRICES> weights;
  if (!weights.has_any()) return;
  Inputs<HAS_NORM, INPUTS> inputs(gain);
  const Shifts<HAS_NORM, OUTPUTS, MATRICES> shifts(shift);
  weights.take(shared, place, 0);
  inputs.take(shared, from, tag);
  synchronise();
  inputs.share_moments(shared);
  multiply(shared, place, weights);
  synchronise();
  send<INPUTS, OUTPUTS, EPILOGUE>(shared, to, logits, tag_of_results, residual, shifts);
}

// The product after attention, added to the residual stream.
template <int MOST_PARTS>
__device__ __forceinline__ void product_of_heads(
    Shared& shared, RingPlace& place, const u64* from, u64* to, u32 tag, int num_parts, Residual& residual) {
  Weights<DIM, DIM, 1> weights;
  if (!weights.has_any()) return;
  weights.take(shared, place, 0);
  take_parts<MOST_PARTS>(shared, from, tag, num_parts);
  synchronise();
  multiply(shared, place, weights);
  synchronise();
  send<DIM, DIM, ADD>(shared, to, nullptr, tag, residual, Shifts<false, DIM, 1>(nullptr));
}

#if IS_FOLDED
// Attention to a memory whose keys have become a matrix that gives scores, and its values one that gives what
// is added to the residual stream: this is the second half, from scores on.
__device__ __forceinline__ void product_of_scores(
    Shared& shared, RingPlace& place, const u64* from, u64* to, u32 tag, Residual& residual) {
  Weights<SCORES, DIM, ROWS> weights;
  if (!weights.has_any()) return;
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
  weights.take(shared, place, 0);
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
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int row = (warp + j * WARPS) / HEADS, head = (warp + j * WARPS) % HEADS;
    float most = is_seen[j] ? __uint_as_float(words[j]) : -1e30f;
    const float score = most;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      most = fmaxf(most, __shfl_xor_sync(FULL, most, distance));
    const float weight = is_seen[j] ? power_of_two(score - most) : 0.f;
    float total = weight;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(FULL, total, distance);
    input(shared, row, head * STATES + lane / 2 * 2)[lane % 2] = packed(weight * __fdividef(1.f, total), 0.f);
  }
  synchronise();
  multiply(shared, place, weights);
  synchronise();
  send<SCORES, DIM, ADD, false, ROWS, true>(
      shared, to, nullptr, tag, residual, Shifts<false, DIM, ROWS>(nullptr));
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

__device__ __forceinline__ void unpack(uint4 x, float (&y)[8]) {
  y[0] = low(x.x), y[1] = high(x.x), y[2] = low(x.y), y[3] = high(x.y);
  y[4] = low(x.z), y[5] = high(x.z), y[6] = low(x.w), y[7] = high(x.w);
}

// Normalise a query or key if there is a gain, and turn it to its place if positions are rotary.
__device__ __forceinline__ void turn(float (&x)[8], uint4 gains, const float2* turns) {
  const int d = threadIdx.x % LANES * 8;
  if (HAS_GAIN) {
    float gain[8], square = 0.f;
    unpack(gains, gain);
#pragma unroll
    for (int j = 0; j < 8; j++) square += x[j] * x[j];
    const float scale = rsqrtf(sum_over_lanes(square) / HEAD_DIM + 1e-6f);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= scale * gain[j];
  }
  if (IS_ROTARY) {
    float other[8];  // dimension d is paired with d + Dh/2
#pragma unroll
    for (int j = 0; j < 8; j++)
      other[j] = LANES > 1 ? __shfl_xor_sync(FULL, x[j], LANES / 2) : x[(j + HALF) % 8];
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float4 two = *(const float4*)&turns[(d + j) % HALF];  // cosine and sine, twice
      x[j] = x[j] * two.x + (d + j < HALF ? -other[j] : other[j]) * two.y;
      x[j + 1] = x[j + 1] * two.z + (d + j < HALF ? -other[j + 1] : other[j + 1]) * two.w;
    }
  }
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
  // Earlier steps have written these. Two blocks of keys are on their way while a third is looked at.
  uint4 k[2][4], v[2][4];
  const auto ask_for = [&](uint4(&keys_of_block)[4], uint4(&values_of_block)[4], int start) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int l = smaller(mine + start + j, last - 1);
      if (l < 0) continue;
      keys_of_block[j] = *(const uint4*)(keys + l * key_stride);
      values_of_block[j] = *(const uint4*)(values + l * key_stride);
    }
  };
#pragma unroll
  for (int turn = 0; turn < 2; turn++) {
#pragma unroll
    for (int j = 0; j < 4; j++) k[turn][j] = v[turn][j] = make_uint4(0, 0, 0, 0);
    if (turn == 0 || first + BLOCK_KEYS < last) ask_for(k[turn], v[turn], turn * BLOCK_KEYS);
  }
  uint4 q_gain, k_gain;
  if (IS_SELF && HAS_GAIN)
    q_gain = *(const uint4*)(layer.q_gain + d), k_gain = *(const uint4*)(layer.k_gain + d);
  float taken[IS_SELF ? 3 : 1][8];
  const bool has_new = IS_SELF && part == 0;
  if constexpr (IS_SELF) {
    const int key = DIM + kv_head * HEAD_DIM + d, places[3] = {head * HEAD_DIM + d, key, key + KV_DIM};
    take_heads<3>(step.qkv + row / 2 * QKV, places, row, tag, taken);
  } else {
    const int places[1] = {head * HEAD_DIM + d};
    take_heads<1>(step.query + row / 2 * DIM, places, row, tag, taken);
  }
  float (&q)[8] = taken[0], (&k_new)[8] = taken[IS_SELF ? 1 : 0], (&v_new)[8] = taken[IS_SELF ? 2 : 0];
  const float2* turns = shared.turns[IS_ROTARY ? row : 0];
  if (IS_SELF) turn(q, q_gain, turns);
#pragma unroll
  for (int j = 0; j < 8; j++) q[j] *= SCALE;
  if (has_new) {
    // The step's own key is not read back: another block writes it.
    turn(k_new, k_gain, turns);
    const uint4 bits = packed8(k_new);
    unpack(bits, k_new);
    if (warp == 0 && lane < LANES && head % (HEADS / KV_HEADS) == 0) {
      *(uint4*)(layer.keys + offset + d + length * key_stride) = bits;
      *(uint4*)(layer.values + offset + d + length * key_stride) = packed8(v_new);
    }
  }
  // Finite, as the difference of two infinities is no number.
  float most = -1e30f, total = 0.f, y[8] = {};
  for (int pair = 0; first + pair < last; pair += 2 * BLOCK_KEYS)
#pragma unroll
    for (int turn = 0; turn < 2; turn++) {
      const int start = pair + turn * BLOCK_KEYS;
      if (first + start >= last) break;
      float scores[4], x[8], higher = most;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int l = mine + start + j;
        bool is_key = l < last;
        if (seen != nullptr && l < num_seen && is_key) is_key = seen[row * num_seen + l];
        unpack(k[turn][j], x);
        float score = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) score += x[i] * q[i];
        score = sum_over_lanes(score);
        scores[j] = is_key ? score : -1e30f;
        higher = fmaxf(higher, scores[j]);
      }
      const float scaled = power_of_two(most - higher);
      total *= scaled;
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] *= scaled;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float weight = scores[j] > -1e30f ? power_of_two(scores[j] - higher) : 0.f;
        total += weight;
        unpack(v[turn][j], x);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] += weight * x[i];
      }
      most = higher;
      if (first + start + 2 * BLOCK_KEYS < last) ask_for(k[turn], v[turn], start + 2 * BLOCK_KEYS);
    }
  if (has_new) {
    float score = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) score += k_new[i] * q[i];
    score = sum_over_lanes(score);
    if (warp == 0 && lane < LANES) {
      const float higher = fmaxf(most, score), scaled = power_of_two(most - higher),
                  weight = power_of_two(score - higher);
      total = total * scaled + weight;
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] = y[i] * scaled + weight * v_new[i];
      most = higher;
    }
  }
#pragma unroll
  for (int distance = LANES; distance < 32; distance *= 2) {
    const float higher = fmaxf(most, __shfl_xor_sync(FULL, most, distance));
    const float scaled = power_of_two(most - higher);
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
  synchronise();
  const int pair = threadIdx.x;
  if (pair <= HALF) {
    float highest = -1e30f, sum = 0.f, a = 0.f, b = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, shared.parts[w][HEAD_DIM]);
    const int at = pair < HALF ? 2 * pair : 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float scaled = power_of_two(shared.parts[w][HEAD_DIM] - highest);
      sum += scaled * shared.parts[w][HEAD_DIM + 1];
      a += scaled * shared.parts[w][at], b += scaled * shared.parts[w][at + 1];
    }
    const float inverse = sum == 0.f ? 1.f : 1.f / sum;
    u64* to = (IS_SELF ? step.parts : step.cross) + (i64)((part * ROWS + row) * HEADS + head) * PART;
    if (pair < HALF)
      write_word(to + pair, packed(a * inverse, b * inverse), tag);
    else if (IS_SELF)
      write_word(to + pair, __float_as_uint(sum == 0.f ? -1e30f : highest + log2f(sum)), tag);
  }
  synchronise();  // before the next task writes its parts
}

// ------------------------------------------------------------------------------------------------ the step

// The place of the step in a row, which is `length` but for what the row has hidden before it.
__device__ __forceinline__ int place_of(const Step& step, int row, int length) {
  return step.num_hidden == nullptr ? length : length - (int)step.num_hidden[row];
}

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
    const int place = place_of(step, row, (int)(position + step.num_prepended));
    const float angle = place * step.frequencies[d % (DIM / 2)];
    x += d < DIM / 2 ? cosf(angle) : sinf(angle);
  }
  return x;
}

// How attention is shared out: a task is one head of one row over one part of the earlier keys.
struct Tasks {
  int length, share, num_parts, count;  // of all keys, and of those of a part but the last

  __device__ __forceinline__ Tasks(const Step& step, i64 position) {
    length = (int)(position + step.num_prepended);
    share = (length + PARTS - 1) / PARTS;
    share = larger((share + BLOCK_KEYS - 1) / BLOCK_KEYS, 1) * BLOCK_KEYS;
    num_parts = larger((length + share - 1) / share, 1);
    count = ROWS * HEADS * num_parts;
  }

  // Have the keys and values of this block's tasks brought into the L2 cache, by one warp.
  __device__ __forceinline__ void prefetch_keys(const Step& step, const Layer& layer) const {
#pragma unroll 1
    for (int task = blockIdx.x + threadIdx.x % 32 * BLOCKS; task < count; task += 32 * BLOCKS) {
      const int row = task / HEADS % ROWS, kv_head = task % HEADS / (HEADS / KV_HEADS);
      const int first = task / (HEADS * ROWS) * share, num_keys = smaller(share, length - first);
      const i64 offset = row * step.cache_row_stride + kv_head * step.cache_head_stride + first * HEAD_DIM;
      if (num_keys <= 0) continue;
      prefetch(layer.keys + offset, num_keys * HEAD_DIM * 2);
      prefetch(layer.values + offset, num_keys * HEAD_DIM * 2);
    }
  }
};

// Weights of all products, in the order in which they are multiplied, into the ring; and before those of a
// layer its keys, which so have most of a layer's time to come as near as the cache.
__device__ __forceinline__ void fetch_all(Shared& shared) {
  const Step& step = shared.step;
  const Tasks tasks(step, *step.position);
  RingPlace place;
  for (int number = 0; number < LAYERS; number++) {
    const Layer& layer = step.layers[number];
    tasks.prefetch_keys(step, layer);
    Weights<DIM, QKV, 1>::fetch(shared, place, layer.qkv);
    Weights<DIM, DIM, 1>::fetch(shared, place, layer.out);
#if IS_FOLDED
    Weights<DIM, ROWS * SCORES, 1>::fetch(shared, place, layer.folded_keys);
    Weights<SCORES, DIM, ROWS>::fetch(shared, place, layer.folded_values);
#else
    if (HAS_MEMORY) {
      Weights<DIM, DIM, 1>::fetch(shared, place, layer.query);
      Weights<DIM, DIM, 1>::fetch(shared, place, layer.cross_out);
    }
#endif
    Weights<DIM, HIDDEN, GATED ? 2 : 1>::fetch(shared, place, layer.up);
    Weights<HIDDEN, DIM, 1>::fetch(shared, place, layer.down);
  }
  Weights<DIM, LOGITS, 1>::fetch(shared, place, step.head);
}

// Everything else.
__device__ __forceinline__ void multiply_all(Shared& shared) {
  const Step& step = shared.step;
  const u32 launch = *step.launches;
  const i64 position = *step.position;
  u32 tag = launch * (LAYERS + 1);
  RingPlace place;
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

  const Tasks tasks(step, position);
  if (IS_ROTARY) {
    for (int i = threadIdx.x; i < ROWS * HALF; i += THREADS) {
      const float angle = place_of(step, i / HALF, tasks.length) * step.frequencies[i % HALF];
      shared.turns[i / HALF][i % HALF] = make_float2(cosf(angle), sinf(angle));
    }
    synchronise();
  }

  for (int number = 0; number < LAYERS; number++, tag++) {
    const Layer& layer = step.layers[number];
    product<DIM, QKV, 1, true, SEND>(
        shared, place, step.x, step.qkv, nullptr, layer.attention_gain, layer.qkv_shifts, tag, tag, residual);
    for (int task = blockIdx.x; task < tasks.count; task += BLOCKS)
      attend<true>(
          shared, layer, task / HEADS % ROWS, task % HEADS, task / (HEADS * ROWS), tag, tasks.length,
          tasks.share);
    product_of_heads<PARTS>(shared, place, step.parts, step.after_attention, tag, tasks.num_parts, residual);
#if IS_FOLDED
    product<DIM, ROWS * SCORES, 1, true, SCORE>(
        shared, place, step.after_attention, step.scores, nullptr, layer.cross_gain, layer.query_shifts, tag,
        tag, residual);
    product_of_scores(shared, place, step.scores, step.after_cross, tag, residual);
#else
    if (HAS_MEMORY) {
      product<DIM, DIM, 1, true, SEND>(
          shared, place, step.after_attention, step.query, nullptr, layer.cross_gain, layer.query_shifts, tag,
          tag, residual);
      for (int task = blockIdx.x; task < ROWS * HEADS; task += BLOCKS)
        attend<false>(
            shared, layer, task / HEADS, task % HEADS, 0, tag, (int)step.num_states, (int)step.num_states);
      product_of_heads<1>(shared, place, step.cross, step.after_cross, tag, 1, residual);
    }
#endif
    product<DIM, HIDDEN, GATED ? 2 : 1, true, ACTIVATE>(
        shared, place, HAS_MEMORY ? step.after_cross : step.after_attention, step.hidden, nullptr,
        layer.up_gain, layer.up_shifts, tag, tag, residual);
    product<HIDDEN, DIM, 1, false, ADD>(
        shared, place, step.hidden, step.x, nullptr, nullptr, nullptr, tag, tag + 1, residual);
  }
  product<DIM, LOGITS, 1, true, KEEP>(
      shared, place, step.x, nullptr, step.logits, step.norm_gain, step.head_shifts, tag, tag, residual);
  // It has had all of the last layer's results, so all blocks have long known both numbers.
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *step.launches = launch + 1;
    *step.position_of_logits = position;
    *step.position = position + 1;
  }
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) resident_step(const Step* given) {
  Shared& shared = *(Shared*)shared_memory;
  for (int i = threadIdx.x; i < sizeof(Step) / 8; i += ALL_THREADS)
    ((u64*)&shared.step)[i] = ((const u64*)given)[i];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < NUM_STAGES; stage++)
      make_barrier(&shared.filled[stage], 1), make_barrier(&shared.emptied[stage], WARPS);
    show_barriers();
  }
  __syncthreads();
  if (threadIdx.x < THREADS) {
    take_registers<MULTIPLYING>();
    multiply_all(shared);
  } else {
    give_registers<FETCHING>();
    if (threadIdx.x < THREADS + 32) fetch_all(shared);
  }
}
