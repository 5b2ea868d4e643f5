"""One attack's sampling, shared by `tune`, which runs it on trial, and `extract`; not a stage."""
