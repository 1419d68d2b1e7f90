// Enough of a GPU to run a kernel on a CPU: every thread of every block is a fiber, and one is at work at a
// time.
//
// A fiber runs until it waits, at a barrier, for the other lanes of its warp, or for a word that another
// block writes; then another one goes on, drawn by chance. So each seed is another order of events, and a
// program that waits for ever is found. What the copy engine is given it does at once or as late as it may,
// by chance too. What a thread reads of shared memory before anything is written is NaN.
#define EMULATED
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define FULL 0xffffffffu

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct Place {
  int x;
};

struct Warp {
  long arrived = 0;
  unsigned values[2][32][6];
};

// In shared memory, where a GPU has 64 bits of its own.
struct Barrier {
  short count, missing;
  unsigned phase : 1, bytes : 31;  // that were announced and are not there
};
static_assert(sizeof(Barrier) == 8);

struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
  Barrier* barrier;
};

struct Block {
  long arrived = 0, multipliers_arrived = 0;
  std::vector<Warp> warps;
  std::vector<float4> memory;
  std::vector<Copy> copies;  // that were asked for and not done
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Place thread, block_number;
  Block* block;
  long barriers = 0, multipliers_barriers = 0, collectives = 0;
  bool has_ended = false;
};

inline ucontext_t scheduler;
inline Fiber* current;
inline long progress;  // barriers that were passed, words that were written, fibers that ended
inline std::mt19937 chance;

#define threadIdx (current->thread)
#define blockIdx (current->block_number)
#define shared_memory (current->block->memory.data())

inline void yield() { swapcontext(&current->context, &scheduler); }

// Somewhere amid a computation, so that a thread is also overtaken by others where it does not wait: else a
// barrier that is missing would be noticed less often.
inline void may_be_overtaken() {
  if (chance() % 16 == 0) yield();
}

inline void wait_for_all(long& arrived, long needed) {
  arrived++;
  while (arrived < needed) yield();
  progress++;
}
inline void __syncthreads() {
  wait_for_all(current->block->arrived, ++current->barriers * 32 * (long)current->block->warps.size());
}
inline void synchronise() {
  wait_for_all(current->block->multipliers_arrived, ++current->multipliers_barriers * 32 * NUM_WARPS);
}

// What all lanes of the warp bring: a lane reads it before it can bring anything else twice.
inline const unsigned (*exchange(const unsigned* mine, int count))[6] {
  Warp& warp = current->block->warps[current->thread.x / 32];
  const long number = current->collectives++;
  std::memcpy(warp.values[number % 2][current->thread.x % 32], mine, count * sizeof(unsigned));
  warp.arrived++;
  while (warp.arrived < 32 * (number + 1)) yield();
  return warp.values[number % 2];
}

inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, 4);
  return y;
}

inline float __shfl_xor_sync(unsigned, float x, int distance) {
  const unsigned mine = __float_as_uint(x);
  return __uint_as_float(exchange(&mine, 1)[(current->thread.x ^ distance) % 32][0]);
}

inline float exchanged(float x, int distance) { return __shfl_xor_sync(FULL, x, distance); }

inline bool __all_sync(unsigned, bool x) {
  const unsigned mine = x;
  const auto all = exchange(&mine, 1);
  bool y = true;
  for (int lane = 0; lane < 32; lane++) y &= all[lane][0] != 0;
  return y;
}

inline void __syncwarp() {
  const unsigned nothing = 0;
  exchange(&nothing, 1);
}

inline unsigned __ballot_sync(unsigned, bool x) {
  const unsigned mine = x;
  const auto all = exchange(&mine, 1);
  unsigned y = 0;
  for (int lane = 0; lane < 32; lane++) y |= all[lane][0] << lane;
  return y;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline unsigned bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned packed(float low, float high) {
  may_be_overtaken();
  return bfloat16(low) | bfloat16(high) << 16;
}

// As the manual of PTX lays out `mma.m16n8k16`.
inline void multiply_add(
    float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  const auto all = exchange(mine, 6);
  const int lane = current->thread.x % 32;
  const auto half = [](unsigned both, int k) {
    return __uint_as_float(k % 2 ? both & 0xffff0000u : both << 16);
  };
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const unsigned a = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2],
                     b = all[column * 4 + k % 8 / 2][4 + k / 8];
      c[i] += half(a, k) * half(b, k);
    }
  }
}

inline void make_barrier(unsigned long long* p, int count) {
  *(Barrier*)p = {(short)count, (short)count, 0, 0};
}
inline void show_barriers() {}
template <int>
inline void give_registers() {}
template <int>
inline void take_registers() {}
inline void end_phase_if_complete(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes > 0) return;
  barrier.missing = barrier.count, barrier.phase ^= 1, progress++;
}
inline void arrive(unsigned long long* p) {
  Barrier& barrier = *(Barrier*)p;
  if (barrier.missing-- == 0) std::abort();
  end_phase_if_complete(barrier);
}
inline void arrive_before_bytes(unsigned long long* p, int bytes) {
  ((Barrier*)p)->bytes += bytes;
  arrive(p);
}
inline void make_copy(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  if (copy.barrier->bytes < copy.bytes) std::abort();
  copy.barrier->bytes -= copy.bytes;
  end_phase_if_complete(*copy.barrier);
}
inline void copy_later(void* to, const void* from, int bytes, unsigned long long* barrier) {
  if (((uintptr_t)to | (uintptr_t)from | bytes) % 16 != 0) std::abort();
  const Copy copy = {to, from, (unsigned)bytes, (Barrier*)barrier};
  if (chance() % 2)
    make_copy(copy);
  else
    current->block->copies.push_back(copy);
}
inline bool has_ended(unsigned long long* p, unsigned phase) {
  auto& copies = current->block->copies;
  if (((Barrier*)p)->phase == phase && !copies.empty()) {
    std::swap(copies[chance() % copies.size()], copies.back());
    const Copy copy = copies.back();
    copies.pop_back();
    make_copy(copy);
  }
  return ((Barrier*)p)->phase != phase;
}
inline void read_word(const unsigned long long* p, unsigned& value, unsigned& tag) {
  value = (unsigned)*p, tag = (unsigned)(*p >> 32);
}
inline void read_two_words(const unsigned long long* p, unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
  if ((uintptr_t)p % 16 != 0) std::abort();
  read_word(p, a, b), read_word(p + 1, c, d);
}
inline void write_word(unsigned long long* p, unsigned value, unsigned tag) {
  may_be_overtaken();
  *p = (unsigned long long)tag << 32 | value;
  progress++;
}
inline void prefetch(const void* from, int bytes) {
  if (((uintptr_t)from | bytes) % 16 != 0 || bytes <= 0) std::abort();
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned places) {
  const unsigned long long both = (unsigned long long)high << 32 | low;
  may_be_overtaken();
  unsigned y = 0;
  for (int k = 0; k < 4; k++) y |= (unsigned)(both >> (places >> 4 * k & 7) * 8 & 0xff) << 8 * k;
  return y;
}
inline float power_of_two(float x) {
  may_be_overtaken();
  return std::exp2(x);
}
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

// Runs a kernel; 1 where all wait for something that does not come.
template <class Kernel>
int emulate(Kernel kernel, int num_blocks, int num_threads, int shared_bytes, unsigned seed) {
  static Kernel entry;
  entry = kernel;
  chance.seed(seed);
  std::vector<Block> blocks(num_blocks);
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (int b = 0; b < num_blocks; b++) {
    blocks[b].warps.resize(num_threads / 32);
    blocks[b].memory.resize((shared_bytes + 15) / 16);
    std::memset((void*)blocks[b].memory.data(), 0xff, shared_bytes);
    for (int t = 0; t < num_threads; t++) {
      auto fiber = std::make_unique<Fiber>();
      constexpr int size = 1 << 16;
      fiber->stack = std::make_unique<char[]>(size);
      fiber->thread = {t}, fiber->block_number = {b}, fiber->block = &blocks[b];
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get();
      fiber->context.uc_stack.ss_size = size;
      fiber->context.uc_link = &scheduler;
      makecontext(&fiber->context, (void (*)()) + [] { entry(), current->has_ended = true, progress++; }, 0);
      fibers.push_back(std::move(fiber));
    }
  }
  std::vector<Fiber*> waiting;
  for (auto& fiber : fibers) waiting.push_back(fiber.get());
  for (int idle = 0; !waiting.empty();) {
    const long before = progress;
    std::shuffle(waiting.begin(), waiting.end(), chance);
    std::vector<Fiber*> left;
    for (Fiber* fiber : waiting) {
      current = fiber;
      swapcontext(&scheduler, &fiber->context);
      if (!fiber->has_ended) left.push_back(fiber);
    }
    waiting.swap(left);
    // What lanes tell one another is not progress, but there are some hundreds of that between two barriers.
    idle = progress == before ? idle + 1 : 0;
    if (idle > 4000) return 1;
  }
  return 0;
}
