// Kernels of steps on a CPU: the experts of a layer, a linear layer, attention of sequences that decode.
//
// Weights stay as the model has them, [out, in] by rows: a product is C^T[out, tokens] = W[out, in] * X^T[in, tokens],
// so the rows of W are the left side as they lie and only the few tokens are rearranged. Products are torch's own small
// ones (oneDNN, with the matrix instructions of the processor); they accumulate in float32.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using at::Tensor;
using Vector = at::vec::Vectorized<float>;
constexpr int64_t TOKENS = 32;   // tokens of a product
constexpr int64_t OUTPUTS = 64;  // outputs of a product

// bfloat16 comes in pairs of neighbours along the depth, as the instructions want the right side of a product.
template <typename T>
constexpr int64_t pair = std::is_same_v<T, float> ? 1 : 2;

// Code is generated for each number of columns, so there are only a few: the columns past the tokens are zeros.
int64_t columns_for(int64_t tokens) {
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

// silu(gate) * value, in place of the gate.
void activate(float* gate, const float* value, int64_t size) {
  int64_t i = 0;
  for (; i + Vector::size() <= size; i += Vector::size()) {
    const auto g = Vector::loadu(gate + i);
    (g / (Vector(1.f) + g.neg().exp()) * Vector::loadu(value + i)).store(gate + i);
  }
  for (; i < size; ++i) gate[i] = gate[i] / (1.f + std::exp(-gate[i])) * value[i];
}

template <typename T>
struct Room {  // of one thread
  std::vector<T> right, inner;
  std::vector<float> c;
  Room(int64_t d, int64_t f) : right(TOKENS * d), inner(TOKENS * f), c(2 * OUTPUTS * TOKENS) {}
};

// One expert on up to TOKENS picks: tokens of `x` in, one row of `y` per pick out.
template <typename T>
void run_expert(const T* x, const T* up, const T* down, float* y, const int64_t* picks, int64_t tokens, int64_t top_k,
                int64_t d, int64_t f, Room<T>& room) {
  const int64_t columns = columns_for(tokens);
  T *right = room.right.data(), *inner = room.inner.data();
  float* c = room.c.data();
  if (columns > tokens) std::fill_n(right, d * columns, T(0));
  for (int64_t m = 0; m < tokens; ++m) turn(x + picks[m] / top_k * d, d, m, columns, right);
  for (int64_t j = 0; j < f; j += OUTPUTS) {
    const int64_t outputs = std::min(OUTPUTS, f - j);
    multiply(outputs, columns, d, up + j * d, right, c);
    multiply(outputs, columns, d, up + (f + j) * d, right, c + OUTPUTS * TOKENS);
    activate(c, c + OUTPUTS * TOKENS, outputs * columns);
    for (int64_t i = 0; i < outputs; i += pair<T>)
      for (int64_t m = 0; m < columns; ++m)
        for (int64_t k = 0; k < pair<T>; ++k)
          inner[((j + i) / pair<T> * columns + m) * pair<T> + k] = static_cast<T>(c[(i + k) * columns + m]);
  }
  for (int64_t j = 0; j < d; j += OUTPUTS) {
    const int64_t outputs = std::min(OUTPUTS, d - j);
    multiply(outputs, columns, f, down + j * f, inner, c);
    for (int64_t m = 0; m < tokens; ++m)
      for (int64_t i = 0; i < outputs; ++i) y[picks[m] * d + j + i] = c[i * columns + m];
  }
}

struct Work {
  int64_t expert, begin, tokens;
};

template <typename T>
void run_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& up, const Tensor& down,
                 Tensor& out) {
  const int64_t tokens = x.size(0), d = x.size(1), top_k = ids.size(1), experts = up.size(0), f = down.size(2);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  std::vector<int64_t> first(experts + 1, 0), order(tokens * top_k);
  for (int64_t p = 0; p < tokens * top_k; ++p)
    if (id[p] < experts) ++first[id[p] + 1];
  std::vector<Work> work;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t r = 0; r < first[e + 1]; r += TOKENS)
      work.push_back({e, first[e] + r, std::min(TOKENS, first[e + 1] - r)});
    first[e + 1] += first[e];
  }
  auto place = first;
  for (int64_t p = 0; p < tokens * top_k; ++p)
    if (id[p] < experts) order[place[id[p]]++] = p;
  auto y = at::empty({tokens * top_k, d}, x.options().dtype(at::kFloat));
  float* parts = y.mutable_data_ptr<float>();
  const T *data = x.const_data_ptr<T>(), *ups = up.const_data_ptr<T>(), *downs = down.const_data_ptr<T>();
  at::parallel_for(0, static_cast<int64_t>(work.size()), 1, [&](int64_t begin, int64_t end) {
    Room<T> room(d, f);
    for (int64_t w = begin; w < end; ++w)
      run_expert(data, ups + work[w].expert * 2 * f * d, downs + work[w].expert * f * d, parts,
                 order.data() + work[w].begin, work[w].tokens, top_k, d, f, room);
    at::native::cpublas::brgemm_release(pair<T> == 2);
  });
  // Summed in the order of the picks, so that the result does not depend on threads.
  const float* factor = weights.const_data_ptr<float>();
  T* result = out.mutable_data_ptr<T>();
  at::parallel_for(0, tokens, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(d);
    for (int64_t t = begin; t < end; ++t) {
      std::fill(sum.begin(), sum.end(), 0.f);
      for (int64_t p = t * top_k; p < (t + 1) * top_k; ++p)
        if (id[p] < experts)
          for (int64_t i = 0; i < d; ++i) sum[i] += factor[p] * parts[p * d + i];
      for (int64_t i = 0; i < d; ++i) result[t * d + i] = static_cast<T>(sum[i]);
    }
  });
}

Tensor experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& up, const Tensor& down) {
  auto input = x.contiguous(), out = at::empty_like(input);
  auto picks = ids.contiguous(), factors = weights.to(at::kFloat).contiguous();
  if (x.scalar_type() == at::kBFloat16) run_experts<at::BFloat16>(input, picks, factors, up, down, out);
  else run_experts<float>(input, picks, factors, up, down, out);
  return out;
}

template <typename T>
void run_linear(const Tensor& x, const Tensor& weight, Tensor& out) {
  const int64_t rows = x.size(0), depth = x.size(1), width = weight.size(0);
  const T *data = x.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  for (int64_t r = 0; r < rows; r += TOKENS) {
    const int64_t tokens = std::min(TOKENS, rows - r), columns = columns_for(tokens);
    std::vector<T> right(depth * columns, T(0));
    for (int64_t m = 0; m < tokens; ++m) turn(data + (r + m) * depth, depth, m, columns, right.data());
    at::parallel_for(0, (width + OUTPUTS - 1) / OUTPUTS, 4, [&](int64_t begin, int64_t end) {
      std::vector<float> c(OUTPUTS * columns);
      for (int64_t j = begin * OUTPUTS; j < std::min(end * OUTPUTS, width); j += OUTPUTS) {
        const int64_t outputs = std::min(OUTPUTS, width - j);
        multiply(outputs, columns, depth, w + j * depth, right.data(), c.data());
        for (int64_t m = 0; m < tokens; ++m)
          for (int64_t i = 0; i < outputs; ++i)
            result[(r + m) * width + j + i] = static_cast<T>(c[i * columns + m]);
      }
      at::native::cpublas::brgemm_release(pair<T> == 2);
    });
  }
}

Tensor linear(const Tensor& x, const Tensor& weight) {
  auto sizes = x.sizes().vec();
  auto input = x.contiguous().view({-1, sizes.back()});
  sizes.back() = weight.size(0);
  auto out = at::empty({input.size(0), sizes.back()}, x.options());
  if (x.scalar_type() == at::kBFloat16) run_linear<at::BFloat16>(input, weight, out);
  else run_linear<float>(input, weight, out);
  return out.view(sizes);
}

// One sequence and group: `share` heads read the same keys and values. `slots`: where these lie.
template <typename T>
void attend(const T* query, const T* key, const T* value, const int64_t* slots, int64_t num, int64_t groups,
            int64_t share, int64_t dim, int64_t width, float scale, float* own, float* score, float* sum, T* out) {
  for (int64_t n = 0; n < share * dim; ++n) own[n] = static_cast<float>(query[n]) * scale;
  for (int64_t n = 0; n < num; ++n) {
    const T* one = key + slots[n] * groups * dim;
    for (int64_t h = 0; h < share; ++h) {
      float dot = 0;
      for (int64_t x = 0; x < dim; ++x) dot += own[h * dim + x] * static_cast<float>(one[x]);
      score[h * num + n] = dot;
    }
  }
  for (int64_t h = 0; h < share; ++h) {
    float *row = score + h * num, total = 0;
    const float top = *std::max_element(row, row + num);
    int64_t n = 0;
    for (; n + Vector::size() <= num; n += Vector::size()) (Vector::loadu(row + n) - Vector(top)).exp().store(row + n);
    for (; n < num; ++n) row[n] = std::exp(row[n] - top);
    for (n = 0; n < num; ++n) total += row[n];
    for (n = 0; n < num; ++n) row[n] /= total;
  }
  std::fill_n(sum, share * width, 0.f);
  for (int64_t n = 0; n < num; ++n) {
    const T* one = value + slots[n] * groups * width;
    for (int64_t h = 0; h < share; ++h) {
      const float weight = score[h * num + n];
      for (int64_t x = 0; x < width; ++x) sum[h * width + x] += weight * static_cast<float>(one[x]);
    }
  }
  for (int64_t n = 0; n < share * width; ++n) out[n] = static_cast<T>(sum[n]);
}

template <typename T>
void run_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& pages,
                   const Tensor& keys, float scale, int64_t page, Tensor& out) {
  const int64_t heads = query.size(1), dim = query.size(2), groups = key.size(1), width = value.size(2);
  const int64_t share = heads / groups, most = pages.size(1) * page;
  const int64_t *table = pages.const_data_ptr<int64_t>(), *num_keys = keys.const_data_ptr<int64_t>();
  const T *q = query.const_data_ptr<T>(), *k = key.const_data_ptr<T>(), *v = value.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  at::parallel_for(0, query.size(0) * groups, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> score(share * most), own(share * dim), sum(share * width);
    std::vector<int64_t> slots(most);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups, g = i % groups, first = b * heads + g * share;
      for (int64_t n = 0; n < num_keys[b]; ++n) slots[n] = table[b * pages.size(1) + n / page] * page + n % page;
      attend(q + first * dim, k + g * dim, v + g * width, slots.data(), num_keys[b], groups, share, dim, width, scale,
             own.data(), score.data(), sum.data(), result + first * width);
    }
  });
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& pages, const Tensor& keys,
                 double scale, int64_t page) {
  auto input = query.contiguous();
  auto out = at::empty({query.size(0), query.size(1), value.size(2)}, query.options());
  const auto by = static_cast<float>(scale);
  if (query.scalar_type() == at::kBFloat16) run_attention<at::BFloat16>(input, key, value, pages, keys, by, page, out);
  else run_attention<float>(input, key, value, pages, keys, by, page, out);
  return out;
}

}  // namespace

TORCH_LIBRARY(moeprof_cpu, m) {
  m.def("experts(Tensor x, Tensor ids, Tensor weights, Tensor up, Tensor down) -> Tensor");
  m.def("linear(Tensor x, Tensor weight) -> Tensor");
  m.def("attention(Tensor query, Tensor key, Tensor value, Tensor pages, Tensor keys, float scale, int page) -> Tensor");
}
TORCH_LIBRARY_IMPL(moeprof_cpu, CPU, m) {
  m.impl("experts", experts);
  m.impl("linear", linear);
  m.impl("attention", attention);
}
