"""What the tests of pictures share."""

import pytest

from jaxmamba3d.evaluation import panels


@pytest.fixture
def legends(monkeypatch):
    """The figures that are drawn, each with the labels of its legend."""
    found, original = [], panels.Figure.legend

    def record(figure, **options):
        found.append((figure, [handle.get_label() for handle in options["handles"]]))
        return original(figure, **options)

    monkeypatch.setattr(panels.Figure, "legend", record)
    return found
