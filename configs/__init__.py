"""Experiments as ml-collections configs; `base` states every field once, the other files change it."""
