"""The words the demo models know, and the tokenizer that goes with them.

One token is one word, and words are parted by spaces: `3 8 + 4 7 =`. That keeps every prompt readable, every
sequence short, and an item's answer a fixed number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SIGNS = ("+", "=", "sort", "odd")
KINDS = {
    "animal": ("cat", "dog", "cow", "fox", "hen", "pig", "bee", "owl"),
    "colour": ("red", "blue", "green", "pink", "grey", "white", "black", "brown"),
    "fruit": ("apple", "pear", "plum", "grape", "lemon", "mango", "peach", "cherry"),
    "tool": ("saw", "axe", "drill", "hammer", "rake", "spade", "chisel", "pliers"),
    "metal": ("iron", "gold", "silver", "copper", "zinc", "lead", "nickel", "brass"),
    "body": ("hand", "foot", "knee", "neck", "nose", "elbow", "chin", "ankle"),
    "dress": ("hat", "coat", "shirt", "scarf", "glove", "sock", "boot", "skirt"),
    "weather": ("rain", "snow", "wind", "fog", "hail", "storm", "frost", "thunder"),
}
WORDS = (*SPECIAL, *DIGITS, *LETTERS, *SIGNS, *(word for kind in KINDS.values() for word in kind))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast word-level tokenizer over `WORDS`; it adds no special token by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
    )
