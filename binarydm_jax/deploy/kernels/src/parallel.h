// A loop shared out among threads of somebody else's pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace binarydm {

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int threads() const = 0;  // that may work at once, the caller included
  virtual void submit(std::function<void()> task) = 0;
};

// body(0) ... body(count - 1), in any order. The caller works too and waits only for what another thread has begun: the
// pool may be as busy as it likes, nothing waits for a thread that never comes. Static: of one that files share, the
// linker could keep the copy of a file that is compiled for AVX2.
static inline void parallel_for(Executor& executor, int64_t count, const std::function<void(int64_t)>& body) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto state = std::make_shared<State>();
  // `body` is touched only by who has drawn a number below count, and so before `done` gets there.
  const auto work = [state, count, &body] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      body(i);
      if (state->done.fetch_add(1) + 1 == count) {
        const std::lock_guard<std::mutex> lock(state->mutex);
        state->all_done.notify_one();
      }
    }
  };
  for (int64_t helper = 1; helper < executor.threads() && helper < count; ++helper) executor.submit(work);
  work();
  // Another thread is at its last task: sleeping for so short a time pays only if it was interrupted.
  for (int spin = 0; spin < 20000 && state->done.load() < count; ++spin) {
  }
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done.load() == count; });
}

}  // namespace binarydm
