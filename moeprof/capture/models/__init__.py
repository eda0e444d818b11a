"""What a model is: find, load, make at random, count, its MoE layers, its dense twins."""
