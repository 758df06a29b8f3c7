// What `emulator.h` knows of Hopper: the copy engine, barriers in shared memory, wgmma. Products are made
// when they are waited for, and so are copies: what a kernel reads too early is not there. `hopper.cpp` makes them.
#pragma once

struct CUtensorMap {
  void* base;
  int rank, item;
  long long dims[5];  // innermost first
  int box[5], steps[5];
  unsigned long long pitches[5];  // bytes
};

namespace emulator {

// Rows of 128, 64 or 32 bytes, whose pieces of 16 bytes are put elsewhere in lines of 128.
static unsigned swizzled(unsigned offset, unsigned row = 128) { return offset ^ (offset >> 7 & (row / 16 - 1)) << 4; }

typedef std::array<int, 5> Place;
Group& named_group(int name, int threads);
void begin_barrier(unsigned address, int count);
Barrier& barrier_of(int rank, unsigned address);
static inline Barrier& barrier_at(unsigned address) { return barrier_of(now->block->rank, address); }
void arrive(Barrier& barrier, int count, int bytes);
// Stores values in another block, whose barrier counts them.
void send(unsigned to, unsigned barrier, int rank, const float* values, int count);
void await(Barrier& barrier, int parity);
// The same place in another block of the cluster, as addresses of the whole cluster say it.
static const unsigned BLOCK = 1u << 24;
void load_box(unsigned to, const void* view, const Place& place, unsigned address, int rank);
void store_box(const void* view, const Place& place, unsigned from);
void end_group_of_stores();
void finish_stores(size_t left);
void end_group_of_products();
void finish_products(size_t left);
// Adds products of 64 rows to sums of a warpgroup, half as many a thread as there are columns. It is told of two
// matrices in shared memory, that lie along k or across it, and whether to add.
enum Kind { BF16, F16, TF32 };
void multiply_warpgroup(Kind kind, bool a_across, bool b_across, float** sums, int columns, const uint64_t* told);
// The same of a first factor in registers, four words of a thread, which are read before what comes next may change them.
void multiply_registers(Kind kind, bool b_across, float** sums, int columns, const uint64_t* told);
// Of the arguments of a wgmma: where its sums are, and what it is told.
static inline float* sum_of(float& sum) { return &sum; }
template <typename T> static inline float* sum_of(const T&) { return nullptr; }
static inline uint64_t word_of(float) { return 0; }
template <typename T> static inline uint64_t word_of(const T& word) { return word; }
}  // namespace emulator

static inline void tvm_builtin_ptx_mbarrier_init_init_shared_b64(uint32_t address, uint32_t count) {
  emulator::begin_barrier(address, count);
}
static inline void tvm_builtin_ptx_mbarrier_arrive_arrive_shared_b64(uint32_t address, uint32_t count) {
  emulator::arrive(emulator::barrier_at(address), count, 0);
}
static inline void tvm_builtin_ptx_mbarrier_arrive_expect_tx_arrive_expect_tx_shared_b64(uint32_t address, uint32_t bytes) {
  emulator::arrive(emulator::barrier_at(address), 1, bytes);
}
static inline void tvm_builtin_ptx_mapa_u32_shared__cluster_u32(uint32_t& to, uint32_t address, uint32_t rank) {
  to = (rank + 1) * emulator::BLOCK + address;
}
static inline void tvm_builtin_ptx_mbarrier_arrive_nocount_arrive_shared__cluster_b64(uint32_t address) {
  emulator::arrive(emulator::barrier_of(address / emulator::BLOCK - 1, address % emulator::BLOCK), 1, 0);
}
static inline void tvm_builtin_cuda_mbarrier_wait(void* barrier, int parity) {
  emulator::await(emulator::barrier_at(tvm_builtin_cuda_cvta_generic_to_shared(barrier)), parity);
}
static inline void tvm_builtin_cuda_mbarrier_wait_acquire_cluster(void* barrier, int parity) {
  tvm_builtin_cuda_mbarrier_wait(barrier, parity);
}
static inline void send_four(const void* place, const void* barrier, int rank, float a, float b, float c, float d) {
  const float values[4] = {a, b, c, d};
  emulator::send(tvm_builtin_cuda_cvta_generic_to_shared(place), tvm_builtin_cuda_cvta_generic_to_shared(barrier), rank, values, 4);
}
static inline void send_two(const void* place, const void* barrier, int rank, float a, float b) {
  const float values[2] = {a, b};
  emulator::send(tvm_builtin_cuda_cvta_generic_to_shared(place), tvm_builtin_cuda_cvta_generic_to_shared(barrier), rank, values, 2);
}
#define BOXES(dims, parameters, ...)                                                                          \
  static inline void                                                                                          \
  tvm_builtin_ptx_cp_async_bulk_tensor_g2s_cluster_async_bulk_tensor_##dims##d_shared__cluster_global_mbarrier__complete_tx__bytes( \
      uint32_t to, const void* map, __VA_ARGS__, uint32_t barrier) {                                           \
    emulator::load_box(to, map, parameters, barrier, emulator::now->block->rank);                             \
  }                                                                                                           \
  static inline void                                                                                          \
  tvm_builtin_ptx_cp_async_bulk_tensor_g2s_cluster_async_bulk_tensor_##dims##d_shared__cluster_global_mbarrier__complete_tx__bytes_multicast__cluster( \
      uint32_t to, const void* map, __VA_ARGS__, uint32_t barrier, uint16_t blocks) {                          \
    for (int other = 0; other < 16; ++other)                                                                  \
      if (blocks >> other & 1) emulator::load_box(to, map, parameters, barrier, other);                       \
  }                                                                                                           \
  static inline void                                                                                          \
  tvm_builtin_ptx_cp_async_bulk_tensor_s2g_async_bulk_tensor_##dims##d_global_shared__cta_tile_bulk_group(     \
      const void* map, __VA_ARGS__, uint32_t from) {                                                          \
    emulator::store_box(map, parameters, from);                                                               \
  }
#define LIST(...) {__VA_ARGS__}
BOXES(2, LIST(a, b), int a, int b)
BOXES(3, LIST(a, b, c), int a, int b, int c)
BOXES(4, LIST(a, b, c, d), int a, int b, int c, int d)
BOXES(5, LIST(a, b, c, d, e), int a, int b, int c, int d, int e)
static inline void tvm_builtin_ptx_cp_async_bulk_commit_group_async_bulk_commit_group() { emulator::end_group_of_stores(); }
#define WAIT_FOR_STORES(what, n)                                                                             \
  static inline void tvm_builtin_ptx_cp_async_bulk_wait_group_async_bulk_wait_group_##what() {               \
    emulator::finish_stores(n);                                                                              \
  }
WAIT_FOR_STORES(0, 0) WAIT_FOR_STORES(read_0, 0) WAIT_FOR_STORES(read_1, 1)
static inline void tvm_builtin_ptx_wgmma_commit_group_commit_group_sync_aligned() { emulator::end_group_of_products(); }
static inline void tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_0() { emulator::finish_products(0); }
static inline void tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_1() { emulator::finish_products(1); }
// Clusters run one after the other: what a block waits for is there, or comes from its own cluster.
static inline void meet_in_cluster() { emulator::meet(emulator::cluster_group); }
static const uint64_t raised = 0x9d3f6c21b75ae084;
static inline void raise_flags(void* flags, int number, int readers, int self) {
  emulator::meet(emulator::warp().group);
  const int reader = emulator::lane();
  if (reader < readers && reader != self) static_cast<uint64_t*>(flags)[number * readers + reader] = raised;
  ++emulator::flags.round;
}
static inline void await_flag(void* flags, int number) {
  uint64_t& flag = static_cast<uint64_t*>(flags)[number];
  while (flag != raised) emulator::wait_for(emulator::flags);
  emulator::meet(emulator::warp().group);
  flag = 0;
}
static inline int take_ticket(unsigned* counter) {
  return exchange(emulator::lane() == 0 ? static_cast<int>((*counter)++) : 0, 0);
}
static inline void count_copied(unsigned* counter) {
  emulator::meet(emulator::warp().group);
  if (emulator::lane() == 0) ++*counter;
  ++emulator::flags.round;
}
static inline void await_count(const unsigned* counter, int count) {
  while (static_cast<int>(*counter) < count) emulator::wait_for(emulator::flags);
}
static inline uint4 read_once(const uint4* from) { return *from; }
static inline bool tvm_builtin_elect_one_sync_op() { return emulator::lane() == 0; }
static inline void tvm_builtin_cuda_cta_sync() { __syncthreads(); }
static inline void tvm_builtin_ptx_bar_sync_count_sync(uint32_t name, uint32_t threads) {
  emulator::meet(emulator::named_group(name, threads));
}
static inline void tvm_builtin_ptx_bar_arrive_arrive(uint32_t name, uint32_t threads) {
  auto& group = emulator::named_group(name, threads);
  if (++group.arrived < group.size) return;
  group.arrived = 0;
  ++group.round;
}
static inline void tvm_builtin_cuda_warpgroup_sync(int name) { tvm_builtin_ptx_bar_sync_count_sync(name, 128); }
#define MULTIPLY_REGISTERS(kind, Kind, b_across, depth, columns, ends)                                                                      \
  template <typename... All>                                                                                                      \
  static inline void                                                                                                              \
  tvm_builtin_ptx_wgmma_##kind##_rs_mma_async_sync_aligned_m64n##columns##k##depth##_f32_##kind##_##kind##_##ends(All&&... all) { \
    float* sums[] = {emulator::sum_of(all)...};                                                                                   \
    const uint64_t words[] = {emulator::word_of(all)...};                                                                         \
    emulator::multiply_registers(emulator::Kind, b_across, sums, columns, words + columns / 2);                                             \
  }
#define MULTIPLY_REGISTERS_ACROSS(columns)                    \
  MULTIPLY_REGISTERS(bf16, BF16, true, 16, columns, 1_1_1)    \
  MULTIPLY_REGISTERS(f16, F16, true, 16, columns, 1_1_1)
MULTIPLY_REGISTERS_ACROSS(64) MULTIPLY_REGISTERS_ACROSS(128) MULTIPLY_REGISTERS_ACROSS(256)
#define MULTIPLY_REGISTERS_ALONG(columns)                     \
  MULTIPLY_REGISTERS(bf16, BF16, false, 16, columns, 1_1_0)   \
  MULTIPLY_REGISTERS(f16, F16, false, 16, columns, 1_1_0)
MULTIPLY_REGISTERS_ALONG(8) MULTIPLY_REGISTERS_ALONG(16) MULTIPLY_REGISTERS_ALONG(24) MULTIPLY_REGISTERS_ALONG(32)
MULTIPLY_REGISTERS_ALONG(40) MULTIPLY_REGISTERS_ALONG(48) MULTIPLY_REGISTERS_ALONG(64) MULTIPLY_REGISTERS_ALONG(96)
MULTIPLY_REGISTERS_ALONG(128) MULTIPLY_REGISTERS_ALONG(72) MULTIPLY_REGISTERS_ALONG(136) MULTIPLY_REGISTERS_ALONG(160)
MULTIPLY_REGISTERS_ALONG(256)
static inline void store_pair(void* to, uint32_t pair) { std::memcpy(to, &pair, 4); }
#define MULTIPLY_WARPGROUP(kind, Kind, a_across, b_across, depth, columns, ends)                                                  \
  template <typename... All>                                                                                                      \
  static inline void                                                                                                              \
  tvm_builtin_ptx_wgmma_##kind##_ss_mma_async_sync_aligned_m64n##columns##k##depth##_f32_##kind##_##kind##_##ends(All&&... all) { \
    float* sums[] = {emulator::sum_of(all)...};                                                                                   \
    const uint64_t words[] = {emulator::word_of(all)...};                                                                         \
    emulator::multiply_warpgroup(emulator::Kind, a_across, b_across, sums, columns, words + columns / 2);                         \
  }
#define MULTIPLY_HALVES(kind, Kind, columns)                         \
  MULTIPLY_WARPGROUP(kind, Kind, false, false, 16, columns, 1_1_0_0) \
  MULTIPLY_WARPGROUP(kind, Kind, false, true, 16, columns, 1_1_0_1)  \
  MULTIPLY_WARPGROUP(kind, Kind, true, false, 16, columns, 1_1_1_0)  \
  MULTIPLY_WARPGROUP(kind, Kind, true, true, 16, columns, 1_1_1_1)
#define MULTIPLY_WARPGROUPS(columns)                            \
  MULTIPLY_HALVES(bf16, BF16, columns)                          \
  MULTIPLY_HALVES(f16, F16, columns)                            \
  MULTIPLY_WARPGROUP(tf32, TF32, false, false, 8, columns, 1_1)
MULTIPLY_WARPGROUPS(8) MULTIPLY_WARPGROUPS(16) MULTIPLY_WARPGROUPS(24) MULTIPLY_WARPGROUPS(40)
MULTIPLY_WARPGROUPS(32) MULTIPLY_WARPGROUPS(64) MULTIPLY_WARPGROUPS(128) MULTIPLY_WARPGROUPS(192) MULTIPLY_WARPGROUPS(224)
MULTIPLY_WARPGROUPS(256) MULTIPLY_WARPGROUPS(48) MULTIPLY_WARPGROUPS(80) MULTIPLY_WARPGROUPS(96) MULTIPLY_WARPGROUPS(112)
MULTIPLY_WARPGROUPS(144) MULTIPLY_WARPGROUPS(160) MULTIPLY_WARPGROUPS(176) MULTIPLY_WARPGROUPS(208) MULTIPLY_WARPGROUPS(240)
#define MULTIPLY_WORDS_OF_WARPGROUP(columns) MULTIPLY_REGISTERS(tf32, TF32, false, 8, columns, 1_1)
MULTIPLY_WORDS_OF_WARPGROUP(16) MULTIPLY_WORDS_OF_WARPGROUP(32) MULTIPLY_WORDS_OF_WARPGROUP(64)
MULTIPLY_WORDS_OF_WARPGROUP(128) MULTIPLY_WORDS_OF_WARPGROUP(192) MULTIPLY_WORDS_OF_WARPGROUP(256)
MULTIPLY_WORDS_OF_WARPGROUP(80) MULTIPLY_WORDS_OF_WARPGROUP(96) MULTIPLY_WORDS_OF_WARPGROUP(112)
MULTIPLY_WORDS_OF_WARPGROUP(144) MULTIPLY_WORDS_OF_WARPGROUP(160) MULTIPLY_WORDS_OF_WARPGROUP(176)
MULTIPLY_WORDS_OF_WARPGROUP(208) MULTIPLY_WORDS_OF_WARPGROUP(224) MULTIPLY_WORDS_OF_WARPGROUP(240)
static inline void load_two_words(uint32_t* to, uint32_t from) {
  for (int i = 0; i < 2; ++i) to[i] = emulator::word(from + 4 * i);
}
void save_matrices(uint32_t address, const uint32_t* in, bool transposed);
#define SAVE_MATRICES(name, transposed)                                                                       \
  static inline void name(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {                 \
    const uint32_t in[4] = {a, b, c, d};                                                                      \
    save_matrices(address, in, transposed);                                                                   \
  }
SAVE_MATRICES(tvm_builtin_ptx_stmatrix_sync_aligned_m8n8_x4_shared_b16, false)
SAVE_MATRICES(tvm_builtin_ptx_stmatrix_sync_aligned_m8n8_x4_trans_shared_b16, true)
// Of bytes: the sums lie in a row, of registers.
template <typename Byte>
void multiply_bytes_of_warpgroup(unsigned* sums, int columns, uint64_t a, uint64_t b, bool adds);
#define MULTIPLY_BYTES_OF_WARPGROUP(columns)                                                                  \
  static inline void multiply_s8_##columns(unsigned* sums, uint64_t a, uint64_t b, int adds) {                \
    multiply_bytes_of_warpgroup<int8_t>(sums, columns, a, b, adds);                                           \
  }                                                                                                           \
  static inline void multiply_u8_##columns(unsigned* sums, uint64_t a, uint64_t b, int adds) {                \
    multiply_bytes_of_warpgroup<uint8_t>(sums, columns, a, b, adds);                                          \
  }
MULTIPLY_BYTES_OF_WARPGROUP(64) MULTIPLY_BYTES_OF_WARPGROUP(128) MULTIPLY_BYTES_OF_WARPGROUP(192) MULTIPLY_BYTES_OF_WARPGROUP(256)
MULTIPLY_BYTES_OF_WARPGROUP(80) MULTIPLY_BYTES_OF_WARPGROUP(96) MULTIPLY_BYTES_OF_WARPGROUP(112)
MULTIPLY_BYTES_OF_WARPGROUP(144) MULTIPLY_BYTES_OF_WARPGROUP(160) MULTIPLY_BYTES_OF_WARPGROUP(176)
MULTIPLY_BYTES_OF_WARPGROUP(208) MULTIPLY_BYTES_OF_WARPGROUP(224) MULTIPLY_BYTES_OF_WARPGROUP(240)
template <typename Sum> static inline void tvmops_add_partial(Sum* sums, const void* mine, int rank) {
  const auto offset = tvm_builtin_cuda_cvta_generic_to_shared(mine);
  for (int i = 0; i < 8; ++i) {
    Sum value;
    std::memcpy(&value, (*emulator::cluster)[rank]->memory.data() + offset + 4 * i, 4);
    sums[i] += value;
  }
}
static inline void add_partials(float* sums, const void* mine, int count) {
  const auto offset = tvm_builtin_cuda_cvta_generic_to_shared(mine);
  for (int i = 0; i < 8; ++i) {
    sums[i] = 0;
    for (int rank = 0; rank < count; ++rank) {
      float value;
      std::memcpy(&value, (*emulator::cluster)[rank]->memory.data() + offset + 4 * i, 4);
      sums[i] += value;
    }
  }
}
#define ADD_PARTIALS(count) \
  static inline void add_partials_##count(float* sums, const void* mine) { add_partials(sums, mine, count); }
ADD_PARTIALS(2) ADD_PARTIALS(3) ADD_PARTIALS(4) ADD_PARTIALS(6) ADD_PARTIALS(8)
struct alignas(8) float2 { float x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline void tvm_builtin_ptx_cvt_bf16x2_f32_rn_bf16x2_f32(uint32_t& pair, float high, float low) {
  pair = pack_bfloat16(low, high);
}
static inline void tvm_builtin_ptx_cvt_f16x2_f32_rn_f16x2_f32(uint32_t& pair, float high, float low) {
  pair = pack_float16(low, high);
}
static inline void tvm_builtin_ptx_st_vec_global_v4_b32(const void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[4] = {a, b, c, d};
  std::memcpy(const_cast<void*>(to), words, 16);
}
static inline void tvm_builtin_ptx_st_vec_global_v4_f32(const void* to, float a, float b, float c, float d) {
  const float words[4] = {a, b, c, d};
  std::memcpy(const_cast<void*>(to), words, 16);
}
static inline uint2 make_uint2(uint x, uint y) { return {x, y}; }
