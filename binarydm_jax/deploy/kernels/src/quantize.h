// round(clip(x * (1 / step))) - lower as a plain loop; internal linkage, see elementwise.h. Codes are lowered from
// lower - 2^(b-1) .. lower + 2^(b-1) - 1 to -2^(b-1) .. 2^(b-1) - 1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace binarydm {
namespace {

void quantize(const float* x, size_t count, float step, int bits, int lower, int8_t* codes) {
  if (bits == 1) {
    for (size_t i = 0; i < count; ++i) codes[i] = x[i] >= 0 ? 1 : -1;
    return;
  }
  const float reciprocal = 1.0f / step;
  const float low = static_cast<float>(lower - (1 << (bits - 1)));
  const float high = static_cast<float>(lower + (1 << (bits - 1)) - 1);
  // Adding and subtracting 1.5 * 2^23 rounds half to even, whatever the instruction set.
  const float magic = 12582912.0f;
  for (size_t i = 0; i < count; ++i) {
    float v = x[i] * reciprocal;
    v = v > low ? v : low;
    v = v < high ? v : high;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((v + magic) - magic) - lower);
  }
}

}  // namespace
}  // namespace binarydm
