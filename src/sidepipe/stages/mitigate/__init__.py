"""Stage `mitigate`: the effect and cost of mitigations, and an adversary against them."""
