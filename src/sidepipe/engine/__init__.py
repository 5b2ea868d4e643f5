"""How stages run: the graph, keyed artifacts, resuming, training, sampling, processes."""
