// AVX-512 on processors without it, by SIMDe (libsimde-dev): included before a kernel's source. Only its functions are
// emulated, so this tests the logic of the path, not what a compiler makes of it.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 does not have.
#define _mm512_cvtepu16_epi32(words)                                                         \
  simde_mm512_inserti64x4(                                                                   \
      simde_mm512_castsi256_si512(simde_mm256_cvtepu16_epi32(simde_mm256_castsi256_si128(words))), \
      simde_mm256_cvtepu16_epi32(simde_mm256_extracti128_si256(words, 1)), 1)
