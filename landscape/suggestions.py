"""The known names that are most like an unknown one, for messages.

Imports only the standard library.
"""

from collections.abc import Callable, Iterable

# A longer list of names is cut in a message.
_MAX_LISTED = 40


def close_names(
    word: str,
    names: Iterable[str],
    *,
    count: int = 1,
    cutoff: float = 0.6,
    key: Callable[[str], str] = str.casefold,
) -> list[str]:
    """List the names whose spelling is most like a word, the closest first.

    Args:
        count: Largest number of names.
        cutoff: Least similarity from 0 to 1, as in `difflib.get_close_matches`.
        key: Form in which spellings are compared; by default without case.
    """
    # Loaded for a wrong name alone: the command line starts without it.
    import difflib

    by_key = {key(name): name for name in names}
    matches = difflib.get_close_matches(key(word), by_key, n=count, cutoff=cutoff)
    return [by_key[match] for match in matches]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests a known name.

    Where none is like the word, it lists the names.
    """
    known = list(dict.fromkeys(names))
    if close := close_names(word, known):
        return f"did you mean {close[0]!r}?"
    if not known:
        return "there are none."
    more = f", ... ({len(known)} in all)" if len(known) > _MAX_LISTED else ""
    return f"expected one of {', '.join(known[:_MAX_LISTED])}{more}."


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a sentence that suggests a known name, after a blank.

    It is empty where no name is like the word. For messages that list all names themselves.
    """
    close = close_names(word, names)
    return f" Did you mean {close[0]!r}?" if close else ""
