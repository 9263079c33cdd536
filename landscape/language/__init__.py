"""Causal language models of transformers: loading, blocks of tokens, loss in chunks."""

from landscape.language.model import load_causal_lm
from landscape.language.objective import causal_lm_objective
from landscape.language.token_losses import token_losses

__all__ = ["causal_lm_objective", "load_causal_lm", "token_losses"]
