// Attention whose operands are quantized: softmax(q k^T) v, one head and a few queries at a time.
#pragma once

#include "parallel.h"

namespace binarydm {

struct Attention {
  int64_t batch, queries, keys, heads, channels;  // channels of a head
  struct Codes {
    int bits;    // 2 to 8
    float step;  // positive
    int lower;   // 0: signed codes; see quantize.h
  };
  Codes q_codes, k_codes, weight_codes, v_codes;
  const float* q;                                 // [batch, queries, heads, channels]
  const float *k, *v;                             // [batch, keys, heads, channels]
  float* out;                                     // as q
};

// Whether it was compiled in and this processor runs it.
bool attention_runs();

// What is wrong with the sizes, or null.
const char* attention_error(const Attention&);

void attend(const Attention&, Executor&);

}  // namespace binarydm
