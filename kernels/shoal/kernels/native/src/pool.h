// A small pool of threads that share the tasks 0..count-1 of one job with the calling thread.
//
// Each task computes whole outputs by itself, so which thread takes it never shows in a result. A caller that finds the
// pool in use by another thread does its job alone rather than wait.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

using Task = void (*)(const void* context, int64_t index);

void set_threads(int count);  // the calling thread included; 1 means that no other thread is ever woken
int threads();
void run_tasks(int64_t count, Task task, const void* context);

// Calls body(i) for every i, in any order and on any thread; returns when all are done.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
  run_tasks(count, [](const void* context, int64_t i) { (*static_cast<const Body*>(context))(i); }, &body);
}

// Memory of the running thread for one purpose (`slot`), 64-byte aligned, contents undefined, valid until the same
// thread asks for that slot again. Grows, is never given back.
enum Slot { kSplit, kPointers, kTasks, kRaw, kState, kKeys, kBlock, kForward, kSlots };
void* scratch(Slot slot, size_t bytes);

}  // namespace shoal
