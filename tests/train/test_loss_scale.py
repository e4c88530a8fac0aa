"""float16 with a loss scale: overflows are dropped and not counted, clipping sees the true gradients, and resume is exact."""

import pytest
import torch
from torch import nn

from tests.train.test_loop import Bare, Lines, Numbers, Small, recipe, timeless
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Step
from unveil.runs import session
from unveil.train import loss_scale, parallel
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.loss_scale import LossScale
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, float32_products, resolve_precision
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Recorder
from unveil.train.signals import Agreement

CPU, GPU = World(torch.device("cpu")), World(torch.device("cuda"))


def half(optim: OptimConfig | None = None, precision: str = "float16", **training: float) -> Recipe:
    options = recipe(optim or OptimConfig(base_lr=0.03), **{"accum_steps": 1, "log_every": 1} | training)
    return Recipe(options.training, options.optim, HardwareConfig(precision=precision), CPU)


class Steep(Small):
    """The gradients overflow at the first scales."""

    def forward(self, batch: Batch) -> Step:
        return Step(super().forward(batch).loss * 500, {})


class SteepBare(Bare):
    """The same, with a buffer, and nothing to do after a step."""

    def forward(self, batch: Batch) -> Step:
        return Step(super().forward(batch).loss * 500, {})


def test_the_scale_is_that_of_the_scaler_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    ours, theirs = LossScale(CPU.device), torch.amp.GradScaler("cpu", init_scale=loss_scale.FIRST, growth_interval=3)
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    seen = set()
    for bad in torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.18:
        parameter.grad = torch.full((2,), float("inf") if bad else 1.0)
        theirs.scale(torch.zeros(()))  # makes its tensors
        theirs.step(optimizer)
        theirs.update()
        ours.update(bad, bad)
        assert float(ours.scale) == theirs.get_scale()
        seen.add(float(ours.scale))
    assert min(seen) < loss_scale.FIRST < max(seen)


def test_an_overflow_drops_the_step_and_halves_the_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(Agreement, "_save_due", lambda self: True)
    checkpoints, lines = Checkpoints(tmp_path, keep=99), Lines()
    train(Steep(), Numbers(), half(max_skipped_steps=1), checkpoints=checkpoints, sinks=[lines])
    scales = [checkpoints.manifest(step)["loss_scale"]["scale"] for step in range(1, 21)]
    dropped = [step for step, (a, b) in enumerate(zip([2.0**16, *scales], scales, strict=False), 1) if b == a / 2]
    assert 3 <= len(dropped) <= 12
    assert dropped[0] == 1
    assert [record["step"] for record in lines.records] == [step for step in range(1, 21) if step not in dropped]
    assert all(checkpoints.manifest(step)["skipped"]["count"] == 0 for step in range(1, 21))
    assert not any("skipped_steps" in record for record in lines.records)
    assert all(record["loss_scale"] == scales[record["step"] - 2] for record in lines.records)  # after the step before
    for step in range(2, 21):
        before, after = (checkpoints.load(at, "model") for at in (step - 1, step))
        same = all(torch.equal(value, after[key]) for key, value in before.items())
        assert same == (step in dropped), step


@pytest.mark.parametrize("last", [1, 4, 9, 15])
def test_a_killed_run_resumes_bit_identical(tmp_path, monkeypatch, last):
    """Also the number of steps until the scale grows again."""
    monkeypatch.setattr(Agreement, "_save_due", lambda self: True)
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 4)
    options = half(log_every=5, accum_steps=2)
    train(whole := Steep(), Numbers(), options, checkpoints=Checkpoints(tmp_path / "whole"), sinks=[lines := Lines()])
    checkpoints, killed, rest = Checkpoints(tmp_path / "killed"), Lines(), Lines()
    with pytest.raises(KeyboardInterrupt):
        train(Steep(), Numbers(last), options, checkpoints=checkpoints, sinks=[killed])
    assert train(resumed := Steep(), Numbers(), options, checkpoints=checkpoints, sinks=[rest]) == last
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert timeless(killed.records + rest.records) == timeless(lines.records)
    assert checkpoints.manifest(20)["loss_scale"] == Checkpoints(tmp_path / "whole").manifest(20)["loss_scale"]


@pytest.mark.parametrize("broken", [(), (2,), (5, 9, 10)])
def test_a_host_that_does_not_wait_learns_the_same(tmp_path, monkeypatch, broken):
    """As on a GPU: the optimiser drops an overflow by itself, and the next step has the new scale already."""
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 4)
    monkeypatch.setattr(Recorder, "_can_lag", property(lambda _: True, lambda *_: None), raising=False)
    found, lagged, follow = [], [], Recorder.follow
    monkeypatch.setattr(Recorder, "follow", lambda self, *step: (lagged.append(1), follow(self, *step))[1])
    for lags in (False, True):
        monkeypatch.setattr(Agreement, "slow", property(lambda _, lags=lags: not lags, lambda *_: None), raising=False)
        checkpoints, lines = Checkpoints(tmp_path / f"{lags}"), Lines()
        train(learner := SteepBare(), Numbers(broken=broken), half(log_every=5), checkpoints=checkpoints, sinks=[lines])
        manifest = checkpoints.manifest(20)
        found.append((learner.state_dict(), timeless(lines.records), manifest["loss_scale"], manifest["skipped"]))
        assert bool(lagged) == lags
        assert manifest["loss_scale"]["scale"] < 2**16
        assert manifest["skipped"]["count"] == len(broken)
    (one, *others), (two, *same) = found
    assert others == same
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_norms_and_clipping_are_those_of_the_true_gradients():
    found = {}
    for precision in ("float32", "float16"):
        train(learner := Small(), Numbers(), half(OptimConfig(base_lr=0.03, clip_grad=0.01), precision), sinks=[lines := Lines()])
        found[precision] = lines.records, torch.cat([p.detach().flatten() for p in learner.parameters()])
    (exact, weights), (rounded, others) = found.values()
    assert len(rounded) == len(exact) == 20
    for line, other in zip(exact, rounded, strict=True):
        assert other["gradient_norm"] == pytest.approx(line["gradient_norm"], rel=0.02)
        assert other["loss"] == pytest.approx(line["loss"], rel=0.02)
    torch.testing.assert_close(others, weights, rtol=0.02, atol=2e-3)


def test_a_scale_that_collapses_ends_the_run_with_a_sentence(tmp_path):
    class Root(Small):
        """The root of 0 has a finite value, and an infinite slope."""

        def forward(self, batch: Batch) -> Step:
            return Step(self.layers[0].weight.sum() * 0 + (self.layers[0].bias.sum() * 0).sqrt() + 2, {})

    with pytest.raises(UnveilError) as caught:
        train(Root(), Numbers(), half(epochs=10), checkpoints=(checkpoints := Checkpoints(tmp_path)))
    assert "10 of 26 steps were skipped: their loss or gradient was not finite" in str(caught.value)
    assert "The loss scale of float16 has fallen to 1, so the gradients themselves are too large." in str(caught.value)
    assert checkpoints.manifest(26)["loss_scale"]["scale"] == 1


def test_a_loss_that_is_not_finite_is_no_overflow():
    with pytest.raises(UnveilError, match="3 of 6 steps were skipped") as caught:
        train(Small(), Numbers(broken=range(3, 9)), half(max_skipped_steps=3))
    assert "fallen to 1" not in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16")]
)
def test_auto_chooses_the_fast_precision_of_a_gpu(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert resolve_precision(HardwareConfig(), GPU).precision == precision
    assert resolve_precision(HardwareConfig(precision="float32"), GPU).precision == "float32"


def test_float16_on_a_processor_without_it_is_said(monkeypatch, capsys):
    for flags, slow in ((("avx2", "avx512_bf16"), True), (("avx512_fp16",), False)):
        monkeypatch.setattr(parallel, "_cpu_flags", lambda flags=flags: frozenset(flags))
        session.join(TrainConfig(), OptimConfig(), HardwareConfig(device="cpu", precision="float16"))
        assert ("has no matrix products in float16, which may take ten times as long" in capsys.readouterr().err) == slow
    with pytest.raises(UnveilError, match="--precision tf32 needs an NVIDIA GPU of the Ampere generation"):
        session.join(TrainConfig(), OptimConfig(), HardwareConfig(device="cpu", precision="tf32"))


def test_float32_is_exact_and_tf32_is_a_choice_that_ends_with_the_run():
    def flags() -> tuple[str, str, bool, bool]:
        matrices = torch.backends.cuda.matmul
        return torch.get_float32_matmul_precision(), matrices.fp32_precision, matrices.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with float32_products("tf32", GPU.device):
        assert flags() == ("high", "tf32", True, True)
        with float32_products("float32", GPU.device):
            assert flags() == ("highest", "ieee", False, False)
        assert flags() == ("high", "tf32", True, True)
    for precision, device in (("bfloat16", GPU.device), ("tf32", CPU.device)):
        with float32_products(precision, device):
            assert flags()[0] == before[0]
    assert (flags()[0], *flags()[2:]) == (before[0], *before[2:])
