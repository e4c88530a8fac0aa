"""What other libraries call the tensors of a Vision Transformer: one `Layout` for each way.

From a layout and a config follows the map of all names (`unveil.interop.layout_maps`), for loading and for exporting. From a layout
and the tensors of a file follows the config (`unveil.interop.config_from_tensors`).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of an encoder's tensors. An empty name means that the layout has no place for such a tensor."""

    title: str
    """For messages."""
    embed: str = "patch_embed.proj"
    class_token: str = "cls_token"
    distillation_token: str = ""
    registers: str = ""
    positions: str = "pos_embed"
    bare_tokens: bool = False
    """Whether the table of positions may have no rows for the leading tokens, or only one for the class token."""
    pre_norm: str = ""
    blocks: str = "blocks"
    """The prefix of block i is `blocks.i.`; the names below, up to `block_table`, follow it."""
    norm1: str = "norm1"
    query_key_value: tuple[str, ...] = ("attn.qkv",)
    """One layer, or three."""
    biases: tuple[str, ...] = ("attn.qkv.bias",)
    """Their biases. An empty name means zeros that are not stored, such as those of BEiT's keys, whose bias has no effect."""
    out: str = "attn.proj"
    norm2: str = "norm2"
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    swiglu: tuple[str, ...] = ()
    """The layers of gate and values, as one or two, and the layer after them."""
    scales: tuple[str, str] | tuple[()] = ()
    """LayerScale after the attention and after the MLP."""
    block_table: str = ""
    """The table of relative position biases of a block."""
    shared_table: str = ""
    norm: str = "norm"
    pooled_norm: str = ""
    heads: tuple[str, ...] = ()
    """Classifiers. Files without one have an encoder only."""
    dropped: tuple[str, ...] = ()
    """The beginnings of names of what is left out, as the features do not depend on it."""


TIMM = Layout(
    title="timm's VisionTransformer",
    distillation_token="dist_token",
    registers="reg_token",
    bare_tokens=True,
    pre_norm="norm_pre",
    swiglu=("mlp.fc1", "mlp.fc2"),
    scales=("ls1.gamma", "ls2.gamma"),
    pooled_norm="fc_norm",
    heads=("head", "head_dist"),
)
TIMM_BEIT = replace(
    TIMM,
    title="timm's Beit",
    distillation_token="",
    registers="",
    pre_norm="",
    biases=("attn.q_bias", "", "attn.v_bias"),
    swiglu=("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"),
    scales=("gamma_1", "gamma_2"),
    block_table="attn.relative_position_bias_table",
    shared_table="rel_pos_bias.relative_position_bias_table",
    heads=("head",),
    dropped=("mask_token",),
)
RELEASE = Layout(title="the public MAE release")
DINOV2_RELEASE = replace(
    TIMM, title="the DINOv2 release", registers="register_tokens", swiglu=("mlp.w12", "mlp.w3"), heads=(), dropped=("mask_token",)
)
TRANSFORMERS_MAE = Layout(
    title="transformers' ViTMAE",
    embed="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    blocks="encoder.layer",
    norm1="layernorm_before",
    query_key_value=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    biases=("attention.attention.query.bias", "attention.attention.key.bias", "attention.attention.value.bias"),
    out="attention.output.dense",
    norm2="layernorm_after",
    mlp=("intermediate.dense", "output.dense"),
    norm="layernorm",
)
TRANSFORMERS_VIT = replace(
    TRANSFORMERS_MAE, title="transformers' ViT", heads=("classifier",), dropped=("pooler.", "decoder.", "embeddings.mask_token")
)
TRANSFORMERS_BEIT = replace(
    TRANSFORMERS_MAE,
    title="transformers' BEiT",
    biases=("attention.attention.query.bias", "", "attention.attention.value.bias"),
    scales=("lambda_1", "lambda_2"),
    block_table="attention.attention.relative_position_bias.relative_position_bias_table",
    shared_table="encoder.relative_position_bias.relative_position_bias_table",
    pooled_norm="pooler.layernorm",
    heads=("classifier",),
    dropped=("embeddings.mask_token", "lm_head."),
)
TRANSFORMERS_DINOV2 = replace(
    TRANSFORMERS_MAE,
    title="transformers' DINOv2",
    norm1="norm1",
    norm2="norm2",
    mlp=("mlp.fc1", "mlp.fc2"),
    swiglu=("mlp.weights_in", "mlp.weights_out"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    heads=("classifier",),
    dropped=("embeddings.mask_token",),
)
TRANSFORMERS_DINOV2_REGISTERS = replace(
    TRANSFORMERS_DINOV2, title="transformers' DINOv2 with registers", registers="embeddings.register_tokens", bare_tokens=True
)
FILE_LAYOUTS = (
    TIMM,
    replace(TIMM, title="timm's VisionTransformer with a split SwiGLU", swiglu=("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")),
    TIMM_BEIT,
    replace(TIMM, title="the DeiT III release", scales=("gamma_1", "gamma_2")),
    DINOV2_RELEASE,
)
"""The layouts of files that say nothing about themselves, with the names of timm; the first that has most of the names is taken."""
TRANSFORMERS_LAYOUTS = {
    "vit": TRANSFORMERS_VIT,
    "beit": TRANSFORMERS_BEIT,
    "dinov2": TRANSFORMERS_DINOV2,
    "dinov2_with_registers": TRANSFORMERS_DINOV2_REGISTERS,
}
"""The layouts of folders of transformers, by the `model_type` of their config.json."""
