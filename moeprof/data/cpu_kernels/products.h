// Products of weights with the few tokens of a step.
//
// Weights stay as the model has them, [out, in] by rows: a product is C^T[out, tokens] = W[out, in] * X^T[in, tokens],
// so the rows of W are the left side as they lie and only the few tokens are rearranged. Products are torch's own small
// ones (oneDNN, with the matrix instructions of the processor); they accumulate in float32.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace moeprof {

using at::Tensor;
using Vector = at::vec::Vectorized<float>;
constexpr int64_t TOKENS = 32;   // tokens of a product
constexpr int64_t OUTPUTS = 64;  // outputs of a product

// bfloat16 comes in pairs of neighbours along the depth, as the instructions want the right side of a product.
template <typename T>
constexpr int64_t pair = std::is_same_v<T, float> ? 1 : 2;

// Code is generated for each number of columns, so there are only a few: the columns past the tokens are zeros.
inline int64_t columns_for(int64_t tokens) {
  int64_t columns = 1;
  while (columns < tokens) columns *= 2;
  return columns;
}

template <typename T>
void multiply(int64_t outputs, int64_t columns, int64_t depth, const T* weight, const T* right, float* c) {
  at::native::cpublas::brgemm(outputs, columns, depth, depth, columns, columns, false, weight, right, c, pair<T> == 2);
}

// Place of (depth k, column m) on the right side of a product.
template <typename T>
void turn(const T* row, int64_t depth, int64_t m, int64_t columns, T* right) {
  for (int64_t k = 0; k < depth; k += pair<T>)
    for (int64_t i = 0; i < pair<T>; ++i) right[(k / pair<T> * columns + m) * pair<T> + i] = row[k + i];
}

// Up to TOKENS rows of x, turned to the right side of a product.
template <typename T>
struct Right {
  int64_t tokens, columns, depth;
  std::vector<T> data;
  Right(const T* x, int64_t tokens, int64_t depth)
      : tokens(tokens), columns(columns_for(tokens)), depth(depth), data(depth * columns, T(0)) {
    for (int64_t m = 0; m < tokens; ++m) turn(x + m * depth, depth, m, columns, data.data());
  }
};

// out[token, j] = W[j] * x[token] for the outputs of blocks `begin` to `end`.
template <typename T>
void linear_blocks(const Right<T>& x, const T* weight, int64_t width, int64_t begin, int64_t end, T* out) {
  std::vector<float> c(OUTPUTS * x.columns);
  for (int64_t j = begin * OUTPUTS; j < std::min(end * OUTPUTS, width); j += OUTPUTS) {
    const int64_t outputs = std::min(OUTPUTS, width - j);
    multiply(outputs, x.columns, x.depth, weight + j * x.depth, x.data.data(), c.data());
    for (int64_t m = 0; m < x.tokens; ++m)
      for (int64_t i = 0; i < outputs; ++i) out[m * width + j + i] = static_cast<T>(c[i * x.columns + m]);
  }
}

inline int64_t blocks_of(int64_t width) { return (width + OUTPUTS - 1) / OUTPUTS; }

// x / rms(x) * weight, rounded where the model rounds: before the weight and after it.
template <typename T>
void normalise(const T* x, const T* weight, int64_t size, float eps, T* out) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  const float by = 1.f / std::sqrt(sum / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; ++i) {
    const float scaled = static_cast<float>(static_cast<T>(static_cast<float>(x[i]) * by));
    out[i] = static_cast<T>(static_cast<float>(weight[i]) * scaled);
  }
}

}  // namespace moeprof
