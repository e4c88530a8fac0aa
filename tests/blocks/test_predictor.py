"""The predictor, one sample and one token at a time."""

import pytest
import torch
from torch import Tensor, nn

from unveil.blocks.positions import sincos_2d
from unveil.blocks.predictor import Predictor, predict_tokens
from unveil.blocks.transformer import Transformer, TransformerConfig
from unveil.errors import UnveilError

pytestmark = pytest.mark.usefixtures("way")
GRID, B, D, E = (2, 3), 2, 10, 16
KEEP, HIDE = torch.tensor([[4, 0], [2, 3]]), torch.tensor([[1, 5, 3], [0, 5, 4]])


def predictor(**options: int) -> Predictor:
    torch.manual_seed(0)
    made = Predictor(GRID, D, width=E, depth=2, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def slowly(made: Predictor, encoded: Tensor, keep: list[int], hide: list[int], wanted: list[int]) -> Tensor:
    """The predictions for the patches `wanted` of one image, whose tokens are in the order of the image."""
    positions = torch.cat([torch.zeros(1, E), sincos_2d(GRID, E)])
    tokens = {-1: made.embed(encoded[0]) + positions[0]}
    tokens |= {n: made.embed(token) + positions[1 + n] for n, token in zip(keep, encoded[1:], strict=True)}
    tokens |= {n: made.mask_token + positions[1 + n] for n in hide}
    places = sorted(tokens)
    out = made.transformer(torch.stack([tokens[n] for n in places])[None])[0]
    return torch.stack([made.head(out[places.index(n)]) for n in wanted])


@pytest.mark.parametrize("every", [False, True])
def test_predictions_one_image_at_a_time(every: bool) -> None:
    made, encoded = predictor(), torch.randn(B, 3, D)
    found = made(encoded, KEEP, HIDE, every)
    assert found.shape == (B, 5 if every else 3, D)
    for b in range(B):
        keep, hide = KEEP[b].tolist(), HIDE[b].tolist()
        expected = slowly(made, encoded[b], keep, hide, keep + hide if every else hide)
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-5)


def test_one_prediction_for_each_target_block() -> None:
    """I-JEPA predicts each block on its own: the blocks of an image are rows of a batch."""
    made, encoded, targets = predictor(), torch.randn(B, 3, D), torch.stack([HIDE[:, :2], HIDE[:, 1:]], dim=1)  # (B, 2, 2)
    rows = made(encoded.repeat_interleave(2, dim=0), KEEP.repeat_interleave(2, dim=0), targets.flatten(0, 1)).unflatten(0, (B, 2))
    for k in range(2):
        torch.testing.assert_close(rows[:, k], made(encoded, KEEP, targets[:, k]), rtol=1e-4, atol=1e-5)


def test_shapes() -> None:
    made = predictor(output_width=7, heads=4)
    assert made(torch.randn(B, 3, D), KEEP, HIDE).shape == (B, 3, 7)
    assert made.transformer.config.heads == 4
    assert not made.state_dict().keys() & {"positions"}
    assert Predictor((4, 4), 96, width=48, depth=1).transformer.config.heads == 3
    with pytest.raises(UnveilError, match="width 20 does not divide into heads"):
        Predictor(GRID, D, width=20, depth=1)


@pytest.mark.parametrize("leading", [0, 1, 2])
def test_any_number_of_leading_tokens_and_tokens_of_all_positions(leading: int) -> None:
    torch.manual_seed(1)
    embed, decoder = nn.Linear(D, E), Transformer(TransformerConfig(width=E, depth=2, heads=2))
    positions, mask_token = torch.randn(leading + 6, E), torch.randn(E)
    encoded = torch.randn(B, leading + 2, D)
    rest = torch.tensor([[1, 5, 3, 2], [0, 5, 4, 1]])  # with KEEP, all of the six positions
    found = predict_tokens(encoded, KEEP, rest, embed=embed, positions=positions, mask_token=mask_token, decoder=decoder)
    whole = torch.randn(B, leading + 6, D)
    every = predict_tokens(whole, KEEP, rest, embed=embed, positions=positions, mask_token=None, decoder=decoder, every=True)
    for b in range(B):
        x = (mask_token + positions).clone()
        x[:leading] = embed(encoded[b, :leading]) + positions[:leading]
        for v, n in enumerate(KEEP[b].tolist()):
            x[leading + n] = embed(encoded[b, leading + v]) + positions[leading + n]
        expected = decoder(x[None])[0]
        for m, n in enumerate(rest[b].tolist()):
            torch.testing.assert_close(found[b, m], expected[leading + n], rtol=1e-4, atol=1e-5)
        expected = decoder((embed(whole[b]) + positions)[None])[0]
        for i, n in enumerate(KEEP[b].tolist() + rest[b].tolist()):
            torch.testing.assert_close(every[b, i], expected[leading + n], rtol=1e-4, atol=1e-5)
