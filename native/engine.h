// The engine's interface: sizes, pointers, and a table of functions for each instruction set.
//
// Plain C-style; knows nothing of Python.  The caller owns every array and has checked every size;
// the engine owns what it packs.  All arrays are float32, C-contiguous, not overlapping.
//
//   T time steps   B batch   I input size   H hidden size   D directions (1 or 2)   G gates
//   P size of a projected hidden state; H where there is no projection
#pragma once

#include <cmath>
#include <cstdint>

#include "pool.h"

namespace unspool {

enum class Cell : int { rnn_tanh = 0, rnn_relu = 1, lstm = 2, gru = 3 };

struct Sizes {
  Cell cell;
  int64_t directions;  // D
  int64_t gates;       // G
  int64_t input;       // I
  int64_t hidden;      // H
  int64_t output;      // P
  float cell_clip = HUGE_VALF;           // bounds c; infinity: nothing is bounded
  float preactivation_clip = HUGE_VALF;  // bounds z
};

// The weights of one direction, as torch lays them out.  Read while packing, not kept.
struct Weights {
  const float* input;           // (G*H, I)
  const float* recurrent;       // (G*H, P)
  const float* bias;            // (G*H,)
  const float* candidate_bias;  // (H,)  GRU only, else null
  // What a layer may have beyond the plain cell, in float32 alone; null: it has not.
  const float* peephole = nullptr;        // (3, H)  LSTM: to the input, forget and output gate
  const float* projection = nullptr;      // (P, H)  LSTM
  const float* norm_input = nullptr;      // (2, G*H)  gain and bias of the layer normalisation of W x
  const float* norm_recurrent = nullptr;  // (2, G*H)  of U h
  const float* norm_cell = nullptr;       // (2, H)  LSTM: of c before its tanh
};

// What every run of a layer is given.
struct Run {
  int64_t time, batch;
  const float* x;               // (T, B, I)
  const float* hidden;          // (D, B, P)  before the first step; null: zeros
  const float* cell;            // (D, B, H)  LSTM; null: zeros
  const int64_t* lengths;       // (B,)  0…T; null: all T
  const uint8_t* resets;        // (T, B)  1 cuts between t-1 and t; null: none
  const float* reset_hidden;    // (D, B, P)  what a cut puts there; null: zeros
  const float* reset_cell;      // (D, B, H)  LSTM; null: zeros
  const float* recurrent_mask;  // (D, B, P)  multiplies h before the recurrent weights; null: none
  Stop* stop;
  // The shares of h and of c that are kept from the step before; null: none.  In float32 alone.
  const float* zoneout_hidden = nullptr;  // (T, B, D, P)
  const float* zoneout_cell = nullptr;    // (T, B, D, H)  LSTM
  // Numbers that take a computed value's place in the forward pass; NaN leaves it.  In float32 alone.
  const float* patch_gates = nullptr;   // (T, B, D, G, H)
  const float* patch_hidden = nullptr;  // (T, B, D, P)
  const float* patch_cell = nullptr;    // (T, B, D, H)  LSTM
  // Which row of x each step reads, where x is a table (V, I) and not (T, B, I); null: it is not.  Of a plain layer in
  // float32 alone.
  const int64_t* places = nullptr;  // (T, B)  0…V-1
  int64_t table_rows = 0;           // V
};

// What the forward pass writes, every element of it.
struct Forward {
  float* hidden;               // (T, B, D, P)
  float* gates;                // (T, B, D, G, H)  null: no trace is kept
  float* cell;                 // (T, B, D, H)  LSTM's trace; null without one
  float* recurrent_candidate;  // (T, B, D, H)  GRU's trace; null without one
  float* final_hidden;         // (D, B, P)  may be Run's hidden, as final_cell its cell
  float* final_cell;           // (D, B, H)  LSTM, else null
};

// The trace that the forward pass wrote, and what arrives from above.
struct Arriving {
  const float* hidden;               // (T, B, D, P)
  const float* gates;                // (T, B, D, G, H)
  const float* cell;                 // (T, B, D, H)  LSTM
  const float* recurrent_candidate;  // (T, B, D, H)  GRU
  const float* d_hidden;             // (T, B, D, P)  at every output; null: zeros
  const float* d_final_hidden;       // (D, B, P)  at the final state; null: zeros
  const float* d_final_cell;         // (D, B, H)  LSTM; null: zeros
};

// What the backward pass writes, every element of it; but d_x and d_input where x is a table: those follow from the sums
// of flow_preactivation over the steps that read a row.
struct Backward {
  float* d_x;                  // (T, B, I)
  float* d_input[2];           // (G*H, I)  a direction
  float* d_recurrent[2];       // (G*H, P)
  float* d_bias[2];            // (G*H,)
  float* d_candidate_bias[2];  // (H,)  GRU, else null
  float* d_initial_hidden;     // (D, B, P)
  float* d_initial_cell;       // (D, B, H)  LSTM, else null
  float* d_reset_hidden;       // (D, B, P)
  float* d_reset_cell;         // (D, B, H)  LSTM, else null
  float* flow_hidden;          // (T, B, D, P)
  float* flow_cell;            // (T, B, D, H)  LSTM, else null
  float* flow_preactivation;   // (T, B, D, G, H)
  // As the weights have them, else null.
  float* d_peephole[2];        // (3, H)
  float* d_projection[2];      // (P, H)
  float* d_norm_input[2];      // (2, G*H)
  float* d_norm_recurrent[2];  // (2, G*H)
  float* d_norm_cell[2];       // (2, H)
};

// One step of some streams through one layer of one direction.
struct Step {
  int64_t rows;
  const float* const* x;       // (rows) pointers to (I,)
  const float* const* hidden;  // (rows) to (H,), before the step
  float* const* cell;          // (rows) to (H,), changed in place; LSTM, else null
  float* const* out;           // (rows) to (H,), after the step; none of them overlaps `hidden`
  Stop* stop;
};

// Numbers of two kinds, chosen by a counter-based generator as kernels/masks.py says.
struct Draw {
  uint64_t seed, step;
  uint32_t layer, use;
  int64_t times, rows, directions, units;  // T, B, D, H
  const uint32_t* time;                    // (T) what each step, each row is counted as
  const uint32_t* row;                     // (B)
  uint64_t below;                          // so many of 2^32 words choose
  float chosen, other;
  float* out;  // (T, B, D, H)
  Stop* stop;
};

struct Packed;  // a layer's weights in the layout of one instruction set

// One instruction set's functions.  Each returns false, or null, when memory runs out; false also when
// the run was given up.
struct Engine {
  const char* name;       // of the instruction set
  const char* precision;  // "float32", "bfloat16", "int8": what the weights are stored as
  Packed* (*pack)(const Sizes& sizes, const Weights* weights, int threads);  // weights[D]
  void (*release)(Packed* packed);
  bool (*forward)(const Packed& packed, const Run& run, const Forward& out, int threads);
  bool (*backward)(const Packed& packed, const Run& run, const Arriving& in, const Backward& out,
                   int threads);
  bool (*step)(const Packed& packed, const Step& step, int threads);  // in float32 takes no memory
  bool (*draw)(const Draw& wanted, int threads);                      // in float32; takes no memory
  double (*products_a_second)(int threads, Stop& stop);                // 0 when memory runs out
  double (*bytes_a_second)(int64_t bytes, int threads, Stop& stop);    // of blocks of this size; likewise
};

// The engine of an instruction set and a precision; null when it is not built in or cannot run here.
const Engine* choose_engine(const char* isa, const char* precision);

// The names of the engines that are built in and run here, best first; null-terminated.
const char* const* engine_names();

}  // namespace unspool
