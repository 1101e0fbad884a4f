// Packed weights in memory: a header of 64 bytes, then the sign bits [basis][block of outputs][tap], as the scheme lays
// them out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scheme.h"

namespace binarydm {

struct Shape {
  int kh, kw, cin, cout, bases, bits;
};

// Why a shape is not supported, or null.
const char* shape_error(const Shape&);

// Blocks of outputs; bytes of one block; bytes of all.
int blocks_of(const Scheme&, const Shape&);
size_t block_bytes(const Scheme&, const Shape&);
size_t packed_bytes(const Scheme&, const Shape&);

// signs [bases][kh][kw][cin][cout], nonzero = +1 -> out [packed_bytes].
void pack(const Path&, const Scheme&, const Shape&, const uint8_t* signs, uint8_t* out);

// The sign bits behind the header, or null where `packed` was made for something else.
const uint8_t* packed_weights(const Path&, const Scheme&, const Shape&, const uint8_t* packed, size_t size);

}  // namespace binarydm
