"""The evidence for one data-centre card: what is measured, in which order, against which targets, how published."""
