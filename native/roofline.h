// What this machine can do at the most, measured: products from registers, reading from memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "pool.h"
#include "tile.h"

namespace unspool {
namespace {

// Seconds that `threads` runs of body(context, 0…threads-1) at once take: the least of some.
inline double least_seconds(int threads, void (*body)(void*, int64_t), void* context, Stop& stop) {
  double least = 1e9;
  for (int turn = 0; turn < 20 && !stop.raised; ++turn) {
    const auto begun = std::chrono::steady_clock::now();
    parallel(threads, threads, body, context, stop);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    if (took.count() < least) least = took.count();
    stop.ask(stop);
  }
  return least;
}

constexpr int64_t kBurns = 300'000;
constexpr int kSums = 12;  // independent sums: enough to hide how long a product takes

void burn(void* context, int64_t item) {
  float* kept = static_cast<float*>(context) + item * W;
  Vec a = load(kept), sum[kSums] = {};
#pragma GCC unroll 16
  for (int n = 0; n < kSums; ++n) hold(sum[n]);  // so that they are not taken for one and the same
  for (int64_t k = 0; k < kBurns; ++k) {
    hold(a);
#pragma GCC unroll 16
    for (int n = 0; n < kSums; ++n) sum[n] = RecurrentProduct::add(a, a, sum[n]);
  }
#pragma GCC unroll 16
  for (int n = 0; n < kSums; ++n) store(kept, load(kept) + sum[n]);
}

// Multiplications with their additions a second, of this precision, from registers; 0 without memory.
double products_a_second(int threads, Stop& stop) {
  float* kept = take_floats(threads * W);
  if (kept == nullptr) return 0.0;
  std::memset(kept, 0, static_cast<size_t>(threads * W) * sizeof(float));
  const double seconds = least_seconds(threads, burn, kept, stop);
  give_back(kept);
  return static_cast<double>(threads) * kBurns * kSums * W * kPackRecurrent / seconds;
}

struct Reading {
  float* block;
  int64_t floats, rounds;  // each thread's
};

void read_block(void* context, int64_t item) {
  const auto& it = *static_cast<const Reading*>(context);
  const float* from = it.block + item * it.floats;
  Vec sum[4] = {};
  for (int64_t round = 0; round < it.rounds; ++round)
    for (int64_t at = 0; at < it.floats; at += 4 * W)
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        Vec read = load(from + at + n * W);
        hold(read);
        sum[n] = sum[n] + read;
      }
  store(it.block + item * it.floats, sum[0] + sum[1] + sum[2] + sum[3]);  // zeros: so that it is not left out
}

// Bytes a second that threads read, each over and over from a block of its own of this size; 0 without memory.
double bytes_a_second(int64_t bytes, int threads, Stop& stop) {
  const int64_t floats = round_up(bytes / static_cast<int64_t>(sizeof(float)), 4 * W);
  float* block = take_floats(threads * floats);
  if (block == nullptr) return 0.0;
  std::memset(block, 0, static_cast<size_t>(threads * floats) * sizeof(float));
  Reading reading{block, floats, larger(1, 32'000'000 / bytes)};
  const double seconds = least_seconds(threads, read_block, &reading, stop);
  give_back(block);
  return static_cast<double>(threads * reading.rounds * floats) * sizeof(float) / seconds;
}

}  // namespace
}  // namespace unspool
