// AVX-512: VNNI dot products for 8 bits, look-up for 2 to 4, population counts for one where the processor has them, else
// look-up of pairs.
#include "scheme.h"

#if defined(__AVX512VNNI__) || defined(BINARYDM_EMULATE_AVX512)

#include "avx512popcount.h"
#include "dot.h"
#include "elementwise.h"
#include "tables_x86.h"

namespace binarydm {
namespace {

struct Avx512 {
  using V = __m512i;
  static constexpr int kBytes = 64;

  static V load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static void store(uint8_t* to, V v) { _mm512_storeu_si512(to, v); }
  static V table(const uint8_t* from) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static V shuffle(V table, V nibbles) { return _mm512_shuffle_epi8(table, nibbles); }
  static V add(V a, V b) { return _mm512_add_epi8(a, b); }
  static V low(V v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static V high(V v) { return low(_mm512_srli_epi16(v, 4)); }
  static V low_halves(V all, V high) {
    return _mm512_sub_epi8(all, _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(15)), 4));
  }

  // There are registers enough: the compiler may choose its order.
  static void before(V&, V&, V&, V&, V&) {}

  struct Bytes {
    V value;

    void add(V bytes) { value = Avx512::add(value, bytes); }
    void before(V&, V&, V&, V&) {}
  };

  // As on AVX2: words, and odd bytes.
  struct Sums {
    V all, odd;

    void load(const uint16_t* from) {
      all = _mm512_loadu_si512(from);
      odd = _mm512_loadu_si512(from + 32);
    }
    void store(uint16_t* to) const {
      _mm512_storeu_si512(to, all);
      _mm512_storeu_si512(to + 32, odd);
    }
    void add(V bytes) {
      all = _mm512_add_epi16(all, bytes);
      odd = _mm512_add_epi16(odd, _mm512_srli_epi16(bytes, 8));
    }
    void before(V&, V&, V&, V&) {}
  };

  static void drain(const uint16_t* sums, int32_t* out, int shift, bool first) {
    Sums s;
    s.load(sums);
    add_words(_mm512_sub_epi16(s.all, _mm512_slli_epi16(s.odd, 8)), out, shift, first);
    add_words(s.odd, out + 32, shift, first);
  }
  static int lane(int output) { return output < 32 ? 2 * output : 2 * (output - 32) + 1; }

  template <int kBits>
  static void encode(const int8_t* codes, size_t pixels, int ahead, int channels, uint8_t* out, int32_t* sums) {
    encode_tables<kBits>(codes, pixels, ahead, channels, out, sums);
  }
  static constexpr auto encode_pairs = encode_pair_tables;

 private:
  static void add_words(V words, int32_t* out, int shift, bool first) {
    for (int half = 0; half < 2; ++half, out += 16) {
      const __m256i part = half ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words);
      const V sum = _mm512_sll_epi32(_mm512_cvtepu16_epi32(part), _mm_cvtsi32_si128(shift));
      _mm512_storeu_si512(out, first ? sum : _mm512_add_epi32(_mm512_loadu_si512(out), sum));
    }
  }
};

// Sign bits are 0 or 1, unsigned, the codes signed.
struct Vnni {
  using V = __m512i;
  static constexpr int kOutputs = 64, kVectors = 4, kGroups = 1, kPixels = 6, kSign = 1;

  // Lane by lane, four bits each.
  static int bit(int channel, int output) { return 4 * output + channel; }

  struct Record {
    const uint8_t* from;

    explicit Record(const uint8_t* weights) : from(weights) {}
    V expand(int v, int) const {
      uint64_t bits;
      std::memcpy(&bits, from + 8 * v, 8);
      return _mm512_maskz_mov_epi8(static_cast<__mmask64>(bits), _mm512_set1_epi8(1));
    }
  };

  static V zero() { return _mm512_setzero_si512(); }
  static V broadcast(const uint8_t* from) {
    int32_t codes;
    std::memcpy(&codes, from, 4);
    return _mm512_set1_epi32(codes);
  }
  static V dot(V acc, V weights, V codes) { return _mm512_dpbusd_epi32(acc, weights, codes); }
  static void store(int32_t* to, V v) { _mm512_storeu_si512(to, v); }
};

const Scheme* scheme(int bits) {
  switch (bits) {
    case 1: return avx512popcount_scheme() ? avx512popcount_scheme() : &Pairs<Avx512>::scheme;
    case 2: return &Lookup<Avx512, 2>::scheme;
    case 3: return &Lookup<Avx512, 3>::scheme;
    case 4: return &Lookup<Avx512, 4>::scheme;
    case 8: return &Dot<Vnni>::scheme;
    default: return nullptr;
  }
}

}  // namespace

const Path* avx512vnni_path() {
  static const Path path = {"avx512vnni", scheme, quantize, finish};
  return &path;
}

}  // namespace binarydm

#else

const binarydm::Path* binarydm::avx512vnni_path() { return nullptr; }

#endif
