#include "paths.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace binarydm {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

bool has_avx512vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool has_neon_dot() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kAsimdDot = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kAsimdDot;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;  // every processor of Apple's that runs macOS
#else
  return false;
#endif
}

}  // namespace

const std::vector<const Path*>& runnable_paths() {
  static const auto* const paths = [] {
    auto* all = new std::vector<const Path*>;
    const auto add = [all](const Path* path, bool runs) {
      if (path && runs) all->push_back(path);
    };
    add(avx512vnni_path(), has_avx512vnni());
    add(avx2_path(), has_avx2());
    add(neon_path(), has_neon_dot());
    add(portable_path(), true);
    return all;
  }();
  return *paths;
}

const Path* find_path(std::string_view name) {
  for (const Path* path : runnable_paths()) {
    if (name == path->name) return path;
  }
  return nullptr;
}

}  // namespace binarydm
