"""How often is the truth where the product says it is? Planted truth, worlds of noise, a table (not part of the tests).

    python -m benchmarks.coverage                     # every cell, 1,000 trials, two processes; writes docs/limits.md
    python -m benchmarks.coverage --trials 200 --only percentile --no-write

A *cell* is one printed figure in one world. Of an interval the table says how often it held the truth (nominal 95 %),
of a p-value how often it was at most 0.05 with nothing there (nominal 5 %), of a verdict how often it was wrong. A
trial in which the product gives no interval, no p or no verdict is no success: it is counted apart.
"""
