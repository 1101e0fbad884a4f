#include "scratch.h"

#include <mutex>
#include <utility>
#include <vector>

namespace binarydm {
namespace {

struct Kept {
  std::unique_ptr<uint8_t[]> memory;
  size_t size;
};

// As many as calls ever ran at once; what a call borrows is bounded (see conv.cc).
std::mutex mutex;
std::vector<Kept>& kept() {
  // Never destroyed: threads of the pool may outlive static objects.
  static auto* const all = new std::vector<Kept>;
  return *all;
}

}  // namespace

Scratch::Scratch(size_t bytes) : size_(bytes + 64) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!kept().empty()) {
      Kept last = std::move(kept().back());
      kept().pop_back();
      if (last.size >= size_) {
        memory_ = std::move(last.memory);
        size_ = last.size;
      }
    }
  }
  if (!memory_) memory_.reset(new uint8_t[size_]);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
  data_ = memory_.get() + (64 - address % 64) % 64;
}

Scratch::~Scratch() {
  const std::lock_guard<std::mutex> lock(mutex);
  kept().push_back({std::move(memory_), size_});
}

}  // namespace binarydm
