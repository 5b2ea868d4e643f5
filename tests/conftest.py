"""Shared by all tests: one CPU thread a process."""

import torch

# The machines that run the tests are shared; spinning threads cost more than they give.
torch.set_num_threads(1)
