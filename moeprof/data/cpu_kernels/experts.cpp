// The experts of a layer, a linear layer and a norm.
#include "products.h"

namespace moeprof {
namespace {

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
  for (int64_t r = 0; r < rows; r += TOKENS) {
    const Right<T> right(x.const_data_ptr<T>() + r * depth, std::min(TOKENS, rows - r), depth);
    T* result = out.mutable_data_ptr<T>() + r * width;
    at::parallel_for(0, blocks_of(width), 4, [&](int64_t begin, int64_t end) {
      linear_blocks(right, weight.const_data_ptr<T>(), width, begin, end, result);
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

template <typename T>
void run_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) {
  const int64_t size = weight.numel();
  at::parallel_for(0, x.numel() / size, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      normalise(x.const_data_ptr<T>() + r * size, weight.const_data_ptr<T>(), size, eps,
                out.mutable_data_ptr<T>() + r * size);
  });
}

Tensor norm(const Tensor& x, const Tensor& weight, double eps) {
  auto input = x.contiguous(), out = at::empty_like(input);
  if (x.scalar_type() == at::kBFloat16) run_norm<at::BFloat16>(input, weight, static_cast<float>(eps), out);
  else run_norm<float>(input, weight, static_cast<float>(eps), out);
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moeprof_cpu, m) {
  m.def("experts(Tensor x, Tensor ids, Tensor weights, Tensor up, Tensor down) -> Tensor");
  m.def("linear(Tensor x, Tensor weight) -> Tensor");
  m.def("norm(Tensor x, Tensor weight, float eps) -> Tensor");
}
TORCH_LIBRARY_IMPL(moeprof_cpu, CPU, m) {
  m.impl("experts", experts);
  m.impl("linear", linear);
  m.impl("norm", norm);
}

}  // namespace moeprof
