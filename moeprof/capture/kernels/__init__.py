"""Kernels for attention, experts, norms and rotations: a table of candidates per operation, one choice by trial."""
