"""The report of a sweep at any time: finished points, missing points, results so far."""
