"""The kinds of personal data and keys that the filter `pii` finds: their patterns and checks.

A kind has two patterns. `candidate` is a pattern for RE2. It finds the documents that may contain the
kind, in linear time and at 600 MB/s. Only these are searched with `pattern`, a pattern for Python's
`re`. Its repetitions are bounded or can match in one way only, so it takes linear time too. It matches
ASCII characters only. So a text stays valid UTF-8, and the marks of chats are never part of a match.

Many numbers resemble a card number or an address. `find_end` therefore checks what a pattern cannot:
check digits, lengths and ranges. It also finds where a number ends, because another one may follow it:
a card number is often written before the month in which the card expires.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

Match = re.Match[bytes]
FindEnd = Callable[[Match], int]

# Words before a number of four parts that is not an address: "version 1.2.3.4".
PRECEDES_VERSION = re.compile(
    rb"(?i)(?:\bv|\bversion|\bver\.?|\brelease|\bbuild|\bfirmware|\bsection|\bchapter|\xC2\xA7)\s?\Z"
)
CONTEXT_BYTES = 12
MAX_PASSES = 8
NOT_FOUND = -1
MIN_PLAIN_PHONE_DIGITS = 10  # in a number without separators
# Length of an IBAN by country, from the registry of SWIFT.
_IBAN_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29
    ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20
    LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29
    PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
    YE30
"""
IBAN_LENGTHS = {entry[:2].encode(): int(entry[2:]) for entry in _IBAN_LENGTHS.split()}
NUM_GROUPED_DIGITS = 16  # of a card number of four groups, which three digits may follow
# First digits of the card numbers of Visa, Mastercard, American Express, Discover, Diners Club, JCB and UnionPay, and
# their lengths.
CARD_ISSUERS = (
    (re.compile(rb"4"), (13, 16, 19)),
    (re.compile(rb"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(rb"3[47]"), (15,)),
    (re.compile(rb"6011|64[4-9]|65"), (16, 19)),
    (re.compile(rb"30[0-5]|3[68]"), (14,)),
    (re.compile(rb"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(rb"62"), (16, 17, 18, 19)),
)


@dataclass(frozen=True)
class Kind:
    """A kind of personal data."""

    candidate: str  # RE2: matches every text that has a match of `pattern`
    pattern: re.Pattern[bytes]  # what is replaced
    mask: bytes  # what it is replaced by
    # Returns where the item that begins with a match ends, or NOT_FOUND.
    find_end: FindEnd = lambda match: match.end()


def _end_of_address(match: Match) -> int:
    is_address = _is_public_v4(match) if b"." in match[0] else _is_public(match[0])
    return match.end() if is_address else NOT_FOUND


def _is_public_v4(match: Match) -> bool:
    context = memoryview(match.string)[max(match.start() - CONTEXT_BYTES, 0) : match.start()]
    return not PRECEDES_VERSION.search(context) and _is_public(match[0])


def _is_public(address: bytes) -> bool:
    try:
        return ipaddress.ip_address(address.decode()).is_global
    except ValueError:
        return False


def _end_of_phone(match: Match) -> int:
    digits = re.sub(rb"[^0-9]", b"", match[0])
    is_plain = len(digits) == len(match[0]) - 1
    is_round = digits.endswith(b"000000")  # such as +1 000 000 000, which is an amount
    is_phone = not is_round and (not is_plain or len(digits) >= MIN_PLAIN_PHONE_DIGITS)
    return match.end() if is_phone else NOT_FOUND


def _end_of_card(match: Match) -> int:
    digits = re.sub(rb"[ -]", b"", match[0])
    if _is_card(digits):
        return match.end()
    # Three digits after a card number can be the last group of a longer one, or its security code.
    if match["last"] and _is_card(digits[:NUM_GROUPED_DIGITS]):
        return match.start("last")
    return NOT_FOUND


def _is_card(digits: bytes) -> bool:
    has_issuer = any(len(digits) in lengths and first.match(digits) for first, lengths in CARD_ISSUERS)
    return has_issuer and _has_luhn_digit(digits)


def _has_luhn_digit(digits: bytes) -> bool:
    """Return whether the last digit of a card number is the check digit of the others."""
    values = [digit - 48 for digit in reversed(digits)]
    doubled = [2 * value - 9 * (value > 4) for value in values[1::2]]
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


def _end_of_iban(match: Match) -> int:
    """The country determines the length. A word or a number may follow, as in `AT61 1904 3002 3457 3201 EUR`."""
    places = [place for place, byte in enumerate(match[0]) if byte != ord(" ")]
    length = IBAN_LENGTHS.get(match[0][:2], len(places) + 1)
    if length > len(places):
        return NOT_FOUND
    end = places[length - 1] + 1
    if match[0][end : end + 1].strip():  # the same word continues
        return NOT_FOUND
    text = match[0][:end].replace(b" ", b"")
    number = "".join(str(int(chr(byte), 36)) for byte in text[4:] + text[:4])
    return match.start() + end if int(number) % 97 == 1 else NOT_FOUND


_USER = r"[A-Za-z0-9._~%!$&'*+;=-]"
_KEY_BODY = r"A-Za-z0-9+/=\s:,.\\"
_NAME = "[A-Za-z0-9_]"
# Patterns of keys: a typical part of each for RE2, and the whole key for Python.
_KEYS = (
    (
        r"-----BEGIN [A-Z0-9 ]{0,60}PRIVATE KEY",
        r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
        rf"(?:[{_KEY_BODY}]+-(?!-)){{0,8}}[{_KEY_BODY}]*(?:-----END [A-Z0-9 ]{{1,60}}-----)?",
    ),
    (  # JSON Web Token
        r"eyJ[A-Za-z0-9_-]{10}",
        r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]{10,2000}",
    ),
    (r"A[KS]IA[A-Z2-7]{16}", r"(?<![A-Z0-9])A[KS]IA[A-Z2-7]{16}(?![A-Z0-9])"),  # Amazon
    (r"gh[pousr]_[A-Za-z0-9]{36}", rf"(?<!{_NAME})gh[pousr]_[A-Za-z0-9]{{36,255}}(?!{_NAME})"),  # GitHub
    (r"github_pat_[A-Za-z0-9_]{60}", rf"(?<!{_NAME})github_pat_[A-Za-z0-9_]{{60,255}}"),
    (r"glpat-[A-Za-z0-9_-]{20}", rf"(?<!{_NAME})glpat-[A-Za-z0-9_-]{{20,64}}"),  # GitLab
    (r"xox[abeoprs]-[0-9A-Za-z-]{10}", rf"(?<!{_NAME})xox[abeoprs]-[0-9]{{4,20}}-[0-9A-Za-z-]{{10,255}}"),  # Slack
    (
        r"hooks\.slack\.com/services/T",
        r"(?<=hooks\.slack\.com/services/)T[A-Z0-9]{6,16}/B[A-Z0-9]{6,16}/[A-Za-z0-9]{20,32}",
    ),
    (r"sk-[A-Za-z0-9]{48}", rf"(?<!{_NAME})sk-[A-Za-z0-9]{{48}}(?!{_NAME})"),  # OpenAI
    (  # OpenAI, Anthropic, OpenRouter
        r"sk-(?:proj|svcacct|admin|ant|or)-",
        rf"(?<!{_NAME})sk-(?:proj|svcacct|admin|ant|or)-[A-Za-z0-9_-]{{32,255}}",
    ),
    (r"AIza[0-9A-Za-z_-]{35}", rf"(?<!{_NAME})AIza[0-9A-Za-z_-]{{35}}(?!{_NAME})"),  # Google
    (r"[sr]k_live_[0-9a-zA-Z]{16}", rf"(?<!{_NAME})[sr]k_live_[0-9a-zA-Z]{{16,255}}"),  # Stripe
    (r"hf_[A-Za-z]{34}", rf"(?<!{_NAME})hf_[A-Za-z]{{34}}(?!{_NAME})"),  # Hugging Face
    (r"npm_[A-Za-z0-9]{36}", rf"(?<!{_NAME})npm_[A-Za-z0-9]{{36}}(?!{_NAME})"),
    (r"pypi-AgEIcHlwaS5vcmc", r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,512}"),
    (r"SG\.[A-Za-z0-9_-]{22}\.", rf"(?<!{_NAME})SG\.[A-Za-z0-9_-]{{22}}\.[A-Za-z0-9_-]{{43}}"),  # SendGrid
    # A password in a URL. Only the password and the user are replaced.
    (rf"://{_USER}{{1,64}}:{_USER}{{1,128}}@", rf"(?<=://){_USER}{{1,64}}:{_USER}{{1,128}}(?=@)"),
)

# In the order in which they are replaced. A key may contain what looks like another kind.
KINDS: dict[str, Kind] = {
    "key": Kind(
        "|".join(candidate for candidate, _ in _KEYS),
        re.compile("|".join(f"(?:{pattern})" for _, pattern in _KEYS).encode()),
        b"<KEY>",
    ),
    "email": Kind(
        "[A-Za-z0-9._%+'-]@[A-Za-z0-9]",
        re.compile(
            rb"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9_%+'-][A-Za-z0-9._%+'-]{0,63}"
            rb"@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
        ),
        b"<EMAIL>",
    ),
    "ip": Kind(
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]",
        re.compile(
            rb"(?<![0-9A-Za-z_.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_-]|\.[0-9])"
            rb"|(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z_:]|\.[0-9])"
        ),
        b"<IP_ADDRESS>",
        _end_of_address,
    ),
    "iban": Kind(
        r"[A-Z]{2}[0-9]{2} ?[0-9A-Z]{4}",
        re.compile(rb"(?<![0-9A-Za-z])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?(?![0-9A-Za-z])"),
        b"<IBAN>",
        _end_of_iban,
    ),
    "card": Kind(
        r"[0-9]{13}|[0-9]{4}[ -][0-9]{4,6}[ -][0-9]{4,5}",
        re.compile(
            rb"(?<![0-9A-Za-z_.+-])(?:[0-9]{13,19}"
            rb"|[0-9]{4}([ -])(?:[0-9]{6}\1[0-9]{4,5}|[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?P<last>\1[0-9]{3})?))"
            rb"(?![0-9A-Za-z_]|[.-][0-9])"
        ),
        b"<CARD_NUMBER>",
        _end_of_card,
    ),
    "phone": Kind(
        r"\+[1-9]",
        re.compile(rb"(?<![0-9A-Za-z_+.=-])\+[1-9](?:\)?[ ./-]?\(?[0-9]){7,14}(?![0-9A-Za-z_]|[.,][0-9])"),
        b"<PHONE>",
        _end_of_phone,
    ),
}


def mask_text(text: bytes, names: tuple[str, ...]) -> tuple[bytes, dict[str, int]]:
    """Return `text` with every match of the kinds `names` replaced, and the number of matches of each kind.

    A replacement can make text directly beside it match a kind that was searched before. So the search is
    repeated until nothing is found, at most MAX_PASSES times.
    """
    counts: dict[str, int] = dict.fromkeys(names, 0)
    for _ in range(MAX_PASSES):
        num_before = sum(counts.values())
        for name in names:
            text, found = _replace(text, KINDS[name])
            counts[name] += found
        if sum(counts.values()) == num_before:
            break
    return text, {name: count for name, count in counts.items() if count}


def _replace(text: bytes, kind: Kind) -> tuple[bytes, int]:
    rest, position, found = memoryview(text), 0, 0
    replaced = bytearray()  # grows in place; a list of the parts would take 200 bytes for each match
    while match := kind.pattern.search(rest, position):
        end = kind.find_end(match)
        if end == NOT_FOUND:
            position = match.start() + 1  # an item may begin inside of the match, as a card number after an amount
        else:
            # The rest begins after the item, so that the pattern does not read the item as context of the next one.
            replaced += rest[: match.start()]
            replaced += kind.mask
            rest, position, found = rest[end:], 0, found + 1
    if not found:
        return text, 0
    replaced += rest
    return bytes(replaced), found
