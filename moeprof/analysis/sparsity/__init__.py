"""What sparsity buys: theory beside measurement, ladder, sweeps, crossover, claims."""
