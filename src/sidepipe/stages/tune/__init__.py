"""Stage `tune`: the settings of guidance, chosen without the training set."""
