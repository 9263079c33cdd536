"""The version, in a single place; setup.cfg and the store read it here."""

VERSION = "0.1.0"
