// ARM NEON with dot products: these for 8 bits, look-up for 2 to 4, population counts for one.
#include "scheme.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

#include "dot.h"
#include "elementwise.h"
#include "lookup.h"
#include "popcount.h"

namespace binarydm {
namespace {

struct Neon {
  using V = uint8x16_t;
  static constexpr int kBytes = 16;

  static V load(const uint8_t* from) { return vld1q_u8(from); }
  static void store(uint8_t* to, V v) { vst1q_u8(to, v); }
  static V table(const uint8_t* from) { return vld1q_u8(from); }
  static V shuffle(V table, V nibbles) { return vqtbl1q_u8(table, nibbles); }
  static V add(V a, V b) { return vaddq_u8(a, b); }
  static V low(V v) { return vandq_u8(v, vdupq_n_u8(15)); }
  static V high(V v) { return vshrq_n_u8(v, 4); }

  struct Bytes {
    V value;

    void add(V bytes) { value = vaddq_u8(value, bytes); }
    void before(V&, V&, V&, V&) {}
  };

  struct Sums {
    uint16x8_t front, back;

    void load(const uint16_t* from) { front = vld1q_u16(from), back = vld1q_u16(from + 8); }
    void store(uint16_t* to) const { vst1q_u16(to, front), vst1q_u16(to + 8, back); }
    void add(V bytes) {
      front = vaddw_u8(front, vget_low_u8(bytes));
      back = vaddw_high_u8(back, bytes);
    }
    void before(V&, V&, V&, V&) {}
  };

  static void drain(const uint16_t* sums, int32_t* out, int shift, bool first) {
    const int32x4_t by = vdupq_n_s32(shift);
    for (int i = 0; i < 16; i += 4) {
      const int32x4_t sum = vshlq_s32(vreinterpretq_s32_u32(vmovl_u16(vld1_u16(sums + i))), by);
      vst1q_s32(out + i, first ? sum : vaddq_s32(vld1q_s32(out + i), sum));
    }
  }
  static int lane(int output) { return output; }

  // The tables of 16 codes, as tables_x86.h builds them: sums of two codes, then of these.
  static void store_tables(int8x16_t codes, int bias, uint8_t* out) {
    // Index 16 and above gives zero.
    static const uint8_t c0[16] = {99, 0, 99, 0, 99, 4, 99, 4, 99, 8, 99, 8, 99, 12, 99, 12};
    static const uint8_t c1[16] = {99, 99, 1, 1, 99, 99, 5, 5, 99, 99, 9, 9, 99, 99, 13, 13};
    static const uint8_t c2[16] = {99, 2, 99, 2, 99, 6, 99, 6, 99, 10, 99, 10, 99, 14, 99, 14};
    static const uint8_t c3[16] = {99, 99, 3, 3, 99, 99, 7, 7, 99, 99, 11, 11, 99, 99, 15, 15};
    static const uint8_t fronts[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    static const uint8_t backs[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t v = vreinterpretq_u8_s8(codes);
    const uint8x16_t front = vaddq_u8(vqtbl1q_u8(v, vld1q_u8(c0)), vqtbl1q_u8(v, vld1q_u8(c1)));
    const uint8x16_t back = vaddq_u8(vaddq_u8(vqtbl1q_u8(v, vld1q_u8(c2)), vqtbl1q_u8(v, vld1q_u8(c3))),
                                     vdupq_n_u8(static_cast<uint8_t>(bias)));
    for (int group = 0; group < 4; ++group) {
      const uint8x16_t offset = vdupq_n_u8(static_cast<uint8_t>(4 * group));
      vst1q_u8(out + 16 * group, vaddq_u8(vqtbl1q_u8(front, vaddq_u8(vld1q_u8(fronts), offset)),
                                          vqtbl1q_u8(back, vaddq_u8(vld1q_u8(backs), offset))));
    }
  }

  template <int kBits>
  static void encode(const int8_t* codes, size_t pixels, int, int channels, uint8_t* out, int32_t* sums) {
    using T = Tables<kBits>;
    static_assert(T::kPlanes == 1, "8 bits have dot products");
    for (size_t p = 0; p < pixels; ++p, codes += channels, out += T::pixel_bytes(channels)) {
      int32_t sum = 0;
      for (int c = 0; c < channels; c += 16) {
        int8_t rest[16] = {};
        if (c + 16 > channels) std::memcpy(rest, codes + c, channels - c);
        const int8x16_t v = vld1q_s8(c + 16 > channels ? rest : codes + c);
        sum += vaddlvq_s8(v);
        store_tables(v, T::bias(0), out + 4 * c);
      }
      sums[p] = sum;
    }
  }
};

// Sign bits become 0 or -1.
struct NeonDot {
  using V = int32x4_t;
  static constexpr int kOutputs = 16, kVectors = 4, kGroups = 8, kPixels = 4, kSign = -1;

  // A register for four outputs: byte 4 * output + channel, a bit for each group of four channels.
  static int bit(int channel, int output) {
    return 8 * (16 * (output / 4) + 4 * (output % 4) + channel % 4) + channel / 4;
  }

  struct Record {
    uint8x16_t bits[kVectors];

    explicit Record(const uint8_t* weights) {
      for (int v = 0; v < kVectors; ++v) bits[v] = vld1q_u8(weights + 16 * v);
    }
    V expand(int v, int group) const {
      return vreinterpretq_s32_u8(vtstq_u8(bits[v], vdupq_n_u8(static_cast<uint8_t>(1 << group))));
    }
  };

  static V zero() { return vdupq_n_s32(0); }
  static V broadcast(const uint8_t* from) { return vld1q_dup_s32(reinterpret_cast<const int32_t*>(from)); }
  static V dot(V acc, V weights, V codes) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(codes));
  }
  static void store(int32_t* to, V v) { vst1q_s32(to, v); }
};

struct NeonLanes {
  using V = uint32x4_t;
  static constexpr int kLanes = 4, kPixels = 4;

  static V load(const uint8_t* from) { return vreinterpretq_u32_u8(vld1q_u8(from)); }
  static V broadcast(const uint8_t* from) { return vld1q_dup_u32(reinterpret_cast<const uint32_t*>(from)); }
  static V mask(V a, V b) { return vandq_u32(a, b); }
  static V exclusive_or(V a, V b) { return veorq_u32(a, b); }

  struct Count {
    uint32x4_t counts = vdupq_n_u32(0);

    void add(V v) { counts = vpadalq_u16(counts, vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u32(v)))); }
    void store(int32_t* to) const { vst1q_s32(to, vreinterpretq_s32_u32(counts)); }
  };
};

const Scheme* scheme(int bits) {
  switch (bits) {
    case 1: return &Popcount<NeonLanes, 1>::scheme;
    case 2: return &Lookup<Neon, 2>::scheme;
    case 3: return &Lookup<Neon, 3>::scheme;
    case 4: return &Lookup<Neon, 4>::scheme;
    case 8: return &Dot<NeonDot>::scheme;
    default: return nullptr;
  }
}

}  // namespace

const Path* neon_path() {
  static const Path path = {"neon", scheme, quantize, finish};
  return &path;
}

}  // namespace binarydm

#else

const binarydm::Path* binarydm::neon_path() { return nullptr; }

#endif
