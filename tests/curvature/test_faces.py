"""The faces of curvature and of the rooms inside it: few names, found, and loaded on first use."""

import subprocess
import sys
import warnings

import pytest

from landscape import curvature
from landscape.curvature import audits, guards, hvp, operators
from tests.helpers.processes import ROOT


@pytest.mark.parametrize("face", [curvature, audits, guards, hvp, operators])
def test_a_face_offers_few_names_and_all_of_them_are_there(face):
    assert 0 < len(face.__all__) < 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="no attribute 'HessianOprator'"):
        _ = face.HessianOprator


def test_importing_the_faces_loads_no_torch_and_every_room_is_an_attribute():
    program = (
        "import sys, landscape.curvature as curvature; "
        "rooms = curvature.audits, curvature.guards, curvature.hvp, curvature.operators; "
        "assert 'torch' not in sys.modules; print(rooms[2].HvpChoice.__module__, "
        "curvature.audit.__module__, curvature.hessian.__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [
        "landscape.curvature.hvp.choice",
        "landscape.curvature.audits.objective_audit",
        "landscape.curvature.operators.hessian",
    ]
