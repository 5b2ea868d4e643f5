"""Stage `search`: prompts that trigger memorized images, found without a list of candidates."""
