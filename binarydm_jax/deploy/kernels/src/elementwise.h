// Quantization and epilogue as plain loops. Included by each path, so that the compiler vectorizes them for it;
// everything here has internal linkage, lest the linker keep one path's code for all.
#pragma once

#include "scheme.h"

namespace binarydm {
namespace {

void quantize(const float* x, size_t count, float step, int bits, int8_t* codes) {
  if (bits == 1) {
    for (size_t i = 0; i < count; ++i) codes[i] = x[i] >= 0 ? 1 : -1;
    return;
  }
  const float reciprocal = 1.0f / step;
  const float low = -static_cast<float>(1 << (bits - 1)), high = -low - 1;
  // Adding and subtracting 1.5 * 2^23 rounds half to even, whatever the instruction set.
  const float magic = 12582912.0f;
  for (size_t i = 0; i < count; ++i) {
    float v = x[i] * reciprocal;
    v = v > low ? v : low;
    v = v < high ? v : high;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((v + magic) - magic));
  }
}

template <bool kTwo, bool kResidual>
void finish_strip(const Epilogue& e) {
  for (int p = 0; p < e.count; ++p) {
    const int32_t* acc1 = e.acc1 + p * e.acc_stride;
    const int32_t* acc2 = kTwo ? e.acc2 + p * e.acc_stride : nullptr;
    const float* residual = kResidual ? e.residual + p * e.y_stride : nullptr;
    float* __restrict y = e.y + p * e.y_stride;
    for (int o = 0; o < e.outputs; ++o) {
      float sum = e.scale1[o] * static_cast<float>(acc1[o]);
      if (kTwo) sum += e.scale2[o] * static_cast<float>(acc2[o]);
      float value = e.step * sum + e.bias[o];
      if (kResidual) value += residual[o];
      y[o] = value;
    }
  }
}

void finish(const Epilogue& e) {
  if (e.acc2) {
    e.residual ? finish_strip<true, true>(e) : finish_strip<true, false>(e);
  } else {
    e.residual ? finish_strip<false, true>(e) : finish_strip<false, false>(e);
  }
}

}  // namespace
}  // namespace binarydm
