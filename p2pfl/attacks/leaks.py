"""What a gradient shows without any search: the input of a linear layer, and the label of a lone example."""

from __future__ import annotations

from torch import Tensor

__all__ = ["label", "layer_input"]


def layer_input(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The input (features,) of a linear layer with a bias, for a batch of one, from its two gradients.

    L. T. Phong, Y. Aono, T. Hayashi, L. Wang, S. Moriai: "Privacy-Preserving Deep Learning via Additively Homomorphic
    Encryption", IEEE TIFS 2018, https://eprint.iacr.org/2017/715, section 3: the gradient of row i is that of its bias
    times the input, so one is divided by the other. Of all rows we take that with the largest gradient of its bias.
    A larger batch gives a weighted mean of its inputs; a layer whose units are all dead gives NaN.

    `weight_gradient`: (outputs, features); `bias_gradient`: (outputs,).

    >>> import torch
    >>> layer_input(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([0.0, 0.5]))
    tensor([2., 4.])
    """
    row = int(bias_gradient.abs().argmax())
    return weight_gradient[row] / bias_gradient[row]


def label(last_bias_gradient: Tensor) -> int:
    """The class of a lone example under cross-entropy: that whose logit has a negative gradient, chance less one.

    B. Zhao, K. R. Mopuri, H. Bilen: "iDLG: Improved Deep Leakage from Gradients", 2020,
    https://arxiv.org/abs/2001.02610. Deviation: the bias of the last layer is looked at, and not its weights, whose
    sign tells the same only where what goes into the layer is positive.

    >>> import torch
    >>> label(torch.tensor([0.2, -0.9, 0.7]))
    1
    """
    return int(last_bias_gradient.argmin())
