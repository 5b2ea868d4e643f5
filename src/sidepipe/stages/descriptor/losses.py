"""Losses of a copy descriptor: copies close together, others apart and spread (SSCD, section 3).

`ids` has the images in each view: a plain view has its image twice, a mixed one its two. Views that
share an image match; no loss pushes matching views apart.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

CLOSEST = 1e-6  # squared distance below which the logarithm of KoLeo no longer grows


def matches(ids: Int64[Tensor, "v 2"]) -> Bool[Tensor, "v v"]:
    """Which pairs of views share an image; a view matches itself."""
    return (ids[:, None, :, None] == ids[None, :, None, :]).flatten(2).any(2)


def nt_xent(
    similarity: Float[Tensor, "v v"], match: Bool[Tensor, "v v"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over views of -log p(match), averaged over the view's matches (SSCD, eq. 2 and 5).

    p compares a match with all views that do not match, never with other matches. Views whose only
    match is themselves do not count. similarity: cosines.
    """
    logits = similarity / temperature
    others = torch.logsumexp(logits.masked_fill(match, -torch.inf), 1, keepdim=True)
    loss = torch.logaddexp(logits, others) - logits
    positive = match & ~torch.eye(len(match), dtype=torch.bool, device=match.device)
    counts = positive.sum(1)
    per_view = loss.masked_fill(~positive, 0).sum(1) / counts.clamp(min=1)
    return per_view.sum() / (counts > 0).sum().clamp(min=1)


def koleo(similarity: Float[Tensor, "v v"], match: Bool[Tensor, "v v"]) -> Float[Tensor, ""]:
    """-mean log distance to the closest view that does not match (Kozachenko-Leonenko; eq. 3).

    Its minimum spreads vectors evenly, so that a distance means the same everywhere. Views that
    match all others do not count.
    """
    closest = similarity.masked_fill(match, -torch.inf).amax(1)
    closest = closest[closest > -torch.inf]
    return -0.5 * (2 - 2 * closest).clamp(min=CLOSEST).log().sum() / max(1, len(closest))
