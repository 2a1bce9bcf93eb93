#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

namespace shoal {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);  // a model's next operation usually comes within this

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// `gate` says what helpers may do: bit 16 is set while a job is open to them, bits 0-15 count those inside it, the bits
// above number the jobs. A helper that wakes late finds the gate shut and touches nothing.
constexpr uint64_t kOpen = 1u << 16, kInside = kOpen - 1, kNextJob = kOpen << 1;

struct Pool {
  std::atomic<uint64_t> gate{0};
  std::atomic<int64_t> next{0};
  Task task = nullptr;
  const void* context = nullptr;
  int64_t count = 0;
  std::atomic<int> sleepers{0}, wanted{1}, helpers{0};
  std::mutex owner, sleep;
  std::condition_variable wake;

  void work() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(context, i);
  }

  bool enter(uint64_t seen) {
    uint64_t now = gate.load();
    while ((now & kOpen) && (now & ~kInside) != seen)
      if (gate.compare_exchange_weak(now, now + 1)) return true;
    return false;
  }

  // True once a job other than `seen` is open; false when this helper is no longer wanted.
  bool wait(uint64_t seen, int number) {
    auto ready = [&] {
      const uint64_t now = gate.load();
      return ((now & kOpen) && (now & ~kInside) != seen) || number >= wanted.load();
    };
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (!ready()) {
      for (int i = 0; i < 16; ++i) relax();
      if (std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(sleep);
      sleepers.fetch_add(1);
      wake.wait(lock, ready);
      sleepers.fetch_sub(1);
    }
    return number < wanted.load();
  }

  void help(int number) {
    uint64_t seen = 0;
    while (wait(seen, number)) {
      if (!enter(seen)) continue;
      seen = gate.load() & ~kInside;  // cannot change while this helper is inside
      work();
      gate.fetch_sub(1);
    }
    helpers.fetch_sub(1);
  }

  void notify() {
    if (sleepers.load() == 0) return;
    std::lock_guard<std::mutex> lock(sleep);
    wake.notify_all();
  }

  void run(int64_t job_count, Task job, const void* job_context) {
    task = job, context = job_context, count = job_count;
    next.store(0);
    gate.store(((gate.load() & ~(kInside | kOpen)) + kNextJob) | kOpen);
    notify();
    work();
    gate.fetch_and(~kOpen);
    for (int spins = 0; gate.load() & kInside; ++spins) spins < 4096 ? relax() : std::this_thread::yield();
  }

  void resize(int threads) {
    std::lock_guard<std::mutex> owned(owner);
    wanted.store(1);  // every helper leaves, then exactly as many as asked for start
    while (helpers.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(sleep);
        wake.notify_all();
      }
      std::this_thread::yield();
    }
    wanted.store(threads);
    for (int number = 1; number < threads; ++number) {
      helpers.fetch_add(1);
      std::thread([this, number] { help(number); }).detach();
    }
  }
};

// Never destroyed: helpers may still look at it while the process ends.
std::atomic<Pool*> pool{nullptr};

// A forked child has none of the parent's threads and perhaps its locks: it starts from an empty pool of its own.
void forget_pool() { pool.store(new Pool); }

Pool& the_pool() {
  static const bool once = [] {
    pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, forget_pool);
    return true;
  }();
  (void)once;
  return *pool.load();
}

struct Scratch {
  void* memory[kSlots] = {};
  size_t bytes[kSlots] = {};
  ~Scratch() {
    for (void* block : memory) std::free(block);
  }
};
thread_local Scratch thread_scratch;

}  // namespace

void set_threads(int count) { the_pool().resize(count < 1 ? 1 : count); }
int threads() { return the_pool().wanted.load(); }

void run_tasks(int64_t count, Task task, const void* context) {
  Pool& shared = the_pool();
  if (count > 1 && shared.wanted.load() > 1) {
    std::unique_lock<std::mutex> owned(shared.owner, std::try_to_lock);
    if (owned.owns_lock()) return shared.run(count, task, context);
  }
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

void* scratch(Slot slot, size_t bytes) {
  Scratch& mine = thread_scratch;
  if (mine.bytes[slot] < bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(mine.memory[slot]);
    mine.memory[slot] = std::aligned_alloc(4096, rounded);
    if (mine.memory[slot] == nullptr) throw std::bad_alloc();
    mine.bytes[slot] = rounded;
  }
  return mine.memory[slot];
}

}  // namespace shoal
