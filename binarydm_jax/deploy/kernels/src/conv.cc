// The driver: cuts a convolution into panels whose encoded input stays in a cache, encodes a panel, then shares out its
// tiles. Each in parallel, on the path's own functions.
#include "conv.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "scratch.h"

namespace binarydm {
namespace {

// Encoded input of a panel, in bytes: two L2 caches of 512 KiB hold it. On Zen 3 four times as much took 10 % longer.
constexpr size_t kPanelBytes = 900 << 10;
// Codes that are quantized at a time, in bytes: a part of the L1 cache.
constexpr size_t kCodesBytes = 8 << 10;
// Multiply-accumulates below which a second thread costs more than it saves.
constexpr int64_t kSerialMacs = 1 << 19;

struct Serial : Executor {
  int threads() const override { return 1; }
  void submit(std::function<void()> task) override { task(); }
};

class Conv {
 public:
  Conv(const Path& path, const Scheme& scheme, const Geometry& geometry, const uint8_t* weights, const Fused* fused,
       const int8_t* codes, int32_t* acc, Executor& executor)
      : path_(path), scheme_(scheme), g_(pointwise(geometry)), weights_(weights), fused_(fused), codes_(codes),
        acc_(acc), executor_(executor), zero_(static_cast<int8_t>(fused ? -fused->lower : 0)), out_height_(g_.out_height()), out_width_(g_.out_width()),
        slots_(scheme.pairs ? out_width_ + out_width_ % 2 : out_width_), left_(scheme.pairs ? g_.left : 0),
        columns_(g_.width + (scheme.pairs ? g_.left + g_.right : 0)), ahead_(scheme.pairs ? g_.stride : 0), taps_(g_.kernel.kh * g_.kernel.kw), blocks_(blocks_of(scheme, g_.kernel)),
        block_bytes_(block_bytes(scheme, g_.kernel)), pixel_bytes_(scheme.pixel_bytes(g_.kernel.cin)) {}

  void run() {
    if (g_.batch == 0 || g_.height == 0) return;
    const int64_t image_bytes = g_.height * columns_ * static_cast<int64_t>(pixel_bytes_ + sizeof(int32_t));
    const int64_t images = std::max<int64_t>(1, std::min<int64_t>(g_.batch, kPanelBytes / image_bytes));
    // Output rows whose input fits, at least one.
    const int64_t row_bytes = image_bytes / g_.height;
    const int64_t rows = images > 1 ? out_height_ : std::min<int64_t>(out_height_, std::max<int64_t>(
        1, (static_cast<int64_t>(kPanelBytes) / row_bytes - g_.kernel.kh) / g_.stride + 1));
    for (int64_t image = 0; image < g_.batch; image += images) {
      for (int64_t row = 0; row < out_height_; row += rows) {
        panel(image, std::min(images, g_.batch - image), row, std::min(rows, out_height_ - row));
      }
    }
  }

 private:
  // A 1 x 1 kernel without stride or padding sees pixels, in rows of any length: short ones that panels can be cut of.
  static Geometry pointwise(Geometry g) {
    if (g.kernel.kh == 1 && g.kernel.kw == 1 && g.stride == 1 && !(g.top | g.bottom | g.left | g.right)) {
      const int64_t pixels = g.batch * g.height * g.width;
      g.width = std::gcd(pixels, int64_t{kStripPixels});
      g.height = pixels / std::max<int64_t>(g.width, 1);
      g.batch = 1;
    }
    return g;
  }

  // Output rows [row, row + rows) of `images` images, from the encoded input rows [low, high) that they see.
  void panel(int64_t image, int64_t images, int64_t row, int64_t rows) {
    const int64_t low = std::clamp<int64_t>(row * g_.stride - g_.top, 0, g_.height);
    const int64_t high = std::clamp<int64_t>((row + rows - 1) * g_.stride - g_.top + g_.kernel.kh, low, g_.height);
    // With several images all rows are taken, so that the input is one piece of memory.
    panel_ = images > 1 ? Panel{image, row, rows, 0, g_.height} : Panel{image, row, rows, low, high};
    const int64_t in_pixels = images * (panel_.high - panel_.low) * columns_;
    const int64_t out_slots = images * rows * slots_;
    const int64_t macs = out_slots * taps_ * g_.kernel.cin * g_.kernel.cout * g_.kernel.bases;
    Serial serial;
    Executor& executor = macs < kSerialMacs ? serial : executor_;

    // The pixel after the last is the padding.
    const Scratch memory((in_pixels + 1) * (pixel_bytes_ + sizeof(int32_t)));
    encoded_ = memory.data();
    sums_ = reinterpret_cast<int32_t*>(encoded_ + round_up((in_pixels + 1) * pixel_bytes_, 4));
    padding_ = in_pixels;
    const std::vector<int8_t> zeros((1 + ahead_) * g_.kernel.cin, zero_);
    scheme_.encode(zeros.data(), 1, ahead_, g_.kernel.cin, encoded_ + padding_ * pixel_bytes_, sums_ + padding_);

    const int64_t piece = std::max<int64_t>(1, std::min<int64_t>(in_pixels / (2 * executor.threads()),
                                                                 kCodesBytes / g_.kernel.cin));
    const int64_t pieces = (in_pixels + piece - 1) / piece;
    // A few tasks a thread: enough to even out, few enough to cost nothing.
    const int64_t encoders = std::min<int64_t>(pieces, 4 * executor.threads());
    parallel_for(executor, encoders, [&](int64_t i) {
      std::vector<int8_t> buffer((piece + ahead_) * g_.kernel.cin);
      for (int64_t k = pieces * i / encoders; k < pieces * (i + 1) / encoders; ++k) {
        encode(k * piece, std::min(piece, in_pixels - k * piece), in_pixels, buffer.data());
      }
    });

    const int64_t strips = (out_slots + kStripPixels - 1) / kStripPixels;
    const int64_t groups = (blocks_ + scheme_.max_blocks - 1) / scheme_.max_blocks;
    const int64_t wanted = executor.threads() == 1 ? 1 : 4 * executor.threads();
    const int64_t cuts = std::max<int64_t>(1, std::min(groups, (wanted + strips - 1) / strips));
    parallel_for(executor, strips * cuts, [&](int64_t i) {
      const int64_t strip = i / cuts, cut = i % cuts;
      const int first = static_cast<int>(groups * cut / cuts) * scheme_.max_blocks;
      const int last = std::min<int>(blocks_, static_cast<int>(groups * (cut + 1) / cuts) * scheme_.max_blocks);
      multiply(strip * kStripPixels, std::min<int64_t>(kStripPixels, out_slots - strip * kStripPixels), first, last);
    });
  }

  static size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

  // `count` pixels of the panel's `all` from `pixel`.
  void encode(int64_t pixel, int64_t count, int64_t all, int8_t* codes) const {
    const int64_t cin = g_.kernel.cin;
    int8_t* to = codes;
    for (int64_t p = pixel, run; p < pixel + count + ahead_; p += run, to += run * cin) {
      const int64_t row = panel_.image * g_.height + panel_.low + p / columns_, x = p % columns_ - left_;
      const int64_t offset = (row * g_.width + x) * cin, rest = pixel + count + ahead_ - p;
      if (p >= all || x < 0 || x >= g_.width) {
        run = 1;
        std::fill_n(to, cin, zero_);
        continue;
      }
      run = std::min(rest, g_.width - x);
      if (fused_) {
        path_.quantize(fused_->x + offset, run * cin, fused_->step, g_.kernel.bits, fused_->lower, to);
      } else {
        std::copy_n(codes_ + offset, run * cin, to);
      }
    }
    scheme_.encode(codes, count, ahead_, g_.kernel.cin, encoded_ + pixel * pixel_bytes_, sums_ + pixel);
  }

  // A strip of `count` output slots of the panel from `start`, blocks [first, last) of outputs.
  void multiply(int64_t start, int64_t count, int first, int last) const {
    constexpr size_t kAcc = kStripPixels * kStripOutputs;
    const Scratch memory(2 * kAcc * sizeof(int32_t) + count * (taps_ * sizeof(uint8_t*) + sizeof(int32_t)));
    int32_t* const acc[2] = {reinterpret_cast<int32_t*>(memory.data()),
                             reinterpret_cast<int32_t*>(memory.data()) + kAcc};
    auto* const pixels = reinterpret_cast<const uint8_t**>(acc[1] + kAcc);
    auto* const sums = reinterpret_cast<int32_t*>(pixels + count * taps_);
    gather(start, count, pixels, sums);
    for (int block = first; block < last; block += scheme_.max_blocks) {
      const int blocks = std::min(scheme_.max_blocks, last - block);
      for (int basis = 0; basis < g_.kernel.bases; ++basis) {
        scheme_.multiply({pixels, static_cast<int>(count), taps_, g_.kernel.cin,
                          weights_ + (static_cast<size_t>(basis) * blocks_ + block) * block_bytes_, block_bytes_,
                          blocks, sums, acc[basis]});
      }
      store(start, static_cast<int>(count), block * scheme_.outputs, blocks * scheme_.outputs, acc[0], acc[1]);
    }
  }

  // Where the input of `count` output slots lies, [taps][count], and their sums.
  void gather(int64_t start, int64_t count, const uint8_t** pixels, int32_t* sums) const {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t column = (start + p) % slots_, line = (start + p) / slots_;
      const int64_t image = line / panel_.rows, row = panel_.row + line % panel_.rows;
      sums[p] = 0;
      for (int i = 0; i < g_.kernel.kh; ++i) {
        for (int j = 0; j < g_.kernel.kw; ++j) {
          const int64_t y = row * g_.stride - g_.top + i, x = column * g_.stride - g_.left + left_ + j;
          const bool inside = y >= 0 && y < g_.height && x >= 0 && x < columns_;
          const int64_t at =
              inside ? (image * (panel_.high - panel_.low) + y - panel_.low) * columns_ + x : padding_;
          pixels[(i * g_.kernel.kw + j) * count + p] = encoded_ + at * pixel_bytes_;
          sums[p] += sums_[at];
        }
      }
    }
  }

  // Sums of `count` slots and `size` outputs from `output` on, some of them padding.
  void store(int64_t start, int count, int output, int size, const int32_t* acc1, const int32_t* acc2) const {
    if (slots_ == out_width_) return store_pixels(start, count, output, size, acc1, acc2);
    // The last slot of a row is no pixel.
    for (int p = 0, run; p < count; p += run) {
      const int64_t line = (start + p) / slots_, column = (start + p) % slots_;
      run = static_cast<int>(std::min<int64_t>(count - p, slots_ - column));
      const int pixels = static_cast<int>(std::min<int64_t>(run, out_width_ - column));
      store_pixels(line * out_width_ + column, pixels, output, size, acc1 + p * size, acc2 + p * size);
    }
  }

  void store_pixels(int64_t start, int count, int output, int size, const int32_t* acc1, const int32_t* acc2) const {
    const int64_t cout = g_.kernel.cout;
    const int outputs = static_cast<int>(std::min<int64_t>(size, cout - output));
    const int64_t at = ((panel_.image * out_height_ + panel_.row) * out_width_ + start) * cout + output;
    if (fused_) {
      path_.finish({count, outputs, static_cast<size_t>(size), acc1, g_.kernel.bases == 2 ? acc2 : nullptr,
                    fused_->step, fused_->scale1 + output, g_.kernel.bases == 2 ? fused_->scale2 + output : nullptr,
                    fused_->bias + output, fused_->residual ? fused_->residual + at : nullptr, fused_->y + at,
                    static_cast<size_t>(cout)});
      return;
    }
    for (int basis = 0; basis < g_.kernel.bases; ++basis) {
      const int32_t* from = basis ? acc2 : acc1;
      int32_t* to = acc_ + basis * g_.batch * out_height_ * out_width_ * cout + at;
      for (int p = 0; p < count; ++p) std::copy_n(from + p * size, outputs, to + p * cout);
    }
  }

  struct Panel {
    int64_t image, row, rows;  // output
    int64_t low, high;         // input rows
  };

  const Path& path_;
  const Scheme& scheme_;
  const Geometry g_;
  const uint8_t* const weights_;
  const Fused* const fused_;
  const int8_t* const codes_;
  int32_t* const acc_;
  Executor& executor_;
  const int8_t zero_;  // the code of 0
  const int64_t out_height_, out_width_;
  // Places in a row of the output: an even number where a scheme wants pairs. Encoded columns: with the padding then,
  // `left_` of it before the image, so that the second of a pair is always `ahead_` pixels after the first.
  const int64_t slots_, left_, columns_;
  const int ahead_;
  const int taps_, blocks_;
  const size_t block_bytes_, pixel_bytes_;
  Panel panel_ = {};
  uint8_t* encoded_ = nullptr;
  int32_t* sums_ = nullptr;
  int64_t padding_ = 0;
};

}  // namespace

const char* geometry_error(const Geometry& g) {
  if (const char* error = shape_error(g.kernel)) return error;
  if (g.batch < 0 || g.height < 1 || g.width < 1) return "an image has at least one pixel";
  if (g.stride < 1 || g.stride > 16) return "strides are 1 to 16";
  if (g.top < 0 || g.bottom < 0 || g.left < 0 || g.right < 0) return "padding is not negative";
  if (g.top > 1024 || g.bottom > 1024 || g.left > 1024 || g.right > 1024) return "padding is at most 1024";
  if (g.height + g.top + g.bottom < g.kernel.kh || g.width + g.left + g.right < g.kernel.kw) {
    return "the padded image is smaller than the kernel";
  }
  return nullptr;
}

void fused_conv(const Path& path, const Scheme& scheme, const Geometry& geometry, const uint8_t* weights,
                const Fused& fused, Executor& executor) {
  Conv(path, scheme, geometry, weights, &fused, nullptr, nullptr, executor).run();
}

void integer_conv(const Path& path, const Scheme& scheme, const Geometry& geometry, const uint8_t* weights,
                  const int8_t* codes, int32_t* acc, Executor& executor) {
  Conv(path, scheme, geometry, weights, nullptr, codes, acc, executor).run();
}

}  // namespace binarydm
