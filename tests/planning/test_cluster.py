"""The model of many GPUs: its bytes against a real learner's, its volumes against the definition, and what must grow grows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.planning.cluster import Cluster, Work, activations, bytes_sent, forecast, memory, parameters
from unveil.train.memory_trial import cost_of
from unveil.train.optim import OptimConfig, build_optimizer
from unveil.train.parallel import HardwareConfig, World

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


def paper(model: str = "vit-large", **options) -> Work:
    width, depth, heads = MODELS[model]
    patch = 14 if model == "vit-huge" else 16
    return Work(vit=ViTConfig(width=width, depth=depth, heads=heads, image_size=(224, 224), patch_size=(patch, patch)), **options)


def small() -> tuple[MAE, Work]:
    torch.manual_seed(0)
    vit = ViTConfig(width=96, depth=6, heads=3, image_size=(32, 32), patch_size=(4, 4))
    mae = MAE(ViT(vit), MAEConfig(decoder_width=48, decoder_depth=2, decoder_heads=3))
    return mae, Work(vit=vit, decoder_width=48, decoder_depth=2, batch=8)


def batch(count: int) -> Batch:
    return Batch(torch.randn(count, 3, 32, 32), torch.full((count, 2), 32), sample_keys(0, 0, count))


def test_weights_gradients_and_moments_are_those_of_a_real_learner():
    mae, work = small()
    optimizer = build_optimizer(mae, OptimConfig())
    mae(batch(2)).loss.backward()
    optimizer.step()
    trained = [p for p in mae.parameters() if p.requires_grad]
    weights, gradients = sum(p.nbytes for p in trained), sum(p.grad.nbytes for p in trained)
    moments = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim > 0)
    assert sum(p.numel() for p in trained) == parameters(work)
    assert weights + gradients + moments == memory(work, Cluster(gpus=1), "ddp", 1).state
    assert memory(work, Cluster(gpus=4), "fsdp", 1).state == (weights + gradients + moments) / 4


def test_activations_are_about_those_of_a_real_learner():
    """In bfloat16; a CPU keeps attention's maps as well, one for each head and block, which fused attention does not."""
    mae, work = small()
    half, cpu = HardwareConfig(device="cpu", precision="bfloat16"), World(torch.device("cpu"))
    low, high = (cost_of(mae, batch(n), half, cpu).kept for n in (8, 24))
    maps = 2 * 3 * (6 * 17**2 + 2 * 65**2)
    assert (high - low) / 16 - maps == pytest.approx(activations(work, 1), rel=0.15)


def test_checkpointing_keeps_less_and_computes_more():
    plain, again = paper(), paper(grad_checkpointing=True)
    assert activations(again, 1) < 0.3 * activations(plain, 1)
    assert 1.3 < again.flops / plain.flops < 1.34


@pytest.mark.parametrize(("gpus", "ddp", "fsdp"), [(1, 0.0, 0.0), (2, 4.0, 6.0), (4, 6.0, 9.0), (512, 7.984375, 11.9765625)])
def test_each_gpu_sends_so_many_bytes_a_parameter(gpus, ddp, fsdp):
    assert bytes_sent(1.0, gpus, "ddp") == ddp
    assert bytes_sent(1.0, gpus, "fsdp") == fsdp
    assert bytes_sent(1.0, gpus, "fsdp", accum_steps=2) == 2 * fsdp
    assert bytes_sent(1.0, gpus, "ddp", accum_steps=2) == ddp  # gradients travel in the last part only


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_more_gpus_take_less_time_and_never_speed_up_more_than_their_number(parallel):
    counts = [1, 8, 64, 512]
    hours = [forecast(paper(), Cluster(gpus=n), parallel).hours for n in counts]
    assert hours == sorted(hours, reverse=True)
    assert all(hours[0] / more <= 1.02 * n for n, more in zip(counts, hours, strict=True))
    kept = [forecast(paper(), Cluster(gpus=n), parallel).memory.total for n in counts[1:]]
    assert kept == sorted(kept, reverse=True)


def test_larger_encoders_take_longer_and_more_memory():
    told = [forecast(paper(name), Cluster(gpus=64)) for name in ("vit-base", "vit-large", "vit-huge")]
    assert [x.hours for x in told] == sorted(x.hours for x in told)
    assert [x.memory.total for x in told] == sorted(x.memory.total for x in told)


def test_what_binds():
    work = paper()
    fast, slow = Cluster(gpus=64, traffic=1e15), Cluster(gpus=64, between=1e8)
    assert forecast(work, fast).bottleneck == "compute"
    assert forecast(work, replace(fast, traffic=5e11)).bottleneck == "memory traffic"
    assert forecast(work, slow).bottleneck == "network"
    assert forecast(work, Cluster(gpus=512)).bottleneck == "global batch size"
    assert forecast(work, Cluster(gpus=1, memory=1e9)).bottleneck == "does not fit"
    assert forecast(work, Cluster(gpus=1, memory=1e9)).accum_steps == 0
    assert forecast(work, slow).time.exposed > 0
    assert forecast(work, Cluster(gpus=8)).time.exposed == 0


def test_a_step_is_computed_in_equal_parts_that_fit():
    told = forecast(paper("vit-huge"), Cluster(gpus=1))
    assert 4096 % told.accum_steps == 0
    assert told.memory.total <= 0.9 * 80e9
    with pytest.raises(UnveilError, match="the batch size 4096 is not a multiple of 3 GPUs: use 4095"):
        forecast(paper(), Cluster(gpus=3))


def test_the_tables_of_the_docs_are_the_model_s():
    """By step time, memory, hours and what binds; `benchmarks/scaling.py` prints them whole."""
    text, compared = DOCS.read_text(), 0
    for name in ("vit-base", "vit-large", "vit-huge"):
        lines = text.partition(f"**{name}**")[2].partition("**")[0].splitlines()
        for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:3].strip("| ").isdigit()):
            told = forecast(paper(name), Cluster(gpus=int(row[0])), "fsdp" if row[1] == "FSDP2" else "ddp")
            figures = [f"{told.memory.total / 1e9:.1f}", f"{1e3 * told.time.step:.1f}", f"{told.hours:,.1f}", told.bottleneck]
            assert [row[2], row[6], row[13], row[14]] == figures, row
            compared += 1
    assert compared == 21  # 3 encoders on 1 GPU, and on 8, 64 and 512 both ways
