"""Strategies compared under one budget: the paper's question as one command.

experiments/<strategy>/<name>.json  ──►  OUT/<strategy>--<name>--seed<k>.json  ──►  OUT/comparison.md, .csv, two .svg

Every run is a training in a process of its own, in a run folder under OUT/runs. A result that is there is passed over.
"""
