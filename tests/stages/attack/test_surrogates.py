import pytest
import torch
from torch import nn

from sidepipe.stages.attack.surrogates import ClassifierSurrogate


class Smooth(nn.Module):
    """Logits of 3 labels, smooth in x_t and different at every t."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(12, 8, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(8, 3, generator=generator, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x_t, t):
        h = x_t.flatten(1) @ self.first.to(x_t.dtype) + t[:, None] / 100
        return self.dropout(h.sin()) @ self.second.to(x_t.dtype)


X_T = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0, 10, 200, 600, 999])
Y = torch.tensor([0, 1, 2, 1, 0])


def test_the_gradient_equals_finite_differences_in_float64():
    surrogate, h = ClassifierSurrogate(Smooth()), 1e-5
    gradient = surrogate.grad_log_prob(X_T, T, Y)
    assert gradient.dtype == torch.float64
    numeric = torch.zeros_like(X_T).flatten(1)
    for k in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[k] = h
        step = step.reshape(1, 3, 2, 2)
        above, below = (surrogate.log_prob(x, T, Y) for x in (X_T + step, X_T - step))
        numeric[:, k] = (above - below) / (2 * h)
    torch.testing.assert_close(gradient.flatten(1), numeric, rtol=1e-7, atol=1e-8)


def test_log_prob_is_the_log_of_the_label_s_softmax():
    network = Smooth().eval()
    expected = [network(X_T[i : i + 1], T[i : i + 1])[0].softmax(0)[Y[i]].log() for i in range(5)]
    log_prob = ClassifierSurrogate(network).log_prob(X_T, T, Y)
    torch.testing.assert_close(log_prob, torch.stack(expected))


def test_gradients_over_all_labels_weighted_by_probability_cancel():
    surrogate = ClassifierSurrogate(Smooth())
    total = torch.zeros_like(X_T)
    for label in range(3):
        y = torch.full((5,), label)
        p = surrogate.log_prob(X_T, T, y).exp().reshape(-1, 1, 1, 1)
        total += p * surrogate.grad_log_prob(X_T, T, y)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_it_works_where_gradients_are_off_and_leaves_none_behind():
    network = Smooth().train()
    surrogate = ClassifierSurrogate(network)
    with torch.no_grad():
        gradient = surrogate.grad_log_prob(X_T, T, Y)
    assert gradient.abs().min() > 0
    assert not gradient.requires_grad
    assert not X_T.requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_the_network_is_in_eval_mode():
    surrogate = ClassifierSurrogate(Smooth().train())
    first, second = (surrogate.log_prob(X_T, T, Y) for _ in range(2))
    assert first.equal(second)  # dropout is off


@pytest.mark.parametrize("logits", [torch.bfloat16, torch.float32])
def test_logits_of_few_bits_give_a_gradient_in_x_t_s_dtype(logits):
    class Coarse(Smooth):
        def forward(self, x_t, t):
            return super().forward(x_t, t).to(logits)

    x_t = X_T.float()
    gradient = ClassifierSurrogate(Coarse()).grad_log_prob(x_t, T, Y)
    assert gradient.dtype == torch.float32
    exact = ClassifierSurrogate(Smooth()).grad_log_prob(X_T, T, Y).float()
    torch.testing.assert_close(gradient, exact, rtol=0.05, atol=0.05)
    # log p itself is not rounded to the logits' bits.
    assert ClassifierSurrogate(Coarse()).log_prob(x_t, T, Y).dtype == torch.float32
