"""Decides which fast paths are used. No other file decides this, so each fast path can be removed on its own.

`UNVEIL_PLAIN=1` in the environment turns all of them off; `UNVEIL_PLAIN=recompute,half_norm` turns off some. LAB.md has their
measured gains. A path that has not been measured yet on the device it is for is off: `UNVEIL_TRY=cast_together` turns it on.

| name             | file               | instead of                                                     |
| ---------------- | ------------------ | -------------------------------------------------------------- |
| half_norm        | half_norm.py       | a layer norm that converts half precision to float32 and back  |
| half_attention   | half_attention.py  | the fused attention kernel of the CPU, slow in half precision  |
| byte_dropout     | byte_dropout.py    | eight random bytes for each value, on the CPU                  |
| loss_by_rows     | loss_by_rows.py    | ten passes over the class scores of a large vocabulary         |
| learned_bias     | learned_bias.py    | plain operations for a bias with a gradient, on the CPU        |
| selected_biases  | learned_bias.py    | indexing, whose backward pass is slow on the CPU               |
| products_of_few  | half_attention.py  | the fused attention kernel of the CPU, slow for one query      |
| top_by_blocks    | top_words.py       | a slow `topk` of a large vocabulary on the CPU                 |
| recompute        | recompute.py       | keeping the results of norms and activations for the backward  |
| mask_tokens_once | shared_tokens.py   | projecting the same mask tokens for each image of a batch      |
| last_tokens_only | block.py           | computing all tokens in the last block when few are needed     |
| cast_together    | cast_together.py   | casting each weight of a block by itself, on a GPU             |
"""

import torch
from torch import Tensor, nn

from unveil.switches import Switches, names_in

NAMES = frozenset(
    {
        "half_norm",
        "half_attention",
        "byte_dropout",
        "loss_by_rows",
        "learned_bias",
        "selected_biases",
        "products_of_few",
        "top_by_blocks",
        "recompute",
        "mask_tokens_once",
        "last_tokens_only",
        "cast_together",
    }
)
UNTRIED = frozenset({"cast_together"})
HALF = (torch.bfloat16, torch.float16)
RECOMPUTE_FROM = 2**19
"""Minimum number of values in an input to recompute. Smaller inputs (below 1 MiB in half precision) save too little memory."""


def off_by_environment() -> frozenset[str]:
    """The fast paths that the environment turns off, or does not turn on."""
    return names_in("UNVEIL_PLAIN", NAMES) | (UNTRIED - names_in("UNVEIL_TRY", NAMES))


_switches = Switches(off_by_environment())
enabled, turned_off = _switches.enabled, _switches.turned_off


def by_hand(x: Tensor) -> bool:
    """Whether to use a hand-written backward pass: on a CPU, unless torch.compile optimises the graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def half_norm(x: Tensor, weight: Tensor) -> bool:
    """For half-precision inputs of a layer norm whose weights are float32."""
    return enabled("half_norm") and x.dtype != weight.dtype


def half_attention(query: Tensor) -> bool:
    """For half-precision attention on a CPU."""
    return enabled("half_attention") and query.device.type == "cpu" and query.dtype in HALF


def learned_bias(bias: Tensor) -> bool:
    """For a bias of attention that needs a gradient, on a CPU, in full precision."""
    return enabled("learned_bias") and by_hand(bias) and bias.requires_grad and bias.dtype not in HALF


def selected_biases(table: Tensor) -> bool:
    """For tables of relative position biases on a CPU. On a GPU, the gradient of such a lookup is summed in no fixed order."""
    return enabled("selected_biases") and table.device.type == "cpu"


def byte_dropout(x: Tensor) -> bool:
    """For dropout on a CPU."""
    return enabled("byte_dropout") and by_hand(x)


def loss_by_rows(scores: Tensor) -> bool:
    """For the cross-entropy of a large vocabulary on a CPU."""
    return enabled("loss_by_rows") and by_hand(scores)


def products_of_few(query: Tensor) -> bool:
    """For attention of one or few queries in many heads on a CPU."""
    return enabled("products_of_few") and query.device.type == "cpu" and query.shape[0] * query.shape[1] >= 64


def top_by_blocks(scores: Tensor) -> bool:
    """For the largest scores of a large vocabulary on a CPU."""
    return enabled("top_by_blocks") and scores.device.type == "cpu"


def fast_block() -> bool:
    """For blocks, unless all fast paths of a block are turned off."""
    return enabled("recompute") or enabled("mask_tokens_once") or enabled("last_tokens_only")


def may_recompute(x: Tensor) -> bool:
    """For training in half precision on a CPU."""
    half = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return half and enabled("recompute") and not torch.compiler.is_compiling()


def recompute(x: Tensor) -> bool:
    """For large inputs of norms and activations, if `may_recompute`."""
    return may_recompute(x) and x.numel() >= RECOMPUTE_FROM  # in this order: ONNX export has no fixed batch size to compare


def cast_together(x: Tensor, weight: Tensor) -> bool:
    """For a block with half-precision inputs and float32 weights under autocast on a GPU, unless its weights are sharded."""
    on_gpu = enabled("cast_together") and x.device.type == "cuda" and not torch.compiler.is_compiling()
    return on_gpu and torch.is_autocast_enabled("cuda") and x.dtype in HALF and castable(weight)


def castable(weight: Tensor) -> bool:
    """Whether a weight is a plain float32 parameter. FSDP2 casts its own, while it gathers them."""
    return type(weight) is nn.Parameter and weight.dtype == torch.float32
