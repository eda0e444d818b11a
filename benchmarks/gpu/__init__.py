"""The evidence for one data-centre GPU: what is measured, in which order, against which targets, and how it is published."""
