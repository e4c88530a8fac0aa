"""A cost model of pre-training on many GPUs: time and memory, computed without measurements.

    a step = compute (matrix products, and the memory traffic between them), or launching the kernels if that takes longer
           + communication that does not overlap with the backward pass
           + the optimiser

All numbers about hardware are fields of `Cluster`. `benchmarks/scaling.py` prints tables, and checks the model with measurements.
Letters: P parameters, G GPUs, D width.
"""

from dataclasses import dataclass
from typing import Literal

from unveil.errors import UnveilError
from unveil.models.flops import mae_cost
from unveil.models.vit_config import ViTConfig

Parallel = Literal["ddp", "fsdp"]
Bottleneck = Literal["compute", "memory traffic", "network", "global batch size", "does not fit"]

WEIGHT, GRADIENT, MOMENTS, HALF_COPY = 4, 4, 8, 2
"""Bytes per parameter: its weight, its gradient and AdamW's two moments in float32, and the half-precision copy of autocast."""
TRAFFIC = 180
"""Memory traffic in bytes, per token, block and unit of width. The count is 76 in the forward pass (38 reads and writes of 2 bytes:
norms, sums, GELU, both sides of each product) and twice that in the backward pass. We guess that a fifth of it stays in the
caches."""
KEPT = 32
"""Bytes kept for the backward pass, per token, block and unit of width, in bfloat16 with fused attention: two residual sums (4),
their normalised values (4), query, key and value (6), the output of attention (2), the MLP before and after GELU (16)."""
KERNELS = 60
"""Kernels that a block launches in the forward and the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Numbers of the hardware. The default is H100 SXM GPUs, eight per machine, each with 400 Gb/s to the network."""

    gpus: int = 8
    """G, the number of GPUs over all machines."""
    per_node: int = 8
    """GPUs per machine."""
    peak: float = 790e12
    """FLOP/s of a large bfloat16 matrix product with a good kernel; the data sheet says 989e12."""
    memory: float = 80e9
    """Memory of a GPU, in bytes."""
    traffic: float = 2.68e12
    """Bytes per second between a GPU and its memory: 80 % of the 3.35e12 on the data sheet."""
    inside: float = 360e9
    """Bytes per second and direction between the GPUs of a machine: 80 % of the 450e9 on the data sheet."""
    between: float = 40e9
    """Bytes per second and direction from each GPU to other machines: 80 % of 400 Gb/s."""
    launch: float = 5e-6
    """Seconds to launch a small kernel."""
    hidden: float = 0.9
    """Share of the backward pass with which communication can overlap. It cannot begin before the first gradients are computed."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A masked autoencoder and its training; by default as in the paper."""

    vit: ViTConfig
    decoder_width: int = 512
    decoder_depth: int = 8
    mask_ratio: float = 0.75
    batch: int = 4096
    """Batch size over all GPUs."""
    images: int = 1_281_167
    epochs: float = 800.0
    grad_checkpointing: bool = False

    @property
    def patches(self) -> int:
        """N, the number of patches."""
        return self.vit.grid[0] * self.vit.grid[1]

    @property
    def visible(self) -> int:
        """V, the number of visible patches."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def predicted(self) -> int:
        """Number of values in a patch."""
        return self.vit.patch_size[0] * self.vit.patch_size[1] * self.vit.channels

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return round(self.epochs * self.images / self.batch)

    @property
    def flops(self) -> float:
        """FLOPs of a step per image. With gradient checkpointing, the forward pass of the blocks runs twice."""
        cost = mae_cost(self.vit, self.visible, width=self.decoder_width, depth=self.decoder_depth, predicted=self.predicted)
        return cost.step + self.grad_checkpointing * (cost.forward - cost.embed)

    @property
    def rows(self) -> float:
        """Tokens x blocks x width per image, in encoder and decoder. Memory traffic and activations are proportional to it."""
        return self.encoder_rows + (self.vit.prefix_tokens + self.patches) * self.decoder_depth * self.decoder_width

    @property
    def encoder_rows(self) -> float:
        """Tokens x blocks x width per image, in the encoder only."""
        return (self.vit.prefix_tokens + self.visible) * self.vit.depth * self.vit.width


@dataclass(frozen=True, kw_only=True)
class MemoryForecast:
    """Memory on one GPU, in bytes."""

    state: float
    """Weights, gradients and moments."""
    copies: float
    """Weights in half precision; with FSDP also the blocks that are gathered at the same time."""
    activations: float
    """Activations kept for the backward pass of one microbatch."""

    @property
    def total(self) -> float:
        return self.state + self.copies + self.activations


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of the parts of a step, in seconds."""

    compute: float
    """Matrix products."""
    traffic: float
    """Memory traffic between matrix products."""
    launches: float
    """Launching kernels, which takes longer than computing if a GPU has few images."""
    network: float
    """All communication."""
    exposed: float
    """Communication that does not overlap with the backward pass."""
    optimizer: float
    """Reading and writing weights, gradients and moments."""

    @property
    def step(self) -> float:
        return max(self.compute + self.traffic, self.launches) + self.exposed + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The prediction for a run on a cluster."""

    memory: MemoryForecast
    time: StepTime
    accum_steps: int
    """Microbatches per step that fit into memory; 0 if even one image does not fit."""
    hours: float
    """Duration of the whole run."""
    sent: float
    """Bytes that each GPU sends per step."""
    bottleneck: Bottleneck
    """The bottleneck that limits the speed."""


def parameters(work: Work) -> float:
    """P, the number of parameters: trained weights, biases and tokens of encoder and decoder."""
    d, e = work.vit.width, work.decoder_width
    values, classes = work.predicted, d + e  # class token, mask token
    ends = values * d + d + d * e + e + e * values + values + 2 * d + 2 * e  # embeddings, head, last norms
    return ends + classes + work.vit.depth * block_parameters(d) + work.decoder_depth * block_parameters(e)


def block_parameters(width: int) -> int:
    """Number of parameters of a block: 12 D^2 in matrices, and 13 D in biases and norms."""
    return 12 * width**2 + 13 * width


def bytes_sent(count: float, gpus: int, parallel: Parallel, accum_steps: int = 1) -> float:
    """Bytes that each GPU sends per step, for `count` parameters in float32.

    DDP all-reduces the gradients once, by a reduce-scatter and an all-gather that each send (G - 1) / G of them. In each
    microbatch, FSDP2 gathers the weights for the forward pass and for the backward pass, and reduce-scatters the gradients.
    """
    once = (gpus - 1) / gpus * 4 * count
    return 2 * once if parallel == "ddp" else 3 * accum_steps * once


def communication_seconds(count: float, cluster: Cluster, parallel: Parallel, accum_steps: int = 1) -> float:
    """Seconds of communication. It happens inside machines and between machines at the same time, each at its own speed.

    Between machines, each number is sent once per machine, over the network cards of all its GPUs together.
    """
    nodes, local = max(1, cluster.gpus // cluster.per_node), min(cluster.gpus, cluster.per_node)
    inside = bytes_sent(count, local, parallel, accum_steps) / cluster.inside
    between = bytes_sent(count, nodes, parallel, accum_steps) / (cluster.between * cluster.per_node)
    return max(inside, between)


def activations(work: Work, images: float) -> float:
    """Bytes kept for the backward pass. With gradient checkpointing, these are the inputs of all blocks and one full block."""
    if not work.grad_checkpointing:
        return KEPT * work.rows * images
    widest = max(work.encoder_rows / max(work.vit.depth, 1), (work.rows - work.encoder_rows) / max(work.decoder_depth, 1))
    return (2 * work.rows + KEPT * widest) * images


def memory(work: Work, cluster: Cluster, parallel: Parallel, images: float) -> MemoryForecast:
    """Memory on one GPU with microbatches of `images` images."""
    count = parameters(work)
    state = (WEIGHT + GRADIENT + MOMENTS) * count / (cluster.gpus if parallel == "fsdp" else 1)
    gathered = 2 * (WEIGHT + GRADIENT) * block_parameters(max(work.vit.width, work.decoder_width)) if parallel == "fsdp" else 0
    return MemoryForecast(state=state, copies=HALF_COPY * count + gathered, activations=activations(work, images))


def forecast(work: Work, cluster: Cluster, parallel: Parallel = "ddp", memory_share: float = 0.9) -> Forecast:
    """Time, memory and bottleneck of a run, with the fewest equal microbatches that fit into `memory_share` of the memory.

    Raises:
        UnveilError: If the batch size is not a multiple of the number of GPUs.
    """
    images = work.batch // cluster.gpus
    if images * cluster.gpus != work.batch:
        raise UnveilError(
            f"the batch size {work.batch} is not a multiple of {cluster.gpus} GPUs: use {max(1, images) * cluster.gpus}"
        )
    divisors = [n for n in range(1, images + 1) if images % n == 0]
    fitting = [n for n in divisors if memory(work, cluster, parallel, images // n).total <= memory_share * cluster.memory]
    accum_steps, fits = (fitting or divisors[-1:])[0], bool(fitting)
    count, blocks = parameters(work), work.vit.depth + work.decoder_depth
    compute, traffic = work.flops * images / cluster.peak, TRAFFIC * work.rows * images / cluster.traffic
    repeated = 4 / 3 if work.grad_checkpointing else 1.0  # the forward pass runs twice
    launches = KERNELS * blocks * cluster.launch * accum_steps * repeated
    network = communication_seconds(count, cluster, parallel, accum_steps)
    busy = max(compute + traffic * repeated, launches)
    overlap = 2 / 3 * busy / accum_steps if parallel == "ddp" else busy  # DDP: the backward pass of the last microbatch
    own = count / (cluster.gpus if parallel == "fsdp" else 1)
    time = StepTime(
        compute=compute,
        traffic=traffic * repeated,
        launches=launches,
        network=network,
        exposed=max(0.0, network - cluster.hidden * overlap),
        optimizer=(2 * (WEIGHT + MOMENTS) + GRADIENT) * own / cluster.traffic,
    )
    return Forecast(
        memory=memory(work, cluster, parallel, images // accum_steps),
        time=time,
        accum_steps=accum_steps if fits else 0,
        hours=work.steps * time.step / 3600,
        sent=bytes_sent(count, cluster.gpus, parallel, accum_steps),
        bottleneck=bottleneck_of(time, fits),
    )


def bottleneck_of(time: StepTime, fits: bool) -> Bottleneck:
    """The largest part of a step. If launching takes longest, GPUs have too few images, so the global batch size is the limit."""
    if not fits:
        return "does not fit"
    if time.launches > time.compute + time.traffic:
        return "network" if time.exposed > time.launches else "global batch size"
    terms: dict[Bottleneck, float] = {
        "compute": time.compute,
        "memory traffic": time.traffic + time.optimizer,
        "network": time.exposed,
    }
    return max(terms, key=lambda name: terms[name])
