// What decides how much of a conv is computed, without torch's cost of some microseconds for each
// small operation: for a single image that is more than the products themselves take.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>

using at::Tensor;

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
// rnp.decision.DecisionNetwork gives them.
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

}  // namespace

TORCH_LIBRARY(rnp, library) {
  library.def("pooled(Tensor[] batches, int[] images, int channels) -> Tensor");
  library.def(
      "q_values(Tensor features, Tensor state, Tensor mean, Tensor deviation, "
      "Tensor encoder_weight, Tensor encoder_bias, Tensor input_weight, Tensor state_weight, "
      "Tensor input_bias, Tensor state_bias, Tensor decoder_weight, Tensor decoder_bias) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(rnp, CPU, library) {
  library.impl("pooled", &pooled);
  library.impl("q_values", &q_values);
}
