"""The Transformer of 2017 beside torch's own, its decoding with and without a memory, and beam search beside slow searches."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.fast import choose
from unveil.blocks.kv_cache import ROOM
from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.errors import UnveilError
from unveil.models.beam_search import beam_search, greedy_search, length_penalty
from unveil.models.seq2seq import CachedDecoder, Seq2Seq, Seq2SeqConfig
from unveil.tasks.translate import translate_tokens

SMALL = Seq2SeqConfig(words=13, width=16, depth=2, heads=4, mlp_ratio=2.0, longest=70, dropout=0.0)


@pytest.fixture
def translator() -> Seq2Seq:
    torch.manual_seed(0)
    made = Seq2Seq(SMALL).eval()
    for parameter in made.parameters():  # biases and norms too
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        made.embedding *= 3.0
        made.embedding[END] /= 3.0  # or each sentence ends at once
    return made


def sentences(*lengths: int, words: int = SMALL.words) -> Tensor:
    """Padded rows of words; the last one of each is END."""
    rows = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(3, words, (length,))
        row[length - 1] = END
    return rows


def torchs_own(ours: Seq2Seq) -> tuple[nn.Transformer, dict[str, str]]:
    """`torch.nn.Transformer` with the same weights, and what it calls each of ours."""
    theirs = nn.Transformer(
        SMALL.width,
        SMALL.heads,
        SMALL.depth,
        SMALL.depth,
        int(SMALL.width * SMALL.mlp_ratio),
        0.0,
        layer_norm_eps=1e-6,
        batch_first=True,
    )
    theirs.encoder.norm = theirs.decoder.norm = None  # a norm after post-norm blocks is not in the paper
    state, called = {}, {}
    for side in ("encoder", "decoder"):
        norms = {"norm1": "norm1", "norm_cross": "norm2", "norm2": "norm2" if side == "encoder" else "norm3"}
        names = {"attention": "self_attn", "cross": "multihead_attn", "mlp.0": "linear1", "mlp.2": "linear2", **norms}
        for name, value in getattr(ours, side).state_dict().items():
            _, i, rest = name.split(".", 2)
            mine = next(each for each in names if rest.startswith(f"{each}."))
            rest = rest.removeprefix(f"{mine}.").replace("query_key_value.", "in_proj_").replace("out.", "out_proj.")
            called[f"{side}.{name}"] = f"{side}.layers.{i}.{names[mine]}.{rest}"
            state[called[f"{side}.{name}"]] = value
    theirs.load_state_dict(state)
    return theirs, called


def test_forward_and_gradients_are_those_of_torch(translator: Seq2Seq) -> None:
    source, target = sentences(9, 5, 7), sentences(6, 8, 3)
    translator.train()  # torch's fast path for inference is another code
    (theirs, called), embedding = torchs_own(translator), translator.embedding.detach().clone().requires_grad_()

    def embed(tokens: Tensor) -> Tensor:
        places, each = torch.arange(tokens.shape[1])[:, None], torch.arange(8)
        angle = places / 10000 ** (2 * each / 16)
        return embedding[tokens] * 4.0 + torch.cat([angle.sin(), angle.cos()], dim=1)

    causal = nn.Transformer.generate_square_subsequent_mask(8).isinf()
    out = theirs(
        embed(source),
        embed(target),
        tgt_mask=causal,
        src_key_padding_mask=source == PAD,
        tgt_key_padding_mask=target == PAD,
        memory_key_padding_mask=source == PAD,
    )
    expected, found = out @ embedding.T, translator(source, target)
    true = target != PAD
    torch.testing.assert_close(found[true], expected[true], rtol=1e-5, atol=1e-5 * float(expected.detach()[true].abs().max()))
    pull = torch.randn_like(found) * true[:, :, None]
    (found * pull).sum().backward()
    (expected * pull).sum().backward()

    def same(a: Tensor, b: Tensor, name: str) -> None:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), msg=lambda text: f"{name}: {text}")

    same(translator.embedding.grad, embedding.grad, "embedding")
    others = dict(theirs.named_parameters())
    assert {name for name, _ in translator.named_parameters()} == {"embedding", *called}
    assert set(called.values()) == set(others)
    for name, parameter in translator.named_parameters():
        if name in called:
            same(parameter.grad, others[called[name]].grad, name)


def test_one_matrix_embeds_and_scores(translator: Seq2Seq) -> None:
    names = {name for name, p in translator.named_parameters() if p.shape == (SMALL.words, SMALL.width)}
    assert names == {"embedding"}
    with torch.no_grad():
        translator.embedding[7] = 0.0
        assert (translator(sentences(4), sentences(5))[..., 7] == 0).all()
        position = translator.embed(torch.tensor([[7, 7]]))
    torch.testing.assert_close(position[0], translator.positions[:2])


def test_what_comes_later_and_padding_change_nothing(translator: Seq2Seq) -> None:
    source, target = sentences(5), sentences(6)
    plain = translator(source, target)
    longer = torch.cat([source, torch.full((1, 3), PAD)], dim=1), torch.cat([target, torch.tensor([[5, PAD]])], dim=1)
    torch.testing.assert_close(translator(*longer)[:, :6], plain)
    with pytest.raises(UnveilError, match="a sentence has 71 tokens or more, but the model takes up to 70"):
        translator(source, sentences(71))


class Uncached:
    """The obvious way: everything is computed again for each word, and sentences are told apart by the parents alone."""

    def __init__(self, translator: Seq2Seq, source: Tensor, beams: int) -> None:
        self.translator, self.source = translator, source.repeat_interleave(beams, dim=0)
        self.rows, self.counts = torch.empty(len(self.source), 0, dtype=torch.int64), []

    def __call__(self, words: Tensor, parents: Tensor | None) -> Tensor:
        if parents is not None:
            self.source, self.rows = self.source[parents], self.rows[parents]
        self.rows = torch.cat([self.rows, words[:, None]], dim=1)
        self.counts.append(len(words))
        return self.translator(self.source, self.rows)[:, -1] + self.ends()

    def ends(self) -> Tensor:
        """Added to the scores, so that each sentence ends at times of its own, which depend on its source."""
        now = (self.source.sum(dim=1) + self.rows.shape[1]) % 29 == 0
        return torch.where(now[:, None] & (torch.arange(SMALL.words) == END), 8.0, 0.0)


class Both:
    """Compares each step of the cached decoder with the uncached one."""

    def __init__(self, translator: Seq2Seq, source: Tensor, beams: int) -> None:
        self.cached, self.uncached = CachedDecoder(translator, source, beams), Uncached(translator, source, beams)

    def __call__(self, words: Tensor, parents: Tensor | None) -> Tensor:
        expected = self.uncached(words, parents)
        found = self.cached(words, parents) + self.uncached.ends()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return found


LENGTHS, LONGEST = (9, 4, 6, 2, 17, 1, 11, 5), (12, 40, 7, 16, 33, 1, 17, 20)
"""Sources of several lengths, and translations that fill the room of a cache, or nearly, or need more of it."""


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("beams", [1, 3])
def test_with_and_without_a_cache_each_step_is_the_same(translator: Seq2Seq, beams: int, times: int, plain: bool) -> None:
    torch.manual_seed(1)
    source, longest = sentences(*LENGTHS * times), torch.tensor(LONGEST * times)
    both = Both(translator, source, beams)
    with torch.no_grad(), choose.turned_off(*(choose.NAMES if plain else ())):
        found, scores = beam_search(both, longest, beams=beams, alpha=0.6)
    expected, other = beam_search(Uncached(translator, source, beams), longest, beams=beams, alpha=0.6)
    assert torch.equal(found, expected)
    torch.testing.assert_close(scores, other, rtol=1e-5, atol=1e-5)
    lengths = [row.index(END) if END in row else len(row) for row in found.tolist()]
    assert len(set(lengths)) > 3
    assert max(lengths) > ROOM  # the cache grew
    cut = sum(length == limit for length, limit in zip(lengths, longest.tolist(), strict=True))
    assert 0 < cut < len(lengths) - 2  # the others ended
    assert len(set(both.uncached.counts)) > 2  # sentences left at several times
    assert both.uncached.counts == sorted(both.uncached.counts, reverse=True)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_translation_does_not_depend_on_its_batch(translator: Seq2Seq, beams: int) -> None:
    torch.manual_seed(2)
    rows = [torch.randint(3, SMALL.words, (length,)).tolist() for length in LENGTHS * 3]

    def translated(rows: list[list[int]], batch_size: int) -> list[list[int]]:
        return translate_tokens(translator, rows, beams=beams, length_penalty=0.6, batch_size=batch_size)

    together = translated(rows, 64)
    assert len({tuple(row) for row in together}) > 6
    assert translated(rows, 5) == together
    assert [translated([row], 1)[0] for row in rows] == together
    assert translated(rows[::-1], 7) == together[::-1]


def test_greedy_search_takes_the_likeliest_word_of_the_whole_model(translator: Seq2Seq) -> None:
    torch.manual_seed(3)
    source, longest = sentences(*LENGTHS), torch.tensor(LONGEST)
    found = greedy_search(Both(translator, source, 1), longest)
    for i, row in enumerate(found.tolist()):
        own, written = source[i : i + 1, : LENGTHS[i]], [BEGIN]
        while len(written) <= LONGEST[i] and written[-1] != END:
            alone = Uncached(translator, own, 1)
            for word in written:
                logits = alone(torch.tensor([word]), None)
            written.append(int(logits[0].argmax()))
        assert row == (written[1:] + [END] * max(LONGEST))[: max(LONGEST)]


class Table:
    """A language of a few words whose chances hang on the last two, drawn at random for each sentence."""

    def __init__(self, count: int, beams: int, words: int, seed: int) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.logs = (2 * torch.randn(count, words, words, words, generator=chance)).log_softmax(dim=-1)
        self.last = torch.full((count * beams,), PAD)
        self.sentence = torch.arange(count).repeat_interleave(beams)

    def __call__(self, words: Tensor, parents: Tensor | None) -> Tensor:
        if parents is not None:
            self.sentence, self.last = self.sentence[parents], self.last[parents]
        before, self.last = self.last, words
        return self.logs[self.sentence, before, words]

    def chance_of(self, which: int, row: tuple[int, ...]) -> float:
        """The log-probability of a whole sentence."""
        seen = (PAD, BEGIN, *row)
        return sum(float(self.logs[(which, *seen[i : i + 3])]) for i in range(len(row)))


def all_sentences(words: int, longest: int) -> list[tuple[int, ...]]:
    """Every sentence of up to so many words that ends, and ends once."""
    others = [word for word in range(words) if word != END]
    return [(*row, END) for length in range(longest) for row in itertools.product(others, repeat=length)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_is_wide_enough_finds_the_best_of_all_sentences(alpha: float) -> None:
    words, longest, beams = 4, 5, 500
    table = Table(6, beams, words, seed=0)
    found, scores = beam_search(table, torch.full((6,), longest), beams=beams, alpha=alpha)
    for i in range(6):
        every = {row: table.chance_of(i, row) / ((5 + len(row)) / 6) ** alpha for row in all_sentences(words, longest)}
        best = max(every, key=every.__getitem__)
        row = found[i].tolist()
        assert tuple(row[: row.index(END) + 1]) == best
        assert float(scores[i]) == pytest.approx(every[best], abs=1e-4)


def searched_slowly(table: Table, which: int, words: int, longest: int, beams: int, alpha: float) -> tuple[list[int], float]:
    """Beam search of one sentence with lists, as its docstring tells it."""
    running, ended = [((), 0.0)], []
    for length in range(1, longest + 1):
        ways = [((*row, word), table.chance_of(which, (*row, word))) for row, _ in running for word in range(words)]
        ways.sort(key=lambda way: -way[1])
        ended += [(row[:-1], log / length_penalty(length, alpha)) for row, log in ways[:beams] if row[-1] == END]
        running = [way for way in ways if way[0][-1] != END][:beams]
        best = max((score for _, score in ended), default=-math.inf)
        if len(ended) >= beams or best >= running[0][1] / length_penalty(longest, alpha):
            break
    ended = ended or [(running[0][0], running[0][1] / length_penalty(longest, alpha))]
    row, score = max(ended, key=lambda way: way[1])
    return list(row), score


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_narrow_beams_do_what_a_slow_search_does(beams: int) -> None:
    count, words, longest = 40, 6, torch.arange(40) % 9 + 1
    table = Table(count, beams, words, seed=1)
    found, scores = beam_search(table, longest, beams=beams, alpha=0.6)
    cut = 0
    for i in range(count):
        row, score = searched_slowly(table, i, words, int(longest[i]), beams, 0.6)
        assert found[i].tolist() == row + [END] * (9 - len(row)), i
        assert float(scores[i]) == pytest.approx(score, abs=1e-4)
        cut += len(row) == longest[i]
    assert 0 < cut < count


@pytest.mark.parametrize("words", [6, 150])
def test_one_beam_is_greedy(words: int) -> None:
    longest = torch.arange(20) % 12 + 1
    found, _ = beam_search(Table(20, 1, words, seed=2), longest, beams=1, alpha=0.6)
    table = Table(20, 1, words, seed=2)
    assert torch.equal(greedy_search(table, longest), found)
    for i, row in enumerate(found.tolist()):
        seen = [PAD, BEGIN]
        while len(seen) < longest[i] + 2 and seen[-1] != END:
            seen.append(int(table.logs[i, seen[-2], seen[-1]].argmax()))
        assert row == (seen[2:] + [END] * 12)[:12]


def test_attention_is_what_the_decoder_does(translator: Seq2Seq) -> None:
    source, target = sentences(5), sentences(4)
    seen = translator.attention(source, target)
    assert seen.shape == (2, 1, 4, 4, 5)
    torch.testing.assert_close(seen.sum(dim=-1), torch.ones(2, 1, 4, 4))
    context, allowed = translator.encode(source)
    block = translator.decoder.blocks[0]
    x = translator.embed(target)
    x = block.norm1(x + block.attention(x, causal=True))
    value = block.cross.project(x, context)[2]
    mixed = block.cross.out((seen[0] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, block.cross(x, context, allowed=allowed))
