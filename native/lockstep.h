// Steps that depend on one another, each cut into shares that threads work on at the same time.
//
// The first share's thread leads: it works on every share for which nobody has come.  A thread that comes asks for
// its share, gets it before a step, and keeps it to the end; after each step everybody waits until the step's shares
// are all done, for a while without letting go of the core.  Who waits longer has a partner who was put aside by the
// system: the leader then takes no more help, and once the late share is done works on alone; a helper leaves.  So at
// most one such wait befalls a run, nobody waits for somebody who has not come, and no share is worked on twice.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "pool.h"

namespace unspool {
namespace {

class Lockstep {
 public:
  static constexpr int64_t kMostShares = 8;

  // `patience` counts looks at a late share; see `breathe`.
  Lockstep(int64_t steps, int64_t shares, int64_t patience, Stop& stop)
      : steps_(steps), shares_(shares), patience_(patience), stop_(stop) {
    place_[0].finished.store(0);
  }

  // work(step, share), for each step and share; called by one thread, with share 0.
  template <class Work>
  void lead(Work work) {
    for (int64_t s = 0; s < steps_ && !given_up(); ++s) {
      for (int64_t k = 1; k < shares_; ++k)
        if (is_absent(k) && !dismissed_.load(std::memory_order_relaxed) &&
            place_[k].asks.load(std::memory_order_relaxed) && place_[k].asks.exchange(false))
          place_[k].finished.store(s, std::memory_order_release);
      work(s, int64_t{0});
      place_[0].finished.store(s + 1, std::memory_order_release);
      for (int64_t k = 1; k < shares_; ++k) stand_in(s, k, work);
      for (int64_t k = 1; k < shares_; ++k)
        if (!reached(k, s + 1, true)) stand_in(s, k, work);
    }
    over_.store(true, std::memory_order_release);
  }

  // The same for one share; called by at most one thread for each but the first.  It may find nothing to do.
  template <class Work>
  void help(int64_t share, Work work) {
    Place& own = place_[share];
    own.asks.store(true);
    for (int64_t spin = 0; is_absent(share); ++spin) {
      if (spin < patience_) breathe();
      if (spin < patience_ && !over_.load(std::memory_order_acquire) && !given_up()) continue;
      if (own.asks.exchange(false)) return;  // not granted, and will not be
      break;
    }
    // Granted just now, or leader and helper took back the question at once: then the grant is on its way.
    while (is_absent(share)) std::this_thread::yield();
    for (int64_t s = own.finished.load(std::memory_order_relaxed);;) {
      work(s, share);
      ++s;
      own.finished.store(s, std::memory_order_release);
      if (s == steps_) return;
      bool all = !dismissed_.load(std::memory_order_acquire);
      for (int64_t k = 0; k < shares_ && all; ++k) all = reached(k, s, false);
      if (!all) return own.finished.store(s | kAbsent, std::memory_order_release);
    }
  }

 private:
  static constexpr int64_t kAbsent = int64_t{1} << 62;  // added where the leader stands in

  struct alignas(64) Place {
    std::atomic<int64_t> finished{kAbsent};  // steps of this share
    std::atomic<bool> asks{false};
  };

  bool given_up() const { return stop_.raised.load(std::memory_order_relaxed); }
  bool is_absent(int64_t share) const {
    return (place_[share].finished.load(std::memory_order_acquire) & kAbsent) != 0;
  }

  // Works on a share for which nobody is there; who left may have done the step before leaving.
  template <class Work>
  void stand_in(int64_t s, int64_t share, Work work) {
    if (place_[share].finished.load(std::memory_order_acquire) != (s | kAbsent) || given_up()) return;
    work(s, share);
    place_[share].finished.store((s + 1) | kAbsent, std::memory_order_release);
  }

  // Waits until `steps` of a share are done.  False: the run is given up, patience is over (a helper's alone), or
  // nobody is there to do it, where the leader asks.
  bool reached(int64_t share, int64_t steps, bool leads) {
    for (int64_t spin = 0;; ++spin) {
      const int64_t finished = place_[share].finished.load(std::memory_order_acquire);
      if ((finished & ~kAbsent) >= steps) return true;
      if (leads && (finished & kAbsent) != 0) return false;
      if (spin < patience_) {
        breathe();
        continue;
      }
      if (!leads) return false;
      dismissed_.store(true, std::memory_order_release);
      stop_.ask(stop_);
      std::this_thread::yield();
    }
  }

  const int64_t steps_, shares_, patience_;
  Stop& stop_;
  Place place_[kMostShares];
  alignas(64) std::atomic<bool> dismissed_{false};
  std::atomic<bool> over_{false};
};

}  // namespace
}  // namespace unspool
