// Look-up by byte shuffles. For each pixel and each group of four channels there is a table of 16 bytes: the sums of the
// codes over every subset of the four, made positive by a bias. Four sign bits of an output choose an entry; a shuffle
// looks up as many outputs as a register has bytes. Tables serve all taps, outputs and bases.
//
// The sum over the channels whose sign is +1 gives the product: sum(sign * code) = 2 * sum(code where +1) - sum(code).
// Codes of 8 bits are two planes of 4, each with tables of its own: code = 16 * high + low.
//
// Simd gives the instruction set: V, kBytes; load, store, table (16 bytes to every lane), shuffle, add, low and high
// (nibbles); Bytes and Sums, to which bytes are added as 8 and 16 bits; drain (these to sums of 32 bits in the order of
// the outputs); lane(output), the byte that holds an output; encode.
#pragma once

#include <cstring>

#include "scheme.h"

namespace binarydm {
namespace {

// Channels are taken 16 at a time: four tables.
inline int quads_of(int channels) { return (channels + 15) / 16; }

// Weights: two registers hold 16 channels, a nibble for each group of four.
template <class Simd>
size_t nibble_tap_bytes(int channels) {
  return static_cast<size_t>(quads_of(channels)) * 2 * Simd::kBytes;
}
template <class Simd>
size_t nibble_bit(int channel, int output) {
  return 8 * (static_cast<size_t>(channel / 8) * Simd::kBytes + Simd::lane(output)) + channel % 8;
}

// One nibble to a byte, [group of four channels][kBlocks * kBytes].
template <class Simd, int kBlocks>
void expand_nibbles(const uint8_t* weights, size_t block_bytes, int quads, uint8_t* nibbles) {
  constexpr int kSize = kBlocks * Simd::kBytes;
  for (int b = 0; b < kBlocks; ++b, weights += block_bytes) {
    for (int i = 0; i < 2 * quads; ++i) {
      const typename Simd::V v = Simd::load(weights + i * Simd::kBytes);
      uint8_t* to = nibbles + (2 * i * kBlocks + b) * Simd::kBytes;
      Simd::store(to, Simd::low(v));
      Simd::store(to + kSize, Simd::high(v));
    }
  }
}

template <int kBits>
struct Tables {
  static constexpr int kPlanes = kBits == 8 ? 2 : 1;
  // The lower plane of two is unsigned.
  static constexpr int bias(int plane) { return plane == 1 ? 0 : kBits == 8 ? 32 : 4 << (kBits - 1); }
  static constexpr int largest() { return kBits == 8 ? 60 : 4 * ((1 << kBits) - 1); }
  // As many quads as bytes can hold the sums of.
  static constexpr int kQuads = 255 / (4 * largest());

  static size_t plane_bytes(int channels) { return static_cast<size_t>(quads_of(channels)) * 64; }
  static size_t pixel_bytes(int channels) { return kPlanes * plane_bytes(channels); }
};

template <class Simd, int kBits>
struct Lookup {
  using V = typename Simd::V;
  using T = Tables<kBits>;
  static constexpr int kOutputs = Simd::kBytes;
  static constexpr int kQuads = T::kQuads;
  // After so many additions of bytes, sums of 16 bits may be full.
  static constexpr int kAdditions = 257;

  // Sums of one strip and kBlocks blocks of outputs. Weights are taken in chunks: their nibbles, one to a byte, serve all
  // pixels of the strip from the L1 cache, while a pixel's sums stay in registers.
  template <int kBlocks>
  struct Run {
    static constexpr int kSize = kBlocks * kOutputs;
    static constexpr int kChunk = 16;  // quads
    alignas(64) uint8_t nibbles[kChunk * 4 * kSize];
    alignas(64) uint16_t sums[T::kPlanes][kStripPixels * kSize];

    // Adds a chunk for one pixel and plane.
    void add(const uint8_t* tables, int quads, uint16_t* to) const {
      const uint8_t* at = nibbles;
      typename Simd::Sums wide[kBlocks];
      if (kQuads == 1) {
        for (int b = 0; b < kBlocks; ++b) wide[b].load(to + b * kOutputs);
        for (int quad = 0; quad < quads; ++quad, tables += 64, at += 4 * kSize) look_up(tables, at, wide);
        for (int b = 0; b < kBlocks; ++b) wide[b].store(to + b * kOutputs);
        return;
      }
      for (int left = quads; left > 0; left -= kQuads) {
        typename Simd::Bytes narrow[kBlocks] = {};
        const int now = left < kQuads ? left : kQuads;
        for (int quad = 0; quad < now; ++quad, tables += 64, at += 4 * kSize) look_up(tables, at, narrow);
        for (int b = 0; b < kBlocks; ++b) {
          wide[b].load(to + b * kOutputs);
          wide[b].add(narrow[b].value);
          wide[b].store(to + b * kOutputs);
        }
      }
    }

    // One quad.
    template <class Accumulator>
    static void look_up(const uint8_t* tables, const uint8_t* at, Accumulator (&to)[kBlocks]) {
      V t0 = Simd::table(tables), t1 = Simd::table(tables + 16);
      V t2 = Simd::table(tables + 32), t3 = Simd::table(tables + 48);
      for (int b = 0; b < kBlocks; ++b, at += kOutputs) {
        V sum = Simd::shuffle(t0, Simd::load(at));
        sum = Simd::add(sum, Simd::shuffle(t1, Simd::load(at + kSize)));
        sum = Simd::add(sum, Simd::shuffle(t2, Simd::load(at + 2 * kSize)));
        sum = Simd::add(sum, Simd::shuffle(t3, Simd::load(at + 3 * kSize)));
        to[b].add(sum);
        to[b].before(t0, t1, t2, t3);
      }
    }

    // Moves the sums to the output, the first time instead of what it holds.
    void drain(const Strip& s, bool first) {
      for (int i = 0; i < s.count * kSize; i += kOutputs) {
        for (int plane = 0; plane < T::kPlanes; ++plane) {
          Simd::drain(sums[plane] + i, s.out + i, plane < T::kPlanes - 1 ? 4 : 0, first && plane == 0);
        }
      }
    }

    void run(const Strip& s) {
      const int quads = quads_of(s.channels);
      const size_t plane_bytes = T::plane_bytes(s.channels);
      const uint8_t* weights = s.weights;
      int additions = 0;
      bool first = true;
      for (int plane = 0; plane < T::kPlanes; ++plane) std::memset(sums[plane], 0, sizeof(uint16_t) * s.count * kSize);
      for (int tap = 0; tap < s.taps; ++tap) {
        const uint8_t* const* pixels = s.pixels + static_cast<size_t>(tap) * s.count;
        for (int start = 0; start < quads; start += kChunk) {
          const int chunk = quads - start < kChunk ? quads - start : kChunk;
          const int more = (chunk + kQuads - 1) / kQuads;
          if (additions + more > kAdditions) {
            drain(s, first);
            for (auto& plane : sums) std::memset(plane, 0, sizeof(uint16_t) * s.count * kSize);
            additions = 0;
            first = false;
          }
          additions += more;
          expand_nibbles<Simd, kBlocks>(weights, s.block_bytes, chunk, nibbles);
          weights += static_cast<size_t>(chunk) * 2 * kOutputs;
          for (int p = 0; p < s.count; ++p) {
            for (int plane = 0; plane < T::kPlanes; ++plane) {
              add(pixels[p] + plane * plane_bytes + 64 * start, chunk, sums[plane] + p * kSize);
            }
          }
        }
      }
      drain(s, first);
      const int bias = (T::kPlanes == 2 ? 16 : 1) * T::bias(0) * s.taps * quads * 4;
      for (int p = 0; p < s.count; ++p) {
        int32_t* out = s.out + p * kSize;
        const int32_t offset = 2 * bias + s.sums[p];
        for (int i = 0; i < kSize; ++i) out[i] = 2 * out[i] - offset;
      }
    }
  };

  template <int kBlocks>
  static void run(const Strip& s) {
    Run<kBlocks> all;  // not cleared
    all.run(s);
  }

  static void multiply(const Strip& s) {
    switch (s.blocks) {
      case 4: return run<4>(s);
      case 3: return run<3>(s);
      case 2: return run<2>(s);
      default: return run<1>(s);
    }
  }

  static constexpr Scheme scheme = {
      kOutputs, 16, 4, false, T::pixel_bytes, nibble_tap_bytes<Simd>, nibble_bit<Simd>, Simd::template encode<kBits>,
      multiply};
};

template <class Simd, int kBits>
constexpr Scheme Lookup<Simd, kBits>::scheme;

}  // namespace
}  // namespace binarydm
