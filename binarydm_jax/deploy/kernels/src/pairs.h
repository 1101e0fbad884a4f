// Activations of one bit by byte shuffles, two output pixels at a time. As in lookup.h there is a table for each group of
// four channels; its entry for four sign bits says how many of them equal the pixel's own signs, 0 to 4. That takes half a
// byte, so the other half serves a second pixel, and one shuffle looks up both. Three groups fill a half: 12 of 15.
//
// A code of zero, padding, equals no sign: sum(sign * code) = 2 * equal - nonzero.
//
// Simd as in lookup.h, and low_halves(all, high): all - 16 * high, byte by byte; before, see avx2.cc.
#pragma once

#include "lookup.h"

namespace binarydm {
namespace {

// Tables are taken three at a time; the last of a pixel may be zeros.
inline int threes_of(int channels) { return (4 * quads_of(channels) + 2) / 3; }

template <class Simd>
struct Pairs {
  using V = typename Simd::V;
  static constexpr int kOutputs = Simd::kBytes;
  // After so many chunks, sums of 16 bits may be full.
  static constexpr int kAdditions = 257;

  static size_t pixel_bytes(int channels) { return static_cast<size_t>(threes_of(channels)) * 48; }

  // Sums of some blocks of outputs, as bytes: of both halves (the higher sixteen times, modulo 256), and of the higher.
  // Not an array: compilers leave one in memory.
  template <int kBlocks, class = void>
  struct Halves {
    V all, high;
    Halves<kBlocks - 1> rest;

    explicit Halves(V zero) : all(zero), high(zero), rest(zero) {}
    template <int kSize>
    void look_up(V t0, V t1, V t2, const uint8_t* at) {
      V sum = Simd::shuffle(t0, Simd::load(at));
      sum = Simd::add(sum, Simd::shuffle(t1, Simd::load(at + kSize)));
      sum = Simd::add(sum, Simd::shuffle(t2, Simd::load(at + 2 * kSize)));
      all = Simd::add(all, sum);
      high = Simd::add(high, Simd::high(sum));
      Simd::before(all, high, t0, t1, t2);
      rest.template look_up<kSize>(t0, t1, t2, at + kOutputs);
    }
    void widen(uint16_t* first, uint16_t* second) const {
      add(Simd::low_halves(all, high), first);
      add(high, second);
      rest.widen(first + kOutputs, second + kOutputs);
    }

   private:
    static void add(V bytes, uint16_t* to) {
      typename Simd::Sums sums;
      sums.load(to);
      sums.add(bytes);
      sums.store(to);
    }
  };
  template <class Void>
  struct Halves<0, Void> {
    explicit Halves(V) {}
    template <int>
    void look_up(V, V, V, const uint8_t*) {}
    void widen(uint16_t*, uint16_t*) const {}
  };

  template <int kBlocks>
  struct Run {
    static constexpr int kSize = kBlocks * kOutputs;
    static constexpr int kChunk = 15;  // quads: as many as bytes can hold the sums of, and a multiple of three
    alignas(64) uint8_t nibbles[kChunk * 4 * kSize];
    alignas(64) uint16_t sums[kStripPixels * kSize];

    // Adds a chunk for two pixels.
    void add(const uint8_t* tables, int threes, uint16_t* first) const {
      alignas(16) static const uint8_t zeros[16] = {};
      const uint8_t* at = nibbles;
      Halves<kBlocks> halves(Simd::table(zeros));
      for (int i = 0; i < threes; ++i, tables += 48, at += 3 * kSize) {
        halves.template look_up<kSize>(Simd::table(tables), Simd::table(tables + 16), Simd::table(tables + 32), at);
      }
      halves.widen(first, first + kSize);
    }

    void drain(const Strip& s, bool first) {
      for (int i = 0; i < s.count * kSize; i += kOutputs) Simd::drain(sums + i, s.out + i, 0, first);
    }

    void run(const Strip& s) {
      const int quads = quads_of(s.channels);
      const uint8_t* weights = s.weights;
      int additions = 0;
      bool first = true;
      std::memset(sums, 0, sizeof(uint16_t) * s.count * kSize);
      for (int tap = 0; tap < s.taps; ++tap) {
        const uint8_t* const* pixels = s.pixels + static_cast<size_t>(tap) * s.count;
        for (int start = 0; start < quads; start += kChunk) {
          const int chunk = quads - start < kChunk ? quads - start : kChunk;
          if (++additions > kAdditions) {
            drain(s, first);
            std::memset(sums, 0, sizeof(uint16_t) * s.count * kSize);
            additions = 1;
            first = false;
          }
          expand_nibbles<Simd, kBlocks>(weights, s.block_bytes, chunk, nibbles);
          weights += static_cast<size_t>(chunk) * 2 * kOutputs;
          const int threes = (4 * chunk + 2) / 3;
          std::memset(nibbles + 4 * chunk * kSize, 0, (3 * threes - 4 * chunk) * kSize);
          for (int p = 0; p < s.count; p += 2) add(pixels[p] + 64 * start, threes, sums + p * kSize);
        }
      }
      drain(s, first);
      for (int p = 0; p < s.count; ++p) {
        int32_t* out = s.out + p * kSize;
        for (int i = 0; i < kSize; ++i) out[i] = 2 * out[i] - s.sums[p];
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
      kOutputs, 16, 4, true, pixel_bytes, nibble_tap_bytes<Simd>, nibble_bit<Simd>, Simd::encode_pairs, multiply};
};

template <class Simd>
constexpr Scheme Pairs<Simd>::scheme;

}  // namespace
}  // namespace binarydm
