"""Stage `descriptor`: a copy descriptor, where SSCD's weights cannot be downloaded."""
