// The portable path: bit planes and population counts in plain C++, eight words side by side for the compiler's own
// vectorizer. It serves every processor that has nothing better.
#include "elementwise.h"
#include "popcount.h"

namespace binarydm {
namespace {

struct Words {
  static constexpr int kLanes = 8, kPixels = 2;
  struct V {
    uint32_t lane[kLanes];
  };

  static V load(const uint8_t* from) {
    V v;
    std::memcpy(v.lane, from, sizeof v.lane);
    return v;
  }
  static V broadcast(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    V v;
    for (uint32_t& lane : v.lane) lane = word;
    return v;
  }
  static V mask(V a, const V& b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] &= b.lane[i];
    return a;
  }
  static V exclusive_or(V a, const V& b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] ^= b.lane[i];
    return a;
  }

  struct Count {
    int32_t lane[kLanes] = {};

    void add(const V& v) {
      for (int i = 0; i < kLanes; ++i) {
        uint32_t n = v.lane[i];
        n -= (n >> 1) & 0x55555555u;
        n = (n & 0x33333333u) + ((n >> 2) & 0x33333333u);
        n = (n + (n >> 4)) & 0x0f0f0f0fu;
        n += n >> 8;
        n += n >> 16;
        lane[i] += n & 63;
      }
    }
    void store(int32_t* to) const { std::memcpy(to, lane, sizeof lane); }
  };
};

const Scheme* scheme(int bits) {
  switch (bits) {
    case 1: return &Popcount<Words, 1>::scheme;
    case 2: return &Popcount<Words, 2>::scheme;
    case 3: return &Popcount<Words, 3>::scheme;
    case 4: return &Popcount<Words, 4>::scheme;
    case 8: return &Popcount<Words, 8>::scheme;
    default: return nullptr;
  }
}

}  // namespace

const Path* portable_path() {
  static const Path path = {"portable", scheme, quantize, finish};
  return &path;
}

}  // namespace binarydm
