// Look-up by byte shuffles. For each pixel and each group of four channels there is a table of 16 bytes: the sums of the
// codes over every subset of the four, made positive by a bias. Four sign bits of an output choose an entry; a shuffle
// looks up as many outputs as a register has bytes. Tables serve all taps, outputs and bases.
//
// The sum over the channels whose sign is +1 gives the product: sum(sign * code) = 2 * sum(code where +1) - sum(code).
// Codes of 8 bits are two planes of 4, each with tables of its own: code = 16 * high + low.
//
// Simd gives the instruction set: V, kBytes; load, table (16 bytes to every lane), shuffle, add, low and high (nibbles);
// widen (bytes added to sums of 16 bits), drain (these added to sums of 32 bits, in the order of the outputs), and
// lane(output), the byte that holds an output.
#pragma once

#include <cstring>

#include "scheme.h"

namespace binarydm {
namespace {

// Channels are taken 16 at a time: four tables.
inline int quads_of(int channels) { return (channels + 15) / 16; }

template <class T>
inline T* hidden(T* pointer) {
  asm volatile("" : "+r"(pointer) : : "memory");
  return pointer;
}

template <int kBits>
struct Tables {
  static constexpr int kPlanes = kBits == 8 ? 2 : 1;
  // The lower plane of two is unsigned; codes of one bit are +-1.
  static constexpr int bias(int plane) { return plane == 1 ? 0 : kBits == 1 ? 4 : kBits == 8 ? 32 : 4 << (kBits - 1); }
  static constexpr int largest() { return kBits == 1 ? 8 : kBits == 8 ? 60 : 4 * ((1 << kBits) - 1); }
  // As many quads as bytes can hold the sums of.
  static constexpr int kQuads = 255 / (4 * largest());

  static size_t plane_bytes(int channels) { return static_cast<size_t>(quads_of(channels)) * 64; }
  static size_t pixel_bytes(int channels) { return kPlanes * plane_bytes(channels); }
};

template <class Simd, int kBits, int kMaxP>
struct Lookup {
  using V = typename Simd::V;
  using T = Tables<kBits>;
  static constexpr int kOutputs = Simd::kBytes;
  static constexpr int kQuads = T::kQuads;
  // After so many additions of bytes, sums of 16 bits may be full.
  static constexpr int kAdditions = 257;

  static size_t tap_bytes(int channels) { return static_cast<size_t>(quads_of(channels)) * 2 * kOutputs; }
  // Two registers hold 16 channels: a nibble for each group of four.
  static size_t bit(int channel, int output) {
    return 8 * (static_cast<size_t>(channel / 8) * kOutputs + Simd::lane(output)) + channel % 8;
  }

  template <int kPixels, int kBlocks>
  struct Run {
    static constexpr int kSize = kBlocks * kOutputs;
    alignas(64) uint16_t wide[kPixels * kSize];
    alignas(64) uint8_t narrow[kQuads > 1 ? kPixels * kSize : 1];

    // Looks up 16 channels and adds the bytes to what `narrow` has if kContinued, then to `wide` if kWiden, else keeps
    // them in `narrow`.
    template <bool kContinued, bool kWiden>
    void quad(const Tile& t, const uint8_t* const (&pixels)[kPixels], size_t offset, const uint8_t* weights) {
      // The compiler must not see what these point to: it would try to hold all sums in registers, and spill them.
      uint16_t* wide_sums = hidden(wide);
      uint8_t* narrow_sums = hidden(narrow);
      V nibbles[kBlocks][4];
      for (int b = 0; b < kBlocks; ++b) {
        const V even = Simd::load(weights + b * t.block_bytes);
        const V odd = Simd::load(weights + b * t.block_bytes + kOutputs);
        nibbles[b][0] = Simd::low(even), nibbles[b][1] = Simd::high(even);
        nibbles[b][2] = Simd::low(odd), nibbles[b][3] = Simd::high(odd);
      }
      for (int p = 0; p < kPixels; ++p) {
        const uint8_t* tables = pixels[p] + offset;
        const V t0 = Simd::table(tables), t1 = Simd::table(tables + 16);
        const V t2 = Simd::table(tables + 32), t3 = Simd::table(tables + 48);
        for (int b = 0; b < kBlocks; ++b) {
          V sum = Simd::add(Simd::add(Simd::shuffle(t0, nibbles[b][0]), Simd::shuffle(t1, nibbles[b][1])),
                            Simd::add(Simd::shuffle(t2, nibbles[b][2]), Simd::shuffle(t3, nibbles[b][3])));
          const int at = (p * kBlocks + b) * kOutputs;
          if (kContinued) sum = Simd::add(sum, Simd::load(narrow_sums + at));
          if (kWiden) {
            Simd::widen(sum, wide_sums + at);
          } else {
            Simd::store(narrow_sums + at, sum);
          }
        }
      }
    }

    void drain(const Tile& t) {
      for (int i = 0; i < kPixels * kSize; i += kOutputs) Simd::drain(wide + i, t.out + i);
      std::memset(wide, 0, sizeof wide);
    }

    void plane(const Tile& t, size_t plane_offset) {
      const int quads = quads_of(t.channels);
      const uint8_t* weights = t.weights;
      int additions = 0;
      std::memset(wide, 0, sizeof wide);
      for (int tap = 0; tap < t.taps; ++tap) {
        const uint8_t* pixels[kPixels];
        for (int p = 0; p < kPixels; ++p) pixels[p] = t.pixels[tap * kPixels + p];
        size_t offset = plane_offset;
        const auto next = [&] { offset += 64, weights += 2 * kOutputs; };
        for (int first = 0; first < quads; first += kQuads) {
          const int count = first + kQuads < quads ? kQuads : quads - first;
          if (kQuads == 1 || count == 1) {
            quad<false, true>(t, pixels, offset, weights), next();
          } else {
            quad<false, false>(t, pixels, offset, weights), next();
            for (int i = 2; i < count; ++i) quad<true, false>(t, pixels, offset, weights), next();
            quad<true, true>(t, pixels, offset, weights), next();
          }
          if (++additions == kAdditions) {
            drain(t);
            additions = 0;
          }
        }
      }
      drain(t);
    }

    void run(const Tile& t) {
      std::memset(t.out, 0, sizeof(int32_t) * kPixels * kSize);
      plane(t, 0);
      if (T::kPlanes == 2) {
        for (int i = 0; i < kPixels * kSize; ++i) t.out[i] *= 16;
        plane(t, T::plane_bytes(t.channels));
      }
      const int lookups = t.taps * quads_of(t.channels) * 4;
      const int bias = (T::kPlanes == 2 ? 16 : 1) * T::bias(0) * lookups;
      for (int p = 0; p < kPixels; ++p) {
        int32_t* out = t.out + p * kSize;
        const int32_t sum = t.sums[p];
        for (int i = 0; i < kSize; ++i) out[i] = 2 * (out[i] - bias) - sum;
      }
    }
  };

  template <int kBlocks>
  static void count(const Tile& t) {
    if constexpr (kMaxP >= 8) {
      if (t.count == 8) return Run<8, kBlocks>().run(t);
    }
    switch (t.count) {
      case 4: return Run<4, kBlocks>().run(t);
      case 2: return Run<2, kBlocks>().run(t);
      default: return Run<1, kBlocks>().run(t);
    }
  }

  static void tile(const Tile& t) { t.blocks == 2 ? count<2>(t) : count<1>(t); }

  static constexpr Scheme scheme = {
      kOutputs, 16, kMaxP, 2, T::pixel_bytes, tap_bytes, bit, Simd::template encode<kBits>, tile};
};

template <class Simd, int kBits, int kMaxP>
constexpr Scheme Lookup<Simd, kBits, kMaxP>::scheme;

}  // namespace
}  // namespace binarydm
