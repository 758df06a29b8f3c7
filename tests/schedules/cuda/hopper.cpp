// What `hopper.h` declares: the copy engine, barriers in shared memory, wgmma.
#include "emulator.h"

namespace emulator {

typedef std::array<int, 5> Place;

// Calls `at(offset in the box, element or null beyond the array)` for each element of a box.
template <typename F> static void each_of_box(const CUtensorMap& map, const Place& place, F at) {
  int inside[5] = {};
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

Group& named_group(int name, int threads) {
  auto& group = now->block->named[name];
  group.size = threads;
  return group;
}

void begin_barrier(unsigned address, int count) {
  auto& group = now->block->barriers[address].group;
  group.size = group.arrived = count;
}

Barrier& barrier_of(int rank, unsigned address) {
  auto& barriers = (*cluster)[rank]->barriers;
  auto found = barriers.find(address);
  if (found == barriers.end()) fail("no barrier there");
  return found->second;
}

static void end_phase(Barrier& barrier) {
  if (barrier.group.arrived != 0 || barrier.bytes != 0) return;
  barrier.group.arrived = barrier.group.size;
  ++barrier.group.round;
}

void arrive(Barrier& barrier, int count, int bytes) {
  barrier.group.arrived -= count;
  barrier.bytes += bytes;
  if (barrier.group.arrived < 0) fail("more arrivals than a barrier expects");
  end_phase(barrier);
}

void await(Barrier& barrier, int parity) {
  while ((barrier.group.round & 1) == parity) {
    std::vector<Work> copies;
    copies.swap(barrier.copies);
    barrier.group.stirred = false;
    for (auto& copy : copies) copy();
    end_phase(barrier);
    if ((barrier.group.round & 1) != parity) break;
    wait_for(barrier.group);
  }
}

void send(unsigned to, unsigned barrier, int rank, const float* values, int count) {
  const int bytes = count * static_cast<int>(sizeof(float));
  if (to % bytes) fail("an address that is not aligned");
  auto& counter = barrier_of(rank, barrier);
  counter.bytes -= bytes;
  std::memcpy((*cluster)[rank]->memory.data() + to, values, bytes);
  end_phase(counter);
}

void load_box(unsigned to, const void* view, const Place& place, unsigned address, int rank) {
  auto& barrier = barrier_of(rank, address);
  const CUtensorMap map = *static_cast<const CUtensorMap*>(view);  // its thread may end before it is read
  const bool plain = map.item == 8;  // rows that are not swizzled
  const unsigned row = map.box[0] * map.item;
  if (to % (plain ? 128 : 8 * row)) fail("a box that is not aligned");
  barrier.group.stirred = true;
  barrier.copies.push_back([=, &barrier] {
    each_of_box(map, place, [&](unsigned offset, const char* element) {
      const int item = plain ? 8 : 2;
      uint8_t* at = shared(plain ? to + offset : swizzled(to + offset, row), item);
      std::memset(at, 0, item);
      if (element) std::memcpy(at, element, item);
      barrier.bytes -= item;
    });
  });
}

void store_box(const void* map, const Place& place, unsigned from) {
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
void end_group_of_stores() { now->stores.emplace_back(); }
void finish_stores(size_t left) { finish(now->stores, left); }
void end_group_of_products() { now->products.emplace_back(); }
void finish_products(size_t left) { finish(now->products, left); }

// Swizzled rows of 128, 64 or 32 bytes, 8 of them as far apart as the stride says.
static unsigned in_matrix(uint64_t descriptor, int row, int bytes) {
  const unsigned base = (descriptor & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 == 0) fail("a descriptor without swizzle");
  const unsigned pitch = 256 >> (descriptor >> 62);
  return swizzled(base + row / 8 * stride + row % 8 * pitch + bytes, pitch);
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
static void multiply_matrices(float** sums, int columns, const uint64_t* told) {
  auto fill = [a = told[0]](float (*rows)[depth]) {
    const int first = now->number / 32 % 4 * 16 + lane() / 4;
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < depth; ++k) rows[half][k] = of_a(a, first + half * 8, k);
  };
  multiply_rows<of_b, depth>(sums, columns, fill, told[1], told[2] != 0);
}
template <float (*to_float)(uint16_t)>
static void multiply_halves(bool a_across, bool b_across, float** sums, int columns, const uint64_t* told) {
  constexpr OfMatrix along = half_of_matrix<to_float>, across = half_of_turned<to_float>;
  if (a_across && b_across) return multiply_matrices<across, across, 16>(sums, columns, told);
  if (a_across) return multiply_matrices<across, along, 16>(sums, columns, told);
  if (b_across) return multiply_matrices<along, across, 16>(sums, columns, told);
  multiply_matrices<along, along, 16>(sums, columns, told);
}
void multiply_warpgroup(Kind kind, bool a_across, bool b_across, float** sums, int columns, const uint64_t* told) {
  if (kind == TF32) return multiply_matrices<tf32_of_matrix, tf32_of_matrix, 8>(sums, columns, told);
  const auto multiply = kind == BF16 ? multiply_halves<from_bfloat16> : multiply_halves<from_half>;
  multiply(a_across, b_across, sums, columns, told);
}

template <OfMatrix of_b, int depth, typename Place>
static void multiply_words(float** sums, int columns, const uint64_t* told, Place place) {
  std::array<std::array<float, depth>, 2> values;
  for (int i = 0; i < 4; ++i)  // pairs of a thread's two rows in turn
    for (int other = 0; other < 4; ++other)
      place(values[i % 2], i / 2, other, exchange(static_cast<uint32_t>(told[i]), lane() / 4 * 4 + other));
  auto fill = [=](float (*rows)[depth]) { std::memcpy(rows, &values, sizeof(values)); };
  multiply_rows<of_b, depth>(sums, columns, fill, told[4], told[5] != 0);
}
template <float (*to_float)(uint16_t)>
static void multiply_pairs(bool b_across, float** sums, int columns, const uint64_t* told) {
  auto place = [](std::array<float, 16>& row, int half, int other, uint32_t pair) {
    row[half * 8 + other * 2] = to_float(pair);
    row[half * 8 + other * 2 + 1] = to_float(pair >> 16);
  };
  if (b_across) return multiply_words<half_of_turned<to_float>, 16>(sums, columns, told, place);
  multiply_words<half_of_matrix<to_float>, 16>(sums, columns, told, place);
}
void multiply_registers(Kind kind, bool b_across, float** sums, int columns, const uint64_t* told) {
  auto place = [](std::array<float, 8>& row, int half, int other, uint32_t word) { row[half * 4 + other] = as_tf32(word); };
  if (kind == TF32) return multiply_words<tf32_of_matrix, 8>(sums, columns, told, place);
  const auto multiply = kind == BF16 ? multiply_pairs<from_bfloat16> : multiply_pairs<from_half>;
  multiply(b_across, sums, columns, told);
}

}  // namespace emulator

template <typename Byte>
void multiply_bytes_of_warpgroup(unsigned* sums, int columns, uint64_t a, uint64_t b, bool adds) {
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
template void multiply_bytes_of_warpgroup<int8_t>(unsigned*, int, uint64_t, uint64_t, bool);
template void multiply_bytes_of_warpgroup<uint8_t>(unsigned*, int, uint64_t, uint64_t, bool);

void save_matrices(uint32_t address, const uint32_t* in, bool transposed) {
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
