"""Strategies compared under one budget: the paper's question as one command.

experiments/<strategy>/<name>.json  ──►  OUT/<strategy>--<name>--seed<k>.json  ──►  OUT/comparison.md, .csv, two .svg

Every run is a training in its own process, in a run folder under OUT/runs. A result that already exists is skipped.
"""
