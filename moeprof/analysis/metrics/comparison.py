"""Figures that no run alone has: between two runs, between the models of one, along a ladder of twins.

They are worked out in analysis/compare, analysis/sparsity and analysis/regress.
"""

from __future__ import annotations

from functools import partial

from moeprof.core.metric import Card

_POISSON = "conditional test of two Poisson rates (Przyborowski and Wilenski 1940), Bonferroni"
_card = partial(Card, section="comparison")
_counted = partial(_card, kind="routing")
_timed = partial(_card, kind="timed", counts_tokens=True)
_ladder = partial(_timed, source="docs/metrics.md#ladder")
CARDS: tuple[Card, ...] = (
    _counted("routing_agreement_ratio_worst", "Routing agreement of two runs, worst layer", "ratio", "higher",
          "mean of shared picks / k over tokens that both runs processed, lowest of the layers",
          source="docs/metrics.md#router"),
    _counted("router_drift_js_worst", "Router drift between runs, worst layer", "ratio", "lower",
          "Jensen-Shannon divergence (base 2) of q, one run against another, largest of the layers", source="Lin 1991"),
    _counted("dead_experts_gained", "Experts newly dead", "experts", "lower",
          "experts with tokens in the reference and none now, total over layers; where weights differ only those "
          "beyond chance: share^n_e < 0.01 / experts of all layers, share = the reference's part of all picks",
          source=_POISSON),
    _counted("nearly_dead_experts_gained", "Experts newly nearly dead", "experts", "lower",
          "experts that fell below 0.1 mu (the dead among them), total over layers; where weights differ only those "
          "beyond chance, as for dead_experts_gained",
          source=_POISSON),
    _counted("router_load_max_over_mean_rise", "Rise of the busiest expert over mean", "ratio", "lower",
          "max n_e / mu now - in the reference, largest of the layers", source="docs/metrics.md#router"),
    _counted("router_entropy_ratio_fall", "Fall of the load entropy", "ratio", "lower",
          "router_entropy_ratio in the reference - now, largest of the layers", source="docs/metrics.md#router"),
    _counted("domain_total_variation_fall", "Specialisation lost", "ratio", "neither",
          "total variation of q between two classes, mean over pairs: in the reference - now, mean over layers",
          source="docs/metrics.md#router"),
    _counted("router_margin_p05_fall", "Fall of the routing margin", "ratio", "lower",
          "5th percentile of p_(k) - p_(k+1) in the reference - now, mean over layers",
          source="docs/metrics.md#router"),
    _timed("lockstep_ratio", "step time ratio, stepped in turn", "ratio", "neither",
          "sum of step times / sum of the other model's step times, same steps, per phase",
          source="docs/metrics.md#lock-step-pairs"),
    _timed("lockstep_median_ratio", "median step time ratio, stepped in turn", "ratio", "neither",
          "median over steps of step time / the other model's step time, same steps, per phase",
          source="docs/metrics.md#lock-step-pairs"),
    _ladder("dispatch_tax_s", "dispatch tax per step", "s", "lower",
          "MoE with all tokens on the same k experts - active-matched dense twin, mean seconds per step"),
    _ladder("coverage_tax_s", "coverage tax per step", "s", "lower",
          "MoE with each step's number of distinct experts under even load - all tokens on the same k experts"),
    _ladder("imbalance_tax_s", "imbalance tax per step", "s", "lower",
          "MoE with recorded routing - as many distinct experts under even load; signed"),
    _ladder("sparsity_saved_s", "saved by sparsity per step", "s", "higher",
          "total-matched dense twin - MoE with recorded routing, mean seconds per step"),
    _ladder("sparsity_promised_s", "saving between the two dense twins per step", "s", "neither",
          "total-matched dense twin - active-matched dense twin, mean seconds per step"),
    _ladder("override_cost_s", "cost of overriding the router per step", "s", "neither",
          "MoE with recorded routing through the override - MoE under its own router, the same picks; signed"),
    _ladder("seconds_per_distinct_expert", "one more distinct expert in every MoE layer", "s", "lower",
          "least-squares slope of seconds per step on distinct experts per MoE layer, set by override at equal T"),
    _timed("sparsity_realised_ratio", "share of the saving between the two dense twins that is realised", "ratio",
          "higher", "(cost(total-matched) - cost(MoE)) / (cost(total-matched) - cost(active-matched)), at one load and "
          "in the phases that its labels name",
          source="docs/metrics.md#sparsity"),
    _timed("dense_equivalent_params", "dense-equivalent size", "parameters", "lower",
          "total parameters of the dense twin with the MoE's cost, by log-log interpolation over >= 3 sizes",
          source="docs/metrics.md#sparsity"),
    _counted("theoretical_speedup", "speedup bound by counting", "ratio", "neither",
          "dense model's FLOPs, bytes or roofline seconds per token / the MoE's, on the batches that ran",
          source="docs/metrics.md#sparsity"),
    _timed("measured_speedup", "speedup that was measured", "ratio", "neither",
          "dense model's step seconds per token / the MoE's, same requests, paired by round",
          source="docs/metrics.md#sparsity"),
    _timed("one_token_step_ratio", "decode step of one token, MoE / dense", "ratio", "lower",
          "mean seconds of the MoE's decode steps of one token / the dense model's, paired by round",
          source="docs/metrics.md#sparsity"),
    _counted("flops_per_token", "FLOPs per token", "FLOP", "lower",
          "sum of FLOPs / sum of tokens, over the steps of a phase", source="docs/metrics.md#work"),
    _counted("bytes_per_token", "bytes moved per token", "B", "lower",
          "sum of bytes / sum of tokens, over the steps of a phase", source="docs/metrics.md#work"),
    _counted("roofline_s_per_token", "roofline time per token", "s", "lower",
          "sum of max(bytes / peak bandwidth, FLOPs / peak rate) / sum of tokens, measured peaks",
          source="docs/metrics.md#work"),
    _timed("step_s_per_token", "step time per token", "s", "lower",
          "sum of step times / sum of tokens, over the steps of a phase", source="docs/metrics.md#time",
          needs="steps"),
    _timed("crossover_batch", "load at which the MoE stops or starts being cheaper", "requests", "neither",
          "load where dollars per 1M tokens, MoE / dense, are 1: a line in log ratio against log load",
          source="docs/metrics.md#sparsity"),
    _timed("tokens_per_s_per_user", "tokens per second and user", "tokens/s", "higher",
          "1 / mean gap between output tokens of a request", source="docs/metrics.md#time"),
    _card("used_bytes_per_token", "weight bytes that one token uses", "B", "lower",
          "weights - routed experts * (1 - k / E), bytes as stored", source="docs/metrics.md#parameters", kind="exact"),
    _card("weights_over_used_bytes_ratio", "weights held / used by a token", "ratio", "lower",
          "weights_bytes / used_bytes_per_token", source="docs/metrics.md#parameters", kind="exact"),
    _ladder("dispatch_tax_usd_per_1m_tokens", "dispatch tax per 1M tokens", "USD / 1M tokens", "lower",
          "1e6 * dispatch_tax_s * usd_per_second / tokens per step"),
    _ladder("coverage_tax_usd_per_1m_tokens", "coverage tax per 1M tokens", "USD / 1M tokens", "lower",
          "1e6 * coverage_tax_s * usd_per_second / tokens per step"),
    _ladder("imbalance_tax_usd_per_1m_tokens", "imbalance tax per 1M tokens", "USD / 1M tokens", "lower",
          "1e6 * imbalance_tax_s * usd_per_second / tokens per step"),
    _ladder("sparsity_saved_usd_per_1m_tokens", "saved by sparsity per 1M tokens", "USD / 1M tokens", "higher",
          "1e6 * sparsity_saved_s * usd_per_second / tokens per step"),
    _ladder("rung_step_s", "step time of a rung", "s", "lower",
          "mean wall time of a step under the rung's routing, same steps in every rung"),
)  # fmt: skip
