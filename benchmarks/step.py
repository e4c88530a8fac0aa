"""One pre-training step (forward, backward, optimiser) of ours and of its peers: same weights, same pictures, same mask, same loss.

    python benchmarks/step.py --model vit-base --batch 16                      # bf16 on both sides
    python benchmarks/step.py --model vit-tiny --image-size 96 --patch-size 8 --batch 64 --peer-precision float32
    python benchmarks/step.py --model vit-large --batch 256 --compile --compiled-peer
    python benchmarks/step.py --model vit-base --batch 64 --public ~/mae       # a checkout of the public MAE code

Prints the losses of all, images a second, ratios with their spread, and the most memory that tensors took in a step.
"""

import argparse
import importlib
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import keep_heap, receipt, table, take_turns, wait

from unveil.blocks.chance import sample_keys
from unveil.blocks.masks import as_bool
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.interop import mae_release, transformers_vit_mae
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.cost import mae_cost
from unveil.models.vit import MODELS, ViTConfig
from unveil.train.trial import Live

Stepper = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-base")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--decoder-width", type=int, default=512)
    parser.add_argument("--decoder-depth", type=int, default=8)
    parser.add_argument("--decoder-heads", type=int, default=16)
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peer-batch", type=int, help="where the peer is fastest at another batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--peer-precision", choices=["bfloat16", "float32"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compiled-peer", action="store_true", help="transformers' model compiled, beside the plain one")
    parser.add_argument("--public", help="a folder with the public MAE code")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=1, help="steps in a turn")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, side = torch.device(args.device), (args.image_size, args.image_size)
    width, depth, heads = MODELS[args.model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=side, patch_size=(args.patch_size,) * 2)
    config = MAEConfig(
        mask_ratio=args.mask_ratio,
        decoder_width=args.decoder_width,
        decoder_depth=args.decoder_depth,
        decoder_heads=args.decoder_heads,
    )
    torch.manual_seed(0)
    ours = MAE.build(vit, config, AugmentConfig())
    peer_precision = args.peer_precision or args.precision
    sizes = {"unveil": args.batch} | dict.fromkeys(
        ("transformers", "transformers, compiled", "public"), args.peer_batch or args.batch
    )
    makers: dict[str, Callable[[int], Stepper]] = {"unveil": lambda n: our_step(ours, n, args.precision, args.compile, device)}
    makers["transformers"] = lambda n: transformers_step(ours, n, peer_precision, False, device)
    if args.compiled_peer:
        makers["transformers, compiled"] = lambda n: transformers_step(ours, n, peer_precision, True, device)
    if args.public:
        makers["public"] = lambda n: public_step(args.public, ours, n, device)

    print(f"{args.model}/{args.patch_size} at {args.image_size} px, {args.mask_ratio:.0%} hidden; {receipt(device)}")
    steppers, peaks, losses = {}, {}, {}
    for name, make in makers.items():
        steppers[name] = make(sizes[name])
        losses[name] = float(steppers[name]())
        peaks[name] = peak_bytes(steppers[name], device)
    tolerance = 1e-4 if {args.precision, peer_precision} == {"float32"} else 1e-2
    for name, loss in losses.items():
        print(f"{name}: loss {loss:.6f}, batch {sizes[name]}, at most {peaks[name] / 2**20:,.0f} MiB of tensors in a step")
        if sizes[name] == args.batch and not math.isclose(loss, losses["unveil"], rel_tol=tolerance):
            sys.exit(f"{name} computes another loss: {loss} is not {losses['unveil']}")
    seconds = take_turns(steppers, device, rounds=args.rounds, repeat=args.repeat)
    per_image = {name: [t / sizes[name] for t in times] for name, times in seconds.items()}
    print(table(per_image, 1))
    visible = ours.mask(torch.zeros(1, dtype=torch.int64))[0].shape[1]
    shape = {"width": args.decoder_width, "depth": args.decoder_depth, "predicted": ours.target.size}
    plain = mae_cost(vit, visible, plain=True, **shape).step
    print(f"plain method: {plain / 1e9:.1f} GFLOPs an image; unveil's own: {mae_cost(vit, visible, **shape).step / 1e9:.1f}")
    print(f"unveil at its best: {plain / min(per_image['unveil']) / 1e12:.2f} TFLOP/s of the plain method")


def pictures(vit: ViTConfig, count: int, device: torch.device) -> Tensor:
    """The same random pictures for everybody."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, vit.channels, *vit.image_size, generator=generator).to(device)


def half(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def stepper(forward: Callable[[], Tensor], model: nn.Module, context: Callable[[], AbstractContextManager[object]]) -> Stepper:
    """Forward, backward, AdamW with a rate so small that the loss stays as it is."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-12, betas=(0.9, 0.95), fused=True)

    def step() -> Tensor:
        with context():
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def our_step(ours: MAE, count: int, precision: str, compiled: bool, device: torch.device) -> Stepper:
    """Ours, as the loop calls it."""
    model = ours.to(device).train()
    vit = ours.encoder.config
    batch = Batch(
        pictures(vit, count, device), torch.tensor([vit.image_size] * count, device=device), sample_keys(0, 0, count).to(device)
    )
    if compiled:
        model.compile()
    return stepper(lambda: model(batch).loss, model, lambda: half(precision, device))


def transformers_step(ours: MAE, count: int, precision: str, compiled: bool, device: torch.device) -> Stepper:
    """ViTMAEForPreTraining with our weights and our mask, with attention by sdpa."""
    from transformers import ViTMAEForPreTraining

    with tempfile.TemporaryDirectory() as folder:
        written = transformers_vit_mae.export(ours, Path(folder) / "ours")
        model = ViTMAEForPreTraining.from_pretrained(written, attn_implementation="sdpa")
    model = model.to(device).train()
    images, noise = pictures(ours.encoder.config, count, device), noise_of(ours, count).to(device)
    if compiled:
        model.compile()
    return stepper(lambda: model(images, noise=noise).loss, model, lambda: half(precision, device))


def noise_of(ours: MAE, count: int) -> Tensor:
    """Noise whose order hides what ours hides: peers keep the lowest."""
    _, hide = ours.mask(sample_keys(0, 0, count))
    return as_bool(hide, ours.patches).float() + torch.linspace(0, 0.5, ours.patches)


def public_step(folder: str, ours: MAE, count: int, device: torch.device) -> Stepper:
    """The public MAE code with our weights and our mask; float16 with a gradient scale on a GPU, as it trains, else float32."""
    import timm.models.vision_transformer as timm_vit

    block = timm_vit.Block
    timm_vit.Block = lambda *args, qk_scale=None, **kwargs: block(*args, **kwargs)  # an argument that timm has dropped
    sys.path.insert(0, folder)
    vit, config = ours.encoder.config, ours.config
    model = importlib.import_module("models_mae").MaskedAutoencoderViT(
        img_size=vit.image_size[0], patch_size=vit.patch_size[0], in_chans=vit.channels, embed_dim=vit.width, depth=vit.depth,
        num_heads=vit.heads, decoder_embed_dim=config.decoder_width, decoder_depth=config.decoder_depth,
        decoder_num_heads=config.decoder_heads, norm_layer=lambda size: nn.LayerNorm(size, eps=1e-6),
        norm_pix_loss=config.target == "normalised",
    )  # fmt: skip
    model.load_state_dict(mae_release.state_of(ours))
    model = model.to(device).train()
    images, noise = pictures(vit, count, device), noise_of(ours, count).to(device)
    rand = torch.rand
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, betas=(0.9, 0.95))

    def step() -> Tensor:
        torch.rand = lambda *args, **kwargs: noise  # the code draws its mask from here
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss, _, _ = model(images, mask_ratio=config.mask_ratio)
        torch.rand = rand
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


def peak_bytes(step: Stepper, device: torch.device) -> int:
    """The most memory of tensors made within a step; weights and optimiser state, alike on all sides, are not counted."""
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Live() as live:
        step()
    return live.peak


if __name__ == "__main__":
    keep_heap()
    main()
