// What Python calls: XLA's custom calls, and plain C for packing.
#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "attention.h"
#include "conv.h"
#include "paths.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace binarydm {
namespace {

class Pool : public Executor {
 public:
  // limit 0: all of the pool's threads.
  Pool(ffi::ThreadPool pool, int64_t limit) : pool_(pool) {
    const int64_t all = std::max<int64_t>(1, pool.num_threads());
    threads_ = static_cast<int>(limit > 0 && limit < all ? limit : all);
  }
  int threads() const override { return threads_; }
  void submit(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool pool_;
  int threads_;
};

ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument("binary convolution: " + message); }

// What codes are lowered by, of a finite zero point; beyond the range of zero points, as at its ends.
int lowered_by(float zero_point, int bits) {
  const int half = 1 << (bits - 1);
  return half - static_cast<int>(std::lround(std::min(std::max(zero_point, 0.0f), static_cast<float>(half))));
}

struct Call {
  Geometry geometry;
  const Path* path;
  const Scheme* scheme;
  const uint8_t* weights;
};

// Checks all sizes: what is packed comes from a caller's array.
ffi::Error prepare(Call& call, std::string_view path, ffi::Span<const int64_t> kernel_shape, int64_t stride,
                   ffi::Span<const int64_t> padding, int64_t bits, int64_t bases, ffi::Span<const int64_t> x,
                   const ffi::Buffer<ffi::U8>& packed, ffi::Span<const int64_t> y) {
  call.path = find_path(path);
  if (!call.path) return invalid("no path " + std::string(path) + " on this processor");
  call.scheme = call.path->scheme(static_cast<int>(bits));
  if (!call.scheme) return invalid("activations have 1, 2, 3, 4 or 8 bits");
  if (kernel_shape.size() != 4 || padding.size() != 4 || x.size() != 4 || y.size() < 4) return invalid("wrong ranks");
  const auto narrow = [](int64_t v) { return static_cast<int>(v < 0 || v > 1 << 20 ? -1 : v); };
  call.geometry = {x[0], x[1], x[2], narrow(stride), narrow(padding[0]), narrow(padding[1]), narrow(padding[2]),
                   narrow(padding[3]), {narrow(kernel_shape[0]), narrow(kernel_shape[1]), narrow(kernel_shape[2]),
                   narrow(kernel_shape[3]), narrow(bases), static_cast<int>(bits)}};
  const Geometry& g = call.geometry;
  if (const char* error = geometry_error(g)) return invalid(error);
  const size_t first = y.size() - 4;
  if (x[3] != g.kernel.cin || y[first] != g.batch || y[first + 1] != g.out_height() || y[first + 2] != g.out_width() ||
      y[first + 3] != g.kernel.cout) {
    return invalid("input or output has another shape");
  }
  call.weights = packed_weights(*call.path, *call.scheme, g.kernel, packed.typed_data(), packed.element_count());
  if (!call.weights) return invalid("the weights were packed for another layer or path");
  return ffi::Error::Success();
}

ffi::Error fused(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> step,
                 ffi::Buffer<ffi::F32> zero_point, ffi::Buffer<ffi::U8> packed, ffi::Buffer<ffi::F32> scale1, ffi::Buffer<ffi::F32> scale2,
                 ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::F32> residual, ffi::ResultBuffer<ffi::F32> y,
                 std::string_view path, ffi::Span<const int64_t> kernel_shape, int64_t stride,
                 ffi::Span<const int64_t> padding, int64_t bits, int64_t bases, int64_t threads) {
  Call call;
  ffi::Error error = prepare(call, path, kernel_shape, stride, padding, bits, bases, x.dimensions(), packed,
                             y->dimensions());
  if (error.failure()) return error;
  const size_t cout = call.geometry.kernel.cout;
  if (step.element_count() != 1 || zero_point.element_count() > 1 || scale1.element_count() != cout || bias.element_count() != cout ||
      scale2.element_count() != (bases == 2 ? cout : 0)) {
    return invalid("step, scales or bias have another size");
  }
  const bool with_residual = residual.element_count() > 0;
  if (with_residual && residual.element_count() != y->element_count()) return invalid("residual has another size");
  if (zero_point.element_count() && (bits < 2 || !std::isfinite(zero_point.typed_data()[0]))) {
    return invalid("a zero point is a number, of activations of at least 2 bits");
  }
  const int lower = zero_point.element_count() ? lowered_by(zero_point.typed_data()[0], static_cast<int>(bits)) : 0;
  // As quant.step_size does.
  const float floored = std::max(step.typed_data()[0], 1e-8f);
  Pool executor(pool, threads);
  fused_conv(*call.path, *call.scheme, call.geometry, call.weights,
             {x.typed_data(), floored, lower, scale1.typed_data(), scale2.typed_data(), bias.typed_data(),
              with_residual ? residual.typed_data() : nullptr, y->typed_data()},
             executor);
  return ffi::Error::Success();
}

ffi::Error integer(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> codes, ffi::Buffer<ffi::U8> packed,
                   ffi::ResultBuffer<ffi::S32> acc, std::string_view path, ffi::Span<const int64_t> kernel_shape,
                   int64_t stride, ffi::Span<const int64_t> padding, int64_t bits, int64_t bases, int64_t threads) {
  Call call;
  ffi::Error error = prepare(call, path, kernel_shape, stride, padding, bits, bases, codes.dimensions(), packed,
                             acc->dimensions());
  if (error.failure()) return error;
  if (acc->dimensions().size() != 5 || acc->dimensions()[0] != bases) return invalid("output has another shape");
  Pool executor(pool, threads);
  integer_conv(*call.path, *call.scheme, call.geometry, call.weights, codes.typed_data(), acc->typed_data(), executor);
  return ffi::Error::Success();
}

ffi::Error attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k, ffi::Buffer<ffi::F32> v,
                     ffi::Buffer<ffi::F32> steps, ffi::Buffer<ffi::F32> zero_points, ffi::ResultBuffer<ffi::F32> out, int64_t qk_bits, int64_t av_bits,
                     int64_t threads) {
  const auto wrong = [](const char* what) {
    return ffi::Error::InvalidArgument(std::string("attention of codes: ") + what);
  };
  if (!attention_runs()) return wrong("not on this processor");
  const auto shape = q.dimensions(), keys = k.dimensions();
  if (shape.size() != 4 || keys.size() != 4 || steps.element_count() != 4 ||
      zero_points.element_count() != 4) {
    return wrong("wrong ranks");
  }
  const auto same = [](ffi::Span<const int64_t> a, ffi::Span<const int64_t> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  };
  if (keys[0] != shape[0] || keys[2] != shape[2] || keys[3] != shape[3] || !same(v.dimensions(), keys) ||
      !same(out->dimensions(), shape)) {
    return wrong("operands have other shapes");
  }
  Attention::Codes codes[4];
  for (int i = 0; i < 4; ++i) {
    const int64_t bits = i < 2 ? qk_bits : av_bits;
    if (bits < 2 || bits > 8) return wrong("operands have 2 to 8 bits");
    if (!std::isfinite(zero_points.typed_data()[i])) return wrong("a zero point is not finite");
    codes[i] = {static_cast<int>(bits), std::max(steps.typed_data()[i], 1e-8f),
                lowered_by(zero_points.typed_data()[i], static_cast<int>(bits))};
  }
  const Attention a = {shape[0], shape[1], keys[1], shape[2], shape[3], codes[0], codes[1], codes[2], codes[3],
                       q.typed_data(), k.typed_data(), v.typed_data(), out->typed_data()};
  if (const char* error = attention_error(a)) return wrong(error);
  Pool executor(pool, threads);
  attend(a, executor);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace binarydm

XLA_FFI_DEFINE_HANDLER_SYMBOL(binarydm_attention, binarydm::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("qk_bits")
                                  .Attr<int64_t>("av_bits")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(binarydm_fused_conv, binarydm::fused,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::string_view>("path")
                                  .Attr<ffi::Span<const int64_t>>("kernel_shape")
                                  .Attr<int64_t>("stride")
                                  .Attr<ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("bases")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(binarydm_integer_conv, binarydm::integer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<std::string_view>("path")
                                  .Attr<ffi::Span<const int64_t>>("kernel_shape")
                                  .Attr<int64_t>("stride")
                                  .Attr<ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("bases")
                                  .Attr<int64_t>("threads"));

namespace {

bool lookup(const char* path_name, const int* shape, const binarydm::Path** path, const binarydm::Scheme** scheme,
            binarydm::Shape* s) {
  *s = {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
  *path = binarydm::find_path(path_name);
  *scheme = *path ? (*path)->scheme(s->bits) : nullptr;
  return *scheme && !binarydm::shape_error(*s);
}

}  // namespace

extern "C" {

int binarydm_attention_runs() { return binarydm::attention_runs(); }

// Names of the runnable paths, best first, a space between two.
const char* binarydm_paths() {
  static const auto* const names = [] {
    auto* all = new std::string;
    for (const binarydm::Path* path : binarydm::runnable_paths()) {
      *all += (all->empty() ? "" : " ") + std::string(path->name);
    }
    return all;
  }();
  return names->c_str();
}

// shape: kh, kw, cin, cout, bases, bits. Bytes of the packed weights; 0: not supported.
size_t binarydm_packed_bytes(const char* path_name, const int* shape) {
  const binarydm::Path* path;
  const binarydm::Scheme* scheme;
  binarydm::Shape s;
  return lookup(path_name, shape, &path, &scheme, &s) ? binarydm::packed_bytes(*scheme, s) : 0;
}

// signs [bases][kh][kw][cin][cout] -> packed [binarydm_packed_bytes], which was not 0.
void binarydm_pack(const char* path_name, const int* shape, const uint8_t* signs, uint8_t* packed) {
  const binarydm::Path* path;
  const binarydm::Scheme* scheme;
  binarydm::Shape s;
  if (lookup(path_name, shape, &path, &scheme, &s)) binarydm::pack(*path, *scheme, s, signs, packed);
}

}  // extern "C"
