// A loop shared out among threads of somebody else's pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace binarydm {

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int threads() const = 0;  // that may work at once, the caller included
  virtual void submit(std::function<void()> task) = 0;
};

// body(0) ... body(count - 1), in any order. The caller works too and waits only for what another thread has begun: the
// pool may be as busy as it likes, nothing waits for a thread that never comes.
inline void parallel_for(Executor& executor, int64_t count, const std::function<void(int64_t)>& body) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  // `body` is touched only by who has drawn a number below count, and so before `done` gets there.
  const auto work = [state, count, &body] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      body(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t helper = 1; helper < executor.threads() && helper < count; ++helper) executor.submit(work);
  work();
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace binarydm
