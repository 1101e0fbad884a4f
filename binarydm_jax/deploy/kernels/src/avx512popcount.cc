// Activations of one bit: xor and VPOPCNTD, sixteen outputs to a register. A file of its own, since processors with VNNI
// need not have this instruction.
#include "avx512popcount.h"

#if defined(__AVX512VPOPCNTDQ__) || defined(BINARYDM_EMULATE_AVX512)

#include <immintrin.h>

#include "popcount.h"

namespace binarydm {
namespace {

struct Lanes512 {
  using V = __m512i;
  static constexpr int kLanes = 16, kPixels = 8;

  static V load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static V broadcast(const uint8_t* from) {
    int32_t word;
    std::memcpy(&word, from, 4);
    return _mm512_set1_epi32(word);
  }
  static V mask(V a, V b) { return _mm512_and_si512(a, b); }
  static V exclusive_or(V a, V b) { return _mm512_xor_si512(a, b); }

  struct Count {
    V counts = _mm512_setzero_si512();

    void add(V v) { counts = _mm512_add_epi32(counts, _mm512_popcnt_epi32(v)); }
    void store(int32_t* to) const { _mm512_storeu_si512(to, counts); }
  };
};

}  // namespace

const Scheme* avx512popcount_scheme() {
#if defined(BINARYDM_EMULATE_AVX512)
  return &Popcount<Lanes512, 1>::scheme;
#else
  return __builtin_cpu_supports("avx512vpopcntdq") ? &Popcount<Lanes512, 1>::scheme : nullptr;
#endif
}

}  // namespace binarydm

#else

const binarydm::Scheme* binarydm::avx512popcount_scheme() { return nullptr; }

#endif
