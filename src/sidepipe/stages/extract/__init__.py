"""Stage `extract`: samples guided toward surrogate labels."""
