// A convolution of codes with sign bits, by any path.
#pragma once

#include "packed.h"
#include "parallel.h"

namespace binarydm {

struct Geometry {
  int64_t batch, height, width;
  int stride, top, bottom, left, right;
  Shape kernel;

  int64_t out_height() const { return (height + top + bottom - kernel.kh) / stride + 1; }
  int64_t out_width() const { return (width + left + right - kernel.kw) / stride + 1; }
};

// What is wrong with the sizes, or null.
const char* geometry_error(const Geometry&);

struct Fused {
  const float* x;         // [batch, height, width, cin]
  float step;             // positive
  int lower;              // what codes, and those of the padding, are lowered by; 0: signed codes
  const float* scale1;    // [cout]
  const float* scale2;    // [cout]; not read with one basis
  const float* bias;      // [cout]
  const float* residual;  // [batch, h', w', cout] or null
  float* y;               // [batch, h', w', cout]
};

// step * (scale1 * acc1 + scale2 * acc2) + bias + residual, the sums those of lowered codes.
void fused_conv(const Path&, const Scheme&, const Geometry&, const uint8_t* weights, const Fused&, Executor&);

// codes [batch, height, width, cin] -> acc [bases, batch, h', w', cout].
void integer_conv(const Path&, const Scheme&, const Geometry&, const uint8_t* weights, const int8_t* codes,
                  int32_t* acc, Executor&);

}  // namespace binarydm
