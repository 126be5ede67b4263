#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace unspool {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLeastKept = size_t{64} << 10;  // smaller blocks are malloc's own business
#if defined(__SANITIZE_ADDRESS__)
// Nothing is kept and nothing rounded up, so that no access past a block or after its end goes unseen.
constexpr bool kWatched = true;
constexpr size_t kMostKept = 0;
#else
constexpr bool kWatched = false;
constexpr size_t kMostKept = size_t{256} << 20;  // bytes that lie unused, all together
#endif

// Stands before each block.
struct alignas(kAlignment) Header {
  size_t bytes;
};

// Never destroyed: arrays may be freed while the interpreter ends.
struct Kept {
  std::mutex mutex;
  std::map<size_t, std::vector<Header*>> blocks;  // by size
  size_t bytes = 0;
};

Kept& kept() {
  static Kept* const all = [] {
    auto* made = new Kept;
    pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); },
                   [] { kept().mutex.unlock(); });
    return made;
  }();
  return *all;
}

// Up to an eighth larger, so that batches of nearly one size share their blocks.
size_t rounded(size_t bytes) {
  if (kWatched) return bytes;
  size_t grain = kAlignment;
  while (grain * 16 <= bytes) grain *= 2;
  return (bytes + grain - 1) / grain * grain;
}

}  // namespace

float* take_floats(int64_t count) {
  const size_t floats = static_cast<size_t>(count < 1 ? 1 : count);
  if (floats > (SIZE_MAX >> 4) / sizeof(float)) return nullptr;
  const size_t bytes = rounded(floats * sizeof(float) + sizeof(Header));
  Header* block = nullptr;
  if (bytes >= kLeastKept) {
    Kept& all = kept();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.blocks.find(bytes);
    if (found != all.blocks.end() && !found->second.empty()) {
      block = found->second.back();
      found->second.pop_back();
      all.bytes -= bytes;
    }
  }
  if (block == nullptr) {
    const bool huge = !kWatched && bytes >= 2 * kHugePage;
    const size_t alignment = huge ? kHugePage : kAlignment;
    const size_t whole = kWatched ? bytes : (bytes + alignment - 1) / alignment * alignment;
    void* fresh = nullptr;
    if (posix_memalign(&fresh, alignment, whole) != 0) return nullptr;
    block = static_cast<Header*>(fresh);
#if defined(MADV_HUGEPAGE)
    if (huge) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    block->bytes = bytes;
  }
  return reinterpret_cast<float*>(block + 1);
}

void give_back(float* floats) {
  if (floats == nullptr) return;
  Header* block = reinterpret_cast<Header*>(floats) - 1;
  if (block->bytes >= kLeastKept) {
    Kept& all = kept();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.bytes + block->bytes <= kMostKept) {
      try {
        all.blocks[block->bytes].push_back(block);
        all.bytes += block->bytes;
        return;
      } catch (const std::bad_alloc&) {  // no room to note it down: let it go
      }
    }
  }
  std::free(block);
}

}  // namespace unspool
