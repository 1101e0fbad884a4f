// With AVX2: codes as words of 16 bits, whose products are summed exactly in 32 bits.
#include "attention.h"

#if defined(__AVX2__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "quantize.h"
#include "scratch.h"

namespace binarydm {
namespace {

constexpr int kRows = 4, kLanes = 16;
// Queries of a task.
constexpr int64_t kTask = 32;

// A panel holds an operand for kLanes outputs a block: [block][pair of inputs][lane][2]. out [kRows][blocks * kLanes] =
// sums over the inputs of rows [kRows][2 * pairs] and panel.
void multiply(const int16_t* rows, int64_t pairs, const int16_t* panel, int64_t blocks, int32_t* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    __m256i sums[kRows][2];
    for (auto& row : sums) row[0] = row[1] = _mm256_setzero_si256();
    for (int64_t pair = 0; pair < pairs; ++pair, panel += 2 * kLanes) {
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel) + 1);
      for (int r = 0; r < kRows; ++r) {
        int32_t two;
        std::memcpy(&two, rows + 2 * (r * pairs + pair), sizeof two);
        const __m256i codes = _mm256_set1_epi32(two);
        sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(low, codes));
        sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(high, codes));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      auto* to = reinterpret_cast<__m256i*>(out + (r * blocks + block) * kLanes);
      _mm256_storeu_si256(to, sums[r][0]);
      _mm256_storeu_si256(to + 1, sums[r][1]);
    }
  }
}

// x = e^x for x <= 0, to two units in the last place; what would be below the smallest normal number stays there.
void exponentials(float* x, int64_t count) {
  const float magic = 12582912.0f;  // adding it rounds to a whole number
  for (int64_t i = 0; i < count; ++i) {
    const float v = x[i] > -87.0f ? x[i] : -87.0f;
    const float n = (v * 1.44269504f + magic) - magic;
    const float r = (v - n * 0.693359375f) - n * -2.12194440e-4f;
    // Cephes' polynomial.
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &exponent, sizeof power);
    x[i] = p * power;
  }
}

float sum(const float* x, int64_t count) {
  float partial[8] = {}, rest = 0;
  for (; count >= 8; count -= 8, x += 8) {
    for (int i = 0; i < 8; ++i) partial[i] += x[i];
  }
  for (int64_t i = 0; i < count; ++i) rest += x[i];
  for (float part : partial) rest += part;
  return rest;
}

class Heads {
 public:
  Heads(const Attention& a, int64_t image)
      : a_(a), q_(a.q + image * a.queries * row()), k_(a.k + image * a.keys * row()), v_(a.v + image * a.keys * row()),
        out_(a.out + image * a.queries * row()), channel_pairs_((a.channels + 1) / 2),
        key_blocks_((a.keys + kLanes - 1) / kLanes), key_pairs_(key_blocks_ * kLanes / 2),
        channel_blocks_((a.channels + kLanes - 1) / kLanes), k_size_(key_blocks_ * channel_pairs_ * 2 * kLanes),
        v_size_(channel_blocks_ * key_pairs_ * 2 * kLanes) {}

  void run(Executor& executor) {
    const Scratch memory(a_.heads * (k_size_ + v_size_) * sizeof(int16_t));
    panels_ = reinterpret_cast<int16_t*>(memory.data());
    parallel_for(executor, a_.heads, [this](int64_t head) { pack(head); });
    const int64_t tasks = (a_.queries + kTask - 1) / kTask;
    parallel_for(executor, a_.heads * tasks, [&](int64_t i) {
      const int64_t from = i % tasks * kTask;
      rows(i / tasks, from, std::min(a_.queries, from + kTask));
    });
  }

 private:
  int64_t row() const { return a_.heads * a_.channels; }

  // Keys and values of one head as panels.
  void pack(int64_t head) const {
    int16_t* const k = panels_ + head * (k_size_ + v_size_);
    int16_t* const v = k + k_size_;
    std::memset(k, 0, (k_size_ + v_size_) * sizeof(int16_t));
    std::vector<int8_t> codes(a_.channels);
    for (int64_t key = 0; key < a_.keys; ++key) {
      const int64_t at = key * row() + head * a_.channels;
      quantize(k_ + at, a_.channels, a_.k_codes.step, a_.k_codes.bits, a_.k_codes.lower, codes.data());
      for (int64_t c = 0; c < a_.channels; ++c) *place(k, channel_pairs_, c, key) = raised(codes[c], a_.k_codes);
      quantize(v_ + at, a_.channels, a_.v_codes.step, a_.v_codes.bits, a_.v_codes.lower, codes.data());
      for (int64_t c = 0; c < a_.channels; ++c) *place(v, key_pairs_, key, c) = raised(codes[c], a_.v_codes);
    }
  }

  static int16_t raised(int8_t code, const Attention::Codes& of) { return static_cast<int16_t>(code + of.lower); }

  static int16_t* place(int16_t* panel, int64_t pairs, int64_t input, int64_t output) {
    return panel + ((output / kLanes * pairs + input / 2) * kLanes + output % kLanes) * 2 + input % 2;
  }

  // Queries [from, to) of one head.
  void rows(int64_t head, int64_t from, int64_t to) const {
    const int64_t keys = key_blocks_ * kLanes, channels = channel_blocks_ * kLanes;
    const Scratch memory(kRows * (keys * (sizeof(int32_t) + sizeof(float) + sizeof(int16_t)) +
                                  channels * sizeof(int32_t) + 2 * channel_pairs_ * sizeof(int16_t) + a_.channels));
    auto* const sums = reinterpret_cast<int32_t*>(memory.data());
    auto* const logits = reinterpret_cast<float*>(sums + kRows * keys);
    auto* const values = reinterpret_cast<int32_t*>(logits + kRows * keys);
    auto* const weights = reinterpret_cast<int16_t*>(values + kRows * channels);
    int16_t* const queries = weights + kRows * keys;
    auto* const codes = reinterpret_cast<int8_t*>(queries + kRows * 2 * channel_pairs_);
    const int16_t* const k = panels_ + head * (k_size_ + v_size_);
    std::memset(weights, 0, kRows * keys * sizeof(int16_t));
    std::memset(queries, 0, kRows * 2 * channel_pairs_ * sizeof(int16_t));
    for (int64_t first = from; first < to; first += kRows) {
      // Rows beyond the last query hold what an earlier one left.
      const int64_t count = std::min<int64_t>(kRows, to - first);
      for (int64_t r = 0; r < count; ++r) {
        quantize(q_ + (first + r) * row() + head * a_.channels, a_.channels, a_.q_codes.step, a_.q_codes.bits,
                 a_.q_codes.lower, codes);
        for (int64_t c = 0; c < a_.channels; ++c) queries[r * 2 * channel_pairs_ + c] = raised(codes[c], a_.q_codes);
      }
      multiply(queries, channel_pairs_, k, key_blocks_, sums);
      for (int64_t r = 0; r < count; ++r) softmax(sums + r * keys, logits, weights + r * keys);
      multiply(weights, key_pairs_, k + k_size_, channel_blocks_, values);
      const float unit = a_.weight_codes.step * a_.v_codes.step;
      for (int64_t r = 0; r < count; ++r) {
        float* const out = out_ + (first + r) * row() + head * a_.channels;
        for (int64_t c = 0; c < a_.channels; ++c) out[c] = unit * static_cast<float>(values[r * channels + c]);
      }
    }
  }

  // Sums of one query -> codes of its softmax.
  void softmax(const int32_t* sums, float* logits, int16_t* weights) const {
    const float unit = a_.q_codes.step * a_.k_codes.step;
    int32_t most = sums[0];
    for (int64_t i = 1; i < a_.keys; ++i) most = std::max(most, sums[i]);
    const float largest = unit * static_cast<float>(most);
    for (int64_t i = 0; i < a_.keys; ++i) logits[i] = unit * static_cast<float>(sums[i]) - largest;
    exponentials(logits, a_.keys);
    const float total = sum(logits, a_.keys), reciprocal = 1.0f / a_.weight_codes.step;
    const float high = static_cast<float>(a_.weight_codes.lower + (1 << (a_.weight_codes.bits - 1)) - 1), magic = 12582912.0f;
    for (int64_t i = 0; i < a_.keys; ++i) {
      float v = logits[i] / total * reciprocal;
      v = v < high ? v : high;
      weights[i] = static_cast<int16_t>(static_cast<int32_t>((v + magic) - magic));
    }
  }

  const Attention& a_;
  const float *const q_, *const k_, *const v_;
  float* const out_;
  const int64_t channel_pairs_, key_blocks_, key_pairs_, channel_blocks_, k_size_, v_size_;
  int16_t* panels_ = nullptr;
};

}  // namespace

bool attention_runs() { return __builtin_cpu_supports("avx2"); }

void attend(const Attention& a, Executor& executor) {
  for (int64_t image = 0; image < a.batch; ++image) Heads(a, image).run(executor);
}

}  // namespace binarydm

#else

bool binarydm::attention_runs() { return false; }
void binarydm::attend(const Attention&, Executor&) {}

#endif

const char* binarydm::attention_error(const Attention& a) {
  if (a.batch < 0 || a.queries < 1 || a.keys < 1 || a.heads < 1 || a.channels < 1) return "sizes are at least 1";
  for (const auto& codes : {a.q_codes, a.k_codes, a.weight_codes, a.v_codes}) {
    if (codes.bits < 2 || codes.bits > 8) return "operands have 2 to 8 bits";
    if (codes.lower < 0 || codes.lower > 1 << (codes.bits - 1)) return "zero points are 0 to 2^(bits - 1)";
  }
  // So that sums stay inside 32 bits: codes of 8 bits are at most 255.
  if (a.channels > 1 << 12 || a.keys > 1 << 15) return "a head has at most 4096 channels and 32768 keys";
  return nullptr;
}
