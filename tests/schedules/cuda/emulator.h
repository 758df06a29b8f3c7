// CUDA kernels on a CPU, to see what they compute: each thread is a coroutine, and what a warp,
// a block or a cluster does together is where they wait for each other. Shared memory begins as
// NaN; cp.async copies when it is waited for, and no sooner; threads that wait in vain are found.
// What takes long to compile is in `emulator.cpp`, which is compiled once for all kernels.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include <ucontext.h>

#define __device__
#define __grid_constant__
#define __global__
#define __forceinline__ static inline
#define __launch_bounds__(...)
#define CUDART_INF_F INFINITY
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
struct alignas(16) uint4 { uint x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(8) uint2 { uint x, y; };

namespace emulator {

struct Group { int size = 0, arrived = 0; long round = 0; bool stirred = false; };  // stirred: look again
struct Copy { unsigned to; const void* from; int bytes, size = 16; };
typedef std::function<void()> Work;
// mbarrier: `group.round` counts its phases, `group.arrived` what has yet to arrive. What the copy engine
// brings is there when a thread waits for the barrier, and no sooner.
struct Barrier { Group group; long bytes = 0; std::vector<Work> copies; };
struct Warp { Group group; uint32_t words[32][8]; };
struct Block {
  Group group;
  std::vector<uint8_t> memory;
  std::vector<Warp> warps;
  std::map<unsigned, Barrier> barriers;
  std::map<int, Group> named;
  int index, rank;
};
struct Index { int x; };
struct Thread {
  ucontext_t context;
  jmp_buf place;
  bool begun = false;
  Block* block;
  int number;
  bool done = false;
  Group* waits_for = nullptr;
  long round = 0;
  std::deque<std::vector<Copy>> groups{1};
  std::deque<std::vector<Work>> products{1}, stores{1};  // of wgmma, and of the copy engine
};

extern Thread* now;
extern std::vector<std::unique_ptr<Block>>* cluster;
extern Group cluster_group, flags;
extern std::function<void()> kernel;

// Ends the run: nobody goes on.
void fail(const char* what);
// Lets others go on until `group` has met once more.
void wait_for(Group& group);
void meet(Group& group);
// Returns what went wrong, or "".
const char* launch(int grid, int cluster_size, int threads, int shared_bytes);
// Copies what cp.async was asked for but the last `left` groups.
void finish_copies(size_t left);
void copy_later(unsigned to, const void* from, int bytes, int size = 16);
void end_group_of_copies();

static inline Warp& warp() { return now->block->warps[now->number / 32]; }
static inline int lane() { return now->number % 32; }
static inline uint8_t* shared(unsigned offset, unsigned bytes) {
  if (offset % bytes || offset + bytes > now->block->memory.size()) fail("shared memory out of bounds");
  return now->block->memory.data() + offset;
}
static inline uint32_t word(unsigned offset) {
  uint32_t value;
  std::memcpy(&value, shared(offset, 4), 4);
  return value;
}
static inline uint16_t half_word(unsigned offset) {
  uint16_t value;
  std::memcpy(&value, shared(offset, 2), 2);
  return value;
}

}  // namespace emulator

#define threadIdx (emulator::Index{emulator::now->number})
#define blockIdx (emulator::Index{emulator::now->block->index})

inline uint32_t bits_of(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float float_of(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return (bits >> 16) | 0x40;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline uint16_t to_half(float x) { _Float16 h = static_cast<_Float16>(x); uint16_t b; std::memcpy(&b, &h, 2); return b; }
inline float from_half(uint16_t b) { _Float16 h; std::memcpy(&h, &b, 2); return static_cast<float>(h); }
inline float from_bfloat16(uint16_t b) { return float_of(static_cast<uint32_t>(b) << 16); }

struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16() = default;
  explicit nv_bfloat16(float x) : bits(to_bfloat16(x)) {}
  explicit operator float() const { return from_bfloat16(bits); }
};
struct half {
  uint16_t bits;
  half() = default;
  explicit half(float x) : bits(to_half(x)) {}
  explicit operator float() const { return from_half(bits); }
};
static inline float __uint_as_float(uint32_t x) { return float_of(x); }
static inline uint32_t __float_as_uint(float x) { return bits_of(x); }
static inline half __ushort_as_half(uint16_t b) { half h; h.bits = b; return h; }
static inline uint16_t __half_as_ushort(half h) { return h.bits; }
static inline float __half2float(half h) { return from_half(h.bits); }
static inline half __float2half_rn(float x) { return half(x); }
static inline uint16_t __bfloat16_as_ushort(nv_bfloat16 b) { return b.bits; }
static inline nv_bfloat16 __float2bfloat16_rn(float x) { return nv_bfloat16(x); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename T> static inline T __ldcs(const T* p) { return *p; }
template <typename T> static inline T __ldg(const T* p) { return *p; }
template <typename T> static inline T __ldcg(const T* p) { return *p; }
template <typename T> static inline void __stcs(T* p, T value) { *p = value; }
template <typename T> static inline void __stwb(T* p, T value) { *p = value; }

static inline void __syncthreads() { emulator::meet(emulator::now->block->group); }
template <typename T> static inline T exchange(T x, int from) {
  auto& warp = emulator::warp();
  std::memcpy(&warp.words[emulator::lane()][0], &x, sizeof(T));
  emulator::meet(warp.group);
  T got;
  std::memcpy(&got, &warp.words[from][0], sizeof(T));
  emulator::meet(warp.group);
  return got;
}
static inline int __shfl_xor_sync(uint32_t, int x, int mask) { return exchange(x, emulator::lane() ^ mask); }
static inline float __shfl_xor_sync(uint32_t, float x, int mask) { return exchange(x, emulator::lane() ^ mask); }
static inline int __shfl_up_sync(uint32_t, int x, int by) {
  return exchange(x, emulator::lane() < by ? emulator::lane() : emulator::lane() - by);
}
static inline int __shfl_sync(uint32_t, int x, int from, int = 32) { return exchange(x, from); }
template <typename Join> static inline int all_of_warp(int x, Join join) {
  for (int mask = 1; mask < 32; mask *= 2) x = join(x, exchange(x, emulator::lane() ^ mask));
  return x;
}
static inline int __reduce_add_sync(uint32_t, int x) { return all_of_warp(x, [](int a, int b) { return a + b; }); }
static inline int __reduce_max_sync(uint32_t, int x) { return all_of_warp(x, [](int a, int b) { return max(a, b); }); }
static inline uint32_t __ballot_sync(uint32_t, bool is) {
  return all_of_warp(is ? 1u << emulator::lane() : 0, [](int a, int b) { return a | b; });
}
static inline int __ffs(int x) { return __builtin_ffs(x); }

// What kernels say in PTX.

static inline float exp2_approx(float x) { return exp2f(x); }
static inline unsigned pack_bfloat16(float low, float high) { return to_bfloat16(low) | to_bfloat16(high) << 16; }
static inline unsigned rounded_pair(float low, float high) { return pack_bfloat16(low, high); }
static inline unsigned pack_float16(float low, float high) { return to_half(low) | to_half(high) << 16; }
static inline float relu(float x) { return x < 0.0f ? 0.0f : x; }
static inline unsigned pack_relu_bfloat16(float low, float high) { return pack_bfloat16(relu(low), relu(high)); }
static inline unsigned pack_relu_float16(float low, float high) { return pack_float16(relu(low), relu(high)); }
template <float (*to_float)(uint16_t), uint16_t (*from_float)(float)>
static inline unsigned fma_pair(unsigned a, unsigned b, unsigned c) {
  auto part = [&](int shift) {
    return from_float(fmaf(to_float(a >> shift), to_float(b >> shift), to_float(c >> shift)));
  };
  return part(0) | static_cast<unsigned>(part(16)) << 16;
}
static inline unsigned fma_pair_float16(unsigned a, unsigned b, unsigned c) { return fma_pair<from_half, to_half>(a, b, c); }
static inline unsigned scaled_pair_float16(unsigned a, unsigned b) { return fma_pair<from_half, to_half>(a, b, 0); }
static inline unsigned scaled_pair_bfloat16(unsigned a, unsigned b) { return fma_pair<from_bfloat16, to_bfloat16>(a, b, 0); }
static inline unsigned fma_pair_bfloat16(unsigned a, unsigned b, unsigned c) {
  return fma_pair<from_bfloat16, to_bfloat16>(a, b, c);
}
static inline unsigned and_or(unsigned word, unsigned mask, unsigned magic) { return (word & mask) | magic; }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
template <typename Byte, typename Sum> static inline Sum dot_of_four(Sum a, Sum b, Sum c) {
  for (int shift = 0; shift < 32; shift += 8) c += Sum(Byte(a >> shift)) * Sum(Byte(b >> shift));
  return c;
}
static inline int __dp4a(int a, int b, int c) { return dot_of_four<int8_t>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return dot_of_four<uint8_t>(a, b, c); }
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
static inline void tvm_builtin_ptx_griddepcontrol_launch_dependents() {}
static inline void tvm_builtin_ptx_griddepcontrol_wait() {}
static inline void tvm_builtin_cuda_warp_sync() { emulator::meet(emulator::warp().group); }
static inline void __syncwarp() { emulator::meet(emulator::warp().group); }
static inline void tvm_builtin_cuda_cluster_sync() { emulator::meet(emulator::cluster_group); }
static inline unsigned tvm_builtin_cluster_ctaid_x() { return emulator::now->block->rank; }
static inline unsigned tvm_builtin_cuda_cvta_generic_to_shared(const void* p) {
  const auto offset = static_cast<const uint8_t*>(p) - emulator::now->block->memory.data();
  if (offset < 0 || offset >= static_cast<long>(emulator::now->block->memory.size())) emulator::fail("not shared memory");
  return offset;
}
static inline void say_here() {}
static inline void await_all_here() { emulator::meet(emulator::cluster_group); }
static inline void copy_row_piece(unsigned to, const void* from, int row, int pitch, int offset, int rows) {
  const bool inside = row < rows;
  const char* at = static_cast<const char*>(from) + static_cast<long long>(inside ? row : 0) * pitch + offset;
  emulator::copy_later(to, at, inside ? 16 : 0);
}
static inline void copy_whole_piece(unsigned to, const void* from, int offset) {
  emulator::copy_later(to, static_cast<const char*>(from) + offset, 16);
}
static inline void copy_piece(unsigned to, const void* from, int row, int pitch, int column, int valid, int alignment) {
  const char* at = static_cast<const char*>(from);
  if (valid > 0) at += (static_cast<long long>(row) * pitch + column) * 2;
  if (reinterpret_cast<uintptr_t>(at) % alignment) emulator::fail("an address that is not aligned");
  emulator::copy_later(to, at, 2 * std::min(std::max(valid, 0), 8));
}
#define COPY_PIECE(name, vector)                                                                         \
  static inline void copy_piece_##name(unsigned to, const void* from, int row, int pitch, int column, \
                                         int valid) {                                                   \
    copy_piece(to, from, row, pitch, column, valid, 2 * vector);                                        \
  }
#define COPY_BYTES(vector)                                                                               \
  static inline void copy_bytes_##vector(unsigned to, const void* from, int row, int pitch, int column, \
                                         int valid) {                                                   \
    const char* at = static_cast<const char*>(from);                                                    \
    if (valid > 0) at += static_cast<long long>(row) * pitch + column;                                  \
    if (reinterpret_cast<uintptr_t>(at) % vector) emulator::fail("an address that is not aligned");     \
    emulator::copy_later(to, at, std::min(std::max(valid, 0), 16));                 \
  }
#define COPY_FLOATS(vector)                                                                               \
  static inline void copy_present_floats_##vector(unsigned to, unsigned long long from, int row, int more, int last, \
                                                  int pitch, int present) {                              \
    const float* at = reinterpret_cast<const float*>(from) + (present ? std::min(row + more, last) * pitch : 0); \
    if (reinterpret_cast<uintptr_t>(at) % (4 * vector)) emulator::fail("an address that is not aligned"); \
    emulator::copy_later(to, at, present ? 4 * vector : 0, 4 * vector);              \
  }                                                                                                      \
  static inline void copy_floats_##vector(unsigned to, unsigned long long from, int row, int more, int last, int pitch) { \
    copy_present_floats_##vector(to, from, row, more, last, pitch, 1);                                   \
  }                                                                                                      \
  static inline void copy_whole_floats_##vector(unsigned to, unsigned long long from, int apart) {       \
    copy_present_floats_##vector(to, from, 0, apart, apart, 1, 1);                                       \
  }
COPY_FLOATS(1) COPY_FLOATS(4)
static inline void fetch_present_four(float* to, const void* array, long long at, int present) {
  for (int i = 0; i < 4; ++i) to[i] = present ? static_cast<const float*>(array)[at + i] : 0.0f;
}
static inline void fetch_whole_four(float* to, unsigned long long from, int apart) {
  fetch_present_four(to, reinterpret_cast<const void*>(from), apart, 1);
}
static inline void fetch_four_floats(float* to, unsigned long long from, int row, int more, int last, int pitch, int behind) {
  const float* at = reinterpret_cast<const float*>(from) + (std::min(row + more, last) * pitch + behind);
  if (reinterpret_cast<uintptr_t>(at) % 16) emulator::fail("an address that is not aligned");
  std::memcpy(to, at, 16);
}
COPY_BYTES(4) COPY_BYTES(8) COPY_BYTES(16)
static inline void place_words(unsigned to, const unsigned* raw) { std::memcpy(emulator::shared(to, 16), raw, 16); }
static inline void place_piece(unsigned to, const unsigned* raw) {
  for (int i = 0; i < 8; ++i) std::memcpy(emulator::shared(to + 2 * i, 2), raw + i, 2);
}
static inline void load_piece(unsigned* out, unsigned from) { std::memcpy(out, emulator::shared(from, 16), 16); }
static inline void save_piece(unsigned to, float a, float b, float c, float d) {
  const float values[4] = {a, b, c, d};
  std::memcpy(emulator::shared(to, 16), values, 16);
}
static inline void add_piece(float* sums, unsigned from) {
  float values[4];
  std::memcpy(values, emulator::shared(from, 16), 16);
  for (int i = 0; i < 4; ++i) sums[i] += values[i];
}
static inline void add_piece_of_block(float* sums, unsigned from, int rank) {
  emulator::shared(from, 16);
  float values[4];
  std::memcpy(values, (*emulator::cluster)[rank]->memory.data() + from, 16);
  for (int i = 0; i < 4; ++i) sums[i] += values[i];
}
static inline void load_streamed_if(unsigned* out, const void* memory, int there) {
  if (there && reinterpret_cast<uintptr_t>(memory) % 16) emulator::fail("an address that is not aligned");
  std::memset(out, 0, 16);
  if (there) std::memcpy(out, memory, 16);
}
static inline void ask_for(const void* memory, int there) {
  volatile char c = there ? *static_cast<const char*>(memory) : 0;
}
static inline void load_streamed(unsigned* out, const void* memory) { load_streamed_if(out, memory, 1); }
static inline void copy_word(unsigned to, const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4) emulator::fail("an address that is not aligned");
  emulator::copy_later(to, from, 4, 4);
}
#define COPY_PART(vector)                                                                                  \
  static inline void copy_part_##vector(unsigned to, const void* from, int there) {                      \
    if (reinterpret_cast<uintptr_t>(from) % (2 * vector)) emulator::fail("an address that is not aligned"); \
    emulator::copy_later(to, from, there ? 2 * vector : 0, 2 * vector);                \
  }
static inline void copy_around(unsigned to, const void* from, int at, int size, int there) {
  const int first = at & ~7;
  const auto* begin = static_cast<const uint16_t*>(from) + first;
  if (reinterpret_cast<uintptr_t>(begin) % 16) emulator::fail("an address that is not aligned");
  emulator::copy_later(to, begin, there ? 2 * std::max(std::min(size - first, 8), 0) : 0);
}
COPY_PART(2) COPY_PART(4) COPY_PART(8)
COPY_PIECE(2, 2) COPY_PIECE(4, 4) COPY_PIECE(8, 8) COPY_PIECE(8_near, 8)
static inline void tvm_builtin_ptx_cp_async_commit_group_async_commit_group() { emulator::end_group_of_copies(); }
#define WAIT_GROUP(n) \
  static inline void tvm_builtin_ptx_cp_async_wait_group_async_wait_group_##n() { emulator::finish_copies(n); }
WAIT_GROUP(0) WAIT_GROUP(1) WAIT_GROUP(2) WAIT_GROUP(3) WAIT_GROUP(4) WAIT_GROUP(5) WAIT_GROUP(6)

void load_matrices(uint32_t* out, uint32_t address, bool transposed, int count = 4);
#define LOAD_MATRICES(name, transposed)                                                                     \
  static inline void name(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) { \
    uint32_t out[4];                                                                                        \
    load_matrices(out, address, transposed);                                                                \
    a = out[0]; b = out[1]; c = out[2]; d = out[3];                                                         \
  }
LOAD_MATRICES(tvm_builtin_ptx_ldmatrix_sync_aligned_m8n8_x4_shared_b16, false)
LOAD_MATRICES(tvm_builtin_ptx_ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16, true)
static inline void tvm_builtin_ptx_ldmatrix_sync_aligned_m8n8_x2_shared_b16(uint32_t& a, uint32_t& b, uint32_t address) {
  uint32_t out[2];
  load_matrices(out, address, false, 2);
  a = out[0]; b = out[1];
}

static inline void tvm_builtin_ptx_movmatrix_sync_aligned_m8n8_trans_b16(uint32_t& out, uint32_t in) {
  auto& warp = emulator::warp();
  warp.words[emulator::lane()][0] = in;
  emulator::meet(warp.group);
  const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
  auto element = [&](int r, int c) { return warp.words[r * 4 + c / 2][0] >> 16 * (c % 2) & 0xFFFF; };
  const uint32_t result = element(column, row) | element(column + 1, row) << 16;
  emulator::meet(warp.group);
  out = result;
}
template <float (*to_float)(uint16_t)>
void multiply(float* d, const uint32_t* a, const uint32_t* b, const float* c);
#define MULTIPLY(kind, to_float)                                                                                \
  static inline void tvm_builtin_ptx_mma_sync_aligned_m16n8k16_row_col_f32_##kind##_##kind##_f32(               \
      float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, \
      uint32_t b1, float c0, float c1, float c2, float c3) {                                                    \
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};                                                    \
    const float c[4] = {c0, c1, c2, c3};                                                                        \
    float d[4];                                                                                                 \
    multiply<to_float>(d, a, b, c);                                                                             \
    d0 = d[0]; d1 = d[1]; d2 = d[2]; d3 = d[3];                                                                 \
  }
// Half as deep: the rest of k is zeros.
#define MULTIPLY_SHORT(kind)                                                                                    \
  static inline void tvm_builtin_ptx_mma_sync_aligned_m16n8k8_row_col_f32_##kind##_##kind##_f32(                \
      float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t b0, float c0, float c1,    \
      float c2, float c3) {                                                                                     \
    tvm_builtin_ptx_mma_sync_aligned_m16n8k16_row_col_f32_##kind##_##kind##_f32(                                \
        d0, d1, d2, d3, a0, a1, 0, 0, b0, 0, c0, c1, c2, c3);                                                   \
  }
MULTIPLY(bf16, from_bfloat16) MULTIPLY_SHORT(bf16)
MULTIPLY(f16, from_half) MULTIPLY_SHORT(f16)

// Of tf32: words are floats, whose last 13 bits are not read.
static inline float as_tf32(uint32_t word) {
  word &= 0xFFFFE000u;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
void multiply_tf32(float* d, const uint32_t* own, const float* c);
static inline void tvm_builtin_ptx_mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
    uint32_t b1, float c0, float c1, float c2, float c3) {
  const uint32_t own[6] = {a0, a1, a2, a3, b0, b1};
  const float c[4] = {c0, c1, c2, c3};
  float d[4];
  multiply_tf32(d, own, c);
  d0 = d[0]; d1 = d[1]; d2 = d[2]; d3 = d[3];
}
static inline uint32_t load_shared_word(uint32_t from) { return emulator::word(from); }

// Of bytes: words hold four along k.
template <typename Byte>
void multiply_bytes(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c);
#define MULTIPLY_BYTES(kind, Byte)                                                                            \
  static inline void tvm_builtin_ptx_mma_int_sync_aligned_m16n8k32_row_col_s32_##kind##_s8_s32(                   \
      uint32_t& d0, uint32_t& d1, uint32_t& d2, uint32_t& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
      uint32_t b0, uint32_t b1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {                         \
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1}, c[4] = {c0, c1, c2, c3};                         \
    uint32_t d[4];                                                                                            \
    multiply_bytes<Byte>(d, a, b, c);                                                                         \
    d0 = d[0]; d1 = d[1]; d2 = d[2]; d3 = d[3];                                                               \
  }
MULTIPLY_BYTES(s8, int8_t)
MULTIPLY_BYTES(u8, uint8_t)
#include "hopper.h"
