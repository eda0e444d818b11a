"""Cards of METRICS section 3: the router. n_e = tokens of expert e, N = sum n_e, mu = N/E, q = n/N."""

from __future__ import annotations

from moeprof.core.metric import Better, Card

_RULE = "moeprof METRICS 3"


def _card(
    name: str,
    title: str,
    formula: str,
    *,
    unit: str = "ratio",
    better: Better = "lower",
    source: str = _RULE,
    headline: bool = False,
    section: str = "routing",
) -> Card:
    return Card(
        name=name,
        title=title,
        unit=unit,
        better=better,
        formula=formula,
        source=source,
        section=section,
        headline=headline,
    )


_BETWEEN = "comparison"  # figures that no run alone reports
_MAX_OVER_MEAN = "max n_e / mu over the window, mean over layers; at most E/k"
_SHIFT_NULL = "beside permutation and multinomial nulls"
CARDS: tuple[Card, ...] = (
    _card(
        "router_load_max_over_mean",
        "Busiest expert over mean",
        _MAX_OVER_MEAN,
        source="MaxVio + 1 (arXiv 2408.15664)",
        headline=True,
    ),
    _card(
        "router_load_max_over_mean_worst",
        "Busiest expert over mean, worst layer",
        "max n_e / mu over the window, largest of the layers; null: the largest of as many uniform layers",
        source="MaxVio + 1 (arXiv 2408.15664)",
    ),
    _card(
        "step_load_max_over_mean",
        "Busiest expert over mean, per step",
        "max_e n_e / (T*k/E) per step and layer, mean over layers and steps, each step once; n = steps, of which "
        "neighbours share requests",
    ),
    _card("router_load_cv", "Load CV", "population std(n) / mu, mean over layers", source="Shazeer et al. 2017"),
    _card("router_entropy_ratio", "Load entropy", "-sum q ln q / ln E, mean over layers", better="higher"),
    _card("router_gini", "Load Gini", "Gini coefficient of n, mean over layers", source="Gini 1912"),
    _card(
        "router_jain", "Load fairness", "1 / (1 + CV^2), mean over layers", better="higher", source="Jain et al. 1984"
    ),
    _card(
        "effective_experts",
        "Effective experts",
        "exp(-sum q ln q), mean over layers",
        unit="experts",
        better="higher",
        source="Hill number of order 1",
    ),
    _card(
        "dead_experts", "Dead experts", "experts with n_e = 0, mean over layers; by chance E*(1-k/E)^T", unit="experts"
    ),
    _card(
        "top_decile_load_ratio", "Load of the busiest tenth", "share of assignments of the busiest ceil(E/10) experts"
    ),
    _card(
        "distinct_experts_per_step",
        "Distinct experts per step",
        "experts with a token in a step and layer, mean over layers and steps; nulls: uniform E*(1-(1-k/E)^T), "
        "marginal sum_e 1 - C(N-n_e,T)/C(N,T); n = steps, of which neighbours share requests",
        unit="experts",
        headline=True,
    ),
    _card("experts_touched_ratio", "Experts touched per step", "distinct_experts_per_step / E"),
    _card(
        "expert_reuse_ratio",
        "Tokens per expert fetched",
        "sum over steps of T*k / sum of distinct experts",
        unit="tokens",
        better="higher",
    ),
    _card(
        "capacity_factor_for_1pct_drop",
        "Capacity factor for 1 % drops",
        "smallest c with sum over steps and experts of max(0, n_se - ceil(c*T_s*k/E)) <= 1 % of N",
        source="capacity as in Switch Transformer (arXiv 2101.03961), counted per step",
    ),
    _card("realised_drop_ratio", "Dropped picks", "picks routed but not executed / all picks"),
    _card("identity_pick_ratio", "Identity picks", "picks of zero-computation experts / all picks", better="neither"),
    *(
        _card(
            f"hot_set_experts_{percent}",
            f"Experts that serve {percent} %",
            f"fewest experts of all layers that take {percent} % of assignments",
            unit="experts",
        )
        for percent in (90, 99)
    ),
    _card(
        "router_drift_js",
        "Router drift",
        "Jensen-Shannon divergence (base 2) of q, first against second half of a run, or one run against another, mean "
        f"over layers; {_SHIFT_NULL}",
        better="neither",
        source="Lin 1991",
    ),
    _card("router_drift_js_p", "Router drift, p", "larger p of the two nulls", better="neither"),
    _card(
        "domain_specialisation",
        "Specialisation of a class",
        f"total variation of the class's q against all classes together, mean over layers; {_SHIFT_NULL}",
        better="neither",
    ),
    _card("domain_specialisation_p", "Specialisation, p", "larger p of the two nulls", better="neither"),
    _card(
        "domain_total_variation",
        "Distance between classes",
        f"total variation of q between two classes, mean over pairs and layers; {_SHIFT_NULL}",
        better="neither",
    ),
    _card("domain_total_variation_p", "Distance between classes, p", "larger p of the two nulls", better="neither"),
    _card(
        "coactivation",
        "Co-activation",
        "sum_i max_j N_ij / sum_i N_i: share of an expert's tokens that its most frequent partner takes too, mean over "
        "layers; nulls: uniform router, and all picks dealt anew among tokens",
        better="neither",
    ),
    _card(
        "consecutive_same_top1_ratio",
        "Same first expert as the token before",
        "share of consecutive tokens of a sequence; n = sequences; uniform null 1/E",
        better="neither",
        source="Mixtral of Experts (arXiv 2401.04088), table 5",
    ),
    _card(
        "consecutive_overlap_ratio",
        "Any expert shared with the token before",
        "share of consecutive tokens of a sequence; n = sequences; uniform null 1 - C(E-k,k)/C(E,k)",
        better="neither",
        source="Mixtral of Experts (arXiv 2401.04088), table 5",
    ),
    *(
        _card(
            f"router_margin_p{percent:02}",
            f"Routing margin, {word}",
            f"{percent}th percentile of p_(k) - p_(k+1) of the gate's selection scores, over forced tokens and layers "
            "whose picks those scores give",
            better="higher",
        )
        for percent, word in ((5, "5th percentile"), (50, "median"))
    ),
    _card(
        "routing_agreement_ratio",
        "Routing agreement of two runs",
        "mean of shared picks / k over tokens that both runs processed",
        better="higher",
    ),
    # Two runs on the same tokens; see regress/routing/health.py.
    _card(
        "routing_agreement_ratio_worst",
        "Routing agreement of two runs, worst layer",
        "mean of shared picks / k over tokens that both runs processed, lowest of the layers",
        better="higher",
        section=_BETWEEN,
    ),
    _card(
        "router_drift_js_worst",
        "Router drift between runs, worst layer",
        "Jensen-Shannon divergence (base 2) of q, one run against another, largest of the layers",
        source="Lin 1991",
        section=_BETWEEN,
    ),
    _card(
        "dead_experts_gained",
        "Experts newly dead",
        "experts with tokens in the reference and none now, total over layers; where weights differ only those beyond "
        "chance: share^n_e < 0.01 / experts of all layers, share = the reference's part of all picks",
        unit="experts",
        source="conditional test of two Poisson rates (Przyborowski and Wilenski 1940), Bonferroni",
        section=_BETWEEN,
    ),
    _card(
        "nearly_dead_experts_gained",
        "Experts newly nearly dead",
        "experts that fell below 0.1 mu (the dead among them), total over layers; where weights differ only those "
        "beyond chance, as for dead_experts_gained",
        unit="experts",
        source="conditional test of two Poisson rates (Przyborowski and Wilenski 1940), Bonferroni",
        section=_BETWEEN,
    ),
    _card(
        "router_load_max_over_mean_rise",
        "Rise of the busiest expert over mean",
        "max n_e / mu now - in the reference, largest of the layers",
        section=_BETWEEN,
    ),
    _card(
        "router_entropy_ratio_fall",
        "Fall of the load entropy",
        "router_entropy_ratio in the reference - now, largest of the layers",
        section=_BETWEEN,
    ),
    _card(
        "domain_total_variation_fall",
        "Specialisation lost",
        "total variation of q between two classes, mean over pairs: in the reference - now, mean over layers",
        better="neither",
        section=_BETWEEN,
    ),
    _card(
        "router_margin_p05_fall",
        "Fall of the routing margin",
        "5th percentile of p_(k) - p_(k+1) in the reference - now, mean over layers",
        section=_BETWEEN,
    ),
)
