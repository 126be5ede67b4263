// The engine's threads: its own, or a team that it is lent.
#pragma once

#include <atomic>
#include <cstdint>

namespace unspool {

// A moment's pause of one who looks again and again.
inline void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

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

// A team of threads that is in the process already, as libgomp's GOMP_parallel gives it: calls body(context) once on
// each of `threads` threads.  Lent, `parallel` uses it in the place of its own threads: torch's threads look for work
// for milliseconds after theirs is done, and own threads beside them would get half a core.  nullptr: own threads.
// A forked child has nothing of the team, and uses own threads.
using Team = void (*)(void (*body)(void* context), void* context, unsigned threads, unsigned flags);
void lend(Team team);
bool is_lent();

}  // namespace unspool
