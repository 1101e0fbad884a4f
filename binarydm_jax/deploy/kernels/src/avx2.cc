// AVX2: look-up for all widths.
#include "scheme.h"

#if defined(__AVX2__)

#include "elementwise.h"
#include "lookup.h"
#include "tables_x86.h"

namespace binarydm {
namespace {

struct Avx2 {
  using V = __m256i;
  static constexpr int kBytes = 32;

  static V load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const V*>(from)); }
  static void store(uint8_t* to, V v) { _mm256_store_si256(reinterpret_cast<V*>(to), v); }
  static V table(const uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static V shuffle(V table, V nibbles) { return _mm256_shuffle_epi8(table, nibbles); }
  static V add(V a, V b) { return _mm256_add_epi8(a, b); }
  static V low(V v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static V high(V v) { return low(_mm256_srli_epi16(v, 4)); }

  // As words, bytes are even + 256 * odd. The first half of a sum adds up the words, modulo 2^16, the second half the
  // odd bytes: what is left of the first without 256 times the second are the even bytes.
  static void widen(V bytes, uint16_t* sums) {
    V* all = reinterpret_cast<V*>(sums);
    _mm256_store_si256(all, _mm256_add_epi16(_mm256_load_si256(all), bytes));
    _mm256_store_si256(all + 1, _mm256_add_epi16(_mm256_load_si256(all + 1), _mm256_srli_epi16(bytes, 8)));
  }
  static void drain(const uint16_t* sums, int32_t* out) {
    const V* from = reinterpret_cast<const V*>(sums);
    const V odd = _mm256_load_si256(from + 1);
    const V even = _mm256_sub_epi16(_mm256_load_si256(from), _mm256_slli_epi16(odd, 8));
    add_words(even, out);
    add_words(odd, out + 16);
  }
  static int lane(int output) { return output < 16 ? 2 * output : 2 * (output - 16) + 1; }

  template <int kBits>
  static void encode(const int8_t* codes, size_t pixels, int channels, uint8_t* out, int32_t* sums) {
    encode_tables<kBits>(codes, pixels, channels, out, sums);
  }

 private:
  static void add_words(V words, int32_t* out) {
    V* to = reinterpret_cast<V*>(out);
    const V low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words));
    const V high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1));
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), low));
    _mm256_storeu_si256(to + 1, _mm256_add_epi32(_mm256_loadu_si256(to + 1), high));
  }
};

const Scheme* scheme(int bits) {
  switch (bits) {
    case 1: return &Lookup<Avx2, 1, 8>::scheme;
    case 2: return &Lookup<Avx2, 2, 8>::scheme;
    case 3: return &Lookup<Avx2, 3, 8>::scheme;
    case 4: return &Lookup<Avx2, 4, 8>::scheme;
    case 8: return &Lookup<Avx2, 8, 8>::scheme;
    default: return nullptr;
  }
}

}  // namespace

const Path* avx2_path() {
  static const Path path = {"avx2", scheme, quantize, finish};
  return &path;
}

}  // namespace binarydm

#else

const binarydm::Path* binarydm::avx2_path() { return nullptr; }

#endif
