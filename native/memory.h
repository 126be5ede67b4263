// Large blocks of memory, kept for the next who asks.
//
// A layer's outputs and scratch have the same sizes at every step of a training.  Given back to the
// system they would be fresh pages at the next call, and to touch a fresh page costs more than to
// compute what is written there.
#pragma once

#include <cstdint>

namespace unspool {

// `count` floats, aligned to 64 bytes, of no particular value; null when memory runs out.
float* take_floats(int64_t count);

// Gives back what take_floats gave; null is nothing.
void give_back(float* block);

}  // namespace unspool
