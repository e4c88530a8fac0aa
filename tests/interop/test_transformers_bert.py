"""BERT beside transformers': the same weights, the same numbers and gradients; folders in and out."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unveil.errors import UnveilError
from unveil.interop import transformers_bert
from unveil.interop.load import load
from unveil.interop.state_dict_map import to_state_dict
from unveil.interop.transformers_bert import map_of
from unveil.methods.bert import BERT, BERTConfig
from unveil.models.bert import TextConfig
from unveil.text.wordpiece import SPECIAL

transformers = pytest.importorskip("transformers")
WORDS = (*SPECIAL, *(f"word{i}" for i in range(95)))


def theirs(kind: str, folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    facts = {
        "vocab_size": 100,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "max_position_embeddings": 24,
        "initializer_range": 0.2,
    }
    model = getattr(transformers, kind)(transformers.BertConfig(**facts | changes)).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return model


def question() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pieces, two segments, and rows of different lengths."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(100, (3, 20), generator=chance)
    return ids, (torch.arange(20) > 9).long().expand(3, -1), torch.arange(20) < torch.tensor([[20], [13], [5]])


def test_same_words_and_gradients(tmp_path: Path) -> None:
    model = theirs("BertForMaskedLM", tmp_path)
    learner = load(tmp_path)
    assert isinstance(learner, BERT)
    ids, segments, real = question()
    mine = learner.token_logits(ids, segments, real)
    other = model(ids, token_type_ids=segments, attention_mask=real.long()).logits
    torch.testing.assert_close(mine[real], other[real], rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))
    for scores in (mine, other):
        F.cross_entropy(scores[real], ids[real].flip(0)).backward()
    own = {name: p.grad for name, p in learner.named_parameters()}
    layout = map_of(3, "bert.", word_head=True, pairs=False)
    wanted = dict(model.named_parameters())
    assert {name for entry in layout.values() for name in entry.names} == wanted.keys()
    for name, entry in layout.items():
        grad = torch.cat([wanted[part].grad for part in entry.names])
        near = 1e-5 * float(grad.abs().max()) + 1e-8
        torch.testing.assert_close(own[name], grad, rtol=1e-5, atol=near, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining", "BertModel"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    model = theirs(kind, tmp_path / "theirs")
    learner = load(tmp_path / "theirs")
    transformers_bert.export(learner, tmp_path / "ours")
    again = getattr(transformers, kind).from_pretrained(tmp_path / "ours").eval()
    ids, segments, real = question()
    before, after = (m(ids, token_type_ids=segments, attention_mask=real.long()) for m in (model, again))
    torch.testing.assert_close(after[0][real], before[0][real], rtol=1e-6, atol=1e-6)
    if kind == "BertForPreTraining":
        torch.testing.assert_close(after[1], before[1], rtol=1e-6, atol=1e-6)
        mine = learner.predict_next_sentence(learner.encoder(ids, segments, real=real)[:, 0])
        torch.testing.assert_close(mine, before[1], rtol=1e-4, atol=1e-5)
    words = transformers.BertTokenizer.from_pretrained(tmp_path / "ours")
    assert words.convert_tokens_to_ids(["word7", "[MASK]"]) == [12, 4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"hidden_act": "relu"}, "an encoder with gelu"), ({"is_decoder": True}, "decoder"), ({"vocab_size": 90}, "100 tokens")],
)
def test_what_ours_does_not_do_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    theirs("BertForMaskedLM", tmp_path, **changes)
    with pytest.raises(UnveilError, match=says):
        load(tmp_path)


def test_every_tensor_is_in_the_map() -> None:
    shape = TextConfig(width=48, depth=2, heads=3, vocabulary=WORDS)
    for pairs in (False, True):
        learner = BERT.build(shape, BERTConfig(next_sentence=pairs))
        assert len(to_state_dict(learner, map_of(2, "bert.", word_head=True, pairs=pairs), (1, 1))) == 5 + 2 * 16 + 5 + 4 * pairs
