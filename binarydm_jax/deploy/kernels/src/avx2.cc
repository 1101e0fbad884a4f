// AVX2: look-up for all widths, of pairs for one bit. Measured against single look-up on Zen 3, xor with counts by
// shuffles (one bit) and vpmaddubsw on expanded bits (8 bits) took 2.7 times as long.
#include "scheme.h"

#if defined(__AVX2__)

#include "elementwise.h"
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
  static V low_halves(V all, V high) {
    return _mm256_sub_epi8(all, _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(15)), 4));
  }

  // `before` is nothing to the processor. To the compiler the tables change there, after the sum: it goes through the
  // blocks one after the other, where it would else begin them all, run out of registers and lose a quarter of the time.
  static void before(V& a, V& b, V& t0, V& t1, V& t2) { asm("" : "+x"(a), "+x"(b), "+x"(t0), "+x"(t1), "+x"(t2)); }

  struct Bytes {
    V value;

    void add(V bytes) { value = Avx2::add(value, bytes); }
    void before(V& t0, V& t1, V& t2, V& t3) { asm("" : "+x"(value), "+x"(t0), "+x"(t1), "+x"(t2), "+x"(t3)); }
  };

  // As words, bytes are even + 256 * odd. `all` adds up the words, modulo 2^16, `odd` the odd bytes: what is left of
  // the first without 256 times the second are the even bytes.
  struct Sums {
    V all, odd;

    void load(const uint16_t* from) {
      all = _mm256_load_si256(reinterpret_cast<const V*>(from));
      odd = _mm256_load_si256(reinterpret_cast<const V*>(from) + 1);
    }
    void store(uint16_t* to) const {
      _mm256_store_si256(reinterpret_cast<V*>(to), all);
      _mm256_store_si256(reinterpret_cast<V*>(to) + 1, odd);
    }
    void add(V bytes) {
      all = _mm256_add_epi16(all, bytes);
      odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
    }
    void before(V& t0, V& t1, V& t2, V& t3) {
      asm("" : "+x"(all), "+x"(odd), "+x"(t0), "+x"(t1), "+x"(t2), "+x"(t3));
    }
  };

  // out = (first ? 0 : out) + sums << shift
  static void drain(const uint16_t* sums, int32_t* out, int shift, bool first) {
    Sums s;
    s.load(sums);
    add_words(_mm256_sub_epi16(s.all, _mm256_slli_epi16(s.odd, 8)), out, shift, first);
    add_words(s.odd, out + 16, shift, first);
  }
  static int lane(int output) { return output < 16 ? 2 * output : 2 * (output - 16) + 1; }

  template <int kBits>
  static void encode(const int8_t* codes, size_t pixels, int ahead, int channels, uint8_t* out, int32_t* sums) {
    encode_tables<kBits>(codes, pixels, ahead, channels, out, sums);
  }
  static constexpr auto encode_pairs = encode_pair_tables;

 private:
  static void add_words(V words, int32_t* out, int shift, bool first) {
    V* to = reinterpret_cast<V*>(out);
    for (int half = 0; half < 2; ++half, ++to) {
      const __m128i part = half ? _mm256_extracti128_si256(words, 1) : _mm256_castsi256_si128(words);
      const V sum = _mm256_slli_epi32(_mm256_cvtepu16_epi32(part), shift);
      _mm256_storeu_si256(to, first ? sum : _mm256_add_epi32(_mm256_loadu_si256(to), sum));
    }
  }
};

const Scheme* scheme(int bits) {
  switch (bits) {
    case 1: return &Pairs<Avx2>::scheme;
    case 2: return &Lookup<Avx2, 2>::scheme;
    case 3: return &Lookup<Avx2, 3>::scheme;
    case 4: return &Lookup<Avx2, 4>::scheme;
    case 8: return &Lookup<Avx2, 8>::scheme;
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
