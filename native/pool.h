// The engine's own threads.  No OpenMP: its team does not survive a fork and would fight torch's.
#pragma once

#include <cstdint>

namespace unspool {

// Calls body(context, item) for each item of 0…items-1, on up to `threads` threads, this one
// included, and returns when all are done.  Items must be independent.  When the pool is busy with
// another caller, or after a fork until it is made anew, the calling thread does the work alone.
void parallel(int64_t items, int threads, void (*body)(void* context, int64_t item), void* context);

}  // namespace unspool
