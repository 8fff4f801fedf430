"""Texts that tokenizers stumble over."""

TRICKY = [
    "",
    " ",
    "plain words, here",
    "double  spaces   and\ttabs\nand\r\n\nlines ",
    " leading space",
    "emoji 😀 👩‍🚀 and flags 🇫🇷",
    "bytes: 𓀀 ꙮ \U0010ffff ￿ \x7f\x01",
    "a literal mark ▁ here▁and ▁▁ there",
    "<s> </s> <unk> <pad> <0x41> is text, not tokens",
    "ligatures ﬁ ﬀ, full-width ＡＢＣ, ½ and x²",
    "NFD: e\u0301 o\u0308, zero\u200bwidth, nbsp\u00a0here, \u3000ideographic",
    "日本語のテキスト。",
    "1234567890 3.14",
    "\ufeffbom, soft\u00adhyphen, replacement \ufffd",
]
