"""A chat template is a stranger's program: it has a budget, and a process of its own to lose."""

from __future__ import annotations

import time

import pytest

from moeprof.sources.chat_template import BUDGET, TemplateRefusesError, render

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 20000000000 }}",
        "{{ [0] * 20000000000 }}",
        "{{ 'x'.ljust(9999999999) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ ([range(99999)] * 99999)|map('list')|map('length')|sum }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' * 3000000 }}",
        "{% set ns = namespace(t='x' * 1000) %}{% for a in range(9999) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_is_refused_in_time(template: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateRefusesError) as refused:
        render(template, {}, [("user", "a")])
    assert str(refused.value) in (BUDGET, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).")
    assert time.monotonic() - began < 30  # 0.5 s of processor time; the machine may be busy


def test_the_next_conversation_is_a_prompt_again() -> None:
    tokens = {"eos_token": "</s>"}
    assert render(PLAIN, tokens, [("user", "grüß\ud800\n")]) == "user: grüß\ud800\n</s>"
    with pytest.raises(TemplateRefusesError, match="needs more than"):
        render("{{ 'x' * 20000000000 }}", tokens, [("user", "a")])
    for number in range(50):
        assert render(PLAIN, tokens, [("user", str(number))]) == f"user: {number}</s>"
