// Layers on one another, each cut into parts of some steps: while a layer works at one part, the layer above works at
// the part before it.
//
// A thread stays with a layer, whose weights its core then holds, for a stint: to the end where the layers are shared
// out evenly, else so long that they come out even.  Then it takes the highest layer that has something to do.  It
// waits for a layer only while somebody works at it; so nobody waits for somebody who has not come, and one thread
// alone does it all.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "pool.h"

namespace unspool {
namespace {

class Wavefront {
 public:
  static constexpr int64_t kMostLayers = 8;

  // Each of `layers` layers has parts 0…`parts`-1, the lowest layer is 0.  A part needs the one before it and, but
  // for part 0, the same part of the layer below.
  Wavefront(int64_t layers, int64_t parts, int64_t threads, Stop& stop)
      : layers_(layers), parts_(parts), stint_(layers % threads == 0 ? parts : (parts + threads - 1) / threads),
        stop_(stop) {}

  // work(layer, part) for all of both, until one returns false or the run is given up; called by each thread.
  template <class Work>
  void run(Work work) {
    int64_t layer = -1, part = 0, until = 0, spin = 0;
    while (!failed()) {
      const bool stays = layer >= 0 && place_[layer].done.load(std::memory_order_relaxed) < until;
      if (!stays || !claim(layer, part)) {
        int64_t other = layers_;
        if (!stays || !is_worked_at(layer - 1))
          while (other-- > 0 && !claim(other, part)) {
          }
        if (other < 0 || other == layers_) {
          if (place_[layers_ - 1].done.load(std::memory_order_acquire) == parts_) return;
          if (++spin < kPatience) {
            breathe();
          } else {
            stop_.ask(stop_);
            std::this_thread::yield();
          }
          continue;
        }
        layer = other;
        until = part + stint_;
      }
      spin = 0;
      if (!work(layer, part)) failed_.store(true);
      place_[layer].done.store(part + 1, std::memory_order_release);
    }
  }

  bool failed() const {
    return failed_.load(std::memory_order_relaxed) || stop_.raised.load(std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kTaken = int64_t{1} << 62;  // added while somebody works at the layer's next part
  static constexpr int64_t kPatience = 2000;           // looks before a thread lets others run

  struct alignas(64) Place {
    std::atomic<int64_t> done{0};  // parts
  };

  bool is_worked_at(int64_t layer) const {
    return layer >= 0 && (place_[layer].done.load(std::memory_order_acquire) & kTaken) != 0;
  }

  // Takes a layer's next part, unless somebody has it or it has to wait.
  bool claim(int64_t layer, int64_t& part) {
    part = place_[layer].done.load(std::memory_order_acquire);
    if (part >= parts_) return false;  // none is left, or one is taken
    if (layer > 0) {
      const int64_t below = place_[layer - 1].done.load(std::memory_order_acquire);
      if (part == 0 ? below == 0 : (below & ~kTaken) <= part) return false;  // the lowest layer begins
    }
    int64_t seen = part;
    return place_[layer].done.compare_exchange_strong(seen, part | kTaken, std::memory_order_acq_rel);
  }

  const int64_t layers_, parts_, stint_;
  Stop& stop_;
  Place place_[kMostLayers];
  alignas(64) std::atomic<bool> failed_{false};
};

}  // namespace
}  // namespace unspool
