"""BERT: which pieces are hidden, and its numbers against transformers'."""

import pytest
import torch
from torch import Tensor

from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.errors import UnveilError
from unveil.methods.bert import BERT, BERTConfig
from unveil.models.bert import TextConfig, TextEncoder
from unveil.text.wordpiece import SPECIAL, TextBatch

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = (*SPECIAL, *(f"word{i}" for i in range(60)), *(f"##s{i}" for i in range(35)))


def bert(length: int = 32, **options: object) -> BERT:
    torch.manual_seed(0)
    shape = TextConfig(width=48, depth=2, heads=3, vocabulary=WORDS, length=length, dropout=0.0)
    return BERT.build(shape, BERTConfig(**options))


def rows(count: int, length: int = 32) -> Tensor:
    ids = torch.randint(len(SPECIAL), len(WORDS), (count, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1], ids[:, length // 2] = CLS, SEP, SEP
    return ids


@pytest.mark.parametrize("whole", [False, True])
def test_hidden_pieces_against_a_slow_loop(whole: bool) -> None:
    learner, ids, keys = bert(whole_words=whole, mask_ratio=0.25), rows(16), sample_keys(0, 0, 16)
    hidden = learner.masked(ids, keys)
    noise, fates = uniform(keys, 32, Stream.MASK), uniform(keys, 16, Stream.REPLACEMENT)
    cut = 0
    for b in range(16):
        words: list[list[int]] = []  # the places of each word
        for place, piece in enumerate(ids[b].tolist()):
            if whole and words and WORDS[piece].startswith("##"):
                words[-1].append(place)
            else:
                words.append([place])
        if whole:
            scored = [(noise[b, number].item(), places) for number, places in enumerate(words)]
        else:
            scored = [(noise[b, places[0]].item(), places) for places in words]
        room, chosen = 8, []
        for _, places in sorted(scored):
            places = [place for place in places if ids[b, place] not in (CLS, SEP)]
            if len(places) > room:
                break
            chosen, room = chosen + places, room - len(places)
        cut += room
        order = hidden.order[b].tolist()
        assert sorted(order) == list(range(32))
        assert order[-9] == 0
        assert [place for place, counted in zip(order[-8:], hidden.mask.counted[b], strict=True) if counted] == chosen
        for i, place in enumerate(order[-8:]):
            fate, other = fates[b, i].item(), int(fates[b, 8 + i].item() * len(WORDS))
            expected = MASK if fate < 0.8 else other if fate < 0.9 else ids[b, place]
            assert hidden.ids[b, place] == (expected if place in chosen else ids[b, place])
            assert hidden.mask.labels[b, i] == ids[b, place]
        shown = [place for place in range(32) if place not in order[-8:]]
        assert torch.equal(hidden.ids[b, shown], ids[b, shown])
    assert (cut > 0) == whole  # words that had no room were met


def test_shares_of_the_three_fates() -> None:
    learner, ids = bert(64), rows(4000, 64)
    hidden = learner.masked(ids, sample_keys(0, 0, 4000))
    assert hidden.mask.labels.shape == (4000, 10)
    assert hidden.mask.counted.all()
    shown = hidden.ids.gather(1, hidden.order[:, -10:])
    masked, kept = (shown == MASK).float().mean(), (shown == hidden.mask.labels).float().mean()
    assert masked == pytest.approx(0.8 + 0.1 / 100, abs=0.008)
    assert kept == pytest.approx(0.1 + 0.1 / 100, abs=0.006)
    others = shown[(shown != MASK) & (shown != hidden.mask.labels)]
    assert len(set(others.tolist())) == len(WORDS) - 1  # any piece but [MASK]


def test_loss_against_a_slow_loop() -> None:
    learner, ids, keys = bert(next_sentence=True), rows(3), sample_keys(0, 0, 3)
    parts, labels = (torch.arange(32) > 16).long().expand(3, -1), torch.tensor([0, 1, 1])
    step = learner(TextBatch(ids, keys, parts, follows=labels))
    hidden, expected = learner.masked(ids, keys), 0.0
    for b in range(3):
        tokens = learner.encoder(hidden.ids[b : b + 1], parts[b : b + 1])  # in their own order, all of them
        chances = learner.predict_words(tokens)[0].log_softmax(dim=-1)
        for place, truth in zip(hidden.order[b, -5:], hidden.mask.labels[b], strict=True):
            expected -= chances[place, truth].item() / 15
        expected -= learner.predict_next_sentence(tokens[:, 0]).log_softmax(dim=-1)[0, labels[b]].item() / 3
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)


def test_bad_input_gets_a_sentence() -> None:
    with pytest.raises(UnveilError, match="not between 0 and 1"):
        bert(mask_ratio=1.0)
    with pytest.raises(UnveilError, match="takes up to 32"):
        bert().encoder(rows(1, 33))
    with pytest.raises(UnveilError, match=r"has no \[PAD\]"):
        TextEncoder(TextConfig(width=48, depth=1, heads=3, vocabulary=("a", "b")))


def test_what_fills_up_a_row_is_not_looked_at() -> None:
    learner, ids = bert().eval(), rows(2)
    short = ids[:, :20]
    longer = torch.cat([short, torch.full((2, 12), PAD)], dim=1)
    for pool in ("mean", "class"):
        found, expected = (learner.encoder.features(each, pool) for each in (longer, short))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
