// The kernels against plain loops in 64 bits: random shapes and codes, worst cases, all widths; attention. For sanitizers and
// emulators, where Python is too heavy. Usage: selftest COUNT [PATH ...]; without paths those that the processor can run.
// A path that is named is run, whatever the processor says.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "conv.h"
#include "paths.h"

using namespace binarydm;

namespace {

std::mt19937 generator(1);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// A thread for every task.
class Threads : public Executor {
 public:
  ~Threads() override {
    for (std::thread& thread : threads_) thread.join();
  }
  int threads() const override { return 3; }
  void submit(std::function<void()> task) override { threads_.emplace_back(std::move(task)); }

 private:
  std::vector<std::thread> threads_;
};

struct Case {
  Geometry geometry;
  std::vector<int8_t> codes;
  std::vector<uint8_t> signs;
};

// Memory that sanitizers watch to the byte, aligned as XLA aligns it.
struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Aligned() { std::free(data); }
  uint8_t* data;
};

// `zero`: the code of the padding.
std::vector<int32_t> reference(const Case& c, int zero = 0) {
  const Geometry& g = c.geometry;
  const Shape& k = g.kernel;
  std::vector<int32_t> out;
  for (int basis = 0; basis < k.bases; ++basis)
    for (int64_t n = 0; n < g.batch; ++n)
      for (int64_t row = 0; row < g.out_height(); ++row)
        for (int64_t column = 0; column < g.out_width(); ++column)
          for (int o = 0; o < k.cout; ++o) {
            int64_t sum = 0;
            for (int i = 0; i < k.kh; ++i)
              for (int j = 0; j < k.kw; ++j) {
                const int64_t y = row * g.stride - g.top + i, x = column * g.stride - g.left + j;
                const bool inside = y >= 0 && x >= 0 && y < g.height && x < g.width;
                for (int ci = 0; ci < k.cin; ++ci) {
                  const int64_t code = !inside ? zero : c.codes[((n * g.height + y) * g.width + x) * k.cin + ci];
                  sum += c.signs[(((int64_t{basis} * k.kh + i) * k.kw + j) * k.cin + ci) * k.cout + o] ? code : -code;
                }
              }
            out.push_back(static_cast<int32_t>(sum));
          }
  return out;
}

Case random_case(int bits) {
  const int size = uniform(0, 2) ? 3 : 1;
  Case c;
  c.geometry = {uniform(1, 2), uniform(1, 9), uniform(1, 9), uniform(1, 2), uniform(0, 2), uniform(0, 2), uniform(0, 2),
                uniform(0, 2), {size, size, uniform(1, 90), uniform(1, 140), uniform(1, 2), bits}};
  Geometry& g = c.geometry;
  while (geometry_error(g)) ++g.height, ++g.width;
  c.codes.resize(g.batch * g.height * g.width * g.kernel.cin);
  const int extreme = uniform(0, 3);  // all smallest, all largest, random
  for (int8_t& code : c.codes) {
    const int low = bits == 1 ? -1 : -(1 << (bits - 1)), high = bits == 1 ? 1 : -low - 1;
    code = static_cast<int8_t>(extreme == 0 ? low : extreme == 1 ? high : bits == 1 ? 2 * uniform(0, 1) - 1
                                                                                    : uniform(low, high));
  }
  c.signs.resize(size_t(g.kernel.bases) * size * size * g.kernel.cin * g.kernel.cout);
  for (uint8_t& sign : c.signs) sign = extreme == 1 ? 1 : uniform(0, 1);
  return c;
}

// As many inputs as LDM-4's largest layer has, every sum as large as it can be.
Case worst_case(int bits, int sign, bool largest) {
  Case c;
  c.geometry = {1, 3, 3, 1, 1, 1, 1, 1, {3, 3, 1792, 3, 2, bits}};
  const int low = bits == 1 ? -1 : -(1 << (bits - 1));
  c.codes.assign(9 * 1792, static_cast<int8_t>(largest ? (bits == 1 ? 1 : -low - 1) : low));
  c.signs.assign(2 * 9 * 1792 * 3, static_cast<uint8_t>(sign));
  return c;
}

bool check(const Path& path, const Case& c) {
  const Geometry& g = c.geometry;
  const Shape& k = g.kernel;
  const Scheme& scheme = *path.scheme(k.bits);
  const size_t size = packed_bytes(scheme, k);
  Aligned packed(size);
  pack(path, scheme, k, c.signs.data(), packed.data);
  const uint8_t* weights = packed_weights(path, scheme, k, packed.data, size);
  const std::vector<int32_t> expected = reference(c);
  std::vector<int32_t> acc(expected.size());
  {
    Threads threads;
    integer_conv(path, scheme, g, weights, c.codes.data(), acc.data(), threads);
  }
  if (acc != expected) {
    std::printf("%s: wrong integers: %d bits, kernel %dx%dx%dx%d, %d bases, stride %d, input %dx%dx%d\n", path.name,
                k.bits, k.kh, k.kw, k.cin, k.cout, k.bases, g.stride, int(g.batch), int(g.height), int(g.width));
    return false;
  }
  // Fused: inputs that round to the codes, powers of two, so that any order of operations gives the same float.
  const size_t outputs = expected.size() / k.bases;
  const float step = 0.25f;
  // Codes lowered by up to the whole range below zero, the padding with them.
  const int lower = k.bits == 1 ? 0 : uniform(0, 1 << (k.bits - 1));
  const std::vector<int32_t> sums = reference(c, -lower);
  std::vector<float> x(c.codes.size()), scale1(k.cout, 0.5f), scale2(k.cout, 2.0f), bias(k.cout, 3.0f);
  std::vector<float> residual(outputs, -1.0f), y(outputs);
  for (size_t i = 0; i < x.size(); ++i) x[i] = (c.codes[i] + lower + 0.01f * uniform(-49, 49)) * step;
  {
    Threads threads;
    fused_conv(path, scheme, g, weights,
               {x.data(), step, lower, scale1.data(), k.bases == 2 ? scale2.data() : nullptr, bias.data(), residual.data(),
                y.data()},
               threads);
  }
  for (size_t i = 0; i < outputs; ++i) {
    const float sum = 0.5f * sums[i] + (k.bases == 2 ? 2.0f * sums[outputs + i] : 0.0f);
    if (y[i] != 0.25f * sum + 2.0f) {
      std::printf("%s: wrong float, %d bits: %g\n", path.name, k.bits, y[i]);
      return false;
    }
  }
  return true;
}

// Inputs are whole steps. Weights that lie near the middle of two codes may be rounded to either.
bool check_attention() {
  const int bits = uniform(2, 8), top = (1 << (bits - 1)) - 1;
  const int q_low = uniform(0, top + 1), k_low = uniform(0, top + 1), v_low = uniform(0, top + 1);
  const int most_code = top + uniform(0, top + 1);  // of the softmax
  Attention a = {uniform(1, 2), uniform(1, 40), uniform(1, 70), uniform(1, 3), uniform(1, 40), {bits, 0.25f, q_low},
                 {bits, 0.5f, k_low}, {bits, 0.5f / most_code, most_code - top}, {bits, 0.125f, v_low}, nullptr, nullptr,
                 nullptr, nullptr};
  const int64_t row = a.heads * a.channels;
  std::vector<float> q(a.batch * a.queries * row), k(a.batch * a.keys * row), v(k.size()), out(q.size());
  const auto code = [&](int lower) { return lower + uniform(-top - 1, top); };
  for (float& x : q) x = a.q_codes.step * code(q_low);
  for (float& x : k) x = a.k_codes.step * std::nearbyint(float(code(k_low)) / (1 + a.channels));
  for (float& x : v) x = a.v_codes.step * code(v_low);
  a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = out.data();
  {
    Threads threads;
    attend(a, threads);
  }
  for (int64_t i = 0; i < a.batch * a.queries; ++i) {
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t first = i / a.queries * a.keys;
      std::vector<double> weights(a.keys);
      double most = -1e300, total = 0, doubt = 1e-5;
      for (int64_t key = 0; key < a.keys; ++key) {
        for (int64_t c = h * a.channels; c < (h + 1) * a.channels; ++c) {
          weights[key] += double(q[i * row + c]) * k[(first + key) * row + c];
        }
        most = std::max(most, weights[key]);
      }
      for (double& w : weights) total += w = std::exp(w - most);
      for (double& w : weights) {
        const double steps = w / total / a.weight_codes.step;
        if (std::fabs(steps - std::floor(steps) - 0.5) < 1e-3) doubt += a.weight_codes.step * a.v_codes.step * (v_low + top + 1);
        w = std::nearbyint(std::min<double>(steps, most_code)) * a.weight_codes.step;
      }
      for (int64_t c = h * a.channels; c < (h + 1) * a.channels; ++c) {
        double expected = 0;
        for (int64_t key = 0; key < a.keys; ++key) expected += weights[key] * v[(first + key) * row + c];
        if (!(std::fabs(out[i * row + c] - expected) <= doubt)) {
          std::printf("attention: %g, not %g, %d bits, %d keys, %d channels\n", out[i * row + c], expected, bits,
                      int(a.keys), int(a.channels));
          return false;
        }
      }
    }
  }
  return true;
}

const Path* named(const char* name) {
  for (const Path* path : {portable_path(), avx2_path(), avx512vnni_path(), neon_path()}) {
    if (path && !std::strcmp(path->name, name)) return path;
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 20;
  std::vector<const Path*> paths;
  for (int i = 2; i < argc; ++i) {
    paths.push_back(named(argv[i]));
    if (!paths.back()) return std::printf("%s is not compiled in\n", argv[i]), 1;
  }
  if (paths.empty()) {
    paths = runnable_paths();
    for (int i = 0; attention_runs() && i < 5 * count; ++i) {
      if (!check_attention()) return 1;
    }
    if (attention_runs()) std::printf("attention ok\n");
  }
  for (const Path* path : paths) {
    for (int bits : {1, 2, 3, 4, 8}) {
      for (int i = 0; i < count; ++i) {
        if (!check(*path, random_case(bits))) return 1;
      }
      for (int sign : {0, 1}) {
        for (bool largest : {false, true}) {
          if (!check(*path, worst_case(bits, sign, largest))) return 1;
        }
      }
    }
    std::printf("%s ok\n", path->name);
  }
  return 0;
}
