// Dot products of 8-bit codes with the sign bits expanded to bytes, four channels and one output to a lane of 32 bits.
//
// Simd gives the instruction set: V; kOutputs of a block, in kVectors registers; kGroups, how many groups of four channels
// a record of weights holds, and kPixels, how many pixels share it; Record, which expands a register of it; broadcast
// (four codes to all lanes), dot, store; kSign, by which the sums are to be multiplied.
#pragma once

#include <cstring>

#include "scheme.h"

namespace binarydm {
namespace {

template <class Simd>
struct Dot {
  using V = typename Simd::V;
  static constexpr int kOutputs = Simd::kOutputs, kVectors = Simd::kVectors, kChannels = 4 * Simd::kGroups;
  static constexpr size_t kRecord = kOutputs * kChannels / 8;

  static int records(int channels) { return (channels + kChannels - 1) / kChannels; }
  static size_t pixel_bytes(int channels) { return static_cast<size_t>(records(channels)) * kChannels; }
  static size_t tap_bytes(int channels) { return records(channels) * kRecord; }
  static size_t bit(int channel, int output) {
    return 8 * kRecord * (channel / kChannels) + Simd::bit(channel % kChannels, output);
  }

  static void encode(const int8_t* codes, size_t pixels, int, int channels, uint8_t* out, int32_t* sums) {
    const size_t bytes = pixel_bytes(channels);
    for (size_t p = 0; p < pixels; ++p, codes += channels, out += bytes) {
      int32_t sum = 0;
      for (int c = 0; c < channels; ++c) sum += codes[c];
      sums[p] = sum;
      std::memcpy(out, codes, channels);
      std::memset(out + channels, 0, bytes - channels);
    }
  }

  template <int kPixels>
  static void run(const Strip& s, int block, int first) {
    V acc[kPixels][kVectors];
    for (auto& pixel : acc) {
      for (V& v : pixel) v = Simd::zero();
    }
    const uint8_t* weights = s.weights + block * s.block_bytes;
    for (int tap = 0; tap < s.taps; ++tap) {
      const uint8_t* const* pixels = s.pixels + static_cast<size_t>(tap) * s.count + first;
      const int count = records(s.channels);
      for (int i = 0; i < count; ++i, weights += kRecord) {
        const typename Simd::Record record(weights);
        for (int g = 0; g < Simd::kGroups; ++g) {
          V codes[kPixels];
          for (int p = 0; p < kPixels; ++p) codes[p] = Simd::broadcast(pixels[p] + i * kChannels + 4 * g);
          for (int v = 0; v < kVectors; ++v) {
            const V bytes = record.expand(v, g);
            for (int p = 0; p < kPixels; ++p) acc[p][v] = Simd::dot(acc[p][v], bytes, codes[p]);
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      int32_t* out = s.out + (static_cast<size_t>(first + p) * s.blocks + block) * kOutputs;
      for (int v = 0; v < kVectors; ++v) Simd::store(out + v * kOutputs / kVectors, acc[p][v]);
      const int32_t sum = s.sums[first + p];
      for (int o = 0; o < kOutputs; ++o) out[o] = 2 * Simd::kSign * out[o] - sum;
    }
  }

  static void multiply(const Strip& s) {
    for (int block = 0; block < s.blocks; ++block) {
      int p = 0;
      for (; p + Simd::kPixels <= s.count; p += Simd::kPixels) run<Simd::kPixels>(s, block, p);
      for (; p < s.count; ++p) run<1>(s, block, p);
    }
  }

  static constexpr Scheme scheme = {kOutputs, kChannels, 4, false, pixel_bytes, tap_bytes, bit, encode, multiply};
};

template <class Simd>
constexpr Scheme Dot<Simd>::scheme;

}  // namespace
}  // namespace binarydm
