"""Cost: what a million tokens cost, its bill, its split between prompts and outputs, and its bounds."""
