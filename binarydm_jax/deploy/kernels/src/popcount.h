// Bit planes and population counts. A pixel is, for each plane of its codes, words of 32 channels; a block of weights
// holds, for each word of channels, one word for each output. Codes of one bit are +-1: xor. Wider codes are in two's
// complement: plane k counts 2^k, the last one negative: and.
//
// Lanes gives the instruction set: V, kLanes words of 32 bits; broadcast, load, bit operations, and counts; kPixels, how
// many pixels share a register of weights.
#pragma once

#include <cstring>

#include "scheme.h"

namespace binarydm {
namespace {

inline int words_of(int channels) { return (channels + 31) / 32; }

template <int kBits>
struct Planes {
  // One word says whether the pixel exists (all ones) or is padding; then [plane][word].
  static size_t pixel_bytes(int channels) { return 4 * (1 + static_cast<size_t>(kBits) * words_of(channels)); }

  static void encode(const int8_t* codes, size_t pixels, int, int channels, uint8_t* out, int32_t* sums) {
    const size_t plane_bytes = 4 * static_cast<size_t>(words_of(channels));
    for (size_t p = 0; p < pixels; ++p, codes += channels, out += pixel_bytes(channels)) {
      int32_t sum = 0;
      for (int c = 0; c < channels; ++c) sum += kBits == 1 ? codes[c] != 0 : codes[c];
      sums[p] = sum;
      std::memset(out, 0, pixel_bytes(channels));
      if (sum || kBits > 1) std::memset(out, 0xff, 4);
      for (int c = 0; c < channels; c += 8) {
        uint64_t eight = 0;
        std::memcpy(&eight, codes + c, channels - c < 8 ? channels - c : 8);
        // One bit: set where the code is positive, that is odd and not negative.
        if (kBits == 1) eight &= ~eight >> 7;
        for (int k = 0; k < kBits; ++k) out[4 + k * plane_bytes + c / 8] = lowest_bits(eight >> k);
      }
    }
  }

 private:
  // Bit i of the result is the lowest of byte i: each product of the multiplication moves one of them to the top byte.
  static uint8_t lowest_bits(uint64_t bytes) {
    return static_cast<uint8_t>(((bytes & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
  }
};

template <class Lanes, int kBits>
struct Popcount {
  using V = typename Lanes::V;
  using Count = typename Lanes::Count;
  static constexpr int kOutputs = Lanes::kLanes;

  static size_t tap_bytes(int channels) { return 4 * static_cast<size_t>(words_of(channels)) * kOutputs; }
  static size_t bit(int channel, int output) {
    return 32 * (static_cast<size_t>(channel / 32) * kOutputs + output) + channel % 32;
  }

  template <int kPixels>
  static void run(const Strip& s, int block, int first) {
    const int words = words_of(s.channels);
    const uint8_t* w = s.weights + block * s.block_bytes;
    Count counts[kPixels][kBits];
    for (int tap = 0; tap < s.taps; ++tap) {
      const uint8_t* const* pixels = s.pixels + static_cast<size_t>(tap) * s.count + first;
      for (int i = 0; i < words; ++i, w += 4 * kOutputs) {
        const V weight = Lanes::load(w);
        for (int p = 0; p < kPixels; ++p) {
          for (int k = 0; k < kBits; ++k) {
            const V x = Lanes::broadcast(pixels[p] + 4 * (1 + k * words + i));
            const V bits = kBits == 1 ? Lanes::mask(Lanes::exclusive_or(weight, x), Lanes::broadcast(pixels[p]))
                                      : Lanes::mask(weight, x);
            counts[p][k].add(bits);
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      int32_t* out = s.out + (static_cast<size_t>(first + p) * s.blocks + block) * kOutputs;
      const int32_t sum = s.sums[first + p];
      int32_t lanes[kOutputs];
      for (int o = 0; o < kOutputs; ++o) out[o] = kBits == 1 ? sum : -sum;
      for (int k = 0; k < kBits; ++k) {
        counts[p][k].store(lanes);
        const int32_t factor = kBits == 1 ? -2 : k == kBits - 1 ? -(2 << k) : 2 << k;
        for (int o = 0; o < kOutputs; ++o) out[o] += factor * lanes[o];
      }
    }
  }

  static void multiply(const Strip& s) {
    for (int block = 0; block < s.blocks; ++block) {
      int p = 0;
      for (; p + Lanes::kPixels <= s.count; p += Lanes::kPixels) run<Lanes::kPixels>(s, block, p);
      for (; p < s.count; ++p) run<1>(s, block, p);
    }
  }

  static constexpr Scheme scheme = {
      kOutputs, 32, 4, false, Planes<kBits>::pixel_bytes, tap_bytes, bit, Planes<kBits>::encode, multiply};
};

template <class Lanes, int kBits>
constexpr Scheme Popcount<Lanes, kBits>::scheme;

}  // namespace
}  // namespace binarydm
