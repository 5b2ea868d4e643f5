"""Stage `canaries`: what leaks of images mixed into training at known repeats."""
