"""Sentences begin with a capital and the writer is `I`: "Hello. how are you?" becomes "Hello. How are you?".

Rules for English that prefer missing a case to damaging a text: code, addresses, abbreviations, lists, quotations and names
such as `iPhone` stay unchanged. Proper nouns are not recognized.
"""

import re
from bisect import bisect_right

_PROTECTED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|(?:https?://|www\.)\S+|\$\$.*?\$\$|<[^<>\n]{1,200}>", re.DOTALL)
_FIRST = re.compile(r"\s*[\"'“‘(\[]*([a-z][a-z'’]*)(?=[\s,;!?)\"”]|\.(?:\s|\Z))")
_NEXT = re.compile(r"[.!?][ \u00a0]+([a-z][a-z'’]*)(?=[\s,;!?)\"”]|\.(?:\s|\Z)|\Z)")
_CONTRACTED = re.compile(r"(?<![\w.'’/\\@#-])i(?=['’](?:m|ve|ll|d)\b)")
_ALONE = re.compile(
    r"(?<=[\s\"“(])i(?= (?:am|was|have|had|will|would|can|can't|could|couldn't|should|do|did|don't|didn't|think|need|"
    r"want|know|like|love|feel|believe|understand|hope|guess|mean|see|just|really|always|never|often|usually|"
    r"currently|recently|found|made|tried|wish|appreciate|agree|remember|heard|read|saw|went|live|work|used)\b)"
)
_CODE = re.compile(r"[{}=;<>\\_|]|\w\((?!s\))|\(\)|//|::|->")
_COMMANDS = frozenset({"cd", "curl", "def", "docker", "echo", "git", "import", "npm", "pip", "select", "sudo", "var"})
_WORD_BEFORE = re.compile(r"\S{1,24}\Z")
_ABBREVIATIONS = (
    " al approx apt art assn ave blvd bros cf ch chap cm co col corp dept dr ed eds eg eq eqs esp est etc ex ext fig figs ft "
    "capt gen gov hon hr hrs ie inc incl jr lb lbs lt ltd max min misc mr mrs ms mt nos pg pp pres prof pt pts ref refs rep "
    "resp rev sec sen sgt sp spp sq sr st syn tel temp univ viz vol vols vs "
)


def truecase(text: str) -> str:
    """Capitalize sentence starts and the pronoun I. The length stays, and a second call changes nothing."""
    starts = {match.start(1) for match in _NEXT.finditer(text) if _ends_sentence(text, match.start())}
    first = _FIRST.match(text)
    if first and _is_prose(text, first):
        starts.add(first.start(1))
    starts = {start for start in starts if _is_word(text, start)}
    starts |= {match.start() for pattern in (_CONTRACTED, _ALONE) for match in pattern.finditer(text)}
    if not starts:
        return text
    edges = [edge for match in _PROTECTED.finditer(text) for edge in match.span()]
    letters = list(text)
    for start in starts:
        if bisect_right(edges, start) % 2 == 0:  # an even number of edges before it: outside every protected span
            letters[start] = letters[start].upper()
    return "".join(letters)


def first_change(before: str, after: str, context: int = 40) -> str:
    """Excerpts of both texts around the first letter that differs."""
    index = next(index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
    start, end = max(index - context, 0), index + context
    return f"{before[start:end]}\n-> {after[start:end]}"


def _ends_sentence(text: str, mark: int) -> bool:
    """Whether the mark at an index closes a sentence: not a list number, an abbreviation, an initial or an ellipsis."""
    before = _WORD_BEFORE.search(text, max(mark - 24, 0), mark)
    if before is None:
        return False
    word = before[0].lstrip("\"'“‘([")
    if text[mark] != ".":  # n! and 27! are numbers; after a capital it may be part of a title: "Jeopardy! host"
        return len(word) > 1 and word[-1].isalpha() and not word[0].isupper()
    if "." in word or f" {word.lower()} " in _ABBREVIATIONS or not word[-1:].isalnum():
        return False
    number = (word.isdigit() and len(word) <= 3) or set(word) <= set("ivx")
    return not number and len(word) > 1


def _is_prose(text: str, first: re.Match[str]) -> bool:
    """Whether the first line of a text is prose: not a command, not code, and not a single word, which may be a label."""
    line = text[: (text + "\n").index("\n", first.start(1))]
    return first[1] not in _COMMANDS and not _CODE.search(line) and len(text.split(None, 1)) > 1


def _is_word(text: str, start: int) -> bool:
    """Whether a word begins at an index: more than one letter, which may be a symbol, or `a`."""
    following = text[start + 1 : start + 2]
    return following.isalpha() or following in ("'", "’") or text[start] == "a"
