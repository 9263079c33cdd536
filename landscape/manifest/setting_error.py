"""The error for an invalid setting, from a file or from Python."""


class SettingError(ValueError):
    """A setting has an invalid value; `key` is its name."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


def shown(value: object) -> str:
    """Format a value for a one-line message."""
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
