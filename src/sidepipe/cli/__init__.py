"""The command lines: sidepipe, sidepipe-sweep and the dashboards."""
