// What decides how much of a conv is computed, and convs on some of their channels, without torch's
// cost of some microseconds for each small operation: for a single image that is more than the
// products themselves take.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

using at::Tensor;

// Of BLAS, which torch brings along on most machines: column by column, C = A B + beta C.
extern "C" __attribute__((weak)) void sgemm_(
    const char* transpose_a, const char* transpose_b, const int* m, const int* n, const int* k,
    const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
    const float* beta, float* c, const int* ldc);

namespace {

inline float as_float(float value) { return value; }

inline float as_float(uint16_t bfloat16) { return std::bit_cast<float>(uint32_t(bfloat16) << 16); }

// Of one image, channels last, whose channels of a block stay in registers meanwhile.
template <typename T>
void mean_of_positions(const T* maps, int64_t positions, int64_t channels, float* result) {
  constexpr int64_t block = 32;
  int64_t first = 0;
  for (; first + block <= channels; first += block) {
    float sums[block] = {};
    for (int64_t position = 0; position < positions; ++position)
      for (int64_t i = 0; i < block; ++i) sums[i] += as_float(maps[position * channels + first + i]);
    for (int64_t i = 0; i < block; ++i) result[first + i] = sums[i] / positions;
  }
  if (first == channels) return;
  float sums[block] = {};
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t i = 0; i < channels - first; ++i)
      sums[i] += as_float(maps[position * channels + first + i]);
  for (int64_t i = 0; i < channels - first; ++i) result[first + i] = sums[i] / positions;
}

// The mean over positions of each image's maps, zero for the channels that it does not have.
// batches: of (n_b, C_b, H, W); images: for every row of every batch, which image it is.
Tensor pooled(at::TensorList batches, at::IntArrayRef images, int64_t channels) {
  Tensor result = at::zeros({int64_t(images.size()), channels}, at::kFloat);
  float* means = result.mutable_data_ptr<float>();
  const int64_t* image = images.begin();
  for (const Tensor& given : batches) {
    const bool is_known = given.scalar_type() == at::kFloat || given.scalar_type() == at::kBFloat16;
    const Tensor maps =
        (is_known ? given : given.to(at::kFloat)).contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t own = maps.size(1), positions = maps.size(2) * maps.size(3);
    TORCH_CHECK(own <= channels, "pooled: more channels than the result has");
    for (int64_t row = 0; row < maps.size(0); ++row, ++image) {
      TORCH_CHECK(image < images.end() && *image < int64_t(images.size()), "pooled: no such image");
      float* mean = means + *image * channels;
      if (maps.scalar_type() == at::kFloat)
        mean_of_positions(maps.const_data_ptr<float>() + row * own * positions, positions, own, mean);
      else
        mean_of_positions(
            reinterpret_cast<const uint16_t*>(maps.const_data_ptr<at::BFloat16>()) +
                row * own * positions,
            positions, own, mean);
    }
  }
  return result;
}

// (n, outputs) = values (n, inputs) times the transpose of weight (outputs, inputs), plus bias.
Tensor linear(const Tensor& values, const Tensor& weight, const Tensor& bias) {
  if (values.size(0) != 1) return at::linear(values, weight, bias);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  Tensor result = at::empty({1, outputs}, values.options());
  const float* w = weight.const_data_ptr<float>();
  const float* x = values.const_data_ptr<float>();
  const float* b = bias.const_data_ptr<float>();
  float* y = result.mutable_data_ptr<float>();
  int64_t row = 0;
  for (; row + 4 <= outputs; row += 4, w += 4 * inputs) {  // four, as each waits for its last sum
    float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (int64_t i = 0; i < inputs; ++i) {
      sum0 += w[i] * x[i];
      sum1 += w[inputs + i] * x[i];
      sum2 += w[2 * inputs + i] * x[i];
      sum3 += w[3 * inputs + i] * x[i];
    }
    y[row] = sum0 + b[row];
    y[row + 1] = sum1 + b[row + 1];
    y[row + 2] = sum2 + b[row + 2];
    y[row + 3] = sum3 + b[row + 3];
  }
  for (; row < outputs; ++row, w += inputs) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < inputs; ++i) sum += w[i] * x[i];
    y[row] = sum + b[row];
  }
  return result;
}

// To about 2e-7 relative. Written out, as then a loop of it is turned into vector instructions.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 87.0f);
  const float n = std::nearbyint(x * 1.44269504f);  // exp(x) = 2^n exp(r)
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // of Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

inline float hyperbolic_tangent(float x) { return 1 - 2 / (1 + exponential(2 * x)); }

// Q-values (n, actions) and the next state (n, hidden) of features (n, inputs), as
// DecisionNetwork of rnp/execution/decision.py gives them.
std::tuple<Tensor, Tensor> q_values(
    const Tensor& features, const Tensor& state, const Tensor& mean, const Tensor& deviation,
    const Tensor& encoder_weight, const Tensor& encoder_bias, const Tensor& input_weight,
    const Tensor& state_weight, const Tensor& input_bias, const Tensor& state_bias,
    const Tensor& decoder_weight, const Tensor& decoder_bias) {
  const int64_t n = features.size(0), inputs = features.size(1), hidden = state_weight.size(1);
  TORCH_CHECK(state.is_contiguous() && state.size(0) == n && state.size(1) == hidden);
  Tensor standardised = at::empty_like(features);
  {
    const Tensor given = features.contiguous();
    const float* x = given.const_data_ptr<float>();
    const float* shift = mean.const_data_ptr<float>();
    const float* scale = deviation.const_data_ptr<float>();
    float* y = standardised.mutable_data_ptr<float>();
    for (int64_t row = 0; row < n; ++row, x += inputs, y += inputs)
      for (int64_t i = 0; i < inputs; ++i) y[i] = (x[i] - shift[i]) / scale[i];
  }
  Tensor encoding = linear(standardised, encoder_weight, encoder_bias);
  float* code = encoding.mutable_data_ptr<float>();
  for (int64_t i = 0; i < encoding.numel(); ++i) code[i] = std::max(code[i], 0.0f);
  const Tensor of_input = linear(encoding, input_weight, input_bias);  // reset, update, new
  const Tensor of_state = linear(state, state_weight, state_bias);
  Tensor next = at::empty({n, hidden}, state.options());
  const float* before = state.const_data_ptr<float>();
  const float* a = of_input.const_data_ptr<float>();
  const float* b = of_state.const_data_ptr<float>();
  float* after = next.mutable_data_ptr<float>();
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < hidden; ++i) {
      const float reset = sigmoid(a[i] + b[i]);
      const float update = sigmoid(a[hidden + i] + b[hidden + i]);
      const float candidate = hyperbolic_tangent(a[2 * hidden + i] + reset * b[2 * hidden + i]);
      after[i] = candidate + update * (before[i] - candidate);
    }
    a += 3 * hidden, b += 3 * hidden, before += hidden, after += hidden;
  }
  return {linear(next, decoder_weight, decoder_bias), next};
}

// The outputs that a gate chooses for an image (1, inputs, H, W), what they are multiplied by, and the
// numbers of the maps that hold anything. Gates are ReLU(phi means + rho), of the means of absolute
// values. Chosen are the `most` largest, or those strictly above the next one; none that is shut.
std::tuple<Tensor, Tensor, Tensor> gate(
    const Tensor& image, const Tensor& phi, const Tensor& rho, int64_t most, bool strictly_above) {
  TORCH_CHECK(image.size(0) == 1 && image.scalar_type() == at::kFloat, "gate: one float32 image");
  const Tensor maps = image.contiguous();
  const int64_t inputs = maps.size(1), positions = maps.size(2) * maps.size(3);
  const float* map = maps.const_data_ptr<float>();
  Tensor means = at::empty({1, inputs}, at::kFloat);
  float* mean = means.mutable_data_ptr<float>();
  std::vector<int64_t> full;
  full.reserve(inputs);
  for (int64_t input = 0; input < inputs; ++input, map += positions) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < positions; ++i) sum += std::abs(map[i]);
    mean[input] = sum / positions;
    if (mean[input] != 0) full.push_back(input);
  }
  const Tensor gates = linear(means, phi, rho);
  const float* value = gates.const_data_ptr<float>();
  const int64_t outputs = gates.size(1);
  std::vector<int64_t> chosen(outputs);
  std::iota(chosen.begin(), chosen.end(), 0);
  const auto larger = [value](int64_t a, int64_t b) { return value[a] > value[b]; };
  float bound = 0;
  if (most < outputs) {
    std::nth_element(chosen.begin(), chosen.begin() + most, chosen.end(), larger);
    if (strictly_above) bound = std::max(bound, value[chosen[most]]);
    chosen.resize(most);
  }
  std::erase_if(chosen, [&](int64_t output) { return !(value[output] > bound); });
  std::sort(chosen.begin(), chosen.end());
  std::vector<float> scales;
  scales.reserve(chosen.size());
  for (const int64_t output : chosen) scales.push_back(value[output]);
  return {at::tensor(chosen, at::kLong), at::tensor(scales, at::kFloat), at::tensor(full, at::kLong)};
}

// A padded map of one channel, cut by stride into phases: what one tap of a kernel reads of it for
// all outputs is a run without gaps, in rows of `width` of which the last few hold nothing of use.
struct Phases {
  int64_t height, width, size;  // of a phase
};

// Row-major: result (rows, columns) += left (rows, inner) right (inner, columns); first: = instead.
void multiply(
    const float* left, const float* right, float* result, int64_t rows, int64_t inner,
    int64_t columns, int64_t right_stride, bool first) {
  if (sgemm_ != nullptr) {
    const int m = columns, n = rows, k = inner, lda = right_stride, ldb = inner, ldc = columns;
    const float alpha = 1, beta = first ? 0 : 1;
    sgemm_("N", "N", &m, &n, &k, &alpha, right, &lda, left, &ldb, &beta, result, &ldc);
    return;
  }
  const auto matrix = [](const float* data, int64_t height, int64_t width, int64_t stride) {
    return at::from_blob(const_cast<float*>(data), {height, width}, {stride, 1}, at::kFloat);
  };
  Tensor to = matrix(result, rows, columns, columns);
  at::addmm_out(
      to, to, matrix(left, rows, inner, inner), matrix(right, inner, columns, right_stride),
      first ? 0 : 1);
}

// A conv's maps (n, channels, H', W') of images (n, C, H, W), of which only the maps `inputs` are
// read; filters that are not in `outputs` give zero. weight: (kernel positions, all outputs, all
// inputs). (conv + bias) is multiplied by scale and shift is added, both of the outputs computed.
Tensor conv_on(
    const Tensor& images, const Tensor& inputs, const Tensor& outputs, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, at::IntArrayRef kernel, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK(
      images.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat, "conv_on: float32");
  const Tensor maps = images.contiguous();
  const int64_t height = maps.size(2), width = maps.size(3);
  const int64_t channels = weight.size(1), n_inputs = inputs.size(0), n_outputs = outputs.size(0);
  const auto reach = [&](int side) { return dilation[side] * (kernel[side] - 1); };
  const auto length = [&](int side) {
    return (maps.size(2 + side) + 2 * padding[side] - reach(side) - 1) / stride[side] + 1;
  };
  const int64_t rows = length(0), columns = length(1);
  Tensor result = at::zeros({maps.size(0), channels, rows, columns}, at::kFloat);
  if (n_outputs == 0) return result;

  Phases phases;
  phases.height = rows + reach(0) / stride[0];
  phases.width = columns + reach(1) / stride[1];
  phases.size = phases.height * phases.width + reach(1) / stride[1];  // the last run ends past it
  const int64_t per_map = stride[0] * stride[1] * phases.size, run = rows * phases.width;
  const int64_t *input = inputs.const_data_ptr<int64_t>(), *output = outputs.const_data_ptr<int64_t>();

  const int64_t taps = kernel[0] * kernel[1], all_inputs = weight.size(2);
  const auto filters = std::make_unique_for_overwrite<float[]>(taps * n_outputs * n_inputs);
  const float* w = weight.const_data_ptr<float>();
  float* filter = filters.get();
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t i = 0; i < n_outputs; ++i, filter += n_inputs) {
      const float* own = w + (tap * channels + output[i]) * all_inputs;
      for (int64_t j = 0; j < n_inputs; ++j) filter[j] = own[input[j]];
    }

  std::vector<float> padded(n_inputs * per_map);
  const auto products = std::make_unique_for_overwrite<float[]>(n_outputs * run);
  if (n_inputs == 0) std::fill_n(products.get(), n_outputs * run, 0.0f);
  const auto factor = [](const std::optional<Tensor>& tensor) {
    return tensor ? tensor->const_data_ptr<float>() : nullptr;
  };
  const float *offsets = factor(bias), *scales = factor(scale), *shifts = factor(shift);
  for (int64_t image = 0; image < maps.size(0); ++image) {
    for (int64_t j = 0; j < n_inputs; ++j) {
      const float* from =
          maps.const_data_ptr<float>() + (image * maps.size(1) + input[j]) * height * width;
      for (int64_t y = 0; y < height; ++y, from += width) {
        const int64_t py = y + padding[0], row = py / stride[0];
        if (row >= phases.height) break;  // past what any output reads
        float* to = padded.data() + j * per_map + (py % stride[0]) * stride[1] * phases.size +
                    row * phases.width;
        if (stride[1] == 1) {
          std::copy_n(from, std::min(width, phases.width - padding[1]), to + padding[1]);
        } else {
          for (int64_t x = 0; x < width; ++x) {
            const int64_t px = x + padding[1];
            if (px / stride[1] < phases.width)
              to[(px % stride[1]) * phases.size + px / stride[1]] = from[x];
          }
        }
      }
    }
    for (int64_t tap = 0; n_inputs > 0 && tap < taps; ++tap) {
      const int64_t y = tap / kernel[1] * dilation[0], x = tap % kernel[1] * dilation[1];
      const float* read = padded.data() +
                          ((y % stride[0]) * stride[1] + x % stride[1]) * phases.size +
                          y / stride[0] * phases.width + x / stride[1];
      multiply(filters.get() + tap * n_outputs * n_inputs, read, products.get(), n_outputs,
               n_inputs, run, per_map, tap == 0);
    }
    for (int64_t i = 0; i < n_outputs; ++i) {
      const float offset = offsets ? offsets[output[i]] : 0, times = scales ? scales[i] : 1;
      const float plus = (shifts ? shifts[output[i]] : 0) + times * offset;
      const float* from = products.get() + i * run;
      float* to =
          result.mutable_data_ptr<float>() + (image * channels + output[i]) * rows * columns;
      for (int64_t y = 0; y < rows; ++y, from += phases.width, to += columns)
        for (int64_t x = 0; x < columns; ++x) to[x] = from[x] * times + plus;
    }
  }
  return result;
}

// Log-probabilities (n, classes) of logits, averaged with those before, of which `weight` is the share
// of the new ones; and how sure each row is: its largest probability, of which the second is taken
// away for the margin.
std::tuple<Tensor, Tensor> answer(
    const std::optional<Tensor>& before, const Tensor& logits, double weight, bool margin) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 1, "answer: logits of two classes or more");
  const Tensor given = logits.to(at::kFloat).contiguous();
  const int64_t n = given.size(0), classes = given.size(1);
  const Tensor earlier = before ? before->contiguous() : Tensor();
  Tensor answers = at::empty({n, classes}, at::kFloat), confidences = at::empty({n}, at::kFloat);
  const float* from = given.const_data_ptr<float>();
  const float* old = before ? earlier.const_data_ptr<float>() : nullptr;
  float* to = answers.mutable_data_ptr<float>();
  float* confidence = confidences.mutable_data_ptr<float>();
  const auto normalise = [classes](const float* values, float* result) {
    const float largest = *std::max_element(values, values + classes);
    float sum = 0;
    for (int64_t i = 0; i < classes; ++i) sum += std::exp(values[i] - largest);
    const float log_sum = largest + std::log(sum);
    for (int64_t i = 0; i < classes; ++i) result[i] = values[i] - log_sum;
  };
  for (int64_t row = 0; row < n; ++row, from += classes, to += classes, ++confidence) {
    normalise(from, to);
    if (old != nullptr) {
      for (int64_t i = 0; i < classes; ++i) to[i] = old[i] + float(weight) * (to[i] - old[i]);
      normalise(to, to);
      old += classes;
    }
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < classes; ++i) {
      second = std::max(second, std::min(first, to[i]));
      first = std::max(first, to[i]);
    }
    *confidence = std::exp(first) - (margin ? std::exp(second) : 0.0f);
  }
  return {answers, confidences};
}

}  // namespace

TORCH_LIBRARY(deciding, library) {
  library.def(
      "answer(Tensor? before, Tensor logits, float weight, bool margin) -> (Tensor, Tensor)");
  library.def(
      "gate(Tensor image, Tensor phi, Tensor rho, int most, bool strictly_above) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "conv_on(Tensor images, Tensor inputs, Tensor outputs, Tensor weight, Tensor? bias, "
      "Tensor? scale, Tensor? shift, int[2] kernel, int[2] stride, int[2] padding, "
      "int[2] dilation) -> Tensor");
  library.def("pooled(Tensor[] batches, int[] images, int channels) -> Tensor");
  library.def(
      "q_values(Tensor features, Tensor state, Tensor mean, Tensor deviation, "
      "Tensor encoder_weight, Tensor encoder_bias, Tensor input_weight, Tensor state_weight, "
      "Tensor input_bias, Tensor state_bias, Tensor decoder_weight, Tensor decoder_bias) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(deciding, CPU, library) {
  library.impl("answer", &answer);
  library.impl("gate", &gate);
  library.impl("conv_on", &conv_on);
  library.impl("pooled", &pooled);
  library.impl("q_values", &q_values);
}
