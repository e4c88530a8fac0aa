"""Translation: sentences per second by greedy search and by beam search, beside `MarianMTModel` of transformers.

    python benchmarks/translate.py                                        # random weights, all translations equally long
    python benchmarks/translate.py --run runs/en-de --data multi30k/      # trained weights, real sentences of many lengths

Both sides have the same weights. With random weights, no sentence ends by itself, so both write the same number of words. With
those of a run, both translate the first test set in its order. unveil sorts the sentences by length; Marian gets them as a
user of `generate` would pass them, and once more sorted by length. The two take turns in one process. Times are those that the
process spends on the processor (on a GPU: on the wall). "Equal" is the share of sentences whose words are the same on both sides;
beam search ends by other rules in transformers, so a few differ.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MarianConfig, MarianMTModel
from turns import keep_heap, receipt, take_turns

from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.interop import translator_files
from unveil.models.seq2seq import MODELS, Seq2Seq, Seq2SeqConfig
from unveil.tasks.translate import EXTRA_LENGTH, translate_tokens
from unveil.text.parallel_corpus import read_corpus

PENALTY = 0.6
"""Exponent of the length penalty of both sides, the default of `unveil translate run`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny", help="with random weights")
    parser.add_argument("--words", type=int, default=8000, help="size of the vocabulary, with random weights")
    parser.add_argument("--length", type=int, default=20, help="tokens of each source, with random weights")
    parser.add_argument("--run", help="a run of `unveil translate train`")
    parser.add_argument("--data", help="the data of the run")
    parser.add_argument("--count", type=int, default=256, help="number of test sentences, with --data")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.run:
        translator, tokenizer = translator_files.load(args.run)
        source, _ = next(iter(read_corpus(args.data, "en", "de").tests.values()))
        rows: list[list[int]] = tokenizer.encode(source[: args.count])
    else:
        translator = endless_translator(args.model, args.words)
        rows = torch.randint(END + 1, args.words, (max(args.batch), args.length)).tolist()
    translator, marian = translator.to(device), marian_of(translator).to(device)
    shape = translator.config
    print(f"width {shape.width}, {shape.depth} + {shape.depth} blocks, {shape.heads} heads, {shape.words:,} words, float32")
    print(f"{receipt(device)}\n")
    print("| batch | beams | words per sentence | unveil, sentences/s | Marian | unveil is faster by | equal |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for batch in args.batch:
        for beams in args.beams:
            given = rows if args.run else rows[:batch]
            compare(translator, marian, given, batch, beams, device, args.rounds, by_length=False)
            if args.run and batch > 1:
                compare(translator, marian, given, batch, beams, device, args.rounds, by_length=True)


def compare(
    translator: Seq2Seq,
    marian: MarianMTModel,
    rows: Sequence[list[int]],
    batch: int,
    beams: int,
    device: torch.device,
    rounds: int,
    *,
    by_length: bool,
) -> None:
    """Prints a row of the table."""
    ours: Callable[[], list[list[int]]] = lambda: unveil_translations(translator, rows, batch, beams)  # noqa: E731
    theirs: Callable[[], list[list[int]]] = lambda: marian_translations(marian, rows, batch, beams, by_length)  # noqa: E731
    written, other = ours(), theirs()
    equal = sum(a == b for a, b in zip(written, other, strict=True)) / len(rows)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = take_turns({"unveil": ours, "Marian": theirs}, device, rounds=rounds, warmup=1, clock=clock)
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    speeds = [len(rows) / statistics.median(times) for times in seconds.values()]
    words = sum(map(len, written)) / len(rows)
    name = f"{batch}{', sorted for Marian' if by_length else ''}"
    print(
        f"| {name} | {beams} | {words:.1f} | {speeds[0]:.1f} | {speeds[1]:.1f} | {middle:.2f} ({low:.2f} to {high:.2f})"
        f" | {100 * equal:.0f} % |",
        flush=True,
    )


def unveil_translations(translator: Seq2Seq, rows: Sequence[list[int]], batch: int, beams: int) -> list[list[int]]:
    """Translations by unveil."""
    return translate_tokens(translator, rows, beams=beams, length_penalty=PENALTY, batch_size=batch)


def marian_translations(marian: Any, rows: Sequence[list[int]], batch: int, beams: int, by_length: bool) -> list[list[int]]:
    """Translations by transformers, without special tokens."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i])) if by_length else list(range(len(rows)))
    found: list[list[int]] = [[] for _ in rows]
    for first in range(0, len(rows), batch):
        indices = order[first : first + batch]
        width = max(len(rows[i]) for i in indices) + 1
        source = torch.tensor([[*rows[i], END] + [PAD] * (width - 1 - len(rows[i])) for i in indices], device=marian.device)
        out: Tensor = marian.generate(
            source,
            attention_mask=(source != PAD).long(),
            num_beams=beams,
            length_penalty=PENALTY,
            max_new_tokens=min(width + EXTRA_LENGTH, marian.config.max_position_embeddings),
            do_sample=False,
        )
        for i, row in zip(indices, out[:, 1:].tolist(), strict=True):
            found[i] = row[: row.index(END)] if END in row else row
    return found


def endless_translator(model: str, words: int) -> Seq2Seq:
    """A translator with random weights that never writes `END` or padding."""
    torch.manual_seed(0)
    width, depth, heads, mlp_ratio = MODELS[model]
    translator = Seq2Seq(Seq2SeqConfig(words=words, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)).eval()
    with torch.no_grad():  # all decoded tokens share a direction, and the words that must not be written point away from it
        translator.decoder_blocks[-1].norm2.bias[0] = 10.0
        translator.embedding[[PAD, BEGIN, END], 0] = -100.0
    return translator


def marian_of(translator: Seq2Seq) -> MarianMTModel:
    """A `MarianMTModel` with the same weights."""
    shape, hidden = translator.config, int(translator.config.width * translator.config.mlp_ratio)
    config = MarianConfig(
        vocab_size=shape.words,
        d_model=shape.width,
        encoder_layers=shape.depth,
        decoder_layers=shape.depth,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        activation_function="relu",
        max_position_embeddings=shape.longest,
        scale_embedding=True,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        decoder_start_token_id=BEGIN,
        eos_token_id=END,
        forced_eos_token_id=None,
        tie_word_embeddings=True,
    )
    marian = MarianMTModel(config).eval()
    state: dict[str, Tensor] = {"model.shared.weight": translator.embedding}
    for side in ("encoder", "decoder"):
        cross = {"cross": "encoder_attn", "norm_cross": "encoder_attn_layer_norm"} if side == "decoder" else {}
        names = {"attention": "self_attn", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"} | cross
        names |= {"mlp.0": "fc1", "mlp.2": "fc2"}
        for name, value in getattr(translator, side).state_dict().items():
            _, layer, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            own, _, projection = part.partition(".") if part.startswith(("attention", "cross")) else (part, "", "")
            base = f"model.{side}.layers.{layer}.{names[own]}"
            if projection == "query_key_value":
                for letter, piece in zip("qkv", value.chunk(3), strict=True):
                    state[f"{base}.{letter}_proj.{kind}"] = piece
            else:
                state[f"{base}.out_proj.{kind}" if projection else f"{base}.{kind}"] = value
    missing, unknown = marian.load_state_dict(state, strict=False)
    tied = {"final_logits_bias", "lm_head.weight", *(f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))}
    positions = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    if unknown or set(missing) - tied - positions:
        raise SystemExit(f"weights do not match: unknown {unknown}, missing {set(missing) - tied - positions}")
    for module in marian.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return marian


if __name__ == "__main__":
    keep_heap()
    main()
