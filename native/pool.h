// The engine's own threads.  No OpenMP: its team does not survive a fork and would fight torch's.
#pragma once

#include <atomic>
#include <cstdint>

namespace unspool {

// How a long run is given up.  `ask` is called now and then by whoever works or waits; it may set
// `raised`, after which the work ends early and what it wrote means nothing.
struct Stop {
  std::atomic<bool> raised{false};
  void (*ask)(Stop& stop);
};

// Calls body(context, item) for each item of 0…items-1, on up to `threads` threads, this one
// included, and returns when all are done.  Items must be independent.  When the pool is busy with
// another caller, or after a fork until it is made anew, the calling thread does the work alone.
void parallel(int64_t items, int threads, void (*body)(void* context, int64_t item), void* context,
              Stop& stop);

}  // namespace unspool
