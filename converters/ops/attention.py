"""Attention and what belongs to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    result,
    torch_dtype,
)
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OnnxAttention", "OnnxRotaryEmbedding"]


class OnnxAttention(nn.Module):
    """ONNX Attention 23 to 25: scaled dot products, softmax, weighted sum.

    Shapes: (batch, heads, length, head size), or (batch, length, heads * head size) with the numbers of heads as attributes;
    masks broadcast to (batch, query heads, query length, key length).

    Attributes:
        heads: Numbers of heads of queries and of keys, for inputs of three axes.
        scale: Factor of the products; None for 1 / sqrt(head size).
        softcap: Products are squeezed into (-softcap, softcap); 0 leaves them.
        causal: A query sees no key behind itself.
        window: How far a query sees to the left and to the right; -1 for no limit.
        precision: Type the softmax is computed in; None for the type of the products.
        shown: What the fourth output is: products (0), after the cap (1), after the mask (2), after the softmax (3).
        outputs: How many outputs there are.
    """

    def __init__(self, attributes: Mapping[str, Any], outputs: int) -> None:
        super().__init__()
        get = attributes.get
        self.heads = (int(get("q_num_heads", 0)), int(get("kv_num_heads", 0)))
        self.scale = get("scale")
        self.softcap = float(get("softcap", 0.0))
        self.causal = bool(get("is_causal", 0))
        self.window = (int(get("left_window_size", -1)), int(get("right_window_size", -1)))
        precision = int(get("softmax_precision", 0))
        self.precision = torch_dtype(precision) if precision else None
        self.shown = int(get("qk_matmul_output_mode", 0))
        self.outputs = outputs

    def forward(
        self,
        Q: Tensor,
        K: Tensor,
        V: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attend; ``valid`` is the number of keys of each sample that are not padding."""
        flat = Q.ndim == 3
        if flat:
            Q, K, V = (_split(x, n) for x, n in zip((Q, K, V), (self.heads[0], *self.heads[1:] * 2), strict=True))
        if past_key is not None and past_value is not None:
            K, V = torch.cat([past_key, K], 2), torch.cat([past_value, V], 2)
        present = (K, V)
        shared = Q.shape[1] // K.shape[1]
        if shared > 1:
            K, V = K.repeat_interleave(shared, 1), V.repeat_interleave(shared, 1)
        root = math.sqrt(1 / math.sqrt(Q.shape[-1]) if self.scale is None else float(self.scale))
        products = (Q * root) @ (K * root).transpose(-2, -1)
        capped = self.softcap * torch.tanh(products / self.softcap) if self.softcap else products
        allowed = self._allowed(Q, K, past_key, valid)
        biased = _biased(capped, mask)
        if allowed is not None:
            biased = biased.masked_fill(~allowed, -math.inf)
        # A query that sees no key gives zeros.
        blind = torch.isneginf(biased).all(-1, keepdim=True)
        weights = (
            torch.softmax(biased.masked_fill(blind, 0), -1, dtype=self.precision).to(Q.dtype).masked_fill(blind, 0)
        )
        Y = weights @ V
        Y = Y.transpose(1, 2).flatten(2) if flat else Y
        if self.outputs == 1:
            return Y
        return (Y, *present, (products, capped, biased, weights)[self.shown])[: self.outputs]

    def _allowed(self, Q: Tensor, K: Tensor, past_key: Tensor | None, valid: Tensor | None) -> Tensor | None:
        """Return which keys each query may see, as far as masks are not concerned; None for all."""
        queries, keys = Q.shape[2], K.shape[2]
        at = torch.arange(keys, device=Q.device)
        offset = torch.zeros(1, dtype=torch.int64, device=Q.device)
        allowed = None
        if past_key is not None:
            offset = offset + past_key.shape[2]
        elif valid is not None:
            offset = valid.to(torch.int64) - queries
            allowed = (at < valid.reshape(-1, 1)).reshape(-1, 1, 1, keys)
        position = offset.reshape(-1, 1, 1, 1) + torch.arange(queries, device=Q.device).reshape(-1, 1)
        left, right = self.window
        for limited, inside in (
            (self.causal, at <= position),
            (left >= 0, at >= position - left),
            (right >= 0, at <= position + right),
        ):
            if limited:
                allowed = inside if allowed is None else allowed & inside
        return allowed


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _biased(products: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a mask: True keeps a product, numbers are added; keys behind its end are not seen."""
    if mask is None:
        return products
    behind = products.shape[-1] - mask.shape[-1]
    if mask.dtype == torch.bool:
        mask = F.pad(mask, (0, behind), value=False) if behind > 0 else mask
        return products.masked_fill(~mask, -math.inf)
    return products + (F.pad(mask, (0, behind), value=-math.inf) if behind > 0 else mask)


@converter("Attention", 23)
def _attention(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    places = [place for place, name in enumerate(node.output_values) if name]
    return result(OnnxAttention(node.attributes, places[-1] + 1), node)


class OnnxRotaryEmbedding(nn.Module):
    """ONNX RotaryEmbedding: pairs of elements turn by an angle that depends on their place in the sequence.

    Attributes:
        heads: Number of heads, for inputs of three axes.
        size: How many elements of each head turn; 0 for all.
        interleaved: Pairs are neighbours, not elements of the two halves.
    """

    def __init__(self, heads: int, size: int, interleaved: bool) -> None:
        super().__init__()
        self.heads, self.size, self.interleaved = heads, size, interleaved

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        """Turn ``x``, (batch, heads, length, head size) or (batch, length, heads * head size)."""
        turned = _split(x, self.heads) if x.ndim == 3 else x
        if positions is not None:
            cos, sin = cos[positions.to(torch.int64)], sin[positions.to(torch.int64)]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        size = self.size or turned.shape[-1]
        head, rest = turned[..., :size], turned[..., size:]
        a, b = (head[..., 0::2], head[..., 1::2]) if self.interleaved else head.chunk(2, -1)
        real, imaginary = cos * a - sin * b, sin * a + cos * b
        joined = (
            torch.stack((real, imaginary), -1).flatten(-2) if self.interleaved else torch.cat((real, imaginary), -1)
        )
        y = torch.cat((joined, rest), -1)
        return y.transpose(1, 2).flatten(2) if x.ndim == 3 else y


@converter("RotaryEmbedding", 23)
def _rotary(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    get = node.attributes.get
    module = OnnxRotaryEmbedding(get("num_heads", 0), get("rotary_embedding_dim", 0), bool(get("interleaved", 0)))
    return result(module, node)
