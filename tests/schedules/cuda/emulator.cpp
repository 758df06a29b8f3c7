// The machine that `emulator.h` declares: threads that wait for each other, what a warp does together.
#include "emulator.h"

namespace emulator {

Thread* now;
static jmp_buf scheduler;
std::vector<std::unique_ptr<Block>>* cluster;
Group cluster_group, flags;
std::function<void()> kernel;

static std::string complaint;
static std::vector<std::unique_ptr<char[]>> stacks;  // of the threads of a cluster; the next one's use them again

static void give_way() {
  if (_setjmp(now->place) == 0) _longjmp(scheduler, 1);
}

// A context begins a thread, and no more: to switch contexts asks the system for signals each time.
static void go_on() {
  if (_setjmp(scheduler) != 0) return;
  if (now->begun) _longjmp(now->place, 1);
  now->begun = true;
  setcontext(&now->context);
}

void fail(const char* what) {
  complaint = "block " + std::to_string(now->block->index) + ", thread " + std::to_string(now->number) + ": " + what;
  for (;;) give_way();
}

void meet(Group& group) {
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.round;
    return;
  }
  wait_for(group);
}

void wait_for(Group& group) {
  now->waits_for = &group;
  now->round = group.round;
  give_way();
}

static void entry() {
  kernel();
  now->done = true;
  give_way();
}

static void run_cluster(int first, int blocks, int threads, int shared_bytes) {
  std::vector<std::unique_ptr<Block>> made;
  std::vector<std::unique_ptr<Thread>> all;
  cluster = &made;
  cluster_group = Group{blocks * threads};
  for (int rank = 0; rank < blocks; ++rank) {
    auto block = std::make_unique<Block>();
    block->group.size = threads;
    block->memory.assign(shared_bytes, 0xFF);
    block->warps.resize(threads / 32);
    for (auto& each : block->warps) each.group.size = 32;
    block->index = first + rank;
    block->rank = rank;
    for (int number = 0; number < threads; ++number) {
      auto thread = std::make_unique<Thread>();
      const size_t size = 1 << 18;
      if (all.size() == stacks.size()) stacks.emplace_back(new char[size]);
      getcontext(&thread->context);
      thread->context.uc_stack.ss_sp = stacks[all.size()].get();
      thread->context.uc_stack.ss_size = size;
      makecontext(&thread->context, entry, 0);
      thread->block = block.get();
      thread->number = number;
      all.push_back(std::move(thread));
    }
    made.push_back(std::move(block));
  }
  for (size_t left = all.size(); left > 0;) {
    bool moved = false;
    for (auto& thread : all) {
      const auto* group = thread->waits_for;
      if (thread->done || (group && group->round == thread->round && !group->stirred)) continue;
      thread->waits_for = nullptr;
      now = thread.get();
      go_on();
      if (!complaint.empty()) return;
      moved = true;
      left -= now->done;
    }
    if (!moved) {
      complaint = "threads wait for others that do not come";
      return;
    }
  }
}

const char* launch(int grid, int cluster_size, int threads, int shared_bytes) {
  complaint.clear();
  for (int first = 0; first < grid && complaint.empty(); first += cluster_size)
    run_cluster(first, cluster_size, threads, shared_bytes);
  return complaint.c_str();
}

void copy_later(unsigned to, const void* from, int bytes, int size) {
  now->groups.back().push_back({to, from, bytes, size});
}

void end_group_of_copies() { now->groups.emplace_back(); }

void finish_copies(size_t left) {
  auto& groups = now->groups;
  for (; groups.size() > left + 1; groups.pop_front())
    for (const auto& copy : groups.front()) {
      uint8_t* to = shared(copy.to, copy.size);
      std::memset(to, 0, copy.size);
      std::memcpy(to, copy.from, copy.bytes);
    }
}

}  // namespace emulator

void load_matrices(uint32_t* out, uint32_t address, bool transposed, int count) {
  auto& warp = emulator::warp();
  if (emulator::lane() < 8 * count) emulator::shared(address, 16);
  warp.words[emulator::lane()][0] = address;
  emulator::meet(warp.group);
  const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
  for (int matrix = 0; matrix < count; ++matrix) {
    auto at = [&](int r) { return warp.words[matrix * 8 + r][0]; };
    out[matrix] = transposed ? emulator::half_word(at(column) + 2 * row) | emulator::half_word(at(column + 1) + 2 * row) << 16
                             : emulator::word(at(row) + 2 * column);
  }
  emulator::meet(warp.group);
}

template <float (*to_float)(uint16_t)>
void multiply(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  auto& warp = emulator::warp();
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) warp.words[lane][i] = a[i];
  for (int i = 0; i < 2; ++i) warp.words[lane][4 + i] = b[i];
  emulator::meet(warp.group);
  auto part = [&](int row, int k, int word) { return to_float(warp.words[row * 4 + k % 8 / 2][word] >> 16 * (k % 2)); };
  float result[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, below = i / 2;
    result[i] = c[i];
    for (int k = 0; k < 16; ++k) result[i] += part(row, k, below + k / 8 * 2) * part(column, k, 4 + k / 8);
  }
  emulator::meet(warp.group);
  for (int i = 0; i < 4; ++i) d[i] = result[i];
}
template void multiply<from_half>(float*, const uint32_t*, const uint32_t*, const float*);
template void multiply<from_bfloat16>(float*, const uint32_t*, const uint32_t*, const float*);

void multiply_tf32(float* d, const uint32_t* own, const float* c) {
  auto& warp = emulator::warp();
  const int lane = emulator::lane();
  for (int i = 0; i < 6; ++i) warp.words[lane][i] = own[i];
  emulator::meet(warp.group);
  float result[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, below = i / 2;
    result[i] = c[i];
    for (int k = 0; k < 8; ++k)
      result[i] += as_tf32(warp.words[row * 4 + k % 4][below + k / 4 * 2]) * as_tf32(warp.words[column * 4 + k % 4][4 + k / 4]);
  }
  emulator::meet(warp.group);
  for (int i = 0; i < 4; ++i) d[i] = result[i];
}

template <typename Byte>
void multiply_bytes(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  auto& warp = emulator::warp();
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) warp.words[lane][i] = a[i];
  for (int i = 0; i < 2; ++i) warp.words[lane][4 + i] = b[i];
  emulator::meet(warp.group);
  auto byte = [&](int row, int k, int word) { return warp.words[row * 4 + k % 16 / 4][word] >> 8 * (k % 4); };
  uint32_t result[4];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, below = i / 2;
    result[i] = c[i];
    for (int k = 0; k < 32; ++k)
      result[i] += static_cast<Byte>(byte(row, k, below + k / 16 * 2)) * static_cast<int8_t>(byte(column, k, 4 + k / 16));
  }
  emulator::meet(warp.group);
  for (int i = 0; i < 4; ++i) d[i] = result[i];
}
template void multiply_bytes<int8_t>(uint32_t*, const uint32_t*, const uint32_t*, const uint32_t*);
template void multiply_bytes<uint8_t>(uint32_t*, const uint32_t*, const uint32_t*, const uint32_t*);
