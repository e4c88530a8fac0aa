"""Time and memory of pre-training on many GPUs, from a model of compute, bytes and network. Nothing here is measured.

    a step = compute (matrix products, then the memory traffic between them), or the launches where there is too little to compute
           + the network's share that does not hide behind the backward pass
           + the optimiser

All numbers about hardware are fields of `Cluster`; `benchmarks/scaling.py` prints the tables, and checks what can be checked.
Letters: P parameters, G GPUs, D width.
"""

from dataclasses import dataclass
from typing import Literal

from unveil.errors import UnveilError
from unveil.models.flops import mae_cost
from unveil.models.vit import ViTConfig

Parallel = Literal["ddp", "fsdp"]
Bound = Literal["compute", "memory traffic", "network", "global batch size", "does not fit"]

WEIGHT, GRADIENT, MOMENTS, HALF = 4, 4, 8, 2
"""Bytes a parameter: its weight, its gradient and AdamW's two moments in float32; and the copy that autocast multiplies with."""
TRAFFIC = 180
"""Bytes that move between memory and chip for each token, block and unit of width. By count 76 forward (38 reads and writes of 2
bytes: norms, sums, GELU, both sides of each product) and twice that on the way back; that a fifth of it never leaves the caches is
a guess."""
KEPT = 32
"""Bytes kept for going back for each token, block and unit of width, in bfloat16 with fused attention: two residual sums (4), what
the norms make of them (4), query, key and value (6), attention's result (2), the MLP before and after GELU (16)."""
KERNELS = 60
"""Kernels that a block launches, forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Hardware, in numbers. The defaults are H100 SXM GPUs, eight to a machine, with 400 Gb/s of network each."""

    gpus: int = 8
    """G, over all machines."""
    per_node: int = 8
    """GPUs in a machine."""
    peak: float = 790e12
    """FLOP/s of a large bfloat16 matrix product: what a good kernel reaches of the 989e12 on the data sheet."""
    memory: float = 80e9
    """Bytes of a GPU."""
    traffic: float = 2.68e12
    """Bytes a second between a GPU and its memory: 80 % of the 3.35e12 on the data sheet."""
    inside: float = 360e9
    """Bytes a second and direction between the GPUs of a machine: 80 % of the 450e9 on the data sheet."""
    between: float = 40e9
    """Bytes a second and direction that each GPU has to other machines: 80 % of 400 Gb/s."""
    launch: float = 5e-6
    """Seconds between two kernels, where each has too little to do."""
    hidden: float = 0.9
    """Share of the backward pass that communication can hide behind: the first gradients have to be there before any can travel."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A masked autoencoder and how it is trained; the paper's by default."""

    vit: ViTConfig
    decoder_width: int = 512
    decoder_depth: int = 8
    mask_ratio: float = 0.75
    batch: int = 4096
    """Over all GPUs."""
    dataset: int = 1_281_167
    epochs: float = 800.0
    recompute: bool = False

    @property
    def patches(self) -> int:
        """N."""
        return self.vit.grid[0] * self.vit.grid[1]

    @property
    def visible(self) -> int:
        """V."""
        return int(self.patches * (1 - self.mask_ratio))

    @property
    def predicted(self) -> int:
        """Numbers of a patch."""
        return self.vit.patch_size[0] * self.vit.patch_size[1] * self.vit.channels

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return round(self.epochs * self.dataset / self.batch)

    @property
    def flops(self) -> float:
        """Of a step, for one image; with gradient checkpointing the forward pass of the blocks runs twice."""
        cost = mae_cost(self.vit, self.visible, width=self.decoder_width, depth=self.decoder_depth, predicted=self.predicted)
        return cost.step + self.recompute * (cost.forward - cost.embed)

    @property
    def rows(self) -> float:
        """Tokens times blocks times width of one image, in encoder and decoder: what traffic and activations grow with."""
        return self.encoder_rows + (1 + self.patches) * self.decoder_depth * self.decoder_width

    @property
    def encoder_rows(self) -> float:
        """The encoder's part of it."""
        return (1 + self.visible) * self.vit.depth * self.vit.width


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU."""

    state: float
    """Weights, gradients and moments that live there."""
    copies: float
    """Weights in half precision while they are used, and with FSDP the blocks that are whole at a time."""
    activations: float
    """Kept for going back, for the images of one part of a step."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.copies + self.activations


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds of a step, by what they are for."""

    compute: float
    """Matrix products."""
    traffic: float
    """Memory traffic between them."""
    launches: float
    """What launching alone would take: it binds where a GPU has too few images."""
    network: float
    """All communication."""
    exposed: float
    """The part of it that does not hide."""
    optimizer: float
    """Reading and writing weights, gradients and moments."""

    @property
    def step(self) -> float:
        """All of it."""
        return max(self.compute + self.traffic, self.launches) + self.exposed + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run on a cluster."""

    memory: Memory
    time: Time
    parts: int
    """Parts in which a step is computed to fit the memory; 0 where even one image does not fit."""
    hours: float
    """Of the whole run."""
    volume: float
    """Bytes that each GPU sends in a step."""
    binds: Bound
    """What a faster run would need more of."""


def parameters(work: Work) -> float:
    """P: trained weights, biases and tokens of encoder and decoder."""
    d, e = work.vit.width, work.decoder_width
    values, classes = work.predicted, d + e  # class token, mask token
    ends = values * d + d + d * e + e + e * values + values + 2 * d + 2 * e  # embeddings, head, last norms
    return ends + classes + work.vit.depth * block_parameters(d) + work.decoder_depth * block_parameters(e)


def block_parameters(width: int) -> int:
    """Of a block: 12 D^2 in products, and 13 D in biases and norms."""
    return 12 * width**2 + 13 * width


def volume(count: float, gpus: int, parallel: Parallel, parts: int = 1) -> float:
    """Bytes that each of the GPUs sends in a step for so many parameters, all in float32.

    DDP all-reduces the gradients, once: a reduce-scatter and an all-gather, (G - 1) / G of them each. FSDP2 gathers the weights for
    the forward pass and again for the backward pass, and reduce-scatters the gradients, in each part of a step.
    """
    around = (gpus - 1) / gpus * 4 * count
    return 2 * around if parallel == "ddp" else 3 * parts * around


def wire(count: float, cluster: Cluster, parallel: Parallel, parts: int = 1) -> float:
    """Seconds of communication: inside a machine and between machines at the same time, each at its own speed.

    Between machines each number crosses once a machine, over the network cards of all its GPUs together.
    """
    nodes, local = max(1, cluster.gpus // cluster.per_node), min(cluster.gpus, cluster.per_node)
    inside = volume(count, local, parallel, parts) / cluster.inside
    between = volume(count, nodes, parallel, parts) / (cluster.between * cluster.per_node)
    return max(inside, between)


def activations(work: Work, images: float) -> float:
    """Bytes kept for going back, for so many images; with gradient checkpointing, each block's input and one block whole."""
    if not work.recompute:
        return KEPT * work.rows * images
    widest = max(work.encoder_rows / max(work.vit.depth, 1), (work.rows - work.encoder_rows) / max(work.decoder_depth, 1))
    return (2 * work.rows + KEPT * widest) * images


def memory(work: Work, cluster: Cluster, parallel: Parallel, images: float) -> Memory:
    """Bytes on one GPU that computes so many images at a time."""
    count = parameters(work)
    state = (WEIGHT + GRADIENT + MOMENTS) * count / (cluster.gpus if parallel == "fsdp" else 1)
    gathered = 2 * (WEIGHT + GRADIENT) * block_parameters(max(work.vit.width, work.decoder_width)) if parallel == "fsdp" else 0
    return Memory(state=state, copies=HALF * count + gathered, activations=activations(work, images))


def forecast(work: Work, cluster: Cluster, parallel: Parallel = "ddp", room: float = 0.9) -> Forecast:
    """Time and memory of a run, in as few equal parts as fit `room` of the memory, and what binds.

    Raises:
        UnveilError: When the batch does not divide by the GPUs.
    """
    images = work.batch // cluster.gpus
    if images * cluster.gpus != work.batch:
        raise UnveilError(f"a batch of {work.batch} does not divide by {cluster.gpus} GPUs: use {max(1, images) * cluster.gpus}")
    ways = [parts for parts in range(1, images + 1) if images % parts == 0]
    fitting = [n for n in ways if memory(work, cluster, parallel, images // n).total <= room * cluster.memory]
    parts, fits = (fitting or ways[-1:])[0], bool(fitting)
    count, nodes = parameters(work), work.vit.depth + work.decoder_depth
    compute, traffic = work.flops * images / cluster.peak, TRAFFIC * work.rows * images / cluster.traffic
    again = 4 / 3 if work.recompute else 1.0
    launches = KERNELS * nodes * cluster.launch * parts * again
    network = wire(count, cluster, parallel, parts)
    busy = max(compute + traffic * again, launches)
    cover = 2 / 3 * busy / parts if parallel == "ddp" else busy  # DDP: the backward pass of the last part
    own = count / (cluster.gpus if parallel == "fsdp" else 1)
    time = Time(
        compute=compute,
        traffic=traffic * again,
        launches=launches,
        network=network,
        exposed=max(0.0, network - cluster.hidden * cover),
        optimizer=(2 * (WEIGHT + MOMENTS) + GRADIENT) * own / cluster.traffic,
    )
    return Forecast(
        memory=memory(work, cluster, parallel, images // parts),
        time=time,
        parts=parts if fits else 0,
        hours=work.steps * time.step / 3600,
        volume=volume(count, cluster.gpus, parallel, parts),
        binds=binding(time, fits),
    )


def binding(time: Time, fits: bool) -> Bound:
    """The largest term of a step; launches bind where there are too few images a GPU."""
    if not fits:
        return "does not fit"
    if time.launches > time.compute + time.traffic:
        return "network" if time.exposed > time.launches else "global batch size"
    terms: dict[Bound, float] = {"compute": time.compute, "memory traffic": time.traffic + time.optimizer, "network": time.exposed}
    return max(terms, key=lambda name: terms[name])
