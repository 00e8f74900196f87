"""Writes docs/digits.md: how many digits are not zero in bit-serial, Booth and EN-T code, counted over every value.

Run: python docs/digits.py > docs/digits.md
"""

from models import booth, encoder, ent

CODES = {"bit-serial": encoder.bit_serial_digits, "radix-4 Booth": booth.digits, "EN-T": ent.digits}

TEXT = """# Digits that are not zero

A partial product is due for each digit that is not zero; engines that skip zero digits take one step for each. Counted
over all {values} values of an INT{bits} operand, each once. Bit-serial code has {bits} digits (two's-complement bits),
Booth and EN-T code have {radix4} (radix 4, -2 to 2).

The table is written by `python docs/digits.py > docs/digits.md`; a test holds it against the code.

| digits that are not zero | {names} |
| --- | {rules} |
"""


def page(bits: int = 8) -> str:
    """The whole document."""
    counts = [encoder.nonzero_histogram(digits, bits) for digits in CODES.values()]
    head = TEXT.format(
        values=1 << bits,
        bits=bits,
        radix4=encoder.digit_count(bits),
        names=" | ".join(CODES),
        rules=" | ".join("---" for _ in CODES),
    )
    rows = [[str(i), *(str(c[i]) if i < len(c) else "" for c in counts)] for i in range(bits + 1)]
    means = [f"{sum(i * n for i, n in enumerate(c)) / (1 << bits):.3f}" for c in counts]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in [*rows, ["mean", *means]])


if __name__ == "__main__":
    print(page(), end="")
