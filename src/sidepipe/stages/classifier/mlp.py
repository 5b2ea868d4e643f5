"""The time-conditioned classifier of table rows: p(y | x_t, t) by an MLP."""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.models.tables import RowMLP


class TimeMLP(nn.Module):
    """Logits by the network of `models.tables`, whose rows have `in_channels` entries."""

    def __init__(self, in_channels: int, num_classes: int, width: int, num_blocks: int) -> None:
        super().__init__()
        self.network = RowMLP(in_channels, num_classes, width, num_blocks)

    def forward(
        self, x_t: Float[Tensor, "n d 1 1"], t: Int64[Tensor, "n"]
    ) -> Float[Tensor, "n classes"]:
        return self.network(x_t, t).sample.flatten(1)
