// Memory that calls borrow and give back: fresh pages for every call would cost as much as a small convolution.
#pragma once

#include <cstdint>
#include <memory>

namespace binarydm {

class Scratch {
 public:
  explicit Scratch(size_t bytes);  // aligned to 64
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* data() const { return data_; }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_;
  uint8_t* data_;
};

}  // namespace binarydm
