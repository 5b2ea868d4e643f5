"""The report of a sweep, at any time: what is finished, what is missing, what it says so far."""
