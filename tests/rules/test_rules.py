"""Every rule is held to the law, and every registered operator must be here."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import check_law
from rules.cases import CASES, SINGLE

from onnxprune.rules import supported_operators

EXAMPLES = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("name", sorted(CASES))
def test_law(name: str) -> None:
    @EXAMPLES
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        net, expected = CASES[name](data.draw)
        check_law(net.graph(), data, expected, single=name in SINGLE or ":" in name)

    holds()


def test_every_operator_has_a_case() -> None:
    known = {f"{domain}:{op}" if domain else op for domain, ops in supported_operators().items() for op in ops}
    assert {name.split("/")[0] for name in CASES} == known
