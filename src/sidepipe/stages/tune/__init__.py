"""Stage `tune`: how to guide, chosen without the training set."""
