// Which engine runs here.
#include <cstddef>
#include <cstring>

#include "engine.h"

namespace unspool {

#define DECLARE(isa) extern const Engine engine_##isa##_float32, engine_##isa##_bfloat16, engine_##isa##_int8;
#define ENGINES(isa) {&engine_##isa##_float32, &engine_##isa##_bfloat16, &engine_##isa##_int8}
#if defined(__aarch64__)
DECLARE(neon)
#else
DECLARE(baseline)
#endif
#if defined(__x86_64__)
DECLARE(avx2)
#endif
#if defined(UNSPOOL_AVX512)
DECLARE(avx512)
extern const Engine engine_avx512bf16_bfloat16, engine_avx512bf16_int8;
#endif

namespace {

struct Candidate {
  const char* name;
  const Engine* engines[3];  // a precision each
  bool (*runs)();
};

#if defined(UNSPOOL_AVX512)
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif

// Best first.  In float32 AVX512_BF16 and AVX512_VNNI have nothing to add.
const Candidate candidates[] = {
#if defined(UNSPOOL_AVX512)
    {"avx512bf16",
     {&engine_avx512_float32, &engine_avx512bf16_bfloat16, &engine_avx512bf16_int8},
     [] {
       return runs_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
     }},
    {"avx512", ENGINES(avx512), runs_avx512},
#endif
#if defined(__x86_64__)
    {"avx2", ENGINES(avx2), [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#if defined(__aarch64__)
    {"neon", ENGINES(neon), [] { return true; }},  // every such processor has it
#else
    {"baseline", ENGINES(baseline), [] { return true; }},
#endif
};
constexpr size_t count = sizeof candidates / sizeof *candidates;

}  // namespace

const Engine* choose_engine(const char* isa, const char* precision) {
  for (const Candidate& one : candidates)
    if (std::strcmp(isa, one.name) == 0 && one.runs())
      for (const Engine* engine : one.engines)
        if (std::strcmp(precision, engine->precision) == 0) return engine;
  return nullptr;
}

const char* const* engine_names() {
  static const char* names[count + 1] = {};
  static const bool filled = [] {
    size_t at = 0;
    for (const Candidate& one : candidates)
      if (one.runs()) names[at++] = one.name;
    return true;
  }();
  (void)filled;
  return names;
}

}  // namespace unspool
