// What `emulator.h` knows of Hopper: the copy engine, barriers in shared memory, wgmma. Products are made
// when they are waited for, and so are copies: what a kernel reads too early is not there.
#pragma once

struct CUtensorMap {
  void* base;
  int rank, item;
  long long dims[5];  // innermost first
  int box[5], steps[5];
  unsigned long long pitches[5];  // bytes
};

namespace emulator {

static unsigned swizzled(unsigned offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Calls `at(offset in the box, element or null beyond the array)` for each element of a box.
template <typename F> static void each_of_box(const CUtensorMap& map, const std::vector<int>& place, F at) {
  std::vector<int> inside(map.rank, 0);
  for (unsigned offset = 0;; offset += map.item) {
    unsigned long long element = 0;  // modulo 2**64, as the engine counts
    bool within = true;
    for (int axis = 0; axis < map.rank; ++axis) {
      const long long x = place[axis] + static_cast<long long>(inside[axis]) * map.steps[axis];
      within &= 0 <= x && x < map.dims[axis];
      element += x * map.pitches[axis];
    }
    at(offset, within ? static_cast<char*>(map.base) + element : nullptr);
    int axis = 0;
    while (axis < map.rank && ++inside[axis] * map.steps[axis] >= map.box[axis]) inside[axis++] = 0;
    if (axis == map.rank) return;
  }
}

static void end_phase(Barrier& barrier) {
  if (barrier.group.arrived != 0 || barrier.bytes != 0) return;
  barrier.group.arrived = barrier.group.size;
  ++barrier.group.round;
}
static Barrier& barrier_of(int rank, unsigned address) {
  auto& barriers = (*cluster)[rank]->barriers;
  auto found = barriers.find(address);
  if (found == barriers.end()) fail("no barrier there");
  return found->second;
}
static Barrier& barrier_at(unsigned address) { return barrier_of(now->block->rank, address); }
static void arrive(Barrier& barrier, int count, int bytes) {
  barrier.group.arrived -= count;
  barrier.bytes += bytes;
  if (barrier.group.arrived < 0) fail("more arrivals than a barrier expects");
  end_phase(barrier);
}
static void await(Barrier& barrier, int parity) {
  while ((barrier.group.round & 1) == parity) {
    std::vector<Work> copies;
    copies.swap(barrier.copies);
    barrier.group.stirred = false;
    for (auto& copy : copies) copy();
    end_phase(barrier);
    if ((barrier.group.round & 1) != parity) break;
    now->waits_for = &barrier.group;
    now->round = barrier.group.round;
    swapcontext(&now->context, &scheduler);
  }
}
// The same place in another block of the cluster, as addresses of the whole cluster say it.
static const unsigned BLOCK = 1u << 24;
static void load_box(unsigned to, const void* view, std::vector<int> place, unsigned address, int rank) {
  auto& barrier = barrier_of(rank, address);
  const CUtensorMap map = *static_cast<const CUtensorMap*>(view);  // its thread may end before it is read
  const bool plain = map.item == 8;  // rows that are not 128 bytes long
  if (to % (plain ? 128 : 1024)) fail("a box that is not aligned");
  barrier.group.stirred = true;
  barrier.copies.push_back([=, &barrier] {
    each_of_box(map, place, [&](unsigned offset, const char* element) {
      const int item = plain ? 8 : 2;
      uint8_t* at = shared(plain ? to + offset : swizzled(to + offset), item);
      std::memset(at, 0, item);
      if (element) std::memcpy(at, element, item);
      barrier.bytes -= item;
    });
  });
}
static void store_box(const void* map, std::vector<int> place, unsigned from) {
  now->stores.back().push_back([=] {
    each_of_box(*static_cast<const CUtensorMap*>(map), place, [&](unsigned offset, char* element) {
      if (element) std::memcpy(element, shared(swizzled(from + offset), 2), 2);
    });
  });
}
static void finish(std::deque<std::vector<Work>>& groups, size_t left) {
  for (; groups.size() > left + 1; groups.pop_front())
    for (auto& work : groups.front()) work();
}
// Rows of 128 bytes along k, swizzled, 8 rows in 1024 bytes: all that kernels use of descriptors.
static unsigned in_matrix(uint64_t descriptor, int row, int bytes) {
  const unsigned base = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1) fail("a descriptor without 128-byte swizzle");
  return swizzled(base + row / 8 * stride + row % 8 * 128 + bytes);
}
template <float (*to_float)(uint16_t)> static float half_of_matrix(uint64_t descriptor, int row, int k) {
  return to_float(half_word(in_matrix(descriptor, row, 2 * k)));
}
// Rows across k: panels of 64 of them one after the other, 8 values of k in as many bytes as the stride says.
template <float (*to_float)(uint16_t)> static float half_of_turned(uint64_t descriptor, int row, int k) {
  const unsigned panel = (descriptor >> 16 & 0x3FFF) << 4;
  return to_float(half_word(in_matrix(descriptor + (row / 64 * panel >> 4), k, row % 64 * 2)));
}
static float tf32_of_matrix(uint64_t descriptor, int row, int k) {
  return as_tf32(word(in_matrix(descriptor, row, 4 * k)));
}
// `depth` elements are 32 bytes.
typedef float (*OfMatrix)(uint64_t, int, int);
// Adds to a thread's sums the products of its two rows, which `fill` tells when they are wanted.
template <OfMatrix of_b, int depth, typename Fill>
static void multiply_rows(float** sums, int columns, Fill fill, uint64_t b, bool adds) {
  std::vector<float*> own(sums, sums + columns / 2);
  now->products.back().push_back([=] {
    float rows[2][depth];
    fill(rows);
    for (int i = 0; i < columns / 2; i += 4)
      for (int e = 0; e < 2; ++e) {
        const int column = i * 2 + lane() % 4 * 2 + e;
        float sum[2] = {adds ? *own[i + e] : 0, adds ? *own[i + 2 + e] : 0};
        for (int k = 0; k < depth; ++k) {
          const float x = of_b(b, column, k);
          sum[0] += rows[0][k] * x;
          sum[1] += rows[1][k] * x;
        }
        *own[i + e] = sum[0];
        *own[i + 2 + e] = sum[1];
      }
  });
}
template <OfMatrix of_a, OfMatrix of_b, int depth>
static void multiply_warpgroup(float** sums, int columns, uint64_t a, uint64_t b, bool adds) {
  auto fill = [=](float (*rows)[depth]) {
    const int first = now->number / 32 % 4 * 16 + lane() / 4;
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < depth; ++k) rows[half][k] = of_a(a, first + half * 8, k);
  };
  multiply_rows<of_b, depth>(sums, columns, fill, b, adds);
}

}  // namespace emulator

static inline void tvm_builtin_ptx_mbarrier_init_init_shared_b64(uint32_t address, uint32_t count) {
  auto& barrier = emulator::now->block->barriers[address];
  barrier.group.size = barrier.group.arrived = count;
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
namespace emulator {
template <size_t count> static void send(const void* place, const void* barrier, int rank, const float (&values)[count]) {
  const unsigned to = tvm_builtin_cuda_cvta_generic_to_shared(place);
  if (to % sizeof(values)) fail("an address that is not aligned");
  auto& counter = barrier_of(rank, tvm_builtin_cuda_cvta_generic_to_shared(barrier));
  counter.bytes -= sizeof(values);
  std::memcpy((*cluster)[rank]->memory.data() + to, values, sizeof(values));
  end_phase(counter);
}
}  // namespace emulator
static inline void send_four(const void* place, const void* barrier, int rank, float a, float b, float c, float d) {
  emulator::send(place, barrier, rank, {a, b, c, d});
}
static inline void send_two(const void* place, const void* barrier, int rank, float a, float b) {
  emulator::send(place, barrier, rank, {a, b});
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
static inline void tvm_builtin_ptx_cp_async_bulk_commit_group_async_bulk_commit_group() { emulator::now->stores.emplace_back(); }
#define WAIT_FOR_STORES(what, n)                                                                             \
  static inline void tvm_builtin_ptx_cp_async_bulk_wait_group_async_bulk_wait_group_##what() {               \
    emulator::finish(emulator::now->stores, n);                                                              \
  }
WAIT_FOR_STORES(0, 0) WAIT_FOR_STORES(read_0, 0) WAIT_FOR_STORES(read_1, 1)
static inline void tvm_builtin_ptx_wgmma_commit_group_commit_group_sync_aligned() { emulator::now->products.emplace_back(); }
static inline void tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_0() { emulator::finish(emulator::now->products, 0); }
static inline void tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_1() { emulator::finish(emulator::now->products, 1); }
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
  while (flag != raised) {
    emulator::now->waits_for = &emulator::flags;
    emulator::now->round = emulator::flags.round;
    swapcontext(&emulator::now->context, &emulator::scheduler);
  }
  emulator::meet(emulator::warp().group);
  flag = 0;
}
static inline uint4 read_once(const uint4* from) { return *from; }
static inline bool tvm_builtin_elect_one_sync_op() { return emulator::lane() == 0; }
static inline void tvm_builtin_cuda_cta_sync() { __syncthreads(); }
static inline void tvm_builtin_ptx_bar_sync_count_sync(uint32_t name, uint32_t threads) {
  auto& group = emulator::now->block->named[name];
  group.size = threads;
  emulator::meet(group);
}
static inline void tvm_builtin_ptx_bar_arrive_arrive(uint32_t name, uint32_t threads) {
  auto& group = emulator::now->block->named[name];
  group.size = threads;
  if (++group.arrived < group.size) return;
  group.arrived = 0;
  ++group.round;
}
static inline void tvm_builtin_cuda_warpgroup_sync(int name) { tvm_builtin_ptx_bar_sync_count_sync(name, 128); }
// The sums, two descriptors, and whether to add.
using emulator::OfMatrix;
template <OfMatrix of_a, OfMatrix of_b, int depth, int columns, typename... Rest>
static inline void multiply_warpgroup(float** sums, int count, float& sum, Rest&&... rest);
template <OfMatrix of_a, OfMatrix of_b, int depth, int columns>
static inline void multiply_warpgroup(float** sums, int, uint64_t a, uint64_t b, int adds) {
  emulator::multiply_warpgroup<of_a, of_b, depth>(sums, columns, a, b, adds != 0);
}
template <OfMatrix of_a, OfMatrix of_b, int depth, int columns, typename... Rest>
static inline void multiply_warpgroup(float** sums, int count, float& sum, Rest&&... rest) {
  sums[count] = &sum;
  multiply_warpgroup<of_a, of_b, depth, columns>(sums, count + 1, rest...);
}
// The same, with `a` in registers: four words of a thread, pairs of its two rows in turn.
template <float (*to_float)(uint16_t), emulator::OfMatrix of_b, int columns>
static inline void multiply_registers(
    float** sums, int, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int adds
) {
  const uint32_t mine[4] = {a0, a1, a2, a3};
  std::vector<float> values(32);
  for (int i = 0; i < 4; ++i)
    for (int other = 0; other < 4; ++other) {
      const uint32_t pair = exchange(mine[i], emulator::lane() / 4 * 4 + other);
      float* to = &values[i % 2 * 16 + i / 2 * 8 + other * 2];
      to[0] = to_float(pair);
      to[1] = to_float(pair >> 16);
    }
  auto fill = [=](float (*rows)[16]) { std::copy(values.begin(), values.end(), &rows[0][0]); };
  emulator::multiply_rows<of_b, 16>(sums, columns, fill, b, adds != 0);
}
template <float (*to_float)(uint16_t), emulator::OfMatrix of_b, int columns, typename... Rest>
static inline void multiply_registers(float** sums, int count, float& sum, Rest&&... rest) {
  sums[count] = &sum;
  multiply_registers<to_float, of_b, columns>(sums, count + 1, rest...);
}
#define MULTIPLY_REGISTERS(kind, to_float, of_b, ends, columns)                                                          \
  template <typename... All>                                                                                          \
  static inline void                                                                                                  \
  tvm_builtin_ptx_wgmma_##kind##_rs_mma_async_sync_aligned_m64n##columns##k16_f32_##kind##_##kind##_##ends(All&&... all) { \
    float* sums[columns / 2];                                                                                         \
    multiply_registers<to_float, emulator::of_b<to_float>, columns>(sums, 0, all...);                                 \
  }
#define MULTIPLY_REGISTERS_ACROSS(columns)                                     \
  MULTIPLY_REGISTERS(bf16, from_bfloat16, half_of_turned, 1_1_1, columns)      \
  MULTIPLY_REGISTERS(f16, from_half, half_of_turned, 1_1_1, columns)
MULTIPLY_REGISTERS_ACROSS(64) MULTIPLY_REGISTERS_ACROSS(128) MULTIPLY_REGISTERS_ACROSS(256)
#define MULTIPLY_REGISTERS_ALONG(columns)                                      \
  MULTIPLY_REGISTERS(bf16, from_bfloat16, half_of_matrix, 1_1_0, columns)      \
  MULTIPLY_REGISTERS(f16, from_half, half_of_matrix, 1_1_0, columns)
MULTIPLY_REGISTERS_ALONG(8) MULTIPLY_REGISTERS_ALONG(16) MULTIPLY_REGISTERS_ALONG(24) MULTIPLY_REGISTERS_ALONG(32)
MULTIPLY_REGISTERS_ALONG(40) MULTIPLY_REGISTERS_ALONG(48) MULTIPLY_REGISTERS_ALONG(64) MULTIPLY_REGISTERS_ALONG(96)
MULTIPLY_REGISTERS_ALONG(128)
static inline void store_pair(void* to, uint32_t pair) { std::memcpy(to, &pair, 4); }
#define MULTIPLY_WARPGROUP(kind, of_a, of_b, depth, columns, ends)                                                \
  template <typename... All>                                                                                      \
  static inline void                                                                                              \
  tvm_builtin_ptx_wgmma_##kind##_ss_mma_async_sync_aligned_m64n##columns##k##depth##_f32_##kind##_##kind##_##ends(All&&... all) { \
    float* sums[columns / 2];                                                                                     \
    multiply_warpgroup<of_a, of_b, depth, columns>(sums, 0, all...);                                              \
  }
#define MULTIPLY_HALVES(kind, along, across, columns)             \
  MULTIPLY_WARPGROUP(kind, along, along, 16, columns, 1_1_0_0)    \
  MULTIPLY_WARPGROUP(kind, along, across, 16, columns, 1_1_0_1)   \
  MULTIPLY_WARPGROUP(kind, across, along, 16, columns, 1_1_1_0)   \
  MULTIPLY_WARPGROUP(kind, across, across, 16, columns, 1_1_1_1)
#define MULTIPLY_WARPGROUPS(columns)                                                                                    \
  MULTIPLY_HALVES(bf16, emulator::half_of_matrix<from_bfloat16>, emulator::half_of_turned<from_bfloat16>, columns)     \
  MULTIPLY_HALVES(f16, emulator::half_of_matrix<from_half>, emulator::half_of_turned<from_half>, columns)               \
  MULTIPLY_WARPGROUP(tf32, emulator::tf32_of_matrix, emulator::tf32_of_matrix, 8, columns, 1_1)
MULTIPLY_WARPGROUPS(8) MULTIPLY_WARPGROUPS(16) MULTIPLY_WARPGROUPS(24) MULTIPLY_WARPGROUPS(40)
MULTIPLY_WARPGROUPS(32) MULTIPLY_WARPGROUPS(64) MULTIPLY_WARPGROUPS(128) MULTIPLY_WARPGROUPS(192) MULTIPLY_WARPGROUPS(224)
MULTIPLY_WARPGROUPS(256) MULTIPLY_WARPGROUPS(48) MULTIPLY_WARPGROUPS(80) MULTIPLY_WARPGROUPS(96) MULTIPLY_WARPGROUPS(112)
MULTIPLY_WARPGROUPS(144) MULTIPLY_WARPGROUPS(160) MULTIPLY_WARPGROUPS(176) MULTIPLY_WARPGROUPS(208) MULTIPLY_WARPGROUPS(240)
// The same of a first factor in registers, which are read before what comes next may change them.
template <int columns>
static inline void multiply_words_of_warpgroup(float** sums, int, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                               uint64_t b, int adds) {
  auto& warp = emulator::warp();
  const uint32_t words[4] = {a0, a1, a2, a3};
  std::memcpy(warp.words[emulator::lane()], words, 16);
  emulator::meet(warp.group);
  std::array<std::array<float, 8>, 2> rows;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 8; ++k)
      rows[half][k] = as_tf32(warp.words[emulator::lane() / 4 * 4 + k % 4][half + k / 4 * 2]);
  emulator::meet(warp.group);
  std::vector<float*> own(sums, sums + columns / 2);
  emulator::now->products.back().push_back([=] {
    for (int i = 0; i < columns / 2; ++i) {
      const int column = i / 4 * 8 + emulator::lane() % 4 * 2 + i % 2;
      float sum = adds ? *own[i] : 0;
      for (int k = 0; k < 8; ++k) sum += rows[i / 2 % 2][k] * emulator::tf32_of_matrix(b, column, k);
      *own[i] = sum;
    }
  });
}
template <int columns, typename... Rest>
static inline void multiply_words_of_warpgroup(float** sums, int count, float& sum, Rest&&... rest) {
  sums[count] = &sum;
  multiply_words_of_warpgroup<columns>(sums, count + 1, rest...);
}
#define MULTIPLY_WORDS_OF_WARPGROUP(columns)                                                                       \
  template <typename... All>                                                                                       \
  static inline void                                                                                               \
  tvm_builtin_ptx_wgmma_tf32_rs_mma_async_sync_aligned_m64n##columns##k8_f32_tf32_tf32_1_1(All&&... all) {         \
    float* sums[columns / 2];                                                                                      \
    multiply_words_of_warpgroup<columns>(sums, 0, all...);                                                         \
  }
MULTIPLY_WORDS_OF_WARPGROUP(16) MULTIPLY_WORDS_OF_WARPGROUP(32) MULTIPLY_WORDS_OF_WARPGROUP(64)
MULTIPLY_WORDS_OF_WARPGROUP(128) MULTIPLY_WORDS_OF_WARPGROUP(192) MULTIPLY_WORDS_OF_WARPGROUP(256)
MULTIPLY_WORDS_OF_WARPGROUP(80) MULTIPLY_WORDS_OF_WARPGROUP(96) MULTIPLY_WORDS_OF_WARPGROUP(112)
MULTIPLY_WORDS_OF_WARPGROUP(144) MULTIPLY_WORDS_OF_WARPGROUP(160) MULTIPLY_WORDS_OF_WARPGROUP(176)
MULTIPLY_WORDS_OF_WARPGROUP(208) MULTIPLY_WORDS_OF_WARPGROUP(224) MULTIPLY_WORDS_OF_WARPGROUP(240)
static inline void load_two_words(uint32_t* to, uint32_t from) {
  for (int i = 0; i < 2; ++i) to[i] = emulator::word(from + 4 * i);
}
static inline void save_matrices(uint32_t address, const uint32_t* in, bool transposed) {
  auto& warp = emulator::warp();
  emulator::shared(address, 16);
  warp.words[emulator::lane()][0] = address;
  emulator::meet(warp.group);
  const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    auto at = [&](int r) { return warp.words[matrix * 8 + r][0]; };
    if (!transposed) std::memcpy(emulator::shared(at(row) + 2 * column, 4), &in[matrix], 4);
    for (int e = 0; e < 2 && transposed; ++e)
      std::memcpy(emulator::shared(at(column + e) + 2 * row, 2), reinterpret_cast<const char*>(&in[matrix]) + 2 * e, 2);
  }
  emulator::meet(warp.group);
}
#define SAVE_MATRICES(name, transposed)                                                                       \
  static inline void name(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {                 \
    const uint32_t in[4] = {a, b, c, d};                                                                      \
    save_matrices(address, in, transposed);                                                                   \
  }
SAVE_MATRICES(tvm_builtin_ptx_stmatrix_sync_aligned_m8n8_x4_shared_b16, false)
SAVE_MATRICES(tvm_builtin_ptx_stmatrix_sync_aligned_m8n8_x4_trans_shared_b16, true)
// Of bytes: the sums lie in a row, of registers.
template <typename Byte>
static inline void multiply_bytes_of_warpgroup(unsigned* sums, int columns, uint64_t a, uint64_t b, bool adds) {
  auto byte_of = [](uint64_t matrix, int row, int k) { return *emulator::shared(emulator::in_matrix(matrix, row, k), 1); };
  emulator::now->products.back().push_back([=] {
    const int first = emulator::now->number / 32 % 4 * 16 + emulator::lane() / 4;
    for (int i = 0; i < columns / 2; ++i) {
      const int row = first + i / 2 % 2 * 8, column = i / 4 * 8 + emulator::lane() % 4 * 2 + i % 2;
      if (!adds) sums[i] = 0;
      for (int k = 0; k < 32; ++k)
        sums[i] += static_cast<Byte>(byte_of(a, row, k)) * static_cast<int8_t>(byte_of(b, column, k));
    }
  });
}
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
