// Attention of sequences that decode: over pages, and the whole block from hidden states to hidden states.
#include "products.h"

namespace moeprof {
namespace {

// Where keys and values of the step's sequences lie. `pages` [B, P] page numbers, `keys` [B] keys of each.
struct Places {
  const Tensor own_pages, own_keys;
  const int64_t *pages, *keys;
  int64_t width, page;
  Places(const Tensor& all_pages, const Tensor& num_keys, int64_t page)
      : own_pages(all_pages.contiguous()), own_keys(num_keys.contiguous()),
        pages(own_pages.const_data_ptr<int64_t>()), keys(own_keys.const_data_ptr<int64_t>()),
        width(all_pages.size(1)), page(page) {}
  void list(int64_t b, std::vector<int64_t>& slots) const {
    for (int64_t n = 0, p = b * width; n < keys[b]; ++p)
      for (int64_t i = 0; i < page && n < keys[b]; ++i, ++n) slots[n] = pages[p] * page + i;
  }
};

inline float widen(float x) { return x; }
inline float widen(at::BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }

template <typename T>
void gather(const T* rows, const int64_t* slots, int64_t num, int64_t stride, int64_t width, float* out) {
  for (int64_t n = 0; n < num; ++n)
    for (int64_t x = 0; x < width; ++x) out[n * width + x] = widen(rows[slots[n] * stride + x]);
}

// Sums stay in registers: their number is fixed, and nothing is stored on the way.
float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t lanes = 16;
  float part[lanes] = {}, sum = 0;
  int64_t x = 0;
  for (; x + lanes <= size; x += lanes)
    for (int64_t i = 0; i < lanes; ++i) part[i] += a[x + i] * b[x + i];
  for (; x < size; ++x) sum += a[x] * b[x];
  for (int64_t i = 0; i < lanes; ++i) sum += part[i];
  return sum;
}

void weigh(const float* weight, const float* rows, int64_t num, int64_t width, float* out) {
  constexpr int64_t lanes = 32;
  int64_t x = 0;
  for (; x + lanes <= width; x += lanes) {
    float part[lanes] = {};
    for (int64_t n = 0; n < num; ++n)
      for (int64_t i = 0; i < lanes; ++i) part[i] += weight[n] * rows[n * width + x + i];
    std::copy_n(part, lanes, out + x);
  }
  for (; x < width; ++x) {
    float sum = 0;
    for (int64_t n = 0; n < num; ++n) sum += weight[n] * rows[n * width + x];
    out[x] = sum;
  }
}

struct Space {  // of one thread
  std::vector<float> own, keys, values, score, sum;
  std::vector<int64_t> slots;
  Space(int64_t most, int64_t dim, int64_t width)
      : own(dim), keys(most * dim), values(most * width), score(most), sum(width), slots(most) {}
};

// One sequence and group: `share` heads read the same keys and values, widened once.
template <typename T>
void attend(const T* query, const T* key, const T* value, int64_t num, int64_t groups, int64_t share, int64_t dim,
            int64_t width, float scale, Space& space, T* out) {
  gather(key, space.slots.data(), num, groups * dim, dim, space.keys.data());
  gather(value, space.slots.data(), num, groups * width, width, space.values.data());
  float *own = space.own.data(), *row = space.score.data(), *sum = space.sum.data();
  for (int64_t h = 0; h < share; ++h) {
    for (int64_t x = 0; x < dim; ++x) own[x] = widen(query[h * dim + x]) * scale;
    for (int64_t n = 0; n < num; ++n) {
      row[n] = dot(own, space.keys.data() + n * dim, dim);
    }
    const float top = *std::max_element(row, row + num);
    float total = 0;
    int64_t n = 0;
    for (; n + Vector::size() <= num; n += Vector::size()) (Vector::loadu(row + n) - Vector(top)).exp().store(row + n);
    for (; n < num; ++n) row[n] = std::exp(row[n] - top);
    for (n = 0; n < num; ++n) total += row[n];
    weigh(row, space.values.data(), num, width, sum);
    for (int64_t x = 0; x < width; ++x) out[h * width + x] = static_cast<T>(sum[x] / total);
  }
}

template <typename T>
void run_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Places& places, float scale,
                   Tensor& out) {
  const int64_t heads = query.size(1), dim = query.size(2), groups = key.size(1), width = value.size(2);
  const int64_t share = heads / groups, most = places.width * places.page;
  const T *q = query.const_data_ptr<T>(), *k = key.const_data_ptr<T>(), *v = value.const_data_ptr<T>();
  T* result = out.mutable_data_ptr<T>();
  at::parallel_for(0, query.size(0) * groups, 8, [&](int64_t begin, int64_t end) {
    Space space(most, dim, width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups, g = i % groups, first = b * heads + g * share;
      places.list(b, space.slots);
      attend(q + first * dim, k + g * dim, v + g * width, places.keys[b], groups, share, dim, width, scale, space,
             result + first * width);
    }
  });
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& pages, const Tensor& keys,
                 double scale, int64_t page) {
  auto input = query.contiguous();
  auto out = at::empty({query.size(0), query.size(1), value.size(2)}, query.options());
  const Places places(pages, keys, page);
  const auto by = static_cast<float>(scale);
  if (query.scalar_type() == at::kBFloat16) run_attention<at::BFloat16>(input, key, value, places, by, out);
  else run_attention<float>(input, key, value, places, by, out);
  return out;
}

// One head: its norm, then its rotation by the angles of its token, in place. Rounded where the model rounds.
template <typename T>
void place_head(T* head, int64_t dim, const T* norm, float eps, const T* cos, const T* sin) {
  if (norm != nullptr) normalise(head, norm, dim, eps, head);
  const int64_t half = dim / 2;
  auto round = [](float x) { return static_cast<float>(static_cast<T>(x)); };
  for (int64_t i = 0; i < half; ++i) {
    const float low = head[i], high = head[half + i];
    head[i] = static_cast<T>(round(low * cos[i]) - round(high * sin[i]));
    head[half + i] = static_cast<T>(round(high * cos[half + i]) + round(low * sin[half + i]));
  }
}

struct Block {  // what a block of attention is made of
  Tensor q, k, v, o, q_norm, k_norm;
};

template <typename T>
void run_block(const Tensor& x, const Block& block, float eps, const Tensor& cos, const Tensor& sin, Tensor& key,
               Tensor& value, const Tensor& slots, const Places& places, float scale, Tensor& out) {
  const int64_t seqs = x.size(0), d = x.size(1), groups = key.size(1), dim = key.size(2), width = value.size(2);
  const int64_t heads = block.q.size(0) / dim, share = heads / groups, most = places.width * places.page;
  std::vector<T> q(seqs * heads * dim), k(seqs * groups * dim), v(seqs * groups * width), mixed(seqs * heads * width);
  const int64_t q_blocks = blocks_of(heads * dim), k_blocks = blocks_of(groups * dim);
  const int64_t v_blocks = blocks_of(groups * width);
  for (int64_t r = 0; r < seqs; r += TOKENS) {
    const Right<T> right(x.const_data_ptr<T>() + r * d, std::min(TOKENS, seqs - r), d);
    at::parallel_for(0, q_blocks + k_blocks + v_blocks, 4, [&](int64_t begin, int64_t end) {
      auto part = [&](const Tensor& weight, std::vector<T>& to, int64_t first, int64_t num) {
        const int64_t a = std::max(begin - first, int64_t(0)), z = std::min(end - first, num), wide = weight.size(0);
        if (a < z) linear_blocks(right, weight.const_data_ptr<T>(), wide, a, z, to.data() + r * wide);
      };
      part(block.q, q, 0, q_blocks);
      part(block.k, k, q_blocks, k_blocks);
      part(block.v, v, q_blocks + k_blocks, v_blocks);
      at::native::cpublas::brgemm_release(pair<T> == 2);
    });
  }
  auto pointer = [](const Tensor& one) { return one.numel() ? one.const_data_ptr<T>() : nullptr; };
  T *keys = key.mutable_data_ptr<T>(), *values = value.mutable_data_ptr<T>();
  at::parallel_for(0, seqs * groups, 8, [&](int64_t begin, int64_t end) {
    Space space(most, dim, width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups, g = i % groups, first = b * heads + g * share;
      const int64_t slot = slots.const_data_ptr<int64_t>()[b] * groups + g;
      const T *c = cos.const_data_ptr<T>() + b * dim, *s = sin.const_data_ptr<T>() + b * dim;
      place_head(k.data() + i * dim, dim, pointer(block.k_norm), eps, c, s);
      std::copy_n(k.data() + i * dim, dim, keys + slot * dim);
      std::copy_n(v.data() + i * width, width, values + slot * width);
      for (int64_t h = first; h < first + share; ++h)
        place_head(q.data() + h * dim, dim, pointer(block.q_norm), eps, c, s);
      places.list(b, space.slots);
      attend(q.data() + first * dim, keys + g * dim, values + g * width, places.keys[b], groups, share, dim, width,
             scale, space, mixed.data() + first * width);
    }
  });
  for (int64_t r = 0; r < seqs; r += TOKENS) {
    const Right<T> right(mixed.data() + r * heads * width, std::min(TOKENS, seqs - r), heads * width);
    at::parallel_for(0, blocks_of(d), 4, [&](int64_t begin, int64_t end) {
      linear_blocks(right, block.o.const_data_ptr<T>(), d, begin, end, out.mutable_data_ptr<T>() + r * d);
      at::native::cpublas::brgemm_release(pair<T> == 2);
    });
  }
}

Tensor decode_block(const Tensor& x, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                    const Tensor& q_norm, const Tensor& k_norm, double eps, const Tensor& cos, const Tensor& sin,
                    Tensor key, Tensor value, const Tensor& slots, const Tensor& pages, const Tensor& keys,
                    double scale, int64_t page) {
  auto input = x.contiguous(), out = at::empty_like(input), c = cos.contiguous(), s = sin.contiguous();
  const auto to = slots.contiguous();
  TORCH_CHECK(key.is_contiguous() && value.is_contiguous(), "the cache must be contiguous");
  const Block block{q, k, v, o, q_norm, k_norm};
  const Places places(pages, keys, page);
  const auto e = static_cast<float>(eps), by = static_cast<float>(scale);
  if (x.scalar_type() == at::kBFloat16)
    run_block<at::BFloat16>(input, block, e, c, s, key, value, to, places, by, out);
  else run_block<float>(input, block, e, c, s, key, value, to, places, by, out);
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moeprof_cpu, m) {
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor pages, Tensor keys, float scale, int page) -> "
      "Tensor");
  m.def(
      "decode_block(Tensor x, Tensor q, Tensor k, Tensor v, Tensor o, Tensor q_norm, Tensor k_norm, float eps, "
      "Tensor cos, Tensor sin, Tensor(a!) key, Tensor(b!) value, Tensor slots, Tensor pages, Tensor keys, float scale, "
      "int page) -> Tensor");
}
TORCH_LIBRARY_IMPL(moeprof_cpu, CPU, m) {
  m.impl("attention", attention);
  m.impl("decode_block", decode_block);
}

}  // namespace moeprof
