#include "packed.h"

#include <cstring>

namespace binarydm {
namespace {

constexpr size_t kHeaderBytes = 64;

struct Header {
  char magic[8];
  char path[16];
  int32_t kh, kw, cin, cout, bases, bits;
  char reserved[kHeaderBytes - 24 - 24];
};
static_assert(sizeof(Header) == kHeaderBytes, "the header's size is part of the layout");

Header header(const Path& path, const Shape& s) {
  Header h = {};
  std::memcpy(h.magic, "BDMsigns", 8);
  std::strncpy(h.path, path.name, sizeof h.path - 1);
  h.kh = s.kh, h.kw = s.kw, h.cin = s.cin, h.cout = s.cout, h.bases = s.bases, h.bits = s.bits;
  return h;
}

}  // namespace

const char* shape_error(const Shape& s) {
  if (s.kh < 1 || s.kw < 1 || s.kh > 16 || s.kw > 16) return "kernels are 1 x 1 to 16 x 16";
  if (s.cin < 1 || s.cout < 1 || s.cin > 1 << 17 || s.cout > 1 << 17) return "channels are 1 to 131072";
  if (s.bases < 1 || s.bases > 2) return "there are one or two bases";
  // So that 2 * taps * channels * 255 stays inside 32 bits.
  if (static_cast<int64_t>(s.kh) * s.kw * s.cin > 4000000) return "a kernel has at most 4,000,000 inputs an output";
  return nullptr;
}

int blocks_of(const Scheme& scheme, const Shape& s) { return (s.cout + scheme.outputs - 1) / scheme.outputs; }

size_t block_bytes(const Scheme& scheme, const Shape& s) { return scheme.tap_bytes(s.cin) * s.kh * s.kw; }

size_t packed_bytes(const Scheme& scheme, const Shape& s) {
  return kHeaderBytes + block_bytes(scheme, s) * blocks_of(scheme, s) * s.bases;
}

void pack(const Path& path, const Scheme& scheme, const Shape& s, const uint8_t* signs, uint8_t* out) {
  std::memset(out, 0, packed_bytes(scheme, s));
  const Header h = header(path, s);
  std::memcpy(out, &h, sizeof h);
  uint8_t* weights = out + kHeaderBytes;
  const size_t tap_bytes = scheme.tap_bytes(s.cin), block = block_bytes(scheme, s);
  const int blocks = blocks_of(scheme, s), taps = s.kh * s.kw;
  for (int basis = 0; basis < s.bases; ++basis) {
    for (int tap = 0; tap < taps; ++tap) {
      for (int c = 0; c < s.cin; ++c, signs += s.cout) {
        for (int b = 0; b < blocks; ++b) {
          uint8_t* at = weights + (static_cast<size_t>(basis) * blocks + b) * block + tap * tap_bytes;
          const int first = b * scheme.outputs;
          for (int o = 0; o < scheme.outputs && first + o < s.cout; ++o) {
            const size_t bit = scheme.bit(c, o);
            at[bit / 8] |= static_cast<uint8_t>((signs[first + o] != 0) << (bit % 8));
          }
        }
      }
    }
  }
}

const uint8_t* packed_weights(const Path& path, const Scheme& scheme, const Shape& s, const uint8_t* packed,
                              size_t size) {
  if (size != packed_bytes(scheme, s)) return nullptr;
  const Header h = header(path, s);
  return std::memcmp(packed, &h, sizeof h) == 0 ? packed + kHeaderBytes : nullptr;
}

}  // namespace binarydm
