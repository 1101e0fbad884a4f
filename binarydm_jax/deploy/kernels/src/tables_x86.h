// Builds the tables of lookup.h and pairs.h, with the instructions of AVX2.
#pragma once

#include <immintrin.h>

#include "pairs.h"

namespace binarydm {
namespace {

// The tables of 16 codes: entry m of a group is the bias (in each of its four bytes) plus the codes whose bits are in m.
inline void store_tables(__m128i codes, __m128i bias, uint8_t* out) {
  // Sums of the first two codes of each group, 0, c0, c1, c0 + c1, and of the other two.
  const __m128i c0 = _mm_setr_epi8(-1, 0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12);
  const __m128i c1 = _mm_setr_epi8(-1, -1, 1, 1, -1, -1, 5, 5, -1, -1, 9, 9, -1, -1, 13, 13);
  const __m128i c2 = _mm_setr_epi8(-1, 2, -1, 2, -1, 6, -1, 6, -1, 10, -1, 10, -1, 14, -1, 14);
  const __m128i c3 = _mm_setr_epi8(-1, -1, 3, 3, -1, -1, 7, 7, -1, -1, 11, 11, -1, -1, 15, 15);
  const __m128i front = _mm_add_epi8(_mm_shuffle_epi8(codes, c0), _mm_shuffle_epi8(codes, c1));
  const __m128i back = _mm_add_epi8(_mm_add_epi8(_mm_shuffle_epi8(codes, c2), _mm_shuffle_epi8(codes, c3)),
                                    bias);
  const __m256i fronts = _mm256_broadcastsi128_si256(front), backs = _mm256_broadcastsi128_si256(back);
  __m256i low = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4,
                                 5, 6, 7);
  __m256i high = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7,
                                  7, 7, 7);
  for (int pair = 0; pair < 2; ++pair) {
    const __m256i tables = _mm256_add_epi8(_mm256_shuffle_epi8(fronts, low), _mm256_shuffle_epi8(backs, high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * pair), tables);
    low = _mm256_add_epi8(low, _mm256_set1_epi8(8));
    high = _mm256_add_epi8(high, _mm256_set1_epi8(8));
  }
}

// 16 codes from channel c on, zeros after the last channel.
inline __m128i load_codes(const int8_t* codes, int c, int channels) {
  if (c + 16 <= channels) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + c));
  alignas(16) int8_t rest[16] = {};
  std::memcpy(rest, codes + c, channels - c);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(rest));
}

template <int kBits>
void encode_tables(const int8_t* codes, size_t pixels, int, int channels, uint8_t* out, int32_t* sums) {
  using T = Tables<kBits>;
  const size_t plane_bytes = T::plane_bytes(channels);
  const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i offset = _mm_set1_epi8(-128), bias = _mm_set1_epi8(T::bias(0));
  for (size_t p = 0; p < pixels; ++p, codes += channels, out += T::pixel_bytes(channels)) {
    __m128i sum = _mm_setzero_si128();
    for (int c = 0; c < channels; c += 16) {
      const __m128i v = load_codes(codes, c, channels);
      sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_xor_si128(v, offset), _mm_setzero_si128()));
      uint8_t* tables = out + 4 * c;
      if (kBits == 8) {
        const __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), nibble);
        store_tables(_mm_sub_epi8(_mm_xor_si128(high, eight), eight), bias, tables);
        store_tables(_mm_and_si128(v, nibble), _mm_set1_epi8(T::bias(1)), tables + plane_bytes);
      } else {
        store_tables(v, bias, tables);
      }
    }
    const int64_t total = _mm_cvtsi128_si64(sum) + _mm_extract_epi64(sum, 1);
    sums[p] = static_cast<int32_t>(total - 128 * 16 * static_cast<int64_t>(quads_of(channels)));
  }
}

// Codes are 1, -1 and 0. Entry m of a group: how many bits of m stand for a 1, and how many that are not in m for a -1;
// the same of the second pixel, sixteen times. That is the number of all -1 plus the codes whose bits are in m.
inline void encode_pair_tables(const int8_t* codes, size_t pixels, int ahead, int channels, uint8_t* out,
                               int32_t* sums) {
  const __m128i ones = _mm_set1_epi8(1), high = _mm_set1_epi8(static_cast<char>(0xf0)), zero = _mm_setzero_si128();
  const __m128i first_bytes = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
  const size_t second = static_cast<size_t>(ahead) * channels;
  const int rest = 48 * threes_of(channels) - 64 * quads_of(channels);
  for (size_t p = 0; p < pixels; ++p, codes += channels, out += rest) {
    __m128i nonzero = zero;
    for (int c = 0; c < channels; c += 16, out += 64) {
      const __m128i a = load_codes(codes, c, channels), b = load_codes(codes + second, c, channels);
      nonzero = _mm_add_epi64(nonzero, _mm_sad_epu8(_mm_and_si128(a, ones), zero));
      const __m128i both = _mm_add_epi8(a, _mm_and_si128(_mm_slli_epi16(b, 4), high));
      const __m128i negative = _mm_or_si128(_mm_and_si128(_mm_cmpgt_epi8(zero, a), ones),
                                            _mm_and_si128(_mm_cmpgt_epi8(zero, b), _mm_set1_epi8(16)));
      const __m128i of_group = _mm_madd_epi16(_mm_maddubs_epi16(negative, ones), _mm_set1_epi16(1));
      store_tables(both, _mm_shuffle_epi8(of_group, first_bytes), out);
    }
    std::memset(out, 0, rest);
    sums[p] = static_cast<int32_t>(_mm_cvtsi128_si64(nonzero) + _mm_extract_epi64(nonzero, 1));
  }
}

}  // namespace
}  // namespace binarydm
