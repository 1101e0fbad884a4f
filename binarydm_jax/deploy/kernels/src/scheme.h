// A scheme is one way to compute products of sign bits and small codes: how pixels and weights lie in memory, and the
// functions that work on them. A path (portable, avx2, ...) has one scheme for every width of activations.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layouts are little-endian"
#endif

namespace binarydm {

// The most output pixels of a strip, and outputs.
constexpr int kStripPixels = 64;
constexpr int kStripOutputs = 256;

// A strip of output pixels times a few blocks of outputs, over all taps of the kernel.
struct Strip {
  const uint8_t* const* pixels;  // [taps][count], each an encoded pixel; of a scheme of pairs every second one serves
  int count;                     // 1 .. kStripPixels; even, of a scheme of pairs
  int taps;
  int channels;                  // as the convolution has them, before padding
  const uint8_t* weights;        // first block, first tap
  size_t block_bytes;            // from one block to the next
  int blocks;                    // 1 .. Scheme::max_blocks
  const int32_t* sums;           // [count], over the taps
  int32_t* out;                  // [count][blocks * outputs]: sum over taps and channels of sign * code
};

// What follows the products: y = step * (scale1 * acc1 + scale2 * acc2) + bias + residual, for a strip.
struct Epilogue {
  int count, outputs;            // pixels; outputs that exist (the rest is padding)
  size_t acc_stride;             // from one pixel's sums to the next's
  const int32_t* acc1;
  const int32_t* acc2;           // null: one basis
  float step;
  const float *scale1, *scale2, *bias;
  const float* residual;         // null: none
  float* y;
  size_t y_stride;               // also of the residual
};

struct Scheme {
  int outputs;     // in a block of weights; the number of outputs is padded to a multiple
  int channels;    // the number of channels is padded to a multiple
  int max_blocks;  // of a strip
  bool pairs;      // output pixels go two by two: an encoded pixel holds that which its right neighbour sees, too
  size_t (*pixel_bytes)(int channels);
  size_t (*tap_bytes)(int channels);  // weights of one block and one tap
  size_t (*bit)(int channel, int output);  // where the sign of a weight is, in bits from the start of block and tap

  // codes [pixels][channels] -> out [pixels][pixel_bytes], and per pixel the number that Strip::sums adds up. A pixel of
  // zeros contributes nothing, also where codes are +-1. Of a scheme of pairs, `ahead` more pixels follow: the second of
  // a pair is `ahead` pixels after the first.
  void (*encode)(const int8_t* codes, size_t pixels, int ahead, int channels, uint8_t* out, int32_t* sums);
  void (*multiply)(const Strip&);
};

struct Path {
  const char* name;
  // The scheme for activations of 1, 2, 3, 4 or 8 bits; null: no such width.
  const Scheme* (*scheme)(int bits);
  // round(clip(x * (1 / step))) - lower, half to even; for one bit +1 where x >= 0, else -1. NaN becomes the smallest code.
  void (*quantize)(const float* x, size_t count, float step, int bits, int lower, int8_t* codes);
  void (*finish)(const Epilogue&);
};

// Each is null where it was not compiled in.
const Path* portable_path();
const Path* avx2_path();
const Path* avx512vnni_path();
const Path* neon_path();

}  // namespace binarydm
