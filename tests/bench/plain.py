"""The plain form of each part of train_gpt.py that is written so as to be faster.

The tests hold the two forms against each other, and tests/bench/train.py times them.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import train_gpt  # noqa: E402
from train_gpt import linear, rms_norm, rotate  # noqa: E402


class NarrowMLP(train_gpt.MLP):
    """As wide as its weights say."""

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = F.leaky_relu(linear(x, self.up), self.negative_slope)
        return linear(x.square(), self.down, scale)


class ScalingBlock(train_gpt.Block):
    """The scales are multiplied with the activations."""

    def forward(
        self, x: Tensor, x0: Tensor, v_first: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y, v = self.attn(rms_norm(x) * self.norm_scale, v_first, rotary, None)
        attended = x + self.attn_scale.to(x.dtype) * y
        y = self.mlp(rms_norm(x if self.parallel else attended) * self.norm_scale, None)
        return attended + self.mlp_scale.to(x.dtype) * y, v


class LateGainAttention(train_gpt.Attention):
    """The query gain follows the rotation."""

    def forward(
        self, x: Tensor, v_first: Tensor | None, rotary: tuple[Tensor, Tensor], scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        k = rotate(rms_norm(self.project_heads(x, self.k)), *rotary)
        v_raw = v = self.project_heads(x, self.v)
        if self.value_mix is not None:
            mix = self.value_mix.to(v.dtype)
            v = mix[0] * v_first + mix[1] * v
        q = rotate(rms_norm(self.project_heads(x, self.q)), *rotary)
        q = q * self.q_gain.to(x.dtype)[:, None, None]

        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.exclusive:
            own = F.normalize(v, dim=-1).repeat_interleave(self.group, dim=1)
            y = y - (y * own).sum(dim=-1, keepdim=True) * own
        y = y.transpose(1, 2)
        if self.gate_weight is not None:
            gate = linear(x[..., : self.gate_dims], self.gate_weight)
            if self.gate_bias is not None:
                y = y * torch.sigmoid(gate + self.gate_bias.to(x.dtype))[..., None]
            else:
                y = y * 2 * torch.sigmoid(gate)[..., None]
        return linear(y.flatten(-2), self.out, scale), v_raw


PLAIN = (NarrowMLP, ScalingBlock, LateGainAttention)


def make_plain(model: train_gpt.GPT, *forms: type[nn.Module]) -> train_gpt.GPT:
    """The same model, whose modules compute in these of the plain forms."""
    for module in model.modules():
        for form in forms:
            if type(module) is form.__base__:
                module.__class__ = form
    return model


def accumulate_grads(loss: Tensor, params: list[nn.Parameter]) -> None:
    """Each gradient is added by a kernel of its own."""
    loss.backward()
