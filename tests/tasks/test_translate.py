"""Learning to translate: the loss, its shares, the average of the weights, exact resume, and a language that can be learned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unveil.blocks.special_tokens import PAD
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.tasks.translate import AVERAGED_PART, Translation, TranslationConfig, cross_attention, translate_tokens
from unveil.text.parallel_corpus import PairLoader
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig

CPU, EXACT = World(torch.device("cpu")), HardwareConfig(device="cpu", precision="float32")


def learner(dropout: float = 0.1) -> Translation:
    torch.manual_seed(0)
    shape = Seq2SeqConfig(words=11, width=32, depth=1, heads=2, longest=30, dropout=dropout)
    return Translation(Seq2Seq(shape), TranslationConfig())


def loader(batch_size: int = 32) -> PairLoader:
    """A language whose sentences are said backwards in the other one, each word by the next one."""
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (320,), generator=chance).tolist()
    source = [torch.randint(3, 10, (length,), generator=chance).tolist() for length in lengths]
    return PairLoader(source, [[word + 1 for word in row[::-1]] for row in source], batch_size=batch_size, seed=0)


def test_the_shares_of_a_step_have_the_gradient_of_the_whole() -> None:
    made, whole, parts = loader(), learner(0.0), learner(0.0)
    loss = whole(made.share(0, 0, 1)).loss
    loss.backward()
    losses = [parts(made.share(0, i, 4)).loss / 4 for i in range(4)]
    sum(losses).backward()
    torch.testing.assert_close(sum(losses), loss)
    for one, other in zip(whole.translator.parameters(), parts.translator.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_words_one_at_a_time() -> None:
    made, batch = learner(0.0), loader().share(0, 0, 1)
    step, smooth, true = made(batch), [], []
    for source, target in zip(batch.source, batch.target, strict=True):
        source, target = source[source != PAD], target[target != PAD]
        logs = made.translator(source[None], target[None, :-1])[0].log_softmax(dim=-1)
        for log, word in zip(logs, target[1:], strict=True):
            true.append(-log[word])
            smooth.append(-0.9 * log[word] - 0.1 * log.mean())
    torch.testing.assert_close(step.loss, torch.stack(smooth).mean())
    torch.testing.assert_close(step.metrics["cross_entropy"], torch.stack(true).mean().detach())


def test_half_precision_comes_near_and_a_step_is_one_graph() -> None:
    made, batch = learner(0.0), loader().share(0, 0, 1)
    exact = made(batch).loss
    with autocast(HardwareConfig(device="cpu", precision="bfloat16"), CPU):
        torch.testing.assert_close(made(batch).loss, exact, rtol=2e-2, atol=0.0)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="aot_eager")(batch).loss, exact)


def test_the_average_is_the_weighted_sum_that_the_formula_says() -> None:
    made, expected = learner(), None
    for n in range(1, 6):
        with torch.no_grad():
            made.translator.embedding.add_(torch.randn_like(made.translator.embedding))
        made.after_step(0.0)
        now, share = made.translator.embedding.detach().clone(), (AVERAGED_PART + 1) / (AVERAGED_PART + n)
        expected = now if expected is None else (1 - share) * expected + share * now
    torch.testing.assert_close(made.average.embedding, expected, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in made.average.parameters())
    assert not any(module.training for module in made.train().average.modules())


def run(folder: Path | None, epochs: float, stop: int = 10**9) -> dict[str, Tensor]:
    """The tensors at the end of a run, or of one that breaks off after a step."""

    class Breaks(Translation):
        def after_step(self, progress: float) -> None:
            super().after_step(progress)
            if int(self.steps) == stop:
                raise TimeoutError

    made = learner()
    made.__class__ = Breaks
    kept = None if folder is None else Checkpoints(folder)
    optim = OptimConfig(base_lr=4e-2, schedule="inverse_sqrt", warmup_ratio=0.1, weight_decay=0.0, beta2=0.98)
    config = TrainConfig(epochs=epochs, batch_size=32, accum_steps=1, log_every=1, save_seconds=0.0)
    try:
        train(made, loader(), Recipe(config, optim, EXACT, CPU), checkpoints=kept)
    except TimeoutError:
        assert stop < 100
    return {key: value.detach().clone() for key, value in made.state_dict().items()}


def test_a_run_that_was_cut_ends_bit_identical(tmp_path: Path) -> None:
    whole = run(None, 1.0)
    run(tmp_path, 1.0, stop=6)
    assert Checkpoints(tmp_path).newest() in range(1, 6)
    again = run(tmp_path, 1.0)
    assert whole.keys() == again.keys()
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key


def test_it_learns_to_translate_and_to_look_at_the_right_words(tmp_path: Path) -> None:
    made = learner()
    made.load_state_dict(run(None, 24.0))
    made.eval()
    rows = [[3, 4, 5], [9], [7, 3, 8, 8], [4, 6]]
    expected = [[word + 1 for word in row[::-1]] for row in rows]
    for beams in (1, 4):
        found = translate_tokens(made.average, rows, beams=beams, length_penalty=0.6)
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3, found
        with_blanks = translate_tokens(made.average, [[], *rows[:2], [], *rows[2:]], beams=beams, length_penalty=0.6)
        assert with_blanks == [[], *found[:2], [], *found[2:]]
        assert translate_tokens(made.average, [[], []], beams=beams, length_penalty=0.6) == [[], []]
    looks = cross_attention(made.average, rows[0], expected[0])
    assert looks.shape == (1, 4, 4)
    assert looks[0].sum(dim=1).tolist() == pytest.approx([1.0] * 4)
