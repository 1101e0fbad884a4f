#pragma once

#include "scheme.h"

namespace binarydm {

// Activations of one bit by AVX-512's population counts; null where the processor has none.
const Scheme* avx512popcount_scheme();

}  // namespace binarydm
