"""One package per stage, in the order of the data: data, dpm, generate, ..., report."""
