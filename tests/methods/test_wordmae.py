"""A masked autoencoder of words: the encoder sees nothing of what is hidden, and the loss is that of a slow loop."""

import pytest
import torch
import torch.nn.functional as F

from unveil.blocks.stateless_random import sample_keys
from unveil.errors import UnveilError
from unveil.methods.wordmae import WordMAE, WordMAEConfig
from unveil.models.bert import TextConfig
from unveil.text.wordpiece import SPECIAL, TextBatch

SHAPE = TextConfig(width=32, depth=2, heads=2, vocabulary=(*SPECIAL, *(f"w{i}" for i in range(40))), length=16, dropout=0.0)
CLS, SEP = SHAPE.token_id("[CLS]"), SHAPE.token_id("[SEP]")


def built(**options: float) -> WordMAE:
    torch.manual_seed(0)
    return WordMAE.build(SHAPE, WordMAEConfig(**options))  # type: ignore[arg-type]


def texts(count: int = 3) -> TextBatch:
    words = torch.randint(len(SPECIAL), len(SHAPE.vocabulary), (count, 14), generator=torch.Generator().manual_seed(1))
    ends = [torch.full((count, 1), number) for number in (CLS, SEP)]
    return TextBatch(torch.cat([ends[0], words, ends[1]], dim=1), sample_keys(0, 0, count))


def test_each_row_hides_as_many_and_no_special_piece() -> None:
    learner, batch = built(mask_ratio=0.5), texts()
    mask = learner.mask_texts(batch.ids, batch.keys)
    assert mask.hide.shape == (3, 8)
    assert mask.counted.all()
    together = torch.cat([mask.keep, mask.hide], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(16).expand(3, -1))
    assert mask.hide.tolist() != mask.hide[:1].expand(3, -1).tolist()  # each its own
    all_but_two = built(mask_ratio=0.95).mask_texts(batch.ids, batch.keys)
    assert (~all_but_two.counted).sum(dim=1).tolist() == [1, 1, 1]  # 15 of 16: [SEP] had to go, [CLS] stays
    assert all_but_two.keep.tolist() == [[0]] * 3


def test_the_encoder_sees_nothing_of_what_is_hidden() -> None:
    learner, batch = built().eval(), texts()
    mask = learner.mask_texts(batch.ids, batch.keys)
    other = batch._replace(ids=batch.ids.scatter(1, mask.hide, len(SPECIAL)))
    assert torch.equal(learner.predict_words(batch, mask), learner.predict_words(other, mask))
    shown = batch._replace(ids=batch.ids.scatter(1, mask.keep[:, 1:2], len(SPECIAL)))
    assert not torch.allclose(learner.predict_words(batch, mask), learner.predict_words(shown, mask))


def test_the_loss_is_that_of_a_slow_loop() -> None:
    learner, batch = built(decoder_depth=2).double().eval(), texts()
    mask, encoder = learner.mask_texts(batch.ids, batch.keys), learner.encoder
    losses = []
    for row in range(3):
        keep, hide = mask.keep[row].tolist(), mask.hide[row].tolist()
        seen = encoder(batch.ids[row : row + 1], order=torch.tensor([keep]))[0]
        tokens = torch.zeros(16, 32, dtype=torch.float64)
        for token, place in zip(seen, keep, strict=True):
            tokens[place] = learner.decoder_embed(token)
        for place in hide:
            tokens[place] = learner.mask_token
        decoded = learner.decoder((tokens + learner.decoder_positions)[None])[0]
        for place in hide:
            scores = encoder.words.weight @ learner.norm(F.gelu(learner.dense(decoded[place]))) + learner.bias
            losses.append(-scores.log_softmax(dim=0)[batch.ids[row, place]])
    torch.testing.assert_close(learner(batch).loss, torch.stack(losses).mean().float(), rtol=1e-6, atol=0)


def test_it_learns_a_text_by_heart() -> None:
    learner, batch = built(mask_ratio=0.3), texts(2)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        losses.append(learner(batch).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    assert learner.eval().validation_metrics(batch)["word_accuracy"] == 1.0
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad and p is not learner.encoder.segments)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UnveilError, match="is not between 0 and 1"):
        built(mask_ratio=1.0)
    with pytest.raises(UnveilError, match="cannot attend to the visible words"):
        built(decoder_depth=0)
