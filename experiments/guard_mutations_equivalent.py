"""Mutations of `mutate_guards.py` that no test can notice, each with the reason."""

_TYPES = (
    "the roundings of two floating-point types that can meet here are equal or differ by more than "
    "100 times"
)
_ADDS_ZERO = "adds exactly 0 where there is no L2 term"
_FLOOR = "reached by outputs of zeros alone, whose form is zero whatever positive number divides it"

EQUIVALENT: dict[str, str] = {
    ("audit._Examination._compared: second is not None -> True"): (
        "each product has an outcome; for the type checker"
    ),
    (
        "audit._promoted: objective.module is not None and objective.rebound is not None -> "
        "(objective.rebound is not None)"
    ): "only objectives with a module can be rebound; the copy of None fails and is caught",
    ("blame._test: next(iter(variables.values())).dtype not in PRECISION -> False"): (
        "the digits of a loss are at most those of its variables and are looked at next"
    ),
    (
        'blame._compared: second is not None and second.verdict == "failed" -> (second.verdict '
        "== 'failed')"
    ): "there is no outcome only where the product was refused, which was returned before",
    ('blame._scalarised.forward: key.startswith("own ") -> True'): (
        "functional_call ignores names that a part does not have"
    ),
    ("blame._scalarised.loss: not sizes -> True"): (
        "sizes that are appended later pair with no output"
    ),
    "blame._scalarised.loss: 1e-6 -> 0.0001": _FLOOR,
    "blame._scalarised.loss: 1e-6 -> 1e-08": _FLOOR,
    (
        "differences.natural_size: min(1.0, middle) if math.isfinite(middle) else 1.0 -> (min(1.0, "
        "middle))"
    ): "min(1.0, x) is 1.0 for infinity and for NaN, which compares as not smaller",
    ('graph.differentiable_pullback: not hasattr(node, "variable") -> True'): (
        "torch.autograd.grad does not run the nodes that accumulate into leaves"
    ),
    "graph.overwritten_in_backward: parent is not None and _reads_what_was_overwritten(node) -> "
    "(_reads_what_was_overwritten(node))": (
        "a node of the forward pass whose saved tensors were overwritten has failed in the first "
        "backward pass"
    ),
    (
        'explanations._reads_what_was_overwritten: name.startswith("_saved_") or name == '
        '"saved_tensors" -> True'
    ): "no other attribute of a node reads a saved tensor; takes longer",
    (
        "graph._edited_gradient: row >= saved._saved_weight_sym_argsize_0 or not "
        "_made_of(node.next_functions[0][0], params) -> (not _made_of(node.next_functions[0][0], "
        "params))"
    ): "no index is the number that stands for no padding row",
    ('evaluation.backward_in_place: warnings.simplefilter("ignore") -> pass'): (
        "the loss has given its warnings in the evaluations before"
    ),
    ("spot_check._compared: mixed if len(mixed) > 1 else torch.ones_like(mixed) -> (mixed)"): (
        "a single vector is normalised afterwards, so only its sign may change"
    ),
    ("finite_difference.module: 0.1 -> 0.001"): (
        "the ladder may only go on longer; the step at which differences move least stays the best"
    ),
    "graph._inspect: torch.finfo(gradient.dtype).eps > torch.finfo(dtype).eps -> "
    "((torch.finfo(gradient.dtype).eps) > 100 * (torch.finfo(dtype).eps))": _TYPES,
    "preconditions.check_loss: torch.finfo(loss.dtype).eps > torch.finfo(dtype).eps -> "
    "((torch.finfo(loss.dtype).eps) > 100 * (torch.finfo(dtype).eps))": _TYPES,
    "finite_difference.FiniteDifferenceOperator.__init__: self.weight_decay -> True": _ADDS_ZERO,
    (
        "finite_difference.FiniteDifferenceOperator.matmat: products.add(V, "
        "alpha=self.weight_decay) if self.weight_decay else products -> (products.add(V, "
        "alpha=self.weight_decay))"
    ): _ADDS_ZERO,
}
