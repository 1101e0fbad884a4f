// Quantization (quantize.h) and epilogue as plain loops. Included by each path, so that the compiler vectorizes them for it;
// everything here has internal linkage, lest the linker keep one path's code for all.
#pragma once

#include "quantize.h"
#include "scheme.h"

namespace binarydm {
namespace {

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
