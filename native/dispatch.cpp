// Which engine runs here.
#include <cstddef>
#include <cstring>

#include "engine.h"

namespace unspool {

#if defined(__x86_64__)
extern const Engine engine_avx512, engine_avx2, engine_baseline;
#else
extern const Engine engine_baseline;
#endif

namespace {

struct Candidate {
  const Engine* engine;
  bool (*runs)();
};

// Best first.
const Candidate candidates[] = {
#if defined(__x86_64__)
    {&engine_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     }},
    {&engine_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&engine_baseline, [] { return true; }},
};
constexpr size_t count = sizeof candidates / sizeof *candidates;

}  // namespace

const Engine* choose_engine(const char* wanted) {
  for (const Candidate& one : candidates)
    if ((wanted == nullptr || std::strcmp(wanted, one.engine->name) == 0) && one.runs())
      return one.engine;
  return nullptr;
}

const char* const* engine_names() {
  static const char* names[count + 1] = {};
  static const bool filled = [] {
    size_t at = 0;
    for (const Candidate& one : candidates)
      if (one.runs()) names[at++] = one.engine->name;
    return true;
  }();
  (void)filled;
  return names;
}

}  // namespace unspool
