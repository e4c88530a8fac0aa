"""The tokens that every vocabulary of a translator begins with: padding, the begin of a sentence, its end."""

PAD, BEGIN, END = range(3)
MARKS = ("[pad]", "[begin]", "[end]")
