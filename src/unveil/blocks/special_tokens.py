"""The first tokens of every translation vocabulary: padding, beginning of sentence, end of sentence."""

PAD, BEGIN, END = range(3)
SPECIAL_TOKENS = ("[pad]", "[begin]", "[end]")
